"""The explorer's arrays: what is stored of a capture, and how much of it fits a page."""

import base64

import numpy as np
import pytest

from crate_jax.export import explorer
from crate_jax.segmentation import emergence, maskcut

GRID = (4, 5)


@pytest.fixture(scope="module")
def captured():
    rng = np.random.default_rng(0)
    scale = np.array([0.01, 1, 30]).reshape(3, 1, 1, 1)  # layers differ by orders of magnitude
    shape = (3, 1 + 2 + 20, 2, 8)  # with two registers
    query, key = ((scale * rng.normal(size=shape)).astype(np.float32) for _ in range(2))
    return query, key


@pytest.fixture(scope="module")
def packed(captured):
    return explorer.pack(*captured, GRID, [1, 2, 3], registers=2)


def test_a_byte_a_number_without_the_registers(captured, packed):
    shown = np.r_[0, 3:23]
    for name, array in zip(("query", "key"), captured, strict=True):
        codes, scale = packed[name], packed[f"{name}_scale"]
        assert codes.dtype == np.int8
        error = np.abs(scale[..., None, None] * codes - array[:, shown]).max((2, 3))
        assert (error <= scale * 0.5001).all()


def test_cuts_are_maskcuts_first_round(captured, packed):
    masks = np.unpackbits(packed["masks"])[: 3 * 20 * 20].reshape(3, 20, *GRID)
    for layer in range(3):
        features = captured[1][layer, 3:].reshape(20, -1)
        for index, tau in enumerate(explorer.TAUS):
            cut = maskcut.maskcut(features, GRID, tau)
            np.testing.assert_array_equal(masks[layer, index], cut.masks[0])
            vector = cut.eigenvectors[0] / max(np.abs(cut.eigenvectors[0]).max(), 1e-30)
            np.testing.assert_allclose(packed["vectors"][layer, index] / 127, vector, atol=0.004)
            np.testing.assert_allclose(packed["gaps"][layer, index], cut.confidence[0], rtol=1e-4)


def test_one_array_is_stored_once(captured):
    packed = explorer.pack(captured[0], captured[0], GRID, [1, 2, 3], registers=2)
    assert "key" not in packed


def test_what_is_no_number_is_said(captured):
    broken = captured[0].copy()
    broken[1, 5] = np.nan
    with pytest.raises(FloatingPointError, match="check the weights"):
        explorer.pack(broken, broken, GRID, [1, 2, 3], registers=2)


@pytest.mark.parametrize(
    ("layers", "patches", "width", "same", "expected_layers"),
    [(4, 256, 128, True, 4), (12, 196, 384, False, 6), (12, 3600, 384, True, 2)],
)
def test_a_page_stays_small(layers, patches, width, same, expected_layers):
    images, shown = explorer.affordable(layers, patches, width, same)
    assert shown == expected_layers
    assert images >= 1
    side = round(patches**0.5)
    arrays = np.zeros((2, shown, 1 + patches, 1, width), np.float32)
    arrays[1] += not same
    stored = {} if patches > 1000 else explorer.pack(*arrays, (side, side), range(1, shown + 1))
    assert images * sum(array.nbytes for array in stored.values()) <= explorer.MOST_BYTES + 100


def test_what_does_not_fit_is_left_out():
    assert explorer.affordable(12, 3600, 1024, same=False) == (0, 0)
    assert explorer.affordable(12, 2, 64, same=True) == (0, 0)  # too few patches to cut
    nothing = np.zeros((2, 1, 3, 1, 4))
    assert explorer.pack_first(nothing, nothing, (1, 2)) == []


def test_contents_of_a_page(packed):
    mask = np.zeros((8, 10), bool)
    mask[2:5, 3:8] = True
    one = {"name": "a", "photo": "data:,", "small": True, "packed": packed, "mask": mask}
    contents = explorer.contents([one], first_layer=2, total=9)
    assert (contents["layers"], contents["first"], contents["total"]) == ([1, 2, 3], 1, 9)
    assert contents["taus"][contents["tau"]] == 0.15
    (image,) = contents["images"]
    counts = np.frombuffer(base64.b64decode(image["object"]), "<f4")
    np.testing.assert_array_equal(counts, emergence.objects_of_mask(mask, GRID).counts[0])
    assert explorer.contents([], total=9) is None


def test_layers_are_thinned_evenly():
    assert explorer.thinned(4) == [0, 1, 2, 3]
    assert explorer.thinned(12) == [1, 3, 5, 7, 9, 11]
    assert explorer.thinned(12, 1) == [11]
