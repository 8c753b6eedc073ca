"""What a training step needs in device memory, by count and by the compiler, without running it.

    python -m benchmarks.memory --config=configs/imagenet_b.py --batch-sizes 8 16
    python -m benchmarks.memory --config=configs/imagenet21k_b8.py --remat=full --dtype=float32

Per device, parameters and optimizer state (`state`) and gradients are counted from shapes, exactly.
`work` is what the compiler plans beside the state and the batch (activations and gradients), for
the default backend: a CPU's compiler computes bfloat16 in float32 and fuses other operations than a
GPU's or a TPU's, so that there only the comparison of rows is worth something. Two batch sizes tell
the part that grows: `work an image`.
"""

import argparse
import math

import jax
import jax.numpy as jnp

from benchmarks import train_step
from crate_jax.models import base, variants
from crate_jax.training import optim, sharding
from crate_jax.training import step as steps


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, nargs="+", help="FILE.py or FILE.py:ARGUMENT")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[], help="none: only count")
    parser.add_argument("--remat", choices=("none", "dots", "full"), nargs="+", default=["none"])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--fsdp", type=int, default=1)
    a = parser.parse_args()
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, {a.dtype}, fsdp {a.fsdp}")
    columns = ("parameters", "state GiB", "gradients GiB", "batch", "work GiB", "MiB an image")
    print(f"{'config':30} {'remat':6}" + "".join(f"{name:>15}" for name in columns))
    for name in a.config:
        for remat in a.remat:
            for row in rows(name, remat, a):
                cells = "".join(f"{cell:>15}" for cell in row)
                print(f"{name.removeprefix('configs/'):30} {remat:6}{cells}", flush=True)


def rows(name, remat, a):
    """Cells of the table for one config: counted, then one row a batch size."""
    changes = {"remat": remat, "dtype": a.dtype, "accumulate": a.accumulate, "fsdp": a.fsdp}
    config = train_step.load(name, **changes)
    model_config = variants.from_dict(config.model.to_dict())
    definition, _ = base.split(variants.abstract(model_config, dtype=a.dtype, remat=remat))
    optimizer = optim.optimizer(config.optimizer, lambda _: config.optimizer.learning_rate)

    def init(key):
        params = base.split(variants.build(model_config, key))[1]
        return params, steps.initial(optimizer, params, steps.figure_names(config))

    mesh = sharding.make_mesh(a.fsdp)
    shapes = jax.eval_shape(init, jax.random.key(0))
    places = sharding.state_shardings(mesh, shapes)
    template = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        places,
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes[0]))
    counted = [
        f"{parameters:,}",
        f"{held(template) / 2**30:.3f}",
        f"{held(template[0]) / 2**30:.3f}",
    ]
    if not a.batch_sizes:
        yield [*counted, "", "", ""]
    step = steps.make_step(
        definition, steps.objective(config), optimizer, seed=0, accumulate=a.accumulate
    )
    step = jax.jit(step, donate_argnums=(0, 1), out_shardings=places)
    split, before = sharding.batch_sharding(mesh), None
    for size in a.batch_sizes:
        shape = (size, *model_config.image_size, 3)
        batch = {
            "image": jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=split),
            "label": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=split),
        }
        work = step.lower(*template, batch).compile().memory_analysis().temp_size_in_bytes
        slope = "" if before is None else f"{(work - before[1]) / (size - before[0]) / 2**20:.1f}"
        yield [*counted, size, f"{work / 2**30:.3f}", slope]
        before = size, work


def held(tree):
    """Bytes of a tree on the device that has most of it, which is every device."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


if __name__ == "__main__":
    main()
