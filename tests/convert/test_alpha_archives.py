"""CRATE-alpha's archives of JAX: the authors' names and shapes, in and out."""

import numpy as np
import pytest

import crate_jax
from crate_jax.convert import checkpoints


def flax_state(state, heads):
    """CRATE-alpha's PyTorch tensors as its JAX code has them."""
    dim = state["cls_token"].shape[-1]
    flax = {
        "cls": state["cls_token"],
        "pos_embedding": state["pos_embedding"],
        "embedding/kernel": state["conv1.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["conv1.bias"],
        "encoder_norm/scale": state["mlp_head.0.weight"],
        "encoder_norm/bias": state["mlp_head.0.bias"],
        "head/kernel": state["mlp_head.1.weight"].T,
        "head/bias": state["mlp_head.1.bias"],
    }
    for i in range(2):
        block, layer = f"Transformer/encoderblock_{i}", f"transformer.layers.{i}"
        attention = f"{block}/MultiHeadDotProductSubspaceAttention_0"
        flax |= {
            f"{block}/LayerNorm_0/scale": state[f"{layer}.0.norm.weight"],
            f"{block}/LayerNorm_0/bias": state[f"{layer}.0.norm.bias"],
            f"{block}/LayerNorm_1/scale": state[f"{layer}.1.norm.weight"],
            f"{block}/LayerNorm_1/bias": state[f"{layer}.1.norm.bias"],
            f"{attention}/proj/kernel": state[f"{layer}.0.fn.qkv.weight"].T.reshape(
                dim, heads, dim // heads
            ),
            f"{attention}/out/kernel": state[f"{layer}.0.fn.to_out.0.weight"].T.reshape(
                heads, dim // heads, dim
            ),
            f"{block}/OvercompleteISTABlock_0/D": state[f"{layer}.1.fn.D"],
            f"{block}/OvercompleteISTABlock_0/D1": state[f"{layer}.1.fn.D1"],
        }
    return flax


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_jax_archive_of_crate_alpha(prefix, reference, tmp_path, run, error):
    state, arrays = reference("crate_alpha_mini")
    flax = {prefix + k: v for k, v in flax_state(state, 4).items()}
    np.savez(tmp_path / "x.npz", **flax)
    model = crate_jax.load(tmp_path / "x.npz")  # heads are an axis here
    assert (model.config.heads, model.config.head_epsilon) == (4, 1e-6)
    model = crate_jax.load(tmp_path / "x.npz", head_epsilon=1e-5)  # PyTorch's, as the reference
    assert error(run(model, arrays["images"].transpose(0, 2, 3, 1))[0], arrays["logits"]) < 1e-5


def test_one_full_width_head_of_crate_alpha(reference, write, tmp_path, run, error):
    """Its JAX class has an output map then too, its PyTorch class has none."""
    state, arrays = reference("crate_alpha_mini")
    np.savez(tmp_path / "x.npz", **flax_state(state, 1))
    model = crate_jax.load(tmp_path / "x.npz")
    assert (model.config.heads, model.config.full_width_output) == (1, True)
    same = crate_jax.load(write(state), heads=1, head_epsilon=1e-6)
    assert same.config == model.config
    images = arrays["images"].transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(run(model, images)[0], run(same, images)[0])
    checkpoints.save(model, tmp_path / "y.safetensors")
    assert checkpoints.read(tmp_path / "y.safetensors").config == model.config
    without = {k: v for k, v in state.items() if "to_out" not in k}
    for target in ("z.safetensors", "z.npz"):
        checkpoints.save(crate_jax.load(write(without)), tmp_path / target, declared=False)
        config = crate_jax.load(tmp_path / target).config
        assert (config.heads, config.full_width_output) == (1, False)


def test_crate_alpha_archives_are_the_authors(reference, write, tmp_path):
    state, _ = reference("crate_alpha_mini")
    checkpoints.save(checkpoints.read(write(state), heads=4), tmp_path / "y.npz")
    expected = flax_state(state, 4)
    with np.load(tmp_path / "y.npz") as again:
        assert set(again.files) == set(expected)
        for key, values in expected.items():
            np.testing.assert_array_equal(again[key], values)
