"""Arguments that `segment` and `score` share: which checkpoint, and what it does not tell."""

import argparse
import math
import pathlib
from collections.abc import Callable

from crate_jax.convert import arguments


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
        type=arguments.size,
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


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint and the declarations of `crate_jax.load`."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="a run's directory, or a file: .safetensors, .npz, .pth, .pth.tar",
    )
    group = parser.add_argument_group("what a raw PyTorch file does not tell")
    arguments.add_declarations(group.add_argument)
    arguments.add_choices(group.add_argument)
