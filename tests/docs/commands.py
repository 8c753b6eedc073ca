"""The shell commands of the documentation: each is at least read by the program that it names.

A command is run where that costs seconds; else its arguments go through the program's own parser,
its config is loaded, and the overrides are applied, so that a flag, key or file that does not exist
is an error. What is not run is listed with the reason by `Checked`.
"""

import argparse
import dataclasses
import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

from absl import flags
from absl.testing import flagsaver

from crate_jax import command_line, main
from crate_jax.config import durations, load, resolve
from crate_jax.models import variants

ROOT = pathlib.Path(__file__).parents[2]
RAN: set[tuple] = set()  # (module, method or dataset)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@dataclasses.dataclass(frozen=True)
class Checked:
    """A command, and whether it was run; if not, why."""

    command: str
    not_run: str = ""


def split(text):
    """The commands of a block: (environment, arguments) each."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            variables = {}
            while re.match(r"[A-Z_]+=", command[0]):
                name, _, value = command.pop(0).partition("=")
                variables[name] = value
            yield variables, command


def check(variables, command):
    """Runs or reads one command.

    Raises:
        Exception: whatever the program says of it.
    """
    text = shlex.join(command)
    match command:
        case ["python", "-m", module, *arguments]:
            return Checked(text, python(module, arguments))
        case ["python", "-c", code]:
            exec(compile(code, text, "exec"), {})
            return Checked(text)
        case ["pip", "install", *arguments]:
            return Checked(text, pip(arguments))
        case [script, *arguments] if script.startswith("launch/"):
            return Checked(text, launch(script, variables, arguments))
        case ["git", "clone", address]:
            assert address == PROJECT["urls"]["Source"]
            return Checked(text, "needs the network")
        case ["cd", folder]:
            assert folder == "crate_jax"
            return Checked(text, "these tests run in a checkout")
        case ["tfds", "build", dataset, "--file_format=array_record", "--data_dir=DATA"]:
            recipes = ("cifar10", "cifar100", "flowers", "pets")
            configs = [load("finetune", recipe) for recipe in recipes]
            assert dataset in {config.data.dataset for config in configs}
            return Checked(text, "needs TensorFlow and the network")
        case ["pytest", *paths]:
            assert all((ROOT / path).exists() for path in paths)
            return Checked(text, "this is pytest")
        case [".ci/run"]:
            assert os.access(ROOT / ".ci/run", os.X_OK)
            return Checked(text, "runs all tests")
        case ["ruff", *_] | ["pre-commit", "install"] | [".", ".venv/bin/activate"]:
            return Checked(text, "another program")
    raise ValueError(f"no test knows the command {text!r}: add it, or a reason, to {__file__}")


def python(module, arguments):
    """Runs or reads `python -m MODULE`; returns why it was not run, or ""."""
    if module in ("crate_jax.main", "crate_jax.probe"):
        absl(module, arguments)
        return "training and probing have tests of their own; flags and config were read"
    if module in ("venv", "sphinx"):
        return "an environment, or the test of the site"
    options = argparse_options(module, arguments)
    extra = runnable(module, options)
    if isinstance(extra, str):
        return extra
    status = importlib.import_module(_file(module)).main([*arguments, *extra])
    assert not status, f"exit status {status}"
    return ""


def runnable(module, options):
    """Arguments that keep a command cheap; or, in words, why it is not run at all."""
    sources = [getattr(options, name, None) for name in ("checkpoint", "source", "inspect")]
    sources = [source for source in sources if source]
    if missing := [source for source in sources if not os.path.exists(source)]:
        return f"{missing[0]} is not here"
    target = getattr(options, "target", None) or ""
    if target.endswith((".pth", ".pth.tar")) and importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    kind = (module, getattr(options, "method", None) or getattr(options, "dataset", None))
    if kind[1] and kind in RAN:
        return "such a command ran on another page"
    RAN.add(kind)
    if module == "crate_jax.score":
        if options.dataset != "scenes":
            return f"{options.dataset} is not here"
        return ["--limit=3", "--samples=10", "--no-random", "--layers=-1"]
    if module == "crate_jax.data.prepare":
        return [] if options.command == "folder" else "ImageNet is not here"
    if module in ("crate_jax", "crate_jax.keys", "crate_jax.segment", "crate_jax.convert"):
        return []
    return "takes too long; its arguments were read"


class _Read(Exception):
    """Carries the options out of a program that has just parsed them."""


def argparse_options(module, arguments):
    """What the program's own parser makes of the arguments."""
    program = importlib.import_module(_file(module))
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, args=None, namespace=None):
        raise _Read(parse(parser, arguments, namespace))

    argparse.ArgumentParser.parse_args = stop
    try:
        program.main()
    except _Read as read:
        options = read.args[0]
    except SystemExit as end:
        raise ValueError(f"python -m {module} {shlex.join(arguments)}: refused") from end
    finally:
        argparse.ArgumentParser.parse_args = parse
    if module.startswith("benchmarks.") and getattr(options, "config", None):
        from benchmarks import train_step

        for name in [options.config] if isinstance(options.config, str) else options.config:
            train_step.load(name)
    return options


def _file(module):
    """A package is run by its `__main__`."""
    found = importlib.util.find_spec(module)
    is_package = found is not None and found.submodule_search_locations is not None
    return f"{module}.__main__" if is_package else module


def absl(module, arguments):
    """The config of `crate_jax.main` or `.probe`: loaded, overridden and resolved."""
    importlib.import_module(module)
    needed = {"crate_jax.main": ("config", "workdir"), "crate_jax.probe": ("config", "checkpoint")}
    argv, saved, before = sys.argv, flagsaver.save_flag_values(flags.FLAGS), flags.FLAGS.is_parsed()
    # ml_collections looks for overrides in sys.argv.
    sys.argv = [module, *command_line.with_packaged_configs(arguments)]
    try:
        rest = main.parse_flags(sys.argv, needed[module])
        config = flags.FLAGS.config
    except SystemExit as end:
        raise ValueError(f"python -m {module} {shlex.join(arguments)}: refused") from end
    finally:
        sys.argv = argv
        flagsaver.restore_flag_values(saved, flags.FLAGS)
        if not before:
            flags.FLAGS.unparse_flags()
    assert rest == [module], f"unexpected arguments {rest[1:]}"
    config = resolve(config)
    variants.from_dict(config.model.to_dict())
    durations(config, 100_000)
    return config


def pip(arguments):
    """Extras and constraint files exist."""
    for word in arguments:
        if extras := re.fullmatch(r"(?:\.|crate-jax)\[([\w,]+)\]", word):
            assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
        elif word.endswith(".lock"):
            assert (ROOT / word).exists()
        else:
            assert word in ("-e", "-c", "."), word
    return "needs the network"


def launch(script, variables, arguments):
    """The script itself, dry; and the command that it would run."""
    done = subprocess.run(
        [ROOT / script, *arguments],
        env=os.environ | variables | {"DRY_RUN": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "crate_jax.main" in done.stdout
    default = re.search(r"^CONFIG=\$\{CONFIG:-(\S+)\}$", (ROOT / script).read_text(), re.MULTILINE)
    config, workdir = variables.get("CONFIG", default[1]), variables["WORKDIR"]
    absl("crate_jax.main", [f"--config={config}", f"--workdir={workdir}", *arguments])
    return "needs accelerators; ran dry"
