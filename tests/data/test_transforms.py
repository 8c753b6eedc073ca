import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from crate_jax.data import transforms
from crate_jax.data.decode import Encoded


@pytest.fixture(scope="module")
def picture():
    rows, columns = np.mgrid[:300, :400]
    waves = [127 + 100 * np.sin(rows / a + columns / b) for a, b in ((9, 30), (20, 11), (40, 17))]
    return np.stack(waves, -1).astype(np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_crop_follows_the_inception_law():
    # Large and square, so that hardly a draw is rejected and pixels do not matter.
    size, generator = 10_000, rng()
    boxes = np.array(
        [transforms.sample_crop(generator, size, size, scale=(0.1, 0.4)) for _ in range(4000)]
    )
    top, left, height, width = boxes.T.astype(float)
    area, ratio = height * width / size**2, np.log(width / height)
    # uniform on [a, b]: mean (a + b) / 2, variance (b - a)^2 / 12; quartiles evenly spaced
    for values, low, high in (
        (area, 0.1, 0.4),
        (ratio, -np.log(4 / 3), np.log(4 / 3)),
        (top / (size - height), 0, 1),
        (left / (size - width), 0, 1),
    ):
        quantiles = (np.quantile(values, [0.01, 0.25, 0.5, 0.75, 0.99]) - low) / (high - low)
        np.testing.assert_allclose(quantiles, [0.01, 0.25, 0.5, 0.75, 0.99], atol=0.035)


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (37, 41), (224, 224)])
def test_crops_lie_inside(shape):
    generator = rng()
    for _ in range(200):
        top, left, height, width = transforms.sample_crop(generator, *shape)
        assert height >= 1
        assert width >= 1
        assert 0 <= top <= shape[0] - height
        assert 0 <= left <= shape[1] - width


def test_crop_of_a_strip_is_its_centre():
    assert transforms.sample_crop(rng(), 300, 3000, (0.9, 1.0)) == (0, 1300, 300, 400)
    assert transforms.sample_crop(rng(), 3000, 300, (0.9, 1.0)) == (1300, 0, 400, 300)


def test_random_resized_crop_shows_the_box(picture):
    for seed in range(10):
        top, left, height, width = transforms.sample_crop(rng(seed), *picture.shape[:2])
        result = transforms.random_resized_crop(picture, rng(seed), 64)
        box = Image.fromarray(picture[top : top + height, left : left + width])
        expected = np.asarray(box.resize((64, 64), Image.Resampling.BILINEAR))
        assert result.shape == (64, 64, 3)
        assert result.dtype == np.uint8
        # another filter; a box one pixel of the result off differs by 15 to 30
        assert np.abs(result.astype(int) - expected).mean() < 4


def test_shrinking_is_antialiased():
    checkers = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    image = np.repeat(checkers[..., None], 3, -1)
    result = transforms.random_resized_crop(image, rng(), 32, scale=(0.9, 1.0))
    assert np.abs(result.astype(int) - 127).max() < 12
    result = transforms.resize_centre_crop(image, 32, 36)
    assert np.abs(result.astype(int) - 127).max() < 12


@pytest.mark.parametrize("size", [32, 64, 200])
def test_cropping_an_encoded_image_is_cropping_its_pixels(size):
    # A ramp shows by how much the box has moved: half a grey level for each column and row.
    rows, columns = np.mgrid[:500, :500] / 2
    ramp = np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "JPEG", quality=100, subsampling=0)
    encoded = Encoded(file.getvalue(), "x")
    pixels = encoded.decode()
    for seed in range(20):
        _, _, height, width = transforms.sample_crop(rng(seed), 500, 500)
        from_file = transforms.random_resized_crop(encoded, rng(seed), size).astype(int)
        difference = from_file - transforms.random_resized_crop(pixels, rng(seed), size)
        moved = 2 * np.abs(difference.mean((0, 1)))[:2] / np.array([width, height]) * size
        # a quarter of a pixel of the result, and half a grey level of rounding
        assert (moved <= 0.25 + size / np.array([width, height])).all()
    np.testing.assert_array_equal(
        transforms.resize_centre_crop(encoded, size, 224),
        transforms.resize_centre_crop(pixels, size, 224),
    )


@pytest.mark.parametrize("resampling", ["bilinear", "bicubic", "lanczos"])
def test_centre_crop_is_that_of_pillow(picture, resampling):
    result = transforms.resize_centre_crop(picture, 224, 256, resampling)
    # short side 256, long side int(256 * 400 / 300) = 341; top 16, left round(58.5) = 58
    resized = Image.fromarray(picture).resize(
        (341, 256), getattr(Image.Resampling, resampling.upper())
    )
    np.testing.assert_array_equal(result, np.asarray(resized)[16:240, 58:282])
    tall = transforms.resize_centre_crop(picture.transpose(1, 0, 2), 224, 256, resampling)
    assert tall.shape == (224, 224, 3)


def test_centre_crop_leaves_an_image_of_the_right_size():
    image = rng().integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(transforms.resize_centre_crop(image, 64, 64), image)


def test_flip_mirrors_half():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    transform = transforms.TrainTransform(2, crop="none")
    results = [transform(image, rng(seed)) for seed in range(400)]
    flipped = [np.array_equal(result, image[:, ::-1]) for result in results]
    assert all(f or np.array_equal(r, image) for f, r in zip(flipped, results, strict=True))
    assert 0.4 < np.mean(flipped) < 0.6
    never = transforms.TrainTransform(2, crop="none", flip=False)
    assert all(np.array_equal(never(image, rng(seed)), image) for seed in range(20))


def operations(picture, magnitude):
    """Every operation applied alone, with both signs."""
    image = Image.fromarray(picture)
    return [
        [np.asarray(operation(image, magnitude / 10, sign)) for sign in (1, -1)]
        for operation in transforms._OPERATIONS
    ]


def test_randaugment_operations_against_pillow_and_closed_forms(picture):
    image = Image.fromarray(picture)
    results = operations(picture, 5)
    assert len(results) == 15
    x = picture.astype(int)
    expected = {
        0: (ImageOps.autocontrast(image),) * 2,
        1: (ImageOps.equalize(image),) * 2,
        2: (255 - x,) * 2,
        4: (x & 0b11000000,) * 2,  # 4 - int(2.0) bits
        5: (np.where(x < 128, x, 255 - x),) * 2,
        6: (np.where(x < 128, x + 55, x),) * 2,
        7: (ImageEnhance.Color(image).enhance(1.45), ImageEnhance.Color(image).enhance(0.55)),
        9: (np.clip(np.floor(x * 1.45), 0, 255), np.floor(x * 0.55)),
    }
    for k, pair in expected.items():
        for result, wanted in zip(results[k], pair, strict=True):
            assert np.abs(result.astype(int) - np.asarray(wanted).astype(int)).max() <= 1, k
    # geometry, by where the pixels of a ramp come from
    rows, columns = np.mgrid[:200, :200].astype(float)
    ramp = np.stack([columns, rows, np.zeros((200, 200))], -1).astype(np.uint8)
    moved = operations(ramp, 5)
    inner = np.s_[80:120, 80:120]
    r, c = rows[inner], columns[inner]
    angle = np.deg2rad(15)
    turned = (c - 99.5) + 1j * (r - 99.5)
    turned = turned * np.exp(1j * angle)
    sources = {
        3: (turned.real + 99.5, turned.imag + 99.5),
        11: (c + 0.15 * r, r),
        12: (c, r + 0.15 * c),
        13: (c + 0.5 * 100 / 224 * 200, r),
        14: (c, r + 0.5 * 100 / 224 * 200),
    }
    for k, (source_c, source_r) in sources.items():
        np.testing.assert_allclose(moved[k][0][inner][..., 0], source_c, atol=1.1, err_msg=k)
        np.testing.assert_allclose(moved[k][0][inner][..., 1], source_r, atol=1.1, err_msg=k)
    # what comes from outside is ImageNet's mean; a row that is sheared starts at the corner
    assert (moved[13][0][:, -40:] == (124, 116, 104)).all()
    np.testing.assert_array_equal(moved[11][0][0], ramp[0])
    np.testing.assert_array_equal(moved[12][0][:, 0], ramp[:, 0])


def test_randaugment_at_the_ends_of_its_strength(picture):
    for k, (plus, minus) in enumerate(operations(picture, 0)):
        if k in (3, *range(5, 15)):  # no strength, no change; posterize still keeps 4 bits
            np.testing.assert_array_equal(plus, minus)
            np.testing.assert_array_equal(plus, picture)
    strong = operations(picture, 11)  # the normal about 9 reaches there
    np.testing.assert_array_equal(strong[4][0], picture & 0b10000000)
    np.testing.assert_array_equal(strong[5][0], 255 - picture)
    dark = np.asarray(ImageEnhance.Brightness(Image.fromarray(picture)).enhance(0.1))
    np.testing.assert_array_equal(strong[9][1], dark)


def test_randaugment_draws_from_all_operations_and_half_the_time_none(picture):
    small = np.ascontiguousarray(picture[::8, ::8])
    results = [transforms.rand_augment(small, rng(s), 1, 9).tobytes() for s in range(400)]
    assert 0.44 < results.count(small.tobytes()) / 400 < 0.56
    assert len(set(results)) >= 60  # the strength varies
    twice = [transforms.rand_augment(small, rng(s), 2, 9).tobytes() for s in range(400)]
    assert 0.19 < twice.count(small.tobytes()) / 400 < 0.31
    np.testing.assert_array_equal(
        transforms.rand_augment(small, rng(1)), transforms.rand_augment(small, rng(1))
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transforms.TrainTransform(224, crop="middle"), "crop"),
        (lambda: transforms.TrainTransform(224, scale=(0.0, 1.0)), "scale"),
        (lambda: transforms.TrainTransform(224, randaugment_magnitude=30), "magnitude"),
        (lambda: transforms.TrainTransform(384, crop="centre"), "resize: .* got 256 .*439"),
        (lambda: transforms.EvalTransform(384), "resize: .* got 256 .*439"),
        (lambda: transforms.EvalTransform(224, resampling="area"), "resampling"),
    ],
)
def test_options_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
