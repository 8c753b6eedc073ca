"""Objectives."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy per example, with label smoothing.

    Targets are (1 - a) onehot + a / classes, as torch.nn.CrossEntropyLoss(label_smoothing=a).

    Args:
        logits: f32[b, classes].
        labels: int[b], or f32[b, classes] that sum to one (mixup and cutmix).
        smoothing: a in [0, 1).

    Returns:
        f32[b], nats.
    """
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return optax.losses.softmax_cross_entropy(logits, optax.smooth_labels(labels, smoothing))


def top_k_correct(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether the label is among the k largest logits, bool[b]; ties rank after the label.

    With k >= classes everything is correct. A logit row that is not finite counts as wrong.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    return (jnp.sum(logits > own, axis=-1) < k) & finite
