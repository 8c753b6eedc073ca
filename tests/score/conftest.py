import pytest

from crate_jax.convert import checkpoints
from crate_jax.models import variants
from tests.networks import draw


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A checkpoint of a network with 2 layers of 3 heads, 32 px in patches of 8."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    checkpoints.save(draw(variants.config("crate-testing")), path)
    return path
