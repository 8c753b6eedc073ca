"""Anyone's image files."""

import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from crate_jax.data import images

# A dark and a bright half, told apart after any loss: reads are checked to a few units.
PIXELS = np.zeros((20, 30, 3), np.uint8)
PIXELS[:, 15:] = (200, 120, 60)


def saved(folder, name, image, **options):
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "bmp", "gif", "tga", "ppm", "jp2"])
def test_formats(suffix, tmp_path):
    options = {"lossless": True} if suffix == "webp" else {}
    picture = images.read(saved(tmp_path, f"a.{suffix}", Image.fromarray(PIXELS), **options))
    assert (picture.size, picture.pixels.dtype) == ((20, 30), np.uint8)
    np.testing.assert_allclose(picture.pixels.astype(int), PIXELS, atol=2)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK"])
def test_modes(mode, tmp_path):
    image = Image.fromarray(PIXELS).convert(mode)
    file = saved(tmp_path, "a.tif" if mode == "CMYK" else "a.png", image)
    expected = np.asarray(image.convert("RGB")).astype(int)
    np.testing.assert_allclose(images.read(file).pixels.astype(int), expected, atol=2)


def test_deep_values_keep_their_high_byte(tmp_path):
    grey = PIXELS[..., 0].astype(np.uint16) * 256 + 255
    for name in ("a.png", "a.tif"):
        file = saved(tmp_path, name, Image.fromarray(grey))
        assert (images.read(file).pixels == PIXELS[..., :1]).all()
    file = saved(tmp_path, "b.tif", Image.fromarray(grey.astype(np.int32)))
    assert (images.read(file).pixels == PIXELS[..., :1]).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_orientation_is_applied(suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown turned clockwise
    file = saved(tmp_path, f"a.{suffix}", Image.fromarray(PIXELS), exif=exif)
    picture = images.read(file)
    assert picture.size == (30, 20)
    expected = np.rot90(PIXELS, -1).astype(int)
    away = np.abs(np.arange(30) - 14.5) > 3  # JPEG blurs the edge
    np.testing.assert_allclose(picture.pixels[away].astype(int), expected[away], atol=12)


def test_one_pixel_and_one_row(tmp_path):
    for shape in ((1, 1), (1, 400)):
        image = Image.fromarray(np.full((*shape, 3), 77, np.uint8))
        picture = images.read(saved(tmp_path, "a.png", image))
        assert picture.size == shape
        assert (images.resize(picture.pixels, (16, 16)) == 77).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "gif", "webp", "tga"])
def test_truncated_files_are_refused(suffix, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    file = saved(tmp_path, f"a.{suffix}", Image.fromarray(noise))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(images.UnreadableImage) as error:
        images.read(file)
    assert "\n" not in str(error.value)
    assert "config.data" not in str(error.value)


def test_other_refusals(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("<html>not found</html>")
    saved(tmp_path, "float.tif", Image.fromarray(PIXELS[..., 0].astype(np.float32)))
    saved(tmp_path, "deep.tif", Image.fromarray(PIXELS[..., 0].astype(np.int32) * 10**6))
    for name, text in {
        "empty.png": "empty",
        "text.png": "not an image",
        "float.tif": "floating point",
        "deep.tif": "0..200000000",
    }.items():
        with pytest.raises(images.UnreadableImage, match=text):
            images.read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        images.read(tmp_path / "nothing.png")


def test_limits_and_kinds_are_checked_before_decoding(tmp_path):
    file = saved(tmp_path, "large.png", Image.fromarray(PIXELS))
    with pytest.raises(images.UnreadableImage, match="30 x 20 pixels, more than max_megapixels"):
        images.read(file, max_megapixels=0.0005)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(images.UnreadableImage, match="a named pipe"):
        images.read(tmp_path / "pipe.png")


def test_damaged_png_is_not_handed_on_to_another_decoder(tmp_path):
    file = saved(tmp_path, "a.png", Image.fromarray(PIXELS))
    data = bytearray(file.read_bytes())
    data[data.index(b"IDAT") + 30] ^= 1
    file.write_bytes(data)
    with pytest.raises(images.UnreadableImage, match="checksum"):
        images.read(file)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_frame(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(tmp_path, "a.png", Image.fromarray(PIXELS), exif=exif)
    picture = images.read(file, upright=False)
    assert picture.size == (20, 30)
    np.testing.assert_array_equal(picture.pixels, PIXELS)


def test_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    saved(tmp_path, "a.png", Image.fromarray(PIXELS))
    scandir = os.scandir

    def refusing(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match=r"got Permission denied for .*closed"):
        images.find(tmp_path)


def test_large_jpeg_is_decoded_reduced(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "REDUCED_ABOVE", 10_000)
    file = saved(tmp_path, "a.jpg", Image.fromarray(np.tile(PIXELS, (16, 16, 1))))
    picture = images.read(file, at_least=(60, 90))
    assert picture.size == (320, 480)
    assert picture.pixels.shape == (80, 120, 3)
    assert images.read(file).pixels.shape == (320, 480, 3)


def test_find_sorts_and_leaves_out(tmp_path):
    for name in ("b.JPG", "a.png", "sub/c.tiff", "sub/deep/d.webp", ".h/f.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.png").touch()
    expected = ["a.png", "b.JPG", "sub/c.tiff", "sub/deep/d.webp"]
    assert images.find(tmp_path) == expected
    assert images.find(tmp_path / "a.png") == ["a.png"]
    assert images.find(tmp_path / "notes.txt") == ["notes.txt"]  # one file may have any name
    with pytest.raises(ValueError, match="found nothing at"):
        images.find(tmp_path / "nowhere")
    empty = pathlib.Path(tmp_path / "none")
    empty.mkdir()
    with pytest.raises(ValueError, match="0 other files"):
        images.find(empty)
