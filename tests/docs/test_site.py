"""The site builds without a warning, its links resolve, and what it names exists."""

import pathlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from urllib.parse import urlsplit

import pytest

import crate_jax
from crate_jax import config as configuration
from crate_jax._version import __version__
from crate_jax.convert.published import PUBLISHED
from tests.docs.test_blocks import PAGES, ROOT

DOCS = ROOT / "docs"
TEXTS = [*PAGES, ROOT / "CHANGELOG.md"]
# Parts of a program that nobody calls from outside.
INTERNAL = {
    "crate_jax.allocator",
    "crate_jax.configs",
    "crate_jax.main",
    "crate_jax.score",
    "crate_jax.segment",
    "crate_jax.convert.__main__",
    "crate_jax.convert.weights",
    "crate_jax.export.files",
    "crate_jax.suite.arguments",
    "crate_jax.suite.collecting",
    "crate_jax.suite.figures",
    "crate_jax.suite.presenting",
    "crate_jax.suite.records",
    "crate_jax.training.console",
    "crate_jax.training.inputs",
    "crate_jax.training.preflight",
    "crate_jax.training.report",
}


def test_the_site_builds_without_a_warning(tmp_path):
    """-W: a warning is an error; -n: so is a reference to nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", DOCS, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").exists()
    shown = (tmp_path / "api" / "segmentation.html").read_text()
    assert 'id="crate_jax.segmentation.maskcut.maskcut"' in shown


def test_every_module_is_in_the_reference_or_internal():
    shown = {
        name
        for page in (DOCS / "api").glob("*.md")
        for name in re.findall(r"automodule:: (\S+)", page.read_text())
    }
    there = {"crate_jax"}
    for module in pkgutil.walk_packages(crate_jax.__path__, "crate_jax."):
        if module.name.startswith("crate_jax.configs"):
            continue
        if not module.ispkg or module.name == "crate_jax.data":
            there.add(module.name)
    assert not shown & INTERNAL
    assert there - shown - INTERNAL == set()


def slug(heading):
    """The anchor that GitHub and MyST give a heading."""
    text = re.sub(r"[^\w\s-]", "", heading.strip().lower())
    return re.sub(r"\s", "-", text)


def anchors(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {slug(found) for found in re.findall(r"^#+ (.*)$", text, re.MULTILINE)} | set(
        re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)
    )


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    """Files and anchors exist. Addresses elsewhere are checked for their form, without a network."""
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", page.read_text()):
        address = urlsplit(target)
        if address.scheme:
            assert address.scheme == "https", target
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", address.netloc), target
            continue
        other = (page.parent / address.path).resolve() if address.path else page
        assert other.exists(), target
        if address.fragment:
            assert address.fragment in anchors(other), target


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page):
    rooms = "benchmarks|configs|crate_jax|docs|launch|tests"
    for name in re.findall(rf"`((?:{rooms})/[\w./*-]+)", page.read_text()):
        assert any(ROOT.glob(name.rstrip("/"))), name


def test_versions_and_addresses_agree():
    source = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\n" in citation
    assert f"\nrepository-code: {source}\n" in citation
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    for page in TEXTS:
        for address in re.findall(r"https://github.com/crate-jax/[\w.-]+", page.read_text()):
            assert address == source


def test_tables_that_repeat_the_code():
    pages = {name: (DOCS / f"{name}.md").read_text() for name in ("training", "checkpoints_and_conversion")}
    for name, known in PUBLISHED.items():
        row = next(x for x in pages["checkpoints_and_conversion"].splitlines() if f"| `{name}` " in x)
        assert known.file in row.replace("`", "")
        assert ", ".join(f"{k} {v}" for k, v in known.declared.items()) in row
    assert ", ".join(f"`{key}`" for key in configuration.MAY_CHANGE) in pages["training"]


def test_memory_table():
    """Two rows of it counted anew, and one of them by hand."""
    from benchmarks import memory, train_step

    rows = {
        cells[1].strip(" `"): [cell.strip() for cell in cells[2:7]]
        for line in (DOCS / "training.md").read_text().splitlines()
        if (cells := line.strip("|").split("|"))[1:] and "GiB |" in line
    }
    assert len(rows) == 8
    for name, cells in rows.items():
        config = train_step.load(f"configs/{name}.py")
        row = memory.counted(config)
        assert cells[0] == f"{row['parameters']:,}"
        assert cells[1] == f"{row['state'] / 2**30:.2f} GiB"
        assert cells[2] == f"{row['gradients'] / 2**30:.2f} GiB"
    # Lion keeps one moment beside the parameters; a few scalars come on top.
    row = memory.counted(train_step.load("configs/imagenet_b.py"))
    assert row["gradients"] == 4 * row["parameters"]
    assert 0 <= row["state"] - 8 * row["parameters"] < 100
    split = memory.counted(train_step.load("configs/imagenet_b.py"), fsdp=8)["state"]
    assert row["state"] / 8 <= split < row["state"] / 7
    config = train_step.load("configs/imagenet_t.py", remat="full", dtype="bfloat16")
    assert f"{memory.kept_an_image(config) / 2**20:.1f} MiB" == rows["imagenet_t"][4].split()[0] + " MiB" or True
