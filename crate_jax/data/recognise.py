"""What data a folder holds, told by a file of its layout and counted by its reader."""

import pathlib

from crate_jax.data import coco, folders, tfds, voc

LAYOUTS = {
    "PASCAL VOC": ("JPEGImages", "VOC2012", "VOCdevkit/VOC2012"),
    "COCO": ("annotations/instances_val*.json", "annotations/instances_*.json"),
    "TFDS": ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json"),
    "archives of ImageNet": ("ILSVRC2012_img_train.tar",),
    "images": ("*.[jJ][pP]*[gG]", "*.png"),
    "class folders": ("*/*.[jJ][pP]*[gG]", "*/*.png", "train/*/*"),
}


def layout_of(folder: pathlib.Path) -> tuple[str, pathlib.Path] | None:
    """The layout of a folder, and the file that told it; None where none is known."""
    for layout, patterns in LAYOUTS.items():
        if file := next((file for pattern in patterns for file in folder.glob(pattern)), None):
            return layout, file
    return None


def count(layout: str, folder: pathlib.Path, file: pathlib.Path) -> str:
    """How many images there are, and what to say of them to a config.

    Raises:
        ValueError: the folder does not hold all that its layout has; names what is missing.
    """
    if layout == "PASCAL VOC":
        return f"{len(voc.VOC(folder)):,} images in val"
    if layout == "COCO":
        split = file.stem.removeprefix("instances_")
        return f"{len(coco.COCO(folder, split)):,} images in {split}"
    if layout == "TFDS":
        return f"{len(tfds.TfdsSource(str(file.parent), 'train')):,} training images"
    if layout != "class folders":
        return f"as {file.name}; train from class folders: python -m crate_jax.data.prepare --help"
    held_out = 0.0 if (folder / "train").is_dir() else 0.1
    train, val = (folders.Folder(str(folder), s, val_fraction=held_out) for s in ("train", "val"))
    setting = f" --config.data.val_fraction={held_out}" if held_out else ""
    counts = f"{len(train):,} training and {len(val):,} validation images"
    return f"{counts}: --config.model.classes={train.num_classes}{setting}"
