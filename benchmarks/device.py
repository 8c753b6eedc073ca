# PYTHON_ARGCOMPLETE_OK
"""Whether a device computes rightly, and how fast it multiplies: before anything else is measured.

    python -m benchmarks.device
    python -m benchmarks.device --size=512       # smaller products, for a CPU

Attention by every backend that the device has, and small networks: outputs and gradients on the
device against plain attention in float32 on the host's CPU, relative to their norms. Products in
float32 are asked for in full (a TPU rounds them to bfloat16 otherwise). Then the rate of products
of large bfloat16 matrices, the ceiling for any MFU. The exit status is 1 where something is wrong.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from crate_jax import command_line

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
SHAPES = ((2, 197, 3, 64), (2, 785, 2, 64), (1, 301, 2, 48))  # images, tokens, heads, head size
NETWORKS = ("crate-testing", "crate-alpha-testing", "vit-testing")
# Roundings of several layers add up.
LAYERS = 3
DRAWS = 5  # of a network's weights


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = command_line.parser("python -m benchmarks.device", __doc__)
    parser.add_argument("--size", type=int, default=8192, help="of the matrices (default 8192)")
    args = command_line.parse(parser, argv)
    return command_line.run(lambda: _work(args.size))


def _work(size: int) -> int:
    import jax

    from benchmarks import train_step

    print(train_step.device_line(), flush=True)
    wrong = False
    with jax.default_matmul_precision("highest"):
        for what, errors, tolerance in (*attention_errors(), *network_errors()):
            right = all(error < tolerance for error in errors)
            wrong |= not right
            off = ", gradient ".join(f"{error:.1e}" for error in errors)
            said = "" if right else f"; WRONG: expected below {tolerance:g}"
            print(f"{what:44} off by {off}{said}", flush=True)
    print(products_line(size), flush=True)
    return int(wrong)


def attention_errors() -> Iterator[tuple[str, list[float], float]]:
    """(Backend, dtype and shape, errors of output and gradient, their bound)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from crate_jax.models import backends

    host, device = jax.devices("cpu")[0], jax.devices()[0]

    def both(backend: Any) -> Callable:
        def run(w, cotangent):
            out, back = jax.vjp(lambda w: backends.attend(w, w, w, backend), w)
            return out, back(cotangent)[0]

        return jax.jit(run)

    for dtype, tolerance in TOLERANCE.items():
        for shape in SHAPES:
            drawn = np.random.default_rng(0).normal(size=(2, *shape)).astype(jnp.dtype(dtype))
            want = both("xla")(*jax.device_put(drawn.astype(np.float32), host))
            for backend in ("xla", "cudnn", "pallas"):
                try:
                    backends.choose(
                        backend,
                        tokens=shape[1],
                        head_dim=shape[3],
                        dtype=jnp.dtype(dtype),
                        tied=True,
                        platform=device.platform,
                    )
                except ValueError:
                    continue
                found = both(backend)(*jax.device_put(drawn, device))
                yield f"attention {backend} {dtype} {shape}", _off(found, want), tolerance


def network_errors() -> Iterator[tuple[str, list[float], float]]:
    """The same of small networks, unrolled and as a loop: logits, and gradients together.

    Medians over draws of the weights: in one of ten a ReLU that bfloat16 turns on or off moves the
    gradient by 5 to 10 %, and the others are 1 % off.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from crate_jax.models import base, variants

    host, device = jax.devices("cpu")[0], jax.devices()[0]
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)

    def both(config, **computation) -> Callable:
        definition, _ = base.split(variants.abstract(config, **computation))

        def loss(params, images):
            logits = base.forward(definition)(params, images)[0].astype(jnp.float32)
            return jnp.mean(logits**2), logits

        def run(params, images):
            gradient, logits = jax.grad(loss, has_aux=True)(params, images)
            return logits, jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(gradient)])

        return jax.jit(run)

    for name in NETWORKS:
        config = variants.config(name, image_size=(40, 40))
        with jax.default_device(host):
            draws = [
                base.split(variants.build(config, jax.random.key(seed)))[1] for seed in range(DRAWS)
            ]
        plain = both(config)
        wanted = [plain(*jax.device_put((params, images), host)) for params in draws]
        for dtype, tolerance in TOLERANCE.items():
            for scan in (False, True):
                run = both(config, dtype=jnp.dtype(dtype), scan=scan)
                off = [
                    _off(run(*jax.device_put((params, images), device)), want)
                    for params, want in zip(draws, wanted, strict=True)
                ]
                what = f"{name} {dtype}{' as a loop' * scan}"
                yield what, np.median(off, axis=0).tolist(), LAYERS * tolerance


def _off(found: Sequence[Any], want: Sequence[Any]) -> list[float]:
    import numpy as np

    pairs = [
        [np.asarray(array, np.float64) for array in pair] for pair in zip(found, want, strict=True)
    ]
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs]


def products_line(size: int) -> str:
    """How fast the default device multiplies."""
    import jax
    import jax.numpy as jnp

    from crate_jax.training import throughput

    matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    multiply = jax.jit(lambda a, b: a @ b)
    seconds = []
    for _ in range(11):
        begin = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        seconds.append(time.perf_counter() - begin)
    rate = 2 * size**3 / statistics.median(seconds[1:])
    peak = throughput.peak_flops(jax.devices()[0])
    share = f", {100 * rate / peak:.0f} % of its datasheet's" if peak else ""
    return f"products of {size} x {size} in bfloat16: {rate / 1e12:,.2f} TFLOP/s a device{share}"


if __name__ == "__main__":
    sys.exit(main())
