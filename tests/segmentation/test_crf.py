import numpy as np
import pytest

from crate_jax.segmentation.crf import _Filter, _lattice, dense_crf, refine

AREAS = [1245, 1906, 2085]  # of pydensecrf2 1.1's masks, pixels


def checkered(size=72):
    """Bands of colour with integer noise: the same bytes everywhere."""
    y, x = np.mgrid[:size, :size]
    noise = (x * 7919 + y * 104729 + x * y * 31) % 23
    red = np.where((x - 40) ** 2 + (y - 30) ** 2 < 400, 190, 70)
    image = np.stack([red, 60 + 2 * x % 40 + 0 * y, 40 + y], axis=-1) + noise[..., None]
    return image.astype(np.uint8)


def block_masks(size=72):
    y, x = np.mgrid[:size, :size] // 8 * 8 + 4
    return np.stack([(x - 40) ** 2 + (y - 30) ** 2 < 400, x < 30, y - x > 10])


def pydensecrf_masks(image, masks):
    """The reference library, called as CutLER calls it."""
    densecrf = pytest.importorskip(
        "pydensecrf.densecrf", reason="pydensecrf2 is not installed (Python <= 3.12, optional)"
    )
    height, width = image.shape[:2]
    out = []
    for mask in masks:
        scores = np.exp(np.stack([~mask, mask]).astype(np.float32)).reshape(2, -1)
        unary = -np.log(scores / scores.sum(axis=0))
        crf = densecrf.DenseCRF2D(width, height, 2)
        crf.setUnaryEnergy(np.ascontiguousarray(unary.astype(np.float32)))
        crf.addPairwiseGaussian(sxy=3, compat=7)
        crf.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(image), compat=10)
        out.append(np.argmax(np.array(crf.inference(10)), axis=0).reshape(height, width) == 1)
    return np.array(out)


def test_equals_the_reference_library():
    image, masks = checkered(), block_masks()
    differing = (dense_crf(image, masks) ^ pydensecrf_masks(image, masks)).sum(axis=(1, 2))
    assert differing.max() <= 2  # pixels on the line, where float32 sums are ordered otherwise


def test_equals_the_reference_library_without_it():
    """The library no longer builds on Python 3.13, its results stay."""
    areas = dense_crf(checkered(), block_masks()).sum(axis=(1, 2))
    np.testing.assert_allclose(areas, AREAS, atol=2)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_lattice_filters_like_a_gaussian(d):
    """Against the sum over all pairs; the lattice's own error is several per cent."""
    rng = np.random.default_rng(d)
    points = rng.uniform(0, 3, size=(d, 900))
    values = rng.uniform(size=(900, 2)).astype(np.float32)
    squared = ((points[:, :, None] - points[:, None]) ** 2).sum(axis=0)
    kernel = np.exp(-squared / 2)
    scale = 1 / np.sqrt(kernel.sum(axis=1, keepdims=True))
    exact = scale * (kernel @ (scale * values))
    ours = _Filter(points)(values)
    assert np.linalg.norm(ours - exact) < 0.08 * np.linalg.norm(exact)


def test_barycentric_weights():
    """Each point is a convex combination of its d + 1 vertices."""
    splat = _lattice(np.random.default_rng(0).normal(scale=4, size=(5, 300))).splat
    np.testing.assert_allclose(splat.sum(axis=0), 1, atol=1e-6)
    assert splat.data.min() >= -1e-6
    assert (np.diff(splat.tocsc().indptr) == 6).all()


def test_a_mask_snaps_to_the_edge():
    image = np.full((60, 60, 3), 30, np.uint8)
    image[:, 32:] = 200
    mask = np.zeros((1, 60, 60), bool)
    mask[:, :, 36:] = True  # four pixels off
    expected = np.broadcast_to(np.arange(60) >= 32, (60, 60))
    np.testing.assert_array_equal(dense_crf(image, mask)[0], expected)


def test_holes_are_filled_and_changed_masks_dropped():
    image = np.full((60, 60, 3), 30, np.uint8)
    image[15:45, 15:45] = 200
    image[25:35, 25:35] = 30  # a hole in the object's colour
    square = np.zeros((60, 60), bool)
    square[15:45, 15:45] = True
    ring = square.copy()
    ring[25:35, 25:35] = False
    speck = np.zeros((60, 60), bool)
    speck[2:4, 2:4] = True  # the CRF erases it
    refined = refine(image, np.stack([ring, speck, np.zeros((60, 60), bool)]))
    np.testing.assert_array_equal(refined[0], square)
    assert not refined[1:].any()


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("image", "masks", "message"),
    [
        (np.ones((8, 8, 3)), np.ones((1, 8, 8)), r"uint8\[height, width, 3\], got float64"),
        (np.ones((8, 8), np.uint8), np.ones((1, 8, 8)), r"got uint8\[8, 8\]"),
        (np.ones((8, 8, 3), np.uint8), np.ones((8, 8)), r"bool\[m, 8, 8\].*got \[8, 8\]"),
        (np.ones((8, 8, 3), np.uint8), np.ones((1, 4, 8)), "nearest"),
    ],
)
def test_refused(image, masks, message):
    with pytest.raises(ValueError, match=message):
        refine(image, masks)


def test_no_masks_stay_none():
    assert refine(np.ones((8, 6, 3), np.uint8), np.zeros((0, 8, 6), bool)).shape == (0, 8, 6)
