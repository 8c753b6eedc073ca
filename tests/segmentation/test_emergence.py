"""The one measure of emergence against loops over pixels, and its parts against the whole."""

import numpy as np
import pytest

from crate_jax.segmentation import attention, emergence, scoring

LAYERS, HEADS, GRID = 2, 3, (4, 3)
CELLS = GRID[0] * GRID[1]


def random_maps(rng, ties=False):
    maps = rng.gamma(0.5, size=(LAYERS, HEADS, CELLS))
    if ties:
        maps = rng.integers(1, 4, maps.shape).astype(float)
    return (maps / maps.sum(-1, keepdims=True)).astype(np.float32)


def random_labels(rng, size=(13, 11)):
    """Two classes, background and void, in blots."""
    coarse = rng.choice([0, 0, 3, 7, 255], size=(5, 4))
    rows, columns = (np.arange(s) * c // s for s, c in zip(size, coarse.shape, strict=True))
    return coarse[rows[:, None], columns]


# -- loops over pixels ----------------------------------------------------------------------------


def by_pixels(maps, labels, value, void=255):
    """f64[measures, layers, heads] of the object of one label, by counting pixels."""
    height, width = labels.shape
    result = np.zeros((5, LAYERS, HEADS))
    patch_of = [
        [int((y + 0.5) * GRID[0] / height) * GRID[1] + int((x + 0.5) * GRID[1] / width)]
        for y in range(height)
        for x in range(width)
        if labels[y, x] != void
    ]
    patch_of = np.array(patch_of)[:, 0]
    truth = labels[labels != void] == value
    for layer in range(LAYERS):
        for head in range(HEADS):
            patches = maps[layer, head].astype(np.float64)
            order = np.argsort(patches, kind="stable")
            mass = np.zeros(CELLS, bool)
            area = np.zeros(CELLS, bool)
            cumulative = np.cumsum(patches[order])
            mass[order[cumulative > 0.4 * cumulative[-1] * (1 + 1e-6)]] = True
            area[order[CELLS - round(0.6 * CELLS) :]] = True
            scores = patches[patch_of]
            result[:, layer, head] = [
                *((k & truth).sum() / (k | truth).sum() for k in (mass[patch_of], area[patch_of])),
                auroc(scores, truth),
                average_precision(scores, truth),
                pointing(order[-1], patch_of, truth),
            ]
    return result


def auroc(scores, truth):
    inside, outside = scores[truth], scores[~truth]
    if not len(outside):
        return 0.5
    return np.mean([(a > b) + 0.5 * (a == b) for a in inside for b in outside])


def average_precision(scores, truth):
    total, before = 0, 0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        recall = (chosen & truth).sum() / truth.sum()
        total += (recall - before) * (chosen & truth).sum() / chosen.sum()
        before = recall
    return total


def pointing(patch, patch_of, truth):
    pixels = truth[patch_of == patch]
    return len(pixels) > 0 and pixels.mean() >= 0.5


def objects_in(labels):
    return [value for value in np.unique(labels) if value not in (0, 255)]


def centre_box_iou(labels, value):
    height, width = labels.shape
    top, left = (height - round(height / 2 + 1e-9)) // 2, (width - round(width / 2 + 1e-9)) // 2
    box = np.zeros(labels.shape, bool)
    box[top : top + round(height / 2 + 1e-9), left : left + round(width / 2 + 1e-9)] = True
    valid = labels != 255
    union = ((box | (labels == value)) & valid).sum()
    return (box & (labels == value) & valid).sum() / union


# -- one image ------------------------------------------------------------------------------------


def measured_of(*images, start=0, **options):
    """images: (maps, objects); the coding rate and the sparsity say which image it is."""
    measured = emergence.Measured(**options)
    for number, (maps, objects) in enumerate(images, start):
        measured.add(maps, objects, np.full(LAYERS, number / 3), np.full(LAYERS, number / 7))
    return measured


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_every_measure_is_what_counting_pixels_gives(ties):
    rng = np.random.default_rng(0)
    for _ in range(5):
        maps, labels = random_maps(rng, ties), random_labels(rng)
        objects = emergence.objects_of_labels(labels, GRID)
        values = objects_in(labels)
        assert len(objects) == len(values) > 0
        want = np.array([by_pixels(maps, labels, value) for value in values])
        (got,) = measured_of((maps, objects)).own
        np.testing.assert_allclose(got[..., :-1], want.mean(0), rtol=1e-12)
        np.testing.assert_allclose(got[..., -1], want.max(-1).mean(0), rtol=1e-12)
        valid = labels != 255
        shares = [(labels == value).sum() / valid.sum() for value in values]
        np.testing.assert_allclose(objects.all_ones, shares)
        boxes = [centre_box_iou(labels, value) for value in values]
        np.testing.assert_allclose(objects.centre_box, boxes)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.6, 1.0])
def test_the_rules_are_those_of_attention(ties, keep):
    rng = np.random.default_rng(4)
    maps, labels = random_maps(rng, ties), random_labels(rng)
    (own,) = measured_of((maps, emergence.objects_of_labels(labels, GRID)), keep=keep).own
    objects = labels == np.reshape(objects_in(labels), (-1, 1, 1, 1, 1))
    for place, rule in enumerate(attention.RULES.values()):
        kept = attention.upsample(rule(maps, keep), GRID, labels.shape)
        ious = np.asarray(scoring.iou(kept, objects, labels == 255))
        np.testing.assert_allclose(own[place, :, :-1], ious.mean(0), rtol=1e-6)


def test_a_mask_is_a_label_map_of_one_object():
    mask = np.zeros((8, 9), bool)
    mask[2:6, 3:9] = True
    of_mask = emergence.objects_of_mask(mask, (2, 3))
    np.testing.assert_array_equal(of_mask.counts, [[0, 6, 6, 0, 6, 6]])
    np.testing.assert_array_equal(of_mask.valid, [12] * 6)
    assert of_mask.all_ones == 24 / 72
    assert len(emergence.objects_of_mask(np.zeros((8, 9), bool), (2, 3))) == 0


def test_by_hand():
    """Four patches of 2 x 2 pixels; the object is the whole of the first and half of the second."""
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], bool)
    objects = emergence.objects_of_mask(mask, (2, 2))
    maps = np.array([[[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]])
    (own,) = measured_of((np.repeat(maps, LAYERS, 0), objects)).own
    mass, area, auroc, ap, pointing = own[:, 0]
    np.testing.assert_allclose(mass[:2], [6 / 8, 0])  # two patches hold 0.7; 0.4 + 0.3 beside it
    np.testing.assert_allclose(area[:2], [6 / 8, 0])  # round(2.4) patches
    # 24 and 36 pairs less: 4 + 2 pixels of the object against 2 + 8 others
    np.testing.assert_allclose(auroc[:3], [(4 * 10 + 2 * 8 + 2) / 60, 2 / 60, 0.5], atol=1e-12)
    np.testing.assert_allclose(ap[[0, 2]], [(4 * 1 + 2 * 6 / 8) / 6, 6 / 16])
    np.testing.assert_array_equal(pointing, [1, 0, 0, 1])


def test_an_object_that_fills_the_image_has_no_pixel_beside_it():
    objects = emergence.objects_of_mask(np.ones((8, 6), bool), GRID)
    (own,) = measured_of((random_maps(np.random.default_rng(1)), objects)).own
    np.testing.assert_array_equal(own[2], 0.5)
    np.testing.assert_allclose(own[3], 1)
    np.testing.assert_array_equal(own[4], 1)


def test_what_is_not_finite_is_an_error():
    rng = np.random.default_rng(2)
    objects = emergence.objects_of_labels(random_labels(rng), GRID)
    maps, ones = random_maps(rng), np.ones(LAYERS)
    maps[1, 0, 0] = np.nan
    with pytest.raises(FloatingPointError, match=r"\[CLS\] attention.*1 of 2 layers"):
        emergence.Measured().add(maps, objects, ones, ones)
    with pytest.raises(FloatingPointError, match=r"coding rate: .*nan"):
        emergence.Measured().add(random_maps(rng), objects, ones * np.nan, ones)


# -- a set of images ------------------------------------------------------------------------------


def image_set(count=7, empty=(0, 3, 6)):
    """Maps and label maps; some images hold no object."""
    rng = np.random.default_rng(3)
    images = []
    for number in range(count):
        labels = random_labels(rng)
        while not objects_in(labels):
            labels = random_labels(rng)
        images.append((random_maps(rng), np.zeros((13, 11), int) if number in empty else labels))
    return images


def measured_set(images, **options):
    return measured_of(
        *((maps, emergence.objects_of_labels(labels, GRID)) for maps, labels in images), **options
    )


def image_means(maps, labels):
    """(every head, best head of each object): means over the objects of one image."""
    scores = np.array([by_pixels(maps, labels, value) for value in objects_in(labels)])
    return scores.mean(0), scores.max(-1).mean(0)


def test_estimates_are_means_over_images_with_every_control():
    images = image_set()
    untrained = [(maps[..., ::-1].copy(), labels) for maps, labels in images]
    found = emergence.estimates(measured_set(images), measured_set(untrained), samples=300)
    some = [image for image in images if objects_in(image[1])]
    following = [*some[1:], some[0]]
    tables = {
        "": [image_means(*image) for image in some],
        "_other": [
            image_means(maps, labels)
            for (maps, _), (_, labels) in zip(some, following, strict=True)
        ],
        "_random": [image_means(maps[..., ::-1], labels) for maps, labels in some],
    }
    stems = ("cls_iou{}/mass", "cls_iou{}/area", "cls_auroc{}", "cls_ap{}", "cls_pointing{}")
    rows = {}
    for place, stem in enumerate(stems):
        for layer in range(LAYERS):
            for kind, table in tables.items():
                heads = np.array([every[place, layer] for every, _ in table])
                # Against others' objects stands the head that was chosen for the images' own.
                chosen_by = tables["" if kind == "_other" else kind]
                chosen = np.array([every[place, layer] for every, _ in chosen_by])
                fixed = [
                    row[np.argmax(chosen[(number + 1) % 2 :: 2].mean(0))]
                    for number, row in enumerate(heads)
                ]
                for head, values in (
                    ("best", [best[place, layer] for _, best in table]),
                    ("mean", heads.mean(1)),
                    ("fixed", fixed),
                ):
                    rows[f"{stem.format(kind)}/{head}/layer{layer + 1:02d}"] = np.array(values)
            for head in emergence.HEADS:
                end = f"{head}/layer{layer + 1:02d}"
                for kind, control in (("_gain", "_random"), ("_own_minus_other", "_other")):
                    difference = rows[f"{stem.format('')}/{end}"]
                    difference = difference - rows[f"{stem.format(control)}/{end}"]
                    rows[f"{stem.format(kind)}/{end}"] = difference
    drawn = np.random.default_rng(0).integers(len(some), size=(300, len(some)))
    for name, values in rows.items():
        low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5])
        estimate = found.pop(name)
        got = (estimate.value, estimate.low, estimate.high)
        assert got == pytest.approx((values.mean(), low, high), abs=1e-12), name
    assert found.pop("object_fraction") == found.pop("cls_iou_all_ones")
    found.pop("cls_iou_centre_box")
    # Also of the images without an object.
    assert found.pop("coding_rate/layer01").value == pytest.approx(np.mean(np.arange(7) / 3))
    assert found.pop("sparsity/layer02").value == pytest.approx(np.mean(np.arange(7) / 7))
    assert set(found) == {"coding_rate/layer02", "sparsity/layer01"}


@pytest.mark.parametrize("cut", range(8))
def test_parts_joined_equal_the_whole_exactly(cut):
    images = image_set()
    whole = measured_set(images)
    assert (len(whole), whole.without_object) == (4, 3)
    first, second, third = (
        emergence.Measured.from_arrays(measured_set(images[a:b], start=a).to_arrays(), 0.6)
        for a, b in ((0, cut // 2), (cut // 2, cut), (cut, 7))
    )
    second.extend(third)
    first.extend(second)
    assert emergence.estimates(first, samples=10) == emergence.estimates(whole, samples=10)
    assert first.without_object == 3


def test_arrays_are_plain_and_come_back_exactly():
    measured = measured_set(image_set(), layers=(3, 5))
    arrays = measured.to_arrays()
    assert all(isinstance(a, np.ndarray) and a.dtype != object for a in arrays.values())
    back = emergence.Measured.from_arrays(arrays, 0.6, (3, 5))
    assert emergence.estimates(back, samples=10) == emergence.estimates(measured, samples=10)
    assert "cls_iou/mass/best/layer06" in emergence.estimates(back, samples=10)
    with pytest.raises(ValueError, match="the same keep and layers"):
        measured.extend(emergence.Measured())


def test_one_image_has_no_other_and_no_half_to_choose_a_head_on():
    names = emergence.estimates(measured_set(image_set(1, empty=())), samples=10)
    assert "cls_iou/mass/best/layer01" in names
    assert not any("other" in name or "fixed" in name for name in names)


def test_a_set_without_masks_has_its_layers_measured():
    measured = emergence.Measured()
    for value in (1.0, 2.0):
        measured.add(None, None, np.array([value, 2 * value]), np.array([0.5, 0.25]))
    values = {name: e.value for name, e in emergence.estimates(measured, samples=10).items()}
    assert values == {
        "coding_rate/layer01": 1.5,
        "coding_rate/layer02": 3.0,
        "sparsity/layer01": 0.5,
        "sparsity/layer02": 0.25,
    }
    assert measured.without_object == 0


def test_random_weights_are_compared_on_the_same_images():
    images = image_set()
    with pytest.raises(ValueError, match="the same 4 images with objects, got 3"):
        emergence.estimates(measured_set(images), measured_set(images[:-2]))


def test_flat_names():
    flat = emergence.flatten({"a/b": emergence.Estimate(0.5, 0.25, 0.75)})
    assert flat == {"a/b": 0.5, "a/b/low": 0.25, "a/b/high": 0.75}


def test_maps_of_all_layers_in_one_array():
    rng = np.random.default_rng(5)
    query, key = rng.normal(size=(2, LAYERS, 4, 1 + CELLS, HEADS, 6)).astype(np.float32)
    maps = attention.layer_maps(query, key)
    assert maps.shape == (4, LAYERS, HEADS, CELLS)
    np.testing.assert_array_equal(maps[:, 1], attention.cls_maps(query[1], key[1]))
