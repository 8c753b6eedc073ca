"""Optimizers and schedules, from optax."""

from typing import Any

import jax
import ml_collections
import optax

from crate_jax import keys
from crate_jax.config import choices


def schedule(c: ml_collections.ConfigDict, warmup: int, total: int) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then a half cosine to `end_factor` of it, or a constant.

    Args:
        c: `config.optimizer`.
        warmup: steps of warm-up, in [0, total].
        total: steps of the run.
    """
    _check(c, "schedule")
    if not 0 <= warmup <= total:
        raise ValueError(
            f"optimizer.warmup: expected 0 to {total} (all steps), got {warmup} steps; a short run "
            f"needs a shorter warm-up: --config.optimizer.warmup={total // 10}"
        )
    end = c.learning_rate * c.end_factor
    if c.schedule == "cosine":
        after = optax.cosine_decay_schedule(c.learning_rate, max(1, total - warmup), c.end_factor)
    else:
        after = optax.constant_schedule(c.learning_rate)
        end = c.learning_rate
    if warmup >= total:
        after = optax.constant_schedule(end)
    # Step 0 trains already: the first of w warm-up steps takes 1/w of the peak.
    up = optax.linear_schedule(
        c.learning_rate / max(1, warmup), c.learning_rate, max(1, warmup - 1)
    )
    return optax.join_schedules([up, after], [warmup])


def _check(c: ml_collections.ConfigDict, *names: str) -> None:
    """Raises ValueError for what the table of keys does not allow."""
    for name in names:
        key = keys.BY_NAME[f"optimizer.{name}"]
        choices(key.name, c[name], key.check.choices)


def optimizer(
    c: ml_collections.ConfigDict, rate: optax.Schedule, fixed: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW, Lion or Muon with decoupled weight decay.

    `decay_mask` "all" decays every parameter, as the public CRATE code does; "kernel" decays only
    leaves called kernel, so neither D nor norms, biases, [CLS] and positions (CRATE-alpha).
    Top-level parameters named in `fixed` stay as they are (CRATE-MAE's sin-cos positions).

    Muon (Jordan, 2024, https://kellerjordan.github.io/posts/muon; momentum 0.95, Nesterov, five
    Newton-Schulz steps) takes `is_matrix`'s parameters: U, the output map, D and the other
    matrices inside layers. It replaces the momentum of each by its nearest orthogonal matrix, so
    that every direction of a subspace learns at one rate, times `muon_learning_rate` under the
    schedule of `learning_rate`. All other parameters are AdamW's, with `learning_rate`. ViT's
    query, key and value are one matrix here, as they are in its file.

    Raises:
        ValueError: an unknown choice, or Muon with a `learning_rate` of 0.
    """
    _check(c, "name", "decay_mask")
    mask = None if c.decay_mask == "all" else _kernels
    common = {"b1": c.b1, "b2": c.b2, "weight_decay": c.weight_decay, "mask": mask}
    if c.name == "lion":
        update = optax.lion(rate, **common)
    else:
        update = optax.adamw(rate, **common)
    if c.name == "muon":
        update = optax.partition({"muon": _muon(c, rate, mask), "adamw": update}, _labels)
    parts = [optax.clip_by_global_norm(c.clip_norm)] if c.clip_norm else []
    parts.append(update)
    if fixed:
        parts.append(optax.masked(optax.set_to_zero(), lambda tree: _named(tree, fixed)))
    return optax.chain(*parts)


def is_matrix(path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether a parameter is a matrix inside a layer or a decoder layer: what Muon takes.

    Those are `attention.subspace.kernel` (U), `attention.output.kernel`, `operator.dictionary` (D),
    CRATE-alpha's `operator.output_dictionary`, CRATE-MAE's `operator.kernel`, and of ViT and the
    MLP `attention.qkv.kernel`, `operator.expand.kernel` and `operator.contract.kernel`.

    Args:
        path: of the parameter, as `jax.tree_util.tree_map_with_path` gives it.
        leaf: an array or a shape.
    """
    return leaf.ndim == 2 and path[0].key in ("layers", "decoder")


def _muon(
    c: ml_collections.ConfigDict, rate: optax.Schedule, mask: Any
) -> optax.GradientTransformation:
    if not c.learning_rate:
        raise ValueError(
            "optimizer.learning_rate: expected above 0 with muon, whose rate follows the same "
            f"schedule, got {c.learning_rate}"
        )
    ratio = c.muon_learning_rate / c.learning_rate
    return optax.contrib.muon(
        lambda step: ratio * rate(step),
        weight_decay=c.weight_decay,
        weight_decay_mask=mask,
        muon_weight_dimension_numbers=_axes,
    )


def _labels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: "muon" if is_matrix(path, leaf) else "adamw", params
    )


def _axes(params: Any) -> Any:
    """A tree of the axes that each matrix sums over and makes, which scale its step.

    CRATE-alpha's output dictionary is the one that is applied as its transpose.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: optax.contrib.MuonDimensionNumbers(
            *((1, 0) if path[-1].key == "output_dictionary" else (0, 1))
        ),
        params,
    )


def _named(params: Any, names: tuple[str, ...]) -> Any:
    """A tree of bools: True below the top-level names."""
    return {
        key: jax.tree.map(lambda _, key=key: key in names, value) for key, value in params.items()
    }


def _kernels(params: Any) -> Any:
    """A tree of bools: True at leaves called kernel."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )
