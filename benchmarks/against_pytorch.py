# PYTHON_ARGCOMPLETE_OK
"""Training steps of ours and of the authors' PyTorch class, in turns on the same processor cores.

    python -m benchmarks.against_pytorch --checkout=CRATE --size=tiny --batch-size=8

CRATE is a checkout of the authors' repository (its `model/crate.py` needs torch and einops; it is
not ours to ship). Both train CRATE at 224 px with AdamW in float32 on the same random images. The
ratio of a turn is PyTorch's seconds a step by ours; above 1 ours is faster. Other work on the
machine disturbs both: trust the median of several turns. `--compile` gives PyTorch torch.compile.
"""

import argparse
import importlib.util
import pathlib
import statistics
import time

from crate_jax import command_line

SIZES = {"tiny": "crate-t16", "small": "crate-s16", "base": "crate-b16", "large": "crate-l16"}


def main():
    parser = command_line.parser("python -m benchmarks.against_pytorch", __doc__)
    parser.add_argument("--checkout", required=True, metavar="DIR", help="of the authors' code")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="default tiny")
    parser.add_argument("--batch-size", type=int, default=8, help="default 8")
    parser.add_argument("--turns", type=int, default=6, help="of each side (default 6)")
    parser.add_argument("--steps", type=int, default=3, help="in a turn (default 3)")
    parser.add_argument("--compile", action="store_true", help="torch.compile for PyTorch")
    a = command_line.parse(parser)
    sides = {"ours": ours(a), "PyTorch": theirs(a)}
    for step in sides.values():
        step()  # compiled, and warm
    ratios = []
    for turn in range(a.turns):
        seconds = {name: _seconds(step, a.steps) for name, step in sides.items()}
        ratios.append(seconds["PyTorch"] / seconds["ours"])
        print(
            f"turn {turn + 1}: ours {seconds['ours']:.3f} s a step, PyTorch "
            f"{seconds['PyTorch']:.3f}, ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(
        f"ratio, {len(ratios)} turns: median {statistics.median(ratios):.2f}, "
        f"{min(ratios):.2f} to {max(ratios):.2f}"
    )


def _seconds(step, count) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - begin) / count


def ours(a: argparse.Namespace):
    """A function that takes one training step of ours and waits for it."""
    import jax

    from benchmarks import train_step
    from crate_jax.models import variants
    from crate_jax.training import program, sharding

    config = train_step.of_model(SIZES[a.size], batch_size=a.batch_size)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    network = variants.from_dict(config.model.to_dict())
    made = program.make(config, network, mesh, lambda _: 1e-4)
    state = made.init(jax.random.key(0))
    batch = train_step.random_batch(a.batch_size, network, mesh)

    def step():
        nonlocal state
        state = jax.block_until_ready(made.step(*state, batch))

    return step


def theirs(a: argparse.Namespace):
    """The same of the authors' class."""
    import torch

    path = pathlib.Path(a.checkout) / "model" / "crate.py"
    if not path.is_file():
        raise ValueError(f"--checkout: expected a folder with model/crate.py, got {a.checkout}")
    spec = importlib.util.spec_from_file_location("authors_crate", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = getattr(module, f"CRATE_{a.size}")()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    images = torch.randn(a.batch_size, 3, 224, 224)
    labels = torch.randint(0, 1000, (a.batch_size,))
    run = torch.compile(model) if a.compile else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(run(images), labels).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
