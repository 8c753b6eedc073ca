"""`score --task=knn`: segmentation by the nearest patches of a training split."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from crate_jax import inference
from crate_jax.data import images
from crate_jax.export.tables import Cell, Table, cell
from crate_jax.score.tasks import Columns, Example, Row, check_finite
from crate_jax.segmentation import attention, patch_knn
from crate_jax.segmentation.emergence import Estimate

PAPER_MEMORY = 1024 * 100
_NAMES = ("miou_identity", "miou_matched")


class PatchKNN:
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
        samples: bootstrap draws.
        seed: of the draws and of the choice of patches.
        say: prints a line.
    """

    name = "knn"
    headline: Mapping[str, str] = {"knn/miou_identity": "k-NN mIoU"}

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
        samples: int = 1_000,
        seed: int = 0,
        say: Callable[[str], None] = print,
    ):
        self.data, self.size, self.batch_size, self.say = data, size, batch_size, say
        self.entries, self.k, self.temperature = entries, k, temperature
        self.samples, self.seed = samples, seed
        self.grid = inference.grid_of(network.config, size)
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
        """knn/confusion int32[classes, classes] of each image at the input's size."""
        memory, rows = self._remembered(params), []
        pixels = [example.pixels for example in examples]
        for example, features in zip(examples, self._patches(pixels, params), strict=True):
            check_finite(example, features)
            truth = _nearest(self.data.labels(example.name), self.size)
            prediction = patch_knn.decide(memory(features), self.grid, self.size)
            counts = patch_knn.confusion(prediction, truth, self.data.classes)
            rows.append({"knn/confusion": counts.astype(np.int32)})
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
        each = max(self.entries // len(names), 1)
        progress = inference.Progress("memory", len(names), self.say)
        for start in range(0, len(names), self.batch_size):
            part = names[start : start + self.batch_size]
            read = [self.data.read_memory(name) for name in part]
            inputs = [images.resize(picture, self.size) for picture in read]
            found = self._patches(inputs, params)
            for place, name in enumerate(part):
                truth = _nearest(self.data.labels_of_memory(name), self.size)
                shares = patch_knn.patch_labels(truth, self.grid, self.data.classes)
                uniform = np.random.default_rng((self.seed, start + place)).random(len(shares))
                chosen = patch_knn.choose(shares, each, uniform)
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

    def estimates(
        self, used: Sequence[str], columns: Columns, random: Columns | None
    ) -> dict[str, Estimate]:
        """knn/miou_identity, knn/miou_matched, and knn_random/; bootstrap over images."""
        found = {}
        for kind, values in (("", columns), ("_random", random)):
            if values is None:
                continue
            counts = np.array(values["knn/confusion"], np.int64)
            rng, images = np.random.default_rng(self.seed), len(counts)
            drawn = []
            for _ in range(self.samples):
                times = rng.multinomial(images, np.full(images, 1 / images))
                drawn.append(_both(np.einsum("i,icd->cd", times, counts)))
            ends = np.percentile(drawn, [2.5, 97.5], axis=0)
            for place, value in enumerate(_both(counts.sum(axis=0))):
                low, high = map(float, ends[:, place])
                found[f"knn{kind}/{_NAMES[place]}"] = Estimate(value, low, high)
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


def _both(counts: np.ndarray) -> list[float]:
    return [patch_knn.miou(counts, matched=matched) for matched in (False, True)]


def _nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map at another size, each pixel the label that its centre lies in."""
    if labels.shape == tuple(size):
        return labels
    rows, columns = (attention.cell_of_pixel(c, p) for c, p in zip(labels.shape, size, strict=True))
    return labels[rows][:, columns]
