"""Tiny networks for tests: weights from NumPy, and calls as one program.

Drawing weights in JAX compiles a program for each shape, and an eager call one for each operation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.models import base, variants


def draw(config, seed=0, **computation):
    """A network with weights of which none is trivial."""
    definition, params = _drawn(config, seed, tuple(computation.items()))
    return base.merge(definition, params)


@functools.cache
def _drawn(config, seed, computation):
    definition, shapes = base.split(variants.abstract(config, **dict(computation)))
    generator = np.random.default_rng(seed)

    def one(path, leaf):
        x = generator.normal(0, 1 / np.sqrt(leaf.shape[0] if leaf.ndim == 2 else 10), leaf.shape)
        return jnp.asarray(x + ("scale" in str(path[-1])), jnp.float32)

    return definition, jax.tree_util.tree_map_with_path(one, shapes)


def run(model, images, capture=False, **kwargs):
    """`model(images, capture=capture, **kwargs)`; pixels uint8 are preprocessed."""
    return _run(*base.split(model), images, capture, kwargs)


def compute(function, model):
    """`function(model)` as one program."""
    definition, params = base.split(model)
    return jax.jit(lambda params: function(base.merge(definition, params)))(params)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run(definition, params, images, capture, kwargs):
    model = base.merge(definition, params)
    images = model.preprocess(images) if images.dtype == np.uint8 else images
    return model(images, capture=capture, **kwargs)
