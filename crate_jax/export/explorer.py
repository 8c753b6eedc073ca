"""The explorer of a page: point at a patch, see what it attends to and what is similar to it.

The page holds the subspace coordinates w = LN(z) U themselves (a ViT's queries and keys) as one
byte a number; its script, `templates/explorer.js`, computes every map from them. So any of the
n + 1 tokens can be asked in any layer and head, where maps computed beforehand would need n + 1 of
each. The graph cuts are computed here, for `TAUS`: a mask is a bit a patch, so twenty of them are
smaller than a hundredth of w, they are MaskCut's own on the full precision (a cosine that one byte
moves over tau is an edge more or less), and rounding has no say in the browser.
"""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import ArrayLike, Float, Int

from crate_jax.export.overlays import COLORMAP
from crate_jax.segmentation import attention, emergence, maskcut

TAUS = tuple(round(0.05 * k, 2) for k in range(20))
MOST_BYTES = 3_000_000  # of arrays on a page; base64 makes four bytes of three
MOST_IMAGES, MOST_LAYERS = 12, 6
CAPTURED = ("query", "key", "key_unrotated")
_PUBLISHED_TAU = 0.15


def thinned(layers: int, most: int = MOST_LAYERS) -> list[int]:
    """Indices of at most `most` layers of so many, evenly spaced and ending with the last."""
    if layers <= most:
        return list(range(layers))
    return [round(layers * (k + 1) / most) - 1 for k in range(most)]


def affordable(
    depth: int, patches: int, width: int, arrays: int, layer: int | None = None
) -> tuple[int, list[int]]:
    """How many images, and which layers of each, a page may hold within `MOST_BYTES`.

    Args:
        depth: layers of the network.
        patches: of an image.
        width: heads x d_head.
        arrays: that differ among query, key and unrotated key: 1 for CRATE, 2 for a ViT.
        layer: the one that a page is about. It is shown, and the others where with them three
            images fit. None: as many as one image may have.

    Returns:
        (images, at most a dozen; indices of layers, at most seven); (0, []) where one layer of one
        image does not fit, or there are too few patches to cut.
    """
    one = arrays * (patches + 1) * (width + 4) + len(TAUS) * (patches + patches // 8 + 5)
    if patches < 3 or one > MOST_BYTES:
        return 0, []
    layers = thinned(depth, min(MOST_LAYERS, MOST_BYTES // one))
    if layer is not None:
        layers = sorted({*thinned(depth), layer})
        if 3 * one * len(layers) > MOST_BYTES:
            layers = [layer]
    return min(MOST_IMAGES, MOST_BYTES // (one * len(layers))), layers


def pack_first(
    captured: Mapping[str, ArrayLike], grid: tuple[int, int], registers: int = 0
) -> list[dict[str, np.ndarray]]:
    """`pack` of the first images of a batch and of evenly spaced layers: as many as fit a page.

    Args:
        captured: of a batch and all layers, f[layers, b, 1+registers+n, heads, d_head] each.
        grid: (rows, columns) of patches.
        registers: `model.config.registers`.
    """
    arrays = {name: np.asarray(captured[name]) for name in CAPTURED if name in captured}
    depth, batch, _, *width = arrays["query"].shape
    differ = _distinct({name: array[:, 0] for name, array in arrays.items()})
    images, layers = affordable(depth, grid[0] * grid[1], math.prod(width), len(differ))
    return [
        pack({name: array[layers, row] for name, array in arrays.items()}, grid, layers, registers)
        for row in range(min(images, batch))
    ]


def pack(
    captured: Mapping[str, ArrayLike],
    grid: tuple[int, int],
    layers: Sequence[int],
    registers: int = 0,
) -> dict[str, np.ndarray]:
    """What a page needs of one image, small.

    A number x is stored as round(x / s), int8, with one scale s = max |x| / 127 a layer and token.

    Args:
        captured: of one image and these layers, f[layers, 1+registers+n, heads, d_head] each:
            `query`, `key` (CRATE: both are w = LN(z) U), and `key_unrotated` of a network with
            rotary positions, by which it is cut.
        grid: (rows, columns) of patches.
        layers: their indices, from 0.
        registers: tokens between [CLS] and the patches, `model.config.registers`: left out.

    Returns:
        For each of `CAPTURED` that is there and not the same as the one before it,
        NAME int8[layers, 1+n, heads, d_head] and NAME_scale f32[layers, 1+n]; of MaskCut's first
        round with the keys of all heads side by side, for each of `TAUS`: `vectors`
        int8[layers, taus, n], the second eigenvector over its largest magnitude, times 127;
        `masks` uint8, bits of bool[layers, taus, n] in reading order, and `gaps`
        f32[layers, taus], the eigengap; `grid` int[2]; `layers` int[layers], from 1.

    Raises:
        FloatingPointError: values that are not finite.
        ValueError: fewer than 3 patches, or another number of them than the grid's.
    """
    arrays = {
        name: np.delete(np.asarray(captured[name], np.float32), range(1, 1 + registers), axis=1)
        for name in CAPTURED
        if name in captured
    }
    packed = {"grid": np.array(grid), "layers": np.array(layers) + 1}
    for name, array in _distinct(arrays).items():
        if not np.isfinite(array).all():
            raise FloatingPointError(f"the {name} holds NaN or infinity; check the weights")
        packed[name], packed[f"{name}_scale"] = _quantised(array)
    keys = list(arrays.values())[-1][:, 1:]
    features = keys.reshape(*keys.shape[:2], -1)
    cuts = [maskcut.maskcut_batch(features, grid, tau, 1, where="host") for tau in TAUS]
    vectors = np.stack([cut.eigenvectors[:, 0] for cut in cuts], axis=1)
    largest = np.maximum(np.abs(vectors).max(-1, keepdims=True), np.finfo(np.float32).tiny)
    packed["vectors"] = np.round(127 * vectors / largest).astype(np.int8)
    packed["masks"] = np.packbits(np.stack([cut.masks[:, 0] for cut in cuts], axis=1))
    packed["gaps"] = np.stack([cut.confidence[:, 0] for cut in cuts], axis=1).astype(np.float32)
    return packed


def _distinct(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those that are not the same as the one before."""
    kept: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if not kept or not np.array_equal(array, list(kept.values())[-1]):
            kept[name] = array
    return kept


def _quantised(
    x: Float[np.ndarray, "layers tokens heads d_head"],
) -> tuple[Int[np.ndarray, "layers tokens heads d_head"], Float[np.ndarray, "layers tokens"]]:
    scale = np.maximum(np.abs(x).max((2, 3)) / 127, np.finfo(np.float32).tiny)
    return np.round(x / scale[:, :, None, None]).astype(np.int8), scale.astype(np.float32)


def contents(
    shown: Iterable[Mapping[str, Any]],
    *,
    first_layer: int | None = None,
    keep: float = attention.PAPER_FRACTION,
    total: int | None = None,
) -> dict[str, Any] | None:
    """What the explorer of a page is drawn from, plain enough for JSON.

    Args:
        shown: a mapping for each image: `name`, `photo`, a data address, `small`, whether its
            pixels are to be seen, `packed` of `pack`, all of the same layers, and perhaps `mask`
            bool[height, width], the true object.
        first_layer: the number of the one shown first; the last where None or not there.
        keep: the part of mass that is kept at first.
        total: images on the page, of which these are the first; None: these are all.

    Returns:
        The contents, or None where there is no image.
    """
    shown = list(shown)
    if not shown:
        return None
    images = [_image(**one) for one in shown]
    layers = shown[0]["packed"]["layers"].tolist()
    colors = matplotlib.colormaps[COLORMAP](np.arange(256), bytes=True)[:, :3]
    return {
        "images": images,
        "layers": layers,
        "first": layers.index(first_layer) if first_layer in layers else len(layers) - 1,
        "keep": keep,
        "taus": TAUS,
        "tau": TAUS.index(_PUBLISHED_TAU),
        "colors": _text(colors),
        "total": total or len(images),
        "megabytes": sum(len(v) for i in images for v in i.values() if isinstance(v, str)) / 1e6,
    }


def _image(
    name: str,
    photo: str,
    small: bool,
    packed: Mapping[str, np.ndarray],
    mask: np.ndarray | None = None,
) -> dict[str, Any]:
    grid = tuple(int(side) for side in packed["grid"])
    image: dict[str, Any] = {
        "name": name,
        "photo": photo,
        "small": small,
        "rows": grid[0],
        "columns": grid[1],
        "heads": packed["query"].shape[2],
        "width": packed["query"].shape[2] * packed["query"].shape[3],
    }
    scales = [f"{key}_scale" for key in CAPTURED]
    for key in (*CAPTURED, *scales, "vectors", "masks", "gaps"):
        image[key] = _text(packed[key]) if key in packed else None
    image["object"] = image["pixels"] = None
    if mask is not None and mask.any():
        objects = emergence.objects_of_mask(mask, grid)
        image["object"] = _text(np.asarray(objects.counts[0], np.float32))
        image["pixels"] = _text(np.asarray(objects.valid, np.float32))
    return image


def _text(array: np.ndarray) -> str:
    """An array's bytes, little-endian, in base64."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode()
