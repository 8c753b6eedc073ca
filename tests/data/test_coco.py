"""COCO's layout, and what is said where it is not whole."""

import json

import pytest
from PIL import Image

from crate_jax.data.coco import COCO


@pytest.fixture
def root(tmp_path):
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "height": 4, "width": 6}
        for number in (285, 139, 632)
    ]
    for image in images:
        Image.new("RGB", (6, 4)).save(tmp_path / "val2017" / image["file_name"])
    annotations = [{"image_id": number, "id": number} for number in (139, 139, 632)]
    file = tmp_path / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return tmp_path


def test_images_by_id_and_their_annotations(root):
    coco = COCO(root)
    assert coco.names == ["000000000139.jpg", "000000000285.jpg", "000000000632.jpg"]
    assert coco.ids["000000000285.jpg"] == 285
    assert coco.sizes["000000000285.jpg"] == (4, 6)
    assert len(coco.annotations["annotations"]) == 3
    first = COCO(root, limit=2)
    assert len(first) == 2
    assert {a["image_id"] for a in first.annotations["annotations"]} == {139}
    (root / "images").mkdir()
    (root / "val2017").rename(root / "images" / "val2017")
    assert COCO(root).image_path("000000000139.jpg").is_file()


def test_says_what_is_missing_and_how_to_get_it(root):
    (root / "val2017" / "000000000285.jpg").unlink()
    with pytest.raises(ValueError, match=r"the 3 files that .* asks for, got all but 1: "):
        COCO(root)
    with pytest.raises(ValueError, match=r"train2017, .*instances_train2017\.json") as error:
        COCO(root, "train2017")
    assert "annotations_trainval2017.zip" in str(error.value)
    file = root / "annotations" / "instances_val2017.json"
    for content in ("{", '{"images": []}', "[]", "[" * 100_000):
        file.write_text(content)
        with pytest.raises(ValueError, match="expected a whole annotation file, got"):
            COCO(root)
    file.write_text('{"images": [], "annotations": []}')
    with pytest.raises(ValueError, match="expected names of images, got none in"):
        COCO(root)


@pytest.mark.parametrize(
    ("field", "value"),
    [("id", 139), ("file_name", "000000000139.jpg"), ("file_name", 5), ("height", float("inf"))],
)
def test_images_that_are_one_or_none(root, field, value):
    """Two of one name or id would be scored as one."""
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["images"][0][field] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="expected a whole annotation file, got"):
        COCO(root)


def test_annotations_whose_image_ids_are_of_another_type_are_not_left_out(root):
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][1]["image_id"] = "139"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"an annotation of image '139'"):
        COCO(root)
    content["annotations"][1]["image_id"] = 140  # of an image that is not listed: a part of a set
    file.write_text(json.dumps(content))
    assert len(COCO(root).annotations["annotations"]) == 2
