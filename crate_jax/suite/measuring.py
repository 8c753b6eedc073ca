"""One pass of a network over a dataset: attention against label maps, masks against instances."""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.data import images
from crate_jax.export import coco
from crate_jax.models import base
from crate_jax.segmentation import attention, layerwise, noise, scoring
from crate_jax.suite import methods
from crate_jax.suite import network as networks
from crate_jax.suite.datasets import Dataset, Unusable

RULES = tuple(attention.RULES)


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


@dataclasses.dataclass
class Measured:
    """What one pass found.

    Attributes:
        used: names of the images that were scored.
        failed: {name: reason} of the others.
        iou: by rule, IoU of every layer's heads; the layers in the protocol's order.
        other: by rule, the same against the label map of the next image used, which says how much
            is a prior on place.
        blind: f64[2, images], the baselines all-ones and centre box.
        coding_rate: f64[layers, images].
        sparsity: f64[layers, images].
        masks: COCO results by (layer, tau).
        without_mask: images in which no mask was found, by (layer, tau).
    """

    used: list[str] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    iou: dict[str, scoring.ImageScores] = dataclasses.field(
        default_factory=lambda: {rule: scoring.ImageScores() for rule in RULES}
    )
    other: dict[str, scoring.ImageScores] = dataclasses.field(
        default_factory=lambda: {rule: scoring.ImageScores() for rule in RULES}
    )
    blind: list[np.ndarray] = dataclasses.field(default_factory=list)
    coding_rate: list[np.ndarray] = dataclasses.field(default_factory=list)
    sparsity: list[np.ndarray] = dataclasses.field(default_factory=list)
    masks: dict[tuple[int, float], list[dict]] = dataclasses.field(default_factory=dict)
    without_mask: dict[tuple[int, float], int] = dataclasses.field(default_factory=dict)


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
        network: networks.Network,
        data: Dataset,
        protocol: Protocol,
        say: Callable[[str], None] = print,
    ):
        self.network, self.data, self.protocol, self.say = network, data, protocol, say
        self.grid = networks.grid_of(network.config, protocol.size)
        shape = protocol.batch_size, protocol.size
        self._looks = self._features = None
        if protocol.attention_layers:
            self._looks = networks.Batches(
                network, looks(network, protocol.attention_layers, protocol.keep), *shape
            )
        if protocol.mask_layers:
            run = networks.patch_features(network, protocol.mask_layers, protocol.features)
            self._features = networks.Batches(network, run, *shape)

    @property
    def memory(self) -> networks.Batches:
        """The program that needs the most memory."""
        programs = [p for p in (self._looks, self._features) if p is not None]
        return max(programs, key=lambda program: program.memory or 0)

    def __call__(
        self, params: Any = None, noisy: tuple[float, float] | None = None, label: str = "score"
    ) -> Measured:
        """Scores every example once.

        Args:
            params: weights in place of the network's.
            noisy: (standard deviation of 255, part of the pixels) of the paper's noise, added to
                the network's input; the same draws for every network.
            label: before each line of progress.

        Raises:
            ValueError: an unusable example, with on_error="stop"; or no usable one.
        """
        measured, names = Measured(), list(self.data.names)
        self._previous = None  # patches kept of the image before
        begin = spoke = time.monotonic()
        length = self.protocol.batch_size
        starts = range(0, len(names), length)
        with ThreadPoolExecutor(2) as pool:
            reading = [pool.submit(self._read, name) for name in names[:length]]
            for start in starts:
                batch = names[start : start + length]
                loaded = [future.result() for future in reading]
                ahead = names[start + length : start + 2 * length]
                reading = [pool.submit(self._read, name) for name in ahead]
                self._add(measured, batch, loaded, start, params, noisy)
                now, done = time.monotonic(), start + len(batch)
                if now - spoke > 5 or done == len(names):
                    spoke, left = now, round((now - begin) / done * (len(names) - done))
                    self.say(
                        f"{label:<9} {done} of {len(names)}, {done / (now - begin):.2f} images/s, "
                        f"{left // 60}:{left % 60:02d} left"
                    )
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

    def _add(self, measured: Measured, names, loaded, start, params, noisy) -> None:
        pixels = np.zeros((self.protocol.batch_size, *self.protocol.size, 3), np.uint8)
        valid = np.zeros(len(pixels), bool)
        for row, (name, example) in enumerate(zip(names, loaded, strict=True)):
            if isinstance(example, str):
                if self.protocol.on_error == "stop":
                    raise ValueError(f"{name}: {example} (--on-error=skip leaves it out)")
                measured.failed[name] = example
                continue
            valid[row] = True
            measured.used.append(name)
            pixels[row] = example[0]
            if noisy is not None:
                pixels[row] = noise.add_noise(example[0], *noisy, seed=(0, start + row))
        rows = np.flatnonzero(valid)
        if not rows.size:
            return
        if self._looks:
            found = jax.device_get(self._looks(pixels, params))
            for row in rows:
                self._add_attention(measured, {k: v[row] for k, v in found.items()}, loaded[row][2])
                self._previous = found["kept"][row]
        if self._features:
            features = self._features(pixels, params)
            for place, layer in enumerate(self.protocol.mask_layers):
                for tau in self.protocol.taus:
                    self._add_masks(
                        measured, (layer, tau), features[:, place], valid, names, loaded, pixels
                    )

    def _add_attention(self, measured: Measured, found: dict, labels: np.ndarray) -> None:
        for rule, kept in zip(RULES, found["kept"], strict=True):
            _, iou = scoring.class_iou(kept, labels, self.grid)
            measured.iou[rule].add(iou)
        for rule, kept in zip(
            RULES, () if self._previous is None else self._previous, strict=False
        ):
            _, iou = scoring.class_iou(kept, labels, self.grid)
            measured.other[rule].add(iou)
        size = labels.shape
        guesses = np.stack([np.ones(size, bool), scoring.centre_box(size)]).reshape(2, -1)
        _, iou = scoring.class_iou(guesses, labels, size)
        if len(iou):
            measured.blind.append(iou.mean(0))
        measured.coding_rate.append(found["coding_rate"])
        measured.sparsity.append(found["sparsity"])

    def _add_masks(self, measured, key, features, valid, names, loaded, pixels) -> None:
        p = self.protocol
        results = measured.masks.setdefault(key, [])
        measured.without_mask.setdefault(key, 0)
        options = {"tau": key[1], "max_masks": p.max_masks, "corrected": p.corrected}
        cuts = methods.cut(features, valid, self.grid, **options)
        for row in np.flatnonzero(valid):
            found = methods.from_maskcut(
                cuts[row], self.network.config.patch_size, pixels[row], crf=p.crf
            )
            masks = found.masks(loaded[row][1])
            measured.without_mask[key] += not len(masks)
            results += coco.results(self.data.image_id(names[row]), masks)


def looks(network: networks.Network, layers: tuple[int, ...], keep: float) -> Callable:
    """(params, images uint8[b, h, w, 3]) -> what is measured of each layer.

    Returns:
        A function to a dictionary: `kept` bool[b, rules, layers, heads, n], the patches that each
        of `RULES` keeps; `coding_rate` and `sparsity` f32[b, layers].
    """
    maps_of = networks.cls_maps(network, layers)

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
