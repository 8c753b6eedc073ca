"""Norms, cut-offs and masses by hand; LaSt-ViT's boxes against the authors' code."""

from pathlib import Path

import numpy as np
import pytest

from crate_jax.segmentation import artifacts

BOXES = np.load(Path(__file__).parents[1] / "reference" / "any_vit" / "patch_in_box.npz")


def test_patches_in_a_box_agree_with_the_authors():
    for (width, height), box, expected in zip(
        BOXES["image_size_wh"], BOXES["boxes_xyxy"], BOXES["patches_that_count"], strict=True
    ):
        found = artifacts.patches_in_box(box, (int(height), int(width)))
        np.testing.assert_array_equal(found, expected)


def test_centres_count_no_border_that_is_not_the_box():
    one = artifacts.centres_in_box(np.array([16, 16, 48, 48]), (224, 224), resize=224)
    assert one.sum() == 4
    assert one[1:3, 1:3].all()
    gone = artifacts.centres_in_box(np.array([0, 0, 3, 3]), (341, 670))
    assert not gone.any()


def test_norms_leave_cls_and_registers_out():
    tokens = np.zeros((2, 1, 1 + 2 + 3, 4), np.float32)
    tokens[:, :, :3] = 100
    tokens[1, 0, 4] = [3, 0, 4, 0]
    norms = artifacts.patch_norms(tokens, registers=2)
    np.testing.assert_allclose(norms, [[[0, 0, 0], [0, 5, 0]]])


def test_attention_mass_of_a_uniform_row():
    zero = np.zeros((1, 2, 1 + 3 + 4, 2, 5), np.float32)
    found = artifacts.attention_mass(zero, zero, registers=3)
    np.testing.assert_allclose(found, np.broadcast_to([1 / 8, 3 / 8], (2, 1, 2)), rtol=1e-6)


def test_each_rule_finds_planted_outliers():
    rng = np.random.default_rng(0)
    norms = np.concatenate([rng.normal(10, 1, 980), rng.normal(100, 8, 20)])
    for rule in ("fixed:50", "median:3", "valley"):
        above = norms > artifacts.cutoff(norms, rule)
        assert above.sum() == 20, rule
        assert above[980:].all(), rule


def test_one_mode_has_no_valley():
    norms = np.random.default_rng(0).normal(10, 1, 5000)
    assert artifacts.cutoff(norms, "valley") == np.inf
    assert artifacts.cutoff(np.full(9, 2.0), "valley") == np.inf
    assert artifacts.cutoff(norms, "fixed:150") == 150


@pytest.mark.parametrize("rule", ["fixed", "median:-1", "median:x", "mode:3", "valley:2"])
def test_other_rules_are_refused(rule):
    with pytest.raises(ValueError, match="fixed:NORM, median:FACTOR or valley"):
        artifacts.cutoff(np.ones(3), rule)
