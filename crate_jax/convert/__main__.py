# PYTHON_ARGCOMPLETE_OK
"""Convert a checkpoint, or say what one is.

python -m crate_jax.convert --source=crate_mini.pth.tar --heads=4 --target=crate_mini.safetensors
python -m crate_jax.convert --source=RUN_DIRECTORY --target=model.pth
python -m crate_jax.convert --source=crate-demo.pth --published=crate-demo --target=demo.safetensors
python -m crate_jax.convert --source=model.safetensors --target=model.stablehlo
python -m crate_jax.convert --source=RUN_DIRECTORY --target=kept.safetensors --with-run
python -m crate_jax.convert --inspect=FILE
"""

import argparse
import functools
import os
import pathlib
import sys

from crate_jax import command_line, files
from crate_jax.convert import arguments, formats

_FORMATS = """\
sources   a run's directory, .safetensors, .npz; .pth and .pth.tar need the torch extra
          (pip install 'crate-jax[torch]')
targets   .safetensors  the authors' names and layout, with the declaration in its metadata
          .npz          the same; CRATE-alpha in its authors' JAX names
          .pth          a bare state dict                       (needs the torch extra)
          .pth.tar      {'state_dict': ...}, without prefixes   (needs the torch extra)
          .stablehlo    jax.export: logits, features and [CLS] maps, any batch size
PyTorch targets load into the authors' classes with strict=True. Tensors keep the dtype of the
source. .pth and .pth.tar carry no declaration: give it again when you read them.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_line.parser("python -m crate_jax.convert", __doc__, _FORMATS)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--source", metavar="PATH", help="checkpoint file, or a run's directory")
    what.add_argument("--inspect", metavar="PATH", help="say what a file is, convert nothing")
    p.add_argument("--target", metavar="FILE", help="file to write; its suffix says the format")
    d = p.add_argument_group("declarations: what tensor shapes do not tell")
    arguments.add_declarations(d.add_argument)
    o = p.add_argument_group("choices")
    arguments.add_choices(o.add_argument)
    o.add_argument(
        "--drop-head", "--drop_head", action="store_true", help="leave the head out, to fine-tune"
    )
    o.add_argument(
        "--with-run",
        "--with_run",
        action="store_true",
        help="of a run's directory: config, seed, training curve and scores go into the "
        "metadata too; prints the file's SHA-256",
    )
    return p


def main(argv: list[str] | None = None) -> int:
    """Converts or inspects; returns the exit status."""
    p = parser()
    args = command_line.parse(p, argv)
    if args.inspect is None and args.target is None:
        p.error("--source needs --target")
    if args.inspect is not None and args.target is not None:
        p.error("--inspect converts nothing; use --source with --target")
    return command_line.run(functools.partial(_work, args))


def _work(args: argparse.Namespace) -> int:
    if args.inspect is not None:
        from crate_jax.convert import inspection

        print(inspection.inspect(args.inspect))
    else:
        declared = arguments.declared(args)
        choices = {"drop_head": args.drop_head, "with_run": args.with_run}
        print(convert(args.source, args.target, **choices, **declared))
    return 0


def convert(source: str, target: str, with_run: bool = False, **declared) -> str:
    """Reads, writes, and says what was done; see `checkpoints.load` for the declarations."""
    from crate_jax.convert import checkpoints, declare, run_directory, stablehlo, weights

    target = os.path.expanduser(target)
    exporting = target.endswith(stablehlo.SUFFIX)
    if not exporting:
        formats.suffix(target)  # a wrong suffix is said before gigabytes are read
    if with_run and not target.endswith((".safetensors", ".npz")):
        raise ValueError(
            f"--with-run: expected a target in .safetensors or .npz, which have metadata, got "
            f"{target}"
        )
    files.remove_partial([files.destination(target)])  # of a conversion that was killed
    checkpoint = checkpoints.read(source, **declared)
    config = checkpoint.config
    if with_run:
        if checkpoint.step is None:
            raise ValueError(f"--with-run: expected a run's directory as source, got {source}")
        checkpoint.run = run_directory.record(os.path.expanduser(source), checkpoint.step)
    lines = [f"{checkpoint.source}: {weights.describe(config)}"]
    for name in declare.DECLARABLE:
        if hasattr(config, name):
            lines.append(f"  {name} = {getattr(config, name)} ({checkpoint.origin[name]})")
    lines += [f"  {note}" for note in checkpoint.notes]
    if exporting:
        model = weights.build(checkpoint.params, config)
        error = stablehlo.export(model, target)
        lines.append(f"{target}: written, re-loaded, largest relative error {error:.1e}")
    else:
        checkpoints.save(checkpoint, target)
        count = sum(x.size for x in checkpoint.params.values())
        naming = checkpoints.layout_of(config, target).naming
        names = "the authors' JAX names" if naming == "flax" else "the authors' PyTorch names"
        lines.append(f"{target}: written, {count:,} parameters in {names}")
        if with_run:
            lines.append(f"  SHA-256 {run_directory.checksum(pathlib.Path(target))}")
        epsilon = getattr(config, "head_epsilon", 1e-5)
        if naming == "pytorch" and epsilon != 1e-5:
            lines.append(
                f"  note: this head's LayerNorm has epsilon {epsilon}; the authors' PyTorch class "
                "has 1e-5"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
