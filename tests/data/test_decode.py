import io
import os
import pickle
import random
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from crate_jax.data.decode import CorruptImage, Encoded, read


@pytest.fixture(scope="module")
def picture():
    rows, columns = np.mgrid[:120, :200]
    waves = [127 + 100 * np.sin(rows / a + columns / b) for a, b in ((9, 30), (20, 11), (40, 17))]
    return np.stack(waves, -1).astype(np.uint8)


def encode(picture, kind, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(file, kind, **options)
    return file.getvalue()


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "L", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
        ("GIF", "P", {}),
    ],
)
def test_agrees_with_pillow(picture, kind, mode, options):
    data = encode(picture, kind, mode, **options)
    image = Encoded(data, "x")
    decoded = image.decode()
    assert decoded.dtype == np.uint8
    assert decoded.shape == (*image.size, 3) == (120, 200, 3)
    # CMYK -> RGB rounds differently, WebP interpolates chroma differently
    tolerance = 3 if mode == "CMYK" or kind == "WEBP" else 1
    assert np.abs(decoded - pillow(data)).mean() <= tolerance


def test_sixteen_bits_keep_the_high_byte(picture):
    ok, data = cv2.imencode(".png", picture[..., ::-1].astype(np.uint16) * 257)
    assert ok
    np.testing.assert_array_equal(Encoded(data.tobytes(), "x").decode(), picture)


UPRIGHT = {  # EXIF orientation -> what a viewer shows of the stored pixels
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: np.rot90(x, 2),
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x, 1),
}


def oriented(picture, kind, orientation):
    """For AVIF, Pillow writes the file's own `irot` and `imir` from the EXIF tag."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture, kind, exif=exif, quality=95)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_applied(picture, orientation, kind):
    data = oriented(picture, kind, orientation)
    upright = UPRIGHT[orientation](picture)
    image = Encoded(data, "x")
    decoded = image.decode()
    assert image.size == decoded.shape[:2] == upright.shape[:2]
    assert np.abs(decoded.astype(int) - upright).mean() < 3
    smaller = image.decode(at_least=(upright.shape[0] // 3, upright.shape[1] // 3))
    if kind == "JPEG":
        assert smaller.shape[0] < upright.shape[0]
    expected = cv2.resize(upright, smaller.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(smaller.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_stored_frame_is_not_turned(picture, orientation, kind):
    image = Encoded(oriented(picture, kind, orientation), "x", upright=False)
    assert image.size == (120, 200)
    assert np.abs(image.decode().astype(int) - picture).mean() < 3


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, colour, rows):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_deep_png_of_every_colour_keeps_the_high_byte(colour, channels):
    """Pillow's own conversion clips the grey ones at 255: 125 levels off in the mean."""
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    expected = (values >> 8).astype(np.uint8)
    expected = np.repeat(expected[..., :1], 3, 2) if channels < 3 else expected[..., :3]
    np.testing.assert_array_equal(Encoded(png(30, 20, 16, colour, rows), "x").decode(), expected)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", [".tif", ".png"])
def test_transparency_is_dropped(kind, depth):
    """OpenCV multiplies the colours of a TIFF by it: 62 levels off in the mean."""
    values = np.random.default_rng(0).integers(0, 2**depth, (20, 30, 4), f"uint{depth}")
    ok, data = cv2.imencode(kind, values)
    assert ok
    expected = (values >> (depth - 8)).astype(np.uint8)[..., 2::-1]
    np.testing.assert_array_equal(Encoded(data.tobytes(), "x").decode(), expected)


def test_deep_tiff_whose_zero_is_white(picture):
    values = picture[..., 0].astype(np.uint16) << 8
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF", tiffinfo={262: 0})
    expected = np.repeat(255 - picture[..., :1], 3, 2)
    np.testing.assert_array_equal(Encoded(file.getvalue(), "x").decode(), expected)


def animated(picture, **options):
    frames = [Image.fromarray(picture[:40, :40]), Image.fromarray(picture[40:80, :40])]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:], **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["still", "animated"])
def test_no_flipped_bit_of_a_png_is_passed_over(picture, kind):
    """Of 600, Pillow accepted 189 of a still one and OpenCV 546 of an animated one."""
    data = encode(picture[:40, :40], "PNG") if kind == "still" else animated(picture)
    assert Encoded(data, "x").decode().shape == (40, 40, 3)
    for place in np.random.default_rng(0).integers(0, 8 * len(data), 300):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << (place % 8)
        with pytest.raises(CorruptImage):
            Encoded(bytes(damaged), "x").decode()


def claims(kind, side):
    """A file of a few bytes whose header says side x side pixels."""
    if kind == "PNG":
        return png(side, side, 8, 2, b"\0")
    data = bytearray(encode(np.zeros((4, 4, 3), np.uint8), kind))
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    else:  # JPEG
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "JPEG"])
def test_image_that_claims_to_be_large_is_refused_from_its_header(kind):
    with pytest.raises(CorruptImage, match=r"50,000 x 50,000 pixels, more than max_megapixels=179"):
        Encoded(claims(kind, 50_000), "x").decode()
    with pytest.raises(CorruptImage, match=r"300 x 300 pixels, more than max_megapixels=0.01"):
        _ = Encoded(claims(kind, 300), "x", max_megapixels=0.01).size


def test_limit_can_be_above_that_of_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encode(np.full((40, 50, 3), 9, np.uint8), "TIFF")
    assert (Encoded(data, "x").decode() == 9).all()
    assert Image.MAX_IMAGE_PIXELS == 100


def test_what_is_no_file_of_fitting_size_is_refused_unread(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "messages.jpg").symlink_to("/proc/kmsg")  # would be waited for, and has no size
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nothing")
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.write(b"\xff\xd8\xff\xe0")
        file.truncate(12 * 10**9)
    for name, what in {
        "pipe": "a named pipe",
        "zero": "a device",
        "folder": "a folder",
        "messages": "an empty file",
        "loop": "a link that leads to no file",
        "dangling": "a link that leads to no file",
        "sparse": r"a file of 12\.0 GB, more than max_megapixels=179 can need",
    }.items():
        with pytest.raises(CorruptImage, match=rf"{name}\.jpg: expected a whole image .*{what}"):
            read(tmp_path / f"{name}.jpg")


def test_error_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(CorruptImage("a.jpg", "an empty file")))
    assert (error.path, error.reason) == ("a.jpg", "an empty file")
    assert str(error) == str(CorruptImage("a.jpg", "an empty file"))


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("TIFF", {})],
)
def test_truncation_is_an_error_with_the_path(picture, kind, options, fraction):
    data = encode(picture, kind, **options)
    with pytest.raises(CorruptImage, match="some/file"):
        Encoded(data[: int(fraction * len(data))], "some/file").decode()


def test_truncation_behind_an_end_marker_is_an_error(picture):
    data = encode(picture, "JPEG")
    with pytest.raises(CorruptImage, match="premature end"):
        Encoded(data[: len(data) // 2] + b"\xff\xd9", "x").decode()


def test_damage_in_the_middle_is_an_error(picture):
    data = bytearray(encode(picture, "JPEG"))
    data[len(data) // 2 : len(data) // 2 + 60] = bytes(60)
    with pytest.raises(CorruptImage):
        Encoded(bytes(data), "x").decode()


def test_damage_is_said_by_us_alone(picture):
    """Pillow warns of a TIFF's metadata, once for each of a folder's images."""
    data, rng, refused = encode(picture[:20, :30], "TIFF"), random.Random(0), 0
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(100):
            damaged = bytearray(data)
            for _ in range(3):
                damaged[rng.randrange(8, 200)] ^= 1 << rng.randrange(8)
            try:
                Encoded(bytes(damaged), "x").decode()
            except CorruptImage:
                refused += 1
    assert refused
    assert not warned


def test_junk_after_the_picture_is_none(picture):
    data = encode(picture, "JPEG")
    expected = Encoded(data, "x").decode()
    for harmless in (data + bytes(100), data[:-2] + b"abc" + data[-2:]):
        np.testing.assert_array_equal(Encoded(harmless, "x").decode(), expected)


@pytest.mark.parametrize(
    "data", [b"", b"hello, world", b"\xff\xd8", b"\xff\xd8\xff\xe0" + bytes(90)]
)
def test_what_is_no_image_is_an_error(data):
    with pytest.raises(CorruptImage, match="on_corrupt='skip'"):
        Encoded(data, "x").decode()
    with pytest.raises(CorruptImage):
        _ = Encoded(data, "x").size


def test_reduced_decoding_keeps_at_least_the_asked_size():
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 255, (20, 30, 3), np.uint8), (600, 400))
    image = Encoded(encode(picture, "JPEG"), "x")
    for height, width in ((400, 600), (201, 10), (200, 300), (133, 100), (60, 80), (5, 5)):
        decoded = image.decode(at_least=(height, width))
        assert decoded.shape[0] >= height
        assert decoded.shape[1] >= width
    assert image.decode(at_least=(200, 300)).shape == (200, 300, 3)
    assert image.decode(at_least=(201, 300)).shape == (400, 600, 3)


def test_fast_decoding_is_nearly_the_same(picture):
    image = Encoded(encode(picture, "JPEG", quality=90), "x.jpg")
    exact, fast = (image.decode(fast=f).astype(int) for f in (False, True))
    assert fast.shape == exact.shape
    assert 0 < np.abs(fast - exact).mean() < 3
