"""Mixup and cutmix on batches, on the device.

Pure JAX functions for the training step. The input workers must not import this module: it is the
only one of the room that uses JAX.
"""

import jax
import jax.numpy as jnp


def mixup(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixup (Zhang et al., arXiv 1710.09412): x = lam x_i + (1 - lam) x_j, labels alike.

    lam ~ Beta(alpha, alpha), one for the batch; j = i - 1 cyclically. The batch is shuffled
    already, and a shift moves less between devices than a permutation.

    Args:
        key: JAX random key.
        images: f[b, h, w, c], normalised or not.
        labels: f[b, classes], one-hot or smoothed.
        alpha: above 0.

    Returns:
        images and labels of the same shapes and types.
    """
    return _mixup(jax.random.beta(key, alpha, alpha), images, labels)


def cutmix(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Cutmix (Yun et al., arXiv 1905.04899): a box of image j replaces that of image i.

    lam ~ Beta(alpha, alpha); the box has sides sqrt(1 - lam) of the image's, its centre is uniform,
    what sticks out is cut off, and the labels are mixed by the area that remains. One box for the
    batch; j = i - 1 cyclically.

    Args:
        key: JAX random key.
        images: f[b, h, w, c].
        labels: f[b, classes], one-hot or smoothed.
        alpha: above 0.

    Returns:
        images and labels of the same shapes and types.
    """
    key_lam, key_box = jax.random.split(key)
    return _cutmix(jax.random.beta(key_lam, alpha, alpha), key_box, images, labels)


def mixup_or_cutmix(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    switch: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
    """Cutmix with probability `switch`, else mixup; one choice for the batch.

    An alpha of 0 turns that kind off; with both 0 the batch is returned as it is.

    Args:
        key: JAX random key.
        images: f[b, h, w, c].
        labels: f[b, classes], one-hot or smoothed.
        mixup_alpha: of mixup's Beta distribution, 0 or above.
        cutmix_alpha: of cutmix's, 0 or above.
        switch: probability of cutmix where both are on.

    Returns:
        images and labels of the same shapes and types.
    """
    if not mixup_alpha and not cutmix_alpha:
        return images, labels
    if not cutmix_alpha:
        return mixup(key, images, labels, mixup_alpha)
    if not mixup_alpha:
        return cutmix(key, images, labels, cutmix_alpha)
    key_switch, key_lam, key_box = jax.random.split(key, 3)
    is_cutmix = jax.random.bernoulli(key_switch, switch)
    # one Beta sampler for both kinds: compiling it takes seconds
    alpha = jnp.where(is_cutmix, cutmix_alpha, mixup_alpha)
    lam = jax.random.beta(key_lam, alpha, alpha)
    return jax.lax.cond(
        is_cutmix,
        lambda: _cutmix(lam, key_box, images, labels),
        lambda: _mixup(lam, images, labels),
    )


def _mixup(lam: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _blend(lam, images), _blend(lam, labels)


def _cutmix(
    lam: jax.Array, key: jax.Array, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    key_row, key_column = jax.random.split(key)
    side = jnp.sqrt(1 - lam)
    height, width = images.shape[1:3]
    rows = _interval(key_row, side, height)
    columns = _interval(key_column, side, width)
    box = rows[:, None] & columns[None, :]
    images = jnp.where(box[None, :, :, None], jnp.roll(images, 1, axis=0), images)
    return images, _blend(1 - box.mean(), labels)


def _blend(lam: jax.Array, values: jax.Array) -> jax.Array:
    mixed = lam * values + (1 - lam) * jnp.roll(values, 1, axis=0)
    return mixed.astype(values.dtype)


def _interval(key: jax.Array, side: jax.Array, size: int) -> jax.Array:
    """bool[size]: pixels within a run of length `side` x size about a uniform centre."""
    length = jnp.floor(side * size).astype(jnp.int32)
    centre = jax.random.randint(key, (), 0, size)
    pixels = jnp.arange(size)
    start = centre - length // 2
    return (pixels >= start) & (pixels < start + length)
