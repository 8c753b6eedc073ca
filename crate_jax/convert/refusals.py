"""Networks that look like a ViT and compute something else, by the names that give them away."""

import re
from collections.abc import Iterable

# What it is, a pattern that some name matches, and one that none does ("" where that is no sign).
REFUSALS = (
    ("ConvNeXt (stages of convolutions)", r"(encoder\.)?stages\.\d|downsample_layers\.", ""),
    (
        "CLIP's ViT (pre-norm, epsilon 1e-5, perhaps QuickGELU, which no key shows)",
        r"norm_pre\.|((vision_model|visual)\.)?(pre_layrnorm|ln_pre)\.",
        "",
    ),
    (
        "SigLIP (attention-pooled head; its GELU may be the tanh form)",
        r"attn_pool\.|(vision_model\.)?head\.attention\.",
        "",
    ),
    ("a stem of convolutions (torchvision's)", r"(conv_proj|patch_embed\.proj)\.conv_", ""),
    ("ToST (TSSA, which has no attention matrix)", r".*\.attn\.temp$", ""),
    ("query/key norm", r".*\.(attn|attention)\.(q|k)_norm\.", ""),
    ("inner norms (BEiT-3, EVA-02)", r".*\.(attn|mlp)\.(norm|inner_attn_ln|ffn_ln)\.", ""),
    ("AIMv2", r".*\.mlp\.fc1_[gx]\.|patch_embed\.norm\.", ""),
    ("parallel blocks", r".*\.(in_proj|attn_out_proj)\.", ""),
    ("parallel attention (18x2)", r".*\.attns\.\d", ""),
    ("differential attention", r".*lambda_q1", ""),
    (
        "a distilled DeiT (two prefix tokens)",
        r"(embeddings\.)?(dist_token|distillation_token)$|head_dist\.",
        "",
    ),
    (
        "EVA/BEiT layout (timm's DINOv3 too: take the authors' or transformers' file)",
        r".*\.gamma_1$|.*\.attn\.q_bias$|rope\.|.*lambda_1$",
        "",
    ),
    ("relative positions (BEiT)", r".*relative_position", ""),
    ("an old ImageNet-21k head (tanh after a dense layer, pre_logits)", r"pre_logits\.", ""),
    ("windows (Swin)", r"layers\.\d+\.blocks\.", ""),
    ("RMSNorm (a norm without a bias)", r"blocks\.0\.norm1\.weight$", r"blocks\.0\.norm1\.bias$"),
    (
        "CLIP's ViT (no bias in its patch embedding)",
        r"patch_embed\.proj\.weight$",
        r"patch_embed\.proj\.bias$",
    ),
    (
        "pooled without a class token (gap, SigLIP, so150m): no [CLS] map exists",
        r"pos_embed$",
        r"cls_token$",
    ),
    ("no final norm (RADIO, InternViT)", r"pos_embed$", r"(fc_)?norm\.weight$"),
)


def reasons(names: Iterable[str]) -> list[str]:
    """What the names say that the network is, of the kinds that are not computed here."""
    names = list(names)

    def any_matches(pattern: str) -> bool:
        return bool(pattern) and any(re.match(pattern, name) for name in names)

    return [what for what, has, lacks in REFUSALS if any_matches(has) and not any_matches(lacks)]
