"""A masked autoencoder learns from scenes without labels, and its report shows what it makes."""

import numpy as np
import pytest

from crate_jax.config import default, model
from crate_jax.models import base, variants
from crate_jax.training import autoencoding, loop
from tests.end_to_end import runs


def config(steps):
    c = default()
    c.steps = steps
    c.batch_size = 16
    c.model = model("crate-mae-testing", depth=1, decoder_depth=1)
    c.data.scenes.val_length = 24
    c.evaluation.batch_size = 16
    c.evaluation.report_images = 2
    c.log_every, c.evaluate_every, c.checkpoint_every = "10 steps", "10 steps", "10 steps"
    c.optimizer.learning_rate = 3e-3
    c.tensorboard = False
    return c


@pytest.mark.slow
def test_trains_evaluates_and_reports(tmp_path):
    c = config(60)
    assert loop.train(c, tmp_path) == 0
    lines = runs.metrics(tmp_path)
    assert all("train/top1" not in line and "val/top1" not in line for line in lines)
    held_out = [line["val/loss"] for line in lines if "val/loss" in line]
    assert held_out[-1] < 0.9 * held_out[0]
    assert {"val/sparsity/layer01", "val/cls_iou/mass/best/layer01"} <= set(lines[-1])
    page = (tmp_path / "report" / "index.html").read_text()
    assert "trained without labels" in page
    assert page.count("data:image/") > 6


def test_pictures_keep_what_was_seen_and_loss_is_that_of_the_model():
    network = variants.build(variants.config("crate-mae-testing", depth=1, decoder_depth=1))
    definition, params = base.split(network)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    indices = np.array([4, 7, 9])
    seen, completed = autoencoding.pictures(definition, params, images, indices)
    hidden = (seen == 128).all(axis=-1)
    share = hidden.reshape(3, 4, 8, 4, 8).mean(axis=(2, 4))
    assert ((share > 0.9).sum(axis=(1, 2)) == 12).all()  # 75 % of 16 patches
    assert np.abs(completed.astype(int) - images)[~hidden].max() <= 1
    assert np.abs(completed.astype(int) - images)[hidden].mean() > 10
    pred, out, patches = autoencoding.reconstruct(network, network.preprocess(images), indices)
    losses = autoencoding.loss(network, network.preprocess(images), indices)
    np.testing.assert_allclose(np.mean(losses), out["loss"], rtol=1e-5)
    # The mask belongs to the image, not to its place in the batch.
    again = autoencoding.loss(network, network.preprocess(images[2:]), indices[2:])
    np.testing.assert_allclose(again[0], losses[2], rtol=1e-5)
    assert pred.shape == patches.shape
