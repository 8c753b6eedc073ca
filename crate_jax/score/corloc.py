"""`score --task=corloc`: how often the one box that a method draws fits an object."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from crate_jax.export.tables import Cell, Table, cell
from crate_jax.score import tasks
from crate_jax.score.tasks import Columns, Example, Row, check_finite
from crate_jax.segmentation import discovery, emergence
from crate_jax.segmentation.emergence import Estimate

METHODS = {"tokencut": "TokenCut", "lost": "LOST"}
_BASELINES = {"whole_image": "the whole image", "centre_box": "a centred box of half the sides"}
PUBLISHED = {
    "voc07": {"tokencut": 68.8, "lost": 61.9},
    "voc12": {"tokencut": 72.1, "lost": 64.0},
    "coco20k": {"tokencut": 58.8, "lost": 50.7},
}
_SMALL = 1e-7  # added to a union, as in the public code


def box_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of a box f64[4] with others f64[k, 4]; left, top, right, bottom as pixel edges."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    inside = np.prod(np.maximum(high - low, 0), axis=1)
    areas = [np.prod(b[..., 2:] - b[..., :2], axis=-1) for b in (box, boxes)]
    return inside / (areas[0] + areas[1] - inside + _SMALL)


class CorLoc(tasks.OfFeatures):
    """Boxes of TokenCut and of LOST, and the share of images in which one fits.

    Protocol (docs/protocols.md section 7): the image at its own size, padded by zeros to whole
    patches; features of the last layer; a hit is an IoU of at least 0.5 with any object. A set
    without sizes of its own is resized to the network's input, and boxes are scaled back.

    Args:
        *what: see `tasks.OfFeatures`; the data with `boxes`.
        k: LOST's.
        **options: see there.
    """

    name = "corloc"
    headline: ClassVar[Mapping[str, str]] = {
        "corloc/tokencut": "CorLoc, TokenCut",
        "corloc/lost": "CorLoc, LOST",
    }

    def __init__(self, *what: Any, k: int = discovery.PAPER_K, **options: Any):
        super().__init__(*what, **options)
        self.k = k
        own = "own size, padded" if self.data.own_sizes else list(self.size)
        self.settings |= {"k": k, "input": own, **self.data.box_settings}

    def __call__(self, examples: Sequence[Example], params: Any) -> list[Row]:
        """corloc/boxes f64[methods, 4] in pixels of the image, and corloc/size f64[2]."""
        own = self.data.own_sizes
        inputs = [e.picture if own else e.pixels for e in examples]
        rows = []
        for example, input_, (features, _, grid) in zip(
            examples, inputs, self._arrays(inputs, params), strict=True
        ):
            check_finite(example, features)
            found = (
                discovery.tokencut(features, grid, self.tau),
                discovery.lost(features, grid, self.k),
            )
            size = np.array(example.size, np.float64)
            scale = np.tile((size / input_.shape[:2])[::-1], 2)
            boxes = [
                discovery.pixel_box(one.box, self._patch, input_.shape[:2]) * scale for one in found
            ]
            rows.append({"corloc/boxes": np.array(boxes, np.float64), "corloc/size": size})
        return rows

    def estimates(
        self, used: Sequence[str], columns: Columns, random: Columns | None
    ) -> dict[str, Estimate]:
        """corloc/METHOD, corloc_other/, corloc_random/, corloc_gain/; corloc/BASELINE.

        `other`: the box, as shares of the sides, on the next image that holds an object. Images
        without an object are left out of all.
        """
        truths = [self.data.boxes(name) for name in used]
        kept = [place for place, boxes in enumerate(truths) if len(boxes)]
        if not kept:
            return {}
        boxes, sizes = (np.array(columns[f"corloc/{n}"])[kept] for n in ("boxes", "size"))
        truths = [truths[place] for place in kept]
        following = np.roll(np.arange(len(kept)), -1)
        rows = {"": _hits(boxes, truths)}
        if len(kept) > 1:
            moved = np.tile((sizes[following] / sizes)[:, ::-1], 2)[:, None]
            rows["_other"] = _hits(boxes * moved, [truths[place] for place in following])
        if random is not None:
            rows["_random"] = _hits(np.array(random["corloc/boxes"])[kept], truths)
            rows["_gain"] = rows[""] - rows["_random"]
        named = {
            f"corloc{kind}/{method}": hits[:, place]
            for kind, hits in rows.items()
            for place, method in enumerate(METHODS)
        }
        edges = np.tile(sizes[:, ::-1], 2)  # width, height, width, height
        for baseline, shares in zip(
            _BASELINES, ([0, 0, 1, 1], [0.25, 0.25, 0.75, 0.75]), strict=True
        ):
            named[f"corloc/{baseline}"] = _hits((edges * shares)[:, None], truths)[:, 0]
        return emergence.with_intervals(named, samples=self.samples, seed=self.seed)

    def tables(self, estimates: Mapping[str, Estimate]) -> list[Table]:
        """One row a method."""
        if "corloc/tokencut" not in estimates:
            return []
        published = PUBLISHED.get(self.dataset, {})
        rows = []
        for method, title in METHODS.items():
            kinds = [
                cell(
                    estimates.get(f"corloc{kind}/{method}"),
                    percent=True,
                    signed=kind == "_gain",
                    control=kind in ("_other", "_random"),
                )
                for kind in ("", "_other", "_random", "_gain")
            ]
            control = Cell(f"{published[method]:.1f}" if published else "–", control=True)
            rows.append([Cell(title), *kinds, control])
        footer = [
            (label, cell(estimates[f"corloc/{name}"], percent=True))
            for name, label in _BASELINES.items()
        ]
        return [
            Table(
                "Object discovery: CorLoc, per cent",
                "Images whose one box has an IoU of at least 0.5 with an object. "
                f"tau {self.tau:g}, k {self.k}. Another image: the box on the next image. "
                "Published: DINO ViT-S/16, as the methods' code has it.",
                [
                    "method",
                    "CorLoc",
                    "another image",
                    "random weights",
                    "trained − random",
                    "DINO S/16, published",
                ],
                rows,
                footer,
            )
        ]


def _hits(boxes: np.ndarray, truths: Sequence[np.ndarray]) -> np.ndarray:
    """f64[images, k] in {0, 1} of boxes f64[images, k, 4]."""
    return np.array(
        [
            [float(box_iou(box, truth).max() >= 0.5) for box in own]
            for own, truth in zip(boxes, truths, strict=True)
        ]
    )
