"""docs/results/compiled.json: of the recipes as they are, and what the pages say of it."""

import json

import pytest

from benchmarks import pages
from benchmarks.compiled import cases, document
from benchmarks.compiled.cases import Case
from benchmarks.compiled.results_file import Results
from tests.test_config import CONFIGS

COMMITTED = Results.read(pages.DOCS / "results" / "compiled.json")


def test_every_config_is_among_the_recipes():
    known = {cases.made_from(name) for name in cases.RECIPES}
    assert len(known) == len(cases.RECIPES)
    for path in CONFIGS:
        assert cases.made_from(path.stem) in known, f"{path.stem}: expected in RECIPES"


def test_what_was_compiled_is_of_todays_recipes():
    assert COMMITTED.content["rows"]
    for row in COMMITTED.content["rows"]:
        case = Case(row["recipe"], row["hardware"], row["fsdp"])
        assert case in cases.cases()
        assert row["made_from"] == cases.made_from(case.recipe), (
            f"{case}: the recipe changed; run python -m benchmarks.compiled "
            "--out=docs/results/compiled.json again, then with --render"
        )


def test_the_pages_say_what_the_file_says():
    for path, page in document.written(COMMITTED).items():
        assert page == path.read_text(encoding="utf-8"), (
            f"{path.name}: run python -m benchmarks.compiled --render=docs/results/compiled.json"
        )


def row_of(case, effort, work, **changes):
    step = {
        "held": 2**30,
        "work": work,
        "collectives": {"all-reduce": [2, 3 * 2**20]},
        "seconds": 9.6,
    }
    return {
        "recipe": case.recipe,
        "hardware": case.hardware,
        "fsdp": case.fsdp,
        "effort": effort,
        "made_from": cases.made_from(case.recipe),
        "compiler": "libtpu 0",
        "programs": {"step": step | changes, "evaluation": {"failed": "Used 21G of 15.75G hbm"}},
    }


@pytest.fixture
def results(tmp_path):
    found = Results.read(tmp_path / "compiled.json")
    case = Case("imagenet_b", "v5e")
    found.content["counted"]["imagenet_b"] = {
        "parameters": 22_796_008,
        "state": 0.25,
        "gradients": 0.12,
        "none": 102.4,
        "dots": 1.0,
        "full": 0.5,
    }
    found.add(row_of(case, -1.0, 800 * 2**20))
    found.add(row_of(case, -1.0, 880 * 2**20))  # anew, in its place
    found.add(row_of(case, 0.0, 810 * 2**20, seconds=91.0))
    return found


def test_the_file_is_taken_up_again(results):
    again = Results.read(results.path)
    assert again.content == json.loads(results.path.read_text()) == results.content
    assert len(again.content["rows"]) == 2
    case = Case("imagenet_b", "v5e")
    assert again.of(case)["programs"]["step"]["work"] == 880 * 2**20
    assert again.of(case, 0.0)["programs"]["step"]["work"] == 810 * 2**20
    assert again.of(Case("imagenet_b", "v6e")) is None
    again.content["rows"][0]["made_from"] = "another recipe"
    assert again.of(case) is None


def test_tables(results):
    row = next(r for r in document.memory_table(results).splitlines() if "`imagenet_b`" in r)
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == [
        *("CRATE-B/16", "`imagenet_b`", "22,796,008", "0.25", "0.12", "102.4", "1.0", "0.5"),
        *("55.0", "", ""),  # 880 MiB of 16 images; v6e and H100 were not compiled
    ]
    text = "\n\n".join(document._all(results))
    assert "| `imagenet_b` | 1.00 + 0.86 |  |  |  |  |  |" in text
    assert "| `imagenet_b` | 2 all-reduce: 3.0 |  |  |  |  |" in text
    assert f"1 of {len(cases.cases())} cases were compiled" in text
    assert "Failed: imagenet_b-v5e, evaluation: Used 21G of 15.75G hbm." in text
    missing = text.split("Not compiled: ")[1]
    assert "v5e: scenes_tiny, " in missing
    assert "imagenet_t, imagenet_s, imagenet_l, " in missing  # and not imagenet_b
    assert "; v6e: all; H100: all; v5e, fsdp: all; v6e, fsdp: all; H100, fsdp: all." in missing
    assert "`imagenet_b` 0.79 GiB at work in place of 0.86 (91 and 10 s of the processor)" in text
