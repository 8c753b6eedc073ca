# PYTHON_ARGCOMPLETE_OK
"""Score what a network's attention and masks find on PASCAL VOC, COCO or composed scenes.

    python -m crate_jax.score --dataset=voc --root=VOCdevkit --checkpoint=RUN --out=SCORES
    python -m crate_jax.score --dataset=coco --root=COCO --checkpoint=dino.pth --heads=12 \\
        --pool=cls --out=SCORES --taus=0.1,0.15,0.2
    python -m crate_jax.score --dataset=scenes --checkpoint=RUN --out=SCORES --steps=all

voc: [CLS] attention against the label maps. coco: MaskCut against the instances. scenes: both, and
nothing to download. Writes OUT/scores.json and OUT/index.html and prints the tables; layers count
from 0 in arguments and from 1 in tables and names. What is measured is kept in OUT/measured until
all is done: run the same command again after a kill, and only the rest is measured.

Exit status: 0 all scored; 1 some images could not be (0 with --on-error=skip); 2 wrong usage;
130 stopped by Ctrl-C.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from crate_jax import arguments, command_line
from crate_jax.convert.arguments import declared


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("python -m crate_jax.score", __doc__)
    add = parser.add_argument
    add("--dataset", required=True, choices=("voc", "coco", "scenes"))
    add("--root", metavar="DIR", help="of voc (VOCdevkit or VOC2012) or coco, as unpacked")
    arguments.add_results(add, "is counted in scores.json and left out")
    add("--split", help="default: val of voc, val2017 of coco")
    add("--limit", type=arguments.positive, metavar="N", help="only the first N images")
    add(
        "--objects",
        type=arguments.numbers(int, "LOW,HIGH"),
        default=(1, 3),
        metavar="LOW,HIGH",
        help="scenes: objects in a scene (default 1,3)",
    )
    arguments.add_input(add)
    add(
        "--layers",
        type=_layers,
        metavar="LIST",
        help="indices such as 6,8,-1, or all. Default: all for attention, the last for MaskCut",
    )
    group = parser.add_argument_group("attention (voc, scenes)")
    arguments.add_attention(group.add_argument)
    group.add_argument(
        "--no-random", action="store_true", help="without the network with random weights"
    )
    group = parser.add_argument_group("MaskCut (coco, scenes)")
    group.add_argument(
        "--taus",
        type=arguments.numbers(arguments.tau, "cosines in [0, 1)"),
        default=(0.15,),
        metavar="LIST",
        help="cosine thresholds, such as 0.1,0.15,0.2 (default 0.15)",
    )
    arguments.add_maskcut(group.add_argument)
    arguments.add_features(group.add_argument)
    group.add_argument(
        "--samples", type=arguments.positive, default=1000, help="bootstrap draws (default 1000)"
    )
    group = parser.add_argument_group("further passes")
    group.add_argument(
        "--noise", choices=("none", "paper"), default="none", help="repeat under the paper's noise"
    )
    group.add_argument(
        "--steps",
        type=_steps,
        default=(),
        metavar="LIST",
        help="of a run: repeat for these checkpoints, such as 500,1000, or all",
    )
    group.add_argument("--seed", type=int, default=0, help="of draws, scenes and random weights")
    arguments.add_checkpoint(parser)
    return parser


def _layers(text: str):
    return text if text == "all" else arguments.numbers(int, "indices")(text)


def _steps(text: str):
    return text if text == "all" else arguments.numbers(int, "steps")(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = _parser()
    args = command_line.parse(parser, argv)
    if args.dataset != "scenes" and not args.root:
        parser.error(f"--root is needed for {args.dataset}: the folder that holds it")

    def work() -> int:
        failed = _score(args)["counts"]["failed"]
        return 1 if failed and args.on_error != "skip" else 0

    return command_line.run(work, stopped="stopped; run the same command again to go on")


def _score(args: argparse.Namespace) -> dict:
    import cv2

    from crate_jax import inference
    from crate_jax.score import datasets, results
    from crate_jax.store import printable

    cv2.utils.logging.setLogLevel(0)  # silent: what it says of damaged files stands in scores.json
    declarations = declared(args)
    steps = _of_run(args.checkpoint, args.steps)
    if args.dataset == "voc":
        data = datasets.VocLabels(args.root, args.split or "val", args.limit)
    elif args.dataset == "coco":
        data = datasets.CocoInstances(args.root, args.split or "val2017", args.limit)
    network = inference.load(args.checkpoint, **declarations)
    if args.dataset == "scenes":
        side = max(network.config.image_size)
        data = datasets.SceneInstances(side, args.limit, args.objects, args.seed)
    passes = results.Passes(
        untrained=not args.no_random,
        noise=results.NOISE[args.noise],
        steps=steps,
        samples=args.samples,
        seed=args.seed,
    )
    declarations.pop("step", None)
    return results.score(
        network,
        data,
        _protocol(args, network, data),
        passes,
        args.out,
        title=f"{network.config.family.upper()} on {args.dataset}",
        settings={
            "dataset": args.dataset,
            "checkpoint": printable(args.checkpoint),
            "root": args.root and printable(args.root),
            "split": args.split,
            "limit": args.limit,
            **({"objects": list(args.objects)} if args.dataset == "scenes" else {}),
        },
        load_step=lambda step: inference.load(args.checkpoint, step=step, **declarations),
        stop_at_failure=args.on_error == "stop",
        say=command_line.say,
    )


def _protocol(args: argparse.Namespace, network, data):
    from crate_jax import inference
    from crate_jax.score import measuring

    every = tuple(range(network.config.depth))
    return measuring.Protocol(
        size=inference.input_size(network.config, args.size),
        attention_layers=_chosen(network, args.layers, every) if data.has_labels else (),
        mask_layers=_chosen(network, args.layers, every[-1:]) if data.has_instances else (),
        keep=args.keep,
        taus=args.taus,
        max_masks=args.max_masks,
        features=args.features,
        corrected=args.corrected,
        crf=args.crf,
        batch_size=args.batch_size,
    )


def _chosen(network, layers, default) -> tuple[int, ...]:
    from crate_jax import inference

    if layers is None:
        return default
    if layers == "all":
        return tuple(range(network.config.depth))
    return tuple(inference.layer_index(network.config, layer, "maskcut") for layer in layers)


def _of_run(path: str, steps) -> tuple[int, ...]:
    """The steps asked for, checked before hours are spent on the first."""
    if not steps:
        return ()
    from crate_jax.convert import run_directory

    found = run_directory.complete_steps(pathlib.Path(path).expanduser())
    if not found:
        raise ValueError(f"steps: expected the directory of a run, found no checkpoints in {path}")
    if steps == "all":
        return tuple(found)
    if unknown := [step for step in steps if step not in found]:
        raise ValueError(f"steps: expected some of the run's {found}, got {unknown}")
    return tuple(steps)


if __name__ == "__main__":
    sys.exit(main())
