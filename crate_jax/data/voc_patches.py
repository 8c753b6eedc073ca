"""PASCAL VOC 2012 with the augmented labels, in the layout of the Hummingbird evaluation.

ROOT/images/2007_000032.jpg
ROOT/SegmentationClassAug/2007_000032.png     of sets/trainaug.txt, 10,582: the memory
ROOT/SegmentationClass/2007_000033.png        of sets/val.txt, 1,449: the queries
ROOT/sets/trainaug.txt, sets/val.txt
"""

import os
import pathlib

import numpy as np

from crate_jax.data import listing, voc

CLASSES = len(voc.CLASS_NAMES)
COUNTS = {"trainaug": 10_582, "val": 1_449}
_LABELS = {"trainaug": "SegmentationClassAug", "val": "SegmentationClass"}
_HOW = """Expected the layout of open-hummingbird-eval:
    {root}/images/ID.jpg, SegmentationClassAug/ID.png, SegmentationClass/ID.png,
    sets/trainaug.txt, sets/val.txt"""


class VOCPatches:
    """The images and label maps of both splits.

    Args:
        root: the folder, or the one that holds it as VOCSegmentation.

    Attributes:
        names: {"trainaug": ids, "val": ids}, in the order of the lists.
        notes: what is unusual, in lines.

    Raises:
        ValueError: names every part, and the number of files, that are missing.
    """

    def __init__(self, root: str | os.PathLike):
        root = pathlib.Path(os.path.expanduser(root))
        self.root = listing.found([root / "VOCSegmentation", root], "sets", "images")
        how, lists = _HOW.format(root=root), {s: self.root / "sets" / f"{s}.txt" for s in COUNTS}
        parts = [self.root / "images", *(self.root / _LABELS[s] for s in COUNTS), *lists.values()]
        listing.expect_parts("VOC, trainaug", parts, how)
        self.names, self.notes, problems = {}, [], []
        for split, path in lists.items():
            names = [line.split()[0] for line in listing.lines(path)]
            self.names[split], notes = listing.once("VOC", names, path)
            self.notes += notes
            files = [
                p
                for name in self.names[split]
                for p in (self.image_path(name), self.label_path(split, name))
            ]
            try:
                listing.expect_files("VOC, trainaug", files, path, how)
            except ValueError as error:
                problems.append(str(error).removesuffix(f"\n{how}"))
        if problems:
            raise ValueError("\n".join([*problems, how]))
        for split, names in self.names.items():
            if len(names) != COUNTS[split]:
                self.notes.append(
                    f"VOC: {split}.txt lists {len(names)} images, published are {COUNTS[split]}: "
                    "scores are not comparable"
                )

    def image_path(self, name: str) -> pathlib.Path:
        """The photograph of an id."""
        return self.root / "images" / f"{name}.jpg"

    def label_path(self, split: str, name: str) -> pathlib.Path:
        """The label map of an id of a split."""
        return self.root / _LABELS[split] / f"{name}.png"

    def labels(self, split: str, name: str) -> np.ndarray:
        """The label map, uint8[height, width]: 0..20, 255 void; ValueError where it is none."""
        path = self.label_path(split, name)
        labels = voc.read_labels(path)
        if ((labels >= CLASSES) & (labels != voc.VOID)).any():
            raise ValueError(
                f"{path}: expected classes 0 to {CLASSES - 1} or {voc.VOID}, got "
                f"{labels[labels != voc.VOID].max()}; take VOC's original files"
            )
        return labels
