"""State dicts under the authors' names, made in NumPy: most of these tests need no PyTorch."""

import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests import networks, workdirs


@pytest.fixture(scope="package", autouse=True)
def _exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def reference_files():
    return pathlib.Path(__file__).parents[1] / "reference"


@pytest.fixture(scope="session")
def reference(reference_files):
    def read(name):
        with np.load(reference_files / f"{name}.npz") as file:
            arrays = {k: file[k] for k in file.files}
        state = {k[11:]: v for k, v in arrays.items() if k.startswith("state_dict/")}
        return state, arrays

    return read


@pytest.fixture(scope="session")
def error():
    return lambda got, want: float(
        np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)
    )


@pytest.fixture(scope="session")
def run():
    return networks.run


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="reads or writes .pth, which needs the torch extra")


@pytest.fixture
def write(tmp_path):
    """Writes a bare state dict as safetensors, without any declaration."""

    def save(state, name="x.safetensors"):
        path = tmp_path / name
        safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, path)
        return path

    return save


def crate_state(dim=24, depth=2, patch=8, patches=16, classes=10, output=True, seed=0):
    """A CRATE under the authors' names, written down from their class, not from our tables."""
    pixels = 3 * patch**2
    shapes = {
        "pos_embedding": (1, 1 + patches, dim),
        "cls_token": (1, 1, dim),
        "to_patch_embedding.1.weight": (pixels,),
        "to_patch_embedding.1.bias": (pixels,),
        "to_patch_embedding.2.weight": (dim, pixels),
        "to_patch_embedding.2.bias": (dim,),
        "to_patch_embedding.3.weight": (dim,),
        "to_patch_embedding.3.bias": (dim,),
    }
    for i in range(depth):
        layer = f"transformer.layers.{i}"
        shapes |= {
            f"{layer}.0.norm.weight": (dim,),
            f"{layer}.0.norm.bias": (dim,),
            f"{layer}.0.fn.qkv.weight": (dim, dim),
            f"{layer}.1.norm.weight": (dim,),
            f"{layer}.1.norm.bias": (dim,),
            f"{layer}.1.fn.weight": (dim, dim),
        }
        if output:
            shapes[f"{layer}.0.fn.to_out.0.weight"] = (dim, dim)
            shapes[f"{layer}.0.fn.to_out.0.bias"] = (dim,)
    if classes:
        shapes |= {
            "mlp_head.0.weight": (dim,),
            "mlp_head.0.bias": (dim,),
            "mlp_head.1.weight": (classes, dim),
            "mlp_head.1.bias": (classes,),
        }
    draw = np.random.default_rng(seed).normal
    return {k: (draw(size=s) / np.sqrt(s[-1])).astype(np.float32) for k, s in shapes.items()}


@pytest.fixture(name="crate_state", scope="session")
def _crate_state():
    return crate_state


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """A run of two checkpoints."""
    directory = tmp_path_factory.mktemp("run")
    return workdirs.write(directory, (10, 20), image_size=(16, 32), positions="dino")
