"""Pictures keep the image's size and put colour where the map or mask is."""

import io

import numpy as np
import pytest
from PIL import Image

from crate_jax.export import overlays


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (30, 44, 3), dtype=np.uint8)


def test_colors_run_from_the_least_to_the_greatest_value():
    colors = overlays.colorize(np.array([[0.0, 1.0], [2.0, np.nan]]), "gray")
    assert colors.tolist() == [[[0] * 3, [128] * 3], [[255] * 3, [128] * 3]]
    fixed = overlays.colorize(np.array([[0.0, 1.0]]), "gray", low=0, high=2)
    assert fixed.tolist() == [[[0] * 3, [128] * 3]]
    assert not overlays.colorize(np.ones((2, 2)), "gray").any()
    assert (overlays.colorize(np.full((2, 2), np.inf), "gray") == 128).all()


def test_heat_lies_over_the_image_at_its_own_size(image):
    heat = np.zeros((3, 4))
    heat[0, 3] = 1
    full = overlays.heat_overlay(image, heat, opacity=1, colormap="gray", smooth=False)
    assert full.shape == image.shape
    assert (full[:10, 33:] == 255).all()
    assert not full[10:].any()
    half = overlays.heat_overlay(image, heat, opacity=0.5, colormap="gray", smooth=False)
    np.testing.assert_allclose(half[20:], image[20:] / 2, atol=0.51)
    np.testing.assert_array_equal(overlays.heat_overlay(image, heat, opacity=0), image)
    smooth = overlays.heat_overlay(image, heat, opacity=1, colormap="gray")[..., 0]
    assert 0 < smooth[12, 40] < 255


def test_masks_tint_inside_and_outline(image):
    mask = np.zeros(image.shape[:2], bool)
    mask[5:15, 10:30] = True
    drawn = overlays.mask_overlay(image, mask, opacity=0.5, colors=[(255, 0, 0)])
    np.testing.assert_array_equal(drawn[~mask], image[~mask])
    assert (drawn[5, 10:30] == (255, 0, 0)).all()
    inside = (slice(6, 14), slice(11, 29))
    np.testing.assert_allclose(drawn[inside][..., 0], (image[inside][..., 0] + 255.0) / 2, atol=1)
    bare = overlays.mask_overlay(image, mask, opacity=0, contour=False)
    np.testing.assert_array_equal(bare, image)


def test_masks_may_be_many_empty_and_at_grid_resolution(image):
    masks = np.zeros((3, 3, 4), bool)
    masks[0, 0, 0] = masks[2, 2, 3] = True
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    drawn = overlays.mask_overlay(image, masks, opacity=1, colors=colors)
    assert (drawn[:10, :11] == colors[0]).all()
    assert (drawn[20:, 33:] == colors[2]).all()
    np.testing.assert_array_equal(drawn[10:20], image[10:20])
    # A mask of the whole image has no contour along the frame.
    whole = overlays.mask_overlay(image, np.ones((1, 1), bool), opacity=0)
    np.testing.assert_array_equal(whole, image)


def test_spotlight_darkens_the_rest(image):
    mask = np.zeros((1, 2), bool)
    mask[0, 0] = True
    lit = overlays.spotlight(image, mask, dim=0.5)
    np.testing.assert_array_equal(lit[:, :22], image[:, :22])
    np.testing.assert_allclose(lit[:, 22:], image[:, 22:] / 2, atol=0.51)


def test_montage_places_panels_and_captions(image):
    sheet = overlays.montage([image, 255 - image, image], columns=2, gap=4)
    assert sheet.shape == (2 * 34 + 4, 2 * 48 + 4, 3)
    np.testing.assert_array_equal(sheet[4:34, 52:96], 255 - image)
    np.testing.assert_array_equal(sheet[38:68, 4:48], image)
    assert (sheet[38:68, 52:96] == 255).all()
    named = overlays.montage([image], ["head 3 and a very long name"], gap=4)
    assert named.shape[0] > 38
    assert (named[34:] < 100).any()
    assert (named[:, 48:] == 255).all()


def test_head_montage_shows_the_image_and_every_head(image):
    sheet = overlays.head_montage(image, np.random.default_rng(0).random((5, 3, 4)), columns=3)
    panel = overlays.montage([image], ["image"])
    assert sheet.shape[0] > 1.8 * panel.shape[0]
    np.testing.assert_array_equal(sheet[8:38, 8:52], image)


def test_encoded_pictures_decode_to_the_same(image):
    decoded = Image.open(io.BytesIO(overlays.encode(image)))
    np.testing.assert_array_equal(np.asarray(decoded), image)
    assert overlays.data_uri(image).startswith("data:image/png;base64,iVBOR")
    assert overlays.data_uri(image, "webp").startswith("data:image/webp;base64,UklGR")


def test_errors_say_what_is_expected(image):
    for wrong in (image / 255, image[..., 0], np.dstack([image, image])):
        with pytest.raises(ValueError, match=r"uint8\[height, width, 3\]"):
            overlays.heat_overlay(wrong, np.ones((2, 2)))
    with pytest.raises(ValueError, match="opacity"):
        overlays.heat_overlay(image, np.ones((2, 2)), opacity=60)
    with pytest.raises(ValueError, match="map: expected one"):
        overlays.heat_overlay(image, np.ones((1, 2, 2)))
    with pytest.raises(ValueError, match="all of one size"):
        overlays.montage([image, image[:5]])
    with pytest.raises(ValueError, match="captions"):
        overlays.montage([image], [])


def test_small_images_are_enlarged_by_whole_pixels():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    large = overlays.enlarge(image, 10)
    assert large.shape == (12, 18, 3)
    np.testing.assert_array_equal(large[1::3, 1::3], image)
    np.testing.assert_array_equal(overlays.enlarge(image, 4), image)


def test_titles_stand_above_the_montage_in_as_many_lines_as_they_need(image):
    plain = overlays.montage([image] * 6, columns=6, gap=4)
    titled = overlays.montage([image] * 6, columns=6, gap=4, title="A title")
    height = len(titled) - len(plain)
    np.testing.assert_array_equal(titled[height:], plain)
    assert 11 <= height < 30
    assert (titled[:height] < 100).any()
    longer = overlays.montage([image] * 6, columns=6, gap=4, title="A title of many words " * 4)
    assert len(longer) > len(titled) + 10
    assert (longer[:, -4:] == 255).all()


def test_layer_montage_has_a_row_for_each_layer_and_the_object_in_front():
    image = np.full((8, 8, 3), 200, np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    maps = np.zeros((2, 3, 2, 2))
    maps[1, 2, 0, 1] = 1
    sheet = overlays.layer_montage(image, maps, mask, scores=np.zeros((2, 3)), side=32)
    step, gap = 40, 8
    row = (len(sheet) - gap) // 2
    assert sheet.shape[1] == 4 * step + gap
    for layer in range(2):
        top = gap + layer * row
        np.testing.assert_array_equal(sheet[top : top + 16, gap : gap + 32], 200)  # the object
        np.testing.assert_array_equal(sheet[top + 16 : top + 32, gap : gap + 32], 40)
    last = sheet[gap + row : gap + row + 32, gap + 3 * step : gap + 3 * step + 32]
    brightest = last.sum(-1) == last.sum(-1).max()
    assert brightest[:16, 16:].all()
    assert brightest.sum() == 256
    without = overlays.layer_montage(image, maps, side=32)
    np.testing.assert_array_equal(without[gap : gap + 32, gap : gap + 32], 200)
    with pytest.raises(ValueError, match="maps: expected"):
        overlays.layer_montage(image, maps[0])
