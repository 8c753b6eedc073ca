"""PASCAL VOC 2012 segmentation, in its official layout as unpacked.

VOCdevkit/VOC2012/JPEGImages/ID.jpg
VOCdevkit/VOC2012/SegmentationClass/ID.png        palette PNG: class 1..20, 0 background, 255 void
VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt  the 1,449 ids of the validation split
"""

import io
import os
import pathlib

import numpy as np
from PIL import Image

from crate_jax.data import decode, listing

VOID = 255
CLASS_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)

_HOW = """Expected the official layout, as it unpacks:
    {root}/VOCdevkit/VOC2012/JPEGImages, SegmentationClass, ImageSets/Segmentation/{split}.txt
Get VOCtrainval_11-May-2012.tar (2 GB) from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and
unpack it: tar -xf VOCtrainval_11-May-2012.tar -C {root}"""


class VOC:
    """The images and semantic label maps of a split.

    Args:
        root: VOCdevkit, VOC2012, or the folder that holds VOCdevkit.
        split: the name of a list in ImageSets/Segmentation.

    Attributes:
        names: the ids, in the order of the list.

    Raises:
        ValueError: names every part that is missing, and says how to get it.
    """

    def __init__(self, root: str | os.PathLike, split: str = "val"):
        root = pathlib.Path(os.path.expanduser(root))
        places = [root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"]
        self.root = next((p for p in places if (p / "SegmentationClass").is_dir()), None)
        if self.root is None:
            self.root = next((p for p in places if (p / "JPEGImages").is_dir()), places[-1])
        listed = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        parts = [self.root / "JPEGImages", self.root / "SegmentationClass", listed]
        how = _HOW.format(root=root, split=split)
        listing.expect_parts("VOC", parts, how)
        self.names = [line.split()[0] for line in listing.lines(listed)]
        files = [path(name) for name in self.names for path in (self.image_path, self.label_path)]
        listing.expect_files("VOC", files, listed, how)

    def __len__(self) -> int:
        return len(self.names)

    def image_path(self, name: str) -> pathlib.Path:
        """The photograph of an id."""
        return self.root / "JPEGImages" / f"{name}.jpg"

    def label_path(self, name: str) -> pathlib.Path:
        """The label map of an id."""
        return self.root / "SegmentationClass" / f"{name}.png"

    def labels(self, name: str) -> np.ndarray:
        """The label map of an id; see `read_labels`."""
        return read_labels(self.label_path(name))


def read_labels(path: pathlib.Path) -> np.ndarray:
    """A label map uint8[height, width]: 1..20, 0 background, 255 void.

    Raises:
        ValueError: a PNG that holds colours in place of class numbers, or that is damaged.
    """
    try:
        encoded = decode.read(path)
        _ = encoded.size  # kind, size and checksums, before anything is decoded
        with Image.open(io.BytesIO(encoded.data), formats=("PNG",)) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(
                    f"{path}: expected class numbers (a palette PNG), got colours (mode "
                    f"{image.mode}); take the original file of VOC"
                )
            return np.asarray(image)
    except decode.CorruptImage as error:
        raise ValueError(f"{path}: expected a label map, got {error.reason}") from error
    except (OSError, SyntaxError) as error:  # SyntaxError: Pillow's word for a broken PNG
        raise ValueError(f"{path}: expected a label map, got {error}") from error
