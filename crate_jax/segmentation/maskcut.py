"""MaskCut: object masks from patch features by repeated normalised cuts.

Method: MaskCut of CutLER (arXiv 2301.11320, section 3.2) on TokenCut's graph (arXiv 2209.00383),
as used for CRATE in arXiv 2308.16271, section 4.2. Each round solves one normalised cut
(`crate_jax.segmentation.ncut`), splits the patches at the mean of its eigenvector, keeps the
connected component of the most decided patch as the mask, and paints that mask over.
"""

import operator
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial

import jax
import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Float32, Float64, Int
from PIL import Image
from scipy import ndimage

from crate_jax.segmentation import ncut, ncut_device

_TIE = 1e-4  # relative; the accuracy of the eigenvectors


@dataclass(frozen=True)
class Masks:
    """Masks of one image (of a batch: every array with a leading batch axis).

    Row i of each array belongs to round i.

    Attributes:
        masks: bool[max_masks, rows, columns], after the earlier masks are subtracted (so no two
            overlap); all False where the round was dropped.
        eigenvalues: f64[max_masks, 2], second and third eigenvalue mu of (D - A) v = mu D v, in
            [0, 2], to 1e-4 (in practice 1e-6).
        eigenvectors: f32[max_masks, rows * columns], the second eigenvector with v^T D v = 1, its
            entry of largest magnitude positive. Zero where degenerate.
        confidence: f64[max_masks], eigengap mu_3 - mu_2, in [0, 2]: small where the next best
            cut is as good.
        degenerate: bool[max_masks], the graph singles out no cut (constant image, all cosines
            above tau, all features zero, every patch isolated): no mask.
        ambiguous: bool[max_masks], mu_2 = mu_3 (gap <= 1e-6): another vector is as good.
        tied: bool[max_masks], two patches share the largest |v| (to 1e-4) and picking the other
            would give another mask: rounding decided.
        tiny: bool[max_masks], the component covers at most 1 % of the patches.
        overlapping: bool[max_masks], IoU with the previous component above 0.5: dropped.
        dense_solves: int, rounds whose iteration did not converge and that the dense solver
            finished (slow, as exact).
        invalid: bool, the features hold NaN or infinity (batches only; `maskcut` raises).
            Everything else is then empty or NaN.
    """

    masks: Bool[np.ndarray, "*b max_masks rows columns"]
    eigenvalues: Float64[np.ndarray, "*b max_masks 2"]
    eigenvectors: Float32[np.ndarray, "*b max_masks n"]
    confidence: Float64[np.ndarray, "*b max_masks"]
    degenerate: Bool[np.ndarray, "*b max_masks"]
    ambiguous: Bool[np.ndarray, "*b max_masks"]
    tied: Bool[np.ndarray, "*b max_masks"]
    tiny: Bool[np.ndarray, "*b max_masks"]
    overlapping: Bool[np.ndarray, "*b max_masks"]
    dense_solves: Int[np.ndarray, "*b"] | np.integer | int
    invalid: Bool[np.ndarray, "*b"] | np.bool_ | bool

    def __getitem__(self, index: int) -> "Masks":
        """Return image `index` of a batch."""
        return Masks(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def maskcut(
    features: Float[ArrayLike, "n d"],
    grid: tuple[int, int],
    tau: float = 0.15,
    max_masks: int = 3,
    corrected: bool = False,
) -> Masks:
    """Cut one image's patches into at most `max_masks` object masks, on one core of the host.

    Per round: (1) L2-normalise the patch features, those of painted patches being zero, and join
    patches whose cosine exceeds tau. (2) Second eigenvector v of (D - A) v = mu D v, signed so
    that its entry of largest magnitude is positive. (3) Foreground = v > mean(v), inverted if it
    holds three or four corners of the grid or if argmax |v| is background. (4) The 4-connected
    component of the seed (largest v, or smallest after inversion) is the mask. (5) From the
    second round on, drop it if its IoU with the previous round's exceeds 0.5 or it covers at
    most 1 % of the patches. (6) Paint it, subtract the earlier masks.

    The default reproduces the published code, with these quirks:

    - a dropped mask is not painted, so the next round finds it again and keeps it (there is
      no previous mask left to overlap with);
    - overlap is tested with the previous round only;
    - the first mask has no size filter: one isolated patch can be a whole mask (`tiny`);
    - painted patches stay in the graph as a block with mu = 1 - painted/n, which at large
      areas is the next eigenvector itself, and later rounds find nothing;
    - with the sign fixed, "invert if the seed is background" never applies.

    The published code leaves the sign to LAPACK; fixing it is the one deviation.

    Args:
        features: f[n, d], patches in row-major order, numpy or JAX. For CRATE U^T LN(z) of one
            layer, all heads side by side, without [CLS].
        grid: (rows, columns) with rows * columns = n >= 3.
        tau: cosine threshold in [0, 1). Published: 0.15.
        max_masks: rounds, N of the paper. Published: 3.
        corrected: remove painted patches from the graph (so masks cannot overlap), paint a
            dropped component too (so the next round looks elsewhere), and apply the size filter
            to the first mask as well.

    Returns:
        The masks at grid resolution, with eigenvalues, eigenvectors and flags.

    Raises:
        ValueError: shapes that do not fit, tau outside [0, 1), NaN or infinite features.
    """
    features = _check(features, grid, tau, max_masks, ndim=2)
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise ValueError(
            f"features: expected finite values, got NaN or infinity in {bad} of {len(features)} "
            "patches. Check the weights and the normalisation of the image, or compute in float32."
        )
    with ncut.single_threaded_blas():
        return _cut_on_host(features, grid, tau, max_masks, corrected)


def maskcut_batch(
    features: Float[ArrayLike, "b n d"],
    grid: tuple[int, int],
    tau: float = 0.15,
    max_masks: int = 3,
    corrected: bool = False,
    where: str | None = None,
) -> Masks:
    """Cut a batch of images; on an accelerator the cosines and eigenproblems run there.

    The same results as `maskcut` image by image, up to the rounding of the cosines. On the
    device one jitted program solves a round for the whole batch in float32; an image whose
    eigengap is too small for float32 (or that did not converge) is solved on the host in
    float64. The mask rules, cheap and full of branches, run on the host for both. On a CPU the
    images are spread over the cores.

    Args:
        features: f[b, n, d], numpy or JAX; JAX arrays stay on their device.
        grid: (rows, columns) with rows * columns = n.
        tau: as in `maskcut`.
        max_masks: as in `maskcut`.
        corrected: as in `maskcut`.
        where: "host", "device", or None: the device if JAX's default backend is not the CPU.

    Returns:
        `Masks` with a leading batch axis; `result[i]` is image i. An image with NaN or infinite
        features is flagged `invalid` and does not disturb the others.

    Raises:
        ValueError: shapes that do not fit, tau outside [0, 1), unknown `where`.
    """
    if where not in (None, "host", "device"):
        raise ValueError(f'where: expected "host", "device" or None, got {where!r}.')
    where = where or ("host" if jax.default_backend() == "cpu" else "device")
    features = _check(features, grid, tau, max_masks, ndim=3, keep_on_device=where == "device")
    if where == "host":
        with ncut.single_threaded_blas(), ThreadPoolExecutor(_cores()) as pool:
            cut = partial(
                _cut_on_host, grid=grid, tau=tau, max_masks=max_masks, corrected=corrected
            )
            return _stack(list(pool.map(cut, features)))

    batch, n, _ = features.shape
    edges, finite = ncut_device.affinity(features, tau)
    finite = np.asarray(finite)
    rounds = [_Rounds(grid, max_masks, corrected) for _ in range(batch)]
    for i in np.flatnonzero(~finite):
        rounds[i].void()
    while any(r.unfinished for r in rounds):
        painted = np.stack([r.painted for r in rounds])
        solved = jax.device_get(ncut_device.solve(edges, painted, remove=corrected))
        for i, r in enumerate(rounds):
            if not r.unfinished:
                continue
            if solved.accurate[i] and n >= ncut_device.SMALLEST:
                cut = ncut.Cut(solved.eigenvalues[i].astype(float), solved.vectors[i], False, False)
            else:  # degenerate, a tiny eigengap or no convergence: float64 on the host decides
                upper = np.asarray(edges[i], np.float32)
                cut = ncut.solve(ncut.Graph(upper, r.painted, remove=corrected))
            r.add(cut)
    return _stack([r.result() for r in rounds])


def full_resolution(
    masks: Bool[ArrayLike, "*m rows columns"], size: tuple[int, int], patch_size: int = 8
) -> Bool[np.ndarray, "*m height width"]:
    """Resize grid masks to an image: nearest to the network's input, then bicubic.

    As published: each patch becomes patch_size x patch_size pixels (the input the network saw,
    480 x 480 in the paper), Pillow's bicubic resize brings the 0/255 mask to the image's own
    size, and pixels above half of its maximum are foreground. Masks already at pixel resolution
    (after the CRF): patch_size = 1.

    Args:
        masks: bool[..., rows, columns].
        size: (height, width) of the image in pixels.
        patch_size: pixels per patch and side.

    Returns:
        bool[..., height, width].
    """
    masks = np.asarray(masks, bool)
    height, width = size
    if height < 1 or width < 1 or patch_size < 1:
        raise ValueError(
            f"size and patch_size: expected positive numbers, got size=({height}, {width}), "
            f"patch_size={patch_size}."
        )
    flat = masks.reshape(-1, *masks.shape[-2:]).astype(np.uint8) * 255
    resized = np.zeros((len(flat), height, width), bool)
    for mask, out in zip(flat, resized, strict=True):
        pixels = mask.repeat(patch_size, axis=0).repeat(patch_size, axis=1)
        smooth = np.asarray(
            Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        )
        out[:] = smooth > smooth.max() / 2
    return resized.reshape(*masks.shape[:-2], height, width)


@dataclass(frozen=True)
class _Component:
    """What one cut proposes: the seed's component, before it is dropped or subtracted."""

    mask: Bool[np.ndarray, "rows columns"]
    tied: bool


def _component(
    vector: Float[np.ndarray, " n"], nodes: Bool[np.ndarray, " n"], grid: tuple[int, int]
) -> _Component:
    """Steps 4 and 5 of the method: the bipartition and the seed's connected component."""
    foreground = (vector > vector[nodes].mean()) & nodes
    corners = foreground.reshape(grid)[[0, 0, -1, -1], [0, -1, 0, -1]].sum()
    strongest = np.abs(vector)
    inverted = corners >= 3 or not foreground[np.argmax(strongest)]
    if inverted:
        foreground = ~foreground & nodes
    score = np.where(nodes, -vector if inverted else vector, -np.inf)
    # Duplicated patches have equal entries up to rounding: the first of them, on any machine.
    seed = np.argmax(score >= (1 - 1e-6) * score.max())
    labels = np.empty(grid, np.int32)
    ndimage.label(foreground.reshape(grid), output=labels)
    mask = labels == labels.flat[seed]
    rivals = score >= (1 - _TIE) * score.max()
    sign_by_rounding = -vector.min() >= (1 - _TIE) * vector.max()
    return _Component(mask, bool(sign_by_rounding or (rivals & ~mask.ravel()).any()))


class _Rounds:
    """The masks of one image so far, and what the next cut may still use."""

    def __init__(self, grid: tuple[int, int], max_masks: int, corrected: bool):
        n = grid[0] * grid[1]
        self.grid, self.max_masks, self.corrected = grid, max_masks, corrected
        self.painted = np.zeros(n, bool)  # bool[n], read by the next cut
        self._previous = np.zeros(grid, bool)
        self._done = 0
        self._dense_solves = 0
        self._invalid = False
        self._masks = np.zeros((max_masks, *grid), bool)
        self._eigenvalues = np.full((max_masks, 2), np.nan)
        self._eigenvectors = np.zeros((max_masks, n), np.float32)
        names = ("degenerate", "ambiguous", "tied", "tiny", "overlapping")
        self._flags = {name: np.zeros(max_masks, bool) for name in names}

    @property
    def unfinished(self) -> bool:
        return self._done < self.max_masks

    def void(self) -> None:
        """Features that are no numbers: no round is run."""
        self._invalid, self._done = True, self.max_masks
        self._eigenvectors[:] = np.nan

    def add(self, cut: ncut.Cut) -> None:
        """Turn a cut into this round's mask; a round that paints nothing repeats the cut."""
        self._dense_solves += cut.dense
        before = self.painted.copy()
        self._add_one(cut)
        while self.unfinished and (self.painted == before).all():
            self._add_one(cut)

    def _add_one(self, cut: ncut.Cut) -> None:
        i, self._done = self._done, self._done + 1
        self._eigenvalues[i] = cut.eigenvalues
        self._eigenvectors[i] = cut.vector
        self._flags["degenerate"][i] = cut.degenerate
        self._flags["ambiguous"][i] = cut.gap <= ncut.AMBIGUOUS_GAP
        if cut.degenerate:
            self._previous = np.zeros(self.grid, bool)
            return
        nodes = ~self.painted if self.corrected else np.ones_like(self.painted)
        found = _component(cut.vector, nodes, self.grid)
        tiny = found.mask.mean() <= 0.01
        overlap = (found.mask & self._previous).sum() / (found.mask | self._previous).sum()
        self._flags["tied"][i] = found.tied
        self._flags["tiny"][i] = tiny
        self._flags["overlapping"][i] = overlap > 0.5
        dropped = (tiny and (i > 0 or self.corrected)) or overlap > 0.5
        self._previous = np.zeros(self.grid, bool) if dropped else found.mask
        if not dropped:
            self._masks[i] = found.mask & ~self._masks[:i].any(axis=0)
        if self.corrected or not dropped:
            self.painted |= found.mask.ravel()

    def result(self) -> Masks:
        return Masks(
            masks=self._masks,
            eigenvalues=self._eigenvalues,
            eigenvectors=self._eigenvectors,
            confidence=self._eigenvalues[:, 1] - self._eigenvalues[:, 0],
            dense_solves=self._dense_solves,
            invalid=self._invalid,
            **self._flags,
        )


def _cut_on_host(
    features: Float32[np.ndarray, "n d"],
    grid: tuple[int, int],
    tau: float,
    max_masks: int,
    corrected: bool,
) -> Masks:
    rounds = _Rounds(grid, max_masks, corrected)
    if not np.isfinite(features).all():
        rounds.void()
        return rounds.result()
    upper = ncut.affinity(features, tau)
    while rounds.unfinished:
        rounds.add(ncut.solve(ncut.Graph(upper, rounds.painted, remove=corrected)))
    return rounds.result()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stack(images: list[Masks]) -> Masks:
    return Masks(
        **{f.name: np.stack([getattr(image, f.name) for image in images]) for f in fields(Masks)}
    )


def _check(features, grid, tau, max_masks, ndim, keep_on_device=False):
    """Refuse what cannot be cut; return float32 features."""
    shape = np.shape(features)
    wanted = "[patches, channels]" if ndim == 2 else "[batch, patches, channels]"
    if len(shape) != ndim or 0 in shape:
        raise ValueError(
            f"features: expected f{wanted}, not empty, got shape {shape}. "
            "Put all heads side by side and drop the [CLS] token."
        )
    try:
        rows, columns = (operator.index(side) for side in grid)
        max_masks = operator.index(max_masks)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "grid, max_masks: expected two whole numbers (rows, columns) and one, got "
            f"{grid!r} and {max_masks!r}"
        ) from error
    n = shape[-2]
    if rows < 1 or columns < 1 or rows * columns != n:
        raise ValueError(
            f"features: expected {rows * columns} patches for a grid of {rows} x {columns}, got "
            f"{n} rows; pass grid=(rows, columns), and features without the [CLS] token"
        )
    if n < 3:
        raise ValueError(f"grid: expected at least 3 patches to cut, got {n}; use a larger image")
    if not 0 <= tau < 1:
        raise ValueError(
            f"tau: expected a cosine in [0, 1), got {tau}. (Below zero a painted patch would "
            "be joined to every other.)"
        )
    if max_masks < 1:
        raise ValueError(f"max_masks: expected at least 1, got {max_masks}.")
    return features if keep_on_device else np.asarray(features).astype(np.float32, copy=False)
