"""Arguments that `segment` and `score` share: which checkpoint, and what it does not tell."""

import argparse
import math
import pathlib
from collections.abc import Callable
from typing import Any


def numbers(kind: Callable, name: str) -> Callable[[str], tuple]:
    """A parser of a list such as 0.1,0.15."""

    def parse(text: str) -> tuple:
        try:
            return tuple(kind(part) for part in text.split(","))
        except (ValueError, argparse.ArgumentTypeError):
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


def path(text: str) -> pathlib.Path:
    """A path; shells leave the ~ of --out=~/x alone."""
    return pathlib.Path(text).expanduser()


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
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share in [0, 1] (60 % is 0.6), got {text!r}")
    return value


def tau(text: str) -> float:
    """A cosine in [0, 1)."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a cosine in [0, 1), got {text!r}")
    return value


def _number(text: str) -> float:
    """NaN, which is in no range, for what is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def add_input(add: Callable) -> None:
    """Adds what is fed to the network, by the `add_argument` of a parser or a group."""
    add(
        "--size",
        type=size,
        metavar="PX",
        help="images are resized to it, as 480 or 320x480 (height x width), rounded to patches. "
        "Default: 480 for networks trained at 224, else twice the training size",
    )
    add("--batch-size", type=positive, default=4, metavar="N", help="images at once (default 4)")


def add_maskcut(add: Callable) -> None:
    """Adds MaskCut's options, but its threshold: `segment` has one, `score` several."""
    add(
        "--max-masks",
        type=positive,
        default=3,
        metavar="N",
        help="rounds, so at most as many masks an image (default 3)",
    )
    add("--corrected", action="store_true", help="without the published code's quirks")
    add("--crf", action="store_true", help="refine by CutLER's dense CRF")


def add_features(add: Callable) -> None:
    """Adds --features: what MaskCut and the PCA read of a layer."""
    add(
        "--features",
        choices=("subspace", "tokens"),
        default="subspace",
        help="U^T LN(z) of the layer (a ViT's keys), or z after it (default subspace)",
    )


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
