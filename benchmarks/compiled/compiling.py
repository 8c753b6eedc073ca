"""Lowers and compiles a case, and keeps what the compiler says of it."""

import dataclasses
import functools
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.compiled.cases import (
    AT_ONCE,
    ATTENTION,
    DEEP,
    GRID,
    HARDWARE,
    MASKCUT,
    SHAPES,
    Case,
    default_effort,
    made_from,
    of_recipe,
)
from crate_jax.models import backends, base, variants
from crate_jax.segmentation import attention, layerwise, ncut_device
from crate_jax.training import program, sharding, topology


def measure(case: Case, effort: float | None = None) -> dict[str, Any]:
    """The row of a case: its programs compiled, and what the compiler says of them."""
    effort = default_effort(case) if effort is None else effort
    options = {"exec_time_optimization_effort": effort}
    if case.hardware == "h100":
        options |= topology.CUDA_OPTIONS
    lowered = {MASKCUT: _maskcut, ATTENTION: _attention}.get(case.recipe, _of_recipe)
    programs = {
        name: _plan(lower, options)
        for name, lower in lowered(case, topology.devices(HARDWARE[case.hardware])).items()
    }
    return {
        **dataclasses.asdict(case),
        "effort": effort,
        "made_from": made_from(case.recipe),
        "compiler": compiler(case.hardware),
        "programs": programs,
    }


def _plan(lower: Callable[[], Any], options: Mapping[str, Any]) -> dict[str, Any]:
    begin = time.process_time()
    try:
        compiled = lower().compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        return {"failed": str(error).splitlines()[0]}
    seconds = time.process_time() - begin
    plan = compiled.memory_analysis()
    return {
        "held": plan.argument_size_in_bytes,
        "work": plan.temp_size_in_bytes,
        "accessed": (compiled.cost_analysis() or {}).get("bytes accessed"),
        "collectives": {k: list(v) for k, v in topology.collectives(compiled.as_text()).items()},
        "seconds": round(seconds, 1),
    }


def _of_recipe(case: Case, devices: Sequence[Any]) -> dict[str, Callable[[], Any]]:
    mesh = sharding.make_mesh(case.fsdp, devices)
    config = of_recipe(case.recipe, fsdp=case.fsdp, batch_size=AT_ONCE * mesh.size)
    network = variants.from_dict(config.model.to_dict())
    made = program.make(config, network, mesh, lambda _: 1e-3)

    def evaluation(params, images):
        out = base.forward(made.definition, capture=True)(params, images)[1]
        maps = attention.layer_maps(out["query"], out["key"])
        return maps, layerwise.of_layers(out["query"], out["tokens"])

    few = _batch(mesh.size, network, mesh)["image"]
    step = {"step": lambda: made.step.lower(*made.shapes, _batch(config.batch_size, network, mesh))}
    if case.fsdp > 1 or case.recipe in DEEP:
        return step
    return step | {"evaluation": lambda: jax.jit(evaluation).lower(made.shapes[0], few)}


def _batch(size: int, network: Any, mesh: Any) -> dict[str, Any]:
    shapes = {
        "image": jax.ShapeDtypeStruct((size, *network.image_size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    return sharding.batch_shapes(shapes, sharding.batch_sharding(mesh))


def _maskcut(case: Case, devices: Sequence[Any]) -> dict[str, Callable[[], Any]]:
    shape = functools.partial(
        jax.ShapeDtypeStruct, sharding=jax.sharding.SingleDeviceSharding(devices[0])
    )
    features, tau = shape((2, GRID, 768), jnp.float32), shape((), jnp.float32)
    graph, painted = shape((2, GRID, GRID), jnp.bfloat16), shape((2, GRID), jnp.bool_)
    return {
        "affinity": lambda: ncut_device.affinity.lower(features, tau),
        "cut": lambda: ncut_device.solve.lower(graph, painted),
    }


def _attention(case: Case, devices: Sequence[Any]) -> dict[str, Callable[[], Any]]:
    def both(backend, w, cotangent):
        out, back = jax.vjp(lambda w: backends.attend(w, w, w, backend), w)
        return out, back(cotangent)

    place = jax.sharding.SingleDeviceSharding(devices[0])
    return {
        f"{backend} {shape}": functools.partial(
            jax.jit(functools.partial(both, backend)).lower,
            *2 * [jax.ShapeDtypeStruct((2, *shape), jnp.bfloat16, sharding=place)],
        )
        for shape in SHAPES
        for backend in ("xla", "pallas")
    }


def compiler(hardware: str) -> str:
    """What compiles for a kind of chip, with its version."""
    package = "jax-cuda13-plugin" if hardware == "h100" else "libtpu"
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"{hardware}: expected the package {package}, which compiles for it; install it"
        ) from error
