# PYTHON_ARGCOMPLETE_OK
"""Train, or evaluate what was trained.

    python -m crate_jax.main --config=configs/scenes_tiny.py --workdir=DIR
    python -m crate_jax.main --config=configs/imagenet_b.py --workdir=DIR --config.data.root=IMAGES
    python -m crate_jax.main --config=FILE.py:ARGUMENT --workdir=DIR --config.batch_size=128
    python -m crate_jax.main --config=configs/scenes_tiny.py --workdir=DIR --mode=eval
    python -m crate_jax.main --config=FILE.py --workdir=DIR --config.dry_run=True --topology=v5e:4x4

Run the same command again to resume. A configs/NAME.py that is not in the current directory is
taken from the package.
"""

import functools
import logging
import os
import pathlib
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from crate_jax import allocator, command_line, keys

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The config, such as configs/imagenet_b.py:model=vit.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: all results go there.")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "train (and resume), or evaluate the newest checkpoint."
)
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "With --config.dry_run=True: for what is not there, as v5e:4x4, v4:2x2x4, or h100:8.",
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "Several processes as one run: on (TPU pods, Slurm and MPI say the rest by themselves), off, "
    "or auto: where Slurm started several tasks, or one of the next three is given.",
)
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_TIMEOUT = flags.DEFINE_integer(
    "initialization_timeout", 300, "Seconds to wait for all processes.", lower_bound=1
)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout",
    100,
    "Seconds without a sign of life after which a process counts as dead and the others are ended.",
    lower_bound=5,
)
_THREADS = 34  # that saving needs besides (`limits.for_computing`)
_METAVARS = {
    "config": command_line.CONFIG,
    "workdir": "DIR",
    "mode": "",
    "topology": "GENERATION:SHAPE",
    "distributed": "",
    "coordinator_address": "HOST:PORT",
    "num_processes": "N",
    "process_id": "N",
    "initialization_timeout": "SECONDS",
    "heartbeat_timeout": "SECONDS",
}


def main(argv: list[str]) -> int:
    """Dispatches; returns the exit status (`command_line.run`)."""
    elsewhere = _TOPOLOGY.value is not None and _MODE.value == "train"
    if elsewhere and not _CONFIG.value.dry_run:
        raise ValueError(
            f"--topology={_TOPOLOGY.value}: expected --config.dry_run=True with it: nothing can be "
            "trained on hardware that is not there"
        )
    from crate_jax.data.processes import WorkerDied
    from crate_jax.training import checkpoint, distributed, loop, topology

    def work() -> int:
        distributed.start(
            _DISTRIBUTED.value,
            coordinator_address=_COORDINATOR.value,
            num_processes=_NUM_PROCESSES.value,
            process_id=_PROCESS_ID.value,
            timeout=_TIMEOUT.value,
            heartbeat_timeout=_HEARTBEAT.value,
        )
        if _MODE.value == "eval":
            return loop.evaluate(_CONFIG.value, _WORKDIR.value)
        devices = topology.devices(_TOPOLOGY.value) if elsewhere else None
        return loop.train(_CONFIG.value, _WORKDIR.value, devices)

    faults = (WorkerDied, checkpoint.CheckpointError, distributed.ProcessFailed)
    try:
        status = command_line.run(
            work,
            *faults,
            stopped="stopped by Ctrl-C; run the same command again to go on",
            threads=_THREADS,
        )
    except Exception:
        distributed.leave(1)
        raise
    if status == distributed.ProcessLost.exit_status:
        distributed.leave(status, patience=0.0)
    elif status == 2:
        distributed.leave(status)
    return status


def parse_flags(argv: list[str], required: tuple[str, ...]) -> list[str]:
    """absl's parsing.

    Raises:
        ValueError: for a user's errors: what is missing or too much, or which key is near.
    """
    try:
        command_line.check_config(argv)
        rest = flags.FLAGS(argv)
        if missing := [f"--{name}" for name in required if not flags.FLAGS[name].value]:
            raise flags.Error(f"expected {' and '.join(missing)}, got none")
        if rest[1:]:
            raise flags.Error(f"expected only flags, got {' '.join(rest[1:])}")
        return rest
    except (flags.Error, FileNotFoundError) as error:
        command = f"python -m crate_jax.{pathlib.Path(argv[0]).stem}"
        raise ValueError(f"{_short(str(error))}\nsee {command} --help") from error
    except (AttributeError, LookupError, TypeError) as error:
        origin = traceback.extract_tb(error.__traceback__)[-1].filename
        if "ml_collections" not in origin:
            raise  # a fault inside the config file: its traceback says where
        near = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', str(error.args[0]))
        given = " or ".join(x.partition("=")[0] for x in argv if re.match("--?config[.]", x))
        hint = f"{near[2]}, did you mean {near[1]}?" if near else f"{given} ({error.args[0]})"
        raise ValueError(f"--config: unknown key {hint}") from error


def _short(message: str) -> str:
    """Without the traceback of a config file, where it ends by an error that we raise there."""
    places = re.findall(r'File "([^"]+)", line', message)
    said = re.search(r"^ValueError: (.*)$", message, re.MULTILINE)
    ours = places and pathlib.Path(places[-1]).is_relative_to(pathlib.Path(__file__).parent)
    return f"--config: {said[1]}" if ours and said else message


def start(
    name: str,
    text: str,
    metavars: Mapping[str, str],
    work: Callable[[list[str]], int],
    required: tuple[str, ...] = ("config", "workdir"),
) -> None:
    """Runs a command whose flags absl parses, and ends the process.

    Args:
        name: of the command.
        text: its help.
        metavars: its flags.
        work: what it does; returns the exit status.
        required: the flags that must be given.
    """
    # A thread of a library that dies of a full disk, say: what follows from it is said in one line.
    threading.excepthook = lambda fault: logging.debug("thread", exc_info=fault.exc_value)
    sys.unraisablehook = lambda fault: logging.debug("unraisable", exc_info=fault.exc_value)
    allocator.keep_freed_memory()
    absl_logging.set_verbosity(absl_logging.WARNING)
    sys.argv[1:] = command_line.with_packaged_configs(sys.argv[1:])
    parser = command_line.of_flags(f"python -m crate_jax.{name}", text, metavars)
    command_line.answer(parser, sys.argv[1:], keys.known)
    try:
        app.run(work, flags_parser=functools.partial(parse_flags, required=required))
    except SystemExit as ended:
        if ended.code == 2:
            _end(2)
        raise


def run() -> None:
    """The command line."""
    start("main", __doc__, _METAVARS, main)


def _end(status: int) -> None:
    """Ends a run of one process at once, after its message, which stays the last line.

    What Python and the libraries still do at its end fails once more where the disk is full, with
    a traceback, or waits for threads of a save that failed.
    """
    from crate_jax.training import distributed

    if distributed.alone():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.exit(command_line.run(run))
