"""The assembly of an evaluation against NumPy in float64, image by image.

From the network only its captured arrays are taken (tests/models compares those with the authors'
code). Maps, rules, IoU, heads, controls, means and intervals are computed here once more, in the
plainest way: at full resolution, an image at a time, without a batch.
"""

import numpy as np
import pytest

from crate_jax.data import loader
from crate_jax.models import base, variants
from crate_jax.training import evaluation, sharding

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
    return variants.build(CONFIG, seed)


@pytest.fixture(scope="module")
def captured():
    """Of the trained and of the random network: logits, query, key and tokens of every image."""

    def run(seed):
        model = network(seed)
        logits, out = model(model.preprocess(SOURCE.images), capture=True)
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


def others(images, batch_size):
    """{image: the image against whose object its maps are held}, among the first `images`."""
    pairs = {}
    for image in range(images):
        start = image // batch_size * batch_size
        partner = start + (image - start - batch_size // 2) % batch_size
        if batch_size > 1 and partner < IMAGES:
            pairs[image] = partner
    return pairs


def expected(captured, batch_size, capture_images):
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
    # Whole batches are captured, until there are as many images as asked for.
    images = min(IMAGES, -(-capture_images // batch_size) * batch_size)
    masks = SOURCE.masks[:images]
    pairs = others(images, batch_size)
    rows, means = {}, {}
    for rule in ("mass", "area"):
        own = np.array([head_ious(trained, i, SOURCE.masks[i], rule) for i in range(images)])
        untrained = np.array([head_ious(random, i, SOURCE.masks[i], rule) for i in range(images)])
        other = [head_ious(trained, i, SOURCE.masks[j], rule) for i, j in pairs.items()]
        for layer in range(LAYERS):
            name = f"layer{layer + 1:02d}"
            for head, reduce in (("best", np.max), ("mean", np.mean)):
                end = f"{rule}/{head}/{name}"
                rows[f"val/cls_iou/{end}"] = reduce(own[:, layer], axis=-1)
                means[f"val/cls_iou_random/{end}"] = reduce(untrained[:, layer], axis=-1)
                if other:
                    means[f"val/cls_iou_other/{end}"] = reduce(np.array(other)[:, layer], axis=-1)
            gain = own[:, layer].max(-1) - untrained[:, layer].max(-1)
            rows[f"val/cls_iou_gain/{rule}/best/{name}"] = gain
    for layer in range(LAYERS):
        name = f"layer{layer + 1:02d}"
        w, tokens = trained["query"][:images, layer], trained["tokens"][:images, layer]
        means[f"val/coding_rate/{name}"] = np.array([coding_rate(x) for x in w])
        means[f"val/sparsity/{name}"] = (tokens == 0).mean((1, 2))
    box = np.zeros((SIDE, SIDE), bool)
    box[SIDE // 4 : 3 * SIDE // 4, SIDE // 4 : 3 * SIDE // 4] = True
    means["val/cls_iou_all_ones"] = means["val/object_fraction"] = masks.mean((1, 2))
    means["val/cls_iou_centre_box"] = np.array([iou(box, mask) for mask in masks])
    for name, values in (rows | means).items():
        metrics[name] = values.mean()
    for name, values in rows.items():
        metrics[f"{name}/low"], metrics[f"{name}/high"] = interval(values)
    return metrics


# -- the evaluation -------------------------------------------------------------------------------


def evaluate(batch_size, capture_images):
    """The metrics of a run's evaluation, by name."""
    evaluator = evaluation.Evaluator(
        base.split(network(1))[0],
        lambda: loader.eval_batches(SOURCE, batch_size=batch_size),
        sharding.make_mesh(),
        masks=True,
        capture_images=capture_images,
        keep=KEEP,
    )
    return evaluator(base.split(network(1))[1], lambda: base.split(network(2))[1])


@pytest.mark.parametrize(
    ("batch_size", "capture_images"),
    [(1, 100), (4, 100), (5, 6), (11, 100), (16, 3)],
    ids=["one by one", "ragged end", "part captured", "one batch", "padded batch"],
)
def test_every_metric_is_what_numpy_says(captured, batch_size, capture_images):
    got = evaluate(batch_size, capture_images)
    want = expected(captured, batch_size, capture_images)
    assert got.keys() == want.keys()
    assert got == pytest.approx(want, rel=2e-5, abs=1e-6)


def test_the_measures_are_not_trivial(captured):
    """A test that compares zeros would pass whatever the code does."""
    values = expected(captured, 4, 100)
    assert 0 < values["val/sparsity/layer02"] < 1
    assert 0.05 < values["val/cls_iou/mass/best/layer01"] < 0.9
    for kind in ("random", "other"):
        difference = values["val/cls_iou/mass/best/layer02"]
        difference -= values[f"val/cls_iou_{kind}/mass/best/layer02"]
        assert abs(difference) > 1e-3
