"""Every recipe compiled for chips that are not there: the step, evaluation with capture, MaskCut.

    pip install -e ".[test,tpu]" && pip install jax-cuda13-plugin==JAX_VERSION
    pytest -m compile -n 2

About a minute of a processor a case; no accelerator is needed. What was found is kept in
docs/results/compiled.json, by `python -m benchmarks.compiled`, and must be found again.
"""

import importlib.util

import pytest

from benchmarks import pages
from benchmarks.compiled import cases, compiling
from benchmarks.compiled.results_file import Results

RESULTS = Results.read(pages.DOCS / "results" / "compiled.json")
PACKAGES = {"v5e": "libtpu", "v6e": "libtpu", "h100": "jax_cuda13_plugin"}


@pytest.mark.compile
@pytest.mark.parametrize("case", cases.cases(), ids=str)
def test_case(case, optimised):
    package = PACKAGES[case.hardware]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    row = compiling.measure(case)
    failed = {name for name, one in row["programs"].items() if "failed" in one}
    if case.recipe not in cases.DEEP:
        assert not failed, row["programs"]
    known = RESULTS.of(case)
    if known is None or known["compiler"] != row["compiler"]:
        pytest.skip(f"compiled; not in {RESULTS.path.name} by this compiler, to be compared with")
    for name, program in row["programs"].items():
        expected = known["programs"][name]
        assert (name in failed) == ("failed" in expected)
        if name not in failed:
            assert program["held"] == expected["held"]
            assert program["work"] == pytest.approx(expected["work"], rel=0.02)
            assert program["collectives"] == expected["collectives"]
