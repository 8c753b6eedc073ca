"""The demo's page, and the picture of the README."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from crate_jax import inference
from crate_jax.data import images, photographs
from crate_jax.data.loader import Example, Source
from crate_jax.demo.seeing import ALIKE, Score, Seen, see
from crate_jax.export import explorer, mosaic, overlays, report
from crate_jax.segment import methods
from crate_jax.segmentation import attention, maskcut, parts
from crate_jax.training.report import environment

_EXPLORED = 6  # scenes; and so many photographs, whose arrays are four times as large
_EXPLORED_PHOTOGRAPHS = 2
_SIDE = 256  # px, to which small images are enlarged for what is drawn on them
_PHOTOGRAPHS = ("chelsea", "astronaut", "coffee", "rocket", "coins", "camera")
_LEDE = (
    "It was trained to name the object in composed scenes, on class labels alone. No mask was ever "
    "shown to it: masks only measure here how well what it attends to fits the object. Scenes and "
    "scores are of images that it never saw."
)


def picture(seen: Seen, examples: Sequence[Example], layer: int) -> bytes:
    """Image, object, map and kept patches of scenes, in the head that fits each best: a PNG."""
    rows: dict[str, list[np.ndarray]] = {
        name: [] for name in ("held out", "object", "attention", "60 % of it")
    }
    for image, example, maps in zip(seen.images, examples, seen.maps[:, layer], strict=True):
        kept = np.asarray(attention.keep_mass(maps)).reshape(-1, *seen.grid)
        large = [overlays.to_size(one, image.shape[:2]) for one in kept]
        truth = example["mask"]
        fits = [np.sum(one & truth) / max(np.sum(one | truth), 1) for one in large]
        head = int(np.argmax(fits))
        shown = (
            image,
            overlays.spotlight(image, truth),
            overlays.colorize(maps[head].reshape(seen.grid), low=0),
            overlays.spotlight(image, large[head]),
        )
        for row, drawn in zip(rows.values(), shown, strict=True):
            row.append(drawn)
    return mosaic.mosaic(rows)


def write(
    path: str | os.PathLike,
    network: inference.Network,
    run: Mapping,
    scenes: Source,
    examples: Sequence[Example],
    seen: Seen,
    score: Score,
) -> pathlib.Path:
    """Writes the page.

    Args:
        path: the file. Written whole or not at all.
        network: that is shown.
        run: the record of its run.
        scenes: held-out ones.
        examples: those of them that are shown.
        seen: what the network makes of these.
        score: of the network.

    Returns:
        The path.
    """
    names, layer = scenes.class_names, score.best_layer
    labels = [names[example["label"]] for example in examples]
    titles, seen_photographs = list(_PHOTOGRAPHS), see(network, _photographs(network))
    shown = _shown(seen, labels, _EXPLORED)
    for one, example, predicted in zip(shown, examples, seen.predicted, strict=True):
        one |= {"mask": example["mask"], "predicted": names[predicted]}
    alike, name = _of_one_object(scenes)
    return report.write_report(
        path,
        title="What a white-box transformer attends to",
        lede=_LEDE,
        config=run["config"],
        history=[*run["history"], {"step": run["step"]} | score.metrics()],
        examples=[*shown, *_shown(seen_photographs, titles, _EXPLORED_PHOTOGRAPHS)],
        facts={"scored": f"{score.images:,} scenes", "trained for": f"{run['step']:,} steps"},
        environment=environment(),
        galleries=[
            {
                "title": "Attention, masks, parts",
                "note": f"[CLS] attention in layer {layer + 1}, the mean over heads, its kept "
                "patches outlined; of the last layer MaskCut's masks, and the second to the fourth "
                "principal component as colours.",
                "items": [
                    *_drawn(network, seen, labels, layer, score.keep),
                    *_drawn(network, seen_photographs, titles, layer, score.keep),
                ],
            },
            {
                "title": f"Parts of one object: {name}",
                "note": "Foreground and leading components of all these scenes together: what has "
                "one colour is one part.",
                "items": _parts(see(network, alike), name),
            },
        ],
        keep=score.keep,
    )


def _shown(seen: Seen, labels: Sequence[str], explored: int) -> list[dict]:
    """What the report shows of images, the first with what its explorer needs."""
    some = {name: array[:, :explored] for name, array in seen.captured.items()}
    packed = explorer.pack_first(some, seen.grid, seen.registers)
    shown = []
    for index, (image, label) in enumerate(zip(seen.images, labels, strict=True)):
        maps = seen.maps[index].reshape(*seen.maps.shape[1:3], *seen.grid)
        shown.append({"image": image, "maps": maps, "label": label})
        if index < len(packed):
            shown[-1]["packed"] = packed[index]
    return shown


def _photographs(network: inference.Network) -> list[np.ndarray]:
    """scikit-image's, the middle square at the size that `segment` takes."""
    size = inference.input_size(network.config, None)
    squares = []
    for name in _PHOTOGRAPHS:
        pixels = photographs.load(name, max(size))
        side = min(pixels.shape[:2])
        top, left = ((length - side) // 2 for length in pixels.shape[:2])
        squares.append(images.resize(pixels[top : top + side, left : left + side], size))
    return squares


def _drawn(
    network: inference.Network, seen: Seen, labels: Sequence[str], layer: int, keep: float
) -> list[dict]:
    """Image, attention, masks and components, as the gallery takes them."""
    features = seen.features()
    grey, rgb = parts.layer_components(features)
    cuts = maskcut.maskcut_batch(features, seen.grid, where="host")
    items = []
    for index, (image, label) in enumerate(zip(seen.images, labels, strict=True)):
        maps = seen.maps[index, layer]
        mapped = methods.from_attention(maps, seen.grid, head=None, rule="mass", keep=keep)
        cut = methods.from_maskcut(cuts[index], network.config.patch_size, image, refine=False)
        components = methods.from_components(grey[index], rgb[index], seen.grid)
        large = overlays.enlarge(image, _SIDE)
        panels = [
            ("image", image),
            ("attention", mapped.draw(large)),
            ("masks", cut.draw(large)),
            ("components", components.draw(image)),
        ]
        items.append({"name": label, "panels": panels, "note": cut.note})
    return items


def _of_one_object(scenes: Source) -> tuple[list[np.ndarray], str]:
    """Scenes of the first scene's object, and its name."""
    first, found = scenes[0]["label"], []
    for index in range(0, len(scenes), scenes.num_classes):  # where each object comes again
        example = scenes[index]
        if example["label"] == first and len(found) < ALIKE:
            found.append(example["image"])
    return found, scenes.class_names[first]


def _parts(seen: Seen, name: str) -> list[dict]:
    found = parts.parts(seen.features(), seen.grid)
    items = []
    for index, image in enumerate(seen.images):
        drawn = methods.from_parts(found, index, seen.grid).draw(image)
        items.append({"name": name, "panels": [("image", image), ("parts", drawn)]})
    return items
