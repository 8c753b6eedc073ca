"""A run, or a folder of segmented images, as one HTML file that needs nothing else.

The pages hold their pictures, charts and style; they fetch nothing and run no script but the
explorer's (a content security policy says so to the browser), so they can be mailed, archived and
opened offline.
"""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from crate_jax.export import explorer, tables
from crate_jax.export.history import History, chart_sections, comparison, headline
from crate_jax.export.overlays import COLORMAP, checked_image, data_uri, encode
from crate_jax.export.pages import write_page
from crate_jax.segmentation import attention, emergence

_MOST_PIXELS = 360  # longest side of an embedded photograph
_SMALL = 128  # below it a photograph is shown as pixels, not smoothed
_SHADES = 32
_SHADOW = (12, 9, 18, 209)  # what is not kept: nearly black, 82 % opaque


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    config: Mapping,
    history: Iterable[Mapping],
    examples: Sequence[Mapping] = (),
    lede: str = "",
    summary: Mapping | None = None,
    facts: Mapping[str, str] | None = None,
    environment: Mapping | None = None,
    reconstructions: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]] = (),
    galleries: Sequence[Mapping] = (),
    keep: float = attention.PAPER_FRACTION,
) -> Path:
    """Writes the report of a run.

    Parts without data are left out. The page of a dozen images of 64 px with 6 layers of 6 heads
    is about 0.6 MB.

    Args:
        path: the file, usually DIR/report/index.html. Written whole or not at all.
        title: the heading.
        config: the run's settings, nested as they are.
        history: lines of `metrics.jsonl`; the names are in `crate_jax.export.history`.
        examples: held-out images, each a mapping with `image` uint8[height, width, 3] and `maps`
            f[layers, heads, rows, columns]; optionally `mask` bool[height, width], `label`,
            `predicted` (str), and `layers`, the numbers (from 1) of the layers in `maps` where
            not all are there. More than six layers are thinned evenly, the last kept. Those with
            `packed`, of `explorer.pack`, are in the explorer.
        lede: a sentence or two below the heading.
        summary: metrics that stand over the last values of `history`.
        facts: short things worth knowing, label to text, shown below the heading.
        environment: versions and devices.
        reconstructions: of masked autoencoding: (image, masked, prediction), uint8[h, w, 3] each.
        galleries: further pictures: `title`, `note` and `items` as `write_gallery` takes them.
        keep: the part of mass and of area that the two rules keep, here and in `history`.

    Returns:
        The path.

    Raises:
        ValueError: an example whose arrays do not have these shapes.
        OSError: the file cannot be written.
    """
    measured = History(history, summary)
    shown = [_example(example, keep) for example in examples]
    layers = sorted({layer["number"] for example in shown for layer in example["layers"]})
    heads = max((len(layer["heads"]) for e in shown for layer in e["layers"]), default=1)
    best, images = measured.best_layer(), measured.last.get("val/images")
    return write_page(
        path,
        "report.html",
        title=title,
        lede=lede,
        facts=facts,
        tables={"Configuration": config, "Environment": environment or {}},
        rules=tables.rule_names(keep),
        headline=headline(measured),
        comparison=comparison(measured, keep),
        examples=shown,
        scored=any(example["object"] for example in shown),
        layers=layers,
        first_layer=best if best in layers else max(layers, default=None),
        columns=_columns(heads, 6),
        phone_columns=_columns(heads, 3),
        layer_tables=tables.layer_tables(tables.from_metrics(measured.last), keep),
        layers_note=tables.LAYERS_NOTE,
        images=f"{images:,.0f}" if images else "",
        chart_sections=chart_sections(measured),
        reconstructions=[_reconstruction(*pictures) for pictures in reconstructions],
        galleries=[{**one, **_gallery(one["items"])} for one in galleries],
        explorer=_explored(examples, best, keep),
    )


def write_gallery(
    path: str | os.PathLike,
    *,
    title: str,
    items: Iterable[Mapping],
    settings: Mapping,
    lede: str = "",
    facts: Mapping[str, str] | None = None,
    explored: Sequence[Mapping] = (),
    first_layer: int | None = None,
) -> Path:
    """Writes a page of segmented images.

    Args:
        path: the file. Written whole or not at all.
        title: the heading.
        items: images in their order, each a mapping with `name` and `panels`, a list of
            (caption, picture) where a picture is uint8[height, width, 3], embedded at 360 px at
            most, or a relative address of a file beside the page, for a folder of thousands;
            optionally `confidences`, one number in [0, 1] a mask, and `note`.
        settings: what the images were made with.
        lede: a sentence or two below the heading.
        facts: short things worth knowing, label to text.
        explored: of the first images, for the explorer: `name`, `picture` as above, but embedded
            in any case, and `packed` of `explorer.pack`.
        first_layer: the number, from 1, of the layer that the explorer shows first.

    Returns:
        The path.
    """
    held = [_explorable(one["picture"], one["name"], one["packed"]) for one in explored]
    gallery = _gallery(items)
    return write_page(
        path,
        "gallery.html",
        title=title,
        lede=lede,
        facts=facts,
        tables={"Settings": settings},
        gallery=gallery,
        explorer=explorer.contents(
            held, first_layer=first_layer, total=len(gallery["items_shown"])
        ),
    )


def _explored(examples: Sequence[Mapping], best: int | None, keep: float) -> dict | None:
    shown = []
    for example in examples:
        if "packed" in example:
            name = example.get("label") or f"image {len(shown) + 1}"
            packed, mask = example["packed"], example.get("mask")
            shown.append(_explorable(example["image"], name, packed) | {"mask": mask})
    return explorer.contents(shown, first_layer=best, keep=keep, total=len(examples))


def _explorable(picture: np.ndarray | str, name: str, packed: Mapping) -> dict:
    photo, small = _panel(picture)
    return {"name": name, "photo": photo, "small": small, "packed": packed}


def _gallery(items: Iterable[Mapping]) -> dict:
    """What templates/items.html draws."""
    shown = []
    for item in items:
        panels = [(caption, *_panel(picture)) for caption, picture in item["panels"]]
        confidences = [float(value) for value in item.get("confidences") or ()]
        note = item.get("note") or ""
        name = item["name"]
        shown.append({"name": name, "panels": panels, "confidences": confidences, "note": note})
    panel_columns = max((len(item["panels"]) for item in shown), default=1)
    return {
        "items_shown": shown,
        "linked": any(
            not uri.startswith("data:") for item in shown for _, uri, _ in item["panels"]
        ),
        "panel_columns": min(panel_columns, 4),
        "item_width": min(520, 210 * panel_columns),
    }


def _columns(heads: int, most: int) -> int:
    """Heads in a row: as many as fit, without a ragged last row where that can be had."""
    rows = -(-heads // most)
    return -(-heads // rows)


# -- pictures -------------------------------------------------------------------------------------


def _photo(image: np.ndarray) -> tuple[str, bool]:
    """(data address, whether it is small): exact if small, else at most 360 px as WebP."""
    image = checked_image(image)
    longest = max(image.shape[:2])
    if longest <= _SMALL:
        return data_uri(image), True
    if longest > _MOST_PIXELS:
        scale = _MOST_PIXELS / longest
        size = [max(1, round(side * scale)) for side in (image.shape[1], image.shape[0])]
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    return data_uri(encode(image, "webp"), "webp"), False


def _panel(picture: np.ndarray | str) -> tuple[str, bool]:
    return (picture, False) if isinstance(picture, str) else _photo(picture)


def _indexed_png(index: np.ndarray, palette: Sequence[Sequence[int]]) -> str:
    """A picture of few colours as a data address: a map of 14 x 14 takes about 250 bytes."""
    picture = Image.fromarray(index.astype(np.uint8), "P")
    colors = np.asarray(palette, np.uint8)
    picture.putpalette(colors[:, :3].tobytes())
    options = {"transparency": colors[:, 3].tobytes()} if colors.shape[1] == 4 else {}
    bits = 1 if len(colors) <= 2 else 8
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True, bits=bits, **options)
    return data_uri(buffer.getvalue())


def _map_png(values: np.ndarray) -> str:
    top = values.max()
    scaled = np.clip(values / top, 0, 1) if np.isfinite(top) and top > 0 else 0 * values
    palette = matplotlib.colormaps[COLORMAP](np.linspace(0, 1, _SHADES), bytes=True)[:, :3]
    return _indexed_png(np.round(np.nan_to_num(scaled) * (_SHADES - 1)), palette)


def _shadow_png(kept: np.ndarray) -> str:
    """Dark where nothing is kept, clear elsewhere: laid over the photograph."""
    return _indexed_png(kept, [_SHADOW, (0, 0, 0, 0)])


def _example(example: Mapping, keep: float) -> dict:
    image = checked_image(example["image"])
    maps = np.asarray(example["maps"], np.float32)
    mask = example.get("mask")
    mask = None if mask is None else np.asarray(mask, bool)
    if maps.ndim != 4 or 0 in maps.shape:
        raise ValueError(f"maps: expected f[layers, heads, rows, columns], got {maps.shape}")
    if mask is not None and mask.shape != image.shape[:2]:
        raise ValueError(f"mask: expected the image's size {image.shape[:2]}, got {mask.shape}")
    numbers = list(example.get("layers") or range(1, len(maps) + 1))
    if len(numbers) != len(maps):
        raise ValueError(f"layers: expected a number for each of {len(maps)}, got {numbers}")
    chosen = explorer.thinned(len(maps))
    heads = _heads(maps[chosen], mask, keep)
    photo, small = _photo(image)
    label, predicted = example.get("label") or "", example.get("predicted") or ""
    return {
        "photo": photo,
        "small": small,
        "ratio": f"{image.shape[1]} / {image.shape[0]}",
        "object": None if mask is None else _shadow_png(mask),
        "share": 0.0 if mask is None else float(mask.mean()),
        "label": label,
        "predicted": predicted,
        "right": label == predicted,
        "layers": [{"number": numbers[i], "heads": h} for i, h in zip(chosen, heads, strict=True)],
    }


def _heads(maps: np.ndarray, mask: np.ndarray | None, keep: float) -> list[list[dict]]:
    """Pictures of maps f[layers, heads, rows, columns], and their fit where the truth is known."""
    flat = maps.reshape(*maps.shape[:2], -1)
    shown = [[{"map": _map_png(head)} for head in layer] for layer in maps]
    for (rule, kept_by), fit in zip(attention.RULES.items(), _fit(maps, mask, keep), strict=True):
        kept = np.asarray(kept_by(flat, keep))
        for layer, heads in enumerate(shown):
            for index, head in enumerate(heads):
                iou = float(fit[layer, index])
                head[rule] = _shadow_png(kept[layer, index].reshape(maps.shape[2:]))
                head[f"iou_{rule}"] = None if np.isnan(iou) else iou
                head[f"best_{rule}"] = index == fit[layer].argmax() and not np.isnan(iou)
    return shown


def _fit(maps: np.ndarray, mask: np.ndarray | None, keep: float) -> np.ndarray:
    """f64[rules, layers, heads], IoU with the object; NaN where there is none."""
    if mask is None or not mask.any() or not np.isfinite(maps).all():
        return np.full((len(attention.RULES), *maps.shape[:2]), np.nan)
    measured, nothing = emergence.Measured(keep), np.zeros(len(maps))
    objects = emergence.objects_of_mask(mask, maps.shape[2:])
    measured.add(maps.reshape(*maps.shape[:2], -1), objects, nothing, nothing)
    return measured.own[0][: len(attention.RULES), :, :-1]


def _reconstruction(image: np.ndarray, masked: np.ndarray, prediction: np.ndarray) -> dict:
    pictures = {"image": image, "shown": masked, "made of it": prediction}
    encoded = {caption: _photo(picture) for caption, picture in pictures.items()}
    return {
        "ratio": f"{image.shape[1]} / {image.shape[0]}",
        "small": encoded["image"][1],
        "panels": [(caption, uri) for caption, (uri, _) in encoded.items()],
    }
