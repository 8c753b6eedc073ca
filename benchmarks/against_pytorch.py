# PYTHON_ARGCOMPLETE_OK
"""Training steps of ours and of the authors' PyTorch class, in turns on the same processor cores.

    python -m benchmarks.against_pytorch --checkout=CRATE --size=tiny --batch-size=8

CRATE is a checkout of the authors' repository (its `model/crate.py` needs torch and einops; it is
not ours to ship). Both train CRATE at 224 px with AdamW on random images, on the device that JAX
takes; in float32, or with `--dtype=bfloat16` in bfloat16, which for PyTorch is autocast. The
ratio of a turn is PyTorch's seconds a step by ours; above 1 ours is faster. Other work on the
machine disturbs both: trust the median of several turns, or the processor seconds, which count
that least where both sides have one thread (`OMP_NUM_THREADS=1 taskset -c 0 python -m ...`; waiting
threads of PyTorch's count as busy). `--compile` gives PyTorch torch.compile.
"""

import argparse
import importlib.util
import os
import pathlib
import statistics
import time

from crate_jax import allocator, command_line

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
SIZES = {"tiny": "crate-t16", "small": "crate-s16", "base": "crate-b16", "large": "crate-l16"}


def main():
    parser = command_line.parser("python -m benchmarks.against_pytorch", __doc__)
    parser.add_argument("--checkout", required=True, metavar="DIR", help="of the authors' code")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="default tiny")
    parser.add_argument("--batch-size", type=int, default=8, help="default 8")
    parser.add_argument("--turns", type=int, default=6, help="of each side (default 6)")
    parser.add_argument("--steps", type=int, default=3, help="in a turn (default 3)")
    parser.add_argument("--compile", action="store_true", help="torch.compile for PyTorch")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the computation; bfloat16 is autocast for PyTorch (default float32)",
    )
    a = command_line.parse(parser)
    allocator.keep_freed_memory()  # as every run does, and before JAX is imported; for both sides
    sides = {"ours": our_step(a), "PyTorch": their_step(a)}
    print(_setting(a), flush=True)
    for step in sides.values():
        step()  # compiled, and warm
    ratios = {name: [] for name in CLOCKS}
    for turn in range(a.turns):
        seconds = {name: _seconds(step, a.steps) for name, step in sides.items()}
        for clock, found in ratios.items():
            ours, theirs = (seconds[side][clock] for side in sides)
            found.append(theirs / ours)
            print(
                f"turn {turn + 1}, {clock}: ours {ours:.3f} s a step, PyTorch {theirs:.3f}, "
                f"ratio {found[-1]:.2f}",
                flush=True,
            )
    for clock, found in ratios.items():
        print(
            f"ratio, {clock}, {len(found)} turns: median {statistics.median(found):.2f}, "
            f"{min(found):.2f} to {max(found):.2f}"
        )


def _setting(a: argparse.Namespace) -> str:
    import jax
    import torch

    return (
        f"CRATE-{a.size}, batch {a.batch_size}, {a.dtype}, {_device()}, "
        f"{torch.get_num_threads()} of {os.cpu_count()} processors; jax {jax.__version__}, "
        f"torch {torch.__version__}{', compiled' * a.compile}"
    )


def _device() -> str:
    """PyTorch's name of the device that JAX computes on.

    Raises:
        ValueError: PyTorch cannot compute there.
    """
    import jax
    import torch

    device = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(
            f"benchmarks.against_pytorch: expected a PyTorch that computes on {device}, as JAX "
            "does, got none; install one, or set JAX_PLATFORMS=cpu"
        )
    return device


def _seconds(step, count) -> dict[str, float]:
    """Of a step, by each clock."""
    begin = {name: clock() for name, clock in CLOCKS.items()}
    for _ in range(count):
        step()
    return {name: (clock() - begin[name]) / count for name, clock in CLOCKS.items()}


def our_step(a: argparse.Namespace):
    """A function that takes one training step of ours and waits for it."""
    import jax

    from benchmarks import train_step
    from crate_jax.models import variants
    from crate_jax.training import program, sharding

    config = train_step.of_model(SIZES[a.size], batch_size=a.batch_size, dtype=a.dtype)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    network = variants.from_dict(config.model.to_dict())
    made = program.make(config, network, mesh, lambda _: 1e-4)
    state = made.init(jax.random.key(0))
    batch = train_step.random_batch(a.batch_size, network, mesh)

    def step():
        nonlocal state
        state = jax.block_until_ready(made.step(*state, batch))

    return step


def their_step(a: argparse.Namespace):
    """The same of the authors' class."""
    import torch

    from crate_jax.models import variants

    path = pathlib.Path(a.checkout) / "model" / "crate.py"
    if not path.is_file():
        raise ValueError(f"--checkout: expected a folder with model/crate.py, got {a.checkout}")
    spec = importlib.util.spec_from_file_location("authors_crate", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = getattr(module, f"CRATE_{a.size}")()
    ours = variants.count_parameters(variants.config(SIZES[a.size]))
    if (theirs := sum(p.numel() for p in model.parameters())) != ours:
        raise ValueError(
            f"--checkout: expected a CRATE_{a.size} of {ours:,} parameters, got {theirs:,}; it is "
            "not the network of this package"
        )
    device = _device()
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    images = torch.randn(a.batch_size, 3, 224, 224, device=device)
    labels = torch.randint(0, 1000, (a.batch_size,), device=device)
    run = torch.compile(model) if a.compile else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=a.dtype == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    main()
