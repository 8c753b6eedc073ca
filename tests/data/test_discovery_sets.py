"""VOC07, VOC12, COCO20k, ECSSD, DUTS-TE, DUT-OMRON and Hummingbird's VOC in small folders."""

import numpy as np
import pytest
from PIL import Image

from crate_jax.data.coco20k import COCO20k
from crate_jax.data.saliency_sets import SaliencySet
from crate_jax.data.voc_boxes import VOCBoxes
from crate_jax.data.voc_patches import VOCPatches
from tests.data import discovery_layouts as layouts


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("inside", ["", "VOCdevkit", "VOCdevkit/VOC{year}"])
def test_voc_boxes_are_pixel_edges_of_every_object(tmp_path, year, inside):
    objects = {"000005": [(1, 1, 10, 20, 0), (5, 6.9, "30.2", 40, 1)], "000007": []}
    layouts.voc_boxes(tmp_path, year, objects)
    data = VOCBoxes(tmp_path / inside.format(year=year), year)
    assert data.names == ["000005", "000007"]
    found = data.boxes("000005")
    np.testing.assert_array_equal(found.boxes, [[0, 0, 10, 20], [4, 5, 30, 40]])
    np.testing.assert_array_equal(found.difficult, [False, True])
    assert found.size == (40, 56)
    assert data.boxes("000007").boxes.shape == (0, 4)
    assert "published are" in data.notes[0]


def test_voc_names_all_that_is_missing_together(tmp_path):
    base = layouts.voc_boxes(tmp_path, 2007, {"000005": [], "000007": []})
    (base / "JPEGImages" / "000005.jpg").unlink()
    (base / "Annotations" / "000007.xml").unlink()
    with pytest.raises(ValueError, match=r"4 files .* got all but 2: .*000005\.jpg.*000007\.xml"):
        VOCBoxes(tmp_path, 2007)
    with pytest.raises(ValueError, match=r"got none at .*JPEGImages.*Annotations.*trainval\.txt"):
        VOCBoxes(tmp_path / "nothing", 2012)
    (base / "Annotations").rename(base / "Elsewhere")
    with pytest.raises(ValueError, match=r"got none at [^,]*VOCdevkit/VOC2007/Annotations\."):
        VOCBoxes(tmp_path, 2007)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<annotation><object/></annotation>", "1 of 1 objects without bndbox"),
        ("<annot", ""),
        ("<!DOCTYPE a><annotation/>", "document type"),
    ],
)
def test_a_broken_annotation_is_named(tmp_path, text, why):
    base = layouts.voc_boxes(tmp_path, 2007, {"000005": []})
    (base / "Annotations" / "000005.xml").write_text(text)
    with pytest.raises(ValueError, match=rf"000005\.xml: expected an annotation of VOC.*{why}"):
        VOCBoxes(tmp_path, 2007).boxes("000005")


def test_coco20k_leaves_crowds_out_and_rounds_halves_to_even(tmp_path):
    layouts.coco20k(tmp_path, {36: [(0.5, 1.5, 10, 20)], 9: []}, crowd=(36, 9))
    data = COCO20k(tmp_path)
    assert data.names == ["36", "9"]  # in the order of the list
    np.testing.assert_array_equal(data.boxes("36").boxes, [[0, 2, 10, 22]])
    assert data.boxes("9").boxes.shape == (0, 4)
    assert data.image_path("36").is_file()
    assert [("2 images" in n or "not the published list" in n) for n in data.notes] == [True, True]


def test_coco20k_takes_ids_once_and_images_of_2017(tmp_path):
    layouts.coco20k(tmp_path, {36: [], 9: []})
    (tmp_path / "train2014").rename(tmp_path / "train2017")
    for file in (tmp_path / "train2017").iterdir():
        file.rename(file.with_name(file.name.removeprefix("COCO_train2014_")))
    (tmp_path / "mine.txt").write_text("36\n9\n36\n")
    data = COCO20k(tmp_path, "mine.txt")
    assert data.names == ["36", "9"]
    assert "more than once" in data.notes[0]


def test_coco20k_names_what_is_missing(tmp_path):
    layouts.coco20k(tmp_path, {36: [], 9: []})
    (tmp_path / "coco_20k_filenames.txt").write_text("36\n11\n")
    with pytest.raises(ValueError, match=r"the 2 ids of the list in .*, got all but 1, the first"):
        COCO20k(tmp_path)
    (tmp_path / "coco_20k_filenames.txt").write_text("photo.jpg\n")
    with pytest.raises(ValueError, match="names that end in _ID"):
        COCO20k(tmp_path)
    (tmp_path / "coco_20k_filenames.txt").unlink()
    (tmp_path / "annotations" / "instances_train2014.json").unlink()
    with pytest.raises(ValueError, match=r"coco_20k_filenames\.txt.*instances_train2014\.json"):
        COCO20k(tmp_path)


@pytest.mark.parametrize("name", layouts.SALIENCY)
def test_saliency_sets_pair_by_name(tmp_path, name):
    mask = np.zeros((8, 10), np.uint8)
    mask[2:4, 3:7], mask[4, 3] = 255, 90
    images, truths = layouts.saliency(tmp_path, name, {"b": mask, "a": mask.T})
    for rubbish in (images / "Thumbs.db", images / "._a.jpg", truths / ".DS_Store"):
        rubbish.write_bytes(b"")
    data = SaliencySet(name, tmp_path)
    assert data.names == ["a", "b"]
    np.testing.assert_array_equal(data.mask("b"), mask)
    np.testing.assert_array_equal(SaliencySet(name, images.parent).mask("a"), mask.T)
    Image.fromarray(np.stack([mask] * 3, axis=-1)).save(truths / "b.png")
    np.testing.assert_array_equal(data.mask("b"), mask)  # grey, stored as RGB
    assert "published are" in data.notes[0]


def test_half_unpacked_saliency_sets_are_named(tmp_path):
    mask = np.zeros((8, 8), np.uint8)
    images, truths = layouts.saliency(tmp_path, "ecssd", {"a": mask, "b": mask})
    (truths / "a.png").unlink()
    (images / "b.jpg").unlink()
    with pytest.raises(ValueError, match=r"2 without the other: .*a\.jpg, .*b\.png"):
        SaliencySet("ecssd", tmp_path)
    with pytest.raises(ValueError, match=r"got none at .*images, .*ground_truth_mask"):
        SaliencySet("ecssd", tmp_path / "nothing")


def test_img_and_gt_are_read_too(tmp_path):
    mask = np.zeros((8, 8), np.uint8)
    images, truths = layouts.saliency(tmp_path, "ecssd", {"a": mask})
    images.rename(images.parent / "img")
    truths.rename(truths.parent / "gt")
    assert SaliencySet("ecssd", tmp_path).names == ["a"]


def test_patches_of_voc_have_labels_of_both_splits(tmp_path):
    train, val = np.full((6, 8), 3, np.uint8), np.full((6, 8), 255, np.uint8)
    layouts.voc_patches(tmp_path, {"2007_000032": train}, {"2007_000033": val})
    data = VOCPatches(tmp_path)
    assert data.names == {"trainaug": ["2007_000032"], "val": ["2007_000033"]}
    np.testing.assert_array_equal(data.labels("trainaug", "2007_000032"), train)
    np.testing.assert_array_equal(data.labels("val", "2007_000033"), val)
    (tmp_path / "SegmentationClassAug" / "2007_000032.png").unlink()
    with pytest.raises(ValueError, match=r"2 files that .*trainaug\.txt asks for, got all but 1: "):
        VOCPatches(tmp_path)
    (tmp_path / "images" / "2007_000033.jpg").unlink()  # of the other list: named together
    with pytest.raises(ValueError, match=r"(?s)Aug/2007_000032\.png.*images/2007_000033\.jpg"):
        VOCPatches(tmp_path)


def test_labels_that_are_no_class_are_refused(tmp_path):
    labels = np.array([[0, 20], [255, 21]], np.uint8)
    layouts.voc_patches(tmp_path, {"a": labels}, {"b": np.zeros((2, 2), np.uint8)})
    with pytest.raises(ValueError, match=r"a\.png: expected classes 0 to 20 or 255, got 21"):
        VOCPatches(tmp_path).labels("trainaug", "a")


def test_what_a_list_repeats_is_taken_once_and_said(tmp_path):
    base = layouts.voc_boxes(tmp_path, 2007, {"b": [], "a": []})
    (base / "ImageSets" / "Main" / "trainval.txt").write_text("b\na\nb\n")
    data = VOCBoxes(tmp_path, 2007)
    assert data.names == ["b", "a"]
    assert "1 names stand in trainval.txt more than once, the first b" in data.notes[0]
    layouts.voc_patches(tmp_path, {"c": np.zeros((4, 4))}, {"d": np.zeros((4, 4))})
    (tmp_path / "sets" / "val.txt").write_text("d\nd\n")
    assert VOCPatches(tmp_path).names["val"] == ["d"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", '"a"'])
def test_boxes_of_coco20k_that_are_no_numbers_are_refused(number, tmp_path):
    layouts.coco20k(tmp_path, {36: [(1, 2, 3, 4)]})
    file = tmp_path / "annotations" / "instances_train2014.json"
    file.write_text(file.read_text().replace("[1, 2, 3, 4]", f"[1, 2, {number}, 4]"))
    with pytest.raises(ValueError, match="expected a whole annotation file"):
        COCO20k(tmp_path)


def test_two_photographs_of_one_name(tmp_path):
    mask = np.eye(8, dtype=np.uint8) * 255
    images, _ = layouts.saliency(tmp_path, "ecssd", {"a": mask})
    layouts.picture(images / "a.jpeg", (8, 8))
    with pytest.raises(ValueError, match=r"expected one file of a name, got a\.jpeg and a\.jpg"):
        SaliencySet("ecssd", tmp_path)
