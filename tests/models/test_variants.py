"""Every named size: exact parameter counts, and that none is missing from the table."""

import json

import jax
import pytest

from crate_jax.models import base, variants

# Weights, biases, norms, [CLS] and positions. Those of protocols.md section 1 equal the papers'.
PARAMETERS = {
    "crate-t16": 6_090_856,
    "crate-s16": 13_116_328,
    "crate-b16": 22_796_008,
    "crate-l16": 77_641_192,
    "crate-t8": 5_743_057,
    "crate-s8": 14_118_097,
    "crate-b8": 38_830_801,
    "crate-s8-21k": 14_118_482,
    "crate-b8-21k": 38_831_570,
    "crate-demo": 39_422_162,
    "crate-mlp-s8": 26_527_441,
    "crate-mhsa-s8": 17_657_041,
    "crate-sth-s8": 14_118_097,
    "crate-alpha-b32": 73_985_512,
    "crate-alpha-b16": 72_328_936,
    "crate-alpha-b8": 72_338_152,
    "crate-alpha-l32": 255_982_568,
    "crate-alpha-l14": 253_650_920,
    "crate-alpha-l8": 253_786_088,
    "crate-alpha-h14": 526_819_560,
    "crate-mae-t16": 11_331_840,
    "crate-mae-s16": 24_960_000,
    "crate-mae-b16": 43_896_576,
    "crate-mae-l16": 153_023_232,
    "vit-t8": 5_719_720,
    "vit-t14": 5_694_376,
    "vit-t16": 5_717_416,
    "vit-t32": 6_131_560,
    "vit-s8": 22_055_272,
    "vit-s14": 22_004_584,
    "vit-s16": 22_050_664,
    "vit-s32": 22_878_952,
    "vit-b8": 86_576_872,
    "vit-b14": 86_475_496,
    "vit-b16": 86_567_656,
    "vit-b32": 88_224_232,
    "vit-l8": 304_338_920,
    "vit-l14": 304_203_752,
    "vit-l16": 304_326_632,
    "vit-l32": 306_535_400,
    # The published counts less the mask token's d, which only DINO's training uses.
    "dinov2-s14": 22_056_576 - 384,
    "dinov2-s14-reg4": 22_056_576 + 3 * 384,
    "dinov2-b14": 86_580_480 - 768,
    "dinov2-b14-reg4": 86_580_480 + 3 * 768,
    "dinov2-l14": 304_368_640 - 1024,
    "dinov2-l14-reg4": 304_368_640 + 3 * 1024,
    "dinov2-g14": 1_136_480_768 - 1536,
    "dinov2-g14-reg4": 1_136_480_768 + 3 * 1536,
    "simdinov2-b16": 85_820_160,
    "simdinov2-l16": 303_354_880,
    # Those of the layers, and the periods of the rotary positions.
    "dinov3-s16": 21_596_176,
    "dinov3-s16plus": 28_692_496,
    "dinov3-b16": 85_659_664,
    "dinov3-l16": 303_128_592,
    "dinov3-l16plus": 403_890_192,
    "dinov3-h16plus": 840_591_376,
    "dinov3-7b16": 6_716_031_008,
    "crate-testing": 9_490,
    "crate-alpha-testing": 17_074,
    "crate-mae-testing": 17_376,
    "vit-testing": 19_810,
    "dinov3-testing": 19_452,
}


def test_no_variant_is_missing_from_the_table():
    assert set(PARAMETERS) == set(variants.VARIANTS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    assert variants.count_parameters(variants.VARIANTS[name]) == PARAMETERS[name]


def by_hand(d, patch, depth, classes):
    """CRATE's parameters, counted from protocols.md section 1."""
    p, n = 3 * patch**2, (224 // patch) ** 2
    embed = 2 * p + (p * d + d) + 2 * d + d + (1 + n) * d
    layer = 2 * d + d * d + (d * d + d) + 2 * d + d * d
    return embed + depth * layer + 2 * d + d * classes + classes


@pytest.mark.parametrize("name", ["crate-t16", "crate-l16", "crate-s8", "crate-b8"])
def test_parameter_count_by_hand(name):
    c = variants.VARIANTS[name]
    assert by_hand(c.dim, c.patch_size, c.depth, c.classes) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["crate-b16", "crate-mae-t16"])
def test_parameter_count_of_the_whole_network(name):
    _, shapes = base.split(variants.abstract(variants.VARIANTS[name]))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


@pytest.mark.parametrize("name", [n for n in PARAMETERS if n.endswith("testing")])
def test_abstract_network_is_the_built_one(name):
    config = variants.VARIANTS[name]
    definition, params = base.split(variants.build(config, 0))
    abstract_definition, abstract = base.split(variants.abstract(config))
    assert definition == abstract_definition
    shapes = jax.tree.map(lambda x: x.shape, params)
    assert shapes == jax.tree.map(lambda x: x.shape, abstract)


@pytest.mark.parametrize("name", PARAMETERS)
def test_config_survives_json(name):
    config = variants.VARIANTS[name]
    assert variants.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_overrides():
    config = variants.config("crate-b8", heads=6, classes=10)
    assert (config.heads, config.head_dim, config.classes) == (6, 128, 10)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("crate-testing", field) for field in ("patch_size", "dim", "depth", "heads")),
        *(("crate-testing", field) for field in ("head_dim", "head_hidden")),
        ("crate-alpha-testing", "overcomplete"),
        ("crate-mae-testing", "decoder_depth"),
    ],
)
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_sizes_are_at_least_one(name, field, value):
    with pytest.raises(ValueError, match=f"{field}: expected a whole number of at least 1, got "):
        variants.config(name, **{field: value})


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("crate-testing", field) for field in ("step_size", "lambd", "epsilon")),
        *(("crate-alpha-testing", field) for field in ("step_size", "lambd", "head_epsilon")),
        *(("crate-mae-testing", field) for field in ("step_size", "lambd", "norm_epsilon")),
        ("vit-testing", "mlp_ratio"),
    ],
)
def test_numbers_are_finite_and_in_range(name, field, value):
    with pytest.raises(ValueError, match=f"{field}: expected a finite number .*, got {value}"):
        variants.config(name, **{field: value})


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("vit-testing", {"mlp_ratio": 0}, "mlp_ratio: expected a finite number of at least 0.04"),
        (
            "crate-testing",
            {"epsilon": 0},
            "epsilon: expected a finite number above 0 in float32, got 0",
        ),
        ("crate-testing", {"std": (1, 0, 1)}, "std: expected a finite number of at least 0.001"),
        ("crate-testing", {"mean": (0, 0, float("nan"))}, "mean: expected a finite number"),
        ("crate-testing", {"classes": -1}, "classes: expected a whole number of at least 0"),
        ("crate-b12", {}, "expected one of crate-t16"),
        ("crate-b16", {"depht": 3}, "unknown model fields depht"),
        ("crate-b16", {"heads": 7}, "expected a divisor of dim 768, got 7"),
        ("crate-b16", {"image_size": 225}, "expected multiples of patch_size 16"),
        ("crate-b16", {"pool": "max"}, "expected one of cls, mean"),
        ("crate-b16", {"attention": "msa"}, "expected one of mssa, mhsa"),
        ("crate-mae-b16", {"classes": 10}, "has no head"),
        ("crate-mae-b16", {"mask_ratio": 1.0}, "expected 0 < mask_ratio < 1"),
    ],
)
def test_faults_are_named(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        variants.config(name, **overrides)
