"""Dense conditional random field: masks follow the image's edges (optional step of MaskCut).

Method: mean field in a fully connected CRF (Kraehenbuehl and Koltun, arXiv 1210.5644) with
CutLER's constants (arXiv 2301.11320). Every pixel is joined to every other; a message is a
Gaussian filter in position (x, y) and one in position and colour (x, y, r, g, b). Both are
evaluated on a permutohedral lattice (Adams, Baek and Davis, Eurographics 2010): pixels are
splatted on the vertices of the simplices around them, the vertices are blurred along each
lattice direction, and the result is read back. Splat and blur are sparse matrices, built once
per image and shared by its masks and iterations.

The filter is the approximation that the reference C++ library (pydensecrf) makes, so the masks
are the same; its release 1.1 does not build on Python 3.13.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from scipy import ndimage, sparse
from scipy.special import expit

GAUSSIAN_XY, GAUSSIAN_WEIGHT = 3.0, 7.0
BILATERAL_XY, BILATERAL_RGB, BILATERAL_WEIGHT = 50.0, 5.0, 10.0
ITERATIONS = 10


def refine(
    image: UInt8[np.ndarray, "height width 3"], masks: Bool[np.ndarray, "m height width"]
) -> Bool[np.ndarray, "m height width"]:
    """Refine an image's masks as CutLER does: CRF, fill holes, drop what became another mask.

    Args:
        image: uint8[height, width, 3], the pixels the network saw before normalisation
            (480 x 480 in the paper).
        masks: bool[m, height, width], upsampled to the image (nearest).

    Returns:
        bool[m, height, width]. A mask whose IoU with its refined version is below 0.5 is all
        False.

    Raises:
        ValueError: an image that is not uint8 RGB, or masks of another size.
    """
    masks = np.asarray(masks, bool)
    refined = dense_crf(image, masks)
    for before, after in zip(masks, refined, strict=True):
        after[:] = ndimage.binary_fill_holes(after)
        union = (before | after).sum()
        if union and (before & after).sum() < 0.5 * union:
            after[:] = False
    return refined


def dense_crf(
    image: UInt8[np.ndarray, "height width 3"], masks: Bool[np.ndarray, "m height width"]
) -> Bool[np.ndarray, "m height width"]:
    """Return the most probable labels after ten mean-field iterations.

    Per mask m, with q the probability of foreground and both classes' messages in one logit,

        q <- sigmoid(2 m - 1 + sum_k w_k (2 K_k q - K_k 1)),

    where 2 m - 1 is the unary term of softmax([1 - m, m]), K_1 is a Gaussian filter with
    standard deviation 3 px (w = 7) and K_2 a bilateral one with 50 px and 5 grey levels (w = 10),
    each normalised as D^-1/2 K D^-1/2 with D = K 1.

    Args:
        image: uint8[height, width, 3].
        masks: bool[m, height, width].

    Returns:
        bool[m, height, width].
    """
    image, masks = np.asarray(image), np.asarray(masks, bool)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"image: expected uint8[height, width, 3], got {image.dtype}{list(image.shape)}. "
            "Pass the RGB pixels before normalisation."
        )
    if masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
        raise ValueError(
            f"masks: expected bool[m, {image.shape[0]}, {image.shape[1]}] like the image, got "
            f"{list(masks.shape)}. Upsample them to the image first (nearest)."
        )
    if not len(masks):
        return masks
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].reshape(2, -1).astype(np.float64)
    colours = image.reshape(-1, 3).T / BILATERAL_RGB
    kernels = (
        (GAUSSIAN_WEIGHT, _Filter(np.stack([x, y]) / GAUSSIAN_XY)),
        (BILATERAL_WEIGHT, _Filter(np.stack([x / BILATERAL_XY, y / BILATERAL_XY, *colours]))),
    )
    unary = 2.0 * masks.reshape(len(masks), -1).T.astype(np.float32) - 1  # [pixels, m]
    constant = unary - sum(w * kernel(np.ones((len(x), 1), np.float32)) for w, kernel in kernels)
    logit = unary
    for _ in range(ITERATIONS):
        q = expit(logit)
        logit = constant + sum(2 * w * kernel(q) for w, kernel in kernels)
    return (logit > 0).T.reshape(masks.shape)


class _Filter:
    """Normalised Gaussian filter over points f64[d, n] (unit standard deviation)."""

    def __init__(self, points: Float64[np.ndarray, "d n"]):
        self.lattice = _lattice(points)
        self.scale = np.ones((points.shape[1], 1), np.float32)
        self.scale = 1 / np.sqrt(self(self.scale) + np.float32(1e-20))

    def __call__(
        self, values: Float32[np.ndarray, "n channels"]
    ) -> Float32[np.ndarray, "n channels"]:
        """Filter f32[n, channels]."""
        on_vertices = self.lattice.splat @ (self.scale * values)
        for blur in self.lattice.blurs:
            on_vertices = blur @ on_vertices
        return self.scale * self.lattice.gain * (self.lattice.splat.T @ on_vertices)


@dataclass(frozen=True)
class _Lattice:
    splat: sparse.csr_array  # [vertices, points], barycentric weights
    blurs: list  # d + 1 matrices [vertices, vertices], (1/2, 1, 1/2) along one direction each
    gain: np.float32


def _lattice(points: Float64[np.ndarray, "d n"]) -> _Lattice:
    """Build the permutohedral lattice of points f64[d, n].

    Vertices have integer coordinates in the hyperplane of d + 1 dimensions where they sum to
    zero; those of one simplex agree modulo d + 1 in all coordinates up to their "remainder".
    """
    d, n = points.shape
    size = d + 1
    # 1. Into the hyperplane, scaled so that the blur below has unit standard deviation.
    j = np.arange(d)
    scaled = points * (np.sqrt(2 / 3) * size / np.sqrt((j + 1.0) * (j + 2)))[:, None]
    tail = np.concatenate([np.cumsum(scaled[::-1], axis=0)[::-1], np.zeros((1, n))])
    elevated = tail.copy()
    elevated[1:] -= np.arange(1, size)[:, None] * scaled
    # 2. The enclosing simplex: nearest point of remainder 0, and the order of the differences.
    nearest = np.rint(elevated / size).astype(np.int64)
    excess = nearest.sum(axis=0)
    difference = elevated - size * nearest
    order = np.argsort(-difference, axis=0, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(size)[:, None], axis=0)
    rank += excess
    shift = (rank < 0).astype(np.int64) - (rank > d)
    rank, origin = rank + size * shift, size * (nearest + shift)
    # 3. Barycentric weights of its d + 1 vertices, from the differences in order of rank.
    by_rank = np.empty_like(elevated)
    np.put_along_axis(by_rank, rank, (elevated - origin) / size, axis=0)
    weights = np.empty_like(by_rank)
    weights[1:] = (by_rank[:-1] - by_rank[1:])[::-1]
    weights[0] = 1 - weights[1:].sum(axis=0)
    # 4. Number the vertices that occur. The last coordinate follows from the others.
    remainder = np.arange(size)[:, None, None]
    vertices = origin + remainder - size * (rank > d - remainder)  # [remainder, coordinate, n]
    vertices = vertices[:, :d].transpose(1, 0, 2).reshape(d, -1)
    low = vertices.min(axis=1, keepdims=True) - size
    extent = vertices.max(axis=1) + size + 1 - low[:, 0]
    radix = np.concatenate([[1], np.cumprod(extent[:-1])])
    keys, number = np.unique(radix @ (vertices - low), return_inverse=True)
    column = np.tile(np.arange(n), size)
    splat = sparse.csr_array(
        (weights.ravel().astype(np.float32), (number.ravel(), column)), shape=(len(keys), n)
    )
    # 5. Direction i leads from a vertex to its coordinates - 1, but + d in coordinate i.
    blurs = []
    for i in range(size):
        step = np.full(d, -1)
        if i < d:
            step[i] = d
        target = keys + radix @ step
        at = np.minimum(np.searchsorted(keys, target), len(keys) - 1)
        source = np.flatnonzero(keys[at] == target)
        half = np.full(len(source), 0.5, np.float32)
        one_way = sparse.csr_array((half, (source, at[source])), shape=(len(keys),) * 2)
        identity = sparse.dia_array(
            (np.ones((1, len(keys)), np.float32), [0]), shape=(len(keys),) * 2
        )
        blurs.append((identity + one_way + one_way.T).tocsr())
    return _Lattice(splat, blurs, np.float32(1 / (1 + 2.0**-d)))
