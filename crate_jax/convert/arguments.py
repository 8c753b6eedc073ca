"""What a raw file does not tell, as command-line options: the same for every command that loads."""

import argparse
import math
from collections.abc import Callable
from typing import Any

from crate_jax.convert.published import PUBLISHED
from crate_jax.models.names import RULES

_NAMES = (
    *("heads", "pool", "image_size", "lambd", "step_size", "epsilon", "head_epsilon"),
    *("nonlinearity", "positions", "mean", "std", "registers", "patch_size"),
    *("published", "entry", "step"),
)


def size(text: str) -> tuple[int, int]:
    """480, 320x480 or 320,480 (height, width), in pixels."""
    try:
        sides = [int(side) for side in text.lower().replace(",", "x").split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(
            f"expected pixels, as 480 or HEIGHTxWIDTH such as 320x480, got {text!r}"
        )
    return sides[0], sides[-1]


def channels(text: str) -> tuple[float, float, float]:
    """0.5 or 0.485,0.456,0.406: a number for each channel of images scaled to [0, 1]."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(
            f"expected one number or RED,GREEN,BLUE such as 0.485,0.456,0.406, got {text!r}"
        )
    red, green, blue = numbers * (3 // len(numbers))
    return red, green, blue


def add_declarations(add: Callable) -> None:
    """Adds the declarations of `crate_jax.load`, by the `add_argument` of a parser or a group."""
    add("--heads", type=int, metavar="N", help="number of attention heads")
    add("--pool", choices=("cls", "mean", "last_vit"), help="what the head reads")
    add(
        "--image-size",
        "--image_size",
        type=size,
        metavar="PX",
        help="training size, as 224 or 224x336 (height x width): of the positions where their "
        "number fits; else they are resampled to it",
    )
    add(
        "--lambd",
        type=float,
        metavar="X",
        help="lambda of ISTA, where it is not the code's default",
    )
    add("--step-size", "--step_size", type=float, metavar="X", help="eta of ISTA, likewise")
    add("--epsilon", type=float, metavar="X", help="of the LayerNorms in the layers, likewise")
    add(
        "--head-epsilon",
        "--head_epsilon",
        type=float,
        metavar="X",
        help="of CRATE-alpha's last norm, likewise",
    )
    add("--nonlinearity", choices=("ista", "ista-soft-threshold"), help="CRATE, or CRATE-sth")
    add(
        "--positions",
        choices=RULES,
        help="how positions are resampled to another size",
    )
    add(
        "--mean",
        type=channels,
        metavar="R,G,B",
        help="subtracted from images in [0, 1]; ImageNet's by default, many of timm's have 0.5",
    )
    add("--std", type=channels, metavar="R,G,B", help="by which they are divided then, likewise")
    add("--registers", type=int, metavar="N", help="shapes tell: to check that they agree")
    add("--patch-size", "--patch_size", type=int, metavar="PX", help="likewise")
    published = add(
        "--published",
        metavar="NAME",
        help=f"a published file's name says it all: {', '.join(PUBLISHED)}",
    )
    published.completer = lambda **_: list(PUBLISHED)  # by the tab key


def add_choices(add: Callable) -> None:
    """Adds which network is meant, where there are several."""
    add("--entry", metavar="NAME", help="which network of a file: teacher, student, ...")
    add("--step", type=int, metavar="N", help="which step of a run; the newest by default")


def declared(args: argparse.Namespace) -> dict[str, Any]:
    """What was declared and chosen, for `crate_jax.load`."""
    given = {name: getattr(args, name, None) for name in _NAMES}
    return {name: value for name, value in given.items() if value is not None}
