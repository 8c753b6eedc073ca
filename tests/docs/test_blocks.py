"""Every code block of README.md and docs/ is run, page by page, in order, in one folder a page.

The folder holds what the pages speak of: a run, images, class folders, a PyTorch state dict. Python
blocks share a namespace a page. Commands: see `commands.py`; those that were only read, and why,
are printed (`pytest -rP tests/docs/test_blocks.py`).
"""

import re
import shutil

import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from tests import workdirs
from tests.docs import commands
from tests.end_to_end import pictures

ROOT = commands.ROOT
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "bash", "text", "{toctree}", "{eval-rst}", "{include}"}


def languages(page):
    """The words after opening fences."""
    return re.findall(r"^```(\S*).*\n(?:.*\n)*?^```$", page.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """What the pages speak of, made once."""
    folder = tmp_path_factory.mktemp("things")
    workdirs.write(folder / "runs" / "scenes_tiny", image_size=(64, 64))  # the quick start's
    pictures.write(folder / "split", train=2, val=0)
    shutil.copytree(folder / "split" / "train", folder / "ROOT")
    shutil.copytree(folder / "split" / "train" / "owl", folder / "PHOTOS")
    shutil.rmtree(folder / "split")
    shutil.copy(ROOT / "tests" / "reference" / "crate_mini.npz", folder / "demo.npz")
    return folder


def test_every_block_is_of_a_language_that_is_handled():
    assert {name for page in PAGES for name in languages(page)} <= LANGUAGES


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.name == "README.md" else ())
        for page in PAGES
        if {"python", "bash"} & set(languages(page))
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_blocks(page, things, tmp_path, monkeypatch):
    folder = shutil.copytree(things, tmp_path / "page")
    monkeypatch.chdir(folder)
    checked = []

    def bash(example):
        checked.extend(commands.check(*command) for command in commands.split(example.parsed))

    document = Sybil(
        parsers=[PythonCodeBlockParser(), CodeBlockParser(language="bash", evaluator=bash)],
    ).parse(page)
    for example in document.examples():
        example.evaluate()
    for command in checked:
        print(f"{'read' if command.not_run else 'ran '}  {command.command}")
        if command.not_run:
            print(f"      not run: {command.not_run}")


@pytest.mark.parametrize(
    "command",
    [
        "python -m crate_jax.main --config=configs/no_such.py --workdir=x",
        "python -m crate_jax.main --config=configs/scenes_tiny.py --workdir=x --config.batchsize=3",
        "python -m crate_jax.main --config=configs/scenes_tiny.py --workdir=x --modus=eval",
        "python -m crate_jax.main --config=configs/scenes_tiny.py:size=3 --workdir=x",
        "python -m crate_jax.main --config=configs/scenes_tiny.py",
        "python -m crate_jax.main --config=configs/alpha_b.py --workdir=x --config.model.pool=x",
        "python -m crate_jax.segment --checkpoint=x --images=y --out=z --method=magic",
        "python -m crate_jax.convert --inspct=x",
        "python -m benchmarks.memory --config configs/no_such.py",
        "python -m crate_jax.no_such",
        "pip install -e '.[no_such]'",
        "launch/no_such.sh",
        "make install",
    ],
)
def test_wrong_commands_are_found(command):
    with pytest.raises(Exception):  # noqa: B017
        list(commands.check(*found) for found in commands.split(command))
