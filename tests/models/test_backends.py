"""Every backend of attention against plain NumPy, outputs and gradients; what `auto` chooses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.models import backends, variants
from crate_jax.models.backends import attend

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
# Tokens and head sizes that divide by nothing, and several blocks of the kernel's rows.
SHAPES = [(1, 5, 1, 7), (2, 17, 3, 8), (1, 197, 2, 24), (1, 257, 1, 64)]


def softmax_attention(query, key, value):
    """In float64 by the definition, with the gradients of sum(out * weights) by calculus."""
    scale = query.shape[-1] ** -0.5
    scores = scale * np.einsum("bqhd,bkhd->bhqk", query, key)
    maps = np.exp(scores - scores.max(-1, keepdims=True))
    maps /= maps.sum(-1, keepdims=True)
    return maps, np.einsum("bhqk,bkhd->bqhd", maps, value)


def expected(query, key, value, cotangent):
    maps, out = softmax_attention(query, key, value)
    of_maps = np.einsum("bqhd,bkhd->bhqk", cotangent, value)
    of_scores = maps * (of_maps - (maps * of_maps).sum(-1, keepdims=True))
    of_scores *= query.shape[-1] ** -0.5
    return out, (
        np.einsum("bhqk,bkhd->bqhd", of_scores, key),
        np.einsum("bhqk,bqhd->bkhd", of_scores, query),
        np.einsum("bhqk,bqhd->bkhd", maps, cotangent),
    )


def off(got, want):
    """Relative to the whole array's size."""
    return np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)


def drawn(shape, dtype, count, seed=0):
    arrays = np.random.default_rng(seed).normal(size=(count, *shape))
    return [jnp.asarray(array.astype(jnp.dtype(dtype))) for array in arrays]


def with_gradients(function, *operands):
    """`function` of all operands but the last, and its gradients against that one; one program."""

    @jax.jit
    def both(*operands):
        out, back = jax.vjp(function, *operands[:-1])
        return out, back(operands[-1])

    return both(*operands)


def exact(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", ["xla", "pallas"])
def test_mssa_by_every_backend(backend, dtype, shape):
    w, cotangent = drawn(shape, dtype, 2)
    out, (gradient,) = with_gradients(lambda w: attend(w, w, w, backend), w, cotangent)
    assert out.dtype == gradient.dtype == w.dtype
    want, roles = expected(*exact(w, w, w, cotangent))
    assert off(out, want) < TOLERANCE[dtype]
    assert off(gradient, sum(roles)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens", [19, 1030])
def test_untied_attention(dtype, tokens):
    *operands, cotangent = drawn((1, tokens, 2, 8), dtype, 4)
    out, found = with_gradients(attend, *operands, cotangent)
    want, gradients = expected(*exact(*operands, cotangent))
    assert off(out, want) < TOLERANCE[dtype]
    for got, gradient in zip(found, gradients, strict=True):
        assert off(got, gradient) < TOLERANCE[dtype]


def products(jaxpr):
    """The operands' dtypes of every matrix product, those of inner programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield {operand.aval.dtype.name for operand in equation.invars}
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from products(inner)


@pytest.mark.parametrize("name", ["crate-testing", "crate-alpha-testing", "vit-testing"])
def test_a_step_in_bfloat16_multiplies_no_float32(name):
    from crate_jax.models import base

    definition, params = base.split(
        variants.abstract(variants.config(name), dtype=jnp.dtype("bfloat16"))
    )

    def loss(params, images):
        return jnp.sum(base.forward(definition)(params, images)[0])

    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
    found = list(products(jax.make_jaxpr(jax.grad(loss))(params, images).jaxpr))
    assert len(found) > 20
    assert all(operands == {"bfloat16"} for operands in found)


def choose(wanted="auto", **changes):
    setting = {"tokens": 785, "head_dim": 64, "dtype": "bfloat16", "tied": True, "platform": "gpu"}
    return backends.choose(wanted, **setting | changes)


def test_auto_is_xla_where_cudnn_has_no_place():
    for changes, why in (
        ({"platform": "cpu"}, "the only one on cpu"),
        ({"platform": "tpu"}, "no CUDA on tpu"),
        ({"dtype": "float32"}, "not float32"),
        ({"head_dim": 36}, "not 36"),
        ({"head_dim": 136}, "not 136"),
        ({"tokens": 197}, "197 tokens"),
    ):
        choice = choose(**changes)
        assert choice.backend == "xla"
        assert why in choice.why


def test_cudnn_is_tried_and_what_it_gets_wrong_is_not_taken(monkeypatch):
    plain = backends.attend

    def refusing(query, key, value, backend="xla"):
        if backend == "cudnn":
            raise ValueError("Unsupported sequence length Q 785\nand more")
        return plain(query, key, value)

    monkeypatch.setattr(backends, "attend", refusing)
    choice = choose(tokens=300)
    assert choice == backends.Choice("xla", "cuDNN refuses: Unsupported sequence length Q 785")
    monkeypatch.setattr(backends, "attend", lambda q, k, v, backend="xla": plain(q, k, v))
    assert choose(tokens=300) == backends.Choice("cudnn", "300 tokens on CUDA")

    def wrong(query, key, value, backend="xla"):
        return plain(query, key, value) * (1.1 if backend == "cudnn" else 1)

    monkeypatch.setattr(backends, "attend", wrong)
    choice = choose(tokens=300)
    assert choice.backend == "xla"
    assert "cuDNN's output is off by 10" in choice.why


@pytest.mark.parametrize(
    ("wanted", "changes", "said"),
    [
        ("cudnn", {"platform": "cpu"}, "got cudnn; the only one on cpu"),
        ("cudnn", {"head_dim": 36}, "multiple of 8 up to 128, not 36"),
        ("pallas", {"platform": "cpu"}, "xla or cudnn on cpu, got pallas"),
        ("pallas", {"platform": "tpu", "tied": False}, "are not one array, got pallas"),
    ],
)
def test_what_is_asked_for_by_name_and_cannot_be_had(wanted, changes, said):
    with pytest.raises(ValueError, match=said):
        choose(wanted, **changes)


def test_what_is_asked_for_by_name():
    assert choose("xla").backend == "xla"
    assert choose("pallas", platform="tpu").backend == "pallas"
