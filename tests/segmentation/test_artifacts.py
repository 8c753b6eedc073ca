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
    one = artifacts.patches_in_box(np.array([16, 16, 48, 48]), (224, 224), resize=224, centres=True)
    assert one.sum() == 4
    assert one[1:3, 1:3].all()
    gone = artifacts.patches_in_box(np.array([0, 0, 3, 3]), (341, 670), centres=True)
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
        edges = artifacts.edges(rule)
        counts = artifacts.histogram(norms, edges)
        cut = artifacts.cutoff(counts, edges, rule)
        above = norms > cut
        assert above.sum() == 20, rule
        assert above[980:].all(), rule
        assert artifacts.outliers(counts, edges, cut) == above.mean()


def test_norms_are_counted_to_a_bin_whatever_their_number():
    rng = np.random.default_rng(0)
    norms = np.exp(rng.normal(2, 1, (2, 3, 500))).astype(np.float32)
    edges = artifacts.edges()
    assert np.log2(edges[[0, -1]]).tolist() == [-6, 14]
    counts = artifacts.histogram(norms, edges)
    assert (counts.shape, counts.dtype) == ((2, 3, len(edges) - 1), np.uint16)
    assert (counts.sum(axis=-1) == 500).all()
    own = counts.sum(axis=(0, 1), dtype=np.int64)
    for q in artifacts.QUANTILES:
        expected = np.quantile(norms, q)
        assert artifacts.quantile(own, edges, q) == pytest.approx(expected, rel=0.03), q
    median = artifacts.cutoff(own, edges, "median:3")
    assert 1 <= median / (3 * np.median(norms)) < 1.05
    for layer in range(3):
        found = artifacts.outliers(counts[:, layer], edges, median)
        np.testing.assert_array_equal(found, (norms[:, layer] > median).mean(axis=-1))


def test_a_fixed_norm_is_an_edge_and_not_above_itself():
    edges = artifacts.edges("fixed:150")
    counts = artifacts.histogram(np.array([1e-9, 149.9, 150, 150.1, 1e9]), edges)
    assert 150 in edges
    assert artifacts.outliers(counts, edges, 150.0) == 2 / 5


def test_one_mode_has_no_valley():
    edges = artifacts.edges()
    for norms in (np.random.default_rng(0).normal(10, 1, 5000), np.full(9, 2.0), np.zeros(9)):
        counts = artifacts.histogram(norms, edges)
        assert artifacts.cutoff(counts, edges, "valley") == np.inf


@pytest.mark.parametrize("rule", ["fixed", "median:-1", "median:x", "mode:3", "valley:2"])
def test_other_rules_are_refused(rule):
    with pytest.raises(ValueError, match="fixed:NORM, median:FACTOR or valley"):
        artifacts.edges(rule)
