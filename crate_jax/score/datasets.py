"""Datasets to score on, each with what its protocol needs: label maps, instances, or both."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from crate_jax.data import images
from crate_jax.data.coco import COCO
from crate_jax.data.coco20k import LIST, COCO20k
from crate_jax.data.objects import table
from crate_jax.data.saliency_sets import SaliencySet
from crate_jax.data.scenes import Scenes
from crate_jax.data.voc import VOC, VOID
from crate_jax.data.voc_boxes import Boxes, VOCBoxes
from crate_jax.data.voc_patches import CLASSES, VOCPatches
from crate_jax.export.coco import encode_mask
from crate_jax.models.base import ImageModelConfig
from crate_jax.score.names import TASKS
from crate_jax.segmentation import average_precision

SCENES = 500  # how many are scored
SCENE_CLASSES = 100  # of them for a network that was trained on something else
_COMPOSED = 32  # scenes kept: those of a batch that is measured, and of the next that is read


def classes_known(config: ImageModelConfig) -> int:
    """How many of the objects of scenes a network was trained to name, the first ones."""
    return config.classes if 1 < config.classes <= len(table()) else SCENE_CLASSES


class Unusable(ValueError):
    """An example that cannot be scored; the message says why in one line."""


class Dataset(Protocol):
    """What scoring asks of a dataset.

    Attributes:
        names: of the examples, in order.
        tasks: what can be scored on it: attention and knn need `labels`, maskcut `image_id` and
            `ground_truth`, corloc `boxes` and `box_settings`, saliency `salient`, knn also
            `classes`, `memory`, `read_memory` and `labels_of_memory`.
        own_sizes: whether the images' sizes mean something; else all are resized to the input.
        void: the label of pixels that count for nothing.
        most_labels: that one label map can hold, of a set that knn is scored on.
        notes: what is unusual of the files, in lines.
    """

    names: Sequence[str]
    tasks: Sequence[str]
    own_sizes: bool
    void: int
    notes: Sequence[str]

    def read(self, name: str) -> np.ndarray:
        """The image uint8[height, width, 3]; raises `Unusable`."""
        ...

    def labels(self, name: str) -> np.ndarray:
        """Label map int[height, width], 0 background; raises `Unusable`."""
        ...

    def image_id(self, name: str) -> int:
        """The id that the ground truth has for an image."""
        ...

    def ground_truth(self, names: Sequence[str]) -> Mapping[str, Any]:
        """A COCO dictionary of these images."""
        ...

    def boxes(self, name: str) -> np.ndarray:
        """Boxes of the objects f64[k, 4] as pixel edges: left, top, right, bottom."""
        ...

    def salient(self, name: str) -> np.ndarray:
        """Mask of the salient object, uint8[height, width]; raises `Unusable`."""
        ...


class VocLabels:
    """PASCAL VOC's semantic label maps (`data.voc.VOC`)."""

    tasks, own_sizes, notes = ("attention", "artifacts"), True, ()
    void = VOID

    def __init__(self, root: str | os.PathLike, split: str, limit: int | None):
        self._voc = VOC(root, split)
        self.names = self._voc.names[:limit]

    def read(self, name: str) -> np.ndarray:
        """The photograph."""
        pixels = _read(self._voc.image_path(name))
        labels = self.labels(name)
        if labels.shape != pixels.shape[:2]:
            raise Unusable(f"the image is {pixels.shape[:2]}, its label map {labels.shape}")
        return pixels

    def labels(self, name: str) -> np.ndarray:
        """The label map."""
        try:
            return self._voc.labels(name)
        except ValueError as error:
            raise Unusable(str(error)) from error


class CocoInstances:
    """COCO's annotated instances (`data.coco.COCO`)."""

    tasks, own_sizes, notes = ("maskcut", "artifacts"), True, ()

    def __init__(self, root: str | os.PathLike, split: str, limit: int | None):
        self._coco = COCO(root, split, limit)
        self.names = self._coco.names
        average_precision.checked_truth(self._coco.annotations)  # said before all work

    def read(self, name: str) -> np.ndarray:
        """The photograph."""
        pixels, size = _read(self._coco.image_path(name)), self._coco.sizes[name]
        if pixels.shape[:2] != size:
            raise Unusable(f"the image is {pixels.shape[:2]}, its annotation says {size}")
        return pixels

    def image_id(self, name: str) -> int:
        """COCO's own id."""
        return self._coco.ids[name]

    def ground_truth(self, names: Sequence[str]) -> dict[str, Any]:
        """The images' part of the annotation file."""
        chosen = {self.image_id(name) for name in names}
        whole = self._coco.annotations
        return {
            "images": [image for image in whole["images"] if image["id"] in chosen],
            "annotations": [a for a in whole["annotations"] if a["image_id"] in chosen],
        }


class SceneInstances:
    """Composed scenes of one to a few objects (`data.scenes.Scenes`): labels and instances.

    Args:
        image_size: side of the scenes in pixels.
        limit: how many; None for 500.
        objects: least and most objects in a scene.
        seed: of the composition.
        classes: how many of the objects are shown, the first ones.
    """

    tasks, own_sizes, notes = TASKS, False, ()
    void = -1  # none: 255 is a class among 600
    box_settings: Mapping[str, Any] = {}

    def __init__(
        self,
        image_size: int,
        limit: int | None,
        objects: tuple[int, int],
        seed: int = 0,
        classes: int = SCENE_CLASSES,
    ):
        length = limit or SCENES
        options = {"length": length, "objects": objects, "seed": seed, "classes": classes}
        self._scenes = Scenes("val", image_size=image_size, **options)
        train = Scenes("train", image_size=image_size, **options)
        # Several tasks ask for a scene while its batch is worked on.
        self._composed = functools.lru_cache(_COMPOSED)(self._scenes.instances)
        self._remembered = functools.lru_cache(_COMPOSED)(train.instances)
        self.names = [str(index) for index in range(length)]
        self.classes = 1 + classes
        self.most_labels = 1 + objects[1]
        self.memory = self.names

    def read(self, name: str) -> np.ndarray:
        """The scene."""
        return self._composed(int(name))["image"]

    def labels(self, name: str) -> np.ndarray:
        """1 + the object's class where one is visible, 0 elsewhere."""
        return _label_map(self._composed(int(name)))

    def boxes(self, name: str) -> np.ndarray:
        """The tight box of what is visible of each object."""
        return self._composed(int(name))["boxes"].astype(np.float64)

    def salient(self, name: str) -> np.ndarray:
        """All objects, 255."""
        return (self.labels(name) > 0).astype(np.uint8) * 255

    def read_memory(self, name: str) -> np.ndarray:
        """A scene of the training split."""
        return self._remembered(int(name))["image"]

    def labels_of_memory(self, name: str) -> np.ndarray:
        """Its label map."""
        return _label_map(self._remembered(int(name)))

    def image_id(self, name: str) -> int:
        """One more than the scene's index."""
        return int(name) + 1

    def ground_truth(self, names: Sequence[str]) -> dict[str, Any]:
        """Every visible object as an annotation."""
        side, annotations = self._scenes.image_size, []
        for name in names:
            found = self._composed(int(name))
            for mask, (left, top, right, bottom) in zip(
                found["masks"], found["boxes"].tolist(), strict=True
            ):
                annotations.append(
                    {
                        "image_id": self.image_id(name),
                        "segmentation": encode_mask(mask),
                        "bbox": [left, top, right - left, bottom - top],
                        "area": int(mask.sum()),
                    }
                )
        listed = [{"id": self.image_id(n), "height": side, "width": side} for n in names]
        return {"images": listed, "annotations": annotations}


def _label_map(found: Mapping[str, np.ndarray]) -> np.ndarray:
    labels = np.zeros(found["masks"].shape[1:], np.int16)
    for mask, label in zip(found["masks"], found["labels"], strict=True):
        labels[mask] = label + 1
    return labels


class DiscoveryBoxes:
    """VOC07, VOC12 (trainval, of the detection list) or COCO20k: boxes of every object.

    Args:
        name: "voc07", "voc12" or "coco20k".
        root: see `data.voc_boxes.VOCBoxes` and `data.coco20k.COCO20k`.
        split: of VOC, the list; of COCO20k the list's file; None for the published ones.
        limit: only the first so many.
        without_difficult: leave out VOC's difficult and truncated boxes, and images left without.
    """

    tasks, own_sizes = ("corloc", "artifacts"), True

    def __init__(
        self,
        name: str,
        root: str | os.PathLike,
        split: str | None,
        limit: int | None,
        without_difficult: bool = False,
    ):
        if name == "coco20k":
            self._data = COCO20k(root, split or LIST)
        else:
            self._data = VOCBoxes(root, {"voc07": 2007, "voc12": 2012}[name], split or "trainval")
        self.names, self.notes = self._data.names[:limit], self._data.notes
        self._without_difficult = without_difficult
        self.box_settings = {"without_difficult": without_difficult}

    def read(self, name: str) -> np.ndarray:
        """The photograph, in the frame of its annotation."""
        pixels, size = _read(self._data.image_path(name)), self._annotated(name).size
        if size is not None and 0 not in size and pixels.shape[:2] != size:
            raise Unusable(f"the image is {pixels.shape[:2]}, its annotation says {size}")
        return pixels

    def boxes(self, name: str) -> np.ndarray:
        """The boxes that count."""
        found = self._annotated(name)
        left_out = (found.difficult | found.truncated) & self._without_difficult
        return found.boxes[~left_out]

    def _annotated(self, name: str) -> Boxes:
        try:
            return self._data.boxes(name)
        except ValueError as error:
            raise Unusable(str(error)) from error


class SalientObjects:
    """ECSSD, DUTS-TE or DUT-OMRON (`data.saliency_sets.SaliencySet`)."""

    tasks, own_sizes = ("saliency", "artifacts"), True

    def __init__(self, name: str, root: str | os.PathLike, limit: int | None):
        self._data = SaliencySet(name, root)
        self.names, self.notes = self._data.names[:limit], self._data.notes

    def read(self, name: str) -> np.ndarray:
        """The photograph, of its mask's size."""
        pixels, truth = _read(self._data.image_path(name)), self.salient(name)
        if truth.shape != pixels.shape[:2]:
            raise Unusable(f"the image is {pixels.shape[:2]}, its mask {truth.shape}")
        return pixels

    def salient(self, name: str) -> np.ndarray:
        """The mask, 8-bit grey."""
        try:
            return self._data.mask(name)
        except ValueError as error:
            raise Unusable(str(error)) from error


class VocMemory:
    """VOC's val beside its augmented training split (`data.voc_patches.VOCPatches`)."""

    tasks, own_sizes = ("knn", "attention", "artifacts"), True
    classes = most_labels = CLASSES
    void = VOID

    def __init__(self, root: str | os.PathLike, limit: int | None, memory_limit: int | None):
        self._data = VOCPatches(root)
        self.names, self.notes = self._data.names["val"][:limit], self._data.notes
        self.memory = self._data.names["trainaug"][:memory_limit]

    def read(self, name: str) -> np.ndarray:
        """A photograph of val."""
        return self._of_size(name, self.labels(name))

    def labels(self, name: str) -> np.ndarray:
        """Its label map."""
        return self._labels("val", name)

    def read_memory(self, name: str) -> np.ndarray:
        """A photograph of trainaug."""
        return self._of_size(name, self.labels_of_memory(name))

    def labels_of_memory(self, name: str) -> np.ndarray:
        """Its label map."""
        return self._labels("trainaug", name)

    def _of_size(self, name: str, labels: np.ndarray) -> np.ndarray:
        pixels = _read(self._data.image_path(name))
        if labels.shape != pixels.shape[:2]:
            raise Unusable(f"the image is {pixels.shape[:2]}, its label map {labels.shape}")
        return pixels

    def _labels(self, split: str, name: str) -> np.ndarray:
        try:
            return self._data.labels(split, name)
        except ValueError as error:
            raise Unusable(str(error)) from error


def _read(path: os.PathLike) -> np.ndarray:
    try:
        return images.read(path, upright=False).pixels  # as the annotators saw it
    except images.UnreadableImage as error:
        raise Unusable(f"unreadable: {error}") from error
    except OSError as error:
        raise Unusable(f"{error.strerror or error}") from error
