"""Every recipe compiled by the TPU compiler: the step, evaluation with capture, MaskCut's path.

    pip install -e ".[test,tpu]"
    pytest -m compile -n 2

Minutes a network; no TPU is needed. What fits at which batch is printed (`-s`).
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import train_step
from crate_jax.models import base, variants
from crate_jax.segmentation import attention, layerwise, ncut_device
from crate_jax.training import program, sharding, topology
from tests.test_config import CONFIGS

pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)"
    ),
]
SLICES = ("v5e:2x2", "v6e:2x2")
AT_ONCE = 16  # images a chip


def described(size, network, mesh):
    place = sharding.batch_sharding(mesh)
    image = jax.ShapeDtypeStruct((size, *network.image_size, 3), jnp.uint8, sharding=place)
    label = jax.ShapeDtypeStruct((size,), jnp.int32, sharding=place)
    return {"image": image, "label": label}


def say(what, compiled):
    plan = compiled.memory_analysis()
    held, work = plan.argument_size_in_bytes / 2**30, plan.temp_size_in_bytes / 2**30
    moved = {
        kind: f"{count} x, {size / 2**20:.1f} MiB"
        for kind, (count, size) in topology.collectives(compiled.as_text()).items()
    }
    print(f"{what}: {held:.2f} GiB held, {work:.2f} at work, {moved}", flush=True)


@pytest.mark.parametrize("fsdp", [1, 4])
@pytest.mark.parametrize("slices", SLICES)
@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
def test_recipe(name, slices, fsdp, optimised):
    mesh = sharding.make_mesh(fsdp, topology.devices(slices))
    size = AT_ONCE * mesh.size
    config = train_step.load(f"configs/{name}.py", fsdp=fsdp, batch_size=size)
    network = variants.from_dict(config.model.to_dict())
    made = program.make(config, network, mesh, lambda _: 1e-3)
    batch = described(size, network, mesh)
    say(f"{name}, {slices}, fsdp {fsdp}", made.step.lower(*made.shapes, batch).compile())

    def measure(params, images):
        out = base.forward(made.definition, capture=True)(params, images)[1]
        maps = attention.layer_maps(out["query"], out["key"])
        return maps, layerwise.of_layers(out["query"], out["tokens"])

    small = described(mesh.size, network, mesh)["image"]
    say("  evaluation", jax.jit(measure).lower(made.shapes[0], small).compile())


@pytest.mark.parametrize("slices", SLICES)
def test_maskcut_on_the_device(slices, optimised):
    place = jax.sharding.SingleDeviceSharding(topology.devices(slices)[0])
    features = jax.ShapeDtypeStruct((2, 3600, 768), jnp.float32, sharding=place)
    tau = jax.ShapeDtypeStruct((), jnp.float32, sharding=place)
    say(f"affinity, {slices}", ncut_device.affinity.lower(features, tau).compile())
    graph = jax.ShapeDtypeStruct((2, 3600, 3600), jnp.bfloat16, sharding=place)
    painted = jax.ShapeDtypeStruct((2, 3600), np.bool_, sharding=place)
    say(f"cut, {slices}", ncut_device.solve.lower(graph, painted).compile())
