# PYTHON_ARGCOMPLETE_OK
"""Convert a checkpoint, or say what one is.

python -m crate_jax.convert --source=crate_mini.pth.tar --heads=4 --target=crate_mini.safetensors
python -m crate_jax.convert --source=RUN_DIRECTORY --target=model.pth
python -m crate_jax.convert --source=crate-demo.pth --published=crate-demo --target=demo.safetensors
python -m crate_jax.convert --source=model.safetensors --target=model.stablehlo
python -m crate_jax.convert --inspect=FILE
"""

import argparse
import sys

from crate_jax import command_line
from crate_jax.convert import files
from crate_jax.convert.published import PUBLISHED

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
    d.add_argument("--heads", type=int, help="number of heads")
    d.add_argument("--pool", choices=("cls", "mean"))
    d.add_argument(
        "--image-size",
        "--image_size",
        type=_image_size,
        metavar="SIZE|HEIGHT,WIDTH",
        help="of the positions where their number fits; else they are resampled to it",
    )
    d.add_argument("--lambd", type=float, help="lambda of ISTA, where it is not the code's default")
    d.add_argument("--step-size", "--step_size", type=float, help="eta of ISTA")
    d.add_argument("--epsilon", type=float, help="of the LayerNorms in the layers")
    d.add_argument("--head-epsilon", "--head_epsilon", type=float, help="CRATE-alpha's last norm")
    d.add_argument("--nonlinearity", choices=("ista", "ista-soft-threshold"))
    d.add_argument("--positions", choices=("size", "dino", "notebook"), help="rule of resampling")
    d.add_argument("--published", metavar="NAME", help=f"a published file: {', '.join(PUBLISHED)}")
    o = p.add_argument_group("choices")
    o.add_argument("--entry", help="which network of a file: teacher, student, ...")
    o.add_argument("--step", type=int, help="which step of a run; the newest by default")
    o.add_argument(
        "--drop-head", "--drop_head", action="store_true", help="leave the head out, to fine-tune"
    )
    return p


def _image_size(text: str) -> int | tuple[int, int]:
    try:
        sizes = tuple(int(part) for part in text.replace("x", ",").split(","))
        return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])
    except (ValueError, IndexError) as error:
        raise argparse.ArgumentTypeError(
            f"expected an integer or HEIGHT,WIDTH, got {text!r}"
        ) from error


def main(argv: list[str] | None = None) -> int:
    """Converts or inspects; a user's error is one line on stderr and exit status 2."""
    p = parser()
    arguments = vars(command_line.parse(p, argv))
    source, target = arguments.pop("source"), arguments.pop("target")
    inspected = arguments.pop("inspect")
    if inspected is None and target is None:
        p.error("--source needs --target")
    if inspected is not None and target is not None:
        p.error("--inspect converts nothing; use --source with --target")
    try:
        if inspected is not None:
            from crate_jax.convert import inspection

            print(inspection.inspect(inspected))
        else:
            print(convert(source, target, **arguments))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def convert(source: str, target: str, **declared) -> str:
    """Reads, writes, and says what was done; see `checkpoints.load` for the declarations."""
    from crate_jax.convert import checkpoints, declare, stablehlo, weights

    exporting = target.endswith(stablehlo.SUFFIX)
    if not exporting:
        files.suffix(target)  # a wrong suffix is said before gigabytes are read
    checkpoint = checkpoints.read(source, **declared)
    config = checkpoint.config
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
        naming = checkpoints.naming_of(config, target)
        names = "the authors' JAX names" if naming == "flax" else "the authors' PyTorch names"
        lines.append(f"{target}: written, {count:,} parameters in {names}")
        if naming == "pytorch" and getattr(config, "head_epsilon", 1e-5) != 1e-5:
            lines.append(
                f"  note: this head's LayerNorm has epsilon {config.head_epsilon}; the authors' "
                "PyTorch class has 1e-5"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
