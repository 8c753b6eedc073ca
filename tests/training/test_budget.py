"""What cannot fit or be compiled is refused from shapes, in seconds; numbers counted by hand."""

import time

import pytest

from crate_jax import config
from crate_jax.models import variants
from crate_jax.training import budget, sharding, step


def check(**changes):
    c = config.load("scenes_mae" if "model.decoder_depth" in changes else "scenes_tiny")
    c.update_from_flattened_dict(changes)
    c = config.resolve(c)
    network = variants.from_dict(c.model.to_dict())
    budget.check(c, network, sharding.make_mesh())
    return c, network


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.depth": 100_000}, "model.depth: expected at most 1,000 layers, got 100,000"),
        ({"model.decoder_depth": 5_000}, "layers, got 5,004"),
        ({"model.dim": 2**20}, "a smaller model"),
        ({"batch_size": 10**9}, "a smaller batch_size or more accumulate"),
        # 8192^2 / 4^2 patches and [CLS]: 4.2 million tokens, 70 TB of float32 for one map
        (
            {"model.image_size": 8192, "data.image_size": 8192, "batch_size": 1},
            "got 4,398.1 GB for the attention of one image of 1,048,577 tokens",
        ),
        (
            {"evaluation.batch_size": 10**9},
            "got 12,288.0 GB for evaluation.batch_size=1,000,000,",
        ),
    ],
)
def test_what_no_machine_has_is_refused_within_seconds(changes, message, monkeypatch):
    monkeypatch.setattr(budget, "host_memory", lambda: 16e9)
    started = time.monotonic()
    with pytest.raises(ValueError) as error:
        check(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 20


def loader(**changes):
    c = config.load("imagenet_b")
    c.update_from_flattened_dict(changes)
    return budget.loader_line(config.resolve(c), 50_000, sharding.make_mesh())


def test_batches_made_ahead_are_counted_before_workers_start(monkeypatch):
    """imagenet_b on 24 GB: its workers took all of it."""
    monkeypatch.setattr(budget, "host_memory", lambda: 24e9)
    # 16 x 8 batches of 2,048 images of 224 px, and all 49 of 1,024 held-out images; 2 x 16 workers
    need = 3 * 224**2 * (128 * 2048 + 49 * 1024) + 32 * 0.11e9
    with pytest.raises(ValueError) as error:
        loader()
    assert f"expected at most 24.0 GB, got {need / 1e9:.1f} GB for 177 batches" in str(error.value)
    assert "ahead in 16 workers; fewer data.workers, or" in str(error.value)
    need = 3 * 224**2 * 5 * (2048 + 1024)
    assert loader(**{"data.workers": 0}) == (
        f"loader    up to {need / 1e9:.1f} GB of the host for 10 batches ahead in a thread"
    )


def test_long_compilations_are_announced(capsys):
    check(**{"model.decoder_depth": 100})
    assert "104 layers: tracing and compiling takes about 1:44" in capsys.readouterr().out
    check()
    assert capsys.readouterr().out == ""


def test_operations_of_two_layers_tell_those_of_five():
    c, network = check(**{"model.depth": 5})
    shallow = [variants.config("crate-testing", **{**_fields(network), "depth": d}) for d in (1, 2)]
    one, two = (step.flops_per_image(c, s) for s in shallow)
    assert step.flops_per_image(c, network) == pytest.approx(one + 4 * (two - one), rel=1e-12)


def _fields(network):
    return {k: v for k, v in network.to_dict().items() if k not in ("family", "head_dim")}


@pytest.mark.parametrize(
    ("size", "accumulate", "nearest"), [(250, 1, "248 or 256"), (3, 1, "8"), (40, 3, "24 or 48")]
)
def test_a_batch_that_does_not_divide_names_the_nearest(size, accumulate, nearest):
    class Mesh:
        size = 8

    with pytest.raises(ValueError, match=f"got {size}; try {nearest}$"):
        sharding.check_batch("batch_size", size, Mesh, accumulate)
