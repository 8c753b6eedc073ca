"""Images as patches in raster order, and back."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def patchify(images: Shaped[Array, "b h w c"], patch: int) -> Shaped[Array, "b n ppc"]:
    """[b, h, w, c] -> [b, (h/p)(w/p), p p c]: patches in raster order, (row, column, channel)."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(
    patches: Shaped[Array, "b n ppc"], grid: tuple[int, int], patch: int
) -> Shaped[Array, "b h w c"]:
    """[b, rows columns, p p c] -> [b, rows p, columns p, c]: the reverse of `patchify`."""
    b, _, pixels = patches.shape
    x = patches.reshape(b, *grid, patch, patch, pixels // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, grid[0] * patch, grid[1] * patch, -1)


def patch_grid(images: Float[Array, "b h w 3"], patch: int) -> tuple[int, int]:
    """(rows, columns) of images f[b, h, w, 3].

    Raises:
        ValueError: another shape, sides that the patch does not divide, or integers: pixels that
            were not normalised would pass through the first LayerNorm and give plausible nonsense.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"images: expected [batch, height, width, 3], got shape {tuple(images.shape)}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images: expected normalised floating-point numbers, got {images.dtype}; pass pixels "
            "through model.preprocess first"
        )
    height, width = images.shape[1:3]
    if height % patch or width % patch or not height or not width:
        raise ValueError(
            f"images: expected height and width that are multiples of the patch size {patch}, got "
            f"{height} x {width}; resize or crop to "
            f"{max(1, round(height / patch)) * patch} x {max(1, round(width / patch)) * patch}"
        )
    return height // patch, width // patch
