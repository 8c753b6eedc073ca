"""`score --task=knn`: segmentation by the nearest patches of a training split."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from crate_jax import inference
from crate_jax.data import images
from crate_jax.export.tables import Cell, Table, cell
from crate_jax.progress import Progress
from crate_jax.score.tasks import Columns, Example, OfWeights, Row, check_finite
from crate_jax.segmentation import attention, patch_knn
from crate_jax.segmentation.emergence import Estimate

PAPER_MEMORY = 1024 * 100
SCENES_MEMORY = 1024 * 10  # published too; the search is most of the work, and scenes are small
_NAMES = ("miou_identity", "miou_matched")


class PatchKNN(OfWeights):
    """Patches of the training split are remembered, those of the others take their classes.

    Protocol (docs/protocols.md section 9): square input, features of the last layer behind the
    network's final norm, k = 30, temperature 0.02, scored at the input's size with void left out.
    Without the public code's augmentation of the memory, and by exact search.

    Args:
        network: from `inference.load`.
        data: with `classes`, `labels`, and `memory`: names, `read_memory` and `labels_of_memory`.
        size: (height, width) of the network's input.
        batch_size: images at once.
        entries: most patches that are remembered; rare classes first.
        k: neighbours.
        temperature: of the vote.
        say: prints a line.
        **draws: see `Task`; the seed is of the choice of patches too.

    Raises:
        ValueError: the memory cannot hold `k` patches.
    """

    name = "knn"
    headline: ClassVar[Mapping[str, str]] = {"knn/miou_identity": "k-NN mIoU"}

    def __init__(
        self,
        network: inference.Network,
        data: Any,
        size: tuple[int, int],
        batch_size: int,
        *,
        entries: int = PAPER_MEMORY,
        k: int = patch_knn.PAPER_K,
        temperature: float = patch_knn.PAPER_TEMPERATURE,
        say: Callable[[str], None] = print,
        **draws: int,
    ):
        super().__init__(**draws)
        self.data, self.size, self.batch_size, self.say = data, size, batch_size, say
        self.entries, self.k, self.temperature = entries, k, temperature
        self.grid = inference.grid_of(network.config, size)
        self._each = max(entries // len(data.memory), 1)  # most patches of an image
        most = len(data.memory) * min(self._each, self.grid[0] * self.grid[1])
        if k > most:
            raise ValueError(
                f"knn: expected at most {most} neighbours, the patches that {len(data.memory)} "
                f"images leave in the memory, got {k}; take fewer, or a larger memory"
            )
        run = inference.normalised_patches(network)
        self._run = inference.Batches(network, run, batch_size, size)
        self.programs = (self._run,)
        self._memory: tuple[Any, patch_knn.Memory] | None = None
        self.settings = {
            "memory_images": len(data.memory),
            "memory_entries": entries,
            "k": k,
            "temperature": temperature,
            "augmentation": "none",
            "search": "exact",
        }

    def __call__(self, examples: Sequence[Example], params: Any) -> list[Row]:
        """Of each image at the input's size: its classes, and the pixels of each by prediction.

        knn/truths int32[most], -1 behind the last, and knn/confusion int32[most, classes].
        """
        memory, rows = self._remembered(params), []
        pixels = [example.pixels for example in examples]
        for example, features in zip(examples, self._patches(pixels, params), strict=True):
            check_finite(example, features)
            truth = _nearest(self.data.labels(example.name), self.size)
            prediction = patch_knn.decide(memory(features), self.grid, self.size)
            counts = patch_knn.confusion(prediction, truth, self.data.classes, void=self.data.void)
            rows.append(_compact(counts, self.data.most_labels))
        return rows

    def _patches(self, pixels: Sequence[np.ndarray], params: Any) -> np.ndarray:
        batch = np.zeros(self._run.shape, np.uint8)
        batch[: len(pixels)] = pixels
        return jax.device_get(self._run(batch, params))[: len(pixels)]

    def _remembered(self, params: Any) -> patch_knn.Memory:
        """The memory of these weights, made when it is first asked for."""
        if self._memory is not None and self._memory[0] is params:
            return self._memory[1]
        names, features, labels = list(self.data.memory), [], []
        progress = Progress("memory", len(names), self.say)
        for start in range(0, len(names), self.batch_size):
            part = names[start : start + self.batch_size]
            read = [self.data.read_memory(name) for name in part]
            inputs = [images.resize(picture, self.size) for picture in read]
            found = self._patches(inputs, params)
            for place, name in enumerate(part):
                truth = _nearest(self.data.labels_of_memory(name), self.size)
                shares = patch_knn.patch_labels(
                    truth, self.grid, self.data.classes, void=self.data.void
                )
                uniform = np.random.default_rng((self.seed, start + place)).random(len(shares))
                chosen = patch_knn.choose(shares, self._each, uniform)
                features.append(found[place][chosen])
                labels.append(shares[chosen])
            progress.add(len(part))
        memory = patch_knn.Memory(
            np.concatenate(features),
            np.concatenate(labels),
            k=self.k,
            temperature=self.temperature,
        )
        self.say(
            f"memory    {len(memory)} patches of {len(names)} images, "
            f"{memory.bytes / 2**20:.0f} MiB on each device"
        )
        self._memory = params, memory
        return memory

    def scores(self, stem: str, columns: Columns) -> dict[str, Estimate]:
        """knn/miou_identity, knn/miou_matched, and knn_random/.

        Bayesian bootstrap over images (Rubin 1981): a draw weighs each by a flat Dirichlet, so that
        no class vanishes from it. Drawn with repetition, a class of few images is missing in a
        third of the draws and more, and counts as 0 there. The IoU of a class of one image is a
        concave function of its weight, so that draws still lie below the value: they are moved to
        have it as their mean. A draw keeps the assignment of all images, since one of its own would
        raise its mean.
        """
        found = {}
        truths, rows = (np.array(columns[f"knn/{name}"]) for name in ("truths", "confusion"))
        whole = np.zeros((self.data.classes,) * 2, np.int64)
        np.add.at(whole, truths[truths >= 0], rows[truths >= 0])
        for matched, name in enumerate(_NAMES):
            assigned = patch_knn.assignment(whole, matched=bool(matched))
            counts = _of_classes(truths, rows, assigned)
            rng, images = np.random.default_rng(self.seed), len(counts)
            shares = rng.dirichlet(np.ones(images), size=self.samples)
            value = patch_knn.miou(whole, matched=bool(matched))
            draws = _miou(np.tensordot(shares, counts, 1))
            ends = np.percentile(value + draws - draws.mean(), [2.5, 97.5])
            found[f"{stem}/{name}"] = Estimate(value, *map(float, ends))
        return found

    def tables(self, estimates: Mapping[str, Estimate]) -> list[Table]:
        """Trained and random weights."""
        rows = []
        for kind, title in (("", "trained"), ("_random", "random weights")):
            if f"knn{kind}/miou_identity" in estimates:
                cells = [
                    cell(estimates[f"knn{kind}/{n}"], percent=True, control=bool(kind))
                    for n in _NAMES
                ]
                rows.append([Cell(title), *cells])
        return [
            Table(
                "Patch k-NN segmentation: mIoU, per cent",
                f"k {self.k}, temperature {self.temperature:g}, at most {self.entries} patches of "
                f"{len(self.data.memory)} training images. Matched: predicted classes assigned to "
                "true ones for the highest mean, as published; identity: as they are.",
                ["weights", "mIoU, identity", "mIoU, matched"],
                rows,
            )
        ]


def _compact(counts: np.ndarray, most: int) -> Row:
    """A confusion matrix by the rows that are not empty: among many classes few are in an image."""
    present = np.flatnonzero(counts.any(axis=1))
    truths = np.full(most, -1, np.int32)
    truths[: len(present)] = present
    rows = np.zeros((most, counts.shape[1]), np.int32)
    rows[: len(present)] = counts[present]
    return {"knn/truths": truths, "knn/confusion": rows}


def _of_classes(truths: np.ndarray, rows: np.ndarray, assigned: np.ndarray) -> np.ndarray:
    """f64[images, 3, classes]: pixels of both, the true, and the predicted class assigned to it."""
    counts = np.zeros((len(rows), 3, rows.shape[-1]))
    image, place = np.nonzero(truths >= 0)
    true = truths[image, place]
    counts[image, 0, true] = rows[image, place, assigned[true]]
    counts[image, 1, true] = rows[image, place].sum(axis=-1)
    counts[:, 2] = rows.sum(axis=1)[:, assigned]
    return counts


def _miou(counts: np.ndarray) -> np.ndarray:
    """f64[draws, 3, classes] -> f64[draws]."""
    both, true, predicted = np.moveaxis(counts, 1, 0)
    union = true + predicted - both
    return (both / np.where(union > 0, union, 1)).mean(axis=-1)


def _nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map at another size, each pixel the label that its centre lies in."""
    if labels.shape == tuple(size):
        return labels
    rows, columns = (attention.cell_of_pixel(c, p) for c, p in zip(labels.shape, size, strict=True))
    return labels[rows][:, columns]
