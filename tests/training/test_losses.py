import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from crate_jax.training import losses

LOGITS = np.array([[2.0, -1.0, 0.5, 3.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
LABELS = np.array([3, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_smoothed_negative_log_likelihood(smoothing):
    log_p = log_softmax(LOGITS.astype(np.float64), axis=1)
    own = log_p[np.arange(2), LABELS]
    expected = -(1 - smoothing) * own - smoothing * log_p.mean(axis=1)
    got = losses.cross_entropy(jnp.array(LOGITS), jnp.array(LABELS), smoothing)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_soft_labels_of_one_class_equal_the_hard_label():
    soft = jnp.eye(4)[LABELS]
    hard = losses.cross_entropy(jnp.array(LOGITS), jnp.array(LABELS), 0.1)
    np.testing.assert_allclose(losses.cross_entropy(jnp.array(LOGITS), soft, 0.1), hard, rtol=1e-6)


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [True, False]), (2, [True, True]), (5, [True, True])]
)
def test_top_k(k, expected):
    logits = jnp.array([[2.0, -1.0, 0.5, 3.0], [1.0, 0.5, 0.2, 0.1]])
    np.testing.assert_array_equal(losses.top_k_correct(logits, jnp.array(LABELS), k), expected)


def test_logits_that_are_not_finite_are_never_correct():
    logits = jnp.array([[jnp.nan, 1.0, 2.0, 3.0], [jnp.inf, 0.0, 0.0, 0.0]])
    assert not losses.top_k_correct(logits, jnp.array([0, 0]), 5).any()
