# PYTHON_ARGCOMPLETE_OK
"""Score what a network's attention, masks and features find, on public sets or composed scenes.

    python -m crate_jax.score --dataset=voc --root=VOCdevkit --checkpoint=RUN --out=SCORES
    python -m crate_jax.score --dataset=coco --root=COCO --checkpoint=dino.pth --heads=12 \\
        --pool=cls --out=SCORES --taus=0.1,0.15,0.2
    python -m crate_jax.score --dataset=scenes --checkpoint=RUN --out=SCORES --steps=all
    python -m crate_jax.score --dataset=voc07 --root=VOCdevkit --checkpoint=dino.pth --heads=6 \\
        --out=SCORES --task=corloc

Tasks: attention, [CLS] maps against label maps (voc, hummingbird); maskcut, AP of instances (coco);
corloc, boxes of TokenCut and LOST (voc07, voc12, coco20k); saliency (ecssd, duts, omron); knn,
segmentation by the nearest patches of a training split (hummingbird); artifacts, norms of tokens
(all). scenes: all of them, and nothing to download. Without --task all that the set allows.

Writes OUT/scores.json and OUT/index.html and prints the tables; layers count from 0 in arguments
and from 1 in tables and names. What is measured is kept in OUT/measured until all is done: run the
same command again after a kill, and only the rest is measured.

Exit status: 0 all scored; 1 some images could not be (0 with --on-error=skip); 2 wrong usage;
130 stopped by Ctrl-C.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from crate_jax import arguments, command_line
from crate_jax.convert.arguments import declared
from crate_jax.score import names


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("python -m crate_jax.score", __doc__)
    add = parser.add_argument
    add("--dataset", required=True, choices=names.DATASETS)
    add(
        "--task",
        type=arguments.numbers(_task, "tasks"),
        metavar="LIST",
        help=f"of {', '.join(names.TASKS)}; default: all that the dataset allows",
    )
    add("--root", metavar="DIR", help="of the dataset, as unpacked; docs/segmentation_and_scoring")
    arguments.add_results(add, "is counted in scores.json and left out")
    add(
        "--split",
        help="default: val of voc, val2017 of coco, trainval of voc07 and voc12; of "
        "coco20k the file of the list",
    )
    add(
        "--limit",
        type=arguments.positive,
        metavar="N",
        help="only the first N images; how many scenes (default 500)",
    )
    add(
        "--classes",
        type=arguments.positive,
        metavar="N",
        help="scenes: the first N of the 600 objects. Default: as many as the network has classes; "
        "100 for one with none or more than there are",
    )
    add(
        "--objects",
        type=arguments.numbers(int, "LOW,HIGH"),
        default=(1, 3),
        metavar="LOW,HIGH",
        help="scenes: objects in a scene (default 1,3)",
    )
    arguments.add_input(add, "; of scenes always the training size, at which they are composed")
    add(
        "--layers",
        type=_or_all("indices"),
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
        "--samples",
        type=arguments.whole(1, 100_000),  # more would move an interval's ends by next to nothing
        default=1000,
        help="bootstrap draws, at most 100,000 (default 1000)",
    )
    group = parser.add_argument_group("object discovery and saliency")
    group.add_argument(
        "--discovery-tau",
        type=arguments.tau,
        default=0.2,
        metavar="T",
        help="TokenCut's cosine threshold (default 0.2)",
    )
    group.add_argument(
        "--lost-k",
        type=arguments.positive,
        default=100,
        metavar="K",
        help="LOST's candidates (default 100)",
    )
    group.add_argument(
        "--without-difficult",
        action="store_true",
        help="voc07, voc12: leave out difficult and truncated boxes, and images left without",
    )
    group = parser.add_argument_group("patch k-NN")
    group.add_argument(
        "--neighbours", type=arguments.positive, default=30, metavar="K", help="default 30"
    )
    group.add_argument(
        "--memory",
        type=arguments.positive,
        metavar="M",
        help="most patches remembered (default 102400; of scenes 10240)",
    )
    group.add_argument(
        "--memory-images", type=arguments.positive, metavar="N", help="only the first N to remember"
    )
    group = parser.add_argument_group("artifacts")
    group.add_argument(
        "--outliers",
        type=_outliers,
        default="median:3",
        metavar="RULE",
        help="which norms are outliers: fixed:150, median:3 (times it), valley (default median:3)",
    )
    group = parser.add_argument_group("further passes")
    group.add_argument(
        "--noise", choices=("none", "paper"), default="none", help="repeat under the paper's noise"
    )
    group.add_argument(
        "--steps",
        type=_or_all("steps"),
        default=(),
        metavar="LIST",
        help="of a run: repeat for these checkpoints, such as 500,1000, or all",
    )
    group.add_argument(
        "--seed",
        type=arguments.whole(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="of draws, scenes and random weights",
    )
    arguments.add_checkpoint(parser)
    return parser


def _task(text: str) -> str:
    if text not in names.TASKS:
        raise ValueError(text)
    return text


def _outliers(text: str) -> str:
    from crate_jax.segmentation import artifacts

    try:
        artifacts.parse_rule(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _or_all(name: str) -> Callable[[str], tuple[int, ...] | str]:
    """A parser of whole numbers with commas between them, or the word all."""
    return lambda text: text if text == "all" else arguments.numbers(int, name)(text)


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
    data: Any = None if args.dataset == "scenes" else _on_disk(args)
    if data is not None:
        _tasks(args, data)
    network = inference.load(args.checkpoint, **declarations)
    if data is None:
        side = max(network.config.image_size)
        classes = args.classes or datasets.classes_known(network.config)
        data = datasets.SceneInstances(side, args.limit, args.objects, args.seed, classes)
    passes = results.Passes(
        untrained=not args.no_random,
        noise=results.NOISE[args.noise],
        steps=steps,
        samples=args.samples,
        seed=args.seed,
    )
    declarations.pop("step", None)
    protocol = _protocol(args, network, data)
    return results.score(
        network,
        data,
        protocol,
        passes,
        args.out,
        tasks=_further(args, network, data, protocol),
        title=f"{network.config.family.upper()} on {args.dataset}",
        settings={
            "dataset": args.dataset,
            "checkpoint": printable(args.checkpoint),
            "root": args.root and printable(args.root),
            "split": args.split,
            "limit": args.limit,
            **(
                {"objects": list(args.objects), "classes": data.classes - 1}
                if args.dataset == "scenes"
                else {}
            ),
        },
        load_step=lambda step: inference.load(args.checkpoint, step=step, **declarations),
        stop_at_failure=args.on_error == "stop",
        say=command_line.say,
    )


def _protocol(args: argparse.Namespace, network, data):
    from crate_jax import inference
    from crate_jax.score import measuring

    every, tasks = tuple(range(network.config.depth)), _tasks(args, data)
    asked = args.size or (network.config.image_size if args.dataset == "scenes" else None)
    return measuring.Protocol(
        size=inference.input_size(network.config, asked),
        attention_layers=_chosen(network, args.layers, every) if "attention" in tasks else (),
        mask_layers=_chosen(network, args.layers, every[-1:]) if "maskcut" in tasks else (),
        keep=args.keep,
        taus=args.taus,
        max_masks=args.max_masks,
        features=args.features,
        corrected=args.corrected,
        crf=args.crf,
        batch_size=args.batch_size,
    )


def _on_disk(args: argparse.Namespace):
    """The dataset of that name, whole, or an error that names what is missing."""
    from crate_jax.score import datasets

    name, root, split, limit = args.dataset, args.root, args.split, args.limit
    sets = {
        "voc": lambda: datasets.VocLabels(root, split or "val", limit),
        "coco": lambda: datasets.CocoInstances(root, split or "val2017", limit),
        "hummingbird": lambda: datasets.VocMemory(root, limit, args.memory_images),
        **dict.fromkeys(
            names.BOXES,
            lambda: datasets.DiscoveryBoxes(name, root, split, limit, args.without_difficult),
        ),
        **dict.fromkeys(names.SALIENCY, lambda: datasets.SalientObjects(name, root, limit)),
    }
    return sets[name]()


def _tasks(args: argparse.Namespace, data) -> tuple[str, ...]:
    """The tasks asked for, or all that the dataset allows."""
    if refused := [task for task in args.task or () if task not in data.tasks]:
        raise ValueError(
            f"task: expected some of {', '.join(data.tasks)} on {args.dataset}, got "
            f"{', '.join(refused)}"
        )
    return tuple(task for task in data.tasks if not args.task or task in args.task)


def _further(args: argparse.Namespace, network, data, protocol) -> list:
    """The tasks beside [CLS] attention and MaskCut."""
    from crate_jax import inference
    from crate_jax.score import artifacts, corloc, patch_knn, saliency, tasks

    draws = {"seed": args.seed}
    of_features = network, data, args.dataset, protocol.size
    layer = inference.layer_index(network.config, None, "attention")
    arrays = tasks.OwnSize(network, layer, args.features)  # compiled when first used
    options: dict[str, Any] = {"arrays": arrays, "tau": args.discovery_tau, **draws}
    shape = protocol.size, protocol.batch_size
    memory = patch_knn.SCENES_MEMORY if args.dataset == "scenes" else patch_knn.PAPER_MEMORY
    known = {
        "corloc": lambda: corloc.CorLoc(*of_features, k=args.lost_k, **options),
        "saliency": lambda: saliency.Saliency(*of_features, mask_tau=args.taus[0], **options),
        "knn": lambda: patch_knn.PatchKNN(
            network,
            data,
            *shape,
            entries=args.memory or memory,
            k=args.neighbours,
            samples=args.samples,
            say=command_line.say,
            **draws,
        ),
        "artifacts": lambda: artifacts.Artifacts(
            network,
            _chosen(network, args.layers, tuple(range(network.config.depth))),
            *shape,
            rule=args.outliers,
            **draws,
        ),
    }
    wanted = _tasks(args, data)
    return [make() for name, make in known.items() if name in wanted]


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

    found = run_directory.complete_steps(pathlib.Path(os.path.expanduser(path)))
    if not found:
        raise ValueError(f"steps: expected the directory of a run, found no checkpoints in {path}")
    if steps == "all":
        return tuple(found)
    if unknown := [step for step in steps if step not in found]:
        raise ValueError(f"steps: expected some of the run's {found}, got {unknown}")
    return tuple(steps)


if __name__ == "__main__":
    sys.exit(main())
