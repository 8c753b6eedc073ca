"""Segmentation by the nearest patches of a memory, with nothing trained.

The protocol of Hummingbird (arXiv 2306.01667) as its public reimplementation has it
(open-hummingbird-eval 2.0): patches of a training split with the classes of their pixels are
remembered; a patch of another image takes the classes of the k most alike, weighted by
softmax(cosine / temperature); the map of classes is upsampled bilinearly and decided by pixel.
Search there is approximate; here it is exact, by blocks. docs/protocols.md section 9.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import ArrayLike, Float, Float32, Float64, Int, Integer
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from crate_jax.segmentation import attention
from crate_jax.segmentation.ncut import unit_rows

PAPER_K = 30
PAPER_TEMPERATURE = 0.02
VOID = 255

_BLOCK = 16_384  # entries of the memory in one product
_QUERIES = 1024  # patches in one product: its scores take 64 MiB


def patch_labels(
    labels: Integer[np.ndarray, "height width"],
    grid: tuple[int, int],
    classes: int,
    *,
    void: int = VOID,
) -> Float32[np.ndarray, "n classes"]:
    """The share of each class among the pixels of each patch; void counts as class 0.

    Args:
        labels: int[height, width] in [0, classes), or void.
        grid: (rows, columns) of patches that cover the image.
        classes: their number, the background among them.
        void: the label that becomes class 0, as the public code has it.

    Raises:
        ValueError: a label that is no class.
    """
    labels = np.where(labels == void, 0, labels).astype(np.int64)
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels: expected classes in [0, {classes}) or {void}, got {labels.min()} to "
            f"{labels.max()}"
        )
    rows, columns = (attention.cell_of_pixel(c, p) for c, p in zip(grid, labels.shape, strict=True))
    cell = rows[:, None] * grid[1] + columns
    shape = grid[0] * grid[1], classes
    counts = np.bincount((cell * classes + labels).ravel(), minlength=shape[0] * shape[1])
    counts = counts.reshape(shape)
    return (counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)


def choose(
    labels: Float[np.ndarray, "n classes"], count: int, uniform: Float[np.ndarray, " n"]
) -> Int[np.ndarray, " m"]:
    """Which patches of an image a bounded memory keeps: those of rare classes first.

    Each patch has the score (sum over its classes of the number of patches that hold the class)
    times a random number; the `count` smallest are kept, ascending.

    Args:
        labels: f[n, classes] from `patch_labels`.
        count: how many; all where the image has no more.
        uniform: f[n], random numbers in [0, 1).
    """
    holds = labels > 0
    score = (holds * holds.sum(axis=0)).sum(axis=1) * uniform
    return np.argsort(score, kind="stable")[:count]


class Memory:
    """Remembered patches, on one or several devices: `memory(features)` classifies others.

    The entries are divided among the devices; each finds the k nearest of its own by products of a
    block of the memory with the queries, and the best of all are taken. Equal products are
    taken in the order of the memory. Nothing larger than a block's products ever exists.

    Args:
        features: f[M, d], scaled to unit length here.
        labels: f[M, classes], shares of classes.
        k: neighbours; published 30.
        temperature: of the softmax; published 0.02.
        devices: None for all of JAX's.

    Attributes:
        bytes: what the memory and the products take on each device.

    Raises:
        ValueError: fewer than k entries, shapes that differ, values that are not finite.
    """

    def __init__(
        self,
        features: Float[ArrayLike, "m d"],
        labels: Float[ArrayLike, "m classes"],
        *,
        k: int = PAPER_K,
        temperature: float = PAPER_TEMPERATURE,
        devices: list[Any] | None = None,  # of JAX
    ):
        features = _finite(features)
        # A patch holds few of many classes: nothing is spent on the others.
        self._labels: Any = sparse.csr_array(np.asarray(labels, np.float32))
        self.k, self.temperature = k, temperature
        if len(features) != len(self):
            raise ValueError(
                f"memory: expected as many labels as features, got {len(self)} and {len(features)}"
            )
        if not 1 <= k <= len(features):
            raise ValueError(
                f"k: expected 1 to {len(features)}, the entries of the memory, got {k}; take "
                "more training images or fewer neighbours"
            )
        if not temperature > 0:
            raise ValueError(f"temperature: expected above 0, got {temperature}")
        devices = devices or jax.devices()
        self._block = min(_BLOCK, -(-len(features) // len(devices)))
        blocks = -(-len(features) // (self._block * len(devices))) * len(devices)
        padded = np.zeros((blocks * self._block, features.shape[1]), np.float32)
        padded[: len(features)] = unit_rows(features)
        self._mesh = Mesh(np.array(devices), ("memory",))
        sharding = NamedSharding(self._mesh, PartitionSpec("memory"))
        blocked = padded.reshape(blocks, self._block, -1)
        self._features = jax.device_put(blocked, sharding)
        self.bytes = padded.nbytes // len(devices) + 4 * _QUERIES * (self._block + 4 * k)

    def __len__(self) -> int:
        return self._labels.shape[0]

    def nearest(
        self, features: Float[ArrayLike, "q d"]
    ) -> tuple[Float32[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """The cosines of the k nearest entries, descending, and which they are."""
        queries, found = unit_rows(_finite(features)), []
        for start in range(0, len(queries), _QUERIES):
            part = queries[start : start + _QUERIES]
            rows = min(_QUERIES, len(queries))
            part = np.pad(part, ((0, rows - len(part)), (0, 0)))  # one shape, one program
            result = _nearest(self._features, part, len(self), self.k, self._mesh)
            found.append([array[: len(queries) - start] for array in jax.device_get(result)])
        cosines, entries = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return cosines, entries

    def __call__(self, features: Float[ArrayLike, "q d"]) -> Float32[np.ndarray, "q classes"]:
        """The shares of classes that the neighbours of each patch vote for."""
        cosines, entries = self.nearest(features)
        weights = np.exp((cosines - cosines[:, :1]) / self.temperature)
        weights /= weights.sum(axis=1, keepdims=True)
        starts = np.arange(0, weights.size + 1, self.k)
        votes: Any = sparse.csr_array(
            (weights.ravel(), entries.ravel(), starts), shape=(len(weights), len(self))
        )
        return (votes @ self._labels).toarray()


@partial(jax.jit, static_argnames=("count", "k", "mesh"))
def _nearest(blocks, queries, count, k, mesh):
    def of_device(blocks, queries):
        start = jax.lax.axis_index("memory") * blocks.shape[0] * blocks.shape[1]

        def step(best, block):
            (cosines, entries), (features, first) = best, block
            index = first + jnp.arange(len(features))
            new = jnp.matmul(queries, features.T, precision="highest")
            new = jnp.where(index < count, new, -jnp.inf)
            index = jnp.broadcast_to(index, new.shape)
            return _top(jnp.concatenate([cosines, new], 1), _join(entries, index), k), None

        none = (
            jnp.full((len(queries), k), -jnp.inf),
            jnp.zeros((len(queries), k), jnp.int32),
        )
        firsts = start + blocks.shape[1] * jnp.arange(len(blocks))
        (cosines, entries), _ = jax.lax.scan(step, none, (blocks, firsts))
        gather = partial(jax.lax.all_gather, axis_name="memory", axis=1, tiled=True)
        return _top(gather(cosines), gather(entries), k)

    split, whole = PartitionSpec("memory"), PartitionSpec()
    run = jax.shard_map(
        of_device, mesh=mesh, in_specs=(split, whole), out_specs=whole, check_vma=False
    )
    return run(blocks, queries)


def _join(entries, index):
    return jnp.concatenate([entries, index.astype(jnp.int32)], axis=1)


def _top(cosines, entries, k):
    cosines, place = jax.lax.top_k(cosines, k)
    return cosines, jnp.take_along_axis(entries, place, axis=1)


def decide(
    shares: Float[ArrayLike, "n classes"], grid: tuple[int, int], size: tuple[int, int]
) -> Int[np.ndarray, "height width"]:
    """Patches' shares of classes, upsampled bilinearly, to the largest class of each pixel.

    Only classes of which some patch has a share can win: of hundreds a few are upsampled, and their
    number is rounded up to a power of two, so that few programs are compiled.
    """
    shares = np.asarray(shares)
    present = np.flatnonzero(shares.any(axis=0))
    if not present.size:
        return np.zeros(size, np.int64)
    maps = np.zeros((1 << (len(present) - 1).bit_length(), len(shares)), np.float32)
    maps[: len(present)] = shares[:, present].T
    return present[np.asarray(_largest(maps, tuple(grid), tuple(size)))]


@partial(jax.jit, static_argnames=("grid", "size"))
def _largest(maps, grid, size):
    return jnp.argmax(attention.upsample(maps, grid, size, mode="bilinear"), axis=0)


def confusion(
    prediction: Integer[np.ndarray, "height width"],
    truth: Integer[np.ndarray, "height width"],
    classes: int,
    *,
    void: int = VOID,
) -> Int[np.ndarray, "classes classes"]:
    """Pixels by their true class (row) and the predicted one (column), void left out."""
    counted = truth != void
    code = truth[counted].astype(np.int64) * classes + prediction[counted]
    return np.bincount(code, minlength=classes**2).reshape(classes, classes)


def class_ious(counts: Integer[np.ndarray, "c c"]) -> Float64[np.ndarray, "c c"]:
    """IoU of each true class (row) with each predicted one (column); 0 where both are absent."""
    union = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0) - counts
    return counts / np.maximum(union, 1)


def miou(counts: Integer[np.ndarray, "c c"], *, matched: bool) -> float:
    """Mean IoU over all classes of a confusion matrix; a class that is absent counts as 0.

    Args:
        counts: from `confusion`, summed over the set.
        matched: predicted classes are first assigned to true ones so that the mean is highest
            (Hungarian method), as the published figures have it. The predictions are semantic
            already, so False, the plain mean, is the stricter figure.
    """
    assigned = assignment(counts, matched=matched)
    return float(class_ious(counts)[np.arange(len(counts)), assigned].mean())


def assignment(counts: Integer[np.ndarray, "c c"], *, matched: bool) -> Int[np.ndarray, " c"]:
    """Which predicted class each true one is compared with: its own, or as `miou` matches them."""
    if not matched:
        return np.arange(len(counts))
    return linear_sum_assignment(class_ious(counts), maximize=True)[1]


def _finite(features: ArrayLike) -> Float32[np.ndarray, "m d"]:
    features = np.asarray(features).astype(np.float32, copy=False)
    if features.ndim != 2 or not features.size:
        raise ValueError(f"features: expected [patches, channels], got shape {features.shape}")
    if bad := int((~np.isfinite(features).all(axis=1)).sum()):
        raise ValueError(
            f"features: expected finite numbers, got NaN or infinity in {bad} of {len(features)} "
            "patches; check the weights"
        )
    return features
