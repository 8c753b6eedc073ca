import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import config
from crate_jax.models import base, variants
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


def shapes(name):
    return base.split(variants.abstract(variants.config(name)))[1]


ATTENTION = {"attention.subspace.kernel", "attention.output.kernel"}
MATRICES = {
    "crate-testing": ATTENTION | {"operator.dictionary"},
    "crate-alpha-testing": ATTENTION | {"operator.dictionary", "operator.output_dictionary"},
    "crate-mae-testing": ATTENTION | {"operator.dictionary", "operator.kernel"},
    "vit-testing": {
        "attention.qkv.kernel",
        "attention.output.kernel",
        "operator.expand.kernel",
        "operator.contract.kernel",
    },
}


@pytest.mark.parametrize("name", [name for name in variants.VARIANTS if "testing" in name])
def test_muon_takes_the_matrices_of_the_layers_and_nothing_else(name):
    taken = set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(shapes(name))[0]:
        keys = [getattr(entry, "key", None) for entry in path]
        if optim.is_matrix(path, leaf):
            assert keys[0] in ("layers", "decoder")
            taken.add(".".join(keys[2:]))
        else:
            # what is left inside layers are norms, biases and scales
            assert keys[0] not in ("layers", "decoder") or leaf.ndim == 1
    if name in MATRICES:
        assert taken == MATRICES[name]
    assert taken


def muon_and_adamw(**values):
    """Updates of one step by Muon, and by AdamW, from the same random gradients."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes("crate-alpha-testing")
    )
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    found = []
    for name in ("muon", "adamw"):
        optimizer = optim.optimizer(settings(name=name, **values), lambda _: 0.1)
        updates = optimizer.update(grads, optimizer.init(params), params)[0]
        found.append(jax.tree_util.tree_flatten_with_path(updates)[0])
    return [
        (path, np.asarray(muon), np.asarray(adamw), param)
        for (path, muon), (_, adamw), param in zip(*found, jax.tree.leaves(params), strict=True)
    ]


def test_muon_moves_matrices_by_orthogonal_ones_and_the_rest_as_adamw():
    rate = {"learning_rate": 0.1, "muon_learning_rate": 0.3, "weight_decay": 0.0}
    for path, muon, adamw, _ in muon_and_adamw(**rate):
        if not optim.is_matrix(path, muon):
            np.testing.assert_array_equal(muon, adamw)
            continue
        singular = np.linalg.svd(muon, compute_uv=False) / 0.3
        # D of alpha is 24 x 96: its step grows by the root of outputs / inputs, that of the output
        # dictionary, which is applied as its transpose, does not.
        scale = 2.0 if path[-1].key == "dictionary" else 1.0
        # Five Newton-Schulz steps bring them near 1, but the smallest of a square matrix.
        assert 0.6 * scale < np.quantile(singular, 0.1) <= singular.max() < 1.3 * scale


@pytest.mark.parametrize("decay_mask", ["all", "kernel"])
def test_decay_of_muon_follows_its_own_rate(decay_mask):
    rates = {"learning_rate": 0.1, "muon_learning_rate": 0.3, "decay_mask": decay_mask}
    decayed = muon_and_adamw(weight_decay=0.5, **rates)
    plain = muon_and_adamw(weight_decay=0.0, **rates)
    for (path, got, _, param), (_, without, _, _) in zip(decayed, plain, strict=True):
        rate = 0.3 if optim.is_matrix(path, param) else 0.1
        reached = decay_mask == "all" or path[-1].key == "kernel"
        np.testing.assert_allclose(got - without, -rate * 0.5 * param * reached, atol=1e-6)


def test_muon_follows_the_schedule():
    c = settings(name="muon", learning_rate=0.1, muon_learning_rate=0.4, weight_decay=0.0)
    rate = optim.schedule(c, warmup=0, total=2)
    optimizer = optim.optimizer(c, rate)
    params = {"layers": [{"kernel": jnp.eye(8)}]}
    state, norms = optimizer.init(params), []
    for _ in range(3):
        moved, state = optimizer.update(params, state, params)
        norms.append(float(jnp.linalg.norm(moved["layers"][0]["kernel"])))
    np.testing.assert_allclose(np.divide(norms, norms[0]), [1.0, 0.5, 0.0], atol=1e-4)


def test_muon_needs_a_schedule_to_follow():
    with pytest.raises(ValueError, match=r"learning_rate: expected above 0 with muon.*got 0"):
        optim.optimizer(settings(name="muon", learning_rate=0.0), lambda _: 0.1)
