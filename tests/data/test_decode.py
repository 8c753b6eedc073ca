import io

import cv2
import numpy as np
import pytest
from PIL import Image

from crate_jax.data.decode import CorruptImage, Encoded


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(picture, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture, kind, exif=exif)
    upright = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: np.rot90(x, 2),
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
        8: lambda x: np.rot90(x, 1),
    }[orientation](picture)
    image = Encoded(data, "x")
    decoded = image.decode()
    assert image.size == decoded.shape[:2] == upright.shape[:2]
    assert np.abs(decoded.astype(int) - upright).mean() < 3
    smaller = image.decode(at_least=(upright.shape[0] // 3, upright.shape[1] // 3))
    if kind == "JPEG":
        assert smaller.shape[0] < upright.shape[0]
    expected = cv2.resize(upright, smaller.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(smaller.astype(int) - expected).mean() < 4


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
