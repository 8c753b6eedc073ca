"""Arguments that `segment` and `score` share, and what their values may be."""

import argparse
import math
import os
import pathlib
import sys
from collections.abc import Callable

from crate_jax.convert.arguments import add_choices, add_declarations, size


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
    """A path, not the current folder by way of nothing; shells leave the ~ of --out=~/x alone."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got nothing")
    return pathlib.Path(os.path.expanduser(text))


def whole(least: int, most: int) -> Callable[[str], int]:
    """A parser of a whole number in [least, most]."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            upper = f"of at least {least}" if most == sys.maxsize else f"from {least} to {most:,}"
            raise argparse.ArgumentTypeError(f"expected a whole number {upper}, got {text!r}")
        return value

    return parse


positive = whole(1, sys.maxsize)


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


def add_input(add: Callable, size_note: str = "") -> None:
    """Adds what is fed to the network, by the `add_argument` of a parser or a group."""
    add(
        "--size",
        type=size,
        metavar="PX",
        help="images are resized to it, as 480 or 320x480 (height x width), rounded to patches. "
        "Default: 480 on the shorter side for networks trained at 224 to 479, twice the training "
        f"size below, the training size itself above{size_note}",
    )
    add("--batch-size", type=positive, default=4, metavar="N", help="images at once (default 4)")


def add_results(add: Callable, images_that_fail: str) -> None:
    """Adds where results go, and what happens to an image that cannot be used."""
    add(
        "--out",
        required=True,
        type=path,
        metavar="DIR",
        help="where results go; resumed if it has some",
    )
    add(
        "--on-error",
        choices=("fail", "skip", "stop"),
        default="fail",
        help=f"an image that cannot be used {images_that_fail}; then: fail (default) does the "
        "others and exits with 1, skip does the others and exits with 0, stop stops there",
    )


def add_attention(add: Callable) -> None:
    """Adds how much of a map is kept."""
    add("--keep", type=share, default=0.6, help="part of mass or area kept (default 0.6)")


def add_maskcut(add: Callable) -> None:
    """Adds MaskCut's options, but its threshold: `segment` has one, `score` several."""
    add(
        "--max-masks",
        type=whole(1, 1000),
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
        help="scenes, the network that ships; a run's directory; or a file: .safetensors, .npz, "
        ".pth, .pth.tar",
    )
    group = parser.add_argument_group("what a raw PyTorch file does not tell")
    add_declarations(group.add_argument)
    add_choices(group.add_argument)
