"""Networks that look like one of ours and are another: each is refused by its name."""

import numpy as np
import pytest

import crate_jax
from crate_jax.convert import inspection, refusals
from tests.convert.test_any_vit import state_of

SIGNS = {
    "blocks.0.attn.q_norm.weight": "query/key norm",
    "norm_pre.weight": "CLIP's ViT",
    "dist_token": "distilled DeiT",
    "blocks.0.attn.relative_position_bias_table": "relative positions",
    "attn_pool.latent": "SigLIP",
    "blocks.0.gamma_1": "EVA/BEiT",
    "blocks.0.mlp.norm.weight": "inner norms",
    "blocks.0.mlp.fc1_g.weight": "AIMv2",
    "blocks.0.in_proj.weight": "parallel blocks",
    "blocks.0.attns.0.qkv.weight": "parallel attention",
    "blocks.0.attn.lambda_q1": "differential attention",
    "pre_logits.fc.weight": "pre_logits",
    "stages.0.0.weight": "ConvNeXt",
    "blocks.0.attn.temp": "ToST",
}


@pytest.mark.parametrize("sign", SIGNS)
def test_what_is_something_else_is_refused_by_name(sign, write):
    path = write(state_of("timm_vit_mini") | {sign: np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=SIGNS[sign]):
        crate_jax.load(path, heads=2)
    assert SIGNS[sign] in inspection.inspect(path)


@pytest.mark.parametrize(
    ("absent", "what"),
    [
        ("cls_token", "pooled without a class token"),
        ("patch_embed.proj.bias", "no bias in its patch embedding"),
        ("blocks.0.norm1.bias", "RMSNorm"),
        ("norm.", "no final norm"),
    ],
)
def test_what_lacks_something_is_refused_by_name(absent, what, write):
    state = {k: v for k, v in state_of("timm_vit_mini").items() if not k.startswith(absent)}
    with pytest.raises(ValueError, match=what):
        crate_jax.load(write(state), heads=2)


def test_other_networks_are_named(write):
    for name, what in {
        "stages.0.0.dwconv.weight": "ConvNeXt",
        "vision_model.pre_layrnorm.weight": "CLIP",  # transformers' names
        "visual.ln_pre.weight": "CLIP",  # OpenAI's
        "vision_model.head.attention.in_proj_weight": "SigLIP",
    }.items():
        path = write({name: np.zeros((4, 1), np.float32)})
        with pytest.raises(ValueError, match=f"another network: {what}"):
            crate_jax.load(path)
    assert len({what for what, _, _ in refusals.REFUSALS}) == len(refusals.REFUSALS)
