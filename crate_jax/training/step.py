"""One training step: a pure function of (parameters, training state, batch)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx

from crate_jax.data import mixing
from crate_jax.models import base, variants
from crate_jax.training import losses, throughput

Batch = dict[str, jax.Array]
Objective = Callable[[nnx.Module, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def classification(config: ml_collections.ConfigDict) -> Objective:
    """Mean cross-entropy of a batch with `image` uint8[b, h, w, 3] and `label` int[b].

    With `config.mixup` or `config.cutmix` the normalised images and their one-hot labels are mixed
    first; the training accuracy then counts hits of each image's own label, the unmixed one.
    """

    def objective(model, batch, key):
        images, targets = model.preprocess(batch["image"]), batch["label"]
        if config.mixup or config.cutmix:
            targets = jax.nn.one_hot(targets, model.config.classes)
            images, targets = mixing.mixup_or_cutmix(
                key, images, targets, config.mixup, config.cutmix, config.mixup_switch
            )
        logits, _ = model(images)
        loss = jnp.mean(losses.cross_entropy(logits, targets, config.label_smoothing))
        correct = losses.top_k_correct(logits, batch["label"], 1)
        return loss, {"top1": jnp.mean(correct, dtype=jnp.float32)}

    return objective


def masked_autoencoding(config: ml_collections.ConfigDict) -> Objective:
    """Mean squared error on the hidden patches of CRATE-MAE (2404.02446), hidden anew each step."""
    del config

    def objective(model, batch, key):
        images = model.preprocess(batch["image"])
        patches = math.prod(side // model.config.patch_size for side in images.shape[1:3])
        noise = jax.random.uniform(key, (images.shape[0], patches))
        _, out = model(images, mask_noise=noise)
        return out["loss"], {}

    return objective


# By model family; the others are trained as classifiers.
OBJECTIVES: dict[str, Callable[[ml_collections.ConfigDict], Objective]] = {
    "crate_mae": masked_autoencoding
}


# Global norms that every step sums beside the loss: of the gradient before clipping, of the
# parameters before the update, and of the update.
NORMS = ("gradient_norm", "parameter_norm", "update_norm")


def objective(config: ml_collections.ConfigDict) -> Objective:
    """The objective that a config's model family is trained with."""
    return OBJECTIVES.get(config.model.family, classification)(config)


def metric_names(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """What `objective(config)` returns beside the loss."""
    return () if config.model.family in OBJECTIVES else ("top1",)


def flops_per_image(
    config: ml_collections.ConfigDict, model_config: base.ImageModelConfig
) -> float:
    """Operations of a training step an image: forward and backward, without rematerialisation."""
    batch = 2
    image = jax.ShapeDtypeStruct((batch, *model_config.image_size, 3), jnp.uint8)
    label = jax.ShapeDtypeStruct((batch,), jnp.int32)
    loss = objective(config)

    def count(network):
        definition, params = base.split(variants.abstract(network))

        def value(params, image, label):
            model = base.merge(definition, params)
            return loss(model, {"image": image, "label": label}, jax.random.key(0))[0]

        return throughput.count_flops(jax.grad(value), params, image, label) / batch

    return variants.over_layers(model_config, count)


def initial(
    optimizer: optax.GradientTransformation, params: Any, metrics: tuple[str, ...] = ("top1",)
) -> dict[str, Any]:
    """The training state before step 0, apart from the parameters.

    `metrics` are the names that the objective returns beside the loss. `sums` holds running sums of
    these and of `NORMS` since the last logged line (in the state, so that a run resumed between two
    lines logs the same line); `bad_step` the first step, counted from 1, whose loss or gradient was
    not finite, or -1: it costs no synchronisation and is read when a line is logged.
    """
    return {
        "optimizer": optimizer.init(params),
        "step": jnp.zeros((), jnp.int32),
        "bad_step": jnp.full((), -1, jnp.int32),
        "sums": {name: jnp.zeros(()) for name in ("loss", *metrics, *NORMS, "steps")},
    }


def make_step(
    definition: nnx.GraphDef,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
) -> Callable[[Any, dict, Batch], tuple[Any, dict]]:
    """(parameters, training state, batch) -> the same after one update.

    Args:
        definition: the static half of `base.split`.
        objective: (model, batch, key) -> (loss, metrics to average).
        optimizer: from `optim.optimizer`.
        seed: randomness of step t comes from fold_in(key(seed), t): a resumed run is the same run.
        accumulate: parts that the batch is computed in, one after the other, with the mean of
            their gradients applied once: the same update in less memory. Part k takes examples
            k, k + accumulate, ..., so that every part is spread over all devices. What an
            objective draws (masks, mixing) each part draws for itself.
    """

    def loss_and_grad(params, batch, key):
        def loss(params):
            return objective(base.merge(definition, params), batch, key)

        return jax.value_and_grad(loss, has_aux=True)(params)

    def step(params, training, batch):
        key = jax.random.fold_in(jax.random.key(seed), training["step"])
        if accumulate == 1:
            (loss, metrics), grads = loss_and_grad(params, batch, key)
        else:
            parts = jax.tree.map(
                lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
            )

            def add(total, part):
                index, batch = part
                out = loss_and_grad(params, batch, jax.random.fold_in(key, index))
                return jax.tree.map(lambda t, o: t + o / accumulate, total, out), None

            first = jax.tree.map(lambda x: x[0], parts)
            shapes = jax.eval_shape(loss_and_grad, params, first, key)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            total, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), parts))
            (loss, metrics), grads = total
        updates, optimizer_state = optimizer.update(grads, training["optimizer"], params)
        norms = map(optax.tree.norm, (grads, params, updates))
        metrics = metrics | {"loss": loss} | dict(zip(NORMS, norms, strict=True))
        good = jnp.isfinite(loss) & jnp.isfinite(metrics["gradient_norm"])
        sums = training["sums"]
        training = {
            "optimizer": optimizer_state,
            "step": training["step"] + 1,
            "bad_step": jnp.where(
                (training["bad_step"] < 0) & ~good, training["step"] + 1, training["bad_step"]
            ),
            "sums": jax.tree.map(jnp.add, sums, {"steps": 1.0} | metrics),
        }
        return optax.apply_updates(params, updates), training

    return step


def read_sums(training: dict[str, Any]) -> dict[str, float]:
    """Means since the sums were last reset, by metric name; waits for the device."""
    sums = jax.device_get(training["sums"])
    return {f"train/{k}": float(v / sums["steps"]) for k, v in sums.items() if k != "steps"}


def reset_sums(training: dict[str, Any]) -> dict[str, Any]:
    """The training state with its running sums at zero, placed as they were."""
    return training | {"sums": jax.tree.map(jnp.zeros_like, training["sums"])}
