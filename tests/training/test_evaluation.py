"""The assembly of an evaluation against NumPy in float64, image by image.

From the network only its captured arrays are taken (tests/models compares those with the authors'
code). Maps, rules, IoU, heads, controls, means and intervals are computed here once more, in the
plainest way: at full resolution, an image at a time, without a batch.
"""

import jax
import numpy as np
import pytest

from crate_jax import config
from crate_jax.export import coco
from crate_jax.models import base, variants
from crate_jax.segmentation import average_precision, maskcut
from crate_jax.training import evaluation, evaluators, inputs, probing, sharding
from tests import networks

IMAGES, SIDE, PATCH, LAYERS, HEADS = 11, 32, 8, 2, 3
KEEP = 0.6
CONFIG = variants.config("crate-testing")


class Source:
    """Noise with a brighter rectangle or ellipse, which is the object."""

    num_classes, class_names, has_masks = 10, tuple("abcdefghij"), True

    def __init__(self):
        rng = np.random.default_rng(7)
        self.images = rng.integers(0, 160, (IMAGES, SIDE, SIDE, 3)).astype(np.uint8)
        self.labels = rng.integers(0, 10, IMAGES).astype(np.int32)
        y, x = np.mgrid[:SIDE, :SIDE]
        masks = []
        for index in range(IMAGES):
            (top, left), (high, wide) = rng.integers(0, 18, 2), rng.integers(5, 15, 2)
            inside = (y >= top) & (y < top + high) & (x >= left) & (x < left + wide)
            if index % 2:
                inside = ((y - top - 7) / high) ** 2 + ((x - left - 7) / wide) ** 2 < 1
            self.images[index][inside] += 90
            masks.append(inside)
        self.masks = np.stack(masks)

    def __len__(self):
        return IMAGES

    def __getitem__(self, i):
        return {
            "image": self.images[i],
            "label": self.labels[i],
            "index": np.int64(i),
            "mask": self.masks[i],
        }


SOURCE = Source()


def network(seed):
    return networks.draw(CONFIG, seed)


@pytest.fixture(scope="module")
def captured():
    """Of the trained and of the random network: logits, query, key and tokens of every image."""

    def run(seed):
        logits, out = networks.run(network(seed), SOURCE.images, capture=True)
        arrays = {"logits": np.asarray(logits, np.float64)}
        for name in ("query", "key", "tokens"):
            arrays[name] = np.moveaxis(np.asarray(out[name], np.float64), 1, 0)
        return arrays

    return run(1), run(2)


# -- the measures of one image, in plain NumPy ----------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def kept(attention, rule):
    """The patches that a rule keeps, bool[n]."""
    order = np.argsort(attention)
    keep = np.zeros(len(attention), bool)
    if rule == "area":
        keep[order[len(order) - round(KEEP * len(order)) :]] = True
    else:
        keep[order[np.cumsum(attention[order]) > (1 - KEEP) * attention.sum()]] = True
    return keep


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def head_ious(arrays, image, mask, rule):
    """f64[layers, heads] of one image's maps against a mask, at the image's resolution."""
    scores = np.zeros((LAYERS, HEADS))
    for layer in range(LAYERS):
        for head in range(HEADS):
            q, k = arrays["query"][image, layer, :, head], arrays["key"][image, layer, :, head]
            attention = softmax(k[1:] @ q[0] / np.sqrt(q.shape[-1]))
            keep = kept(attention, rule).reshape(SIDE // PATCH, SIDE // PATCH)
            scores[layer, head] = iou(keep.repeat(PATCH, 0).repeat(PATCH, 1), mask)
    return scores


def coding_rate(w, eps=0.01):
    """Of w f64[tokens, heads, d]: the larger Gram matrix and LAPACK."""
    rate = 0
    for head in range(w.shape[1]):
        x = w[:, head] / np.linalg.norm(w[:, head], axis=1, keepdims=True)
        gram = x @ x.T * (x.shape[1] / (len(x) * eps))
        rate += np.linalg.slogdet(np.eye(len(x)) + gram)[1] / 2
    return rate


def interval(values):
    """Ends of the 95 % percentile bootstrap, draw by draw."""
    drawn = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    return np.percentile(values[drawn].mean(1), [2.5, 97.5])


def expected(captured, capture_images):
    """All metrics by name, from the arrays of every image."""
    trained, random = captured
    logits = trained["logits"]
    p = np.stack([softmax(row) for row in logits])
    own = logits[np.arange(IMAGES), SOURCE.labels]
    ranks = (logits > own[:, None]).sum(1)
    metrics = {
        "val/images": IMAGES,
        "val/loss": -np.log(p[np.arange(IMAGES), SOURCE.labels]).mean(),
        "val/top1": (ranks < 1).mean(),
        "val/top5": (ranks < 5).mean(),
    }
    images = min(IMAGES, capture_images)
    masks = SOURCE.masks[:images]
    rows = {}
    for rule in ("mass", "area"):
        ious = {
            "": [head_ious(trained, i, SOURCE.masks[i], rule) for i in range(images)],
            "_random": [head_ious(random, i, SOURCE.masks[i], rule) for i in range(images)],
            "_other": [
                head_ious(trained, i, SOURCE.masks[(i + 1) % images], rule) for i in range(images)
            ],
        }
        for kind, values in ious.items():
            for layer in range(LAYERS):
                for head, reduce in (("best", np.max), ("mean", np.mean)):
                    name = f"val/cls_iou{kind}/{rule}/{head}/layer{layer + 1:02d}"
                    rows[name] = reduce(np.array(values)[:, layer], axis=-1)
        for end in [name.split("/", 2)[2] for name in rows if f"iou/{rule}" in name]:
            for kind, control in (("gain", "random"), ("own_minus_other", "other")):
                difference = rows[f"val/cls_iou/{end}"] - rows[f"val/cls_iou_{control}/{end}"]
                rows[f"val/cls_iou_{kind}/{end}"] = difference
    for layer in range(LAYERS):
        name = f"layer{layer + 1:02d}"
        w, tokens = trained["query"][:images, layer], trained["tokens"][:images, layer]
        rows[f"val/coding_rate/{name}"] = np.array([coding_rate(x) for x in w])
        rows[f"val/sparsity/{name}"] = (tokens == 0).mean((1, 2))
    box = np.zeros((SIDE, SIDE), bool)
    box[SIDE // 4 : 3 * SIDE // 4, SIDE // 4 : 3 * SIDE // 4] = True
    rows["val/cls_iou_all_ones"] = rows["val/object_fraction"] = masks.mean((1, 2))
    rows["val/cls_iou_centre_box"] = np.array([iou(box, mask) for mask in masks])
    for name, values in rows.items():
        metrics[name] = values.mean()
        metrics[f"{name}/low"], metrics[f"{name}/high"] = interval(values)
    return metrics


# -- the evaluation -------------------------------------------------------------------------------


def setting(batch_size=4, capture_images=100, seed=1, **periods):
    c = config.default()
    c.model = config.model("crate-testing")
    c.data.image_size = SIDE
    c.evaluation.batch_size, c.evaluation.capture_images = batch_size, capture_images
    c.evaluation.keep = KEEP
    definition, _ = base.split(network(1))
    data = inputs.Data(c, SOURCE, SOURCE)
    mesh = sharding.make_mesh()
    return evaluation.Setting(c, definition, data, mesh, lambda: base.split(network(2))[1])


def evaluate(of, params, **periods):
    """The metrics of a run's evaluation, by name."""
    periods = periods or {"validation": 1, "emergence": 1}
    plan = config.Durations(9, 0, 1, periods, 1, 1)
    evals = evaluators.make(of, plan)
    return evals.run(evals.due(3), params)


@pytest.fixture(scope="module")
def params():
    return base.split(network(1))[1]


@pytest.mark.parametrize(
    ("batch_size", "capture_images"),
    [(1, 100), (4, 100), (5, 6), (11, 100), (16, 3)],
    ids=["one by one", "ragged end", "part captured", "one batch", "padded batch"],
)
def test_every_metric_is_what_numpy_says(captured, params, batch_size, capture_images):
    got = evaluate(setting(batch_size, capture_images), params)
    want = expected(captured, capture_images)
    # The other measures and the fixed head: tests/segmentation/test_emergence.py.
    assert {name: got[name] for name in want} == pytest.approx(want, rel=2e-5, abs=1e-6)
    assert all(
        "cls_auroc" in name or "cls_ap" in name or "cls_pointing" in name or "/fixed/" in name
        for name in got.keys() - want.keys()
    )


def test_the_measures_are_not_trivial(captured):
    """A test that compares zeros would pass whatever the code does."""
    values = expected(captured, 100)
    assert 0 < values["val/sparsity/layer02"] < 1
    assert 0.05 < values["val/cls_iou/mass/best/layer01"] < 0.9
    for kind in ("gain", "own_minus_other"):
        stem = f"val/cls_iou_{kind}/"
        differences = [values[name] for name in values if name.startswith(stem)]
        assert np.abs(differences).max() > 1e-3


# -- the evaluators that are off by default -------------------------------------------------------


@pytest.mark.slow
def test_probes_are_those_of_frozen_features(params):
    got = evaluate(setting(batch_size=5), params, knn=1, probe=3)
    x = np.asarray(networks.run(network(1), SOURCE.images)[1]["features"])
    y = SOURCE.labels
    predicted, strength = probing.linear_probe(x, y, x)
    assert got == {
        "val/knn_top1": np.mean(probing.nearest_neighbours(x, y, x) == y),
        "val/linear_top1": np.mean(predicted == y),
        "val/linear_l2": strength,
    }


def test_maskcut_is_scored_against_the_masks(params, captured):
    got = evaluate(setting(capture_images=6), params, maskcut=1)
    truth, found = [], []
    for image in range(6):
        features = captured[0]["query"][image, -1, 1:].reshape(16, -1).astype(np.float32)
        cut = maskcut.maskcut(features, (4, 4)).masks.reshape(-1, 4, 4)
        found += coco.results(image, cut.repeat(PATCH, 1).repeat(PATCH, 2))
        truth += coco.results(image, SOURCE.masks[image : image + 1])
    images = [{"id": image, "height": SIDE, "width": SIDE} for image in range(6)]
    want = average_precision.coco_ap(coco.dataset(images, truth), found)
    assert got == {f"val/maskcut/layer02/tau0.15/{name}": value for name, value in want.items()}
    assert len(found) > 6


def test_maskcut_needs_masks(monkeypatch):
    monkeypatch.setattr(Source, "has_masks", False)
    with pytest.raises(ValueError, match=r"evals.maskcut: expected held-out images with masks"):
        evaluate(setting(), None, maskcut=1)


@pytest.mark.parametrize("name", ["validation", "emergence", "knn", "probe", "maskcut"])
def test_what_is_not_finite_is_an_error_and_no_score(params, name):
    broken = jax.tree.map(lambda leaf: leaf * np.float32("nan"), params)
    with pytest.raises(FloatingPointError, match="check the weights"):
        evaluate(setting(), broken, **{name: 1})


# -- when they run --------------------------------------------------------------------------------


def test_each_is_due_by_its_own_period_and_all_at_the_end():
    periods = {"validation": 2, "emergence": 3, "knn": 0}
    evals = evaluation.Evaluation(dict.fromkeys(periods), periods, total=7)
    due = [evals.due(step) for step in range(8)]
    assert due == [
        *([], [], ["validation"], ["emergence"], ["validation"], []),
        *(["validation", "emergence"], ["validation", "emergence", "knn"]),
    ]


def test_stopped_evaluators_yield_nothing(params):
    evals = evaluators.make(
        setting(batch_size=4),
        config.Durations(9, 0, 1, dict.fromkeys(("validation", "maskcut"), 1), 1, 1),
    )
    asked = []

    def stop():
        asked.append(True)
        return len(asked) > 4  # three batches of validation, one of maskcut

    with pytest.raises(evaluation.Interrupted):
        evals.run(["validation", "maskcut"], params, stop)
    assert len(asked) == 5
