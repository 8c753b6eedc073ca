"""CRATE, the white-box transformer, in JAX.

`crate_jax.load(path, **declared)` reads a checkpoint; see `crate_jax.convert.checkpoints.load`.
Nothing else is imported until it is called, so that `import crate_jax` takes no time.
"""

import os
import signal
import sys
import types
from typing import TYPE_CHECKING, Any

from crate_jax import limits
from crate_jax._version import __version__

if TYPE_CHECKING:
    from crate_jax.models.base import Transformer

__all__ = ["__version__", "load"]


def _leave(number: int, frame: types.FrameType | None) -> None:
    del number, frame
    os.write(2, b"stopped by Ctrl-C\n")
    os._exit(130)


# `python -m` looks up a command of ours: until `command_line.run` there is nothing to put in order.
if sys.argv[:1] == ["-m"]:
    signal.signal(signal.SIGINT, _leave)
    limits.for_numpy()


def load(path: str | os.PathLike, **declared: Any) -> "Transformer":
    """The network of a checkpoint: ours, PyTorch's, safetensors or NumPy's.

    Args:
        path: "scenes", the network that ships; a run's directory; or a file.
        **declared: what shapes do not tell: heads=, pool="cls"|"mean", image_size=int|(h, w),
            lambd=, positions="size"|"dino"|"antialias"|"notebook", or published=NAME for all of it.

    See `crate_jax.convert.checkpoints.load` for all of them and what is raised.
    """
    from crate_jax.convert import checkpoints

    return checkpoints.load(path, **declared)
