import importlib.resources
import pathlib
import shutil

import cv2
import numpy as np
import pytest

from crate_jax.data import objects, photographs
from crate_jax.data.scenes import Scenes

ASSETS = importlib.resources.files("crate_jax.data") / "assets"
CACHES = (objects.table, objects.load, objects._files, objects._level, objects._outline)


def test_the_table_and_the_licence_beside_it():
    table = objects.table()
    assert len(table) == 600
    assert len({entry.file for entry in table.values()}) == 600
    assert {entry.category for entry in table.values()} == set(objects.CATEGORIES)
    hundred = [entry.category for entry in list(table.values())[:100]]
    assert {category: hundred.count(category) for category in objects.CATEGORIES} == {
        "animal": 28,
        "plant": 6,
        "food": 26,
        "vehicle": 14,
        "thing": 26,
    }
    # names become folders, and stand between commas
    assert all(name.isascii() and not set(name) & set(",/\\:") for name in table)
    notice = (ASSETS / "FLUENT_EMOJI_LICENSE.txt").read_text()
    assert "MIT License" in notice
    assert "Microsoft Corporation" in notice
    assert len((ASSETS / "objects.zip").read_bytes()) < 4e6


def test_every_object_is_opaque_inside_and_cut_to_itself():
    for name in objects.table():
        pixels = objects.load(name)
        alpha = pixels[..., 3]
        assert max(alpha.shape) == objects.SIDE
        assert (pixels[..., :3] <= alpha[..., None]).all()  # colours are times alpha
        edges = alpha[[0, -1]].max(1), alpha[:, [0, -1]].max(0)
        assert np.min(edges) > 0, name
        assert (alpha >= 128).mean() > 0.2, name
        assert ((alpha > 25) & (alpha < 230)).sum() < 0.3 * (alpha > 25).sum(), name


def test_no_two_objects_have_the_same_picture():
    small = []
    for name in objects.table():
        pixels = objects.load(name)
        square = cv2.resize(pixels, (24, 24), interpolation=cv2.INTER_AREA)
        small.append(square.astype(np.float32).ravel())
    small = np.stack(small)
    squares = (small**2).sum(1)
    distances = squares[:, None] + squares - 2 * small @ small.T
    distances[np.diag_indices(600)] = np.inf
    assert np.sqrt(distances.min() / small.shape[1]) > 10  # root mean square, of 255 levels


@pytest.mark.parametrize("side", [8.0, 11.5, 38.0, 128.0, 200.0])
def test_an_object_keeps_its_area_at_every_size(side):
    for name in ("guitar", "pretzel", "bus"):
        pixels = objects.load(name)
        turn = np.array([[0.6, -0.8], [0.8, 0.6]]) * side
        size = int(1.5 * side) + 4
        drawn = objects.draw(name, turn, (size / 2 + 0.3, size / 2 - 0.2), (size, size))
        expected = pixels[..., 3].sum() * (side / objects.SIDE) ** 2
        assert drawn[..., 3].sum() == pytest.approx(expected, rel=0.03 if side > 10 else 0.08)
        assert (drawn[..., 3] >= 128).any()


def test_the_smallest_objects_are_still_seen():
    for name in objects.table():
        for degrees in (0, 17, 45, 80):
            cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
            drawn = objects.draw(
                name, 8 * np.array([[cosine, -sine], [sine, cosine]]), (8.4, 8.1), (16, 16)
            )
            assert (drawn[..., 3] >= 128).any(), name


def test_recolour_turns_hue_and_keeps_alpha_and_greys():
    rng = np.random.default_rng(0)
    alpha = rng.integers(0, 256, (9, 7, 1), np.uint8)
    colours = rng.integers(0, 256, (9, 7, 3)) * (alpha / 255)
    sprite = np.concatenate([colours.astype(np.uint8), alpha], -1)
    np.testing.assert_array_equal(objects.recolour(sprite, 0.0, 1.0), sprite)
    third = objects.recolour(sprite, 120.0, 1.0)
    np.testing.assert_array_equal(third, sprite[..., [2, 0, 1, 3]])
    bright = objects.recolour(sprite, 0.0, 2.0)
    np.testing.assert_array_equal(
        bright[..., :3], np.minimum(2 * colours.astype(np.uint8).astype(int), alpha)
    )
    grey = np.full((2, 2, 4), (90, 90, 90, 255), np.uint8)
    np.testing.assert_array_equal(objects.recolour(grey, 33.0, 1.0), grey)


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """A copy of the assets that may be damaged."""
    for name in ("objects.csv", "objects.zip"):
        shutil.copy(ASSETS / name, tmp_path / name)
    monkeypatch.setattr(objects, "_ASSETS", pathlib.Path(tmp_path))
    for cache in CACHES:
        cache.cache_clear()
    yield tmp_path
    for cache in CACHES:
        cache.cache_clear()


@pytest.mark.parametrize("name", ["objects.csv", "objects.zip"])
def test_a_missing_file_is_named_with_the_remedy(assets, name):
    (assets / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}: expected .* got no file; reinstall"):
        Scenes("train")


def test_a_damaged_file_is_named_with_the_remedy(assets):
    whole = (assets / "objects.zip").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], bytes(flipped), b""):
        (assets / "objects.zip").write_bytes(damaged)
        for cache in CACHES:
            cache.cache_clear()
        with pytest.raises(
            ValueError, match=r"objects.zip: expected .* damaged file .*; reinstall"
        ):
            Scenes("train")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A copy of scikit-image's pictures that may be damaged."""
    import skimage

    for photograph in photographs.PHOTOGRAPHS.values():
        shutil.copy(pathlib.Path(skimage.data_dir, photograph.file), tmp_path)
    monkeypatch.setattr(skimage, "data_dir", str(tmp_path))
    from crate_jax.data import backgrounds

    caches = (photographs.load, backgrounds._level, backgrounds._size)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_a_missing_or_damaged_photograph_is_named_with_the_remedy(pictures):
    coffee = pictures / "coffee.png"
    whole = coffee.read_bytes()
    coffee.unlink()
    with pytest.raises(FileNotFoundError, match=r"coffee.png: .* got no file; reinstall scikit-im"):
        Scenes("val")
    Scenes("val", photographs=("grass",))
    coffee.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"coffee.png: .* damaged file .*; reinstall scikit-image"):
        Scenes("val")
