"""Arguments that `segment` and `score` share: which checkpoint, and what it does not tell."""

import argparse
from collections.abc import Callable
from typing import Any


def numbers(kind: Callable, name: str) -> Callable[[str], tuple]:
    """A parser of a list such as 0.1,0.15."""

    def parse(text: str) -> tuple:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected {name} with commas between them, got {text!r}"
            ) from None

    return parse


def size(text: str) -> tuple[int, int]:
    """480 or 320x480 (height x width), in pixels."""
    try:
        sides = tuple(int(side) for side in text.lower().split("x"))
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(
            f"expected pixels, as 480 or HEIGHTxWIDTH such as 320x480, got {text!r}"
        )
    return sides * 2 if len(sides) == 1 else sides


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value


def share(text: str) -> float:
    """A number in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share in [0, 1] (60 % is 0.6); got {text}")
    return value


def tau(text: str) -> float:
    """A cosine in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a cosine in [0, 1); got {text}")
    return value


_DECLARED = ("heads", "pool", "image_size", "lambd", "positions", "published", "entry", "step")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint and the declarations of `crate_jax.load`."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="a run's directory, or a file: .safetensors, .npz, .pth, .pth.tar",
    )
    group = parser.add_argument_group("what a raw PyTorch file does not tell")
    group.add_argument("--heads", type=positive, help="number of attention heads")
    group.add_argument("--pool", choices=("cls", "mean"), help="what the head reads")
    group.add_argument(
        "--image-size", type=size, metavar="PX", help="training size, as 224 or 224x336"
    )
    group.add_argument("--lambd", type=float, help="lambda of ISTA")
    group.add_argument(
        "--positions",
        choices=("size", "dino", "notebook"),
        help="how positions are resampled to another size",
    )
    group.add_argument("--published", metavar="NAME", help="a published file's name: says it all")
    group.add_argument("--entry", metavar="NAME", help="which of several networks in a file")
    group.add_argument("--step", type=int, help="of a run; the newest if not given")


def declared(args: argparse.Namespace) -> dict[str, Any]:
    """What was declared, for `network.load`."""
    given = {name: getattr(args, name, None) for name in _DECLARED}
    return {name: value for name, value in given.items() if value is not None}
