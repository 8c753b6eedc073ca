"""Position embeddings at another image size: the rules of published code, no state.

All but one use PyTorch's bicubic kernel (Keys with a = -0.75, half-pixel centres, indices clamped
at the border, no antialiasing), because published weights were trained and evaluated with it.
`"antialias"` is PyTorch's other kernel, a = -0.5 and widened where the grid shrinks, which
`jax.image.resize(..., "cubic")` equals; the two differ by 8-11 %.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from crate_jax.models.names import RULES, Rule

_KEYS_A = -0.75
MOST_PATCHES = 2**20  # of one image; attention between more fits into no memory


@functools.lru_cache(maxsize=64)
def bicubic_matrix(source: int, target: int, step: float) -> Float[np.ndarray, "target source"]:
    """The f32[target, source] matrix of one axis of bicubic interpolation.

    Output i reads the source at x = (i + 1/2) step - 1/2, with the four neighbours floor(x) - 1 ..
    floor(x) + 2 clamped into [0, source - 1] and weighted by Keys' kernel with a = -0.75.
    """
    a = _KEYS_A
    x = (np.arange(target) + 0.5) * step - 0.5
    base = np.floor(x).astype(int)
    matrix = np.zeros((target, source))
    for offset in (-1, 0, 1, 2):
        distance = np.abs(x - (base + offset))
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
        weight = np.where(distance <= 1, near, far)
        column = np.clip(base + offset, 0, source - 1)
        np.add.at(matrix, (np.arange(target), column), weight)
    return matrix.astype(np.float32)


def resize_positions(
    positions: Float[ArrayLike, "1 tokens d"],
    source: tuple[int, int],
    target: tuple[int, int],
    rule: Rule = "size",
) -> Float[Array, "1 target_tokens d"]:
    """Position embeddings f32[1, 1+n, d] of one grid, resampled to another, [CLS] kept as it is.

    Args:
        positions: f32[1, 1 + rows * columns, d], [CLS] first.
        source: (rows, columns) of the grid that `positions` belongs to.
        target: (rows, columns) wanted.
        rule: `"size"`, the default: step = source / target per axis, the identity when equal.
            `"dino"`: DINO's scale factor (target + 0.1) / source per axis, hence
            step = source / (target + 0.1); the identity when equal (arXiv 2104.14294, its code).
            `"antialias"`: by target size with antialiasing, as timm's networks and DINOv2's with
            registers; the identity when equal.
            `"notebook"`: as `"dino"` but resampled even when equal, and with the width laid on the
            first grid axis, as the notebook of 2308.16271 does. What that notebook also does,
            overwriting the stored positions at every call, is not reproduced.

    Returns:
        f32[1, 1 + rows * columns, d] for the target grid.

    Raises:
        ValueError: an unknown rule, or a grid of more than `MOST_PATCHES`.
    """
    if rule not in RULES:
        raise ValueError(f"positions: expected one of {', '.join(RULES)}, got {rule!r}")
    if math.prod(target) > MOST_PATCHES:
        raise ValueError(
            f"image size: expected at most {MOST_PATCHES:,} patches, got {target[0]:,} x "
            f"{target[1]:,}; choose a smaller one"
        )
    positions = jnp.asarray(positions)
    if source == target and rule != "notebook":
        return positions
    cls, patches = positions[:, :1], positions[:, 1:]
    patches = patches.reshape(*source, positions.shape[-1])
    if rule == "antialias":
        patches = jax.image.resize(patches, (*target, patches.shape[-1]), "cubic", antialias=True)
    else:
        patches = _bicubic(patches, source, target, rule)
    patches = patches.reshape(1, math.prod(target), positions.shape[-1])
    return jnp.concatenate([cls, patches.astype(positions.dtype)], axis=1)


def _bicubic(
    patches: Float[Array, "rows columns d"],
    source: tuple[int, int],
    target: tuple[int, int],
    rule: Rule,
) -> Float[Array, "new_rows new_columns d"]:
    # The notebook passes (width, height) where DINO passes (height, width).
    lengths = target[::-1] if rule == "notebook" else target
    matrices = []
    for old, new in zip(source, lengths, strict=True):
        step = old / new if rule == "size" else old / (new + 0.1)
        matrices.append(bicubic_matrix(old, new, step))
    return jnp.einsum("ir,jc,rcd->ijd", *matrices, patches, precision=jax.lax.Precision.HIGHEST)


def sincos_positions(grid: tuple[int, int], dim: int) -> Float[np.ndarray, "1 tokens {dim}"]:
    """The fixed sine-cosine positions of MAE, f32[1, 1 + rows * columns, dim], zero for [CLS].

    Channels are four quarters: sin and cos of the column index, then sin and cos of the row index,
    at dim / 4 frequencies 10000^(-k / (dim / 4)) (the column goes first, as in the public code of
    MAE and CRATE-MAE, which names it the height). Computed in float64 and rounded once.

    Raises:
        ValueError: unless dim is a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine positions: expected dim to be a multiple of 4, got {dim}")
    omega = 10000.0 ** -(np.arange(dim // 4) / (dim / 4))
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    quarters = []
    for index in (column, row):
        angle = index.reshape(-1, 1) * omega
        quarters += [np.sin(angle), np.cos(angle)]
    patches = np.concatenate(quarters, axis=1)
    return np.concatenate([np.zeros((1, dim)), patches]).astype(np.float32)[None]
