"""[CLS] maps against the authors' attention, the two rules against DINO and by hand."""

from pathlib import Path

import jax
import numpy as np
import pytest

from crate_jax.segmentation import attention

REFERENCE = Path(__file__).parents[1] / "reference"


def random_maps(*shape, seed=0):
    maps = np.random.default_rng(seed).gamma(0.5, size=shape).astype(np.float32)
    return maps / maps.sum(-1, keepdims=True)


def dino_keep(maps, fraction):
    """DINO's procedure, written out: sort ascending, normalise, cumulative sum, unsort."""
    order = np.argsort(maps, axis=-1, kind="stable")
    ordered = np.take_along_axis(np.asarray(maps, np.float64), order, axis=-1)
    kept = np.cumsum(ordered / ordered.sum(-1, keepdims=True), axis=-1) > 1 - fraction
    result = np.zeros(maps.shape, bool)
    np.put_along_axis(result, order, kept, axis=-1)
    return result


@pytest.fixture(scope="module")
def dino():
    return np.load(REFERENCE / "dino_vit_mini.npz")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_cls_maps_are_the_cls_row_of_crate_renormalised(layer):
    crate = np.load(REFERENCE / "crate_mini.npz")
    w = crate["subspace"][layer].reshape(3, 17, 4, 12)
    row = crate["attention"][layer][:, :, 0, 1:]
    maps = attention.cls_maps(w, w)
    assert maps.shape == (3, 4, 16)
    np.testing.assert_allclose(maps, row / row.sum(-1, keepdims=True), rtol=1e-5, atol=1e-8)


def other_size_maps(dino):
    query, key, _ = np.moveaxis(dino["qkv_last_other_size"].reshape(2, 49, 3, 4, 12), 2, 0)
    return attention.cls_maps(query, key)


def test_cls_maps_agree_with_dino_at_a_size_that_is_not_square(dino):
    row = dino["attention_last_other_size"][:, :, 0, 1:]
    np.testing.assert_allclose(
        other_size_maps(dino), row / row.sum(-1, keepdims=True), rtol=1e-5, atol=1e-8
    )


def test_mass_rule_agrees_with_dino(dino):
    expected = dino["cls_mask_keep_0_6"]
    np.testing.assert_array_equal(attention.keep_mass(other_size_maps(dino), 0.6), expected)
    # DINO thresholds the row without [CLS] unnormalised; the rule does not depend on the scale.
    row = dino["attention_last_other_size"][:, :, 0, 1:]
    np.testing.assert_array_equal(attention.keep_mass(row), expected)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.6, 0.95])
def test_mass_rule_is_dinos_procedure(fraction):
    maps = random_maps(2, 3, 50)
    np.testing.assert_array_equal(attention.keep_mass(maps, fraction), dino_keep(maps, fraction))
    tied = np.round(maps * 200) + 1
    np.testing.assert_array_equal(attention.keep_mass(tied, fraction), dino_keep(tied, fraction))


def test_mass_rule_by_hand():
    #         ascending .05 .1 .15 .3 .4; summed .05 .15 .30 .60 1.0; above .4 are the last two
    maps = np.array([0.3, 0.05, 0.4, 0.1, 0.15])
    assert attention.keep_mass(maps, 0.6).tolist() == [True, False, True, False, False]
    # One more patch is needed once the two largest hold less than asked for.
    assert attention.keep_mass(maps, 0.71).tolist() == [True, False, True, False, True]


def test_area_rule_by_hand():
    maps = np.array([0.3, 0.05, 0.4, 0.1, 0.15])
    assert attention.keep_area(maps, 0.6).tolist() == [True, False, True, False, True]
    assert attention.keep_area(maps, 0.2).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("patches", [1, 7, 64, 75])
def test_area_rule_keeps_the_nearest_number_of_patches(patches):
    maps = random_maps(4, patches)
    for percent in (0, 10, 25, 50, 58, 60, 90, 100):
        kept = np.asarray(attention.keep_area(maps, percent / 100))
        assert set(kept.sum(-1)) == {(percent * patches + 50) // 100}
        smallest_kept = np.where(kept, maps, np.inf).min(-1)
        assert (np.where(kept, -np.inf, maps).max(-1) < smallest_kept).all()


@pytest.mark.parametrize("patches", [1, 15, 64, 3600])
def test_constant_maps_keep_the_last_patches_in_reading_order(patches):
    uniform = np.full((patches,), 1 / patches, np.float32)
    needed = -(-3 * patches // 5)
    expected = np.arange(patches) >= patches - needed
    np.testing.assert_array_equal(attention.keep_mass(uniform, 0.6), expected)
    nearest = (6 * patches + 5) // 10
    expected = np.arange(patches) >= patches - nearest
    np.testing.assert_array_equal(attention.keep_area(uniform, 0.6), expected)


@pytest.mark.parametrize("rule", ["mass", "area"])
def test_fractions_at_the_ends(rule):
    keep = attention.RULES[rule]
    maps = random_maps(3, 4, 33)
    assert not keep(maps, 0).any()
    assert keep(maps, 1).all()
    assert keep(maps, 1.0).shape == maps.shape


def test_everything_but_zeros_holds_the_whole_mass():
    maps = np.array([0, 1e-9, 0.5, 0.5, 0], np.float32)
    assert attention.keep_mass(maps, 1).tolist() == [False, True, True, True, False]


def test_maps_of_zeros_and_maps_with_nan():
    maps = random_maps(3, 5)
    maps[0] = 0
    maps[1, 2] = np.nan
    mass, area = attention.keep_mass(maps), attention.keep_area(maps)
    assert not mass[0].any()
    assert area[0].sum() == 3
    assert not mass[1].any()
    assert not area[1].any()
    assert mass[2].any()
    assert area[2].sum() == 3
    maps[1, 2] = np.inf
    assert not attention.keep_mass(maps)[1].any()
    assert not attention.keep_area(maps)[1].any()


def test_rules_take_any_leading_shape_and_jit():
    maps = random_maps(2, 3, 4, 20)
    for keep in attention.RULES.values():
        whole = jax.jit(lambda maps, keep=keep: keep(maps, 0.6))(maps)
        assert whole.dtype == bool
        assert whole.shape == maps.shape
        np.testing.assert_array_equal(whole[1, 2, 3], keep(maps[1, 2, 3]))


def test_nearest_upsampling_repeats_where_the_grid_divides():
    maps = random_maps(2, 6).reshape(2, 6)
    up = attention.upsample(maps, (2, 3), (8, 6))
    np.testing.assert_array_equal(up, maps.reshape(2, 2, 3).repeat(4, 1).repeat(2, 2))
    mask = attention.upsample(maps > 0.1, (2, 3), (4, 3))
    assert mask.dtype == bool


def test_nearest_upsampling_takes_the_cell_of_the_pixel_centre():
    # Seven pixels over three cells: centres at .21 .64 1.07 1.5 1.93 2.36 2.79 cells.
    up = attention.upsample(np.arange(3.0), (1, 3), (1, 7))
    assert up[0].tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_bilinear_upsampling_interpolates_between_cell_centres():
    up = attention.upsample(np.array([0.0, 1.0]), (1, 2), (1, 4), mode="bilinear")
    np.testing.assert_allclose(up[0], [0, 0.25, 0.75, 1], atol=1e-6)


@pytest.mark.usefixtures("types_unchecked")
def test_errors_say_what_is_expected():
    good = np.zeros((1, 5, 2, 4), np.float32)
    with pytest.raises(ValueError, match=r"out\['query'\]\[layer\]"):
        attention.cls_maps(good[None], good[None])
    with pytest.raises(ValueError, match=r"\(1, 5, 2, 4\) and \(1, 4, 2, 4\)"):
        attention.cls_maps(good, good[:, 1:])
    with pytest.raises(ValueError, match="at least one patch token"):
        attention.cls_maps(good[:, :1], good[:, :1])
    for keep in attention.RULES.values():
        for fraction in (-0.1, 1.1, 60, float("nan")):
            with pytest.raises(ValueError, match=r"fraction: expected a number in \[0, 1\]"):
                keep(random_maps(4), fraction)
        with pytest.raises(ValueError, match="at least one patch"):
            keep(np.zeros((3, 0)))
    with pytest.raises(ValueError, match="2 x 3 = 6 patches"):
        attention.upsample(random_maps(4), (2, 3), (8, 8))
    with pytest.raises(ValueError, match="at least 1 x 1"):
        attention.upsample(random_maps(4), (2, 2), (0, 8))
    with pytest.raises(ValueError, match="'cubic'"):
        attention.upsample(random_maps(4), (2, 2), (8, 8), mode="cubic")


def test_registers_and_cls_are_left_out_before_the_softmax():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 2, 1 + 3 + 6, 2, 4)).astype(np.float32)
    logits = np.einsum("bhd,bnhd->bhn", query[:, 0], key) / 2  # sqrt(d_head)
    whole = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = whole[..., 4:] / whole[..., 4:].sum(-1, keepdims=True)
    np.testing.assert_allclose(attention.cls_maps(query, key, registers=3), expected, rtol=1e-5)
    of_layers = attention.layer_maps(query[None], key[None], 3)[:, 0]
    np.testing.assert_allclose(of_layers, expected, rtol=1e-5)


def test_more_registers_than_tokens_are_refused():
    query = np.zeros((1, 5, 2, 4), np.float32)
    with pytest.raises(ValueError, match=r"model\.config\.registers"):
        attention.cls_maps(query, query, registers=4)
    with pytest.raises(ValueError, match="0 or more"):
        attention.cls_maps(query, query, registers=-1)
