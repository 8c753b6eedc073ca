"""The training step against plain gradients, and what a batch that is not finite leaves behind."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crate_jax import config
from crate_jax.models import base, variants
from crate_jax.training.step import (
    flops_per_image,
    initial,
    make_step,
    objective,
    read_sums,
    reset_sums,
)
from tests.networks import draw


@pytest.fixture(scope="module")
def setting():
    c = config.default()
    c.label_smoothing = 0.1
    c.model = config.model("crate-testing")
    model = draw(variants.VARIANTS["crate-testing"])
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.array(rng.integers(0, 256, (8, 32, 32, 3)), jnp.uint8),
        "label": jnp.arange(8) % 10,
    }
    return c, *base.split(model), batch


def run(setting, accumulate=1, batch=None):
    c, definition, params, own = setting
    optimizer = optax.sgd(0.5)
    step = make_step(definition, objective(c), optimizer, seed=0, accumulate=accumulate)
    return jax.jit(lambda params, batch: step(params, initial(optimizer, params), batch))(
        params, batch or own
    )


def test_step_descends_the_gradient_of_the_mean_loss(setting):
    _, definition, params, batch = setting

    def loss(params):
        model = base.merge(definition, params)
        logits, _ = model(model.preprocess(batch["image"]))
        log_p = jax.nn.log_softmax(logits)
        own = jnp.take_along_axis(log_p, batch["label"][:, None], 1)[:, 0]
        return -jnp.mean(0.9 * own + 0.1 * log_p.mean(1))

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    updated, training = run(setting)
    expected = jax.tree.map(lambda p, g: np.asarray(p) - 0.5 * np.asarray(g), params, grads)
    for got, want in zip(jax.tree.leaves(updated), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert read_sums(training)["train/loss"] == pytest.approx(float(value), rel=1e-5)
    assert int(training["step"]) == 1
    assert int(training["bad_step"]) == -1
    assert float(reset_sums(training)["sums"]["loss"]) == 0


def test_accumulation_is_the_same_update(setting):
    whole, _ = run(setting)
    parts, training = run(setting, accumulate=4)
    for got, want in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert float(training["sums"]["steps"]) == 1


def test_first_step_that_is_not_finite_is_remembered(setting):
    c, definition, params, batch = setting
    broken = params | {"positions": params["positions"].at[0, 0, 0].set(jnp.nan)}
    _, training = run((c, definition, broken, batch))
    assert int(training["bad_step"]) == 1


def test_flops_count_twice_the_products(setting):
    """4 d^2 multiplications a token and layer forward (MSSA 2, ISTA 2); backward doubles them."""
    c, *_ = setting
    config = variants.VARIANTS["crate-testing"]
    tokens, d, depth = 1 + config.patches, config.dim, config.depth
    products = tokens * depth * (4 * d * d + 2 * tokens * d) + config.patches * 192 * d
    counted = flops_per_image(c, config)
    assert 1.0 < counted / (6 * products) < 1.25


def test_cross_entropy_objective_reports_training_accuracy(setting):
    c, definition, params, batch = setting

    @jax.jit
    def both(params):
        model = base.merge(definition, params)
        metrics = objective(c)(model, batch, jax.random.key(0))[1]
        return metrics, model(model.preprocess(batch["image"]))[0]

    metrics, logits = both(params)
    assert float(metrics["top1"]) == np.mean(np.argmax(logits, -1) == batch["label"])
