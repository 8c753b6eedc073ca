"""Artifacts: patch tokens of outlying norm, and where the [CLS] row's attention goes.

Vision Transformers Need Registers (arXiv 2309.16588): large networks turn a few background patches
into scratch space, seen as tokens whose norm is about ten times that of the others. The norm is
Euclidean, of the tokens that a layer gives out, before any final LayerNorm, after which outliers
largely vanish. No rule for what is an outlier carries from one network to another, so there are
three, and every share says which was used. docs/protocols.md section 10.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Float64, Integer, Shaped, UInt

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
BINS = 64
_PER_OCTAVE, _LOWEST, _OCTAVES = 32, -6, 20  # of the bins in which norms are kept
_SMOOTH = 2  # bins each side over which a histogram is averaged before its valley is sought
_DEPTH = 0.5  # of the outliers' peak, that a valley must stay below
_LEAST, _LEAST_SHARE = 5, 1e-3  # tokens, and share of them, in a peak that is no accident

DEFAULT_RULE = "median:3"


def patch_norms(
    tokens: Float[ArrayLike, "layers b tokens d"], registers: int = 0
) -> Float[Array, "b layers n"]:
    """Euclidean norms of the patch tokens after each layer.

    Args:
        tokens: f[layers, b, 1+registers+n, d], as a model's `capture` returns them.
        registers: tokens between [CLS] and the patches.
    """
    patches = jnp.asarray(tokens, jnp.float32)[:, :, 1 + registers :]
    return jnp.moveaxis(jnp.linalg.norm(patches, axis=-1), 0, 1)


def attention_mass(
    query: Float[ArrayLike, "layers b tokens heads d_head"],
    key: Float[ArrayLike, "layers b tokens heads d_head"],
    registers: int = 0,
) -> Float[Array, "b layers 2"]:
    """How much of the [CLS] row's attention, over all tokens, goes to [CLS] and to the registers.

    Mean over heads; what is missing to 1 goes to the patches.
    """
    query, key = jnp.asarray(query, jnp.float32), jnp.asarray(key, jnp.float32)
    logits = jnp.einsum("lbhd,lbnhd->blhn", query[:, :, 0], key, precision="highest")
    row = jax.nn.softmax(logits / np.sqrt(query.shape[-1]), axis=-1).mean(axis=2)
    return jnp.stack([row[..., 0], row[..., 1 : 1 + registers].sum(axis=-1)], axis=-1)


def edges(rule: str = DEFAULT_RULE) -> Float64[np.ndarray, " bins_and_1"]:
    """Edges of the bins in which norms are counted, from about 2^-6 to 2^14, each 2.2 % wide.

    A fixed norm of the rule is one of them, so that exactly what exceeds it is counted above it.
    """
    kind, number = parse_rule(rule)
    anchor = number if kind == "fixed" else 1.0
    first = round(_PER_OCTAVE * (_LOWEST - np.log2(anchor)))
    return anchor * 2.0 ** (np.arange(first, first + _PER_OCTAVE * _OCTAVES + 1) / _PER_OCTAVE)


def histogram(
    norms: Float[ArrayLike, "*layers n"], edges: Float64[np.ndarray, " bins_and_1"]
) -> UInt[np.ndarray, "*layers bins"]:
    """How many norms lie in each bin, above its lower edge up to its upper; beyond all, the last.

    Memory is the same whatever n, so that norms of any number of images can be kept.
    """
    norms = np.asarray(norms)
    bins, rows = len(edges) - 1, norms.reshape(-1, norms.shape[-1])
    place = np.clip(np.searchsorted(edges, rows) - 1, 0, bins - 1)
    place += bins * np.arange(len(rows))[:, None]
    counts = np.bincount(place.ravel(), minlength=bins * len(rows))
    smallest = np.min_scalar_type(norms.shape[-1])
    return counts.reshape(*norms.shape[:-1], bins).astype(smallest)


def quantile(
    counts: Integer[np.ndarray, " bins"], edges: Float64[np.ndarray, " bins_and_1"], q: float
) -> float:
    """A quantile, q in (0, 1], of the norms counted, to the width of a bin."""
    below = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    wanted = q * below[-1]
    place = int(np.searchsorted(below[1:], wanted))
    part = (wanted - below[place]) / (below[place + 1] - below[place])
    return float(edges[place] * (edges[place + 1] / edges[place]) ** part)


def cutoff(
    counts: Integer[np.ndarray, " bins"],
    edges: Float64[np.ndarray, " bins_and_1"],
    rule: str = DEFAULT_RULE,
) -> float:
    """The norm above which a token of one layer is an outlier: one of the edges, or infinity.

    Args:
        counts: int[bins], `histogram` of one layer, summed over images.
        edges: of the bins.
        rule: "fixed:150", that number, which must be among the edges; "median:3", the edge at or
            above that multiple of the median; "valley", the edge in the lowest bin between the main
            mode and a higher one in the histogram of the norms' logarithms (`BINS` bins,
            smoothed over 5), if it stays below half of that one, which must hold 0.1 % of the
            tokens; else infinity: a histogram of one mode has no outliers.

    Raises:
        ValueError: another rule.
    """
    kind, number = parse_rule(rule)
    if kind == "fixed":
        return number
    wanted = number * quantile(counts, edges, 0.5) if kind == "median" else _valley(counts, edges)
    return float(np.append(edges, np.inf)[np.searchsorted(edges, wanted)])


def outliers(
    counts: Integer[np.ndarray, "*layers bins"],
    edges: Float64[np.ndarray, " bins_and_1"],
    cut: float,
) -> Float64[np.ndarray, "*layers"]:
    """The share of norms above a cut-off that is one of the edges; exact."""
    above = counts[..., edges[:-1] >= cut].sum(axis=-1)
    return np.asarray(above / counts.sum(axis=-1))


def parse_rule(rule: str) -> tuple[str, float]:
    """("fixed" or "median", number) or ("valley", 0) of a rule's text; see `cutoff`."""
    kind, _, text = rule.partition(":")
    try:
        number = float(text) if kind != "valley" else 0.0
    except ValueError:
        number = -1.0
    known = kind in ("fixed", "median") and 0 < number < np.inf
    if not known and rule != "valley":
        raise ValueError(
            f"outliers: expected fixed:NORM, median:FACTOR or valley, got {rule!r}; published for "
            "DINOv2 g/14 is fixed:150"
        )
    return kind, number


def _valley(counts: np.ndarray, edges: np.ndarray) -> float:
    there = np.flatnonzero(counts)
    if len(there) < 2:
        return np.inf
    total, scale = counts.sum(), np.log(edges)
    coarse = np.linspace(scale[there[0]], scale[there[-1] + 1], BINS + 1)
    spread = np.diff(np.interp(coarse, scale, np.concatenate([[0], np.cumsum(counts)])))
    window = np.ones(2 * _SMOOTH + 1)
    smooth = np.convolve(spread, window, mode="same")
    # To the right of the main mode, the lowest bin beside the lower of the peaks around it.
    main = int(smooth.argmax())
    beyond = np.maximum.accumulate(smooth[::-1])[::-1]  # the highest bin from each on
    peak = max(_LEAST, _LEAST_SHARE * total)
    depth = np.where(beyond >= peak, smooth / np.maximum(beyond, 1), np.inf)[main:]
    lowest = np.flatnonzero(depth == depth.min()) + main
    if depth.min() > _DEPTH:
        return np.inf
    middle = lowest[len(lowest) // 2]
    return float(np.exp((coarse[middle] + coarse[middle + 1]) / 2))


def crop_frame(
    size: tuple[int, int], resize: int = 256, crop: int = 224
) -> tuple[float, tuple[int, int]]:
    """(scale, (left, top)) of a centre crop after the short side was resized.

    Args:
        size: (height, width) of the image.
        resize: px that the short side gets.
        crop: px of the square that is cut out.
    """
    height, width = size
    scale = resize / min(size)
    return scale, ((int(width * scale) - crop) // 2, (int(height * scale) - crop) // 2)


def patches_in_box(
    box: Shaped[ArrayLike, "4"],
    size: tuple[int, int],
    *,
    centres: bool = False,
    resize: int = 256,
    crop: int = 224,
    patch_size: int = 16,
) -> Bool[np.ndarray, "rows columns"]:
    """The patches that count as a hit of a box, by LaSt-ViT's public code (arXiv 2602.22394).

    The box goes the way of the image (short side to `resize`, centre crop), is clipped to the
    crop, and covers rows floor(y0 / p) to floor(y1 / p), both inclusive, at most the last. So a box
    outside of the crop at the top or left still counts a border patch, and an edge on a patch's
    border counts the next patch: with `centres` neither is so.

    Args:
        box: left, top, right, bottom in pixels of the image.
        size: (height, width) of the image.
        centres: instead the patches whose centre lies inside; none where the box is cropped away.
        resize: px that the short side gets.
        crop: px of the square that is cut out.
        patch_size: px of a patch.
    """
    scale, offset = crop_frame(size, resize, crop)
    placed = np.clip(np.asarray(box, np.float64) * scale - np.array(offset * 2), 0, crop)
    left, top, right, bottom = placed
    cells = np.arange(crop // patch_size)

    def within(low: float, high: float) -> np.ndarray:
        if centres:
            middles = (cells + 0.5) * patch_size
            return (middles >= low) & (middles < high)
        return (cells >= low // patch_size) & (cells <= high // patch_size)

    return within(top, bottom)[:, None] & within(left, right)
