"""Saliency: how well a soft or hard mask fits the salient object, by both public codes.

The same words stand for different numbers in the two codes that papers compare by: TokenCut's, and
SelfMask's, which FOUND took over. Here each is measured under its own name, from one histogram of
the prediction's levels inside and outside of the object (docs/protocols.md section 8):

                     tokencut                         selfmask, found
    object           any nonzero pixel                selfmask: any nonzero; found: equal to 255
    IoU              of prediction > 0.5;             over union + 1e-7,
                     undefined where both are empty   so 0 where both are empty
    precision P      1 of an empty prediction         over its denominator + 1e-7, so 0
    recall R         1 of an empty object             likewise 0
    F                1.3 P R / (0.3 P + R)            1.09 P R / (0.09 P + R + 1e-7): squared twice
    max F            one threshold for the set        the best threshold of each image
    MAE              -                                selfmask: soft; found: of prediction > 0.5

Thresholds are i / 255, i = 0..254, and a pixel is foreground where it exceeds one. Predictions of
8 bits are compared as whole numbers: as fractions, a threshold meets its own grey level and the
last bit of the division decides. Fractions are compared as the codes do, TokenCut's in float64, the
others in float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped

from crate_jax.segmentation.emergence import Estimate, with_intervals

THRESHOLDS = np.arange(255) / 255
CODES = ("tokencut", "selfmask", "found")
_HARD = ("iou", "accuracy", "f_0.5")
_SOFT = ("mae", "f_adaptive", "s_measure")
VALUES = tuple(
    f"{code}/{name}" for code in CODES for name in (*_HARD, *(_SOFT if code != "tokencut" else ()))
)
"""Names of the values of an image, in this order."""

_BETA2 = {"tokencut": 0.3, "selfmask": 0.3**2, "found": 0.3**2}
_SMALL = 1e-7


@dataclass(frozen=True)
class Saliency:
    """What was measured of one image.

    Attributes:
        values: by name, `VALUES`: CODE/iou, CODE/accuracy, CODE/f_0.5; of selfmask and found also
            CODE/mae, CODE/f_adaptive and CODE/s_measure. tokencut/iou is NaN where both masks are
            empty.
        precision: f64[255] by code, at each of `THRESHOLDS`.
        recall: f64[255] by code.
        f: f64[255] by code.
    """

    values: Mapping[str, float]
    precision: Mapping[str, Float64[np.ndarray, "255"]]
    recall: Mapping[str, Float64[np.ndarray, "255"]]
    f: Mapping[str, Float64[np.ndarray, "255"]]


def measure(
    prediction: Shaped[np.ndarray, "height width"], truth: Shaped[np.ndarray, "height width"]
) -> Saliency:
    """All values of one image.

    Args:
        prediction: bool, uint8 (k stands for k / 255) or float in [0, 1]; [height, width].
        truth: bool or uint8[height, width], an 8-bit grey image, which may have soft edges.

    Raises:
        ValueError: other types, shapes that differ, or floats outside [0, 1].
    """
    prediction, truth = _checked(prediction, truth)
    hard, soft = _cut_and_soft(prediction)
    values, precision, recall, f = {}, {}, {}, {}
    for code in CODES:
        target = truth == 255 if code == "found" else truth > 0
        levels = _levels(prediction, code)
        hit, kept = (_above(levels[chosen]) for chosen in (target, slice(None)))
        precision[code], recall[code] = _precision_recall(code, hit, kept, target.sum())
        f[code] = f_beta(code, precision[code], recall[code])
        values |= {f"{code}/{n}": v for n, v in _hard(code, hard, target).items()}
        if code != "tokencut":
            error = np.abs((hard if code == "found" else soft) - target.astype(float)).mean()
            values[f"{code}/mae"] = float(error)
            adaptive = _precision_recall(
                code, *_counts(soft > 2 * soft.mean(), target), target.sum()
            )
            values[f"{code}/f_adaptive"] = float(f_beta(code, *adaptive))
            values[f"{code}/s_measure"] = s_measure(soft, target)
    return Saliency(values, precision, recall, f)


def f_beta(
    code: str, precision: Float[np.ndarray, "*t"] | float, recall: Float[np.ndarray, "*t"] | float
) -> Float[np.ndarray, "*t"]:
    """F of precision and recall as a code has it; 0 where both are 0."""
    beta2, small = _BETA2[code], 0 if code == "tokencut" else _SMALL
    below = beta2 * precision + recall + small
    return np.where(below > 0, (1 + beta2) * precision * recall / np.where(below > 0, below, 1), 0)


def s_measure(
    prediction: Float[np.ndarray, "height width"], target: Bool[np.ndarray, "height width"]
) -> float:
    """Structure measure (Fan et al., ICCV 2017), S = 0.5 So + 0.5 Sr, at least 0.

    So weighs how bright and even the prediction is on the object and beside it; Sr compares four
    blocks, cut at the object's centroid, by a structural similarity. Without any object 1 minus
    the prediction's mean, with nothing but the object its mean.
    """
    share = target.mean()
    if share in (0, 1):
        return float(prediction.mean() if share else 1 - prediction.mean())
    by_object = share * _evenness(prediction[target])
    by_object += (1 - share) * _evenness(1 - prediction[~target])
    return float(max(0.5 * by_object + 0.5 * _by_region(prediction, target.astype(float)), 0))


def estimates(
    images: Sequence[Saliency], *, samples: int = 10_000, seed: int = 0
) -> dict[str, Estimate]:
    """Means over images with 95 % bootstrap intervals, and max F both ways.

    Beside the names of `Saliency.values`, of each code:

        CODE/max_f_of_set     the highest mean over images of F at one threshold (TokenCut's)
        CODE/max_f_of_image   the mean over images of each one's highest F (SelfMask's, FOUND's)

    An image whose IoU is undefined is left out of that mean.

    Raises:
        ValueError: no image.
    """
    if not images:
        raise ValueError("saliency: expected at least one image, got none")
    rows = {name: np.array([i.values[name] for i in images]) for name in images[0].values}
    curves = {code: np.stack([image.f[code] for image in images]) for code in CODES}
    rows |= {f"{code}/max_f_of_image": curve.max(axis=1) for code, curve in curves.items()}
    rows = {name: row[~np.isnan(row)] for name, row in rows.items()}
    found = with_intervals(
        {name: row for name, row in rows.items() if row.size}, samples=samples, seed=seed
    )
    whole = np.concatenate(list(curves.values()), axis=1)
    drawn = _highest_of_draws(whole, len(curves), samples, seed)
    for place, (code, curve) in enumerate(curves.items()):
        low, high = np.percentile(drawn[:, place], [2.5, 97.5])
        best = float(curve.mean(axis=0).max())
        found[f"{code}/max_f_of_set"] = Estimate(best, float(low), float(high))
    return found


def _highest_of_draws(curves: np.ndarray, kinds: int, samples: int, seed: int) -> np.ndarray:
    """f64[samples, kinds]: the highest mean of curves f64[images, kinds * 255] of each draw."""
    rng, images = np.random.default_rng(seed), len(curves)
    block, highest = max(1, 2_000_000 // images), []  # draws of about 16 MB
    for start in range(0, samples, block):
        draws = min(block, samples - start)
        counts = rng.multinomial(images, np.full(images, 1 / images), size=draws)
        means = counts.astype(np.float64) @ curves / images
        highest.append(means.reshape(draws, kinds, -1).max(axis=-1))
    return np.concatenate(highest)


def _checked(prediction, truth) -> tuple[np.ndarray, np.ndarray]:
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.ndim != 2 or prediction.shape != truth.shape or not prediction.size:
        raise ValueError(
            "saliency: expected a prediction and a truth of one [height, width], got "
            f"{prediction.shape} and {truth.shape}; score at the image's own size"
        )
    if truth.dtype != np.uint8 and truth.dtype != bool:
        raise ValueError(f"truth: expected bool or uint8, got {truth.dtype}")
    if prediction.dtype == bool or prediction.dtype == np.uint8:
        pass
    elif (
        not np.issubdtype(prediction.dtype, np.floating)
        or not ((prediction >= 0) & (prediction <= 1)).all()
    ):
        raise ValueError(
            "prediction: expected bool, uint8, or floats in [0, 1], got "
            f"{prediction.dtype} outside of it; scale the map first"
        )
    prediction, truth = (
        array.astype(np.uint8) * 255 if array.dtype == bool else array
        for array in (prediction, truth)
    )
    return prediction, truth


def _cut_and_soft(prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each pixel exceeds 0.5, and its value in [0, 1]."""
    if prediction.dtype == np.uint8:
        return prediction > 127, prediction / 255
    soft = prediction.astype(np.float64)
    return soft > 0.5, soft


def _levels(prediction: np.ndarray, code: str) -> np.ndarray:
    """How many thresholds each pixel exceeds; fractions in the code's own precision."""
    if prediction.dtype == np.uint8:
        return prediction.astype(np.int64)
    precision = np.float64 if code == "tokencut" else np.float32
    return np.searchsorted(THRESHOLDS.astype(precision), prediction.astype(precision), side="left")


def _above(levels: Int[np.ndarray, "..."]) -> Int[np.ndarray, "255"]:
    """How many pixels exceed each threshold."""
    histogram = np.bincount(levels.ravel(), minlength=256)
    return histogram[::-1].cumsum()[::-1][1:]


def _counts(kept: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    return int(np.sum(kept & target)), int(np.sum(kept))


def _precision_recall(code: str, hit, kept, positives):
    """Of counts: pixels that are kept and the object's, kept, and the object's."""
    if code == "tokencut":
        precision = np.where(kept > 0, hit / np.maximum(kept, 1), 1.0)
        return precision, np.where(positives > 0, hit / np.maximum(positives, 1), 1.0)
    return hit / (kept + _SMALL), hit / (positives + _SMALL)


def _hard(code: str, hard: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Values of the prediction cut at 0.5."""
    (hit, kept), positives = _counts(hard, target), target.sum()
    union = kept + positives - hit
    if code != "tokencut":
        iou = hit / (union + _SMALL)
    else:
        iou = hit / union if union else np.nan
    f = f_beta(code, *_precision_recall(code, hit, kept, positives))
    return {"iou": float(iou), "accuracy": float(np.mean(hard == target)), "f_0.5": float(f)}


def _evenness(values: np.ndarray) -> float:
    spread = values.std(ddof=1) if values.size > 1 else 0.0
    return 2 * values.mean() / (values.mean() ** 2 + 1 + spread)


def _by_region(prediction: np.ndarray, target: np.ndarray) -> float:
    rows, columns = (
        int(np.round((target.sum(axis=1 - axis) * np.arange(target.shape[axis])).sum() / total))
        for axis, total in ((0, target.sum()), (1, target.sum()))
    )
    blocks = [
        (slice(*vertical), slice(*horizontal))
        for vertical in ((None, rows), (rows, None))
        for horizontal in ((None, columns), (columns, None))
    ]
    return sum(
        target[block].size / target.size * _similarity(prediction[block], target[block])
        for block in blocks
        if target[block].size
    )


def _similarity(prediction: np.ndarray, target: np.ndarray) -> float:
    """4 x y c / ((x^2 + y^2)(vx + vy)) of means, variances and covariance; 1 of 0 / 0, else 0."""
    x, y, n = prediction.mean(), target.mean(), max(prediction.size - 1, 1)
    variances = (((prediction - x) ** 2).sum() + ((target - y) ** 2).sum()) / n
    above = 4 * x * y * ((prediction - x) * (target - y)).sum() / n
    below = (x**2 + y**2) * variances
    if above:
        return above / (below + np.finfo(float).tiny)
    return float(below == 0)
