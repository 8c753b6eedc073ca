import functools
import importlib.util
import json
import pathlib

import ml_collections
import pytest

from crate_jax import config
from crate_jax.models import variants

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.py") if p.name != "__init__.py")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_resolves_and_describes_a_network(path):
    module = load(path)
    c = config.resolve(module.get_config())
    model = variants.from_dict(c.model.to_dict())
    assert variants.count_parameters(model) > 0
    assert config.durations(c, 1_281_167).total > 0
    assert "python -m crate_jax.main" in module.__doc__
    json.dumps(config.plain(c))


@pytest.mark.parametrize("size", "tsbl")
def test_imagenet_twins(size):
    assert config.load("imagenet", f"size={size},model=vit").model.family == "vit"
    assert config.load("imagenet", f"{size},nonlinearity=mlp").model.nonlinearity == "mlp"
    with pytest.raises(ValueError, match="did you mean model"):
        config.load("imagenet", f"{size},modle=vit")


def test_alpha_is_fine_tuned_as_its_code_does():
    """Of the authors' fine_tuning_in1k.py, with base rate 1e-5 times batch / 256."""
    c = config.load("finetune", "model=crate-alpha-b16")
    assert (c.batch_size, c.epochs, c.optimizer.warmup) == (4096, 91, "10 epochs")
    assert (c.optimizer.name, c.optimizer.b1, c.optimizer.b2) == ("adamw", 0.9, 0.95)
    assert (c.optimizer.weight_decay, c.optimizer.decay_mask) == (0.1, "kernel")
    assert c.optimizer.learning_rate == pytest.approx(1e-5 * 4096 / 256)
    assert c.optimizer.learning_rate * c.optimizer.end_factor == pytest.approx(1e-6)
    assert c.optimizer.clip_norm == 1.0
    assert (c.mixup, c.cutmix, c.mixup_switch, c.label_smoothing) == (0.8, 1.0, 0.5, 0.1)
    assert (c.data.randaugment_layers, c.data.randaugment_magnitude) == (2, 9)
    assert (c.data.crop, c.data.crop_scale, c.data.flip) == ("random", (0.08, 1.0), True)
    pretraining = config.load("alpha", "b,patch=16")
    assert pretraining.optimizer.learning_rate == 8e-4
    assert pretraining.optimizer.learning_rate * pretraining.optimizer.end_factor == 1e-6


def test_other_networks_are_fine_tuned_as_the_paper_says():
    c = config.load("finetune", "pets,model=crate-s8")
    assert (c.optimizer.learning_rate, c.optimizer.weight_decay, c.batch_size) == (5e-5, 0.01, 256)
    assert (c.data.name, c.data.dataset, c.model.classes) == ("tfds", "oxford_iiit_pet", 37)
    assert config.load("finetune", "cifar10").batch_size == 128
    with pytest.raises(ValueError, match="dataset: expected one of imagenet, cifar10"):
        config.load("finetune", "cifar")


def resolved(changes=()):
    c = config.default()
    c.steps = 10
    with c.unlocked():
        for name, value in dict(changes).items():
            *sections, key = name.split(".")
            functools.reduce(ml_collections.ConfigDict.__getitem__, sections, c)[key] = value
    return config.resolve(c)


def test_unknown_keys_name_the_nearest_all_at_once():
    c = config.default()
    c.steps = 10
    c.optimizer.learning_rte = 1.0
    c.batchsize = 3
    with pytest.raises(ValueError) as error:
        config.resolve(c)
    assert "unknown key optimizer.learning_rte, did you mean optimizer.learning_rate?" in str(
        error.value
    )
    assert "unknown key batchsize, did you mean batch_size?" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": "many"}, "batch_size: expected a whole number of at least 1, got 'many'"),
        ({"batch_size": True}, "batch_size: expected a whole number of at least 1, got True"),
        (
            {"label_smoothing": "0.1"},
            "label_smoothing: expected a number of at least 0 and below 1",
        ),
        ({"log_every": "often"}, 'log_every: expected a duration such as 500, "500 steps"'),
        (
            {"evals.knn": "sometimes"},
            'evals.knn: expected "" (as evaluate_every), "never", or a dur',
        ),
        ({"evals.knm": "never"}, "unknown key evals.knm, did you mean evals.knn?"),
        ({"epochs": 3.0}, "exactly one of steps and epochs"),
        ({"steps": None}, "exactly one of steps and epochs"),
        ({"dtype": "float16"}, "dtype: expected one of float32, bfloat16, got 'float16'"),
        ({"optimizer.name": "adam"}, "got 'adam', did you mean adamw?"),
        ({"optimizer": 3}, "optimizer: expected a section with keys, got 3"),
        ({"data.scenes": None}, "data.scenes: expected a section with keys, got None"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected a number of at least 0 and below 1"),
        ({"accumulate": 0}, "accumulate: expected a whole number of at least 1, got 0"),
        ({"mixup": float("nan")}, "mixup: expected a number of at least 0, got nan"),
        ({"seed": -1}, "seed: expected a whole number from 0 to 2^63 - 1, got -1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints: expected a whole number of at least 1, got 0"),
        ({"profile_steps": -1}, "profile_steps: expected a whole number of at least 0, got -1"),
        ({"data.resize": 100_000}, "data.resize: expected a whole number from 1 to 8,192, or None"),
        (
            {"data.scenes.objects": (1.5, 2)},
            "expected (low, high), each a whole number from 1 to 10",
        ),
        (
            {"data.scenes.scale": (0.6, 0.5)},
            "data.scenes.scale: expected (low, high), each a number",
        ),
        (
            {"data.scenes.zoom": ((1, 2), (3, 4))},
            "data.scenes.zoom: expected (low, high), each a num",
        ),
        ({"model.image_size": "big"}, "model.image_size: expected 2 numbers such as (224, 224)"),
        ({"model.mean": 1}, "model.mean: expected 3 numbers such as (0.485, 0.456, 0.406), got 1"),
        ({"model.head_dim": 0}, "config: model.head_dim: expected a whole number of at least 1"),
        ({"model.heads": 5}, "config: model.heads: expected a divisor of dim 768, got 5"),
    ],
)
def test_wrong_values_are_named(changes, message):
    with pytest.raises(ValueError) as error:
        resolved(changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("crate-alpha-testing", "overcomplete", 0),
        ("crate-mae-testing", "decoder_depth", 0),
        ("crate-mae-testing", "mask_ratio", 1.0),
        ("vit-testing", "mlp_ratio", -1.0),
        ("vit-testing", "mlp_ratio", 0.0),
    ],
)
def test_what_a_network_cannot_be_is_said_before_it_is_built(name, field, value):
    section = config.model(name)
    section[field] = value
    with pytest.raises(ValueError, match=f"^config: model.{field}: expected [^\\n]*got {value}"):
        resolved({"model": section})


def test_numbers_out_of_range_are_named_all_at_once():
    c = config.default()
    c.steps = 10
    c.optimizer.b1 = 1.5
    c.evaluation.keep = 60.0  # per cent, which would be said at the first evaluation otherwise
    with pytest.raises(ValueError) as error:
        config.resolve(c)
    assert "optimizer.b1: expected a number of at least 0 and below 1, got 1.5" in str(error.value)
    assert "evaluation.keep: expected a number from 0 to 1, got 60.0" in str(error.value)


def test_numbers_are_accepted_where_they_mean_the_same():
    c = resolved({"label_smoothing": 0, "log_every": 7})
    assert c.label_smoothing == 0
    assert config.durations(c, 1000).log == 7


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        (500, 500),
        ("500", 500),
        ("500 steps", 500),
        ("5 epochs", 50),
        ("1 epoch", 10),
        ("2.5 epochs", 25),
        ("48000 examples", 480),
        ("1 examples", 1),
        (0, 0),
        ("0 epochs", 0),
    ],
)
def test_durations(value, steps):
    assert config.duration(value, batch_size=100, examples=1000) == steps


@pytest.mark.parametrize("value", ["five", "5 hours", "-3", "", None, True])
def test_durations_that_are_none(value):
    with pytest.raises(ValueError, match="expected a duration"):
        config.duration(value, 100, 1000)


def test_every_evaluator_has_its_period():
    periods = {"evals.emergence": "2 epochs", "evals.knn": 0, "evals.probe": "30"}
    c = resolved({"evaluate_every": "5 steps", "batch_size": 100} | periods)
    assert config.durations(c, 1000).evaluate == {
        "validation": 5,
        "emergence": 20,
        "knn": 0,
        "probe": 30,
    }


def test_differences_ignore_what_changes_no_number():
    old, new = resolved(), resolved({"log_every": "3 steps", "seed": 4, "label_smoothing": 0.2})
    saved = json.loads(json.dumps(config.plain(old)))
    assert config.differences(saved, old) == []
    assert config.differences(saved, new) == [
        "label_smoothing: 0.0 -> 0.2",
        "seed: 0 -> 4",
    ]


def test_arguments_of_a_config_file():
    read = config.arguments("vit,steps=30,flip=false", model="crate", steps=10, flip=True)
    assert read == ml_collections.ConfigDict({"model": "vit", "steps": 30, "flip": False})
    with pytest.raises(ValueError, match="steps: expected int, got 'x'"):
        config.arguments("steps=x", model="crate", steps=10)
    with pytest.raises(ValueError, match="flip: expected bool, got 'maybe'"):
        config.arguments("flip=maybe", flip=True)
    with pytest.raises(ValueError, match="this file takes none, got 'vit'"):
        config.arguments("vit")


def test_model_section_keeps_head_dim_open():
    section = config.model("crate-testing")
    section.heads = 6
    assert variants.from_dict(section.to_dict()).head_dim == 4


def test_config_files_of_the_package_are_loaded_by_name():
    c = config.load("scenes_tiny", "images=64")
    assert c == load(ROOT / "configs" / "scenes_tiny.py").get_config("images=64")
    assert config.load("imagenet_t").model.dim == 384
    assert config.load("imagenet_b") == config.load("imagenet", "size=b")
    assert config.load("imagenet21k_s8", "model=vit").model.family == "vit"
    with pytest.raises(ValueError, match="size: expected one of t, s, b, l, got 'x'"):
        config.load("imagenet_x")
    with pytest.raises(ValueError, match="got 'scene_tiny', did you mean scenes_tiny"):
        config.load("scene_tiny")


def test_the_section_of_a_network_is_that_network():
    network = variants.config("crate-testing", heads=2)
    section = config.model_section(network)
    assert variants.from_dict(section.to_dict()) == network
    section.classes = 7
    assert variants.from_dict(section.to_dict()).classes == 7
