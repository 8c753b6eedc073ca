"""`python -m crate_jax.convert`: what it prints, what it refuses, and the export."""

import argparse
import importlib.util
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import crate_jax
from crate_jax.convert import arguments, checkpoints, declare
from crate_jax.convert.__main__ import main
from crate_jax.models import base, variants
from tests.networks import draw


def test_inspect_names_the_family_and_what_is_undeclared(torch, reference_files, capsys):
    assert main(["--inspect", str(reference_files / "crate_mini.pth.tar")]) == 0
    lines = capsys.readouterr().out.splitlines()
    inferred = dict(line.split(maxsplit=1) for line in lines)
    assert inferred["family"] == "crate"
    assert inferred["prefixes"] == "module."
    sizes = [inferred[name] for name in ("width", "depth", "patch", "classes")]
    assert sizes == ["48", "3", "8", "10"]
    assert inferred["undeclared"].startswith("heads: undeclared")
    assert any("epoch, arch, best_acc1, optimizer, scheduler" in line for line in lines)


def test_inspect_what_we_wrote_and_what_is_wrong(reference_files, tmp_path, write, capsys):
    path = tmp_path / "x.safetensors"
    checkpoints.save(checkpoints.read(reference_files / "crate_mae_mini.npz", heads=4), path)
    assert main(["--inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "4 (stored in the file)" in out
    assert "undeclared" not in out
    assert "problem" not in out
    state = {"blocks.0.attn.qkv.weight": np.zeros((3, 1), np.float32)}
    assert main(["--inspect", str(write(state))]) == 0
    assert "cls_token is missing, without which" in capsys.readouterr().out


def test_inspect_reads_pooling_off_timms_names(reference, write, capsys):
    state, _ = reference("dino_vit_mini")
    timm = {k.replace("norm.", "fc_norm.") if k[:5] == "norm." else k: v for k, v in state.items()}
    assert main(["--inspect", str(write(timm))]) == 0
    out = capsys.readouterr().out
    assert "pool: undeclared, and the last norm's name (fc_norm) tells only" in out
    assert "pool mean" not in " ".join(out.split())
    assert "problem" not in out


def test_must_show(torch, reference_files, reference, tmp_path, capsys, run, error):
    """The issue's own sequence: in with heads declared, the reference logits, and back."""
    source, x = reference_files / "crate_mini.pth.tar", tmp_path / "X.safetensors"
    assert main([f"--source={source}", "--heads=4", f"--target={x}"]) == 0
    out = capsys.readouterr().out
    assert "heads = 4 (declared)" in out
    assert "32,650 parameters in the authors' PyTorch names" in out
    _, arrays = reference("crate_mini")
    logits, _ = run(crate_jax.load(x), arrays["images"].transpose(0, 2, 3, 1))
    assert error(logits, arrays["logits"]) < 1e-5
    back = tmp_path / "back.pth.tar"
    assert main([f"--source={x}", f"--target={back}"]) == 0
    theirs = torch.load(source, weights_only=True)["state_dict"]
    ours = torch.load(back, weights_only=True)["state_dict"]
    assert {f"module.{k}" for k in ours} == set(theirs)
    assert all(torch.equal(ours[k.removeprefix("module.")], v) for k, v in theirs.items())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--source=SOURCE", "--target=x.safetensors"], "heads: undeclared"),
        (["--source=SOURCE", "--heads=4", "--target=x.onnx"], "expected a name ending in"),
        (["--source=absent.npz", "--target=x.npz"], "found no such file"),
        (["--source=SOURCE", "--target=x.npz", "--published=crate"], "published"),
        (["--source=", "--target=x.npz"], "expected a file, a run's directory or a name, got noth"),
        (["--inspect="], "expected a file, a run's directory or a name, got nothing"),
        (["--source=~nouser/x.npz", "--target=x.npz"], "~nouser/x.npz: expected a checkpoint"),
        (["--source=absent.npz", "--target=/dev/null/x.npz"], "got no folder at /dev/null"),
        (["--source=absent.npz", "--target=PIPE"], "PIPE: expected a file, or a new name"),
    ],
)
def test_faults_are_one_message_and_status_2(argv, message, reference_files, tmp_path, capsys):
    source = str(reference_files / "crate_mini.npz")
    os.mkfifo(tmp_path / "PIPE.npz")
    argv = [a.replace("SOURCE", source).replace("PIPE", f"{tmp_path}/PIPE.npz") for a in argv]
    message = message.replace("PIPE", f"{tmp_path}/PIPE.npz")
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert not captured.out


@pytest.mark.parametrize(
    "argv", [[], ["--source=a"], ["--inspect=a", "--target=b"], ["--source=a", "--inspect=b"]]
)
def test_usage(argv):
    with pytest.raises(SystemExit):
        main(argv)


@pytest.mark.parametrize("text", ["1,2,3", "0", "24x", "big"])
def test_a_size_is_one_or_two_numbers(text, capsys):
    with pytest.raises(SystemExit):
        main(["--source=a", "--target=b.npz", f"--image-size={text}"])
    assert f"HEIGHTxWIDTH such as 320x480, got {text!r}" in capsys.readouterr().err


def test_every_declaration_of_the_command_line_is_one_of_load():
    """`segment` and `score` take the same; what shapes do not tell must not be lost on the way."""
    parser = argparse.ArgumentParser()
    arguments.add_declarations(parser.add_argument)
    arguments.add_choices(parser.add_argument)
    argv = ["--heads=3", "--pool=mean", "--image-size=24x40", "--lambd=0.5", "--step-size=0.3"]
    argv += ["--epsilon=1e-6", "--head-epsilon=1e-6", "--nonlinearity=ista", "--positions=dino"]
    argv += ["--published=crate-demo", "--entry=teacher", "--step=7", "--mean=0.5", "--std=1,2,3"]
    given = arguments.declared(parser.parse_args(argv))
    assert len(given) == len(argv)
    assert given["image_size"] == (24, 40)
    assert (given["mean"], given["std"]) == ((0.5, 0.5, 0.5), (1.0, 2.0, 3.0))
    assert set(given) < {*declare.DECLARABLE, *checkpoints.OPTIONS}
    assert arguments.declared(parser.parse_args([])) == {}


def test_help_says_what_needs_pytorch(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "need the torch extra" in capsys.readouterr().out


def test_image_size_and_pool_arguments(write, crate_state, tmp_path):
    source, target = write(crate_state(patches=15)), tmp_path / "y.npz"
    argv = ["--heads=3", "--image_size=24,40", "--pool=mean", "--lambd=0.5", "--drop-head"]
    assert main([f"--source={source}", f"--target={target}", *argv]) == 0
    config = crate_jax.load(target).config
    assert (config.image_size, config.pool, config.lambd) == ((24, 40), "mean", 0.5)
    assert config.classes == 0


@pytest.mark.parametrize("name", ["crate-testing", "vit-testing"])
def test_stablehlo(name, tmp_path, run, error, capsys):
    """Logits and [CLS] maps from a file, at batch sizes that it was not traced with."""
    config = variants.config(name, image_size=(16, 32), depth=1)
    definition, shapes = base.split(variants.abstract(config))
    draw = np.random.default_rng(0).normal
    weights = jax.tree.map(lambda s: jax.numpy.asarray(draw(size=s.shape) / 3, "float32"), shapes)
    model = base.merge(definition, weights)
    checkpoints.save(model, tmp_path / "x.safetensors")
    target = tmp_path / "x.stablehlo"
    assert main([f"--source={tmp_path / 'x.safetensors'}", f"--target={target}"]) == 0
    assert "re-loaded, largest relative error" in capsys.readouterr().out
    exported = jax.export.deserialize(bytearray(target.read_bytes()))
    images = draw(size=(5, 16, 32, 3)).astype(np.float32)
    out = exported.call(images)
    logits, captured = run(model, images, capture=-1)
    assert error(out["logits"], np.asarray(logits)) < 1e-5
    assert out["cls_maps"].shape == (5, 3, 8)
    scores = np.einsum(
        "bhd,bnhd->bhn", captured["query"][0][:, 0], captured["key"][0][:, 1:]
    ) / np.sqrt(8)
    maps = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    assert error(out["cls_maps"], maps) < 1e-5


def test_exports_of_nan_are_not_verified(tmp_path, capsys):
    config = variants.config("crate-testing", image_size=(16, 16), depth=1)
    model = draw(config)
    model.head.bias[...] = jax.numpy.full(10, 3e38)
    model.head.kernel[...] = jax.numpy.full(model.head.kernel.shape, 3e38)
    checkpoints.save(model, tmp_path / "x.safetensors")
    target = tmp_path / "x.stablehlo"
    assert main([f"--source={tmp_path / 'x.safetensors'}", f"--target={target}"]) == 2
    assert "expected finite outputs, got NaN or infinity in logits" in capsys.readouterr().err
    assert not target.exists()


NONE = ("--epsilon=nan", "--epsilon=1e-60", "--lambd=nan", "--lambd=1e39", "--step-size=inf")
NONE += ("--std=0", "--std=1e-300", "--std=58.395,57.12,57.375", "--mean=1e39", "--mean=123.675")


@pytest.mark.parametrize("given", NONE)
def test_numbers_that_are_none(given, write, crate_state, tmp_path, capsys):
    argv = [f"--source={write(crate_state())}", "--heads=3", f"--target={tmp_path / 'y.npz'}"]
    assert main([*argv, given]) == 2
    assert "expected a finite number" in capsys.readouterr().err
    assert not (tmp_path / "y.npz").exists()


def test_what_a_killed_conversion_left_is_removed(write, crate_state, tmp_path):
    ours, theirs = tmp_path / ".y.npz.0123abcd.partial", tmp_path / ".movie.mkv.partial"
    ours.write_text("half")
    theirs.write_text("somebody's")
    argv = [f"--source={write(crate_state())}", "--heads=3", f"--target={tmp_path / 'y.npz'}"]
    assert main(argv) == 0
    assert not ours.exists()
    assert theirs.exists()


def test_a_full_disk_is_one_line(write, crate_state, tmp_path):
    """A limit on the size of files stands in for it, in a process of its own."""
    code = (
        "import resource, signal, sys; from crate_jax.convert.__main__ import main; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
        "print([main([*sys.argv[2:], '--target=' + t]) for t in sys.argv[1].split(',')])"
    )
    suffixes = [".npz", ".safetensors"]
    if importlib.util.find_spec("torch"):
        suffixes.append(".pth")
    targets = [str(tmp_path / "out" / f"y{suffix}") for suffix in suffixes]
    argv = [",".join(targets), f"--source={write(crate_state())}", "--heads=3"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.stdout == f"{[2 for _ in targets]}\n", done.stderr
    for target, line in zip(targets, done.stderr.splitlines(), strict=True):
        assert line.startswith(f"error: {target}: cannot be written")
    assert not list((tmp_path / "out").iterdir())


def test_import_is_quick_and_brings_in_no_framework():
    code = (
        "import sys, crate_jax; crate_jax.load, crate_jax.__version__; "
        "print(*[m for m in ('torch', 'tensorflow', 'jax') if m in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 3
    assert not done.stdout.strip()
