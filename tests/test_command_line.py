"""Every command: --help, --version, and completion as the shells drive it."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from crate_jax import command_line, config, keys, main
from crate_jax.models import variants

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = [f"crate_jax.{name}" for name in command_line.COMMANDS] + [
    f"benchmarks.{path.stem}"
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if '\nif __name__ == "__main__":' in path.read_text()
]
COMMANDS += [f"benchmarks.{path.parent.name}" for path in ROOT.glob("benchmarks/*/__main__.py")]
HEAVY = ("jax", "flax", "grain", "tensorflow", "torch", "orbax", "matplotlib", "scipy.io")


def run(*arguments, cwd=ROOT, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **variables}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


def complete(typed, cwd):
    """What the shell gets for a line, by argcomplete's protocol: the answer is on descriptor 8."""
    module = typed.split()[2]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_ARGCOMPLETE": "3",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": typed,
        "COMP_POINT": str(len(typed)),
    }
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m {module} 8>&1 9>/dev/null 1>/dev/null 2>&1'],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    return set(filter(None, done.stdout.split("\013")))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_imports_nothing_heavy(command):
    done = run("-X", "importtime", "-m", command, "--help")
    assert done.returncode == 0, done.stderr[-2000:]
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert not imported & set(HEAVY)
    assert re.search(rf"^ *python -m {re.escape(command)}( +\S|$)", done.stdout, re.MULTILINE)
    assert "--version" in done.stdout
    assert not re.search(r"^  --?[\w-]+( [A-Z_]+)?$\n  -", done.stdout, re.M), "option without help"


@pytest.mark.parametrize("command", ["crate_jax", "crate_jax.main", "crate_jax.score"])
def test_version(command):
    from crate_jax import __version__

    done = run("-m", command, "--version")
    assert (done.returncode, done.stdout) == (0, f"crate_jax {__version__}\n")


def test_the_package_lists_its_commands():
    listed = run("-m", "crate_jax").stdout
    for name in command_line.COMMANDS:
        assert f"python -m crate_jax.{name} " in listed
        assert command_line.COMMANDS[name] in listed
    runnable = {
        ".".join(path.relative_to(ROOT / "crate_jax").with_suffix("").parts).removesuffix(
            ".__main__"
        )
        for path in (ROOT / "crate_jax").rglob("*.py")
        if '\nif __name__ == "__main__":' in path.read_text()
    }
    assert runnable - {"__main__"} == set(command_line.COMMANDS)


def test_main_says_what_is_wrong_in_one_line(tmp_path):
    done = run("-m", "crate_jax.main", "--config=nope.py", "--workdir=x", cwd=tmp_path)
    assert done.returncode == 2
    assert "found none at 'nope.py'; the package has configs/" in done.stderr
    assert "Traceback" not in done.stderr
    assert "python -m crate_jax.main --help" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workdir=x"], "expected --config, got none"),
        (["--config=configs/scenes_tiny.py", "--workdir="], "expected --workdir, got none"),
        (["--config=configs/scenes_tiny.py", "--workdir=x", "y"], "expected only flags, got y"),
        (["--confg=x", "--workdir=x"], "Did you mean: config"),
        *(
            (["--config=configs/scenes_tiny.py", "--workdir=x", f"{key}=3"], f"unknown key {key} (")
            for key in (
                *("--config.optimizer.name.x", "--config.data.name[0]", "--config.data[name]"),
                *("--config.model.image_size[5]", "--config.model.image_size[x]"),
            )
        ),
        (["--config=configs/imagenet_q.py", "--workdir=x"], "expected one of t, s, b, l, got 'q'"),
        (["--config=configs/finetune.py:model=crate-b7", "--workdir=x"], "got 'crate-b7'"),
    ],
)
def test_flags_of_main_that_are_refused(arguments, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main", *command_line.with_packaged_configs(arguments)])
    saved, parsed = flagsaver.save_flag_values(flags.FLAGS), flags.FLAGS.is_parsed()
    try:
        with pytest.raises(ValueError) as refused:
            main.parse_flags(sys.argv, ("config", "workdir"))
    finally:
        flagsaver.restore_flag_values(saved, flags.FLAGS)
        if not parsed:
            flags.FLAGS.unparse_flags()
    assert said in str(refused.value)
    assert "Traceback" not in str(refused.value)
    assert "python -m crate_jax.main --help" in str(refused.value) or "unknown key" in said


def failing(error):
    def command():
        print("begun")
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("size: expected at least 1, got 0"), 2, "error: size: expected at least 1"),
        (FileNotFoundError(2, "No such file or directory", "x"), 2, "error: [Errno 2] No such"),
        (FloatingPointError("features: NaN"), 2, "error: features: NaN"),
        (ImportError("extra torch is needed"), 2, "error: extra torch"),
        (ZeroDivisionError("a user's, as this command says"), 2, "error: a user's"),
        (BrokenPipeError(32, "Broken pipe"), 2, "error: [Errno 32] Broken pipe"),  # not stdout's
        (KeyboardInterrupt(), 130, "stopped; go on by the same"),
        (MemoryError(), 2, "error: out of memory (of the host); make the batch"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9 bytes.\n\nand more"),
            *(2, "error: out of memory (RESOURCE_EXHAUSTED: Out of memory: 9 bytes.); make the"),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_a_command_ends(error, status, said, capsys):
    stopped = "stopped; go on by the same"
    ended = command_line.run(failing(error), ZeroDivisionError, stopped=stopped)
    out, err = capsys.readouterr()
    assert (ended, out) == (status, "begun\n")
    assert err.startswith(said)
    assert err.count("\n") == 1


def test_an_error_may_say_its_status(capsys):
    class Lost(ValueError):
        exit_status = 1

    assert command_line.run(failing(Lost("another process"))) == 1


def test_a_fault_of_ours_keeps_its_traceback():
    for error in (KeyError("x"), jax.errors.JaxRuntimeError("INTERNAL: a fault")):
        with pytest.raises(type(error)):
            command_line.run(failing(error))
    assert command_line.run(lambda: 7) == 7


@pytest.mark.parametrize("command", ["-m crate_jax.keys", "-u -m crate_jax.keys", "-m crate_jax"])
def test_a_reader_that_goes_away_is_no_error(command):
    script = f"{sys.executable} {command} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_a_warning_is_said_as_it_is(tmp_path):
    code = "import logging; from crate_jax import command_line; "
    code += "command_line.run(lambda: logging.warning('waiting') or 0)"
    assert run("-c", code, cwd=tmp_path).stderr == "waiting\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full"])
def test_a_closed_stream_is_no_fault(closed, tmp_path):
    code = "from crate_jax import command_line; command_line.run(lambda: print('x') or 0)"
    script = f"{sys.executable} -c \"{code}; open({str(tmp_path / 'a')!r}, 'w').close()\" {closed}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "a").read_text() == ""


def test_what_the_locale_cannot_say_is_escaped(tmp_path):
    strict = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = (
        "from crate_jax import command_line; word = 'gr\\xf6\\xdfe'; "
        "command_line.run(lambda: command_line.say(word) or print(word, '\\udce9') or 0)"
    )
    done = run("-c", code, cwd=tmp_path, **strict)
    assert done.stdout.splitlines() == ["gr\\xf6\\xdfe", "gr\\xf6\\xdfe \\udce9"], done.stderr


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (["main", "--config=configs/scenes_tiny.py", "--workdir=RUN"], "absl"),
        (["main", "--config=configs/scenes_tiny.py", "--workdir=RUN"], "jax.numpy"),
        (["main", "--config=configs/scenes_tiny.py", "--workdir=RUN"], "crate_jax.training.loop"),
        (["probe", "--config=configs/scenes_tiny.py", "--checkpoint=RUN"], "ml_collections"),
        (["probe", "--config=configs/scenes_tiny.py", "--checkpoint=RUN"], "jax.numpy"),
        (["keys"], "crate_jax.command_line"),
        (["convert", "--source=RUN", "--target=x.npz"], "numpy.linalg"),
        (["convert", "--source=RUN", "--target=x.npz"], "jax.numpy"),
        (["data.prepare", "folder", "--source=RUN", "--out=OUT"], "numpy"),
        (["data.prepare", "folder", "--source=RUN", "--out=OUT"], "crate_jax.data.folders"),
    ],
)
@pytest.mark.usefixtures("signals_heard")
def test_ctrl_c_before_work_begins(arguments, module, tmp_path):
    """The signal arrives while the command imports what it needs."""
    (tmp_path / "sitecustomize.py").write_text(
        f"MODULE = {module!r}\n"
        """import importlib.abc, os, signal, sys
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == MODULE:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""
    )
    done = run(
        "-m",
        f"crate_jax.{arguments[0]}",
        *arguments[1:],
        cwd=tmp_path,
        PYTHONPATH=f"{tmp_path}:{ROOT}",
    )
    assert done.returncode == 130
    assert done.stderr.startswith("stopped")
    assert done.stderr.count("\n") == 1


def test_packaged_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = str(ROOT / "configs" / "scenes_tiny.py")
    given = ["--config", "configs/scenes_tiny.py:vit", "--workdir=x", "--config.seed=1"]
    assert command_line.with_packaged_configs(given) == [f"--config={packaged}:vit", *given[2:]]
    assert command_line.packaged_config("elsewhere/scenes_tiny.py") == "elsewhere/scenes_tiny.py"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "scenes_tiny.py").touch()
    assert command_line.packaged_config("configs/scenes_tiny.py") == "configs/scenes_tiny.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("folder")
    (path / "runs").mkdir()
    (path / "mine.py").touch()
    (path / "weights.safetensors").touch()
    (path / "weights.txt").touch()
    return path


# What is typed; what must be offered; what must not.
TYPED = [
    ("main --wo", {"--workdir"}, set()),
    ("main --config=", {"mine.py", "configs/imagenet_b.py", "runs/"}, {"weights.txt"}),
    ("main --config=configs/scenes_t", {"configs/scenes_tiny.py"}, {"mine.py"}),
    ("main --workdir=", {"runs/"}, {"mine.py"}),
    ("main --mode=", {"train", "eval"}, {"mine.py"}),
    ("main --config=mine.py --config.optimizer.w", {"--config.optimizer.weight_decay"}, set()),
    ("main --config=mine.py --config.dry_run=", {"True", "False"}, {"mine.py"}),
    ("main --config=mine.py --config.data.crop=", {"random", "centre", "none"}, {"mine.py"}),
    ("main --config=mine.py --config.model.mask", {"--config.model.mask_ratio"}, set()),
    ("main --num_processes=", set(), {"mine.py"}),
    ("probe --ch", {"--checkpoint"}, set()),
    ("probe --config.data.ro", {"--config.data.root"}, set()),
    ("segment --method=", {"attention", "maskcut", "parts"}, set()),
    ("segment --method m", {"maskcut"}, {"attention"}),
    ("segment --checkpoint=", {"runs/", "weights.safetensors"}, {"weights.txt"}),
    ("score --dataset=", {"voc", "coco", "scenes", "coco20k", "ecssd", "hummingbird"}, set()),
    ("convert --source=", {"runs/", "weights.safetensors"}, {"weights.txt"}),
    ("convert --published=crate-de", {"crate-demo"}, set()),
    ("data.prepare ", {"imagenet", "folder"}, set()),
    ("data.prepare folder --so", {"--source"}, {"--tars"}),
    ("doctor --js", {"--json"}, set()),
    ("doctor --data=", {"runs/"}, {"mine.py"}),
    ("keys data.scenes.s", {"data.scenes.seed", "data.scenes.scale"}, {"data.name"}),
]


@pytest.mark.parametrize(("typed", "offered", "not_offered"), TYPED, ids=[t[0] for t in TYPED])
def test_completion(typed, offered, not_offered, folder):
    found = complete(f"python -m crate_jax.{typed}", folder)
    assert offered <= found, found
    assert not not_offered & found
    if typed.startswith("main --num"):
        assert not found


@pytest.mark.parametrize("name", [c for c in COMMANDS if c.startswith("benchmarks")])
def test_completion_of_benchmarks(name):
    assert complete(f"python -m {name} --vers", ROOT) == {"--version"}


def test_bash_completes_after_the_documented_line(folder):
    """The line of `python -m crate_jax --help`, then the function that bash calls for the key."""
    code = command_line.shell_code()
    script = f"""{code}
    complete -p python
    COMP_WORDS=(python -m crate_jax.se) COMP_CWORD=2
    _crate_jax_python python crate_jax.se -m
    echo "${{COMPREPLY[@]}}"
    COMP_WORDS=(python -m crate_jax.segment --method = ma)
    COMP_CWORD=5 COMP_LINE="python -m crate_jax.segment --method=ma" COMP_POINT=39 COMP_TYPE=9
    compopt() {{ :; }}
    _crate_jax_python python ma =
    echo "${{COMPREPLY[@]}}"
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    function, module, completed = done.stdout.splitlines()
    assert "_crate_jax_python python" in function
    assert module == "crate_jax.segment"
    assert completed.strip() == "maskcut", done.stderr


@pytest.mark.parametrize("command", command_line.COMMANDS)
def test_what_a_command_does_is_what_its_docstring_begins_with(command):
    try:
        module = importlib.import_module(f"crate_jax.{command}.__main__")
    except ModuleNotFoundError:
        module = importlib.import_module(f"crate_jax.{command}")
    said = command_line.COMMANDS[command].split()
    assert module.__doc__.split()[: len(said)] == said


def test_keys_are_those_of_the_configs():
    expected = {}
    for family in variants.FAMILIES:
        c = config.default()
        name = next(n for n, v in variants.VARIANTS.items() if v.family == family)
        c.model = config.model(name)
        expected |= config.flatten(c)
    found = {key.name: key for key in keys.known()}
    assert set(found) == set(expected)
    c = config.flatten(config.default())
    assert {key.name: key.default for key in keys.KEYS} == {
        key.name: c[key.name] for key in keys.KEYS
    }
    assert "float32 or bfloat16" in found["dtype"].meaning
    assert found["model.mask_ratio"].meaning.startswith("[crate_mae]")


@pytest.mark.parametrize("key", keys.KEYS, ids=lambda key: key.name)
def test_a_default_is_a_value_that_its_check_accepts(key):
    assert key.check.problem(key.default) is None


def test_keys_command(capsys):
    assert keys.main(["optimizer.b"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed] == [
        "optimizer.b1 = 0.9",
        "optimizer.b2 = 0.999",
    ]
    assert keys.main(["optimiser"]) == 2
    assert "no config key begins with 'optimiser'" in capsys.readouterr().err
