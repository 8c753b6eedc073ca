# PYTHON_ARGCOMPLETE_OK
"""Segment images with what a network attends to.

    python -m crate_jax.segment --checkpoint=RUN --images=PHOTOS --out=RESULTS --method=maskcut
    python -m crate_jax.segment --checkpoint=dino.pth --heads=6 --pool=cls --images=PHOTOS \\
        --out=RESULTS --method=attention --heads-montage
    python -m crate_jax.segment ... --shard=1/2 & python -m crate_jax.segment ... --shard=2/2

Every image's results are written whole, one image at a time: run the same command again after a
kill, and only what is missing is done. Shards write into the same --out; the one that finishes
last writes the COCO file and the gallery of all images.

Exit status: 0 all done; 1 some images failed (0 with --on-error=skip); 2 wrong usage; 130 stopped
by Ctrl-C.
"""

import argparse
import functools
import sys
from collections.abc import Sequence

from crate_jax import arguments, command_line
from crate_jax.convert.arguments import declared


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("python -m crate_jax.segment", __doc__)
    add = parser.add_argument
    add(
        "--images",
        required=True,
        type=arguments.path,
        metavar="DIR_OR_FILE",
        help="a folder (and below), or a file",
    )
    arguments.add_results(add, "is listed in failures.jsonl")
    add(
        "--method",
        required=True,
        choices=("attention", "maskcut", "parts"),
        help="[CLS] attention; masks by normalised cuts; parts by PCA over all images of a class",
    )
    add(
        "--layer",
        type=int,
        help="index from 0, or -1 for the last. Default: the last; for the attention of a CRATE "
        "the last but one, as published",
    )
    arguments.add_input(add)
    add(
        "--save",
        type=lambda text: tuple(text.split(",")),
        default=("png", "npz", "coco"),
        metavar="LIST",
        help="of png (overlays at the images' own size), npz (arrays at grid resolution), coco "
        "(coco.json). Default: png,npz,coco. The gallery is always written",
    )
    add(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="I/N",
        help="do the I-th of N shares, I >= 1",
    )
    add(
        "--annotations",
        type=arguments.path,
        metavar="JSON",
        help="a COCO annotation file: take the images' ids from it, and read them in the frame "
        "that they are stored in, not turned by an orientation",
    )
    group = parser.add_argument_group("attention")
    group.add_argument("--rule", choices=("mass", "area"), default="mass", help="default mass")
    arguments.add_attention(group.add_argument)
    group.add_argument(
        "--head",
        type=_head,
        metavar="N|mean",
        help="whose map is drawn and thresholded (default mean)",
    )
    group.add_argument(
        "--heads-montage", action="store_true", help="also draw every head, in heads/"
    )
    group = parser.add_argument_group("maskcut")
    group.add_argument(
        "--tau", type=arguments.tau, default=0.15, help="cosine threshold (default 0.15)"
    )
    arguments.add_maskcut(group.add_argument)
    group = parser.add_argument_group("maskcut and parts")
    arguments.add_features(group.add_argument)
    group = parser.add_argument_group("parts")
    side = group.add_mutually_exclusive_group()
    side.add_argument("--flip", action="store_true", help="the objects are on the other side")
    side.add_argument(
        "--keep-background",
        action="store_true",
        help="take no object out: the first component in grey, the next three as colours, "
        "as the paper shows layers 1, 4, 6, 8 and 11",
    )
    group.add_argument(
        "--scaling",
        choices=("image", "all"),
        default="image",
        help="minimum and maximum of components over each image, as in the authors' code "
        "(default), or over all: one threshold and one scale of colours",
    )
    arguments.add_checkpoint(parser)
    return parser


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(
            f"expected I/N with 1 <= I <= N, such as 1/2, got {text!r}"
        )
    return index, count


def _head(text: str) -> int | None:
    try:
        return None if text == "mean" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a head's index or mean, got {text!r}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = _parser()
    args = command_line.parse(parser, argv)
    if unknown := set(args.save) - {"png", "npz", "coco"}:
        parser.error(f"--save: expected png, npz, coco, got {', '.join(sorted(unknown))}")

    return command_line.run(
        functools.partial(_segment, args), stopped="stopped; run the same command again to go on"
    )


def _segment(args: argparse.Namespace) -> int:
    import cv2

    from crate_jax import inference
    from crate_jax.data import images
    from crate_jax.segment import segmenting

    # Silent: what it says of damaged files stands in failures.jsonl.
    cv2.utils.logging.setLogLevel(0)
    names = images.find(args.images)
    folder = args.images
    if folder.is_file():
        folder = folder.parent
    elif args.out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"out: expected a folder outside of --images, got {args.out} in {folder}: results "
            "would be among the images the next time; choose another --out"
        )
    network = inference.load(args.checkpoint, **declared(args))
    fields = segmenting.Options.__dataclass_fields__
    options = segmenting.Options(**{name: getattr(args, name) for name in fields})
    failed = segmenting.segment(network, folder, names, args.out, options, say=command_line.say)
    return 1 if failed and args.on_error != "skip" else 0


if __name__ == "__main__":
    sys.exit(main())
