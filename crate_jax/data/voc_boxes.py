"""PASCAL VOC's annotated boxes, for object discovery, in the official layout as unpacked.

VOCdevkit/VOC2007/JPEGImages/000005.jpg
VOCdevkit/VOC2007/Annotations/000005.xml
VOCdevkit/VOC2007/ImageSets/Main/trainval.txt     the 5,011 ids (VOC2012: 11,540)
"""

import dataclasses
import os
import pathlib
from xml.etree import ElementTree

import numpy as np

from crate_jax.data import listing

TRAINVAL = {2007: 5011, 2012: 11540}
_ARCHIVES = {2007: "VOCtrainval_06-Nov-2007.tar", 2012: "VOCtrainval_11-May-2012.tar"}
_HOW = """Expected the official layout, as it unpacks:
    {root}/VOCdevkit/VOC{year}/JPEGImages, Annotations, ImageSets/Main/{split}.txt
Get {archive} from http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/ and unpack it:
tar -xf {archive} -C {root}"""


@dataclasses.dataclass(frozen=True)
class Boxes:
    """The annotated objects of one image.

    Attributes:
        boxes: f64[k, 4], pixel edges: left, top, right, bottom, the last two exclusive.
        difficult: bool[k], marked as hard to recognise.
        truncated: bool[k], reaching beyond the image.
        size: (height, width) that the annotation says, None where it says none.
    """

    boxes: np.ndarray
    difficult: np.ndarray
    truncated: np.ndarray
    size: tuple[int, int] | None


class VOCBoxes:
    """The images and boxes of a split.

    Args:
        root: VOCdevkit, VOC2007 (or VOC2012) itself, or the folder that holds VOCdevkit.
        year: 2007 or 2012.
        split: the name of a list in ImageSets/Main, one id a line; of a class's list, which has a
            second column, those whose column is not -1.

    Attributes:
        names: the ids, in the order of the list.
        notes: what is unusual, in lines.

    Raises:
        ValueError: names every part and the number of files that are missing, and how to get them.
    """

    def __init__(self, root: str | os.PathLike, year: int, split: str = "trainval"):
        root = pathlib.Path(os.path.expanduser(root))
        self.root = listing.found(
            [root, root / f"VOC{year}", root / "VOCdevkit" / f"VOC{year}"], *_PARTS
        )
        what, archive = f"VOC{year}", _ARCHIVES[year]
        how = _HOW.format(root=root, year=year, split=split, archive=archive)
        listed = self.root / "ImageSets" / "Main" / f"{split}.txt"
        parts = [self.root / "JPEGImages", self.root / "Annotations", listed]
        listing.expect_parts(what, parts, how)
        rows = [line.split() for line in listing.lines(listed)]
        names = [row[0] for row in rows if len(row) == 1 or row[1] != "-1"]
        self.names, self.notes = listing.once(what, names, listed)
        files = [path(n) for n in self.names for path in (self.image_path, self._annotation)]
        listing.expect_files(what, files, listed, how)
        if split == "trainval" and len(self.names) != TRAINVAL[year]:
            self.notes.append(
                f"{what}: {listed.name} lists {len(self.names)} images, published are "
                f"{TRAINVAL[year]}: scores are not comparable"
            )

    def image_path(self, name: str) -> pathlib.Path:
        """The photograph of an id."""
        return self.root / "JPEGImages" / f"{name}.jpg"

    def _annotation(self, name: str) -> pathlib.Path:
        return self.root / "Annotations" / f"{name}.xml"

    def boxes(self, name: str) -> Boxes:
        """The objects of an id, of every class, difficult and truncated ones among them.

        VOC counts pixels from 1 and includes the last, so (xmin, ymin, xmax, ymax) becomes
        (xmin - 1, ymin - 1, xmax, ymax). A few files of 2012 have decimals, which are cut off.
        Boxes of an object's parts are not read.

        Raises:
            ValueError: a file that is no whole annotation.
        """
        path = self._annotation(name)
        try:
            text = path.read_bytes()
            if b"<!ENTITY" in text or b"<!DOCTYPE" in text:
                raise ValueError("a document type")
            tree = ElementTree.fromstring(text)
            objects = tree.findall("object")
            frames = [thing.find("bndbox") for thing in objects]
            if None in frames:
                raise ValueError(f"{frames.count(None)} of {len(frames)} objects without bndbox")
            corners = [
                [int(float(frame.findtext(corner))) for corner in _CORNERS] for frame in frames
            ]
            flags = {
                flag: np.array(
                    [thing.findtext(flag, "0").strip() == "1" for thing in objects], bool
                )
                for flag in ("difficult", "truncated")
            }
            size = tree.find("size")
            size = (
                None
                if size is None
                else (int(size.findtext("height")), int(size.findtext("width")))
            )
        except (OSError, ElementTree.ParseError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: expected an annotation of VOC, got {error}") from error
        boxes = np.array(corners, np.float64).reshape(-1, 4) - np.array([1, 1, 0, 0])
        return Boxes(boxes, **flags, size=size)


_PARTS = ("Annotations", "JPEGImages", "ImageSets/Main")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
