"""A network's scores on a dataset: the passes, the estimates, and the files that show them."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from crate_jax import _version, inference
from crate_jax.export import tables
from crate_jax.export.pages import write_page
from crate_jax.files import write_atomically
from crate_jax.score import page
from crate_jax.score.datasets import Dataset
from crate_jax.score.measurements import Measurements
from crate_jax.score.measuring import Measurer, Protocol
from crate_jax.score.tasks import Task
from crate_jax.segmentation import emergence, noise, scoring
from crate_jax.segmentation.emergence import Estimate
from crate_jax.store import Store, listing

NOISE = {"none": (), "paper": noise.SETTINGS}
_IOU_SAMPLES = 10_000
_APS = ("AP50", "AP75", "AP", "AR100")


@dataclasses.dataclass(frozen=True)
class Passes:
    """Which passes to make beside the network's own.

    Attributes:
        untrained: the same network with random weights.
        noise: (standard deviation, part of pixels) settings of the paper's noise.
        steps: of the run that the checkpoint is; each is a network of the series.
        samples: bootstrap draws of an AP; of the others there are always 10,000.
        seed: of the draws and of the random weights.
    """

    untrained: bool = True
    noise: Sequence[tuple[float, float]] = ()
    steps: Sequence[int] = ()
    samples: int = 1_000
    seed: int = 0


def score(
    network: inference.Network,
    data: Dataset,
    protocol: Protocol,
    passes: Passes,
    out: str | os.PathLike,
    *,
    tasks: Sequence[Task] = (),
    title: str,
    settings: Mapping[str, Any],
    load_step: Callable[[int], inference.Network] | None = None,
    stop_at_failure: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Scores a network; writes OUT/scores.json and OUT/index.html and prints the tables.

    Until it is done, OUT/measured/ keeps what every pass has measured so far: called again with the
    same arguments after a kill it goes on from there.

    Args:
        network: from `inference.load`.
        data: what to score on.
        protocol: how.
        passes: what else to measure.
        out: the folder of results.
        tasks: what to measure beside [CLS] attention and MaskCut.
        title: of the page.
        settings: what the caller was asked for, recorded with the rest.
        load_step: a step -> the network of that checkpoint; needed with `passes.steps`.
        stop_at_failure: an unusable image is an error, else it is left out and counted.
        say: prints a line.

    Returns:
        What stands in scores.json.

    Raises:
        ValueError: `out` holds results of other settings or of something else, or another process
            is at work there; no image could be used; or the network gives NaN or infinity.
    """
    settings = {
        **settings,
        **_settings(network, data, protocol, passes),
        **({"tasks": {task.name: task.settings for task in tasks}} if tasks else {}),
    }
    with Store(out, settings, covering=("scores.json", "index.html")) as store:
        measurer = Measurer(
            network, data, protocol, tasks, stop_at_failure=stop_at_failure, say=say
        )
        _say_input(measurer, say)
        scores = _Scores(measurer, passes, store)
        result = scores.measure(load_step)
        content = json.dumps(result, indent=1, allow_nan=False) + "\n"
        write_atomically(store.out / "scores.json", content)
        shown = page.score_tables(
            scores.main, protocol, tasks, scores.trained, scores.noisy, scores.steps
        )
        tables.print_tables(shown, width=160)
        counts = {name: n for name, n in result["counts"].items() if isinstance(n, int)}
        write_page(
            store.out / "index.html",
            "scores.html",
            title=title,
            lede=tables.LAYERS_NOTE if protocol.attention_layers else "",
            facts={name.replace("_", " "): str(count) for name, count in counts.items()},
            tables={"Settings": store.settings},
            score_tables=shown,
            charts=page.charts(scores.main, protocol, tasks, scores.steps),
        )
        store.remove(scores.kept)
    _say_result(result["counts"], store.out, say)
    return result


def _settings(
    network: inference.Network, data: Dataset, protocol: Protocol, passes: Passes
) -> dict[str, Any]:
    """All that the scores depend on."""
    return {
        "images": listing(data.names),
        "weights": network.fingerprint,
        "model": network.config.to_dict(),
        "crate_jax": _version.__version__,
        "device": jax.devices()[0].device_kind,
        **dataclasses.asdict(protocol),
        "rules": list(emergence.RULES),
        "attention_resolution": "each image's own, maps by nearest upsampling",
        "untrained": passes.untrained,
        "noise": [list(pair) for pair in passes.noise],
        "noise_on": "the network's input",
        "steps": list(passes.steps),
        "bootstrap_samples": {"iou": _IOU_SAMPLES, "ap": passes.samples},
        "seed": passes.seed,
    }


class _Scores:
    """The passes of a network, one after the other, and what they show."""

    def __init__(self, measurer: Measurer, passes: Passes, store: Store):
        self.measurer, self.passes, self.store = measurer, passes, store
        self.kept: list[pathlib.Path] = []
        self.noisy: dict[str, dict[str, Estimate]] = {}
        self.steps: dict[str, dict[str, Estimate]] = {}

    def measure(self, load_step: Callable[[int], inference.Network] | None) -> dict[str, Any]:
        """All passes; returns what stands in scores.json."""
        network, passes = self.measurer.network, self.passes
        self.trained, random = self._pass("trained"), None
        if passes.untrained:
            weights = inference.random_weights(network, passes.seed)
            random = self._pass("random", weights)
        self.main = self._estimates(self.trained, random)
        for sd, part in passes.noise:
            measured = self._pass(f"noise-{sd:g}-{part:g}", noisy=(sd, part))
            self.noisy[f"sd {sd:g} on {100 * part:g} %"] = self._estimates(measured)
        for step in passes.steps:
            assert load_step is not None
            measured = self._pass(f"step-{step}", load_step(step))
            self.steps[str(step)] = self._estimates(measured)
        return {
            "settings": self.store.settings,
            "counts": self._counts(),
            "scores": _plain(self.main),
            "noise": {label: _plain(found) for label, found in self.noisy.items()},
            "steps": {step: _plain(found) for step, found in self.steps.items()},
        }

    def _pass(self, label: str, network=None, **how: Any) -> Measurements:
        self.kept += self.measurer.record_paths(self.store, label).values()
        return self.measurer(self.store, label, network, **how)

    def _estimates(
        self, measured: Measurements, random: Measurements | None = None
    ) -> dict[str, Estimate]:
        found, protocol = {}, self.measurer.protocol
        if protocol.attention_layers:
            untrained = None if random is None else random.attention
            found |= emergence.estimates(
                measured.attention, untrained, samples=_IOU_SAMPLES, seed=self.passes.seed
            )
        if protocol.mask_layers:
            draws = {"samples": self.passes.samples, "seed": self.passes.seed}
            found |= mask_estimates(measured, self.measurer.data, "", **draws)
            if random is not None:
                found |= mask_estimates(random, self.measurer.data, "_random", **draws)
        rows = None if random is None else random.columns
        for task in self.measurer.tasks:
            found |= task.estimates(measured.used, measured.columns, rows)
        return found

    def _counts(self) -> dict[str, Any]:
        trained, protocol = self.trained, self.measurer.protocol
        counts: dict[str, Any] = {
            "images": len(self.measurer.data.names),
            "used": len(trained.used),
            "failed": len(trained.failed),
            "failures": trained.failed,
        }
        if protocol.attention_layers:
            counts["without_object"] = trained.attention.without_object
        if protocol.mask_layers:
            without = trained.without_mask().items()
            counts["without_mask"] = {page.mask_prefix(*cut): count for cut, count in without}
        return counts


def mask_estimates(
    measured: Measurements,
    data: Dataset,
    weights: str = "",
    *,
    samples: int = 1_000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """COCO's class-agnostic AP of MaskCut's masks, for every layer and tau.

    maskcut/layerNN/tauT/KIND/AP with KIND box or mask; also AP50, AP75, AR100. With "_random" as
    `weights` maskcut_random/. Images that failed are left out of the ground truth too. NaN where
    there is nothing to find.
    """
    truth = data.ground_truth(measured.used)
    estimates = {}
    for cut, results in measured.masks.items():
        found = [mask for image in results for mask in image]
        scores = scoring.coco_ap(truth, found, samples=samples, seed=seed)
        for name in (f"{kind}/{ap}" for kind in ("box", "mask") for ap in _APS):
            three = (scores.get(f"{name}{end}", math.nan) for end in ("", "/low", "/high"))
            estimates[f"{page.mask_prefix(*cut, weights)}/{name}"] = Estimate(*map(float, three))
    return estimates


def _plain(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    """As JSON has them: there is no NaN in it."""
    return {
        name: {k: v if math.isfinite(v) else None for k, v in vars(estimate).items()}
        for name, estimate in estimates.items()
    }


def _say_input(measurer: Measurer, say: Callable[[str], None]) -> None:
    network, protocol, (rows, columns) = measurer.network, measurer.protocol, measurer.grid
    for note in network.notes:
        say(f"weights   {note}")
    say(
        f"input     {protocol.size[0]} x {protocol.size[1]} px in patches of "
        f"{network.config.patch_size}: {rows} x {columns} = {rows * columns} patches"
    )
    for note in measurer.data.notes:
        say(f"data      {note}")
    if measurer.memory is not None:
        matrix = rows * columns if protocol.mask_layers else 0
        say(inference.memory_line(measurer.memory, protocol.batch_size, matrix))


def _say_result(counts: Mapping[str, Any], out: pathlib.Path, say: Callable[[str], None]) -> None:
    say(f"images    {counts['used']} used, {counts['failed']} failed of {counts['images']}")
    for name, reason in list(counts["failures"].items())[:10]:
        say(f"failed    {name}: {reason}")
    say(f"scores    {out / 'scores.json'}")
    say(f"page      {out / 'index.html'}")
