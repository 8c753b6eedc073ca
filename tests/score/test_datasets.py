"""Datasets to score on: images and annotations in one frame."""

import json

import numpy as np
import pytest
from PIL import Image

from crate_jax.models import variants
from crate_jax.score import datasets

PIXELS = np.zeros((24, 40, 3), np.uint8)
PIXELS[:8, :24] = 250  # the object: no two orientations show it in one place


def photograph(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, quality=100, subsampling=0, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_voc_is_read_in_the_frame_of_its_label_maps(orientation, tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    photograph(root / "JPEGImages" / "a.jpg", orientation)
    Image.fromarray((PIXELS[..., 0] > 0).astype(np.uint8)).save(root / "SegmentationClass/a.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("a\n")
    voc = datasets.VocLabels(tmp_path, "val", None)
    np.testing.assert_array_equal(voc.read("a")[..., 0] > 127, voc.labels("a") == 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_coco_is_read_in_the_frame_of_its_annotations(orientation, tmp_path):
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    photograph(tmp_path / "val2017" / "a.jpg", orientation)
    truth = {"images": [{"id": 7, "file_name": "a.jpg", "height": 24, "width": 40}]}
    truth |= {"annotations": [{"image_id": 7, "bbox": [0, 0, 24, 8]}]}
    truth["annotations"][0]["segmentation"] = [[0, 0, 24, 0, 24, 8, 0, 8]]
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(truth))
    coco = datasets.CocoInstances(tmp_path, "val2017", None)
    np.testing.assert_array_equal(coco.read("a.jpg")[..., 0] > 127, PIXELS[..., 0] > 0)


def test_scenes_show_the_objects_that_the_network_knows():
    known = datasets.classes_known
    crate = variants.config
    assert [known(crate("crate-testing", classes=n)) for n in (0, 1, 40, 600)] == [
        100,
        100,
        40,
        600,
    ]
    assert known(crate("vit-b16")) == 100  # ImageNet's


def test_labels_of_scenes_of_all_objects_are_no_void():
    scenes = datasets.SceneInstances(32, 300, (1, 1), classes=600)
    assert scenes.classes == 601
    labels = [int(scenes.labels(name).max()) for name in scenes.names[:300:3]]
    assert max(labels) > 255
    for name, label in zip(scenes.names[::3], labels, strict=True):
        assert label == 1 + scenes._scenes.instances(int(name))["labels"].max()
