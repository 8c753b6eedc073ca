"""One pass of a network over a dataset: attention against label maps, masks against instances."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from crate_jax import inference
from crate_jax.data import images
from crate_jax.export import coco
from crate_jax.files import read, write_atomically
from crate_jax.progress import Progress
from crate_jax.score.datasets import Dataset, Unusable
from crate_jax.score.measurements import Measurements
from crate_jax.score.tasks import Example, Task
from crate_jax.segment import methods
from crate_jax.segmentation import emergence, noise
from crate_jax.store import Store

_TOGETHER = 16  # batches in a file: each holds a whole image's maps, for the next one's control


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How to score; every field is recorded with the scores.

    Attributes:
        size: (height, width) of the network's input.
        attention_layers: indices whose [CLS] attention is scored; empty for none.
        mask_layers: indices whose features MaskCut cuts; empty for none.
        keep: part of mass and of area that the two rules keep.
        taus: MaskCut's thresholds.
        max_masks: MaskCut's N.
        features: "subspace" or "tokens".
        corrected: MaskCut without the published quirks.
        crf: refine masks by the dense CRF.
        batch_size: images at once.
    """

    size: tuple[int, int]
    attention_layers: tuple[int, ...]
    mask_layers: tuple[int, ...]
    keep: float = 0.6
    taus: tuple[float, ...] = (0.15,)
    max_masks: int = 3
    features: str = "subspace"
    corrected: bool = False
    crf: bool = False
    batch_size: int = 4

    def nothing(self) -> Measurements:
        """Measurements by this protocol of no image yet."""
        return Measurements(emergence.Measured(self.keep, self.attention_layers))


@dataclasses.dataclass(frozen=True)
class _Failure:
    name: str
    reason: str


class Measurer:
    """The compiled programs of a network and a protocol, for passes with several weights.

    Args:
        network: from `inference.load`.
        data: what to score on.
        protocol: how.
        tasks: what to measure beside [CLS] attention and MaskCut.
        stop_at_failure: an unusable image is an error, else it is left out and counted.
        say: prints a line.
    """

    def __init__(
        self,
        network: inference.Network,
        data: Dataset,
        protocol: Protocol,
        tasks: Sequence[Task] = (),
        *,
        stop_at_failure: bool = False,
        say: Callable[[str], None] = print,
    ):
        self.network, self.data, self.protocol, self.say = network, data, protocol, say
        self.stop_at_failure, self.tasks = stop_at_failure, tuple(tasks)
        self.grid = inference.grid_of(network.config, protocol.size)
        shape = protocol.batch_size, protocol.size
        self._attention = self._features = None
        if protocol.attention_layers:
            run = inference.attention_of_layers(network, protocol.attention_layers)
            self._attention = inference.Batches(network, run, *shape)
        if protocol.mask_layers:
            run = inference.patch_features(network, protocol.mask_layers, protocol.features)
            self._features = inference.Batches(network, run, *shape)

    @property
    def memory(self) -> inference.Batches | None:
        """The program that needs the most memory; None where none has one size of input."""
        own = [program for task in self.tasks for program in task.programs]
        programs = [p for p in (self._attention, self._features, *own) if p is not None]
        return max(programs, key=lambda program: program.memory or 0, default=None)

    @property
    def _span(self) -> int:
        """Images of a file."""
        return _TOGETHER * self.protocol.batch_size

    def record_paths(self, store: Store, label: str) -> dict[int, pathlib.Path]:
        """Where what a pass measured is kept, by the first image of each file."""
        return {
            start: store.path("measured", f"{label}/{start:08d}", ".npz")
            for start in range(0, len(self.data.names), self._span)
        }

    def __call__(
        self,
        store: Store,
        label: str,
        network: inference.Network | None = None,
        noisy: tuple[float, float] | None = None,
    ) -> Measurements:
        """Scores every example once.

        Args:
            store: keeps what was measured; what it holds of this pass is not measured again.
                Batches in which an image could not be used are not kept: it is tried again.
            label: the pass: its name in the store, and before each line of progress.
            network: whose weights take the place of the compiled network's.
            noisy: (standard deviation of 255, part of the pixels) of the paper's noise, added to
                the network's input; the same draws for every network.

        Raises:
            ValueError: an unusable example where that stops, no usable one, or a network whose
                output holds NaN or infinity.
        """
        names, span = list(self.data.names), self._span
        paths = self.record_paths(store, label)
        groups = {start: names[start : start + span] for start in paths}
        store.remove_partial(paths.values())
        done = {start: len(self._kept(paths[start], group).used) for start, group in groups.items()}
        missing = {
            start: self._batches(start + done[start], names[start + done[start] : start + span])
            for start in groups
        }
        if before := sum(done.values()):
            self.say(f"{label:<9} {before} of {len(names)} measured before")
        progress = Progress(label, len(names) - before, self.say)
        whole, params = self.protocol.nothing(), None if network is None else network.params
        with ThreadPoolExecutor(2) as pool:
            reading = inference.read_ahead(
                pool,
                functools.partial(self._read, noisy=noisy),
                itertools.chain.from_iterable(missing.values()),
            )
            for start, group in groups.items():
                part = self._kept(paths[start], group)
                for _, examples in itertools.islice(reading, len(missing[start])):
                    part.extend(self._measure(examples, params))
                    if not part.failed:
                        write_atomically(paths[start], part.to_bytes())
                    progress.add(len(examples))
                whole.extend(part)
        if not whole.used:
            name, reason = next(iter(whole.failed.items()))
            raise ValueError(f"no image could be scored; the first, {name}: {reason}")
        return whole

    def _kept(self, path: pathlib.Path, group: Sequence[str]) -> Measurements:
        """What an earlier run measured of a group's first images, no image where it did nothing."""
        nothing = self.protocol.nothing()
        try:
            found = nothing.of_bytes(read(path)) or nothing
        except FileNotFoundError:
            return nothing
        count = len(found.used)
        whole_batches = count == len(group) or count % self.protocol.batch_size == 0
        return found if whole_batches and found.used == group[:count] else nothing

    def _batches(self, start: int, names: Sequence[str]) -> list[list[tuple[int, str]]]:
        """Batches of (index in the dataset, name)."""
        items, length = list(enumerate(names, start)), self.protocol.batch_size
        return [items[at : at + length] for at in range(0, len(items), length)]

    def _read(self, item: tuple[int, str], noisy: tuple[float, float] | None) -> Example | _Failure:
        index, name = item
        try:
            picture = self.data.read(name)
            labels = self.data.labels(name) if self._attention else None
        except Unusable as error:
            return _Failure(name, str(error))
        pixels = images.resize(picture, self.protocol.size)
        if noisy is not None:
            pixels = noise.add_noise(pixels, *noisy, seed=(0, index))
            if self.tasks and self.data.own_sizes:
                picture = noise.add_noise(picture, *noisy, seed=(0, index))
        objects = (
            None
            if labels is None
            else emergence.objects_of_labels(labels, self.grid, void=self.data.void)
        )
        return Example(name, pixels, picture, objects)

    def _measure(self, examples: list[Example | _Failure], params: Any) -> Measurements:
        """What a batch shows."""
        found = self.protocol.nothing()
        pixels = np.zeros((self.protocol.batch_size, *self.protocol.size, 3), np.uint8)
        usable: dict[int, Example] = {}
        for row, example in enumerate(examples):
            if isinstance(example, Example):
                usable[row], pixels[row] = example, example.pixels
            elif self.stop_at_failure:
                raise ValueError(
                    f"{example.name}: {example.reason} (--on-error=skip leaves it out)"
                )
            else:
                found.failed[example.name] = example.reason
        found.used += [example.name for example in usable.values()]
        if usable and self._attention:
            out = jax.device_get(self._attention(pixels, params))
            for row, example in usable.items():
                arrays = (out[name][row] for name in ("coding_rate", "sparsity"))
                with _named(example):
                    found.attention.add(out["maps"][row], example.objects, *arrays)
        if usable and self._features:
            features = self._features(pixels, params)
            for place, layer in enumerate(self.protocol.mask_layers):
                for tau in self.protocol.taus:
                    found.masks[layer, tau] = self._cut(features[:, place], tau, usable)
        for task in self.tasks if usable else ():
            found.add_rows(task(list(usable.values()), params))
        return found

    def _cut(
        self, features: jax.Array, tau: float, usable: Mapping[int, Example]
    ) -> list[list[dict]]:
        """MaskCut's masks of a batch at the images' own sizes, as COCO results."""
        p, patch_size = self.protocol, self.network.config.patch_size
        valid = np.isin(np.arange(p.batch_size), list(usable))
        options = {"tau": tau, "max_masks": p.max_masks, "corrected": p.corrected}
        cuts, results = methods.cut(features, valid, self.grid, **options), []
        for row, example in usable.items():
            with _named(example):
                found = methods.from_maskcut(cuts[row], patch_size, example.pixels, refine=p.crf)
            results.append(
                coco.results(self.data.image_id(example.name), found.masks(example.size))
            )
        return results


@contextlib.contextmanager
def _named(example: Example) -> Iterator[None]:
    """Around what a network's output must be finite for."""
    try:
        yield
    except FloatingPointError as error:
        raise ValueError(f"{example.name}: {error}") from error
