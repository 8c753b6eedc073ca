"""One pass of a network over a dataset: attention against label maps, masks against instances."""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import inference
from crate_jax.data import images
from crate_jax.export import coco
from crate_jax.models import base
from crate_jax.score.datasets import Dataset, Unusable
from crate_jax.score.findings import RULES, Batch, Finding, Measured, Store
from crate_jax.segment import methods
from crate_jax.segmentation import attention, layerwise, noise, scoring

_PROGRESS_EVERY = 5  # seconds


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
        on_error: "fail" or "skip": leave an unusable image out; "stop": stop at it.
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
    on_error: str = "fail"


class Measurer:
    """The compiled programs of a network and a protocol, for passes with several weights.

    Args:
        network: from `network.load`.
        data: what to score on.
        protocol: how.
        say: prints a line.
    """

    def __init__(
        self,
        network: inference.Network,
        data: Dataset,
        protocol: Protocol,
        say: Callable[[str], None] = print,
    ):
        self.network, self.data, self.protocol, self.say = network, data, protocol, say
        self.grid = inference.grid_of(network.config, protocol.size)
        shape = protocol.batch_size, protocol.size
        self._looks = self._features = None
        if protocol.attention_layers:
            self._looks = inference.Batches(
                network, looks(network, protocol.attention_layers, protocol.keep), *shape
            )
        if protocol.mask_layers:
            run = inference.patch_features(network, protocol.mask_layers, protocol.features)
            self._features = inference.Batches(network, run, *shape)

    @property
    def memory(self) -> inference.Batches:
        """The program that needs the most memory."""
        programs = [p for p in (self._looks, self._features) if p is not None]
        return max(programs, key=lambda program: program.memory or 0)

    def __call__(
        self,
        network: inference.Network | None = None,
        noisy: tuple[float, float] | None = None,
        *,
        label: str = "score",
        store: Store | None = None,
    ) -> Measured:
        """Scores every example once.

        Args:
            network: whose weights take the place of the compiled network's.
            noisy: (standard deviation of 255, part of the pixels) of the paper's noise, added to
                the network's input; the same draws for every network.
            label: before each line of progress.
            store: of this pass; what it holds already is not measured again. Batches in which an
                image could not be used are not kept, so that it is tried again.

        Raises:
            ValueError: an unusable example, with on_error="stop"; or no usable one.
        """
        params = None if network is None else network.params
        measured, names = Measured(), list(self.data.names)
        length = self.protocol.batch_size
        batches = {start: names[start : start + length] for start in range(0, len(names), length)}
        there = {start for start in batches if store is not None and store.has(start)}
        missing = iter([start for start in batches if start not in there])
        before = sum(len(batches[start]) for start in there)
        if before:
            self.say(f"{label:<9} {before} of {len(names)} measured before")
        progress = _Progress(label, len(names) - before, self.say)
        kept = None  # patches, of the image before
        with ThreadPoolExecutor(2) as pool:

            def read(start: int | None) -> tuple:
                if start is None:
                    return None, []
                return start, [pool.submit(self._read, name) for name in batches[start]]

            ahead, reading = read(next(missing, None))
            for start, batch in batches.items():
                if start in there and (found := store.read(start, len(batch))):
                    for name, finding in zip(batch, found.findings, strict=True):
                        measured.add(name, finding)
                    kept = found.kept
                    continue
                if start == ahead:
                    loaded = [future.result() for future in reading]
                    ahead, reading = read(next(missing, None))
                else:  # what was kept of it is damaged
                    loaded = [self._read(name) for name in batch]
                findings, kept = self._measure(batch, loaded, start, params, noisy, kept)
                for name, example, finding in zip(batch, loaded, findings, strict=True):
                    if finding is None:
                        measured.failed[name] = example
                    else:
                        measured.add(name, finding)
                if store is not None and None not in findings:
                    store.write(start, Batch(findings, kept))
                progress.add(len(batch))
        if not measured.used:
            first = next(iter(measured.failed.items()))
            raise ValueError(f"no image could be scored; the first, {first[0]}: {first[1]}")
        return measured

    def _read(self, name: str):
        try:
            pixels = self.data.read(name)
            labels = self.data.labels(name) if self._looks else None
        except Unusable as error:
            return str(error)
        return images.resize(pixels, self.protocol.size), pixels.shape[:2], labels

    def _measure(
        self, names, loaded, start, params, noisy, kept
    ) -> tuple[list[Finding | None], np.ndarray | None]:
        """The findings of a batch, None for what failed to load; and the last patches kept."""
        pixels = np.zeros((self.protocol.batch_size, *self.protocol.size, 3), np.uint8)
        findings: list[Finding | None] = [None] * len(names)
        for row, (name, example) in enumerate(zip(names, loaded, strict=True)):
            if isinstance(example, str):
                if self.protocol.on_error == "stop":
                    raise ValueError(f"{name}: {example} (--on-error=skip leaves it out)")
                continue
            findings[row] = Finding()
            pixels[row] = example[0]
            if noisy is not None:
                pixels[row] = noise.add_noise(example[0], *noisy, seed=(0, start + row))
        rows = [row for row, finding in enumerate(findings) if finding is not None]
        if rows and self._looks:
            found = jax.device_get(self._looks(pixels, params))
            for row in rows:
                looked = {name: array[row] for name, array in found.items()}
                self._look(findings[row], looked, loaded[row][2], kept)
                kept = looked["kept"]
        if rows and self._features:
            features = self._features(pixels, params)
            for place, layer in enumerate(self.protocol.mask_layers):
                for tau in self.protocol.taus:
                    self._cut(findings, (layer, tau), features[:, place], names, loaded, pixels)
        return findings, kept

    def _look(
        self, finding: Finding, looked: dict, labels: np.ndarray, before: np.ndarray | None
    ) -> None:
        """[CLS] attention of an image, and of the image before, against its label map."""
        finding.iou = scoring.class_iou(looked["kept"], labels, self.grid)[1]
        if before is not None:
            finding.other = scoring.class_iou(before, labels, self.grid)[1]
        size = labels.shape
        guesses = np.stack([np.ones(size, bool), scoring.centre_box(size)]).reshape(2, -1)
        finding.blind = scoring.class_iou(guesses, labels, size)[1]
        finding.coding_rate, finding.sparsity = looked["coding_rate"], looked["sparsity"]

    def _cut(self, findings, key, features, names, loaded, pixels) -> None:
        """MaskCut's masks of a batch at the images' own sizes."""
        p = self.protocol
        options = {"tau": key[1], "max_masks": p.max_masks, "corrected": p.corrected}
        valid = np.zeros(len(pixels), bool)
        valid[: len(findings)] = [finding is not None for finding in findings]
        cuts = methods.cut(features, valid, self.grid, **options)
        for row in np.flatnonzero(valid):
            patch = self.network.config.patch_size
            found = methods.from_maskcut(cuts[row], patch, pixels[row], refine=p.crf)
            masks = found.masks(loaded[row][1])
            findings[row].masks[key] = coco.results(self.data.image_id(names[row]), masks)


class _Progress:
    """A line every few seconds: how many, how fast, how long."""

    def __init__(self, label: str, total: int, say: Callable[[str], None]):
        self.label, self.total, self.say = label, total, say
        self.done, self.begin = 0, time.monotonic()
        self.spoke = self.begin

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.spoke > _PROGRESS_EVERY or self.done == self.total:
            self.spoke, seconds = now, now - self.begin
            left = round(seconds / self.done * (self.total - self.done))
            self.say(
                f"{self.label:<9} {self.done} of {self.total}, {self.done / seconds:.2f} images/s, "
                f"{left // 60}:{left % 60:02d} left"
            )


def looks(network: inference.Network, layers: tuple[int, ...], keep: float) -> Callable:
    """(params, images uint8[b, h, w, 3]) -> what is measured of each layer.

    Returns:
        A function to a dictionary: `kept` bool[b, rules, layers, heads, n], the patches that each
        of `RULES` keeps; `coding_rate` and `sparsity` f32[b, layers].
    """
    maps_of = inference.cls_maps(network, layers)

    def run(params, images):
        maps = maps_of(params, images)
        model = base.merge(network.definition, params)
        # Traced twice, computed once: the compiler finds the common part.
        _, out = model(model.preprocess(images), capture=tuple(layers))
        count = range(len(layers))
        return {
            "kept": jnp.stack([attention.RULES[rule](maps, keep) for rule in RULES], axis=1),
            "coding_rate": jnp.stack([layerwise.coding_rate(out["query"][i]) for i in count], 1),
            "sparsity": jnp.stack([layerwise.sparsity(out["tokens"][i]) for i in count], 1),
        }

    return run
