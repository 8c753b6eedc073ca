"""Positions at other sizes, against OpenCV's bicubic (Keys, a = -0.75, too) and the reference."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.models.names import RULES
from crate_jax.models.positions import resize_positions, sincos_positions


def table(rows, columns, dim=5):
    return np.random.default_rng(0).normal(size=(1, 1 + rows * columns, dim)).astype(np.float32)


@pytest.mark.parametrize(
    ("source", "target"),
    [((4, 4), (6, 8)), ((7, 7), (3, 5)), ((2, 5), (9, 4)), ((14, 14), (60, 60))],
)
def test_size_rule_is_opencvs(source, target, error):
    positions = table(*source)
    resized = resize_positions(positions, source, target)
    expected = cv2.resize(
        positions[0, 1:].reshape(*source, -1), target[::-1], interpolation=cv2.INTER_CUBIC
    )
    np.testing.assert_array_equal(resized[:, :1], positions[:, :1])
    assert error(resized[0, 1:].reshape(expected.shape), expected) < 1e-5


def test_dino_rule_is_dinos(reference, error):
    case = reference("dino_vit_mini")
    positions = case.state["pos_embed"]
    resized = resize_positions(positions, (4, 4), (6, 8), "dino")
    assert error(resized, case["pos_embed_other_size"]) < 1e-6
    assert error(resize_positions(positions, (4, 4), (6, 8)), case["pos_embed_other_size"]) > 1e-3


def test_equal_size_is_the_identity_but_in_the_notebook():
    positions = jnp.asarray(table(4, 4))
    for rule in ("size", "dino"):
        assert resize_positions(positions, (4, 4), (4, 4), rule) is positions
    resampled = resize_positions(positions, (4, 4), (4, 4), "notebook")
    assert not np.allclose(resampled, positions, atol=1e-3)


def test_notebook_lays_the_width_on_the_first_axis():
    positions = table(4, 4)
    notebook = resize_positions(positions, (4, 4), (6, 8), "notebook")
    dino = resize_positions(positions, (4, 4), (8, 6), "dino")
    np.testing.assert_array_equal(notebook, dino)


@pytest.mark.usefixtures("types_unchecked")
def test_unknown_rule():
    with pytest.raises(ValueError, match="expected one of size, dino, antialias"):
        resize_positions(table(2, 2), (2, 2), (3, 3), "bilinear")


def test_sincos_by_hand():
    positions = sincos_positions((2, 3), 8)
    assert positions.shape == (1, 7, 8)
    assert not positions[0, 0].any()
    # Token 6 is row 1, column 2; the two frequencies are 1 and 1/100, the column comes first.
    column = [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)]
    row = [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)]
    np.testing.assert_allclose(positions[0, 6], column + row, rtol=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions((2, 2), 6)


@pytest.mark.parametrize("rule", RULES)
def test_a_grid_that_no_memory_holds_is_refused(rule):
    with pytest.raises(ValueError, match=r"expected at most 1,048,576 patches, got 125,000 x"):
        resize_positions(table(4, 4), (4, 4), (125_000, 125_000), rule)
