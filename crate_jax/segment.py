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
import pathlib
import sys
from collections.abc import Sequence

from crate_jax import command_line
from crate_jax.suite import arguments


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("python -m crate_jax.segment", __doc__)
    add = parser.add_argument
    add("--images", required=True, metavar="DIR_OR_FILE", help="a folder (and below), or a file")
    add("--out", required=True, metavar="DIR", help="where results go; resumed if it has some")
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
    add(
        "--size",
        type=arguments.size,
        metavar="PX",
        help="images are resized to it, as 480 or 320x480 (height x width), rounded to patches. "
        "Default: 480 for networks trained at 224, else twice the training size",
    )
    add("--batch-size", type=arguments.positive, default=4, help="images at once (default 4)")
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
        "--on-error",
        choices=("fail", "skip", "stop"),
        default="fail",
        help="an image that cannot be used is listed in failures.jsonl; then: fail (default) does "
        "the others and exits with 1, skip does the others and exits with 0, stop stops there",
    )
    add(
        "--annotations", metavar="JSON", help="a COCO annotation file: take the images' ids from it"
    )
    group = parser.add_argument_group("attention")
    group.add_argument("--rule", choices=("mass", "area"), default="mass", help="default mass")
    group.add_argument(
        "--keep", type=arguments.share, default=0.6, help="part of mass or area kept (default 0.6)"
    )
    group.add_argument(
        "--head", type=_head, default=None, help="whose map is drawn and thresholded (default mean)"
    )
    group.add_argument(
        "--heads-montage", action="store_true", help="also draw every head, in heads/"
    )
    group = parser.add_argument_group("maskcut")
    group.add_argument(
        "--tau", type=arguments.tau, default=0.15, help="cosine threshold (default 0.15)"
    )
    group.add_argument(
        "--max-masks", type=arguments.positive, default=3, help="at most, an image (default 3)"
    )
    group.add_argument(
        "--corrected", action="store_true", help="without the published code's quirks"
    )
    group.add_argument("--crf", action="store_true", help="refine by CutLER's dense CRF")
    group = parser.add_argument_group("maskcut and parts")
    group.add_argument(
        "--features",
        choices=("subspace", "tokens"),
        default="subspace",
        help="U^T LN(z) of the layer (a ViT's keys), or z after it (default subspace)",
    )
    group = parser.add_argument_group("parts")
    group.add_argument("--flip", action="store_true", help="the objects are on the other side")
    arguments.add_checkpoint(parser)
    return parser


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(
            f"expected I/N with 1 <= I <= N, such as 1/2; got {text!r}"
        )
    return index, count


def _head(text: str) -> int | None:
    return None if text == "mean" else int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = _parser()
    args = command_line.parse(parser, argv)
    if unknown := set(args.save) - {"png", "npz", "coco"}:
        parser.error(f"--save: expected png, npz, coco, got {', '.join(sorted(unknown))}")

    import cv2

    from crate_jax.data import images
    from crate_jax.suite import network, segmenting

    cv2.utils.logging.setLogLevel(
        0
    )  # silent: what it says of damaged files stands in failures.jsonl
    try:
        names = images.find(args.images, exclude=args.out)
        folder = pathlib.Path(args.images).expanduser()
        folder = folder.parent if folder.is_file() else folder
        net = network.load(args.checkpoint, **arguments.declared(args))
        fields = segmenting.Options.__dataclass_fields__
        options = segmenting.Options(**{name: getattr(args, name) for name in fields})
        failed = segmenting.segment(net, folder, names, pathlib.Path(args.out), options, say=_say)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 1 if failed and args.on_error != "skip" else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
