# PYTHON_ARGCOMPLETE_OK
"""List every config key with its default and its meaning.

    python -m crate_jax.keys                  # all of them
    python -m crate_jax.keys data.scenes      # those that begin so

On the command line of `crate_jax.main` a key is set as --config.KEY=VALUE. A named size or a recipe
in configs/ sets many of them; what a run really has is printed by --config.dry_run=True and written
to its config.json. Keys below `model` depend on the family, which is named in brackets.
"""

import collections
import dataclasses
import functools
import sys

from crate_jax import checks, command_line
from crate_jax.checks import (
    DURATION,
    PATH,
    PERIOD,
    TEXT,
    TRUTH,
    Key,
    number,
    one_of,
    optional,
    pair,
    whole,
)

SIDE = whole(1, 8192)  # px; ten times what anybody trains on, and still held in memory
SHARE = number(0, 1)
BELOW_1 = number(0, below=1)

# Every key of a run but those of its model, which are the fields of the family's config.
KEYS = (
    Key("seed", 0, "of everything random", whole(0, 2**63 - 1)),
    Key("steps", None, "length of the run; exactly one of steps and epochs", optional(whole(1))),
    Key("epochs", None, "likewise, in passes over the data", optional(number(above=0, most=1e6))),
    Key("batch_size", 256, "over all devices and processes", whole(1)),
    Key("accumulate", 1, "parts that a batch is computed in, one after the other", whole(1)),
    Key(
        "dtype",
        "float32",
        "of the computation: float32 or bfloat16; parameters stay float32",
        one_of("float32", "bfloat16"),
    ),
    Key(
        "remat",
        "none",
        "what the backward pass recomputes: none, dots (not matrix products), full",
        one_of("none", "full", "dots"),
        free=True,
    ),
    Key(
        "fsdp",
        1,
        "devices that parameters and optimizer state are split over",
        whole(1),
        free=True,
    ),
    Key(
        "attention_backend",
        "auto",
        "auto (cuDNN on CUDA in bfloat16 above 256 tokens, else XLA), xla, cudnn, pallas (TPU)",
        one_of("auto", "xla", "cudnn", "pallas"),
        free=True,
    ),
    Key(
        "scan_layers",
        False,
        "compile one layer and loop over it: minutes less to compile a deep network, more memory",
        TRUTH,
        free=True,
    ),
    Key(
        "compilation_cache",
        "~/.cache/crate_jax/xla",
        'folder in which compiled programs are kept for the next run; "": none',
        PATH,
        free=True,
    ),
    Key(
        "compilation_cache_gib",
        4.0,
        "GiB at most; programs used least recently go",
        number(above=0, most=1e6),
        free=True,
    ),
    Key("label_smoothing", 0.0, "", BELOW_1),
    Key("mixup", 0.0, "alpha of its Beta distribution; 0: off", number(0)),
    Key("cutmix", 0.0, "likewise", number(0)),
    Key("mixup_switch", 0.5, "where both are on, the probability that a batch gets cutmix", SHARE),
    Key(
        "init_from",
        "",
        "fine-tuning: a run's directory or a checkpoint file, taken without its head",
        PATH,
    ),
    Key("log_every", "50 steps", "duration", DURATION, free=True),
    Key(
        "evaluate_every",
        "1 epochs",
        "duration; 0: at the end only, which is always evaluated and saved",
        DURATION,
    ),
    Key("checkpoint_every", "1 epochs", "likewise", DURATION, free=True),
    Key("keep_checkpoints", 3, "the newest so many", whole(1), free=True),
    Key(
        "keep_every",
        "0 steps",
        "besides these, every multiple of this duration; 0: none",
        DURATION,
        free=True,
    ),
    Key("tensorboard", True, "", TRUTH, free=True),
    Key(
        "wandb",
        "",
        "project on Weights & Biases to which metrics go too (extra: wandb)",
        TEXT,
        free=True,
    ),
    Key(
        "profile_steps",
        0,
        "steps after the tenth to trace into profile/, for TensorBoard; 0: none",
        whole(0),
        free=True,
    ),
    Key("report", True, "write report/index.html at the end", TRUTH, free=True),
    Key(
        "dry_run",
        False,
        "check everything, compile, print what would happen, stop",
        TRUTH,
        free=True,
    ),
    Key(
        "data.name",
        "scenes",
        "scenes (embedded), folder (class folders) or tfds (array_record)",
        one_of("scenes", "folder", "tfds"),
    ),
    Key("data.image_size", 32, "px, side of the square images that the model gets", SIDE),
    Key(
        "data.workers",
        0,
        "processes that read and decode; 0: a thread of the training process",
        whole(0, 256),
        free=True,
    ),
    Key("data.root", "", "folder: holds train/CLASS/* and val/CLASS/*, or CLASS/*", PATH),
    Key(
        "data.val_fraction",
        0.0,
        "folder: of every class, held out where there is no val folder",
        BELOW_1,
    ),
    Key("data.dataset", "", "tfds: its name, such as imagenet2012 or name/config:1.0.0", TEXT),
    Key(
        "data.data_dir",
        "",
        'where TFDS keeps datasets; "": $TFDS_DATA_DIR or ~/tensorflow_datasets',
        PATH,
    ),
    Key("data.train_split", "", 'in TFDS\'s terms, such as train[:90%]; "": train', TEXT),
    Key("data.val_split", "", 'likewise; "": the first there is of validation, val, test', TEXT),
    Key(
        "data.on_corrupt",
        "error",
        "error: stop at an image that cannot be decoded; skip: list it",
        one_of("error", "skip"),
    ),
    Key(
        "data.max_megapixels",
        179.0,
        "a larger image counts as one that cannot be decoded",
        number(above=0),
    ),
    Key(
        "data.crop",
        "random",
        "training: random (Inception crop), centre, or none (one size already)",
        one_of("random", "centre", "none"),
    ),
    Key(
        "data.crop_scale",
        (0.08, 1.0),
        "area of the random crop, as a fraction of the image's",
        pair(number(above=0, most=1)),
    ),
    Key(
        "data.fast_jpeg",
        True,
        "random crops: decoded faster, off by about 1.4 of 255 levels",
        TRUTH,
    ),
    Key(
        "data.resize",
        None,
        "px, short side before a centre crop; None: 256/224 of image_size",
        optional(SIDE),
    ),
    Key(
        "data.resampling",
        "bilinear",
        "of that resize in evaluation: bilinear, bicubic, lanczos",
        one_of("bilinear", "bicubic", "lanczos"),
    ),
    Key("data.flip", True, "mirror half of the images", TRUTH),
    Key("data.randaugment_layers", 0, "operations in a row; 0: none", whole(0, 100)),
    Key("data.randaugment_magnitude", 9.0, "of these operations, 0 to 10", number(0, 10)),
    Key("data.scenes.train_length", 10_000, "scenes in an epoch", whole(1, 2**31 - 1)),
    Key("data.scenes.val_length", 2_000, "held-out scenes", whole(1, 2**31 - 1)),
    Key("data.scenes.seed", 0, "of the composition", whole(0, 2**63 - 1)),
    Key("data.scenes.classes", 100, "objects with a label: the first so many; 0: all", whole(0)),
    Key(
        "data.scenes.held_out",
        "",
        "classes kept out of training: names, or how many (the last so many)",
        TEXT,
    ),
    Key(
        "data.scenes.val_shows",
        "learned",
        "classes of the held-out scenes: those learned, those held_out, or all",
        one_of("learned", "held_out", "all"),
    ),
    Key("data.scenes.objects", (1, 1), "least and most objects in a scene", pair(whole(1, 10))),
    Key(
        "data.scenes.scale",
        (0.3, 0.55),
        "an object's longer side, as a fraction of the image's",
        pair(number(above=0, most=1)),
    ),
    Key(
        "data.scenes.place",
        (0.0, 1.0),
        "position in the free room; (0.5, 0.5) is the centre",
        pair(SHARE),
    ),
    Key("data.scenes.rotation", 20.0, "degrees, an object's turn at most", number(0, 180)),
    Key(
        "data.scenes.brightness",
        (0.7, 1.1),
        "factor on an object's colours",
        pair(number(0.05, 2)),
    ),
    Key("data.scenes.hue", 20.0, "degrees, the turn of an object's hue at most", number(0, 180)),
    Key("data.scenes.leaves", 0.25, "share of the backgrounds that are dead leaves", SHARE),
    Key("data.scenes.noise", 0.15, "likewise 1/f noise; the rest are photographs", SHARE),
    Key(
        "data.scenes.zoom",
        (1.0, 6.0),
        "photograph pixels per image pixel in the background",
        pair(number(1, 64)),
    ),
    Key("data.scenes.contrast", (0.4, 1.0), "of the background's texture", pair(SHARE)),
    Key(
        "data.scenes.distractors",
        (0, 0),
        "least and most pieces of other backgrounds below the objects",
        pair(whole(0, 16)),
    ),
    Key("data.scenes.occluders", (0, 0), "likewise above the objects", pair(whole(0, 16))),
    Key("optimizer.name", "adamw", "adamw, lion or muon", one_of("adamw", "lion", "muon")),
    Key("optimizer.learning_rate", 1e-3, "peak; with muon, of what AdamW takes", number(0)),
    Key("optimizer.muon_learning_rate", 0.02, "peak of what muon takes", number(0)),
    Key("optimizer.b1", 0.9, "", BELOW_1),
    Key("optimizer.b2", 0.999, "", BELOW_1),
    Key("optimizer.weight_decay", 0.05, "decoupled, times the learning rate", number(0)),
    Key(
        "optimizer.decay_mask",
        "all",
        "all parameters, or only those called kernel",
        one_of("all", "kernel"),
    ),
    Key("optimizer.clip_norm", 0.0, "of the global gradient; 0: no clipping", number(0)),
    Key("optimizer.schedule", "cosine", "cosine or constant", one_of("cosine", "constant")),
    Key("optimizer.warmup", "0 steps", "duration", DURATION),
    Key("optimizer.end_factor", 0.0, "cosine ends at this part of the peak", SHARE),
    Key("evals.validation", "", "period of: loss, top-1 and top-5 of held-out images", PERIOD),
    Key("evals.emergence", "", "[CLS] attention against masks; each layer's measures", PERIOD),
    Key("evals.knn", "never", "nearest neighbours of frozen features", PERIOD),
    Key("evals.probe", "never", "linear probe of frozen features", PERIOD),
    Key("evals.maskcut", "never", "average precision of MaskCut, where the data has masks", PERIOD),
    Key("evaluation.batch_size", 256, "over all devices and processes", whole(1)),
    Key("evaluation.cls_iou", True, "score [CLS] attention where the data has masks", TRUTH),
    Key(
        "evaluation.capture_images",
        2000,
        "held-out images on which the layers are measured; 0: none",
        whole(0),
    ),
    Key("evaluation.keep", 0.6, "of mass or area, by which the rules threshold a map", SHARE),
    Key("evaluation.report_images", 12, "held-out images shown in the report", whole(0)),
)
BY_NAME = {key.name: key for key in KEYS}
FREE = frozenset(key.name for key in KEYS if key.free)


def of_model(family: str) -> list[Key]:
    """The fields of a family's config; one of the named sizes sets them."""
    from crate_jax.models import variants  # JAX: only where they are asked for

    fields = dataclasses.fields(variants.FAMILIES[family][0])
    return [
        Key("model.family", "crate", ", ".join(variants.FAMILIES), one_of(*variants.FAMILIES)),
        *(_of_field(field) for field in fields),
    ]


def _of_field(field: dataclasses.Field) -> Key:
    meaning = field.metadata.get("meaning", "")
    return Key(f"model.{field.name}", field.default, meaning, checks.like(field.default))


def of_models() -> list[Key]:
    """The model keys of every family, the shared ones first, each once."""
    from crate_jax.models import variants

    by_family = {family: of_model(family) for family in variants.FAMILIES}
    names = collections.Counter(key.name for keys in by_family.values() for key in keys)
    found = {}
    for family, keys in by_family.items():
        for key in keys:
            if names[key.name] < len(by_family):
                key = dataclasses.replace(key, meaning=f"[{family}] {key.meaning}".strip())
            found.setdefault(key.name, key)
    return list(found.values())


def known(prefix: str = "") -> list[Key]:
    """The keys that begin so."""
    wanted_models = "model.".startswith(prefix) or prefix.startswith("model.")
    keys = (*KEYS, *(of_models() if wanted_models else ()))
    return [key for key in keys if key.name.startswith(prefix)]


def main(argv: list[str] | None = None) -> int:
    """Prints the keys that begin with the argument; returns the exit status."""
    parser = command_line.parser("python -m crate_jax.keys", __doc__)
    names = parser.add_argument("prefix", nargs="?", default="", help="of the keys; default: all")
    names.completer = lambda prefix, **_: [key.name for key in known(prefix)]
    wanted = command_line.parse(parser, argv).prefix
    return command_line.run(functools.partial(_print, wanted), threads=0)


def _print(prefix: str) -> int:
    chosen = known(prefix)
    if not chosen:
        raise ValueError(f"no config key begins with {prefix!r}")
    lines = [f"{key.name} = {key.default!r}" for key in chosen]
    width = min(48, max(map(len, lines)))
    for key, line in zip(chosen, lines, strict=True):
        print(f"{line:{width}}  {key.meaning}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
