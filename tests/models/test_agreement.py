"""Our networks against the authors' PyTorch code, on its weights and inputs (reference/README.md).

Relative errors: norm of the difference over norm.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crate_jax.convert import layouts, names, weights
from crate_jax.models import base


def attention_maps(query, key):
    scores = jnp.einsum("bihd,bjhd->bhij", query, key) / np.sqrt(query.shape[-1])
    return jax.nn.softmax(scores, axis=-1)


def test_crate_layers_and_logits(reference, error):
    case = reference("crate_mini")
    logits, out = case(case.images(), capture=True)
    assert error(logits, case["logits"]) < 1e-5
    for layer in range(case.config.depth):
        assert error(out["tokens"][layer], case["tokens"][layer]) < 1e-5
        w = out["query"][layer]
        assert error(w.reshape(*w.shape[:2], -1), case["subspace"][layer]) < 1e-5
        assert error(attention_maps(w, w), case["attention"][layer]) < 1e-5
        assert float(jnp.mean(out["tokens"][layer] == 0)) == pytest.approx(
            case["sparsity"][layer], abs=1e-6
        )
    assert error(out["features"], case["tokens"][-1][:, 0]) < 1e-5


def test_crate_loss_and_gradients(reference, error):
    case = reference("crate_mini")
    definition, params = base.split(case.model)

    def loss(params):
        logits, _ = base.merge(definition, params)(case.images())
        labels = optax.smooth_labels(jax.nn.one_hot(case["labels"], 10), 0.1)
        return optax.softmax_cross_entropy(logits, labels).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    assert float(value) == pytest.approx(float(case["loss_label_smoothing_0_1"]), rel=1e-5)
    theirs = weights.to_state(
        dict(names.flatten(gradients)), case.config, layouts.of("crate", "pytorch")
    )
    expected = {k.removeprefix("grad/"): v for k, v in case.arrays.items() if k[:5] == "grad/"}
    assert set(theirs) == set(expected)
    for name, gradient in expected.items():
        assert error(theirs[name], gradient) < 1e-4, name


def test_wrong_number_of_heads_is_seen(reference, error, run):
    """The comparison can fail: the same weights with 3 heads give other logits."""
    case = reference("crate_mini")
    config = type(case.config)(image_size=32, patch_size=8, dim=48, depth=3, heads=3, classes=10)
    logits, _ = run(weights.build(case.params, config), case.images())
    assert error(logits, case["logits"]) > 1e-2


def test_crate_alpha_logits(reference, error):
    case = reference("crate_alpha_mini")
    logits, _ = case(case.images())
    assert error(logits, case["logits"]) < 1e-5


def test_crate_mae_masked(reference, error):
    case = reference("crate_mae_mini")
    pred, out = case(case.images(), mask_noise=case["mask_noise"])
    np.testing.assert_array_equal(out["mask"], case["mask"])
    assert error(pred, case["pred"]) < 1e-5
    assert float(out["loss"]) == pytest.approx(float(case["loss"]), rel=1e-5)


def test_crate_mae_unmasked_encoder(reference, error):
    case = reference("crate_mae_mini")
    features, out = case(case.images(), capture=-1)
    w = out["query"][0]
    assert error(w.reshape(*w.shape[:2], -1), case["subspace_last"]) < 1e-5
    assert error(attention_maps(w, w), case["attention_last"]) < 1e-5
    np.testing.assert_array_equal(features, out["features"])


def test_crate_mae_gradient_leaves_positions_alone(reference):
    case = reference("crate_mae_mini")
    definition, params = base.split(case.model)

    def loss(params):
        model = base.merge(definition, params)
        return model(case.images(), mask_noise=case["mask_noise"])[1]["loss"]

    gradients = dict(names.flatten(jax.jit(jax.grad(loss))(params)))
    untouched = {path for path, g in gradients.items() if not jnp.any(g)}
    assert untouched == set(case.model.fixed) == {"positions"}


def test_dino_vit(reference, error):
    case = reference("dino_vit_mini")
    features, out = case(case.images(), capture=-1)
    assert error(features, case["features"]) < 1e-5
    assert error(attention_maps(out["query"][0], out["key"][0]), case["attention_last"]) < 1e-5


def test_dino_vit_at_another_size(reference, error, run):
    case = reference("dino_vit_mini")
    config = type(case.config).from_dict({**case.config.to_dict(), "positions": "dino"})
    model = weights.build(case.params, config)
    images = case.images("images_other_size")
    assert images.shape[1:3] == (48, 64)
    _, out = run(model, images, capture=-1)
    query, key = out["query"][0], out["key"][0]
    theirs = np.split(case["qkv_last_other_size"], 3, axis=-1)
    assert error(query.reshape(*query.shape[:2], -1), theirs[0]) < 1e-5
    assert error(key.reshape(*key.shape[:2], -1), theirs[1]) < 1e-5
    assert error(attention_maps(query, key), case["attention_last_other_size"]) < 1e-5
    # The clean rule is another rule; agreement above is not an accident of insensitivity.
    _, clean = case(images, capture=-1)
    assert error(clean["key"][0].reshape(key.shape[0], key.shape[1], -1), theirs[1]) > 1e-4
