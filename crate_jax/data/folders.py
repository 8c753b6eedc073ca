"""Images in class folders.

    ROOT/train/CLASS/*.jpg   and   ROOT/val/CLASS/*.jpg      (ImageNet's layout), or
    ROOT/CLASS/*.jpg         with `val_fraction` of every class held out.

Classes are numbered in the sorted order of their folders' names, as everywhere.
"""

import bisect
import errno
import math
import os

import numpy as np

from crate_jax.data import decode, randomness

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_VAL_NAMES = ("val", "validation", "valid", "test")

_LAYOUT = """Expected one folder for each class:
    {root}/train/CLASS/*.jpg
    {root}/val/CLASS/*.jpg
or {root}/CLASS/*.jpg with config.data.val_fraction set (0.1 holds out a tenth of every class).
Two ways to prepare ImageNet:
  1. class folders: python -m crate_jax.data.prepare imagenet --tars=DIR --out={root}
     (DIR holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz)
  2. TFDS: tfds build imagenet2012 --file_format=array_record, then
     --config.data.name=tfds --config.data.dataset=imagenet2012"""


class Folder:
    """Random-access source of the images in class folders.

    `source[i]` is a dict of `image` uint8[h, w, 3] (decoded at full size), `label` int32 and
    `index` int64; `encoded(i)` the same with an image that is not decoded yet.

    Args:
        root: the folder that holds `train` and `val`, or the class folders.
        split: "train" or "val"; also called "validation", "valid", "test", as may be its folder.
        val_fraction: in [0, 1); of every class of a single-folder layout (at least one image),
            chosen by a fixed shuffle of the sorted names. Must be 0 where the two folders exist.
        on_corrupt: "error" stops at an image that cannot be decoded, naming it; "skip" puts the
            next readable one in its place when training and leaves it out when evaluating, counts
            and logs.
        max_megapixels: a larger image counts as one that cannot be decoded.

    Raises:
        ValueError: a folder that is missing, empty or mixed up; says what was expected and found.
    """

    has_masks = False

    def __init__(
        self,
        root: str,
        split: str,
        *,
        val_fraction: float = 0.0,
        on_corrupt: str = "error",
        max_megapixels: float = decode.MAX_MEGAPIXELS,
    ):
        if split not in ("train", *_VAL_NAMES):
            raise ValueError(f"split: expected 'train' or 'val', got {split!r}")
        if on_corrupt not in ("error", "skip"):
            raise ValueError(f"on_corrupt: expected 'error' or 'skip', got {on_corrupt!r}")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction: expected a number in [0, 1), got {val_fraction}")
        if not 0 < max_megapixels < math.inf:
            raise ValueError(f"max_megapixels: expected a number above 0, got {max_megapixels}")
        if not root:
            layout = _LAYOUT.format(root="ROOT")
            raise ValueError(
                "config.data.root: expected a folder of images, got nothing; set "
                f"--config.data.root=ROOT.\n{layout}"
            )
        self.max_megapixels = max_megapixels
        self.root, self.on_corrupt = os.path.abspath(os.path.expanduser(root)), on_corrupt
        self.split = "train" if split == "train" else "val"
        self._folder, held_out = self._find_split(val_fraction)
        self.class_names = self._classes(self._folder)
        self._check_same_classes(held_out)
        per_class = [self._images(name) for name in self.class_names]
        if val_fraction:
            per_class = [self._part(k, names, val_fraction) for k, names in enumerate(per_class)]
        self._ends = np.cumsum([len(names) for names in per_class]).tolist()
        # One string for all names: a million Python strings would weigh 100 MB in every worker.
        lengths = [len(os.fsencode(name)) for names in per_class for name in names]
        self._name_ends = np.cumsum(lengths)
        self._names = b"".join(os.fsencode(name) for names in per_class for name in names)

    @property
    def num_classes(self) -> int:
        """Number of class folders."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._name_ends)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The example `index`, decoded at full size."""
        example = self.encoded(index)
        return example | {"image": example["image"].decode()}

    def encoded(self, index: int) -> dict:
        """The example `index` with its image as a `decode.Encoded`."""
        path = self.path(index)
        try:
            image = decode.read(path, self.max_megapixels)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path} has vanished since the folder was listed. Put it back, or start again to "
                "list the folder anew (the order of the data will change)."
            ) from error
        return {"image": image, "label": self._label(index), "index": np.int64(index)}

    def path(self, index: int) -> str:
        """The file of example `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        start = self._name_ends[index - 1] if index else 0
        name = os.fsdecode(self._names[start : self._name_ends[index]])
        return os.path.join(self._folder, self.class_names[self._label(index)], name)

    def _label(self, index: int) -> np.int32:
        return np.int32(bisect.bisect_right(self._ends, index))

    def _find_split(self, val_fraction: float) -> tuple[str, str | None]:
        """The folder of class folders, and that of the other split if there is one."""
        if not os.path.isdir(self.root):
            raise self._error("no such folder")
        folders = _scan(self.root)[0]
        val = next((name for name in _VAL_NAMES if name in folders), None)
        if "train" in folders and val:
            if val_fraction:
                raise self._error(
                    f"folders train and {val}, but val_fraction={val_fraction}; set 0"
                )
            mine, other = ("train", val) if self.split == "train" else (val, "train")
            return os.path.join(self.root, mine), os.path.join(self.root, other)
        if "train" in folders or val:
            if not (val_fraction and "train" in folders):
                raise self._error(f"only the folder {'train' if 'train' in folders else val}")
            return os.path.join(self.root, "train"), None
        if not val_fraction:
            raise self._error(
                f"{len(folders)} folders, none called train or val, and val_fraction=0"
                if folders
                else "no folders"
            )
        return self.root, None

    def _classes(self, folder: str) -> tuple[str, ...]:
        classes, files = _scan(folder)
        if images := [name for name in files if _is_image(name)]:
            raise self._error(f"{len(images)} images directly in {folder} ({images[0]}, ...)")
        if not classes:
            raise self._error(f"no class folders in {folder}")
        return tuple(classes)

    def _images(self, name: str) -> list[str]:
        folders, files = _scan(os.path.join(self._folder, name))
        images = [file for file in files if _is_image(file)]
        if not images:
            raise self._error(
                f"no image ({', '.join(EXTENSIONS)}) in the class folder "
                f"{os.path.join(self._folder, name)}, which holds {len(folders)} folders and "
                f"{len(files)} other files"
            )
        return images

    def _check_same_classes(self, other: str | None) -> None:
        if other is None:
            return
        theirs = self._classes(other)
        if theirs != self.class_names:
            only_here = sorted(set(self.class_names) - set(theirs))
            only_there = sorted(set(theirs) - set(self.class_names))
            raise self._error(
                f"different classes: {len(only_here)} only in {self._folder} "
                f"({', '.join(only_here[:3])}), {len(only_there)} only in {other} "
                f"({', '.join(only_there[:3])})"
            )

    def _part(self, label: int, names: list[str], val_fraction: float) -> list[str]:
        """This split's part of a class's sorted names, in sorted order."""
        if len(names) < 2:
            raise self._error(
                f"a single image in the class {self.class_names[label]}, which cannot be split"
            )
        held_out = min(max(round(len(names) * val_fraction), 1), len(names) - 1)
        order = randomness.generator(0, randomness.FOLDER_SPLIT, 0, label).permutation(len(names))
        chosen = order[:held_out] if self.split == "val" else order[held_out:]
        return [names[k] for k in np.sort(chosen)]

    def _error(self, found: str) -> ValueError:
        layout = _LAYOUT.format(root=self.root)
        return ValueError(f"Cannot read images from {self.root}.\nFound: {found}.\n{layout}")


def _scan(folder: str) -> tuple[list[str], list[str]]:
    """Sorted names of the folders and of the files in `folder`, hidden ones left out."""
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if _is_folder(entry) else files).append(entry.name)
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link to itself is a file that cannot be read
            raise
        return False


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)
