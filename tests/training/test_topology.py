"""Hardware that is not there: names, what its compiler says, and, with libtpu, a dry run for it."""

import importlib.util
import types

import pytest

from crate_jax.training import preflight, topology
from tests.end_to_end import runs

LIBTPU = importlib.util.find_spec("libtpu") is not None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e", "expected GENERATION:SHAPE"),
        ("v9:2x2", "of v4, v5e, v5p, v6e"),
        ("v5p:2x2", "three sides for v5p, such as v5p:2x2x2"),
    ],
)
def test_names(name, said):
    with pytest.raises(ValueError, match=said):
        topology.devices(name)


def test_what_compilers_say_of_memory():
    for text, needed in (
        ("Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm. Exceeded", 21.5),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (512.00M) "
            "exceeds available HBM (15.75G).",
            0.5,
        ),
    ):
        memory = topology.exhausted(RuntimeError(text))
        assert memory == topology.Exhausted(needed * 2**30, 15.75 * 2**30)
    assert topology.exhausted(RuntimeError("INTERNAL: another fault")) is None


@pytest.mark.parametrize(("chips", "fsdp", "said"), [(1, 1, False), (8, 1, True), (8, 8, False)])
def test_a_remedy_that_can_be_had(chips, fsdp, said):
    config = types.SimpleNamespace(accumulate=1, batch_size=2048, fsdp=fsdp)
    setting = types.SimpleNamespace(config=config, mesh=types.SimpleNamespace(size=chips))
    text = preflight._remedy(setting, topology.Exhausted(87.88 * 2**30, 15.75 * 2**30))
    assert "--config.accumulate=8 (about 11.0 GiB)" in text
    assert ("--config.fsdp=8" in text) == said
    assert ("--config.fsdp=" in text) == said


PROGRAM = """\
HloModule jit_step

%body.1 (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %all-gather.3 = f32[8,4]{1,0:T(8,128)} all-gather(f32[2,4]{1,0} %x), channel_id=1
  %ag = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(f32[2,4]{1,0} %x), channel_id=2
  %agd = f32[8,4]{1,0} all-gather-done((f32[2,4]{1,0}, f32[8,4]{1,0}) %ag)
}

ENTRY %main.9 (a: f32[8,4]) -> f32[8,4] {
  %all-reduce = (bf16[10]{0}, f32[]{:T(128)}) all-reduce(bf16[10]{0} %a, f32[] %b), channel_id=3
  %w = (s32[], f32[8,4]) while(%t), condition=%c.1, body=%body.1, \
backend_config={"known_trip_count":{"n":"3"}}
}
"""


def test_collectives_are_counted_as_often_as_they_run():
    assert topology.collectives(PROGRAM) == {
        "all-reduce": (1, 10 * 2 + 4),
        "all-gather": (6, 6 * 8 * 4 * 4),
    }


def test_topology_is_for_dry_runs_alone(tmp_path):
    done = runs.run(tmp_path / "run", "--topology=v5e:2x2", check=False)
    assert done.returncode == 2
    assert "--topology=v5e:2x2: expected --config.dry_run=True with it" in done.stderr


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed")
def test_without_libtpu_the_extra_is_named(tmp_path):
    flags = ("--topology=v5e:2x2", "--config.dry_run=True")
    done = runs.run(tmp_path / "run", *flags, check=False)
    assert done.returncode == 2
    assert 'pip install "crate-jax[tpu]"' in done.stderr


@pytest.mark.compile
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu (the extra tpu)")
@pytest.mark.parametrize("slices", ["v5e:2x2", "v6e:2x2", "v4:2x2x1", "v5p:2x2x1", "2*v5e:2x2"])
def test_dry_run_for_a_slice(slices, tmp_path):
    done = runs.run(tmp_path / "run", f"--topology={slices}", "--config.dry_run=True")
    for line in ("compiled  the training step", "largest   about", "all-reduce", "TFLOP a step"):
        assert line in done.stdout


@pytest.mark.compile
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu (the extra tpu)")
def test_what_does_not_fit_is_said_with_what_to_change(tmp_path):
    large = ("--config.model.dim=4096", "--config.model.heads=32", "--config.batch_size=65536")
    flags = ("--topology=v5e:1x1", "--config.dry_run=True", *large)
    done = runs.run(tmp_path / "run", *flags, check=False)
    assert done.returncode == 2
    assert "memory of a device: expected at most 15.75 GiB" in done.stderr
    assert "--config.accumulate=" in done.stderr
