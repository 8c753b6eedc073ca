"""COCO20k: the 19,817 images of train2014 on which object discovery is compared.

ROOT/coco_20k_filenames.txt                    lines train2014/COCO_train2014_000000560992.jpg
ROOT/annotations/instances_train2014.json
ROOT/train2014/COCO_train2014_000000560992.jpg ... or ROOT/train2017/000000560992.jpg ...

The list was drawn at random once and cannot be derived: whoever scores brings the file of LOST or
TokenCut (datasets/coco_20k_filenames.txt in either), or the bare ids.
"""

import hashlib
import math
import os
import pathlib

import numpy as np

from crate_jax.data import listing
from crate_jax.data.voc_boxes import Boxes
from crate_jax.files import read_json

COUNT = 19_817
SORTED_IDS_SHA256 = "1a94264b453316d3ba68764f6f1e2032e599a5f32513b9f274079185841fb87a"
LIST = "coco_20k_filenames.txt"
_HOW = """Expected
    {root}/{list}: datasets/coco_20k_filenames.txt of LOST or TokenCut, or ids, one a line
    {root}/annotations/instances_train2014.json
    {root}/train2014/COCO_train2014_000000560992.jpg ... (or train2017/000000560992.jpg ...)
Get and unpack into {root}:
    http://images.cocodataset.org/zips/train2014.zip
    http://images.cocodataset.org/annotations/annotations_trainval2014.zip"""
_FOLDERS = {
    "train2014": "COCO_train2014_{id:012d}.jpg",
    "images/train2014": "COCO_train2014_{id:012d}.jpg",
    "train2017": "{id:012d}.jpg",
    "images/train2017": "{id:012d}.jpg",
}


class COCO20k:
    """The images of a list and the boxes of their objects, crowds left out.

    Args:
        root: the folder that holds `annotations`, the images and the list.
        listed: the file of the list, in `root` if it is no absolute path.

    Attributes:
        names: the ids as text, in the order of the list.
        notes: how the list differs from the published one, in lines.

    Raises:
        ValueError: names every part that is missing, and says how to get it; lines that hold no id;
            ids without annotation.
    """

    def __init__(self, root: str | os.PathLike, listed: str | os.PathLike = LIST):
        root = pathlib.Path(os.path.expanduser(root))
        how = _HOW.format(root=root, list=LIST)
        listed = root / pathlib.Path(os.path.expanduser(listed))
        file = root / "annotations" / "instances_train2014.json"
        self._folder = next((f for f in _FOLDERS if (root / f).is_dir()), "train2014")
        self.root = root
        listing.expect_parts("COCO20k", [listed, file, root / self._folder], how)
        ids, self.notes = _ids(listed)
        self.names = [str(image) for image in ids]
        self._read_annotations(file, ids)
        files = [self.image_path(name) for name in self.names]
        listing.expect_files("COCO20k", files, listed, how)

    def _read_annotations(self, file: pathlib.Path, ids: list[int]) -> None:
        try:
            everything = read_json(file)
            chosen = set(ids)
            self.sizes = {
                str(i["id"]): (int(i["height"]), int(i["width"]))
                for i in everything["images"]
                if i["id"] in chosen
            }
            boxes: dict[str, list] = {name: [] for name in self.sizes}
            for annotation in everything["annotations"]:
                if annotation["image_id"] in chosen and not annotation.get("iscrowd", 0):
                    x, y, width, height = annotation["bbox"]
                    if not all(map(math.isfinite, (x, y, width, height))):
                        raise ValueError(f"a bbox {annotation['bbox']}")
                    boxes[str(annotation["image_id"])].append([x, y, x + width, y + height])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"COCO20k: {file}: expected a whole annotation file, got "
                f"{type(error).__name__}: {error}; fetch it again"
            ) from error
        if unknown := [name for name in self.names if name not in self.sizes]:
            raise ValueError(
                f"COCO20k: expected the {len(self.names)} ids of the list in {file}, got all but "
                f"{len(unknown)}, the first {listing.some(unknown)}; the list is of train2014"
            )
        self._boxes = boxes

    def image_path(self, name: str) -> pathlib.Path:
        """The photograph of an id."""
        return self.root / self._folder / _FOLDERS[self._folder].format(id=int(name))

    def boxes(self, name: str) -> Boxes:
        """The objects of an id; edges are rounded to whole pixels, halves to the even one."""
        boxes = np.round(np.array(self._boxes[name], np.float64).reshape(-1, 4))
        nothing = np.zeros(len(boxes), bool)
        return Boxes(boxes, nothing, nothing, self.sizes[name])


def _ids(listed: pathlib.Path) -> tuple[list[int], list[str]]:
    """The ids of a list without repetition, and what is unusual of it."""
    lines = listing.lines(listed)
    try:
        ids = [int(pathlib.PurePosixPath(line).stem.rpartition("_")[2]) for line in lines]
    except ValueError as error:
        raise ValueError(
            f"COCO20k: {listed}: expected names that end in _ID.jpg, or ids, got {error}"
        ) from error
    names, notes = listing.once("COCO20k", [str(image) for image in ids], listed)
    ids = [int(name) for name in names]
    text = "".join(f"{image}\n" for image in sorted(ids))
    if len(ids) != COUNT:
        notes.append(f"COCO20k: {listed.name} lists {len(ids)} images, published are {COUNT}")
    if hashlib.sha256(text.encode()).hexdigest() != SORTED_IDS_SHA256:
        notes.append(f"COCO20k: {listed.name} is not the published list: scores are not comparable")
    return ids, notes
