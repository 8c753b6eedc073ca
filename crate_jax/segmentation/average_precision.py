"""Class-agnostic average precision as COCO counts it, for boxes and for masks.

The counting is pycocotools' own; this file prepares what it reads. docs/protocols.md section 4:
all ground truth is one class, a mask's box is its tight box, and every mask has score 1.
"""

import contextlib
import copy
import io
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from crate_jax.segmentation import run_lengths

_STATS = {"AP": 0, "AP50": 1, "AP75": 2, "AR100": 8}


def coco_ap(
    ground_truth: Mapping[str, Any],
    predictions: list[dict],
    *,
    keep_scores: bool = False,
    samples: int = 0,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, float]:
    """COCO's AP of predicted masks against annotated objects, regardless of class.

    Scores are all set to 1, as the published protocol does. Precision then depends on the order of
    the predictions: pycocotools sorts stably, so it is images by id, and within an image the
    order of `predictions`; only the first 100 of an image count. Boxes are the tight boxes of the
    masks; given boxes are not read. Crowd annotations are ignored as COCO does.

    Args:
        ground_truth: a COCO dictionary with `images` (id, height, width) and `annotations`
            (image_id, segmentation as polygons or run-length code; bbox and area, by default
            those of the segmentation; iscrowd). Not changed.
        predictions: COCO results: image_id and a `segmentation` each, of either kind.
        keep_scores: use the predictions' `score` in place of 1.
        samples: number of bootstrap draws over images for intervals of AP, AP50 and AP75;
            0 for none. 1,000 draws of 5,000 images take some seconds.
        seed: of the draws.
        level: coverage of the intervals.

    Returns:
        {"box/AP", "box/AP50", "box/AP75", "box/AR100", "mask/AP", ...} in [0, 1], and with
        `samples` also "<name>/low" and "<name>/high". AP is the mean over IoU .50, .55, ... .95.
        NaN where there is no annotated object that counts.

    Raises:
        ValueError: a prediction that is no COCO result, or of an image that the ground truth does
            not hold; an image without id, height and width; a segmentation that is none
            (`run_lengths.checked`).
    """
    one_class, sizes = checked_truth(ground_truth)
    try:
        unknown = sorted({p["image_id"] for p in predictions} - set(sizes), key=str)
        scores = [float(p["score"]) if keep_scores else 1.0 for p in predictions]
    except (KeyError, TypeError, ValueError) as error:
        wanted = "an image_id and a score" if keep_scores else "an image_id"
        raise ValueError(
            f"predictions: expected COCO results, each an object with {wanted}, got one that "
            f"gives {type(error).__name__}: {error}"
        ) from error
    if unknown:
        raise ValueError(
            f"predictions: expected those of the {len(sizes)} annotated images, got {len(unknown)} "
            f"other image ids, the first {unknown[0]!r}; use the data set's own image ids"
        )
    truth: Any = COCO()  # its stubs know files on disk only
    truth.dataset = one_class
    scored = [
        {
            "image_id": p["image_id"],
            "category_id": 1,
            "segmentation": _segmentation(p, sizes, f"prediction {number}"),
            "score": score,
        }
        for number, (p, score) in enumerate(zip(predictions, scores, strict=True))
    ]
    result: dict[str, float] = {}
    kinds: tuple[tuple[str, Literal["bbox", "segm"]], ...] = (("box", "bbox"), ("mask", "segm"))
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth.createIndex()
        found = truth.loadRes(scored) if scored else _without_predictions(truth)
        for kind, iou_type in kinds:
            evaluation = COCOeval(truth, found, iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for name, index in _STATS.items():
                # pycocotools says -1 where nothing could be measured.
                value = float(evaluation.stats[index])
                result[f"{kind}/{name}"] = value if value >= 0 else float("nan")
            if samples:
                intervals = _bootstrap(evaluation, samples, seed, level)
                result |= {f"{kind}/{name}": value for name, value in intervals.items()}
    return result


def checked_truth(ground_truth: Mapping[str, Any]) -> tuple[dict, dict]:
    """A COCO dictionary with one class, as pycocotools reads it, and (height, width) by image id.

    Raises:
        ValueError: as `coco_ap`, of the ground truth; names the annotation.
    """
    try:
        sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"ground truth: expected images with id, height and width, got one without {error}"
        ) from error
    annotations = []
    # Numbered from 1: pycocotools takes a match with an annotation of id 0 for no match.
    for number, given in enumerate(ground_truth["annotations"], start=1):
        _check_fields(given, sizes, number)
        code = _segmentation(given, sizes, f"annotation {given.get('id')}")
        derived = {"bbox": rle.toBbox(code).tolist(), "area": float(rle.area(code)), "iscrowd": 0}
        read = {name: given[name] for name in ("image_id", *_FIELDS) if name in given}
        replaced = {"segmentation": code, "id": number, "category_id": 1}
        annotations.append(derived | read | replaced)
    one_class = {
        "info": {},
        "images": copy.deepcopy(ground_truth["images"]),
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    return one_class, sizes


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


_FIELDS = {
    "bbox": ("four numbers", lambda box: len(box) == 4 and all(abs(x) < math.inf for x in box)),
    "area": ("a number of at least 0", _is_length),
    "iscrowd": ("0 or 1", lambda value: value in (0, 1)),
}


def _check_fields(given: Any, sizes: dict, number: int) -> None:
    """Raises ValueError for what pycocotools would fail at, hours later."""
    try:
        image, name = given.get("image_id"), f"annotation {given.get('id')}"
        known = image in sizes
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"annotation {number} in order: expected an object with an image_id, got "
            f"{str(given)[:80]}"
        ) from error
    if not known:
        raise ValueError(f"{name}: expected one of the {len(sizes)} image ids, got {image!r}")
    for field, (expected, holds) in _FIELDS.items():
        try:
            sound = field not in given or holds(given[field])
        except TypeError:
            sound = False
        if not sound:
            raise ValueError(
                f"{name}: {field}: expected {expected}, got {str(given[field])[:80]}; correct the "
                "annotation, or leave it out"
            )


def _segmentation(holder: dict, sizes: dict, name: str) -> Any:
    """The run-length code of a prediction or an annotation."""
    image = holder["image_id"]
    what = f"{name}, of image {image!r}: segmentation"
    return run_lengths.checked(holder.get("segmentation"), sizes[image], what)


def _without_predictions(truth):
    """`COCO.loadRes` fails on an empty list; an index over no annotations does not."""
    found = COCO()
    found.dataset = truth.dataset | {"annotations": []}
    found.createIndex()
    return found


def _bootstrap(evaluation, samples: int, seed: int, level: float) -> dict[str, float]:
    """Percentile intervals of AP, AP50 and AP75 over images drawn with replacement.

    Reads the matches that pycocotools found for each image (area range "all") and counts them as
    often as the image was drawn, so matching is done once. A test holds `_precision` of every
    image drawn once against pycocotools' own accumulation.
    """
    evaluated = evaluation.evalImgs[: len(evaluation.params.imgIds)]
    matches = _Matches(evaluated, len(evaluation.params.iouThrs))
    rng = np.random.default_rng(seed)
    draws = np.empty((samples, len(evaluation.params.iouThrs)))
    for sample in range(samples):
        times = np.bincount(
            rng.integers(len(evaluated), size=len(evaluated)), minlength=len(evaluated)
        )
        draws[sample] = matches.precision(times, evaluation.params.recThrs)
    tail = 50 * (1 - level)
    result = {}
    for name, drawn in (("AP", draws.mean(1)), ("AP50", draws[:, 0]), ("AP75", draws[:, 5])):
        # A draw without any annotated object has no AP.
        measured = drawn[~np.isnan(drawn)]
        ends = np.percentile(measured, [tail, 100 - tail]) if measured.size else [np.nan] * 2
        result |= {f"{name}/low": float(ends[0]), f"{name}/high": float(ends[1])}
    return result


class _Matches:
    """The matches of all images in the order in which precision counts them."""

    def __init__(self, evaluated: list[dict | None], thresholds: int):
        present = [(i, e) for i, e in enumerate(evaluated) if e is not None]
        self.objects = np.zeros(len(evaluated), int)
        for i, e in present:
            self.objects[i] = np.sum(np.asarray(e["gtIgnore"]) == 0)
        scores = np.concatenate([np.asarray(e["dtScores"], float) for _, e in present] or [[]])
        order = np.argsort(-scores, kind="stable")

        def gathered(name):
            rows = [np.asarray(e[name], bool).reshape(thresholds, -1) for _, e in present]
            return np.concatenate([*rows, np.zeros((thresholds, 0), bool)], axis=1)[:, order]

        matched, ignored = gathered("dtMatches"), gathered("dtIgnore")
        self.true, self.false = matched & ~ignored, ~matched & ~ignored
        counts = [len(e["dtScores"]) for _, e in present]
        self.image = np.repeat([i for i, _ in present], counts).astype(int)[order]
        # Detections of one image that follow each other, all of one score, are a block.
        scores = scores[order]
        edge = (np.diff(self.image) != 0) | (np.diff(scores) != 0)
        starts = np.flatnonzero(edge) + 1
        self.start = np.concatenate([[0], starts]).astype(int)[: max(1, len(scores))]
        self.length = np.diff([*self.start, len(scores)])

    def drawn(self, times: np.ndarray) -> np.ndarray:
        """Places of the detections where image i is there times[i] times.

        An image's copies follow each other whole, as images that pycocotools would number anew: of
        two detections of one score d1 d2 d1 d2, not d1 d1 d2 d2.
        """
        if not self.image.size:
            return np.zeros(0, int)
        lengths = self.length * times[self.image[self.start]]
        first = np.repeat(np.cumsum(lengths) - lengths, lengths)
        within = (np.arange(lengths.sum()) - first) % np.repeat(self.length, lengths)
        return np.repeat(self.start, lengths) + within

    def precision(self, times: np.ndarray, recalls: np.ndarray) -> np.ndarray:
        """Average precision at each IoU threshold, image i counted times[i] times."""
        objects = int(self.objects @ times)
        if objects == 0:
            return np.full(len(self.true), np.nan)
        index = self.drawn(times)
        true, false = (np.cumsum(a[:, index], axis=1) for a in (self.true, self.false))
        precision = true / np.maximum(true + false, 1)
        # The envelope: precision at a recall is the best at that recall or beyond.
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.concatenate([precision, np.zeros((len(precision), 1))], axis=1)
        return np.array(
            [
                row[np.searchsorted(recall, recalls, side="left")].mean()
                for row, recall in zip(padded, true / objects, strict=True)
            ]
        )
