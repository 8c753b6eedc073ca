"""The probes against closed forms and plain NumPy, and once through the command line."""

import json
import subprocess
import sys

import numpy as np
import pytest
from absl.testing import flagsaver

from crate_jax import probe
from crate_jax.convert import checkpoints
from crate_jax.models import variants
from crate_jax.training import probing
from tests.end_to_end import runs
from tests.networks import draw


@pytest.fixture(scope="module")
def clusters():
    """Three classes about three directions, with outliers."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 8))
    labels = rng.integers(0, 3, 150)
    x = (centres[labels] + 0.9 * rng.normal(size=(150, 8))).astype(np.float32)
    return x[:120], labels[:120], x[120:], labels[120:]


def test_nearest_neighbours_are_dinos(clusters):
    x, y, queries, _ = clusters
    got = probing.nearest_neighbours(x, y, queries, k=7, chunk=11)
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (queries, x)]
    cosines = unit[0].astype(np.float64) @ unit[1].T.astype(np.float64)
    for row, query in enumerate(cosines):
        votes = np.zeros(3)
        for neighbour in np.argsort(-query)[:7]:
            votes[y[neighbour]] += np.exp(query[neighbour] / 0.07)
        assert got[row] == votes.argmax()


def test_one_neighbour_of_the_training_set_is_itself(clusters):
    x, y, _, _ = clusters
    np.testing.assert_array_equal(probing.nearest_neighbours(x, y, x, k=1), y)


def test_linear_probe_reaches_the_stationary_point(clusters):
    """At the minimum the mean residual of every class is zero, since the bias is not penalised."""
    x, y, _, _ = clusters
    z = (x - x.mean(0)) / (x.std(0) + 1e-6)
    weights = {}
    minimize = probing.scipy.optimize.minimize

    def spy(*args, **kwargs):
        found = minimize(*args, **kwargs)
        weights["w"] = found.x.reshape(9, 3)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing.scipy.optimize, "minimize", spy)
        _, strength = probing.linear_probe(x, y, x, l2=(1e-2,), steps=500)
    assert strength == 1e-2
    w = weights["w"]
    logits = z @ w[:-1] + w[-1]
    p = np.exp(logits - logits.max(1, keepdims=True))
    residual = p / p.sum(1, keepdims=True) - np.eye(3)[y]
    np.testing.assert_allclose(residual.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(z.T @ residual / len(z) + 1e-2 * w[:-1], 0, atol=1e-4)


def test_linear_probe_beats_chance_and_chooses_a_strength(clusters):
    x, y, queries, truth = clusters
    predicted, strength = probing.linear_probe(x, y, queries)
    assert np.mean(predicted == truth) > 0.6
    assert strength in probing.L2


def test_command_line(tmp_path):
    checkpoints.save(draw(variants.config("crate-testing")), tmp_path / "x.safetensors")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "crate_jax.probe",
            f"--checkpoint={tmp_path / 'x.safetensors'}",
            f"--config={runs.TINY}:4",
            "--config.data.scenes.train_length=64",
            f"--out={tmp_path / 'probe.json'}",
        ],
        cwd=runs.ROOT,
        env=runs.environment(2),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "probe.json").read_text())
    assert (scores["train_images"], scores["images"]) == (64, 24)
    assert 0 <= scores["knn_top1"] <= 1
    assert f"{scores['linear_top1']:.4f}" in done.stdout


def test_where_scores_cannot_be_written_is_said_before_all_work(tmp_path):
    out = tmp_path / "folder"
    out.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "crate_jax.probe"),
            *("--checkpoint=none", f"--config={runs.TINY}:4", f"--out={out}"),
        ],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {out}: expected a file, or a new name, to write to")


def test_declarations_are_those_of_every_command():
    with flagsaver.flagsaver(heads="4", mean="0.5", std="1,2,3", pool="mean", epsilon="1e-5"):
        declared = probe._declared()
    expected = {"heads": 4, "pool": "mean", "epsilon": 1e-5}
    assert declared == expected | {"mean": (0.5, 0.5, 0.5), "std": (1.0, 2.0, 3.0)}
