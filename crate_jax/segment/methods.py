"""The three ways to segment an image, from arrays of its patches to what is saved of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from crate_jax.export import overlays
from crate_jax.segmentation import attention, crf, maskcut, parts

METHODS = ("attention", "maskcut", "parts")


@dataclasses.dataclass(frozen=True)
class Segmented:
    """What a method found in one image.

    Attributes:
        arrays: at grid resolution, by name, for the .npz file.
        masks: size (height, width) -> bool[k, height, width], the masks at that size.
        confidences: k numbers, at least 0.
        draw: an image uint8[h, w, 3] of any size -> the overlay on it.
        draw_heads: likewise a montage of all heads' maps; None where there are no heads.
        draw_grey: likewise the first principal component; None where a mask was taken from it.
        note: something the reader of the gallery should know, or "".
    """

    arrays: Mapping[str, np.ndarray]
    masks: Callable[[tuple[int, int]], np.ndarray]
    confidences: list[float]
    draw: Callable[[np.ndarray], np.ndarray]
    draw_heads: Callable[[np.ndarray], np.ndarray] | None = None
    draw_grey: Callable[[np.ndarray], np.ndarray] | None = None
    note: str = ""


def from_attention(
    maps: np.ndarray, grid: tuple[int, int], *, head: int | None, rule: str, keep: float
) -> Segmented:
    """[CLS] attention of one layer, thresholded.

    Args:
        maps: f32[heads, n] of one image.
        grid: (rows, columns).
        head: whose map is drawn and thresholded to the mask; None for the mean over heads.
        rule: "mass" or "area".
        keep: the part of mass or of area that is kept.

    Returns:
        arrays `maps` f32[heads, rows, columns] and `kept` bool, same shape; one mask, or none
        where nothing is kept. Its confidence is 1 - H / log n with H the entropy of the map drawn:
        0 where attention is even, 1 where it is on one patch.

    Raises:
        FloatingPointError: maps that are no numbers.
    """
    _check_finite(maps)
    keep_patches = attention.RULES[rule]
    shown = maps.mean(0) if head is None else maps[head]
    kept = np.asarray(keep_patches(np.concatenate([maps, shown[None]]), keep))
    heat, mask = shown.reshape(grid), kept[-1].reshape(grid)
    entropy = -np.sum(shown * np.log(np.maximum(shown, np.finfo(np.float32).tiny)))
    confidence = float(np.clip(1 - entropy / np.log(len(shown)), 0, 1))
    heads = maps.reshape(-1, *grid)
    return Segmented(
        arrays={"maps": heads, "kept": kept[:-1].reshape(-1, *grid)},
        masks=_resized(mask),
        confidences=[confidence] if mask.any() else [],
        draw=lambda image: overlays.mask_overlay(
            overlays.heat_overlay(image, heat), mask, opacity=0
        ),
        draw_heads=lambda image: overlays.head_montage(image, heads),
    )


def from_maskcut(
    found: maskcut.Masks, patch_size: int, pixels: np.ndarray, *, refine: bool
) -> Segmented:
    """MaskCut's masks of one image; an image of one colour has none, whatever the network made up.

    Args:
        found: of one image.
        patch_size: pixels a patch and side of the network's input.
        pixels: uint8[height, width, 3], the network's input, which the CRF reads.
        refine: refine the masks by CutLER's dense CRF.

    Returns:
        arrays as the fields of `maskcut.Masks`, `eigenvectors` as f32[max_masks, rows, columns],
        and with `refine` also `refined` bool[max_masks, height, width] at the network's input size.
        Only masks that hold a patch; their confidence is the eigengap.

    Raises:
        FloatingPointError: features that were no numbers.
    """
    if found.invalid:
        raise FloatingPointError("the features hold NaN or infinity; check the weights")
    blank = bool((pixels == pixels[0, 0]).all())
    if blank:
        # With positions added, the patches of a blank image differ and can be cut: by place alone.
        found = dataclasses.replace(found, masks=np.zeros_like(found.masks))
    arrays = {
        field.name: np.asarray(getattr(found, field.name))
        for field in dataclasses.fields(found)
        if field.name not in ("dense_solves", "invalid")
    }
    arrays["eigenvectors"] = found.eigenvectors.reshape(found.masks.shape)
    source, pixels_a_cell = found.masks, patch_size
    if refine:
        large = found.masks.repeat(patch_size, axis=1).repeat(patch_size, axis=2)
        source, pixels_a_cell = crf.refine(pixels, large), 1
        arrays["refined"] = source
    there = np.flatnonzero(source.any(axis=(1, 2)))
    source = source[there]

    def masks(size):
        return maskcut.full_resolution(source, size, pixels_a_cell)

    noted = {
        "another cut is as good": found.ambiguous[there].any(),
        "rounding decided": found.tied[there].any(),
        "the graph singles out no cut": found.degenerate.any(),
        "the image is of one colour": blank,
    }
    return Segmented(
        arrays=arrays,
        masks=masks,
        confidences=[float(gap) for gap in found.confidence[there]],
        draw=lambda image: overlays.mask_overlay(image, masks(image.shape[:2])),
        note="; ".join(text for text, holds in noted.items() if holds),
    )


def from_parts(found: parts.Parts, index: int, grid: tuple[int, int]) -> Segmented:
    """Parts of image `index` among those analysed together.

    Returns:
        arrays `first` f32, `foreground` bool [rows, columns] and `rgb` f32[rows, columns, 3]; one
        mask, the foreground, of confidence 1, or none.
    """
    foreground = found.foreground[index].reshape(grid)
    colors = found.rgb[index].reshape(*grid, 3)

    def draw(image):
        inside = overlays.to_size(foreground, image.shape[:2])[..., None]
        return np.where(inside, _tint(colors, image.shape[:2]), image // 4)

    return Segmented(
        arrays={"first": found.first[index].reshape(grid), "foreground": foreground, "rgb": colors},
        masks=_resized(foreground),
        confidences=[1.0] if foreground.any() else [],
        draw=draw,
    )


def from_components(grey: np.ndarray, rgb: np.ndarray, grid: tuple[int, int]) -> Segmented:
    """The leading components of one image's patches, no background removed.

    Args:
        grey: f32[n] of `parts.layer_components`, the first component.
        rgb: f32[n, 3], the second to the fourth.
        grid: (rows, columns).

    Returns:
        arrays `grey` f32[rows, columns] and `rgb` f32[rows, columns, 3]; no mask.
    """
    first, colors = grey.reshape(grid), rgb.reshape(*grid, 3)
    return Segmented(
        arrays={"grey": first, "rgb": colors},
        masks=lambda size: np.zeros((0, *size), bool),
        confidences=[],
        draw=lambda image: _tint(colors, image.shape[:2]),
        draw_grey=lambda image: _tint(np.repeat(first[..., None], 3, axis=2), image.shape[:2]),
    )


def _resized(mask: np.ndarray) -> Callable[[tuple[int, int]], np.ndarray]:
    """size -> the mask at that size, bool[1, height, width]; none, bool[0, ...], where empty."""
    return lambda size: np.array(
        [overlays.to_size(mask, size)] if mask.any() else [], bool
    ).reshape(-1, *size)


def _tint(colors: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Patches' colours f[rows, columns, 3] in [0, 1] as a picture uint8[height, width, 3]."""
    values = np.round(255 * colors).astype(np.uint8)
    return np.stack([overlays.to_size(values[..., c], size) for c in range(3)], axis=-1)


def cut(features: jax.Array, valid: np.ndarray, grid: tuple[int, int], **options: Any) -> list:
    """MaskCut of the valid rows of a batch f32[b, n, d] -> one `maskcut.Masks` a row, or None.

    On an accelerator the whole batch is cut, so that one program serves every batch.
    """
    found: list[maskcut.Masks | None] = [None] * len(valid)
    rows = np.flatnonzero(valid).tolist()
    if jax.default_backend() == "cpu":
        batch = maskcut.maskcut_batch(np.asarray(features)[rows], grid, **options)
        for place, row in enumerate(rows):
            found[row] = batch[place]
        return found
    batch = maskcut.maskcut_batch(features, grid, **options)
    for row in rows:
        found[row] = batch[row]
    return found


def _check_finite(maps: np.ndarray) -> None:
    if not np.isfinite(maps).all():
        raise FloatingPointError("the attention holds NaN or infinity; check the weights")
