"""[CLS] attention maps, the two rules that threshold them, and their way to the image.

Everything works on captured arrays of one layer: `query` and `key`, which for CRATE are both the
subspace coordinates w = LN(z) U. Only the [CLS] row of the attention is ever computed, so memory
is O(heads x n), not O(heads x n^2). All functions are pure and may be called under `jax.jit`.

Protocol: docs/protocols.md section 3; arXiv 2308.16271 (CRATE) and 2104.14294 (DINO).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Shaped

PAPER_FRACTION = 0.6

# A cumulative float32 sum over a few thousand patches is good to about a millionth. Within that
# much of the threshold a patch counts as on it, so that a uniform map of n patches keeps
# ceil(fraction * n) of them whatever the rounding of 1/n.
_CUMULATIVE_ROUNDING = 1e-6


def cls_maps(
    query: Float[ArrayLike, "b tokens heads d_head"],
    key: Float[ArrayLike, "b tokens heads d_head"],
    registers: int = 0,
) -> Float[Array, "b heads n"]:
    """Attention of the [CLS] token over the patch tokens, one map a head.

    A[b, k, i] = softmax over patches i of <q_CLS, k_i> / sqrt(d_head). The softmax leaves [CLS]
    itself and registers out, which is the full attention row renormalised over the patches. The
    paper's formula (2308.16271) omits sqrt(d_head); the authors' code divides, and so do we.
    Computed in float32 at the highest matmul precision whatever the input type.

    Args:
        query: f[b, 1+registers+n, heads, d_head], [CLS] first. For CRATE w = LN(z) U.
        key: the same shape. For CRATE the same array.
        registers: tokens between [CLS] and the patches, `model.config.registers`.

    Returns:
        f32[b, heads, n], each map non-negative with sum 1. A map with a NaN in it is all NaN.

    Raises:
        ValueError: the shapes differ, are not four-dimensional, or hold no patch token; registers
            below 0.
    """
    query, key = jnp.asarray(query, jnp.float32), jnp.asarray(key, jnp.float32)
    if query.ndim != 4 or query.shape != key.shape:
        raise ValueError(
            "query, key: expected those of one layer, [batch, 1+patches, heads, d_head], got "
            f"{query.shape} and {key.shape}; index the layer of a capture first: "
            "out['query'][layer], out['key'][layer]"
        )
    if registers < 0:
        raise ValueError(f"registers: expected 0 or more, got {registers}")
    if query.shape[1] < 2 + registers:
        raise ValueError(
            f"query: expected [CLS], {registers} registers and at least one patch token, got "
            f"{query.shape[1]} tokens; model.config.registers says how many registers there are"
        )
    return _cls_maps(query, key, registers)


@partial(jax.jit, static_argnames="registers")
def _cls_maps(query, key, registers):
    patches = key[:, 1 + registers :]
    logits = jnp.einsum("bhd,bnhd->bhn", query[:, 0], patches, precision="highest")
    return jax.nn.softmax(logits / np.sqrt(query.shape[-1]), axis=-1)


def layer_maps(
    query: Float[ArrayLike, "layers b tokens heads d_head"],
    key: Float[ArrayLike, "layers b tokens heads d_head"],
    registers: int = 0,
) -> Float[Array, "b layers heads n"]:
    """`cls_maps` of every captured layer.

    Args:
        query: f[layers, b, 1+registers+n, heads, d_head], as a model's `capture` returns it.
        key: the same shape.
        registers: as in `cls_maps`.

    Returns:
        f32[b, layers, heads, n].
    """
    layers = zip(jnp.asarray(query), jnp.asarray(key), strict=True)
    return jnp.stack([cls_maps(q, k, registers) for q, k in layers], axis=1)


def keep_mass(
    maps: Float[ArrayLike, "*leading n"], fraction: float = PAPER_FRACTION
) -> Bool[Array, "*leading n"]:
    """Mass rule: the smallest set of patches that holds `fraction` of a map's sum (DINO).

    The entries are sorted ascending and summed up; kept is where the cumulative sum exceeds
    (1 - fraction) of the total. Ties are settled by a stable sort, so of equal entries the later
    in reading order is kept, as DINO's code does on a CPU.

    Args:
        maps: f[..., patches], non-negative; need not be normalised.
        fraction: share of the mass to keep, in [0, 1]. 0 keeps nothing, 1 keeps every entry > 0.

    Returns:
        bool[..., patches]. All False for a map of zeros and for a map with a non-finite entry.

    Raises:
        ValueError: `fraction` outside [0, 1], or no patches.
    """
    maps = _checked(maps, fraction)
    return _keep_mass(maps, (1 - fraction) * (1 + _CUMULATIVE_ROUNDING))


@jax.jit
def _keep_mass(maps, dropped_share):
    ordered = jnp.sort(maps, axis=-1)
    cumulative = jnp.cumsum(ordered, axis=-1)
    # Compared with a share of the last sum, not normalised first: at fraction 0 the last entry
    # then never exceeds, and a map of zeros needs no division.
    within = cumulative <= dropped_share * cumulative[..., -1:]
    return _drop_smallest(maps, ordered, jnp.sum(within, axis=-1, keepdims=True))


def keep_area(
    maps: Float[ArrayLike, "*leading n"], fraction: float = PAPER_FRACTION
) -> Bool[Array, "*leading n"]:
    """Area rule: the `fraction` of patches with the largest entries (2308.16271, appendix).

    Keeps k = floor(fraction * n + 1/2) of n patches: rounded to the nearest, so the kept share is
    never further than half a patch from the paper's 60 %, and equal to thresholding at the
    (1 - fraction) quantile. Of equal entries the later in reading order is kept.

    Args:
        maps: f[..., patches].
        fraction: share of the patches to keep, in [0, 1].

    Returns:
        bool[..., patches] with exactly k True a map; all False for a map with a non-finite entry.

    Raises:
        ValueError: `fraction` outside [0, 1], or no patches.
    """
    maps = _checked(maps, fraction)
    return _keep_area(maps, maps.shape[-1] - _area_count(maps.shape[-1], fraction))


@jax.jit
def _keep_area(maps, dropped):
    return _drop_smallest(maps, jnp.sort(maps, axis=-1), jnp.full((*maps.shape[:-1], 1), dropped))


RULES = {"mass": keep_mass, "area": keep_area}


def kept_counts(
    ordered: Float[np.ndarray, "*leading n"], fraction: float = PAPER_FRACTION
) -> dict[str, Int[np.ndarray, "*leading"]]:
    """How many of a map's largest entries each rule keeps; on the host, in float64.

    Args:
        ordered: f[..., patches], the entries of each map in ascending order, finite.
        fraction: share of mass or area to keep, in [0, 1].

    Returns:
        {"mass": int[...], "area": int[...]}: `keep_mass` and `keep_area` mark the last so many.
    """
    cumulative = np.cumsum(ordered, axis=-1, dtype=np.float64)
    dropped = (1 - fraction) * (1 + _CUMULATIVE_ROUNDING) * cumulative[..., -1:]
    area = _area_count(ordered.shape[-1], fraction)
    return {
        "mass": np.sum(cumulative > dropped, axis=-1),
        "area": np.full(ordered.shape[:-1], area),
    }


def _area_count(patches: int, fraction: float) -> int:
    # The added 1e-9 undoes decimal fractions that fall just short in binary (0.58 * 75 = 43.4999).
    return min(patches, int(fraction * patches + 0.5 + 1e-9))


def _checked(maps, fraction: float) -> jax.Array:
    """The maps as float32, after the checks that both rules share."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction: expected a number in [0, 1], got {fraction}; 60 % is 0.6")
    maps = jnp.asarray(maps, jnp.float32)
    if maps.ndim == 0 or maps.shape[-1] == 0:
        raise ValueError(f"maps: expected [..., patches] with at least one patch, got {maps.shape}")
    return maps


def _drop_smallest(maps: jax.Array, ordered: jax.Array, dropped: jax.Array) -> jax.Array:
    """Marks all but the `dropped` smallest entries of each map, ties by position.

    One sort of values and a comparison: cheaper than the two argsorts of DINO's code, same result.
    """
    patches = maps.shape[-1]
    smallest_kept = jnp.take_along_axis(ordered, jnp.minimum(dropped, patches - 1), axis=-1)
    tied = maps == smallest_kept
    tied_dropped = dropped - jnp.sum(ordered < smallest_kept, axis=-1, keepdims=True)
    keep = (maps > smallest_kept) | (tied & (jnp.cumsum(tied, axis=-1) > tied_dropped))
    finite = jnp.all(jnp.isfinite(maps), axis=-1, keepdims=True)
    return keep & finite & (dropped < patches)


def cell_of_pixel(cells: int, pixels: int) -> Int[np.ndarray, " {pixels}"]:
    """The grid cell in which the centre of each pixel lies, along one axis.

    floor((i + 1/2) cells / pixels), in integers. Where `cells` divides `pixels` this is plain
    repetition. Returns int[pixels].
    """
    return (2 * np.arange(pixels) + 1) * cells // (2 * pixels)


def upsample(
    maps: Shaped[ArrayLike, "*leading n"],
    grid: tuple[int, int],
    size: tuple[int, int],
    mode: str = "nearest",
) -> Shaped[Array, "*leading height width"]:
    """Maps or masks from patches to pixels.

    Args:
        maps: [..., rows * columns], float or bool, patches in reading order.
        grid: (rows, columns) of patches.
        size: (height, width) of the result in pixels. The grid covers the image whole; it need
            not divide it.
        mode: "nearest" gives each pixel the value of the cell that its centre lies in (DINO's
            protocol; repetition where the grid divides the image) and keeps the type.
            "bilinear" interpolates between cell centres, edges held, and gives float32; a mask
            becomes its coverage in [0, 1].

    Returns:
        [..., height, width].

    Raises:
        ValueError: the grid does not fit the maps, a size below 1, or an unknown mode.
    """
    maps = jnp.asarray(maps)
    (rows, columns), (height, width) = grid, size
    if maps.ndim == 0 or maps.shape[-1] != rows * columns:
        raise ValueError(
            f"maps: expected {rows} x {columns} = {rows * columns} patches in the last axis, got "
            f"shape {maps.shape}; the grid is (height // patch, width // patch)"
        )
    if height < 1 or width < 1:
        raise ValueError(f"size: expected at least 1 x 1 pixel, got {height} x {width}")
    maps = maps.reshape(*maps.shape[:-1], rows, columns)
    if mode == "nearest":
        by_row = jnp.take(maps, cell_of_pixel(rows, height), axis=-2)
        return jnp.take(by_row, cell_of_pixel(columns, width), axis=-1)
    if mode == "bilinear":
        shape = (*maps.shape[:-2], height, width)
        return jax.image.resize(
            maps.astype(jnp.float32), shape, "bilinear", precision=jax.lax.Precision.HIGHEST
        )
    raise ValueError(f"mode: expected 'nearest' or 'bilinear', got {mode!r}")
