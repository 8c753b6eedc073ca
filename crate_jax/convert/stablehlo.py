"""A network as StableHLO: one file that runs without this package, through `jax.export`."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from crate_jax.files import whole
from crate_jax.models import base
from crate_jax.models.base import Transformer
from crate_jax.segmentation import attention

SUFFIX = ".stablehlo"
_TOLERANCE = 1e-4


def export(
    model: Transformer,
    path: str | os.PathLike,
    *,
    layer: int = -1,
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
) -> float:
    """Writes a network with its weights as StableHLO, reads it back and compares.

    The function maps images f32[batch, h, w, 3], normalised, at the network's own image size and
    any batch, to a dictionary: "logits" f32[batch, classes] (features without a head), "features"
    f32[batch, d] and "cls_maps" f32[batch, heads, patches], softmax over patches of
    <q_CLS, k_i> / sqrt(d_head) in one layer. `jax.export.deserialize(bytes).call(images)` runs it.

    Args:
        model: the network.
        path: a name ending in `.stablehlo`.
        layer: whose maps.
        platforms: it is lowered for.

    Returns:
        The largest relative error of the re-loaded outputs on a batch.

    Raises:
        ValueError: for another suffix, outputs that are not finite, or where the re-loaded function
            disagrees.
        OSError: where it cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"target {path}: expected a name ending in {SUFFIX}")
    definition, params = base.split(model)

    def apply(images):
        logits, out = base.merge(definition, params)(images, capture=layer)
        maps = attention.cls_maps(out["query"][0], out["key"][0], model.config.registers)
        return {"logits": logits, "features": out["features"], "cls_maps": maps}

    height, width = model.config.image_size
    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.float32)
    exported = jax_export.export(jax.jit(apply), platforms=platforms)(images)
    with whole(path) as temporary:
        temporary.write_bytes(exported.serialize())
        again = jax_export.deserialize(bytearray(temporary.read_bytes()))
        sample = jax.random.normal(jax.random.key(0), (2, height, width, 3))
        got: Any = again.call(sample)  # the same dictionary, which its type does not say
        return _compare(path, jax.jit(apply)(sample), got)


def _compare(
    path: pathlib.Path, expected: Mapping[str, jax.Array], got: Mapping[str, jax.Array]
) -> float:
    """The largest relative error, in norm; of NaN there is none."""
    for name, value in expected.items():
        if not np.isfinite(value).all():
            raise ValueError(
                f"{path}: expected finite outputs, got NaN or infinity in {name}; the weights are "
                "damaged or of a run that diverged; nothing was written"
            )
    errors = [
        float(np.linalg.norm(got[name] - value)) / max(float(np.linalg.norm(value)), 1e-30)
        for name, value in expected.items()
    ]
    if not np.max(errors) <= _TOLERANCE:  # NumPy's maximum is NaN where one of them is
        raise ValueError(
            f"{path}: expected the re-loaded function to agree within {_TOLERANCE}, got a "
            f"relative error of {np.max(errors):.2e}; nothing was written"
        )
    return max(errors)
