import dataclasses
import importlib.resources
import pathlib

import numpy as np
import pytest
from scipy import ndimage

from crate_jax.data import photographs, scenes
from crate_jax.data.folders import Folder
from crate_jax.data.scenes import Scenes, clothing

# Means of the four quadrants, pixels of the mask, label.
PINNED = {"train": (91.9, 83.6, 84.3, 72.8, 132, 2), "val": (56.9, 95.3, 65.7, 52.1, 397, 2)}


@pytest.fixture(scope="module")
def train():
    return Scenes("train")


def test_shapes_and_types(train):
    scene = train[5]
    assert scene["image"].shape == (32, 32, 3)
    assert scene["mask"].shape == (32, 32)
    kinds = {name: value.dtype for name, value in scene.items()}
    assert kinds == {"image": np.uint8, "label": np.int32, "mask": bool, "index": np.int64}
    assert scene["index"] == 5
    assert len(train.class_names) == train.num_classes == 10


@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_scene_depends_on_seed_split_and_index_alone(size):
    options = {"image_size": size, "objects": (1, 3), "distractors": (0, 2), "scale": (0.3, 0.6)}
    first = Scenes("train", **options)
    again = Scenes("train", length=10**9, **options)  # the length changes no scene
    for index in (7, 3, 7):
        np.testing.assert_array_equal(first[index]["image"], again[index]["image"])
        np.testing.assert_array_equal(first[index]["mask"], again[index]["mask"])
    for other in (Scenes("train", seed=1, **options), Scenes("val", **options)):
        assert (first[3]["image"] != other[3]["image"]).mean() > 0.5
    assert (first[3]["image"] != first[4]["image"]).mean() > 0.5


def test_scenes_are_the_same_as_ever():
    # A changed draw, photograph or resampling would silently change every published figure. Means
    # of quadrants, because OpenCV may round a pixel differently on another processor.
    options = {"image_size": 48, "objects": (1, 3), "distractors": (1, 2), "scale": (0.3, 0.6)}
    for split, expected in PINNED.items():
        scene = Scenes(split, **options)[11]
        quadrants = scene["image"].reshape(2, 24, 2, 24, 3).mean((1, 3, 4)).ravel()
        np.testing.assert_allclose(quadrants, expected[:4], atol=0.5)
        assert scene["mask"].sum() == pytest.approx(expected[4], abs=3)
        assert scene["label"] == expected[5]


def test_splits_share_no_garment():
    garments = {
        split: {image.tobytes() for image in clothing(split)[0]} for split in ("train", "val")
    }
    assert len(garments["train"]) > 9_990  # Fashion-MNIST has a few duplicates
    assert len(garments["val"]) == 2_000
    assert not garments["train"] & garments["val"]


def test_splits_share_no_photograph():
    train, val = photographs.names("train"), photographs.names("val")
    assert not set(train) & set(val)
    assert set(train) | set(val) == set(photographs.PHOTOGRAPHS)
    assert Scenes("train").photographs == train
    assert Scenes("test").photographs == val
    pictures = [photographs.load(name, 10_000).tobytes() for name in train + val]
    assert len(set(pictures)) == len(pictures)


def test_every_photograph_states_free_terms():
    free = {"CC0", "public domain", "no known copyright restrictions"}
    for photograph in photographs.PHOTOGRAPHS.values():
        assert photograph.licence in free
        assert photograph.credit


def test_the_clothing_is_balanced_and_its_licence_beside_it():
    for split, count in (("train", 1_000), ("val", 200)):
        images, silhouettes, labels = clothing(split)
        assert (np.bincount(labels) == count).all()
        assert images.shape == silhouettes.shape == (10 * count, 28, 28)
    assets = importlib.resources.files("crate_jax.data") / "assets"
    notice = (assets / "FASHION_MNIST_LICENSE.txt").read_text()
    assert "MIT License" in notice
    assert "2017 Zalando SE" in notice
    assert len((assets / "fashion_mnist_subset.npz").read_bytes()) < 7e6


def test_silhouette_fills_dark_cloth_and_drops_specks():
    image = np.zeros((2, 28, 28), np.uint8)
    image[:, 5:20, 5:20] = 200
    image[:, 8:12, 8:12] = 0  # a hole
    image[:, 25, 25] = 255  # a speck
    image[:, 5:20, 20] = 3  # compression noise along the edge
    expected = np.zeros((28, 28), bool)
    expected[5:20, 5:20] = True
    coat, bag = scenes.silhouettes(image, np.array([4, 8]))
    np.testing.assert_array_equal(coat, expected)
    expected[8:12, 8:12] = False  # the opening under a handle
    np.testing.assert_array_equal(bag, expected)


def test_silhouettes_hold_the_garment_and_have_no_holes():
    images, silhouettes, labels = clothing("val")
    for outline in silhouettes[~np.isin(labels, (5, 8))]:
        assert (ndimage.binary_fill_holes(outline) == outline).all()
    light = images.sum((1, 2), dtype=float)
    inside = (images * silhouettes).sum((1, 2)) / light
    assert inside.min() > 0.85
    assert inside.mean() > 0.998
    pieces = [ndimage.label(outline, np.ones((3, 3)))[1] for outline in silhouettes]
    assert np.mean(np.equal(pieces, 1)) > 0.97


def test_the_mask_is_the_silhouette_of_the_garment_at_its_own_size():
    source = Scenes("val", image_size=56, scale=(0.5, 0.5))  # a frame of 28 px: nothing is resized
    _, silhouettes, labels = clothing("val")
    for index in range(20):
        scene = source[index]
        row = source.garment(index)
        rows, columns = np.nonzero(scene["mask"])
        inner_rows, inner_columns = np.nonzero(silhouettes[row])
        top, left = rows.min() - inner_rows.min(), columns.min() - inner_columns.min()
        expected = np.zeros_like(scene["mask"])
        expected[top : top + 28, left : left + 28] = silhouettes[row]
        np.testing.assert_array_equal(scene["mask"], expected)
        assert scene["label"] == labels[row]


@pytest.mark.parametrize("side", [14, 20, 28, 61])
def test_paste_changes_the_silhouette_and_nothing_else(side):
    images, silhouettes, _ = clothing("val")
    colour = np.array([1.0, 0.5, 0.25])
    for row in range(10):
        area = np.full((side, side, 3), 77, np.uint8)
        alpha = scenes.paste(area, images[row], silhouettes[row], colour)
        assert (area[alpha == 0] == 77).all()
        # the kernel keeps area: the mask covers what the silhouette does
        assert alpha.mean() == pytest.approx(silhouettes[row].mean(), abs=0.02)
        solid = alpha == 1
        shades = area[solid].astype(float)
        # inside, the garment's grey times the colour, up to rounding
        assert np.abs(shades[:, 0] * 0.5 - shades[:, 1]).max() <= 0.76
        if side == 28:
            grey = 0.15 * 255 + 0.85 * images[row].astype(float)
            np.testing.assert_allclose(area[..., 0][solid], grey[solid], atol=0.51)


def test_every_garment_is_shown_once_before_any_twice():
    source = Scenes("val", seed=3)
    order = [source.garment(i) for i in range(len(source))]
    assert sorted(order) == list(range(2_000))
    labels = [clothing("val")[2][row] for row in order]
    assert all(sorted(labels[i : i + 10]) == list(range(10)) for i in range(0, 2_000, 10))
    assert source.garment(2_000) == order[0]


def test_object_fraction_is_reported_and_moderate():
    source = Scenes("val", length=400)
    fraction = source.object_fraction()
    assert fraction == pytest.approx(np.mean([source[i]["mask"].mean() for i in range(400)]))
    assert 0.15 < fraction < 0.22  # what the documentation states: about 0.18
    small = Scenes("val", length=400, scale=(0.3, 0.4)).object_fraction()
    assert small < 0.5 * fraction


def test_several_garments_have_disjoint_masks_boxes_and_labels():
    source = Scenes("train", image_size=64, objects=(1, 3), scale=(0.4, 0.7), length=200)
    counts = []
    for index in range(100):
        scene, instances = source[index], source.instances(index)
        masks, labels, boxes = instances["masks"], instances["labels"], instances["boxes"]
        counts.append(len(masks))
        assert masks.sum(0).max() == 1
        np.testing.assert_array_equal(masks.any(0), scene["mask"])
        assert scene["label"] == labels[masks.sum((1, 2)).argmax()]
        assert labels.dtype == boxes.dtype == np.int32
        for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
            tight = mask[top:bottom, left:right]
            assert tight.sum() == mask.sum() > 0
            assert tight[0].any()
            assert tight[-1].any()
            assert tight[:, 0].any()
            assert tight[:, -1].any()
    assert set(counts) == {1, 2, 3}


def test_place_and_scale_are_obeyed():
    centred = Scenes("val", image_size=64, scale=(0.5, 0.5), place=(0.5, 0.5))
    for index in range(10):
        rows, columns = np.nonzero(centred[index]["mask"])
        assert rows.min() >= 16
        assert rows.max() < 48
        assert columns.min() >= 16
        assert columns.max() < 48


def test_difficulty_options_change_the_background():
    flat = Scenes("val", contrast=(0.0, 0.0))[3]
    outside = flat["image"][~ndimage.binary_dilation(flat["mask"], iterations=2)]
    assert (outside == outside[0]).all()
    plain, busy = Scenes("val")[3], Scenes("val", distractors=(4, 4))[3]
    assert (plain["image"] != busy["image"]).any()
    only_grass = Scenes("val", photographs=("grass",))
    assert only_grass.photographs == ("grass",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split"),
        ({"image_size": 8}, "image_size"),
        ({"length": 0}, "length"),
        ({"seed": -1}, "seed"),
        ({"scale": (0.8, 0.5)}, "scale"),
        ({"scale": (0.1, 0.5)}, "scale"),
        ({"objects": (0, 1)}, "objects"),
        ({"contrast": (0.0, 2.0)}, "contrast"),
        ({"photographs": ("grass",)}, "grass"),  # belongs to val
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**{"split": "train", **options})


def test_index_out_of_range(train):
    with pytest.raises(IndexError):
        train[len(train)]


def test_options_are_frozen(train):
    with pytest.raises(dataclasses.FrozenInstanceError):
        train.seed = 3


def test_a_folder_of_scenes_is_read_as_class_folders(tmp_path):
    for split, length in (("train", 20), ("test", 30)):
        source = Scenes(split, length=length, seed=3)
        count = scenes.write_folder(tmp_path, source, ("Bag", "Dress"))
        assert count == length // 5  # ten in a row show ten classes
    folder = Folder(str(tmp_path), "val")
    assert folder.class_names == ("Bag", "Dress")
    assert len(folder) == 6
    scene = Scenes("val", length=30, seed=3)
    for i in range(len(folder)):
        original = scene[int(pathlib.Path(folder.path(i)).stem)]
        np.testing.assert_array_equal(folder[i]["image"], original["image"])
        assert folder.class_names[folder[i]["label"]] == scene.class_names[original["label"]]
    with pytest.raises(ValueError, match="got \\['Hat'\\]"):
        scenes.write_folder(tmp_path, scene, ("Hat",))
