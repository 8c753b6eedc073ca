"""Masks as COCO JSON that pycocotools and detection frameworks read.

Run-length codes are pycocotools' own. Sizes are (height, width), taken from the mask itself, so
that they cannot be exchanged; boxes are tight: [x, y, width, height] in pixels.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from crate_jax.files import write_atomically

CATEGORY = {"id": 1, "name": "object"}


def encode_mask(mask: np.ndarray) -> dict:
    """A mask bool[height, width] as a compressed run-length code with JSON-ready text."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(
            f"mask: expected bool[height, width], got {mask.dtype} {mask.shape}; threshold first"
        )
    code = rle.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def decode_mask(segmentation: dict) -> np.ndarray:
    """The mask bool[height, width] of a run-length code."""
    return rle.decode(segmentation).astype(bool)


def results(
    image_id: int | str,
    masks: Iterable[np.ndarray],
    scores: Sequence[float] | None = None,
) -> list[dict]:
    """The masks of one image as COCO results (the format of `COCO.loadRes`).

    Args:
        image_id: the data set's own id of the image.
        masks: bool[height, width] each, at the image's own size. Empty ones are left out.
        scores: confidence of each mask, or None for 1.

    Returns:
        One dictionary a mask: image_id, category_id 1, segmentation, bbox, area, score. `bbox` is
        tight around the mask; `area` its number of pixels.

    Raises:
        ValueError: as many scores as masks are needed; masks that are not bool[height, width].
    """
    masks = list(masks)
    scores = [1.0] * len(masks) if scores is None else list(scores)
    if len(scores) != len(masks):
        raise ValueError(f"scores: expected one for each of {len(masks)} masks, got {len(scores)}")
    found = []
    for mask, score in zip(masks, scores, strict=True):
        segmentation = encode_mask(mask)
        area = int(rle.area(segmentation))
        if area:
            found.append(
                {
                    "image_id": image_id,
                    "category_id": CATEGORY["id"],
                    "segmentation": segmentation,
                    "bbox": [float(side) for side in rle.toBbox(segmentation)],
                    "area": area,
                    "score": float(score),
                }
            )
    return found


def dataset(images: Iterable[dict], found: Iterable[dict]) -> dict:
    """A whole COCO dictionary: images with their objects as annotations.

    Args:
        images: dictionaries with id, height and width, and what else is known (file_name).
        found: as `results` returns them; numbered here from 1, since pycocotools takes an
            annotation of id 0 for none.

    Returns:
        {"info", "images", "annotations", "categories"}.

    Raises:
        ValueError: an image without id, height or width, two of one id, or a mask whose size is
            not its image's.
    """
    by_id = {}
    for image in images:
        if missing := [key for key in ("id", "height", "width") if key not in image]:
            raise ValueError(
                f"images: expected id, height and width of each, got none of {missing}: {image}"
            )
        if image["id"] in by_id:
            raise ValueError(f"images: expected each id once, got {image['id']!r} twice")
        by_id[image["id"]] = dict(image)
    annotations = []
    for number, result in enumerate(found, start=1):
        image = by_id.get(result["image_id"])
        size = result["segmentation"]["size"]
        if image is None or size != [image["height"], image["width"]]:
            raise ValueError(
                f"mask: expected the size of its image {result['image_id']!r}, "
                f"{image and [image['height'], image['width']]}, got {size}"
            )
        annotations.append({"id": number, "iscrowd": 0} | result)
    return {
        "info": {"description": "class-agnostic masks"},
        "images": list(by_id.values()),
        "annotations": annotations,
        "categories": [CATEGORY],
    }


def write_json(path: str | os.PathLike, content: dict | list) -> Path:
    """Writes JSON whole or not at all; the same content gives the same bytes."""
    return write_atomically(path, json.dumps(content, separators=(",", ":"), allow_nan=False))
