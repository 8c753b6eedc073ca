"""Train, or evaluate what was trained.

    python -m crate_jax.main --config=configs/scenes_tiny.py --workdir=DIR
    python -m crate_jax.main --config=configs/imagenet_b.py --workdir=DIR --config.data.root=IMAGES
    python -m crate_jax.main --config=FILE.py:ARGUMENT --workdir=DIR --config.batch_size=128
    python -m crate_jax.main --config=configs/scenes_tiny.py --workdir=DIR --mode=eval

Run the same command again to resume. A configs/NAME.py that is not in the current directory is
taken from the package.
"""

import logging
import pathlib
import re
import sys
import traceback

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from crate_jax import allocator

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration: FILE.py or FILE.py:ARGUMENT.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: all results go there.")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "train (and resume), or evaluate the newest checkpoint."
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


def main(argv: list[str]) -> int:
    """Dispatches; user errors become one line and exit status 2."""
    from crate_jax.data.loader import WorkerDied
    from crate_jax.training import checkpoint, distributed, loop

    if len(argv) > 1:
        print(f"unexpected arguments: {' '.join(argv[1:])}", file=sys.stderr)
        return 2
    try:
        distributed.start(
            _DISTRIBUTED.value,
            coordinator_address=_COORDINATOR.value,
            num_processes=_NUM_PROCESSES.value,
            process_id=_PROCESS_ID.value,
            timeout=_TIMEOUT.value,
        )
        if _MODE.value == "eval":
            return loop.evaluate(_CONFIG.value, _WORKDIR.value)
        return loop.train(_CONFIG.value, _WORKDIR.value)
    except (
        ValueError,
        OSError,
        FloatingPointError,
        WorkerDied,
        checkpoint.CheckpointError,
        distributed.ProcessFailed,
    ) as error:
        logging.debug("", exc_info=True)
        print(f"\nerror: {error}", file=sys.stderr)
        return 2


def packaged_config(argument: str) -> str:
    """--config=configs/NAME.py[:ARG] with the file from the package where it is not found here."""
    name, separator, rest = argument.partition("=")
    path, colon, value = rest.partition(":")
    if name.lstrip("-") != "config" or not separator or pathlib.Path(path).exists():
        return argument
    packaged = pathlib.Path(__file__).parent / "configs" / pathlib.Path(path).name
    if not packaged.exists():  # an editable install keeps configs/ beside the package
        packaged = pathlib.Path(__file__).parent.parent / "configs" / pathlib.Path(path).name
    if pathlib.Path(path).parent.name == "configs" and packaged.exists():
        return f"{name}={packaged}{colon}{value}"
    return argument


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parsing, with unknown config keys as one line that names the nearest."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        origin = traceback.extract_tb(error.__traceback__)[-1].filename
        if "ml_collections" not in origin:
            raise  # a fault inside the config file: its traceback says where
        near = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', str(error.args[0]))
        hint = f"{near[2]}, did you mean {near[1]}?" if near else f"({error.args[0]})"
        print(f"error: --config: unknown key {hint}", file=sys.stderr)
        sys.exit(2)


def run() -> None:
    """The command line."""
    allocator.keep_freed_memory()
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    flags.mark_flags_as_required(["config", "workdir"])
    sys.argv[1:] = [packaged_config(argument) for argument in sys.argv[1:]]
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
