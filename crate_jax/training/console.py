"""What a run says while it works: plain lines that read well in a terminal and in a log file."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from crate_jax.export import tables
from crate_jax.models.base import ImageModelConfig
from crate_jax.progress import duration_text


def say(text: str) -> None:
    """A line on standard output, at once; only the first process speaks."""
    if jax.process_index() == 0:
        with _speaking():
            print(text, flush=True)


@contextlib.contextmanager
def _speaking() -> Iterator[None]:
    """Around printing: a run goes on when nobody can hear it, as what it says is in metrics.jsonl.

    The reader of a pipe is gone (`| head`), the terminal is closed, the disk of a log file full.
    """
    try:
        yield
    except (OSError, SystemExit):  # rich makes a SystemExit of a closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def device_line(mesh: jax.sharding.Mesh) -> str:
    """Which devices, and how the mesh lays them out."""
    device = mesh.devices.flat[0]
    return (
        f"devices   {mesh.size} x {device.device_kind} ({device.platform}), mesh "
        f"data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}"
    )


def model_line(config: ImageModelConfig, params: Any, flops: float, dtype: str) -> str:
    """The network in one line."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    size = " x ".join(str(side) for side in config.image_size)
    return (
        f"model     {config.family}, {size} px in patches of {config.patch_size}, "
        f"dim {config.dim}, depth {config.depth}, heads {config.heads}, {count:,} parameters, "
        f"{dtype}, {flops / 1e9:.3g} GFLOP an image and step"
    )


def progress_line(step: int, total: int, values: Mapping[str, float], eta: float) -> str:
    """One line a log interval."""
    parts = [
        f"step {step:>{len(str(total))}}/{total}",
        f"loss {values['train/loss']:.4f}",
    ]
    if "train/top1" in values:
        parts.append(f"top1 {values['train/top1']:.3f}")
    parts.append(f"{values['time/images_per_second']:,.0f} images/s")
    if "time/mfu" in values:
        parts.append(f"MFU {100 * values['time/mfu']:.1f} %")
    if values["time/input_wait_fraction"] > 0.1:
        parts.append(f"waiting for input {100 * values['time/input_wait_fraction']:.0f} %")
    if "train/skipped_images" in values:
        parts.append(f"{values['train/skipped_images']} corrupt images skipped")
    parts.append(f"ETA {duration_text(eta)}")
    return "  ".join(parts)


def interrupted_line(step: int, signal_name: str) -> str:
    """Why an evaluation is not there."""
    return f"{signal_name}: the evaluation after {step} was cut short; resuming makes it up"


def evaluation_line(step: int, values: Mapping[str, float]) -> str:
    """One line an evaluation: accuracy, and the layer whose attention fits the objects best."""
    parts = []
    for name, digits in (
        ("loss", 4),
        ("top1", 3),
        ("top5", 3),
        ("knn_top1", 3),
        ("linear_top1", 3),
    ):
        if (value := values.get(f"val/{name}")) is not None:
            parts.append(f"{name.replace('_', ' ')} {value:.{digits}f}")
    best = best_layer(values, "val/cls_iou/mass/best/")
    if best:
        layer, iou = best
        parts.append(f"[CLS] IoU {iou:.3f} ({layer}, best head, mass rule)")
        if (random := values.get(f"val/cls_iou_random/mass/best/{layer}")) is not None:
            parts.append(
                f"random weights {random:.3f}  all ones {values['val/cls_iou_all_ones']:.3f}"
            )
    return f"evaluation after {step}: " + "  ".join(parts)


def best_layer(values: Mapping[str, float], prefix: str) -> tuple[str, float] | None:
    """The (layer, value) that is largest among the metrics PREFIXlayerNN."""
    found = {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
    }
    return max(found.items(), key=lambda item: item[1]) if found else None


def print_evaluation(values: Mapping[str, Any], keep: float) -> None:
    """An evaluation as tables.

    Args:
        values: metrics by name.
        keep: the part of mass or area that the two rules keep.
    """
    if jax.process_index():
        return
    rows = [
        [tables.Cell(name), tables.Cell(f"{values[name]:.{digits}f}")]
        for name, digits in (
            ("val/images", 0),
            ("val/loss", 4),
            ("val/top1", 4),
            ("val/top5", 4),
            ("val/knn_top1", 4),
            ("val/linear_top1", 4),
            ("val/object_fraction", 4),
            *((name, 4) for name in values if name.startswith("val/maskcut/")),
        )
        if name in values
    ]
    summary = tables.Table("Held out", "", ["metric", "value"], rows)
    layers = tables.layer_tables(tables.from_metrics(values), keep)
    with _speaking():
        tables.print_tables([summary, *layers])
