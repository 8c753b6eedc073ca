"""How good frozen features are: a linear probe and k nearest neighbours."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from crate_jax.data import source
from crate_jax.models import base
from crate_jax.training import evaluation, inputs, sharding

L2 = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


class Features:
    """Frozen features and labels of both splits; those of the newest parameters are remembered."""

    def __init__(self, setting: evaluation.Setting):
        forward = base.forward(setting.definition)

        def function(params, batch):
            features = forward(params, batch["image"])[1]["features"]
            return {"features": features, "label": batch["label"]}

        self.passes = tuple(
            evaluation.Pass(setting, f"{split} set", function, ("image", "label"), split)
            for split in ("train", "val")
        )
        self._of: Any = None

    def __call__(
        self, params: Any, stop: evaluation.Stop = evaluation.never
    ) -> tuple[np.ndarray, ...]:
        """(f32[n, d], int[n]) of the training set, and the same of the held-out images.

        Corrupt images that the source skips are left out.

        Raises:
            evaluation.Interrupted: where `stop` said so.
            FloatingPointError: where a feature is not finite.
        """
        if self._of is not params:
            arrays = []
            for one in self.passes:
                found = one.gather(params, stop)
                finite = np.isfinite(found["features"]).all(axis=1)
                evaluation.check_finite(f"features, {one.name}", finite)
                arrays += [found["features"], found["label"]]
            self._of, self._arrays = params, tuple(arrays)
        return self._arrays


@dataclasses.dataclass
class Probe:
    """An evaluator of frozen features: `metrics` of (train, labels, queries, truth)."""

    features: Features
    metrics: Callable[..., dict[str, float]]

    @property
    def passes(self) -> tuple[evaluation.Pass, ...]:
        """See `evaluation.Evaluator`."""
        return self.features.passes

    def run(
        self, params: Any, stop: evaluation.Stop = evaluation.never
    ) -> Iterator[tuple[str, float]]:
        """See `evaluation.Evaluator.run`."""
        yield from self.metrics(*self.features(params, stop)).items()


def knn_metrics(train, labels, queries, truth) -> dict[str, float]:
    """val/knn_top1: `nearest_neighbours` on frozen features."""
    predicted = nearest_neighbours(train, labels, queries)
    return {"val/knn_top1": float(np.mean(predicted == truth))}


def linear_metrics(train, labels, queries, truth) -> dict[str, float]:
    """val/linear_top1, val/linear_l2: `linear_probe` on frozen features."""
    predicted, strength = linear_probe(train, labels, queries)
    return {"val/linear_top1": float(np.mean(predicted == truth)), "val/linear_l2": strength}


def nearest_neighbours(
    train: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 512,
) -> np.ndarray:
    """Weighted k-NN by cosine similarity (Wu et al., 1805.01978; DINO, 2104.14294).

    Each of the k most similar training features votes for its class with exp(cosine / temperature).

    Args:
        train: f32[n, d].
        labels: int[n].
        queries: f32[m, d].
        k: neighbours; at most n.
        temperature: DINO's 0.07.
        chunk: queries at a time.

    Returns:
        int[m], the predicted classes.
    """
    k, classes = min(k, len(train)), int(labels.max()) + 1

    def unit(x):
        return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    train, labels = unit(jnp.asarray(train)), jnp.asarray(labels)

    @jax.jit
    def predict(train, labels, queries):
        # TF32 would swap near neighbours.
        cosines = jnp.matmul(unit(queries), train.T, precision=jax.lax.Precision.HIGHEST)
        value, index = jax.lax.top_k(cosines, k)
        votes = jax.nn.one_hot(labels[index], classes) * jnp.exp(value / temperature)[..., None]
        return jnp.argmax(votes.sum(axis=1), axis=-1)

    parts = [queries[start : start + chunk] for start in range(0, len(queries), chunk)]
    return np.concatenate([np.asarray(predict(train, labels, part)) for part in parts])


def linear_probe(
    train: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    l2: tuple[float, ...] = L2,
    steps: int = 300,
) -> tuple[np.ndarray, float]:
    """Multinomial logistic regression on standardised features, by L-BFGS on the whole set.

    Minimises mean cross-entropy + l2 / 2 |W|^2; the strength is chosen on a tenth of the training
    set, drawn by a fixed shuffle, and all of it is used for the final fit. (Papers often train the
    probe by SGD with augmentation, which scores about a point more.)

    Args:
        train: f32[n, d].
        labels: int[n].
        queries: f32[m, d].
        l2: strengths to choose from.
        steps: at most so many iterations.

    Returns:
        (int[m], the predicted classes; the strength that was chosen).
    """
    centre, scale = train.mean(axis=0), train.std(axis=0) + 1e-6
    train, queries = ((x - centre) / scale for x in (train, queries))
    classes = int(labels.max()) + 1
    if len(l2) > 1:
        order = np.random.default_rng(0).permutation(len(train))
        held, kept = order[: max(1, len(train) // 10)], order[max(1, len(train) // 10) :]
        fits = [_fit(train[kept], labels[kept], classes, strength, steps) for strength in l2]
        scores = [np.mean(fit(train[held]) == labels[held]) for fit in fits]
        strength = l2[int(np.argmax(scores))]
    else:
        strength = l2[0]
    return _fit(train, labels, classes, strength, steps)(queries), strength


@jax.jit
@jax.value_and_grad
def _objective(w: jax.Array, x: jax.Array, labels: jax.Array, l2: float) -> jax.Array:
    """Mean cross-entropy of logits x w[:-1] + w[-1], and l2 / 2 |w[:-1]|^2."""
    log_p = jax.nn.log_softmax(x @ w[:-1] + w[-1])
    own = jnp.take_along_axis(log_p, labels[:, None], axis=1)
    return -jnp.mean(own) + 0.5 * l2 * jnp.sum(w[:-1] ** 2)


def _fit(
    x: np.ndarray, labels: np.ndarray, classes: int, l2: float, steps: int
) -> Callable[[np.ndarray], np.ndarray]:
    """The classifier, features -> classes."""
    x, labels = jnp.asarray(x, jnp.float32), jnp.asarray(labels)
    shape = (x.shape[1] + 1, classes)

    def evaluate(flat):
        w = jnp.asarray(flat.reshape(shape), jnp.float32)
        value, gradient = _objective(w, x, labels, l2)
        return float(value), np.asarray(gradient, np.float64).ravel()

    start = np.zeros(shape[0] * shape[1])
    found = scipy.optimize.minimize(
        evaluate, start, jac=True, method="L-BFGS-B", options={"maxiter": steps}
    )
    w = found.x.reshape(shape)
    return lambda queries: np.argmax(queries @ w[:-1] + w[-1], axis=1)


def probe(model: Any, config: Any) -> dict[str, float]:
    """Both scores of a network on the data of a config, by name, and how they were had.

    Returns:
        knn_top1, linear_top1, linear_l2, train_images, images.

    Raises:
        FloatingPointError: where a feature is not finite.
    """
    mesh = sharding.make_mesh()
    definition, params = base.split(model)
    params = jax.device_put(params, sharding.replicated(mesh))
    data = inputs.Data(config, *(source(config.data, split) for split in ("train", "val")))
    arrays = Features(evaluation.Setting(config, definition, data, mesh, lambda: params))(params)
    scores = knn_metrics(*arrays) | linear_metrics(*arrays)
    train, _, queries, _ = arrays
    return {name.removeprefix("val/"): value for name, value in scores.items()} | {
        "train_images": len(train),
        "images": len(queries),
    }
