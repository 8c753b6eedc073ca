"""Hardware that is not there: names, what its compiler says, and, with libtpu, a dry run for it."""

import importlib.util
import types

import numpy as np
import pytest

from crate_jax.training import preflight, throughput, topology
from tests.end_to_end import runs

LIBTPU = importlib.util.find_spec("libtpu") is not None
CUDA = importlib.util.find_spec("jax_cuda13_plugin") is not None
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="needs libtpu (the extra tpu)")
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs jax_cuda13_plugin (the extra cuda)")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e", "expected GENERATION:SHAPE"),
        ("v9:2x2", "of v4, v5e, v5p, v6e"),
        ("v5p:2x2", "three sides for v5p, such as v5p:2x2x2"),
        ("h100", "or h100:8 for eight cards"),
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


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        pytest.param("v5e:2x2", "tpu", marks=pytest.mark.skipif(LIBTPU, reason="libtpu is there")),
        pytest.param("h100:2", "cuda", marks=pytest.mark.skipif(CUDA, reason="the plugin is")),
    ],
)
def test_without_its_compiler_the_extra_is_named(name, extra, tmp_path):
    flags = (f"--topology={name}", "--config.dry_run=True")
    done = runs.run(tmp_path / "run", *flags, check=False)
    assert done.returncode == 2
    assert f'pip install "crate-jax[{extra}]"' in done.stderr


@pytest.mark.compile
@pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(name, marks=needs_libtpu)
            for name in ("v5e:2x2", "v6e:2x2", "v4:2x2x1", "v5p:2x2x1", "2*v5e:2x2")
        ),
        pytest.param("h100:2", marks=needs_cuda),
    ],
)
def test_dry_run_for_what_is_not_there(name, tmp_path):
    done = runs.run(tmp_path / "run", f"--topology={name}", "--config.dry_run=True")
    for line in ("compiled  the training step", "largest   about", "all-reduce", "TFLOP a step"):
        assert line in done.stdout


@pytest.mark.compile
@needs_libtpu
def test_what_does_not_fit_is_said_with_what_to_change(tmp_path):
    large = ("--config.model.dim=4096", "--config.model.heads=32", "--config.batch_size=16384")
    flags = ("--topology=v5e:1x1", "--config.dry_run=True", *large)
    done = runs.run(tmp_path / "run", *flags, check=False)
    assert done.returncode == 2
    assert "memory of a device: expected at most 15.75 GiB" in done.stderr
    assert "--config.accumulate=" in done.stderr


def test_plans_that_a_compiler_does_not_refuse(monkeypatch):
    """CUDA's plans for more than the card has: counted with what is donated once."""
    card = types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    mesh = types.SimpleNamespace(size=1, devices=np.array([card]))
    config = types.SimpleNamespace(accumulate=1, batch_size=1024, fsdp=1)
    setting = types.SimpleNamespace(config=config, mesh=mesh, batch_size=256)
    monkeypatch.setattr(preflight.budget, "device_memory", throughput.datasheet_memory)

    def planned(held, work):
        sizes = {"argument": held, "output": held, "alias": held, "temp": work}
        plan = {f"{name}_size_in_bytes": int(size * 2**30) for name, size in sizes.items()}
        return types.SimpleNamespace(memory_analysis=lambda: types.SimpleNamespace(**plan))

    fits = planned(held=20, work=59)
    assert preflight._compiled(lambda: fits, setting) is fits
    with pytest.raises(
        ValueError, match=r"at most 79.11 GiB, got 80.00 for a training step on 1,0"
    ):
        preflight._compiled(lambda: planned(held=20, work=60), setting)
    with pytest.raises(ValueError, match=r"got 90\.00 for evaluating 256 images"):
        preflight._compiled(lambda: {"knn": fits, "probe": planned(30, 60)}, setting, False)
