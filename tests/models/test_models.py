"""What every family does alike, on tiny networks: sizes, capture, precision, pooling, faults."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.models import base, capture, dino, layers, patches, variants
from tests.networks import compute, draw

TESTING = (
    "crate-testing",
    "crate-alpha-testing",
    "crate-mae-testing",
    "vit-testing",
    "dinov3-testing",
)


def tiny(name, **overrides):
    return draw(variants.config(name, **overrides))


def images(height=32, width=32, batch=2):
    return normal(batch, height, width, 3, seed=1)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("name", TESTING)
def test_shapes_and_capture(name, run):
    config = variants.VARIANTS[name]
    model = draw(config)
    logits, out = run(model, images(24, 40), capture=True)
    assert logits.shape == (2, config.classes or config.dim)
    assert out["features"].shape == (2, 24)
    assert out["query"].shape == out["key"].shape == (2, 2, 1 + 3 * 5, 3, 8)
    assert out["tokens"].shape == (2, 2, 1 + 3 * 5, 24)
    assert all(x.dtype == jnp.float32 for x in (logits, *out.values()))
    out = jax.eval_shape(lambda: model(images(24, 40))[1])
    assert set(out) == {"features"}


DINOV2 = {"layer_scale": True, "ffn": "swiglu", "qkv_bias": False, "registers": 2}


@pytest.mark.parametrize("fields", [DINOV2, {"positions": "antialias"}])
def test_vit_with_the_options_of_dinov2(fields, run):
    model = tiny("vit-testing", **fields)
    r = model.config.registers
    logits, out = run(model, images(24, 40), capture=True)
    assert logits.shape == (2, 10)
    assert out["tokens"].shape == (2, 2, 1 + r + 15, 24)
    if r:
        assert model.layers[0].attention.qkv.bias is None
        after = compute(plain_scaled_layer, model)
        np.testing.assert_allclose(out["tokens"][0], after, atol=1e-4)


def plain_scaled_layer(model):
    layer, z = model.layers[0], model.tokens(images(24, 40))
    update, *_ = layer.attention(layer.attention_norm(z))
    half = z + layer.attention_scale[...][None, None] * update
    gate, up = jnp.split(layer.operator.expand(layer.operator_norm(half)), 2, axis=-1)
    update = layer.operator.contract(jax.nn.silu(gate) * up)
    return half + layer.operator_scale[...][None, None] * update


def test_layer_scale_starts_near_the_identity():
    @jax.jit
    def first_layer():
        model = variants.build(variants.config("vit-testing", layer_scale=True), 0)
        z = model.tokens(images())
        return z, model.layers[0](z)[0]

    z, after = first_layer()
    np.testing.assert_allclose(after, z, atol=1e-3)
    assert np.ptp(z) > 0.01


def test_rotary_positions(run):
    """Queries and keys of patches as attention uses them, and keys as they were before."""
    model = tiny("dinov3-testing", registers=2)
    model.periods[...] = dino.periods(8, 100)
    _, out = run(model, images(24, 40), capture=True)
    assert out["key_unrotated"].shape == out["key"].shape == (2, 2, 3 + 15, 3, 8)
    np.testing.assert_array_equal(out["key"][:, :, :3], out["key_unrotated"][:, :, :3])

    def unrotated(model):
        layer = model.layers[0]
        return layer.attention(layer.attention_norm(model.tokens(images(24, 40))))[1:]

    query, key = compute(unrotated, model)
    np.testing.assert_allclose(out["key_unrotated"][0], key, atol=1e-5)
    # The rotation by hand, in complex numbers: pairs are channels k and k + d_head / 2.
    rows, columns = np.meshgrid((np.arange(3) + 0.5) / 3, (np.arange(5) + 0.5) / 5, indexing="ij")
    place = 2 * np.stack([rows.ravel(), columns.ravel()]) - 1
    angles = 2 * np.pi * place[:, :, None] / np.array([1, 100**0.5])
    angles = np.concatenate(list(angles), axis=-1)[None, :, None]
    query = np.asarray(query)[:, 3:]
    paired = (query[..., :4] + 1j * query[..., 4:]) * np.exp(1j * angles)
    turned = np.concatenate([paired.real, paired.imag], axis=-1)
    np.testing.assert_allclose(np.asarray(out["query"])[0][:, 3:], turned, atol=1e-4)


def test_dinov3_without_a_bias_in_the_key(run):
    model = tiny("dinov3-testing")

    def biases(model):
        attention, z = model.layers[0].attention, normal(1, 4, 24)
        return attention.project(z) - attention.qkv(z)

    query, key, value = np.split(np.asarray(compute(biases, model)), 3, axis=-1)
    assert not key.any()
    assert query.any()
    assert value.any()
    wide = tiny("dinov3-testing", qkv_bias=False, cls_norm=True, ffn="swiglu", pool="mean")
    assert run(wide, images(24, 40))[0].shape == (2, 10)
    with pytest.raises(ValueError, match="positions: dinov3 resamples none"):
        variants.config("dinov3-testing", positions="dino")
    with pytest.raises(ValueError, match="head_dim: expected a multiple of 4"):
        variants.config("dinov3-testing", head_dim=6)


def test_registers_are_between_cls_and_the_patches(run):
    model = tiny("vit-testing", registers=2, classes=0, pool="mean")
    _, out = run(model, images(24, 40), capture=True)
    assert model.config.registers == 2
    assert out["query"].shape == (2, 2, 1 + 2 + 3 * 5, 3, 8)
    embedded = compute(lambda model: model.tokens(images(24, 40)), model)
    np.testing.assert_array_equal(embedded[:, 1:3], np.tile(model.registers[...], (2, 1, 1)))
    patches = out["tokens"][-1][:, 3:]
    mean = np.asarray(patches).mean(1)
    np.testing.assert_allclose(out["features"], model.norm(jnp.asarray(mean)), atol=1e-5)


def test_captured_layers_are_the_ones_asked_for(run):
    model = tiny("crate-testing")
    _, every = run(model, images(), capture=True)
    _, picked = run(model, images(), capture=(-1, 0))
    for key in ("query", "key", "tokens"):
        np.testing.assert_allclose(picked[key], every[key][::-1], rtol=1e-5, atol=1e-5)
    assert capture.captured_layers(-1, 12) == (11,)
    assert capture.captured_layers((10, 11), 12) == (10, 11)
    assert capture.captured_layers(True, 3) == (0, 1, 2)
    assert capture.captured_layers(False, 3) == capture.captured_layers(None, 3) == ()
    assert capture.captured_layers(np.True_, 3) == (0, 1, 2)
    assert capture.captured_layers(np.array([0, -1]), 3) == (0, 2)


@pytest.mark.parametrize("wrong", ["all", 1.5, (True,)])
@pytest.mark.usefixtures("types_unchecked")
def test_what_names_no_layer_is_refused(wrong):
    with pytest.raises(ValueError, match="expected True, False, a layer's index"):
        capture.captured_layers(wrong, 3)


def test_query_is_key_for_mssa_only():
    """In CRATE one array serves as both, so that nothing is stored twice."""

    def same(model):
        found = []
        jax.eval_shape(
            lambda: found.append((out := model(images(), capture=True)[1])["query"] is out["key"])
        )
        return found == [True]

    assert same(tiny("crate-testing"))
    assert not same(tiny("vit-testing"))


def plain_crate(params, x, heads, patch=8, eps=1e-5, eta=0.1, lambd=0.1):
    """CRATE in NumPy, float64, by protocols.md section 1; images f[h, w, 3] -> tokens per layer."""

    def norm(z, p):
        mean, var = z.mean(-1, keepdims=True), z.var(-1, keepdims=True)
        return (z - mean) / np.sqrt(var + eps) * p["scale"] + p["bias"]

    h, w, _ = x.shape
    rows = []
    for r in range(0, h, patch):
        for c in range(0, w, patch):
            rows.append(x[r : r + patch, c : c + patch].reshape(-1))
    z = norm(np.array(rows), params["patch_norm"])
    z = z @ params["patch_embed"]["kernel"] + params["patch_embed"]["bias"]
    z = norm(z, params["embed_norm"])
    z = np.concatenate([params["cls_token"][0], z]) + params["positions"][0]
    tokens = []
    for i in range(len(params["layers"])):
        layer = params["layers"][i]
        w_all = norm(z, layer["attention_norm"]) @ layer["attention"]["subspace"]["kernel"]
        parts = []
        for w_k in np.split(w_all, heads, axis=1):
            scores = np.exp(w_k @ w_k.T / np.sqrt(w_k.shape[1]))
            parts.append(scores / scores.sum(1, keepdims=True) @ w_k)
        update = np.concatenate(parts, axis=1)
        if "output" in layer["attention"]:
            out = layer["attention"]["output"]
            update = update @ out["kernel"] + out["bias"]
        y = norm(z + update, layer["operator_norm"])
        dictionary = layer["operator"]["dictionary"]
        z = np.maximum(y + eta * (y @ dictionary - y @ dictionary.T @ dictionary) - eta * lambd, 0)
        tokens.append(z)
    return np.array(tokens)


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_crate_equals_plain_numpy(heads, run, error):
    """Independent of the reference cases: one head without output map, non-square images."""
    config = variants.config("crate-testing", heads=heads, image_size=(16, 40), depth=3)
    model = draw(config)
    _, params = base.split(model)
    assert ("output" in params["layers"][0]["attention"]) == (heads != 1)
    x = images(16, 40, batch=1)
    _, out = run(model, x, capture=True)
    plain = plain_crate(
        jax.tree.map(lambda a: np.asarray(a, np.float64), params), np.asarray(x[0], float), heads
    )
    assert error(out["tokens"][:, 0], plain) < 1e-5


def test_alpha_with_one_full_width_head_may_have_the_output_map(run, error):
    """The authors' JAX class has it, their PyTorch class does not; both are networks of ours."""
    without = variants.config("crate-alpha-testing", heads=1, depth=1)
    assert "output" not in base.split(draw(without))[1]["layers"][0]["attention"]
    model = draw(dataclasses.replace(without, full_width_output=True))
    _, params = base.split(model)
    attention = params["layers"][0]["attention"]
    assert {name: set(tensors) for name, tensors in attention.items()} == {
        "subspace": {"kernel"},
        "output": {"kernel"},
    }
    x = np.asarray(normal(1, 5, 24), np.float64)
    w = x[0] @ np.asarray(attention["subspace"]["kernel"], np.float64)
    scores = np.exp(w @ w.T / np.sqrt(24))
    expected = scores / scores.sum(1, keepdims=True) @ w @ np.asarray(attention["output"]["kernel"])
    assert error(model.layers[0].attention(jnp.asarray(x, jnp.float32))[0][0], expected) < 1e-5


@pytest.mark.parametrize("name", TESTING)
def test_mean_pooling(name, run, error):
    config = dataclasses.replace(variants.VARIANTS[name], pool="mean")
    model = draw(config)
    _, out = run(model, images(), capture=-1)
    tokens = out["tokens"][0]
    if name == "vit-testing":  # LN of the mean over patches
        expected = model.norm(tokens[:, 1:].mean(1))
    elif name == "crate-mae-testing":
        expected = model.norm(tokens).mean(1)
    elif name == "dinov3-testing":  # the mean of LN over patches
        expected = model.norm(tokens)[:, 1:].mean(1)
    else:  # the mean over all tokens, before the head's LN
        expected = tokens.mean(1)
    assert error(out["features"], expected) < 1e-5


@pytest.mark.parametrize("name", ["crate-testing", "crate-mae-testing"])
def test_bfloat16_keeps_parameters_in_float32(name, run, error):
    config = variants.VARIANTS[name]
    exact, _ = run(draw(config), images())
    model = draw(config, dtype=jnp.bfloat16)
    _, params = base.split(model)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention multiplies two dtypes
        rounded, _ = run(model, images())
    assert rounded.dtype == jnp.float32
    assert 0 < error(rounded, exact) < 0.1


@pytest.mark.slow
def test_remat_changes_no_gradient(error):
    config = variants.config("crate-testing", depth=1)

    def gradient(remat):
        definition, params = base.split(draw(config, remat=remat))
        return jax.jit(jax.grad(lambda p: (base.merge(definition, p)(images())[0] ** 2).sum()))(
            params
        )

    plain = gradient("none")
    for remat in ("full", "dots"):
        for a, b in zip(jax.tree.leaves(gradient(remat)), jax.tree.leaves(plain), strict=True):
            assert error(a, b) < 1e-4


def test_long_sequences_are_attended_in_blocks(error):
    q, k, v = (normal(1, 1100, 2, 4, seed=seed) for seed in range(3))
    scores = np.einsum("bihd,bjhd->bhij", q, k) / 2
    maps = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    assert error(layers.attend(q, k, v), np.einsum("bhij,bjhd->bihd", maps, v)) < 1e-5


@pytest.mark.parametrize("nonlinearity", ["ista", "ista-soft-threshold"])
def test_ista_against_three_products(nonlinearity, error):
    """The public code multiplies three times; ours twice."""
    from flax import nnx

    soft = nonlinearity != "ista"
    ista = layers.ISTA(12, step_size=0.1, lambd=0.7, soft=soft, rngs=nnx.Rngs(0))
    y = normal(2, 5, 12)
    d = np.asarray(ista.dictionary[...], np.float64)
    step = y + 0.1 * (y @ d - (y @ d.T) @ d)
    if soft:
        expected = np.sign(step) * np.maximum(np.abs(step) - 0.07, 0)
        assert (np.asarray(ista(y)) < 0).any()
    else:
        expected = np.maximum(step - 0.07, 0)
    assert error(ista(y), expected) < 1e-5


def test_crate_mlp_skip_is_an_option(run):
    with_skip = variants.config("crate-testing", nonlinearity="mlp")
    without = dataclasses.replace(with_skip, mlp_skip=False)
    a, _ = run(draw(with_skip), images())
    b, _ = run(draw(without), images())
    assert not np.allclose(a, b)


def test_merge_reads_string_layer_numbers():
    """Checkpoint libraries turn dictionary keys into strings."""
    model = tiny("crate-testing", depth=11)
    definition, params = base.split(model)
    params["layers"] = {str(i): layer for i, layer in params["layers"].items()}
    again = base.split(base.merge(definition, params))[1]
    np.testing.assert_array_equal(
        again["layers"][10]["operator"]["dictionary"],
        params["layers"]["10"]["operator"]["dictionary"],
    )


@pytest.mark.usefixtures("types_unchecked")
def test_preprocess():
    model = tiny("crate-testing")
    white = np.full((1, 32, 32, 3), 255, np.uint8)
    expected = (1 - np.array(base.IMAGENET_MEAN)) / np.array(base.IMAGENET_STD)
    np.testing.assert_allclose(model.preprocess(white)[0, 0, 0], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="expected uint8"):
        model.preprocess(np.zeros((1, 32, 32, 3), np.float32))
    for channels in (1, 4):  # one channel would broadcast to three
        with pytest.raises(ValueError, match="repeat a grey one, drop alpha"):
            model.preprocess(np.zeros((1, 32, 32, channels), np.uint8))


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize("name", TESTING)
def test_pixels_are_no_input_and_an_empty_batch_is(name):
    model = draw(variants.VARIANTS[name])
    with pytest.raises(ValueError, match=r"got uint8; pass pixels through model\.preprocess"):
        model(np.zeros((1, 32, 32, 3), np.uint8))
    logits, out = jax.eval_shape(functools.partial(model, capture=True), jnp.zeros((0, 32, 32, 3)))
    assert logits.shape[0] == 0
    assert out["query"].shape == (2, 0, 17, 3, 8)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("shape", "capture", "message"),
    [
        ((1, 30, 32, 3), False, "multiples of the patch size 8, got 30 x 32; resize or crop to 32"),
        ((1, 3, 32, 32), False, r"expected \[batch, height, width, 3\]"),
        ((32, 32, 3), False, r"expected \[batch, height, width, 3\]"),
        ((1, 32, 32, 3), 2, r"expected layers within \[-2, 1\]"),
        ((1, 32, 32, 3), (0, -3), "depth 2, got -3"),
    ],
)
def test_faults_of_calls_are_named(shape, capture, message):
    model = tiny("crate-testing")
    with pytest.raises(ValueError, match=message):
        model(jnp.zeros(shape), capture=capture)


@pytest.mark.usefixtures("types_unchecked")
def test_mae_faults_and_mask(run):
    model = tiny("crate-mae-testing")
    with pytest.raises(ValueError, match="expected one number for each patch"):
        model(images(), mask_noise=jnp.zeros((2, 15)))
    noise = np.random.default_rng(0).random((2, 15), np.float32)
    pred, out = run(model, images(24, 40), mask_noise=noise)
    assert pred.shape == (2, 15, 192)
    kept = int(15 * 0.25)
    np.testing.assert_array_equal(out["mask"].sum(1), 15 - kept)
    np.testing.assert_array_equal(
        np.sort(np.argsort(noise, axis=1)[:, :kept], axis=1),
        np.array([np.flatnonzero(m == 0) for m in out["mask"]]),
    )
    # Hidden pixels cannot be seen: the prediction does not change with them.
    pixels = patches.patchify(images(24, 40), 8)
    np.testing.assert_array_equal(patches.unpatchify(pixels, (3, 5), 8), images(24, 40))
    hidden = patches.unpatchify(pixels * (1 - out["mask"][..., None]), (3, 5), 8)
    np.testing.assert_allclose(run(model, hidden, mask_noise=noise)[0], pred, rtol=1e-5, atol=1e-5)
