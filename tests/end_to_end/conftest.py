"""JPEGs to train on, and one cache of compiled programs for the runs within the test process."""

import jax
import pytest

from tests.end_to_end import pictures, runs


@pytest.fixture(autouse=True, scope="package")
def compilation_cache():
    values = {
        "jax_compilation_cache_dir": str(runs.CACHE),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of class folders."""
    return pictures.write(tmp_path_factory.mktemp("images"))
