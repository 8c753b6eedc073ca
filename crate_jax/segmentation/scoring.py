"""How well maps and masks fit objects: intersection over union, baselines and intervals.

The protocol is that of docs/protocols.md, section 3 (arXiv 2308.16271): patches kept by a rule are
brought to the image by nearest upsampling and compared with the object; **the best head is chosen
anew for every object** (every semantic class of every image), then IoU is averaged over the classes
of an image and over images. That grows with the number of heads, so the mean over heads, one head
for the whole set, and the baselines belong beside it: `emergence` has them all.

Conventions, everywhere in this file:

- IoU = |prediction and object| / |prediction or object|, counted in pixels.
- Void pixels (255 in VOC) leave both the intersection and the union.
- A prediction that misses an object wholly, or finds one where there is none, scores 0. Where
  both are empty the score is 1 (DINO's evaluation does the same). Images without any object are
  not part of the protocol: leave them out, as `emergence.Measured` does.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Float64, Integer, Shaped

from crate_jax.segmentation.attention import cell_of_pixel
from crate_jax.segmentation.average_precision import coco_ap

__all__ = [
    "bootstrap_interval",
    "centre_box",
    "class_counts",
    "coco_ap",
    "iou",
]


def iou(
    prediction: Bool[ArrayLike, "... height width"],
    target: Bool[ArrayLike, "... height width"],
    void: Bool[ArrayLike, "... height width"] | None = None,
) -> Float[Array, "..."]:
    """Intersection over union of masks at the same resolution.

    Args:
        prediction: bool[..., height, width].
        target: bool[..., height, width]; leading axes broadcast against the prediction's.
        void: bool[..., height, width], pixels that count for nothing; None for no such pixel.

    Returns:
        f32[...] in [0, 1]; 1 where both are empty.

    Raises:
        ValueError: the last two axes differ.
    """
    prediction, target = jnp.asarray(prediction, bool), jnp.asarray(target, bool)
    valid = jnp.ones((1, 1), bool) if void is None else ~jnp.asarray(void, bool)
    sizes = {a.shape[-2:] for a in (prediction, target)} | ({valid.shape[-2:]} - {(1, 1)})
    if len(sizes) > 1:
        raise ValueError(
            f"masks: expected one height and width, got {sorted(sizes)}; upsample first: "
            "attention.upsample(keep, grid, (height, width))"
        )
    prediction, target, valid = jnp.broadcast_arrays(prediction, target, valid)
    intersection = jnp.sum(prediction & target & valid, axis=(-2, -1))
    union = jnp.sum((prediction | target) & valid, axis=(-2, -1))
    return jnp.where(union == 0, 1.0, intersection / jnp.maximum(union, 1)).astype(jnp.float32)


def class_counts(
    labels: Integer[ArrayLike, "height width"], grid: tuple[int, int], *, void: int = 255
) -> tuple[Integer[np.ndarray, " k"], Float64[np.ndarray, "k n"]]:
    """How many pixels of each class of a label map lie in each cell of a grid.

    The transpose of nearest upsampling: for kept patches k, |upsample(k) and class| equals the sum
    of these counts over k, so IoU at image resolution needs no upsampled map. On the host: images
    of a data set differ in size.

    Args:
        labels: int[height, width], a semantic label map as in PASCAL VOC.
        grid: (rows, columns) that cover the image; they need not divide it.
        void: the label whose pixels count for nothing.

    Returns:
        (classes int[k], counts f64[k, rows * columns]), the background among the classes, in
        ascending order.

    Raises:
        ValueError: `labels` is not two-dimensional.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2:
        raise ValueError(f"labels: expected [height, width], got shape {labels.shape}")
    rows, columns = (cell_of_pixel(c, p) for c, p in zip(grid, labels.shape, strict=True))
    cell = (rows[:, None] * grid[1] + columns)[labels != void]
    present, code = np.unique(labels[labels != void], return_inverse=True)
    shape = len(present), grid[0] * grid[1]
    counts = np.bincount(code.ravel() * shape[1] + cell, minlength=shape[0] * shape[1])
    return present, counts.reshape(shape).astype(np.float64)


def centre_box(size: tuple[int, int], side: float = 0.5) -> Bool[np.ndarray, "height width"]:
    """A centred rectangle: the guess that photographers put objects in the middle.

    Args:
        size: (height, width) of the image.
        side: the box's share of each side, in [0, 1]. The default, half of both sides, covers a
            quarter of the image. Sides are rounded to whole pixels; an odd pixel of margin
            goes to the bottom and the right.

    Returns:
        bool[height, width].
    """
    if not 0 <= side <= 1:
        raise ValueError(f"side: expected a share of the image's sides in [0, 1], got {side}")
    inside = []
    for pixels in size:
        length = int(pixels * side + 0.5)
        start = (pixels - length) // 2
        inside.append((np.arange(pixels) >= start) & (np.arange(pixels) < start + length))
    return inside[0][:, None] & inside[1]


def bootstrap_interval(
    values: Shaped[ArrayLike, "*leading images"],
    *,
    seed: int = 0,
    samples: int = 10_000,
    level: float = 0.95,
) -> tuple[Float64[np.ndarray, "*leading"], Float64[np.ndarray, "*leading"]]:
    """Percentile bootstrap interval of a mean over images.

    Images are drawn with replacement, `samples` times, and the mean is taken of each draw; the
    interval holds the middle `level` of those means (Efron 1979, percentile method). All leading
    axes share the draws, and a seed fixes them.

    Args:
        values: f[..., images]. NaN anywhere in a row gives NaN for that row.
        seed: of NumPy's default generator.
        samples: number of draws.
        level: coverage, in (0, 1).

    Returns:
        (low, high), f64[...] each.

    Raises:
        ValueError: no image, no sample, or a level outside (0, 1).
    """
    values = np.asarray(values, np.float64)
    if values.ndim == 0 or values.shape[-1] == 0 or samples < 1 or not 0 < level < 1:
        raise ValueError(
            "values: expected [..., images] of at least one image, samples >= 1 and level in "
            f"(0, 1), got {values.shape}, {samples} and {level}"
        )
    images = values.shape[-1]
    rows = values.reshape(-1, images).T
    rng = np.random.default_rng(seed)
    # A draw is a row of counts, and counts @ values all its sums. In blocks of about 16 MB.
    block = max(1, 2_000_000 // images)
    means = []
    for start in range(0, samples, block):
        draws = min(block, samples - start)
        drawn = rng.integers(images, size=(draws, images)) + images * np.arange(draws)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=draws * images).reshape(draws, images)
        means.append(counts.astype(np.float64) @ rows / images)
    tail = 50 * (1 - level)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail], axis=0)
    return low.reshape(values.shape[:-1]), high.reshape(values.shape[:-1])
