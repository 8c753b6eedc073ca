"""The site builds without a warning, its links resolve, and what it names exists."""

import pkgutil
import re
import subprocess
import sys
import tomllib
from urllib.parse import urlsplit

import pytest

import crate_jax
from benchmarks import memory, train_step
from crate_jax import keys
from crate_jax._version import __version__
from crate_jax.convert.published import PUBLISHED
from crate_jax.training import throughput
from tests.docs.test_blocks import PAGES, ROOT

DOCS = ROOT / "docs"
TEXTS = [*PAGES, ROOT / "CHANGELOG.md"]
# Parts of a program that nobody calls from outside.
INTERNAL = {
    "crate_jax.__main__",
    "crate_jax._version",
    "crate_jax.allocator",
    "crate_jax.command_line",
    "crate_jax.configs",
    "crate_jax.data.processes",
    "crate_jax.data.recognise",
    "crate_jax.data.shared_batches",
    "crate_jax.limits",
    "crate_jax.main",
    "crate_jax.probe",
    "crate_jax.progress",
    "crate_jax.score.__main__",
    "crate_jax.demo.__main__",
    "crate_jax.segment.__main__",
    "crate_jax.convert.__main__",
    "crate_jax.convert.arguments",
    "crate_jax.convert.text",
    "crate_jax.export.pages",
    "crate_jax.arguments",
    "crate_jax.segment.records",
    "crate_jax.segment.summary",
    "crate_jax.score.page",
    "crate_jax.training.console",
    "crate_jax.training.preflight",
    "crate_jax.training.report",
}


@pytest.mark.slow
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
        if module.name.startswith(("crate_jax.configs", "crate_jax.doctor")):
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
    """Files and anchors exist. Addresses elsewhere are checked for their form: no network here."""
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
        if not name.startswith("docs/_build/"):
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


def row_of(page, cell):
    """The cells of the table row that holds a cell."""
    for line in (DOCS / page).read_text().splitlines():
        if f"| `{cell}` |" in line:
            return [text.strip() for text in line.split("|")[1:-1]]
    raise AssertionError(f"{page} has no row of {cell}")


def test_published_files_and_keys_that_may_change():
    for name, known in PUBLISHED.items():
        row = row_of("checkpoints_and_conversion.md", name)
        assert row[1].strip("`") == known.file
        assert row[3] == ", ".join(f"{k} {v}" for k, v in known.declared.items())
    free = ", ".join(f"`{key.name}`" for key in keys.KEYS if key.free)
    assert free in (DOCS / "training.md").read_text()


@pytest.mark.parametrize(
    ("row", "width", "heads", "tokens"),
    [
        ("CRATE-B/16, 197", 768, 12, 197),
        ("CRATE-S/8, 785", 384, 6, 785),
        ("CRATE-B/8, 785", 768, 12, 785),
    ],
)
def test_a_layer_by_count(row, width, heads, tokens):
    """docs/performance.md's table from its own formulas; and what the named chips would need."""
    page = (DOCS / "performance.md").read_text()
    products, attention = 8 * width**2, 4 * tokens * width
    bytes_around, bytes_of_maps = 20 * width, 12 * heads * tokens
    operations = products + attention
    cells = [
        f"{100 * attention / operations:.0f} %",
        f"{operations / (bytes_around + bytes_of_maps):.0f}",
        f"{operations / bytes_around:.0f}",
    ]
    assert f"| {row} | {' | '.join(cells)} |" in page
    for chip, bandwidth, needed in (("TPU v5e", 819e9, 240), ("H100", 3.352e12, 295)):
        assert throughput.PEAK_FLOPS[chip] / bandwidth == pytest.approx(needed, abs=1)
        assert str(needed) in page
        assert operations / (bytes_around + bytes_of_maps) < needed  # waits for memory


def test_memory_table():
    """State and gradients counted anew for every row, and one of them by hand."""
    for name in (
        *(f"imagenet_{size}" for size in "tsbl"),
        *("imagenet21k_s8", "imagenet21k_b8", "alpha_b", "mae_b"),
    ):
        counted = memory.counted(train_step.load(f"configs/{name}.py"))
        gibibytes = [f"{counted[part] / 2**30:.2f}" for part in ("state", "gradients")]
        assert row_of("training.md", name)[2:5] == [f"{counted['parameters']:,}", *gibibytes]
    # Lion keeps one moment beside the parameters; a few scalars come on top.
    b16 = memory.counted(train_step.load("configs/imagenet_b.py"))
    assert b16["gradients"] == 4 * b16["parameters"]
    assert 0 <= b16["state"] - 8 * b16["parameters"] < 100
    split = memory.counted(train_step.load("configs/imagenet_b.py"), fsdp=8)["state"]
    assert b16["state"] / 8 <= split < b16["state"] / 7


def test_what_is_kept_for_the_backward_pass():
    """One figure of the table, the same by hand, and the order of the three kinds."""
    full = memory.kept_an_image(train_step.load("configs/imagenet_t.py", remat="full"))
    assert row_of("training.md", "imagenet_t")[7] == f"{full / 2**20:.1f}"
    # By hand: the input of each layer in bfloat16, and the patch embedding: pixels in float32 and
    # bfloat16, and what the second LayerNorm reads in bfloat16. Less than 1 % are small things.
    inputs, embedding = 12 * 197 * 384 * 2, 196 * 768 * (4 + 2) + 196 * 384 * 2
    assert 0 <= full - inputs - embedding < 0.01 * full
    kept = [
        memory.kept_an_image(train_step.load("configs/scenes_tiny.py", remat=remat))
        for remat in ("none", "dots", "full")
    ]
    assert kept[0] > 2 * kept[1] > 2 * kept[2] > 0
