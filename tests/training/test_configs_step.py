"""Every config takes a training step: its own layers, objective and optimizer, at a toy width."""

import functools
import json

import jax
import ml_collections
import numpy as np
import pytest

from crate_jax.config import load, plain, resolve
from crate_jax.models import base, variants
from crate_jax.training import optim
from crate_jax.training.step import (
    NORMS,
    initial,
    make_step,
    metric_names,
    objective,
    read_sums,
)
from tests.networks import draw
from tests.test_config import CONFIGS

# One step is run of each program: its speed does not matter, that of the compiler does.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
ARGUMENTS = [(path.stem, "") for path in CONFIGS] + [
    ("imagenet_b", "model=vit"),
    ("imagenet_b", "attention=mhsa"),
    ("imagenet_b", "nonlinearity=mlp"),
    ("imagenet_b", "nonlinearity=ista-soft-threshold"),
    ("finetune", "dataset=cifar10"),
    ("finetune", "model=crate-alpha-b16"),
]
# Of full width, built from shapes alone: every argument that a docstring names.
MORE = [
    *(
        ("imagenet", f"{size}{twin}")
        for size in "tsbl"
        for twin in ("", ",model=vit", ",attention=mhsa", ",nonlinearity=mlp")
    ),
    *(
        ("imagenet21k", f"{size}{twin}")
        for size in ("t8", "s8", "b8")
        for twin in ("", ",model=vit")
    ),
    ("imagenet21k", "s8,attention=mhsa"),
    ("imagenet21k", "s8,nonlinearity=mlp"),
    ("imagenet21k", "s8,nonlinearity=ista-soft-threshold"),
    *(("alpha", f"b,patch={patch}") for patch in (32, 8)),
    *(("alpha", f"l,patch={patch}") for patch in (32, 14, 8)),
    ("alpha", "h,patch=14"),
    *(("mae", size) for size in "tsbl"),
    *(("finetune", f"{dataset},model=crate-s8") for dataset in ("cifar100", "flowers", "pets")),
]


def toy(config):
    """The config with a network of one layer on images of 16 px."""
    c = ml_collections.ConfigDict(config, type_safe=False)
    c.model.image_size, c.model.patch_size = (16, 16), 8
    c.model.dim, c.model.heads, c.model.head_dim, c.model.depth = 16, 2, None, 1
    if "decoder_depth" in c.model:
        c.model.decoder_depth = 1
    if c.model.classes:
        c.model.classes = 4
    c.optimizer.learning_rate, c.optimizer.weight_decay = 1e-3, 0.1
    c.optimizer.warmup, c.optimizer.end_factor = "0 steps", 0.0
    return c


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS + MORE)
def test_builds_abstractly_at_full_width(name, argument):
    """With two layers: the others are like them, and all are counted in tests/models."""
    config = resolve(load(name, argument))
    depths = {key: 2 for key in config.model if key in ("depth", "decoder_depth")}
    model = variants.from_dict(config.model.to_dict() | depths)
    shapes = base.split(variants.abstract(model, dtype=config.dtype))[1]
    optimizer = optim.optimizer(config.optimizer, lambda _: 1e-3)
    state = jax.eval_shape(lambda p: initial(optimizer, p), shapes)
    assert len(jax.tree.leaves(state)) > len(jax.tree.leaves(shapes))
    if config.data.name != "scenes":
        assert model.image_size == (config.data.image_size,) * 2


@functools.cache
def stepped(text):
    """What a step of a toy config does; configs that differ in size and rates alone share it."""
    c = ml_collections.ConfigDict(json.loads(text), type_safe=False)
    model = variants.from_dict(c.model.to_dict())
    definition, params = base.split(draw(model, dtype=c.dtype, remat=c.remat))
    fixed = variants.FAMILIES[model.family][1].fixed
    optimizer = optim.optimizer(c.optimizer, lambda _: c.optimizer.learning_rate, fixed)
    step = make_step(definition, objective(c), optimizer, seed=0)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4, 16, 16, 3), np.uint8),
        "label": np.arange(4, dtype=np.int32),
    }

    def first(params, batch):
        return step(params, initial(optimizer, params, metric_names(c)), batch)

    updated, state = jax.jit(first).lower(params, batch).compile(QUICK)(params, batch)
    moved = jax.tree.map(lambda a, b: np.any(np.asarray(a) != np.asarray(b)), params, updated)
    still = {path[0].key for path, m in jax.tree_util.tree_leaves_with_path(moved) if not m}
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(updated)}
    return read_sums(state), int(state["bad_step"]), still, dtypes


@pytest.mark.parametrize(
    ("name", "argument"),
    # A program to compile each: the twins of a recipe with the slow tests.
    [pytest.param(*pair, marks=pytest.mark.slow if pair[1] else ()) for pair in ARGUMENTS],
)
def test_takes_a_step(name, argument):
    c = toy(load(name, argument))
    keys = ("model", "optimizer", "dtype", "remat", "label_smoothing")
    keys += ("mixup", "cutmix", "mixup_switch")
    text = json.dumps({key: plain(c)[key] for key in keys}, sort_keys=True)
    values, bad_step, still, dtypes = stepped(text)
    assert bad_step == -1
    assert np.isfinite(values["train/loss"])
    assert set(values) == {f"train/{n}" for n in ("loss", *NORMS, *metric_names(c))}
    assert still == set(variants.FAMILIES[c.model.family][1].fixed)
    assert dtypes == {np.dtype("float32")}
