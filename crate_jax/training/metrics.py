"""Where metrics go: metrics.jsonl, TensorBoard, Weights & Biases."""

import contextlib
import datetime
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from crate_jax import files

# Lines hold times under this prefix and nowhere else: everything else is reproducible.
TIME = "time/"
# Of the measures of emergence, hundreds a line, boards have the published one and its controls.
_OF_EMERGENCE = re.compile(r"val/cls_.*/layer\d+")
_CHARTED = re.compile(r"val/cls_iou(_random|_other)?/mass/best/layer\d+")


class MetricsFile:
    """One JSON object a line, with `step`; append-only, whole lines.

    Args:
        path: the file.
        resume_step: lines of later steps are cut away, and a torn last line with them.
        writer: whether this process writes; others only keep `lines`.

    Raises:
        OSError: where it cannot be written.
    """

    def __init__(self, path: pathlib.Path, resume_step: int, writer: bool = True):
        self.path = path
        self.lines = [entry for entry in read(path) if entry["step"] <= resume_step]
        self._file = None
        if writer:
            files.write_atomically(path, "".join(_line(entry) for entry in self.lines))
            self._file = path.open("a")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line; numbers that are not finite become null, which JSON has.

        Raises:
            OSError: where it cannot be written; a part of the line may be, and is cut at the next
                start.
        """
        entry = {"step": step} | {name: _number(value) for name, value in values.items()}
        self.lines.append(entry)
        if self._file:
            with _naming(self.path):
                self._file.write(_line(entry))
                self._file.flush()

    def sync(self) -> None:
        """Puts the lines on the disk: a checkpoint must not outlive the lines before it."""
        if self._file:
            with _naming(self.path):
                os.fsync(self._file.fileno())

    def expect(self, count: int) -> None:
        """Warns where fewer lines are there than when the checkpoint was saved."""
        if len(self.lines) < count:
            logging.warning(
                "%s: expected the %d lines that were there at the last checkpoint, got %d; the run "
                "goes on, and its curves lack the others: restore them from a backup",
                self.path,
                count,
                len(self.lines),
            )

    def has(self, step: int, name: str) -> bool:
        """Whether a line of this step holds this metric."""
        return any(entry["step"] == step and name in entry for entry in self.lines)

    def latest(self, name: str) -> dict[str, Any]:
        """The newest line that holds this metric; empty where there is none."""
        return next((entry for entry in reversed(self.lines) if name in entry), {})

    def close(self) -> None:
        """Closes the file; what could not be written of it was an error before."""
        if self._file:
            with contextlib.suppress(OSError):
                self._file.close()


def is_charted(name: str) -> bool:
    """Whether TensorBoard and Weights & Biases have a metric; metrics.jsonl has all.

    They have no ends of intervals, and of the [CLS] attention of each layer the IoU of the best
    head by the mass rule, also with random weights and against another image's object.
    """
    if name.endswith(("/low", "/high")):
        return False
    return bool(_CHARTED.fullmatch(name)) or not _OF_EMERGENCE.fullmatch(name)


class TensorBoard:
    """The same metrics as TensorBoard events, which tensorboardX describes.

    They are written here: its own writer is a thread that dies of a full disk without a word, and
    whoever logs then waits for its queue for ever.

    Args:
        directory: of the event files.
        resume_step: events of later steps are hidden.
        enabled: False writes nothing.

    Raises:
        OSError: where they cannot be written.
    """

    def __init__(self, directory: pathlib.Path, resume_step: int, enabled: bool):
        self._directory, self._file = directory, None
        if enabled:
            now = datetime.datetime.now()
            name = f"events.out.tfevents.{now.timestamp():.0f}.{socket.gethostname()}"
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / name).open("ab")
            self._add(file_version="brain.Event:2")
            if resume_step:
                self._add(step=resume_step + 1, session_log={"status": "START"})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar a metric."""
        if self._file:
            scalars = [{"tag": name, "simple_value": float(x)} for name, x in values.items()]
            self._add(step=step, summary={"value": scalars})

    def _add(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        event = Event(wall_time=datetime.datetime.now().timestamp(), **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
        with _naming(self._directory):
            self._file.write(length + sums[0] + event + sums[1])
            self._file.flush()

    def close(self) -> None:
        """Closes the file; what could not be written of it was an error before."""
        if self._file:
            with contextlib.suppress(OSError):
                self._file.close()


class WeightsAndBiases:
    """The same metrics on Weights & Biases; a resumed run continues the one that it began.

    Args:
        project: the project's name; "" does nothing.
        directory: the run's workdir, whose path and config tell runs apart.
        config: what the run is, nested dictionaries.
        enabled: False does nothing.
    """

    def __init__(
        self, project: str, directory: pathlib.Path, config: Mapping[str, Any], enabled: bool
    ):
        self._run = None
        if not project or not enabled:
            return
        import wandb

        identity = json.dumps([str(directory), config], sort_keys=True)
        self._run = wandb.init(
            project=project,
            id=hashlib.sha256(identity.encode()).hexdigest()[:16],
            name=directory.name,
            dir=str(directory),
            config=dict(config),
            resume="allow",
        )
        # Its own step only grows; ours falls back when a run is resumed.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point a metric."""
        if self._run:
            self._run.log({"step": step} | {name: float(value) for name, value in values.items()})

    def close(self) -> None:
        """Sends what is left."""
        if self._run:
            self._run.finish()


def check_wandb(project: str) -> None:
    """Raises ValueError where a project is named and the package wandb is not installed."""
    if project:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"config.wandb={project!r}: expected the package wandb; install it with "
                'pip install "crate-jax[wandb]", or set config.wandb=""'
            ) from error


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """`files.read_metrics`; no lines where there is no file."""
    return files.read_metrics(path) if path.exists() else []


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """What the system says of a failed write does not name the file."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def _number(value: float) -> float | int | None:
    value = value.item() if hasattr(value, "item") else value
    return value if math.isfinite(value) else None
