"""A network's scores on a dataset: the passes, the figures, and the files that show them."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import rich.console

from crate_jax import _version, inference
from crate_jax.export import scores as page
from crate_jax.files import write_atomically
from crate_jax.score import figures as fig
from crate_jax.score import presenting
from crate_jax.score.datasets import Dataset
from crate_jax.score.findings import RULES, Measured, Store
from crate_jax.score.measuring import Measurer, Protocol
from crate_jax.segmentation import noise


@dataclasses.dataclass(frozen=True)
class Passes:
    """Which passes to make beside the network's own.

    Attributes:
        untrained: the same network with random weights (attention only).
        noise: (standard deviation, part of pixels) settings of the paper's noise.
        steps: of the run that the checkpoint is; each is a network of the series.
        samples: bootstrap draws of an AP; of an IoU there are always 10,000.
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
    title: str,
    settings: dict[str, Any],
    load_step: Callable[[int], inference.Network] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Scores a network; writes OUT/scores.json and OUT/index.html and prints the tables.

    Until it is done, OUT/measured/ keeps what every pass has found so far: called again with the
    same arguments after a kill it goes on from there.

    Args:
        network: from `network.load`.
        data: what to score on.
        protocol: how.
        passes: what else to measure.
        out: the folder of results.
        title: of the page.
        settings: what the caller was asked for, recorded with the rest.
        load_step: a step -> the network of that checkpoint; needed with `passes.steps`.
        say: prints a line.

    Returns:
        What stands in scores.json.
    """
    measurer = Measurer(network, data, protocol, say)
    rows, columns = measurer.grid
    say(
        f"input     {protocol.size[0]} x {protocol.size[1]} px in patches of "
        f"{network.config.patch_size}: {rows} x {columns} = {rows * columns} patches"
    )
    say(inference.memory_line(measurer.memory, protocol.batch_size))

    out = pathlib.Path(out)
    unfinished = out / "measured"

    def measure(label: str, network: inference.Network = network, noisy=None) -> Measured:
        made_of = {
            "weights": network.fingerprint,
            "model": network.config.to_dict(),
            "protocol": dataclasses.asdict(protocol) | {"on_error": None},  # changes no figure
            "data": settings | {"names": list(data.names), "seed": passes.seed},
            "noise": noisy,
            "version": _version.__version__,
            "device": jax.devices()[0].device_kind,
        }
        digest = hashlib.sha256(json.dumps(made_of, default=str).encode()).hexdigest()[:16]
        return measurer(network, noisy, label=label, store=Store(unfinished / digest))

    trained = measure("trained")
    untrained = None
    if passes.untrained and protocol.attention_layers:
        untrained = measure("random", inference.random_weights(network, passes.seed))

    def figures(measured: Measured, untrained: Measured | None = None) -> fig.Figures:
        found = {}
        if protocol.attention_layers:
            found |= fig.attention(measured, protocol, untrained, seed=passes.seed)
        if protocol.mask_layers:
            found |= fig.masks(measured, data, samples=passes.samples, seed=passes.seed)
        return found

    main = figures(trained, untrained)
    noisy = {
        f"sd {sd:g} on {100 * part:g} %": figures(measure("noise", noisy=(sd, part)))
        for sd, part in passes.noise
    }
    steps = {step: figures(measure(f"step {step}", load_step(step))) for step in passes.steps}
    result = {
        "settings": {
            **settings,
            "weights": network.fingerprint,
            "model": network.config.to_dict(),
            "crate_jax": _version.__version__,
            **dataclasses.asdict(protocol),
            "rules": list(RULES),
            "attention_resolution": "each image's own, maps by nearest upsampling",
            "noise_on": "the network's input",
            "bootstrap_samples": {"iou": 10_000, "ap": passes.samples},
            "seed": passes.seed,
        },
        "counts": _counts(trained, data, protocol),
        "scores": fig.plain(main),
        "noise": {label: fig.plain(found) for label, found in noisy.items()},
        "steps": {str(step): fig.plain(found) for step, found in steps.items()},
    }
    write_atomically(out / "scores.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    tables = _tables(trained, protocol, main, noisy, steps)
    console = rich.console.Console(width=None if sys.stdout.isatty() else 160)
    for table in tables:
        presenting.print_table(table, console)
    counts = result["counts"]
    page.write_scores(
        out / "index.html",
        title=title,
        tables=tables,
        charts=presenting.charts(main, protocol, steps),
        settings=result["settings"],
        environment={},
        facts={name.replace("_", " "): str(n) for name, n in counts.items() if isinstance(n, int)},
    )
    shutil.rmtree(unfinished, ignore_errors=True)
    say(f"images    {counts['used']} used, {counts['failed']} failed of {counts['images']}")
    for name, reason in list(trained.failed.items())[:10]:
        say(f"failed    {name}: {reason}")
    say(f"scores    {out / 'scores.json'}")
    say(f"page      {out / 'index.html'}")
    return result


def _counts(measured: Measured, data: Dataset, protocol: Protocol) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "images": len(data.names),
        "used": len(measured.used),
        "failed": len(measured.failed),
        "failures": measured.failed,
    }
    if protocol.attention_layers:
        counts["without_object"] = next(iter(measured.iou.values())).without_object
    if protocol.mask_layers:
        counts["without_mask"] = {
            fig.mask_prefix(*key): count for key, count in measured.without_mask.items()
        }
    return counts


def _tables(trained, protocol, main, noisy, steps) -> list[page.Table]:
    names = presenting.headline(main, protocol)
    clean = {"without noise": main} if noisy else {}
    tables = [
        presenting.attention_table(main, protocol),
        presenting.mask_table(main, protocol, trained.without_mask),
        presenting.series_table(
            "Robustness to noise, per cent",
            "Gaussian noise, standard deviation of 255, on a random part of the input's pixels.",
            "noise",
            clean | noisy,
            names,
        ),
        presenting.series_table(
            "Over the run, per cent",
            "Every checkpoint on the same images; layers as chosen for the last.",
            "step",
            {str(step): found for step, found in steps.items()},
            names,
        ),
    ]
    return [table for table in tables if table is not None]


NOISE = {"none": (), "paper": noise.SETTINGS}
