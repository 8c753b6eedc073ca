"""Datasets to score on, each with what its protocol needs: label maps, instances, or both."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from crate_jax.data import images
from crate_jax.data.coco import COCO
from crate_jax.data.scenes import Scenes
from crate_jax.data.voc import VOC
from crate_jax.export.coco import encode_mask

NAMES = ("voc", "coco", "scenes")


class Unusable(ValueError):
    """An example that cannot be scored; the message says why in one line."""


class Dataset(Protocol):
    """What scoring asks of a dataset.

    Attributes:
        names: of the examples, in order.
        has_labels: whether `labels` exists: [CLS] attention is scored.
        has_instances: whether `ground_truth` exists: masks are scored.
    """

    names: Sequence[str]
    has_labels: bool
    has_instances: bool

    def read(self, name: str) -> np.ndarray:
        """The image uint8[height, width, 3]; raises `Unusable`."""

    def labels(self, name: str) -> np.ndarray:
        """Label map int[height, width]: 0 background, 255 void; raises `Unusable`."""

    def image_id(self, name: str) -> int:
        """The id that the ground truth has for an image."""

    def ground_truth(self, names: Sequence[str]) -> Mapping[str, Any]:
        """A COCO dictionary of these images."""


class VocLabels:
    """PASCAL VOC's semantic label maps (`data.voc.VOC`)."""

    has_labels, has_instances = True, False

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

    has_labels, has_instances = False, True

    def __init__(self, root: str | os.PathLike, split: str, limit: int | None):
        self._coco = COCO(root, split, limit)
        self.names = self._coco.names

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
    """

    has_labels, has_instances = True, True

    def __init__(self, image_size: int, limit: int | None, objects: tuple[int, int], seed: int = 0):
        self._scenes = Scenes(
            "val", image_size=image_size, length=limit or 500, objects=objects, seed=seed
        )
        self.names = [str(index) for index in range(len(self._scenes))]

    def read(self, name: str) -> np.ndarray:
        """The scene."""
        return self._scenes[int(name)]["image"]

    def labels(self, name: str) -> np.ndarray:
        """1 + the object's class where one is visible, 0 elsewhere."""
        found = self._scenes.instances(int(name))
        labels = np.zeros(found["masks"].shape[1:], np.uint8)
        for mask, label in zip(found["masks"], found["labels"], strict=True):
            labels[mask] = label + 1
        return labels

    def image_id(self, name: str) -> int:
        """One more than the scene's index."""
        return int(name) + 1

    def ground_truth(self, names: Sequence[str]) -> dict[str, Any]:
        """Every visible object as an annotation."""
        side, annotations = self._scenes.image_size, []
        for name in names:
            found = self._scenes.instances(int(name))
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


def _read(path: os.PathLike) -> np.ndarray:
    try:
        return images.read(path, upright=False).pixels  # as the annotators saw it
    except images.UnreadableImage as error:
        raise Unusable(f"unreadable: {error}") from error
    except OSError as error:
        raise Unusable(f"{error.strerror or error}") from error
