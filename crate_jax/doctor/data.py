"""Which data lies in a folder: recognised by its layout, counted by that layout's reader."""

import os
import pathlib
from collections.abc import Iterator

from crate_jax.doctor.findings import Finding, note, ok, problem
from crate_jax.doctor.machine import home

_ARCHIVE = "ILSVRC2012_img_train.tar"


def default() -> Iterator[Finding]:
    """What is found without being told: the embedded scenes, and prepared TFDS datasets."""
    from crate_jax.data import scenes

    source = scenes.Scenes("val", image_size=32, length=1)
    image = source[0]["image"]
    yield ok("data", f"scenes: in the package, {source.num_classes} classes, {_shape(image)}")
    root = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    names = sorted({str(f.parents[1].name) for f in _prepared(_path(root))})
    if names:
        yield ok("data", f"TFDS at {root}: {', '.join(names)}")


def folder(place: str) -> Finding:
    """The data in one folder, or which layouts were looked for."""
    path = _path(place)
    if not path.is_dir():
        return problem("data", f"{place}: no such folder", "give the folder that holds the data")
    for look in (_voc, _coco, _tfds, _archives, _images, _classes):
        try:
            if found := look(path):
                return found
        except (ValueError, OSError) as error:  # the reader's message names what is missing
            first, _, rest = str(error).partition("\n")
            name = look.__name__.strip("_")
            return problem("data", f"{place}: looks like {_NAMES[name]}: {first}", rest or first)
    entries = sorted(p.name for p in path.iterdir())
    shown = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "") or "nothing"
    return problem(
        "data",
        f"{place}: holds {shown}; no layout that is known",
        "expected class folders (train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg), a folder "
        "of TFDS (NAME/VERSION/dataset_info.json), VOCdevkit, or COCO (annotations/, val2017/)",
    )


_NAMES = {
    "voc": "PASCAL VOC",
    "coco": "COCO",
    "tfds": "TFDS",
    "archives": "the archives of ImageNet",
    "images": "images",
    "classes": "class folders",
}


def _path(place: str) -> pathlib.Path:
    return pathlib.Path(place).expanduser()


def _shape(image) -> str:
    return " x ".join(str(side) for side in image.shape)


def _voc(path: pathlib.Path) -> Finding | None:
    places = (path, path / "VOC2012", path / "VOCdevkit" / "VOC2012")
    if not any((place / "JPEGImages").is_dir() for place in places):
        return None
    from crate_jax.data import voc

    found = voc.VOC(path)
    classes = len(set(found.labels(found.names[0]).flat) - {0, voc.VOID})
    return ok(
        "data",
        f"{home(str(path))}: PASCAL VOC, {len(found):,} images in val; {found.names[0]} holds "
        f"{classes} classes",
        f"python -m crate_jax.score --dataset=voc --root={path} --checkpoint=RUN --out=SCORES",
    )


def _coco(path: pathlib.Path) -> Finding | None:
    files = sorted((path / "annotations").glob("instances_*.json"))
    if not files:
        return None
    from crate_jax.data import coco

    # val first: reading the 450 MB of the training annotations takes a minute
    split = min((f.stem.removeprefix("instances_") for f in files), key=lambda s: "train" in s)
    found = coco.COCO(path, split)
    return ok(
        "data",
        f"{home(str(path))}: COCO, {len(found):,} images and "
        f"{len(found.annotations['annotations']):,} objects in {split}",
        f"python -m crate_jax.score --dataset=coco --root={path} --split={split} "
        "--checkpoint=RUN --out=SCORES",
    )


def _prepared(path: pathlib.Path) -> list[pathlib.Path]:
    """Every dataset_info.json of TFDS at a dataset's, a version's or the data folder itself."""
    patterns = ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json")
    return sorted(f for p in (*patterns, "*/*/*/dataset_info.json") for f in path.glob(p))


def _tfds(path: pathlib.Path) -> Finding | None:
    files = _prepared(path)
    if not files:
        return None
    from crate_jax.data import tfds

    counts = []
    for file in files[:10]:
        source = tfds.TfdsSource(str(file.parent), "train")
        name = "/".join(file.parent.relative_to(path).parts) or path.name
        counts.append(f"{name} ({len(source):,} training images, {source.num_classes} classes)")
    more = f" and {len(files) - 10} more" if len(files) > 10 else ""
    return ok(
        "data",
        f"{home(str(path))}: TFDS, {', '.join(counts)}{more}",
        f"--config.data.name=tfds --config.data.dataset=NAME --config.data.data_dir={path}",
    )


def _archives(path: pathlib.Path) -> Finding | None:
    if not (path / _ARCHIVE).is_file():
        return None
    return note(
        "data",
        f"{home(str(path))}: the archives of ImageNet-1k, not unpacked",
        f"python -m crate_jax.data.prepare imagenet --tars={path} --out=IMAGES",
    )


def _images(path: pathlib.Path) -> Finding | None:
    from crate_jax.data import folders

    names = [p.name for p in path.iterdir() if p.name.lower().endswith(folders.EXTENSIONS)]
    if not names:
        return None
    return ok(
        "data",
        f"{home(str(path))}: {len(names):,} images without class folders, to segment",
        f"python -m crate_jax.segment --checkpoint=RUN --images={path} --out=RESULTS "
        "--method=maskcut (training needs a folder for each class)",
    )


def _classes(path: pathlib.Path) -> Finding | None:
    from crate_jax.data import folders

    inside = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if not inside:
        return None
    split = any(p.name == "train" for p in inside)
    if not split and not any(
        name.lower().endswith(folders.EXTENSIONS) for p in inside[:20] for name in os.listdir(p)
    ):
        return None
    held_out = 0.0 if split and len(inside) > 1 else 0.1
    train, val = (folders.Folder(str(path), s, val_fraction=held_out) for s in ("train", "val"))
    image = train[0]["image"]
    setting = f"--config.data.root={path} --config.model.classes={train.num_classes}"
    if held_out:
        setting += f" --config.data.val_fraction={held_out}"
    return ok(
        "data",
        f"{home(str(path))}: class folders, {train.num_classes} classes, {len(train):,} training "
        f"and {len(val):,} validation images; the first is {_shape(image)}",
        setting,
    )
