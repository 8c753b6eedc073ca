import dataclasses
import math
import pathlib

import numpy as np
import pytest
from scipy import ndimage, stats

from crate_jax.data import objects, photographs, scenes
from crate_jax.data.folders import Folder
from crate_jax.data.scenes import Scenes

# Means of the four quadrants, pixels of the mask, label.
PINNED = {
    "train": (92.8, 85.5, 96.9, 124.7, 416, 41),
    "val": (126.2, 113.2, 108.6, 91.3, 674, 10),
}
BUSY = {"objects": (1, 3), "distractors": (0, 2), "occluders": (0, 2)}


@pytest.fixture(scope="module")
def train():
    return Scenes("train", image_size=32)


def test_shapes_and_types(train):
    scene = train[5]
    assert scene["image"].shape == (32, 32, 3)
    assert scene["mask"].shape == (32, 32)
    kinds = {name: value.dtype for name, value in scene.items()}
    assert kinds == {"image": np.uint8, "label": np.int32, "mask": bool, "index": np.int64}
    assert scene["index"] == 5
    assert len(train.class_names) == train.num_classes == 100


@pytest.mark.parametrize("size", [32, 64, 224])
def test_a_scene_depends_on_seed_split_and_index_alone(size):
    options = {"image_size": size, **BUSY}
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
    for split, expected in PINNED.items():
        scene = Scenes(split, image_size=48, **BUSY)[11]
        quadrants = scene["image"].reshape(2, 24, 2, 24, 3).mean((1, 3, 4)).ravel()
        np.testing.assert_allclose(quadrants, expected[:4], atol=0.5)
        assert scene["mask"].sum() == pytest.approx(expected[4], abs=3)
        assert scene["label"] == expected[5]


def sampled(name, pose, size, finer=6):
    """Colour times alpha and alpha, f64[size, size, 4], by `finer`^2 samples a pixel.

    Written from what a pose means, without the code that draws: every sample is carried back into
    the object's own picture and read there.
    """
    picture = objects.load(name).astype(float)
    height, width = picture.shape[:2]
    middle = (np.arange(size * finer) + 0.5) / finer
    y, x = np.meshgrid(middle, middle, indexing="ij")
    offset = np.stack([x - pose.centre[0], y - pose.centre[1]])
    u, v = np.einsum("ij,jhw->ihw", np.linalg.inv(pose.matrix), offset) * objects.SIDE
    where = [v + height / 2 - 0.5, u + width / 2 - 0.5]
    fine = [ndimage.map_coordinates(picture[..., c], where, order=1) for c in range(4)]
    return np.stack(fine, -1).reshape(size, finer, size, finer, 4).mean((1, 3))


@pytest.mark.parametrize("size", [32, 64, 128])
def test_image_and_mask_are_those_of_an_independent_composition(size):
    flat = {"contrast": (0.0, 0.0), "brightness": (1.0, 1.0), "hue": 0.0}
    source = Scenes("val", image_size=size, rotation=180, **flat)
    wrong, error = [], []
    for index in range(12):
        scene, (pose,) = source[index], source.poses(index)
        expected = sampled(pose.name, pose, size)
        alpha = expected[..., 3:] / 255
        outside = scene["image"][alpha[..., 0] == 0]
        background = np.median(outside, 0)  # one colour, as far from the object as not
        assert (outside == background).mean() > 0.99
        composed = background * (1 - alpha) + expected[..., :3]
        error.append(np.abs(scene["image"] - composed)[alpha[..., 0] > 0].mean())
        mask = alpha[..., 0] >= 0.5
        wrong.append((scene["mask"] ^ mask).sum() / mask.sum())
        # where they differ, the object covers about half of the pixel
        assert np.abs(alpha[..., 0][scene["mask"] ^ mask] - 0.5).max(initial=0) < 0.3
    assert np.mean(wrong) < 0.03
    assert np.mean(error) < 6  # of 255: another order of averaging at the edges


def test_masks_of_several_objects_are_what_is_on_top():
    source = Scenes("train", image_size=96, objects=(3, 5), scale=(0.3, 0.5))
    hidden = 0
    for index in range(20):
        alone = []
        for pose in source.poses(index):
            left, top, sprite = pose.draw(96)
            mask = np.zeros((96, 96), bool)
            mask[top : top + len(sprite), left : left + sprite.shape[1]] = sprite[..., 3] >= 128
            alone.append(mask)
        visible = [m & ~np.any(alone[k + 1 :], 0) for k, m in enumerate(alone)]
        hidden += sum((m & ~v).any() for m, v in zip(alone, visible, strict=True))
        labels = [source.class_names.index(pose.name) for pose in source.poses(index)]
        found = source.instances(index)
        seen = [k for k, mask in enumerate(visible) if mask.any()]
        np.testing.assert_array_equal(found["masks"], [visible[k] for k in seen])
        np.testing.assert_array_equal(found["labels"], [labels[k] for k in seen])
    assert hidden > 5


def test_several_objects_have_disjoint_masks_boxes_and_labels():
    source = Scenes("train", **BUSY)
    counts = []
    for index in range(60):
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
            assert tight[[0, -1]].any(1).all()
            assert tight[:, [0, -1]].any(0).all()
    assert set(counts) == {1, 2, 3}


def test_occluders_hide_at_most_half_of_an_object_and_are_no_part_of_its_mask():
    options = {"image_size": 64, "scale": (0.5, 0.8)}
    covered = 0
    for index in range(80):
        plain = Scenes("train", **options).instances(index)["masks"]
        scene = Scenes("train", occluders=(1, 3), **options)
        (mask,) = scene.instances(index)["masks"]
        assert not (mask & ~plain[0]).any()
        assert 2 * mask.sum() >= plain[0].sum()
        covered += mask.sum() < plain[0].sum()
    assert covered > 20


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_place_is_uniform(split):
    # The box around the object is anywhere in its free room, along each axis alike.
    source = Scenes(split, length=1_500)
    places = []
    for index in range(len(source)):
        (pose,) = source.poses(index)
        places.append(np.array(pose.corner) / (64 - np.array(pose.size)))
    for axis in np.transpose(places):
        assert stats.kstest(axis, "uniform").pvalue > 0.01
    assert abs(stats.pearsonr(*np.transpose(places)).statistic) < 0.06


def test_the_box_of_a_pose_is_that_of_its_mask():
    source = Scenes("val", image_size=128, rotation=180)
    for index in range(20):
        (pose,), (box,) = source.poses(index), source.instances(index)["boxes"]
        expected = (*pose.corner, *np.add(pose.corner, pose.size))
        np.testing.assert_allclose(box, expected, atol=1.6)
        assert min(pose.corner) >= 0
        assert np.add(pose.corner, pose.size).max() <= 128


def test_place_scale_and_rotation_are_obeyed():
    centred = Scenes("val", scale=(0.5, 0.5), place=(0.5, 0.5), rotation=0)
    for index in range(10):
        (pose,) = centred.poses(index)
        np.testing.assert_allclose(np.add(pose.corner, np.divide(pose.size, 2)), 32, atol=1e-6)
        assert max(pose.size) == pytest.approx(32, abs=1.0)
        np.testing.assert_allclose(np.abs(pose.matrix), 32 * np.eye(2), atol=1e-6)


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


def test_splits_share_no_pose_and_no_colour():
    # The range of each is cut into 16 cells; training has the first half of every cell.
    for split, half in (("train", 0), ("val", 1)):
        source = Scenes(split)
        for index in range(300):
            (pose,) = source.poses(index)
            scale = math.sqrt(abs(np.linalg.det(pose.matrix))) / 64
            mirrored = np.linalg.det(pose.matrix) < 0
            turn = math.degrees(math.atan2(-pose.matrix[0, 1], pose.matrix[1, 1]))
            drawn = {
                "scale": (scale - 0.3) / 0.25,
                "turn": (turn + 20) / 40,
                "hue": (pose.hue + 20) / 40,
                "brightness": (pose.brightness - 0.7) / 0.4,
            }
            for name, value in drawn.items():
                cell = value * 16 % 1
                assert half / 2 - 1e-6 <= cell <= half / 2 + 0.5 + 1e-6, (name, value, mirrored)


def test_every_class_is_shown_once_before_any_twice():
    source = Scenes("val", seed=3, classes=40)
    shown = [source[i]["label"] for i in range(80)]
    assert sorted(shown[:40]) == list(range(40))
    assert shown[40:] == shown[:40]
    assert shown[:40] != [Scenes("val", seed=4, classes=40)[i]["label"] for i in range(40)]


@pytest.mark.parametrize("held_out", [3, "3", "fox, bus,drum", ("fox", "bus", "drum")])
def test_held_out_classes_are_never_shown_in_training(held_out):
    classes = ("fox", "banana", "bus", "drum")
    if held_out in (3, "3"):
        classes = ("banana", "fox", "bus", "drum")
    options = {"classes": classes, "held_out": held_out}
    held = {classes.index(name) for name in ("fox", "bus", "drum")}
    learned = classes.index("banana")
    shown = {
        "train": Scenes("train", objects=(1, 2), **options),
        "learned": Scenes("val", **options),
        "held_out": Scenes("val", shown="held_out", **options),
        "all": Scenes("val", shown="all", objects=(1, 2), **options),
    }
    for source in shown.values():
        assert source.class_names == classes  # the labels and the head stay as they are
        assert set(source.held_out_names) == {"fox", "bus", "drum"}
    labels = {
        name: {int(label) for i in range(24) for label in source.instances(i)["labels"]}
        for name, source in shown.items()
    }
    assert labels == {
        "train": {learned},
        "learned": {learned},
        "held_out": held,
        "all": held | {learned},
    }


def test_object_fraction_is_reported_and_small():
    source = Scenes("val", length=400)
    fraction = source.object_fraction()
    assert fraction == pytest.approx(np.mean([source[i]["mask"].mean() for i in range(400)]))
    assert 0.09 < fraction < 0.12  # what the documentation states: about a tenth
    assert Scenes("val", length=400, scale=(0.15, 0.25)).object_fraction() < 0.4 * fraction


def test_difficulty_options_change_the_background():
    flat = Scenes("val", contrast=(0.0, 0.0))[3]
    outside = flat["image"][~ndimage.binary_dilation(flat["mask"], iterations=3)]
    assert (outside == outside[0]).all()
    plain, busy = Scenes("val")[3], Scenes("val", distractors=(4, 4))[3]
    assert (plain["image"] != busy["image"]).any()
    np.testing.assert_array_equal(plain["mask"], busy["mask"])
    only_grass = Scenes("val", photographs=("grass",))
    assert only_grass.photographs == ("grass",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split"),
        ({"image_size": 31}, "image_size: expected 32 to 224, got 31"),
        ({"image_size": 225}, "image_size: expected 32 to 224, got 225"),
        ({"length": 0}, "length"),
        ({"seed": -1}, "seed"),
        ({"scale": (0.8, 0.5)}, "scale"),
        ({"scale": (0.1, 0.5)}, "scale: expected a range .* within 0.125 to 1"),
        ({"objects": (0, 1)}, "objects"),
        ({"contrast": (0.0, 2.0)}, "contrast"),
        ({"rotation": 181}, "rotation: expected 0 to 180"),
        ({"leaves": 0.6, "noise": 0.6}, "shares of at most 1 together"),
        ({"photographs": ("grass",)}, "got .'grass'"),  # belongs to val
        ({"classes": 601}, "classes: expected 0 to 600, .* got 601"),
        ({"classes": ("dog face", "dragonn")}, "'dragonn', did you mean dragon"),
        ({"classes": ("bus", "bus")}, "every name once"),
        ({"held_out": "unicorns"}, "held_out: expected names among the 100 .* got 'unicorns'"),
        ({"held_out": ("moai",)}, "'moai'"),  # an object, but not one of the hundred
        ({"held_out": 101}, "held_out: expected 0 to 100"),
        ({"held_out": 100}, "expected a class to show as 'learned'"),
        ({"shown": "held_out"}, "'learned' for training scenes"),
        ({"split": "val", "shown": "held_out"}, "got 0 held out of 100"),
        ({"split": "val", "shown": "new"}, "shown: expected one of"),
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


def test_paste_is_alpha_composition():
    rng = np.random.default_rng(0)
    area = rng.integers(0, 256, (40, 30, 3), np.uint8)
    alpha = rng.integers(0, 256, (40, 30, 1), np.uint8)
    colours = rng.integers(0, 256, (40, 30, 3)) * (alpha / 255)
    sprite = np.concatenate([np.rint(colours).astype(np.uint8), alpha], -1)
    expected = area * (1 - alpha / 255) + sprite[..., :3]
    covered = scenes.paste(area, sprite)
    np.testing.assert_allclose(area, expected, atol=0.51)
    np.testing.assert_array_equal(covered, alpha[..., 0] / 255 >= 0.5)


def test_a_folder_of_scenes_is_read_as_class_folders(tmp_path):
    classes = ("fox", "bus")
    sources = {s: Scenes(s, length=6, seed=3, classes=classes) for s in ("train", "val")}
    for source in sources.values():
        assert scenes.write_folder(tmp_path, source) == 6
    folder = Folder(str(tmp_path), "val")
    assert folder.class_names == ("bus", "fox")
    assert len(folder) == 6
    for i in range(len(folder)):
        original = sources["val"][int(pathlib.Path(folder.path(i)).stem)]
        np.testing.assert_array_equal(folder[i]["image"], original["image"])
        assert folder.class_names[folder[i]["label"]] == classes[original["label"]]
