import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import config
from crate_jax.training import optim


def settings(**values):
    c = config.default().optimizer
    c.update(values)
    return c


def test_warm_up_then_cosine():
    c = settings(learning_rate=2.0, end_factor=0.1)
    rate = optim.schedule(c, warmup=4, total=12)
    np.testing.assert_allclose([rate(t) for t in range(5)], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-6)
    halfway = 0.2 + (2.0 - 0.2) * 0.5 * (1 + np.cos(np.pi * 4 / 8))
    np.testing.assert_allclose(rate(8), halfway, rtol=1e-6)
    np.testing.assert_allclose(rate(12), 0.2, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 1])
def test_first_step_trains_at_the_peak_without_warm_up(warmup):
    rate = optim.schedule(settings(learning_rate=3.0), warmup=warmup, total=10)
    np.testing.assert_allclose(rate(0), 3.0, rtol=1e-6)


def test_warm_up_may_not_exceed_the_run():
    with pytest.raises(ValueError, match="expected 0 to 5"):
        optim.schedule(settings(), warmup=6, total=5)


PARAMS = {
    "head": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full((2,), 3.0)},
    "positions": jnp.full((2,), 3.0),
}


def updates(c, params=PARAMS, fixed=(), gradient=0.0):
    optimizer = optim.optimizer(c, lambda _: 0.1, fixed)
    grads = jax.tree.map(lambda p: jnp.full_like(p, gradient), params)
    return optimizer.update(grads, optimizer.init(params), params)[0]


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_decay_reaches_all_parameters_or_only_kernels(name):
    decayed = updates(settings(name=name, weight_decay=0.5, decay_mask="all"))
    assert all(np.allclose(leaf, -0.1 * 0.5 * 3.0) for leaf in jax.tree.leaves(decayed))
    masked = updates(settings(name=name, weight_decay=0.5, decay_mask="kernel"))
    np.testing.assert_allclose(masked["head"]["kernel"], -0.15, rtol=1e-6)
    assert np.all(masked["head"]["bias"] == 0)
    assert np.all(masked["positions"] == 0)


def test_lion_moves_by_the_sign():
    moved = updates(settings(name="lion", weight_decay=0.0), gradient=-7.0)
    assert all(np.allclose(leaf, 0.1) for leaf in jax.tree.leaves(moved))


def test_fixed_parameters_do_not_move():
    moved = updates(settings(weight_decay=0.5), fixed=("positions",), gradient=1.0)
    assert np.all(moved["positions"] == 0)
    assert np.all(moved["head"]["kernel"] < 0)


def test_clipping_bounds_the_global_norm():
    c = settings(name="adamw", weight_decay=0.0, clip_norm=1.0, b1=0.0, b2=0.0)
    optimizer = optim.optimizer(c, lambda _: 0.1)
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    state = optimizer.update(grads, optimizer.init(grads), grads)[1]
    second_moment = jax.tree.leaves(optax_nu(state))
    np.testing.assert_allclose(sorted(float(v[0]) for v in second_moment), [0.36, 0.64], rtol=1e-5)


def optax_nu(state):
    return next(
        s.nu for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "nu")) if hasattr(s, "nu")
    )


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("name", "lionn", "lion"),
        ("decay_mask", "kernels", "kernel"),
        ("schedule", "cosin", "cosine"),
    ],
)
def test_unknown_choices_name_the_nearest(key, value, near):
    c = settings(**{key: value})
    with pytest.raises(ValueError, match=f"did you mean {near}"):
        optim.optimizer(c, optim.schedule(c, 0, 10))
