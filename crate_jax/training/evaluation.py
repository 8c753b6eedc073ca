"""Evaluators: what is measured of held-out images, each with a period of its own (`config.evals`).

An evaluator has `run(params)`, which yields metrics as (name, value), every one of a whole pass:

- validation: val/loss, val/top1, val/top5, val/images. A masked autoencoder has the loss alone, on
  patches hidden by noise that depends on the image's place in the set, the same every time.
- emergence: everything that `segmentation.emergence` measures of the first
  `evaluation.capture_images` images, under val/; where the data has masks beside a network with
  random weights, which is measured once. A masked autoencoder is measured with nothing hidden.
- knn, probe: `training.probing`.
- maskcut: `training.object_masks`.

What is not finite is an error, not a score.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from crate_jax.models import base
from crate_jax.progress import Progress
from crate_jax.segmentation import attention, emergence, layerwise
from crate_jax.training import autoencoding, console, losses, metrics, sharding
from crate_jax.training.inputs import Data

Arrays = dict[str, np.ndarray]
Stop = Callable[[], bool]


class Interrupted(Exception):
    """An evaluation was asked to stop; nothing of it is kept."""


def never() -> bool:
    """The `stop` of an evaluation that nothing cuts short."""
    return False


class Evaluator(Protocol):
    """What is measured of a network.

    Attributes:
        passes: over the data, one after the other.
    """

    passes: tuple["Pass", ...]

    def run(self, params: Any, stop: Stop = never) -> Iterator[tuple[str, float]]:
        """Metrics by name.

        Args:
            params: of the network.
            stop: asked before every batch.

        Raises:
            Interrupted: where `stop` said so.
            FloatingPointError: where the network's output is not finite.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Setting:
    """What evaluators work with.

    Attributes:
        config: of the run.
        definition: the static half of `base.split`.
        data: of the run.
        mesh: the devices.
        random_params: returns the parameters of the same network with random weights.
    """

    config: ml_collections.ConfigDict
    definition: nnx.GraphDef
    data: Data
    mesh: jax.sharding.Mesh
    random_params: Callable[[], Any]

    @property
    def batch_size(self) -> int:
        """`evaluation.batch_size`, raised to the next multiple of the devices.

        The last batch is padded anyway, and no metric depends on how a set is cut.
        """
        return -(-self.config.evaluation.batch_size // self.mesh.size) * self.mesh.size


class Pass:
    """A function of images, computed over a split batch by batch and gathered on every process.

    Args:
        setting: what to work with.
        name: said before each line of progress.
        function: (params, batch) -> arrays with the batch axis first; `batch` has `keys`.
        keys: of image, label, index and mask.
        split: "train" or "val", seen as in evaluation: in order, without augmentation.
        images: how many, the first ones; None for all.

    Attributes:
        skipped: indices of the corrupt images that the last pass left out, of all processes (needs
            `config.data.on_corrupt="skip"`).
    """

    def __init__(
        self,
        setting: Setting,
        name: str,
        function: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]],
        keys: tuple[str, ...] = ("image",),
        split: str = "val",
        images: int | None = None,
    ):
        self.setting, self.name, self.split, self.images = setting, name, split, images
        self.keys = (*dict.fromkeys((*keys, "index")), "valid")
        self.skipped: list[int] = []

        def run(params, batch):
            return function(params, batch) | {name: batch[name] for name in ("index", "valid")}

        self._run = jax.jit(run, out_shardings=sharding.replicated(setting.mesh))

    def compile(self, params: Any, batch: Arrays) -> jax.stages.Compiled:
        """Compiled for a batch of these shapes; nothing is computed."""
        return self._run.lower(params, self._arrays(batch, sharding.batch_shapes)).compile()

    def batches(self, params: Any, stop: Stop = never) -> Iterator[Arrays]:
        """The results, padding and corrupt images removed, in the order of the set.

        Raises:
            Interrupted: where `stop` said so.
        """
        self.skipped = []
        total = len(self.setting.data.source(self.split))
        left = total if self.images is None else min(self.images, total)
        progress = Progress(self.name, left, console.say, at_end=False)
        batches = self.setting.data.once(self.split, self.setting.batch_size)
        with contextlib.closing(batches):
            for batch in batches:
                if stop():
                    raise Interrupted
                arrays = self._arrays(batch, sharding.put_batch)
                found = jax.device_get(self._run(params, arrays))
                valid, index = found.pop("valid"), found.pop("index")
                self.skipped += index[~valid & (index >= 0)].tolist()
                rows = np.flatnonzero(valid)[:left]
                yield {name: values[rows] for name, values in found.items()}
                left -= len(rows)
                progress.add(len(rows))
                if not left:
                    return

    def gather(self, params: Any, stop: Stop = never) -> Arrays:
        """The results of all batches, one after the other."""
        batches = list(self.batches(params, stop))
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def _arrays(self, batch: Arrays, put: Callable) -> dict[str, Any]:
        arrays = {key: batch[key] for key in self.keys}
        arrays["index"] = arrays["index"].astype(np.int32)
        return put(arrays, sharding.batch_sharding(self.setting.mesh))


def check_finite(what: str, finite: np.ndarray) -> None:
    """Raises FloatingPointError unless `finite`, bool of each image, is True of all."""
    if not np.all(finite):
        raise FloatingPointError(
            f"{what}: expected finite values, got NaN or infinity for {np.sum(~finite):,} of "
            f"{len(finite):,} images; check the weights"
        )


class Validation:
    """Loss and accuracy on all held-out images."""

    def __init__(self, setting: Setting):
        definition = setting.definition
        forward = base.forward(definition)

        def classify(params, batch):
            logits = forward(params, batch["image"])[0]
            return {
                "loss": losses.cross_entropy(logits, batch["label"]),
                "top1": losses.top_k_correct(logits, batch["label"], 1),
                "top5": losses.top_k_correct(logits, batch["label"], 5),
                "finite": jnp.all(jnp.isfinite(logits), axis=-1),
            }

        def reconstruct(params, batch):
            model = base.merge(definition, params)
            loss = autoencoding.loss(model, model.preprocess(batch["image"]), batch["index"])
            return {"loss": loss, "finite": jnp.isfinite(loss)}

        autoencoder = setting.config.model.family == "crate_mae"
        function, keys = (reconstruct, ()) if autoencoder else (classify, ("label",))
        self.passes = (Pass(setting, "validation", function, ("image", *keys)),)

    def run(self, params: Any, stop: Stop = never) -> Iterator[tuple[str, float]]:
        """See `Evaluator.run`."""
        images = self.passes[0].gather(params, stop)
        check_finite("held-out outputs", images.pop("finite"))
        for name, values in images.items():
            yield f"val/{name}", float(np.mean(values, dtype=np.float64))
        yield "val/images", len(images["loss"])
        if skipped := self.passes[0].skipped:
            yield "val/skipped_images", len(skipped)


class Emergence:
    """The layers on held-out images, and their [CLS] attention where the data has masks."""

    def __init__(self, setting: Setting):
        self.setting, config = setting, setting.config
        registers = config.model.registers
        masks = config.evaluation.cls_iou and setting.data.val.has_masks
        forward = base.forward(setting.definition, capture=True)

        def function(params, batch):
            _, out = forward(params, batch["image"])
            found = layerwise.of_layers(out["query"], out["tokens"], registers)
            if masks:
                maps = attention.layer_maps(out["query"], out["key"], registers)
                found |= {"maps": maps, "mask": batch["mask"]}
            return found

        keys = ("image", "mask") if masks else ("image",)
        images = config.evaluation.capture_images
        self.passes = (Pass(setting, "emergence", function, keys, images=images),)
        self._with_random, self._random = masks, None

    def run(self, params: Any, stop: Stop = never) -> Iterator[tuple[str, float]]:
        """See `Evaluator.run`."""
        measured = self._measure(params, stop)
        if self._with_random and self._random is None:
            self._random = self._measure(self.setting.random_params(), stop)
        estimates = emergence.estimates(measured, self._random)
        for name, value in emergence.flatten(estimates).items():
            yield f"val/{name}", value

    def _measure(self, params: Any, stop: Stop) -> emergence.Measured:
        config = self.setting.config
        grid = (config.data.image_size // config.model.patch_size,) * 2
        measured = emergence.Measured(config.evaluation.keep)
        for batch in self.passes[0].batches(params, stop):
            objects = None
            if "mask" in batch:
                objects = [emergence.objects_of_mask(mask, grid) for mask in batch["mask"]]
            measured.add_batch(batch.get("maps"), objects, batch["coding_rate"], batch["sparsity"])
        return measured


class Evaluation:
    """The evaluators of a run, and when each is due.

    Args:
        evaluators: by name.
        periods: of each in steps; 0 for at the end only, when all are due.
        total: steps of the run.

    Attributes:
        seconds: that each took in the last `run`, as a metric: time/evaluation/NAME.
    """

    def __init__(self, evaluators: Mapping[str, Evaluator], periods: Mapping[str, int], total: int):
        self.evaluators, self.periods, self.total = dict(evaluators), periods, total
        self.seconds: dict[str, float] = {}

    def due(self, step: int) -> list[str]:
        """Names of those that are to run after a step; none after step 0."""
        return [
            name
            for name in self.evaluators
            if step
            and (step == self.total or (self.periods[name] and step % self.periods[name] == 0))
        ]

    def done(self, step: int, lines: metrics.MetricsFile) -> bool:
        """Whether the file holds what was due after a step."""
        return all(lines.has(step, _seconds(name)) for name in self.due(step))

    def latest(self, lines: metrics.MetricsFile) -> dict[str, Any]:
        """The newest line of the first evaluator: at the end of a run, of all of them."""
        return next((lines.latest(_seconds(name)) for name in self.evaluators), {})

    def run(self, names: list[str], params: Any, stop: Stop = never) -> dict[str, float]:
        """The metrics of some, or nothing: see `Evaluator.run`."""
        values, self.seconds = {}, {}
        for name in names:
            begin = time.monotonic()
            values |= dict(self.evaluators[name].run(params, stop))
            self.seconds[_seconds(name)] = time.monotonic() - begin
        return values

    def compile(self, params: Any, batch: Arrays) -> dict[str, jax.stages.Compiled]:
        """What a run will need, compiled for a batch of these shapes; nothing is computed."""
        return {
            one.name: one.compile(params, batch)
            for evaluator in self.evaluators.values()
            for one in evaluator.passes
        }

    @property
    def skipped(self) -> list[int]:
        """Indices of the corrupt held-out images that the last passes left out."""
        passes = [one for evaluator in self.evaluators.values() for one in evaluator.passes]
        return sorted({i for one in passes if one.split == "val" for i in one.skipped})


def _seconds(name: str) -> str:
    return f"time/evaluation/{name}"
