"""A run's program: what is donated, what its numbers say, how it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crate_jax.config import default, model, resolve
from crate_jax.models import backends, variants
from crate_jax.training import program, sharding
from crate_jax.training.step import initial, make_step, objective, read_sums


@pytest.fixture(scope="module")
def setting():
    c = default()
    c.steps = 10
    c.model = model("crate-testing")
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
        "label": np.arange(8, dtype=np.int32),
    }
    return c, batch


def made(c, **changes):
    c = c.copy_and_resolve_references()
    c.update(changes)
    mesh = sharding.make_mesh()
    network = variants.from_dict(c.model.to_dict())
    return program.make(resolve(c), network, mesh, lambda _: 0.1), mesh


def test_state_is_donated_and_nothing_is_transferred_unasked(setting):
    c, batch = setting
    one, mesh = made(c)
    state = one.init(jax.random.key(0))
    shapes = sharding.batch_shapes(batch, sharding.batch_sharding(mesh))
    plan = one.step.lower(*one.shapes, shapes).compile().memory_analysis()
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one.shapes))
    assert plan.alias_size_in_bytes >= held
    with jax.transfer_guard("disallow"):
        after = one.step(*state, sharding.put_batch(batch, sharding.batch_sharding(mesh)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_norms_are_means_of_the_steps(setting):
    """With clipping and plain descent by hand: the gradient's norm is the one before clipping."""
    c, batch = setting
    one, _ = made(c)
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(0.5))
    step = make_step(one.definition, objective(c), optimizer, seed=0)
    params, _ = one.init(jax.random.key(0))
    state, lengths = initial(optimizer, params), []
    for _ in range(2):
        lengths.append(float(optax.tree.norm(params)))
        params, state = jax.jit(step)(params, state, jax.tree.map(jnp.asarray, batch))
    values = read_sums(state)
    assert values["train/update_norm"] == pytest.approx(0.5e-3, rel=1e-4)
    assert values["train/parameter_norm"] == pytest.approx(np.mean(lengths), rel=1e-5)
    assert values["train/gradient_norm"] > 1e-2


def test_how_a_network_is_computed(setting):
    c, _ = setting
    mesh = sharding.make_mesh()
    attention = program.choose_attention(c, variants.from_dict(c.model.to_dict()), mesh)
    assert attention.backend == "xla"
    for scan in (False, True):
        c.scan_layers = scan
        assert program.computation(c, attention, mesh)["scan"] is scan
    kernel = program.computation(c, backends.Choice("pallas", ""), mesh)
    assert kernel["mesh"] == mesh.abstract_mesh
