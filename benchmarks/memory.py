# PYTHON_ARGCOMPLETE_OK
"""What a training step needs in device memory, counted from shapes; nothing is run.

    python -m benchmarks.memory --config configs/imagenet_b.py configs/imagenet_l.py
    python -m benchmarks.memory --config configs/imagenet21k_b8.py --dtype float32 --remat none full
    python -m benchmarks.memory --config configs/imagenet_b.py --dtype float32 --compile 8 16

`state` is parameters and optimizer state and `gradients` what their name says, both on each of
`--fsdp` devices; `kept` is what the forward pass keeps for the backward pass, for an image: what
`jax.vjp` hands over. A step needs about state + gradients + kept x the images that a device holds
at once, and room to work in. The compiler may keep less, by computing cheap things twice, or more,
for its own ends: `--compile` shows its plan for two batch sizes (`work` is all but state and batch)
for the default backend. A CPU's compiler undoes rematerialisation and computes bfloat16 in float32,
so that there only `--remat none --dtype float32` says anything.
"""

import math

from benchmarks import train_step
from crate_jax import command_line

MIB, GIB = 2**20, 2**30


def main():
    parser = command_line.parser("python -m benchmarks.memory", __doc__)
    parser.add_argument(
        "--config", required=True, nargs="+", metavar=command_line.CONFIG, help="whose step"
    )
    remats = ("none", "dots", "full")
    parser.add_argument(
        "--remat", choices=remats, nargs="+", default=remats, help="config.remat (default: all)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="bfloat16",
        help="of the computation (default bfloat16)",
    )
    parser.add_argument("--fsdp", type=int, default=1, help="devices that the state is split over")
    parser.add_argument(
        "--compile", type=int, nargs=2, metavar="BATCH", help="two batch sizes to compile for"
    )
    a = command_line.parse(parser)
    head = f"{'config':28}{'parameters':>12}{'state':>10}{'gradients':>10}"
    print(f"{head}   kept an image, {a.dtype}")
    for name in a.config:
        config = train_step.load(name, dtype=a.dtype)
        row = counted(config, a.fsdp)
        kept = [
            f"{remat} {kept_an_image(train_step.load(name, dtype=a.dtype, remat=remat)) / MIB:.1f}"
            for remat in a.remat
        ]
        print(
            f"{name.removeprefix('configs/'):28}{row['parameters']:>12,}"
            f"{row['state'] / GIB:>6.2f} GiB{row['gradients'] / GIB:>6.2f} GiB   "
            + ", ".join(kept)
            + " MiB",
            flush=True,
        )
        for remat in a.remat if a.compile else ():
            first, second = a.compile
            work = [
                planned(train_step.load(name, dtype=a.dtype, remat=remat), size)
                for size in a.compile
            ]
            slope = (work[1] - work[0]) / (second - first)
            import jax

            print(
                f"    compiled for {jax.devices()[0].device_kind}, remat {remat}: work "
                f"{work[0] / GIB:.2f} GiB at {first}, {work[1] / GIB:.2f} GiB at {second}, "
                f"{slope / MIB:.1f} MiB an image",
                flush=True,
            )


def counted(config, fsdp=1):
    """{"parameters": numbers in all, "state" and "gradients": bytes on a device}."""
    import jax

    from crate_jax.training import sharding

    shapes = _program(config).shapes
    # A mesh without devices: splitting is arithmetic.
    mesh = jax.sharding.AbstractMesh((1, fsdp), ("data", "fsdp"))

    def held(tree):
        places = jax.tree.leaves(sharding.state_shardings(mesh, tree))
        return sum(
            leaf.dtype.itemsize * math.prod(place.shard_shape(leaf.shape))
            for leaf, place in zip(jax.tree.leaves(tree), places, strict=True)
        )

    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes[0]))
    return {"parameters": parameters, "state": held(shapes), "gradients": held(shapes[0])}


def kept_an_image(config):
    """Bytes that one more image of a batch makes the forward pass keep."""
    import jax

    from crate_jax.models import base, variants
    from crate_jax.training.step import objective

    model_config = variants.from_dict(config.model.to_dict())
    abstract = variants.abstract(model_config, dtype=config.dtype, remat=config.remat)
    definition, params = base.split(abstract)
    of_batch = objective(config)

    def kept(size):
        def backward(params, batch):
            def loss(params):
                return of_batch(base.merge(definition, params), batch, jax.random.key(0))[0]

            return jax.vjp(loss, params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(backward, params, _batch(model_config, size)))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    return kept(2) - kept(1)


def planned(config, size):
    """Bytes that the compiler plans for a step beside its arguments, on one device."""

    from crate_jax.models import variants

    model_config = variants.from_dict(config.model.to_dict())
    made = _program(config)
    compiled = made.step.lower(*made.shapes, _batch(model_config, size)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def _program(config):
    """The step of a run, on one device."""
    import jax

    from crate_jax.models import variants
    from crate_jax.training import program, sharding

    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    model_config = variants.from_dict(config.model.to_dict())
    return program.make(config, model_config, mesh, lambda _: config.optimizer.learning_rate)


def _batch(model_config, size):
    import jax
    import jax.numpy as jnp

    return {
        "image": jax.ShapeDtypeStruct((size, *model_config.image_size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }


if __name__ == "__main__":
    main()
