"""Wheel and source distribution hold every file that belongs in them."""

import pathlib
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TREES = ("crate_jax", "configs", "benchmarks", "docs", "launch", "notebooks", "tests", ".ci")
UNWANTED = ("__pycache__", "*.egg-info", ".ipynb_checkpoints", "_build", "*.pyc")


def files(folder):
    """Names of the files below a folder of the checkout, from its root, without what is built."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not any(p.match(u) for p in (path, *path.parents) for u in UNWANTED)
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(names in the wheel, names in the source distribution, bytes of the wheel), from a copy."""
    pytest.importorskip("setuptools", "77", reason="setuptools 77 or newer: the extra `dev`")
    place = tmp_path_factory.mktemp("built")
    copy = place / "copy"
    ignored = shutil.ignore_patterns(*UNWANTED)
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.name in TREES:
            shutil.copytree(path, copy / path.name, ignore=ignored)
        elif path.is_file() and path.name != ".git":
            shutil.copy(path, copy)
    code = "import sys; from setuptools import build_meta as b; out = sys.argv[1]; "
    code += "b.build_sdist(out); b.build_wheel(out)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(place)], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr[-3000:]
    wheel = next(place.glob("*.whl"))
    with tarfile.open(next(place.glob("*.tar.gz"))) as archive:
        source = [name.partition("/")[2] for name in archive.getnames()]
    return set(zipfile.ZipFile(wheel).namelist()), set(source), wheel.stat().st_size


def test_every_folder_of_code_is_a_package():
    folders = {path.parent for path in (ROOT / "crate_jax").rglob("*.py")}
    names = {folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
    declared = set(PROJECT["tool"]["setuptools"]["packages"])
    assert declared == names | {"crate_jax.configs"}


@pytest.mark.slow
def test_the_wheel_holds_the_package(built):
    wheel = {name for name in built[0] if ".dist-info/" not in name}
    configs = {f"crate_jax/{name}" for name in files("configs") if name.endswith(".py")}
    assert wheel == files("crate_jax") | configs
    for notice in ("LICENSE", "crate_jax/data/assets/FLUENT_EMOJI_LICENSE.txt"):
        assert any(name.endswith(f"licenses/{notice}") for name in built[0])
    assert built[2] < 12e6


@pytest.mark.slow
def test_the_source_distribution_holds_what_its_tests_need(built):
    for tree in TREES:
        if (ROOT / tree).is_dir():
            assert files(tree) <= built[1], tree
    assert {"requirements.lock", "pyproject.toml", "CHANGELOG.md", "README.md"} <= built[1]
