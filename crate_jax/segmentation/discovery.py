"""Object discovery: one box and mask an image from patch features, by TokenCut or by LOST.

TokenCut (arXiv 2202.11539, 2209.00383) cuts the graph of `ncut` once; LOST (arXiv 2109.14279) grows
an object from the patch that is like the fewest others. Features are the last layer's keys (for
CRATE U^T LN(z)), all heads side by side, without [CLS] and registers. docs/protocols.md section 7.
"""

import operator
from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Int
from scipy import ndimage

from crate_jax.segmentation import ncut

PAPER_TAU = 0.2
PAPER_K = 100

_TIE = 1e-6  # relative: patches whose entries differ by less are one, told apart by rounding
_BLOCK = 1024  # rows of a Gram matrix at once


@dataclass(frozen=True)
class Discovered:
    """The object found in one image.

    Attributes:
        mask: bool[rows, columns], the 4-connected component of the seed.
        box: int[4], its tight box in patches: left, top, and behind the last right and bottom.
        seed: index of the patch it was grown from, in reading order.
        degenerate: the features single out no object (all alike, or all zero): the mask is empty,
            the box four zeros and the seed 0. The public code returns noise or stops there.
    """

    mask: Bool[np.ndarray, "rows columns"]
    box: Int[np.ndarray, "4"]
    seed: int
    degenerate: bool


@dataclass(frozen=True)
class TokenCut(Discovered):
    """Of `tokencut`; beside the object:

    Attributes:
        foreground: bool[rows, columns], all patches on the seed's side of the cut.
        eigenvalues: f64[2], second and third eigenvalue mu of (D - A) v = mu D v.
        eigenvector: f64[n], the second, positive at the seed, v^T D v = 1.
    """

    foreground: Bool[np.ndarray, "rows columns"]
    eigenvalues: Float[np.ndarray, "2"]
    eigenvector: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Lost(Discovered):
    """Of `lost`; beside the object:

    Attributes:
        degree: int[n], to how many other patches each is positively correlated.
        similar: int[m], the patches that vote, the seed among them, by ascending degree.
        scores: f64[n], the sum of their correlations with every patch.
    """

    degree: Int[np.ndarray, " n"]
    similar: Int[np.ndarray, " m"]
    scores: Float[np.ndarray, " n"]


def tokencut(
    features: Float[ArrayLike, "n d"], grid: tuple[int, int], tau: float = PAPER_TAU
) -> TokenCut:
    """The object that one normalised cut separates.

    (1) A = 1 where the cosine of two patches exceeds tau, else 1e-5; D = row sums. (2) v, the
    second eigenvector of (D - A) v = mu D v. (3) Foreground = v > mean(v), the unweighted mean.
    (4) seed = argmax |v|; where it is background, the sides are exchanged. (5) The 4-connected
    component of the seed. Unlike in MaskCut there is no rule of corners and no second round, and
    the sign of v changes nothing but patches exactly on the mean.

    Deviation: patches with equal rows of A have equal entries, so the largest |v| is often shared
    and rounding decides in the public code; here it is the first of them (to 1e-6) in reading
    order.

    Args:
        features: f[n, d], patches in reading order.
        grid: (rows, columns) with rows * columns = n >= 3.
        tau: cosine threshold in [0, 1). Published: 0.2.

    Raises:
        ValueError: shapes that do not fit, tau outside [0, 1), NaN or infinite features.
    """
    features, grid = _checked(features, grid)
    if not 0 <= tau < 1:
        raise ValueError(f"tau: expected a cosine in [0, 1), got {tau}; published is {PAPER_TAU}")
    with ncut.single_threaded_blas():
        upper = ncut.affinity(features, tau)
        cut = ncut.solve(ncut.Graph(upper, np.zeros(len(features), bool)))
    vector = cut.vector.astype(np.float64)
    if cut.degenerate:
        empty = np.zeros(grid, bool)
        return TokenCut(empty, np.zeros(4, int), 0, True, empty, cut.eigenvalues, vector)
    strongest = np.abs(vector)
    seed = int(np.argmax(strongest >= (1 - _TIE) * strongest.max()))
    vector = vector * np.copysign(1.0, vector[seed])
    foreground = vector > vector.mean()
    # The seed is foreground: a largest entry that is positive exceeds the mean.
    mask = component(foreground.reshape(grid), seed)
    return TokenCut(
        mask, box_of(mask), seed, False, foreground.reshape(grid), cut.eigenvalues, vector
    )


def lost(features: Float[ArrayLike, "n d"], grid: tuple[int, int], k: int = PAPER_K) -> Lost:
    """The object that grows from the least connected patch.

    (1) G = F F^T of the features as they are, not normalised. (2) degree of a patch = number of
    others with G > 0. (3) seed = the patch of least degree. (4) Of the k patches of least degree,
    those with G[seed] > 0 vote. (5) scores = the sum of their rows of G; the 4-connected component
    of scores > 0 that holds the seed.

    Deviations: G in float64, so that no sign hangs on the order of a sum; of equal degrees the
    first in reading order comes first (the public code's unstable sort takes any, which changes the
    mask only where a tie falls on the k-th place).

    Args:
        features: f[n, d], patches in reading order.
        grid: (rows, columns) with rows * columns = n >= 3.
        k: candidates; with fewer patches all are. Published: 100.

    Raises:
        ValueError: shapes that do not fit, k below 1, NaN or infinite features.
    """
    features, grid = _checked(features, grid)
    if k < 1:
        raise ValueError(f"k: expected at least 1 patch, got {k}; published is {PAPER_K}")
    rows = features.astype(np.float64)
    with ncut.single_threaded_blas():
        degree = np.concatenate(
            [
                np.sum(rows[start : start + _BLOCK] @ rows.T > 0, axis=1)
                for start in range(0, len(rows), _BLOCK)
            ]
        )
        degree = degree - np.any(rows != 0, axis=1)  # every patch but a zero one is like itself
        order = np.argsort(degree, kind="stable")
        seed = int(order[0])
        similar = order[:k][rows[order[:k]] @ rows[seed] > 0]
        scores = rows[similar].sum(axis=0) @ rows.T
    degenerate = seed not in similar or not scores[seed] > 0
    if degenerate:
        mask, box, seed = np.zeros(grid, bool), np.zeros(4, int), 0
    else:
        mask = component((scores > 0).reshape(grid), seed)
        box = box_of(mask)
    return Lost(mask, box, seed, degenerate, degree, similar, scores)


def component(
    mask: Bool[np.ndarray, "rows columns"], seed: int
) -> Bool[np.ndarray, "rows columns"]:
    """The 4-connected component of a mask that holds the cell `seed`, counted in reading order."""
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=labels)
    return (labels == labels.flat[seed]) & mask


def box_of(mask: Bool[np.ndarray, "height width"]) -> Int[np.ndarray, "4"]:
    """Tight box of a mask: left, top, and behind the last right and bottom; zeros if empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return np.zeros(4, int)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def pixel_box(
    box: Int[np.ndarray, "4"], patch_size: int, size: tuple[int, int]
) -> Int[np.ndarray, "4"]:
    """A box in patches as pixel edges: times the patch, right and bottom clipped to the image.

    Args:
        box: int[4], left, top, right, bottom in patches.
        patch_size: pixels a side.
        size: (height, width) of the image before it was padded to whole patches.
    """
    height, width = size
    return np.minimum(box * patch_size, np.array([width, height] * 2))


def _checked(features, grid) -> tuple[np.ndarray, tuple[int, int]]:
    features = np.asarray(features)
    rows, columns = (operator.index(side) for side in grid)
    if features.ndim != 2 or rows < 1 or columns < 1 or rows * columns != len(features):
        raise ValueError(
            f"features: expected [{rows} * {columns}, channels] for the grid {(rows, columns)}, "
            f"got shape {features.shape}; leave out [CLS] and registers, put heads side by side"
        )
    if len(features) < 3 or not features.shape[1]:
        raise ValueError(
            f"features: expected at least 3 patches and a channel, got shape {features.shape}; "
            "use a larger image"
        )
    features = features.astype(np.float32, copy=False)
    if bad := int((~np.isfinite(features).all(axis=1)).sum()):
        raise ValueError(
            f"features: expected finite numbers, got NaN or infinity in {bad} of {len(features)} "
            "patches; check the weights and the normalisation of the image"
        )
    return features, (rows, columns)
