"""PASCAL VOC's layout, and what is said where it is not whole."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from crate_jax.data.voc import CLASS_NAMES, VOC


@pytest.fixture
def root(tmp_path):
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for name in ("2008_000002", "2007_000001"):
        Image.new("RGB", (6, 4)).save(voc / "JPEGImages" / f"{name}.jpg")
        labels = Image.fromarray(np.array([[0, 1, 20, 255]] * 2, np.uint8), "P")
        labels.putpalette([255 - value % 256 for value in range(768)])
        labels.save(voc / "SegmentationClass" / f"{name}.png")
    listed = voc / "ImageSets" / "Segmentation" / "val.txt"
    listed.write_text("2008_000002 \n2007_000001\n\n")
    return tmp_path


def test_reads_class_numbers_in_the_order_of_the_list(root):
    for start in (root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2012"):
        voc = VOC(start)
        assert voc.names == ["2008_000002", "2007_000001"]
        assert len(voc) == 2
        assert voc.labels("2007_000001").tolist() == [[0, 1, 20, 255]] * 2
        assert voc.image_path("2007_000001").name == "2007_000001.jpg"
    assert (len(CLASS_NAMES), CLASS_NAMES[15]) == (21, "person")


def test_says_what_is_missing_and_how_to_get_it(root, tmp_path):
    voc = root / "VOCdevkit" / "VOC2012"
    with pytest.raises(ValueError, match=r"train\.txt") as error:
        VOC(root, "train")
    assert "JPEGImages," not in str(error.value).splitlines()[0]
    (voc / "SegmentationClass" / "2007_000001.png").unlink()
    with pytest.raises(ValueError, match=r"4 files .* got all but 1: ") as error:
        VOC(root)
    assert "2007_000001.png" in str(error.value)
    with pytest.raises(ValueError, match=r"got none at .*JPEGImages.*SegmentationClass") as error:
        VOC(tmp_path / "elsewhere")
    assert "VOCtrainval_11-May-2012.tar" in str(error.value)


def test_refuses_colours_and_damage(root):
    path = root / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000001.png"
    Image.new("RGB", (4, 2)).save(path)
    with pytest.raises(ValueError, match="class numbers"):
        VOC(root).labels("2007_000001")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="expected a label map"):
        VOC(root).labels("2007_000001")
    damaged = bytearray(path.with_name("2008_000002.png").read_bytes())
    damaged[damaged.index(b"IDAT") + 6] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="expected a label map, got a damaged PNG"):
        VOC(root).labels("2007_000001")


def test_label_map_that_claims_to_be_large_is_refused_from_its_header(root):
    path = root / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000001.png"
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 50_000, 50_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(ValueError, match="got 50,000 x 50,000 pixels"):
        VOC(root).labels("2007_000001")
