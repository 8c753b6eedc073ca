"""Maps against objects: every measure of `emergence`, from counts of pixels in patches."""

import numpy as np
from jaxtyping import Float

from crate_jax.segmentation import attention


class Maps:
    """Maps f32[b, layers, heads, n] of images in order, with what all objects need of them."""

    def __init__(self, values: Float[np.ndarray, "b layers heads n"], keep: float):
        values = np.asarray(values, np.float32)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=(0, 2, 3)))
        if bad.size:
            raise FloatingPointError(
                f"[CLS] attention: expected finite maps, got NaN or infinity in {bad.size} of "
                f"{values.shape[1]} layers; check the weights"
            )
        patches = values.shape[-1]
        # From the lowest to the highest; of equal ones the later counts as higher, for the rules.
        self.order = np.argsort(values, axis=-1, kind="stable")
        ordered = np.take_along_axis(values, self.order, axis=-1)
        place, first = np.arange(patches), np.ones(ordered.shape, bool)
        first[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
        # For each place in that order the first place with the same value.
        self.group = np.maximum.accumulate(np.where(first, place, 0), axis=-1)
        kept = attention.kept_counts(ordered, keep)
        self.dropped = [patches - kept[rule][..., None] for rule in attention.RULES]


def measure(maps: Maps, images: np.ndarray, counts: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """f64[measures, k, layers, heads] of k objects f64[k, n], each against the maps of an image.

    Args:
        maps: of the images.
        images: int[k], which image's maps.
        counts: f64[k, n].
        valid: f64[k, n], of each object's image.
    """
    order, group = maps.order[images], maps.group[images]
    rows = np.arange(len(images)).reshape(-1, 1, 1, 1)
    positive, every = counts[rows, order], valid[rows, order]
    positives, pixels = (x.sum(axis=-1)[:, None, None] for x in (counts, valid))
    # Sums over the places before each, and over those of a lower value.
    positive_sum, every_sum = _sums_before(positive), _sums_before(every)
    positive_below = np.take_along_axis(positive_sum, group, axis=-1)
    every_below = np.take_along_axis(every_sum, group, axis=-1)

    iou = []
    for dropped in maps.dropped:
        below = [np.take_along_axis(s, dropped[images], axis=-1) for s in (positive_sum, every_sum)]
        inside, kept = (
            total - s[..., 0] for total, s in zip((positives, pixels), below, strict=True)
        )
        iou.append(inside / (kept + positives - inside))

    # Pairs that the map orders rightly, and wrongly; the others are ties, which count 1/2.
    right = (positive * (every_below - positive_below)).sum(-1)
    wrong = ((every - positive) * positive_below).sum(-1)
    auroc = 0.5 + (right - wrong) / (2 * np.maximum(positives * (pixels - positives), 1))

    found = positives[..., None] - positive_below  # with this value or a higher one
    precision = found / np.maximum(pixels[..., None] - every_below, 1)
    ap = (positive * precision).sum(-1) / positives

    hit = (2 * positive[..., -1] >= every[..., -1]) & (positive[..., -1] > 0)
    return np.stack([*iou, auroc, ap, hit])


def _sums_before(values: np.ndarray) -> np.ndarray:
    """f64[..., n + 1]: the sum of the first 0, 1, ..., n values."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
    np.cumsum(values, axis=-1, out=sums[..., 1:])
    return sums
