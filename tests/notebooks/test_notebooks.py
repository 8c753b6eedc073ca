"""Every notebook as a reader runs it, in an empty folder, at reduced settings.

Settings are replaced as papermill does it: by a cell after the one tagged `parameters`. The quick
start runs first, and what it trained is the checkpoint of those that take one.
"""

import json
import os
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

EXTRA = "not installed: the extra `dev`"
nbformat = pytest.importorskip("nbformat", reason=EXTRA)
nbclient = pytest.importorskip("nbclient", reason=EXTRA)
inputtransformer2 = pytest.importorskip("IPython.core.inputtransformer2", reason=EXTRA)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REFERENCE = ROOT / "tests" / "reference" / "crate_mini.npz"


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def tagged(notebook, tag):
    return [c for c in notebook.cells if tag in c.metadata.get("tags", [])]


def execute(name, folder, more="", **settings):
    """The notebook after a run in `folder`; `more` is a last cell."""
    notebook = read(name)
    place = notebook.cells.index(tagged(notebook, "parameters")[0])
    replaced = "\n".join(f"{key} = {value!r}" for key, value in settings.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(replaced))
    notebook.cells.append(nbformat.v4.new_code_cell(more))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(folder / ".ipython"),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)  # raises what a cell raises
    warned = [o for o in outputs(notebook) if o.output_type == "stream" and o.name == "stderr"]
    assert not warned, "".join(o.text for o in warned)
    return notebook


def outputs(notebook):
    return [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]


def text(notebook):
    """All that is printed or shown as text."""
    streams = [o.text for o in outputs(notebook) if o.output_type == "stream"]
    shown = [o.data.get("text/markdown", "") for o in outputs(notebook) if "data" in o]
    return "\n".join(streams + shown)


def figures(notebook):
    """How many pictures and how many pages of charts."""
    data = [o.data for o in outputs(notebook) if "data" in o]
    charts = [d["text/html"] for d in data if "<svg" in d.get("text/html", "")]
    assert all("<path" in chart and "NaN" not in chart for chart in charts)
    return sum("image/png" in d for d in data), len(charts)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    # What the slider calls is shown in a widget, where an error would stop nothing.
    moved = 'print(threshold(1, 1, 3, "area", 0.3).data[:4])'
    notebook = execute(
        "emergence_quickstart", folder, moved, IMAGES=128, HELD_OUT=16, SHOWN=2, WORKDIR="run"
    )
    return notebook, folder / "run"


# -- as they are stored ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_stored_without_traces_of_a_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z][a-z-]*", cell.id), (
            "ids are names, so that differences are small"
        )
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert len(tagged(notebook, "parameters")) == 1


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_badge_opens_this_notebook_from_the_projects_source(path):
    source = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
    owner_and_name = source.removeprefix("https://github.com/")
    title = nbformat.read(path, as_version=4).cells[0].source
    colab = "https://colab.research.google.com/github"
    assert f"]({colab}/{owner_and_name}/blob/main/notebooks/{path.name})" in title
    assert re.search(r"about .* minute", title), "the title says how long it takes"


@pytest.mark.parametrize("there", [True, False])
def test_the_first_cell_installs_only_where_the_package_is_missing(there, monkeypatch):
    installs = {nbformat.read(path, as_version=4).cells[1].source for path in PATHS}
    assert len(installs) == 1, "the same in all notebooks"
    magics = []

    class Shell:
        def run_line_magic(self, name, arguments):
            magics.append((name, arguments))

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if there else None)
    code = inputtransformer2.TransformerManager().transform_cell(installs.pop())
    exec(compile(code, "install", "exec"), {"get_ipython": Shell})
    if there:
        assert magics == []
    else:
        ((name, arguments),) = magics
        assert name == "pip"
        source = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
        assert f"git+{source}" in arguments
        assert "jax==" not in arguments
        assert "upgrade" not in arguments, "Colab's own JAX stays"


def test_every_notebook_is_run_by_a_test():
    here = Path(__file__).read_text()
    assert len(PATHS) == 4
    assert all(f'"{path.stem}"' in here for path in PATHS)


# -- executed --------------------------------------------------------------------------------------


def test_quickstart_trains_shows_maps_and_reports_the_runs_own_figures(quickstart):
    notebook, workdir = quickstart
    pictures, charts = figures(notebook)
    assert pictures == 5
    assert charts == 2
    assert any(
        "application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in outputs(notebook)
    )
    said = text(notebook)
    assert "b'\\x89PNG'" in said, "the slider draws a picture"
    assert "step 4/4" in said
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "val/top1" in line)
    best = max(range(1, 5), key=lambda n: last[f"val/cls_iou/mass/best/layer{n:02d}"])
    assert f"16 held-out scenes, layer {best}" in said
    assert f"top-1 {last['val/top1']:.1%}" in said
    for kind in ("cls_iou", "cls_iou_gain", "cls_iou_random", "cls_iou_other"):
        name = f"val/{kind}/mass/best/layer{best:02d}"
        low, high = last[f"{name}/low"], last[f"{name}/high"]
        assert f"{last[name]:.3f} [{low:.3f}, {high:.3f}]" in said
    for layer in range(1, 5):
        name = f"val/cls_iou_own_minus_other/mass/best/layer{layer:02d}"
        low, high = last[f"{name}/low"], last[f"{name}/high"]
        assert f"{last[name]:+.3f} [{low:+.3f}, {high:+.3f}]" in said
    assert (workdir / "report" / "index.html").is_file()


def test_published_checkpoints_says_that_its_stand_in_is_random(tmp_path):
    notebook = execute(
        "published_checkpoints",
        tmp_path,
        "print(about)",
        STAND_IN="crate-testing",
        STAND_IN_SIZE=32,
        SIZE=64,
    )
    said = text(notebook)
    assert "There is no crate-demo.pth" in said
    assert "random weights" in said
    assert said.rstrip().endswith("Random weights: this means nothing")
    assert "undeclared     heads" in said
    assert figures(notebook) == (4 + 4 + 2, 0)
    assert (tmp_path / "converted.safetensors").is_file()
    assert "torch" not in sys.modules or "torch" not in said
    source = "".join(c.source for c in read("published_checkpoints").cells if c.cell_type == "code")
    assert source.count("overlays.montage(") + source.count("overlays.head_montage(") == 3
    assert source.count('title=f"{about}. ') == 3, "every picture says what it is of"


def test_published_checkpoints_reads_a_file_that_is_there(tmp_path):
    notebook = execute(
        "published_checkpoints",
        tmp_path,
        "print(about, model.config.heads, random_weights)",
        PATH=str(REFERENCE),
        PUBLISHED="",
        HEADS=4,
    )
    said = text(notebook)
    assert said.rstrip().endswith("crate_mini.npz 4 False")
    assert "random weights" not in said
    assert "heads       4 (declared)" in said


def test_your_images_writes_masks_that_pycocotools_reads(quickstart, tmp_path):
    notebook = execute(
        "your_images",
        tmp_path,
        CHECKPOINT=str(quickstart[1]),
        IMAGES_A_SPLIT={"train": 24, "val": 12},
        BATCH_SIZE=8,
        EPOCHS=1.0,
    )
    said = text(notebook)
    assert f"starts from {quickstart[1]}" in said
    held_out = len(list((tmp_path / "objects" / "val").rglob("*.png")))
    assert held_out == 12
    assert f"on {held_out} held-out images of 4 classes" in said
    assert figures(notebook) == (3, 1)
    coco = COCO(tmp_path / "segmented" / "coco.json")
    assert len(coco.imgs) == held_out
    assert coco.anns
    for mask in coco.anns.values():
        assert coco.annToMask(mask).sum() == mask["area"] > 0
    assert len(list((tmp_path / "segmented" / "overlays").rglob("*.png"))) == held_out


def test_white_box_trains_where_there_is_no_checkpoint_and_its_equations_hold(tmp_path):
    notebook = execute("white_box", tmp_path, BRIEF=64, IMAGES=4)
    said = text(notebook)
    assert "There is no runs/emergence_quickstart: a small network is trained on 64 scenes" in said
    assert (tmp_path / "runs" / "brief" / "checkpoints").is_dir()
    differences = re.findall(r"of w (\S+), of z after it (\S+)", said)
    assert len(differences) == 4
    assert np.array(differences, float).max() < 1e-5
    assert "The equations give the package's numbers." in said
    counts = re.search(
        r"of 4 layers the coding rate rises in every image in (\d), falls .* (\d)\.", said
    )
    assert 0 <= int(counts[1]) + int(counts[2]) <= 4
    assert said.count("coding rate, MSSA") == 2, "trained and random weights"
    assert figures(notebook) == (1, 2)
