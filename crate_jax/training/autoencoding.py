"""What is measured and shown of a masked autoencoder on held-out images.

Which patches are hidden depends on an image's place in the set alone: the same at every evaluation,
on any number of devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crate_jax.models import base
from crate_jax.models.patches import patchify, unpatchify

_MASK_SEED = 0


def loss(model: nnx.Module, images: jax.Array, indices: jax.Array) -> jax.Array:
    """f32[b], the mean squared error over the hidden patches of each image."""
    pred, out, patches = reconstruct(model, images, indices)
    error = jnp.mean((pred - patches) ** 2, axis=-1)
    return jnp.sum(error * out["mask"], axis=1) / jnp.sum(out["mask"], axis=1)


def reconstruct(
    model: nnx.Module, images: jax.Array, indices: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """(pred f32[b, n, 3 p^2], out, the patches f32[b, n, 3 p^2]), by noise of (index) alone."""
    patches = patchify(images, model.config.patch_size)
    key = jax.random.key(_MASK_SEED)
    noise = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), patches.shape[1:2]))
    pred, out = model(images, mask_noise=noise(indices))
    return pred, out, patches


def pictures(
    definition: nnx.GraphDef, params: Any, images: np.ndarray, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What a masked autoencoder sees, and the image as it completes it, uint8[b, h, w, 3] each.

    Hidden patches are grey in the first; in the second they are the network's, the others as seen.

    Args:
        definition: the static half of `base.split`.
        params: the parameters.
        images: uint8[b, h, w, 3].
        indices: int[b], by which patches are hidden.
    """

    @jax.jit
    def look(params, images, indices):
        model = base.merge(definition, params)
        c = model.config
        pred, out, patches = reconstruct(model, model.preprocess(images), indices)
        hidden = out["mask"][..., None] > 0
        grid = images.shape[1] // c.patch_size, images.shape[2] // c.patch_size
        completed = unpatchify(jnp.where(hidden, pred, patches), grid, c.patch_size)
        completed = 255 * (completed * jnp.array(c.std) + jnp.array(c.mean))
        hidden = unpatchify(jnp.broadcast_to(hidden, patches.shape), grid, c.patch_size)
        seen = jnp.where(hidden, 128, images)
        return tuple(jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8) for x in (seen, completed))

    return jax.device_get(look(params, images, indices.astype(np.int32)))
