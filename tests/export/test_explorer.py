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
    return {name: (scale * rng.normal(size=shape)).astype(np.float32) for name in ("query", "key")}


@pytest.fixture(scope="module")
def packed(captured):
    return explorer.pack(captured, GRID, range(3), registers=2)


def test_a_byte_a_number_without_the_registers(captured, packed):
    shown = np.r_[0, 3:23]
    for name, array in captured.items():
        codes, scale = packed[name], packed[f"{name}_scale"]
        assert codes.dtype == np.int8
        error = np.abs(scale[..., None, None] * codes - array[:, shown]).max((2, 3))
        assert (error <= scale * 0.5001).all()


def test_cuts_are_maskcuts_first_round(captured, packed):
    masks = np.unpackbits(packed["masks"])[: 3 * 20 * 20].reshape(3, 20, *GRID)
    for layer in range(3):
        features = captured["key"][layer, 3:].reshape(20, -1)
        for index, tau in enumerate(explorer.TAUS):
            cut = maskcut.maskcut(features, GRID, tau)
            np.testing.assert_array_equal(masks[layer, index], cut.masks[0])
            vector = cut.eigenvectors[0] / max(np.abs(cut.eigenvectors[0]).max(), 1e-30)
            np.testing.assert_allclose(packed["vectors"][layer, index] / 127, vector, atol=0.004)
            np.testing.assert_allclose(packed["gaps"][layer, index], cut.confidence[0], rtol=1e-4)


def test_one_array_is_stored_once(captured):
    w = captured["query"]
    packed = explorer.pack({"query": w, "key": w}, GRID, range(3), registers=2)
    assert "key" not in packed


def test_rotary_keys_are_attended_by_and_unrotated_ones_cut(captured):
    unrotated = captured["query"][::-1]
    all_three = captured | {"key_unrotated": unrotated}
    packed = explorer.pack(all_three, GRID, range(3), registers=2)
    alone = explorer.pack({"query": unrotated, "key": unrotated}, GRID, range(3), registers=2)
    np.testing.assert_array_equal(packed["masks"], alone["masks"])
    np.testing.assert_array_equal(packed["key_unrotated"], alone["query"])
    assert not np.array_equal(packed["key"], packed["key_unrotated"])


def test_what_is_no_number_is_said(captured):
    broken = captured["query"].copy()
    broken[1, 5] = np.nan
    with pytest.raises(FloatingPointError, match="query holds NaN or infinity; check the weights"):
        explorer.pack(captured | {"query": broken}, GRID, range(3), registers=2)


@pytest.mark.parametrize(
    ("depth", "patches", "width", "arrays", "layer", "expected"),
    [
        (4, 256, 128, 1, None, (12, [0, 1, 2, 3])),
        (12, 196, 384, 2, None, (3, [1, 3, 5, 7, 9, 11])),
        (12, 3600, 384, 1, None, (1, [5, 11])),
        (12, 3600, 384, 1, 10, (2, [10])),
        (4, 1024, 128, 1, 2, (4, [0, 1, 2, 3])),
        (12, 196, 384, 1, 10, (5, [1, 3, 5, 7, 9, 10, 11])),
    ],
)
def test_a_page_stays_small(depth, patches, width, arrays, layer, expected):
    images, layers = explorer.affordable(depth, patches, width, arrays, layer)
    assert (images, layers) == expected
    if patches < 300:
        made = np.random.default_rng(0).normal(size=(arrays, len(layers), 1 + patches, 1, width))
        captured = dict(zip(("query", "key"), made[[0, -1]], strict=True))
        side = round(patches**0.5)
        stored = explorer.pack(captured, (side, side), layers)
        size = sum(array.nbytes for array in stored.values())
        assert images * size <= explorer.MOST_BYTES + 2000 * images


def test_what_does_not_fit_is_left_out():
    assert explorer.affordable(12, 3600, 1024, 1) == (0, [])
    assert explorer.affordable(12, 2, 64, 1) == (0, [])  # too few patches to cut
    nothing = np.zeros((2, 1, 3, 1, 4))
    assert explorer.pack_first({"query": nothing, "key": nothing}, (1, 2)) == []


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
