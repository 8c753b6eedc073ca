"""torchvision's ViT, as LaSt-ViT's backbone is, beside a forward pass by PyTorch's own modules."""

import numpy as np
import pytest

import crate_jax
from crate_jax.convert import inspection
from crate_jax.models import pooling

DIM, HEADS, DEPTH, PATCH, GRID, CLASSES = 24, 3, 2, 4, 3, 5


def modules(torch):
    """By the names of torchvision's `VisionTransformer`, random."""
    torch.manual_seed(0)
    norm = {"eps": 1e-6}
    made = {"conv_proj": torch.nn.Conv2d(3, DIM, PATCH, PATCH)}
    for i in range(DEPTH):
        made |= {
            f"encoder.layers.encoder_layer_{i}.{name}": module
            for name, module in {
                "ln_1": torch.nn.LayerNorm(DIM, **norm),
                "self_attention": torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True),
                "ln_2": torch.nn.LayerNorm(DIM, **norm),
                "mlp.0": torch.nn.Linear(DIM, 4 * DIM),
                "mlp.3": torch.nn.Linear(4 * DIM, DIM),
            }.items()
        }
    made |= {"encoder.ln": torch.nn.LayerNorm(DIM, **norm)}
    made |= {"heads.head": torch.nn.Linear(DIM, CLASSES)}
    for module in made.values():
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, 0.1, 0.3)
    return made


def forward(torch, made, cls, positions, images):
    """(tokens after the last layer, logits)."""
    x = made["conv_proj"](images).flatten(2).transpose(1, 2)
    x = torch.cat([cls.expand(len(x), -1, -1), x], 1) + positions
    for i in range(DEPTH):
        layer = {
            name.rpartition(f"encoder_layer_{i}.")[2]: module
            for name, module in made.items()
            if f"encoder_layer_{i}." in name
        }
        y = layer["ln_1"](x)
        x = x + layer["self_attention"](y, y, y, need_weights=False)[0]
        hidden = torch.nn.functional.gelu(layer["mlp.0"](layer["ln_2"](x)))
        x = x + layer["mlp.3"](hidden)
    return x, made["heads.head"](made["encoder.ln"](x)[:, 0])


@pytest.fixture
def case(torch):
    made = modules(torch)
    cls, positions = torch.randn(1, 1, DIM), torch.randn(1, 1 + GRID**2, DIM)
    images = torch.randn(2, 3, GRID * PATCH, GRID * PATCH)
    with torch.no_grad():
        tokens, logits = forward(torch, made, cls, positions, images)
    state = {"class_token": cls, "encoder.pos_embedding": positions} | {
        f"{prefix}.{name}": values.detach()
        for prefix, module in made.items()
        for name, values in module.state_dict().items()
    }
    return state, images.permute(0, 2, 3, 1).numpy(), tokens.numpy(), logits.numpy()


@pytest.mark.parametrize("wrapped", [False, True])
def test_its_numbers(wrapped, case, torch, tmp_path, run, error):
    state, images, tokens, logits = case
    path = tmp_path / "x.pth"
    if wrapped:  # as LaSt-ViT's training saves it
        torch.save({"model": {f"model.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    else:
        torch.save(state, path)
    with pytest.raises(ValueError, match="heads: undeclared"):
        crate_jax.load(path)
    got, out = run(crate_jax.load(path, heads=HEADS), images, capture=True)
    assert error(out["tokens"][-1], tokens) < 1e-5
    assert error(got, logits) < 1e-5
    assert "torchvision" in inspection.inspect(path)


def test_older_names_and_the_pooling_of_last_vit(case, write, run, error):
    state, images, tokens, _ = case
    older = {
        k.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): v.numpy()
        for k, v in state.items()
    }
    model = crate_jax.load(write(older), heads=HEADS, pool="last_vit")
    _, out = run(model, images, capture=True)
    assert error(out["tokens"][-1], tokens) < 1e-5
    expected = pooling.last_vit(model.normalise(out["tokens"][-1])[:, 1:])
    assert error(out["features"], expected) < 1e-4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("heads.pre_logits.weight", "pre_logits"),
        ("conv_proj.conv_bn_relu_0.0.weight", "a stem of convolutions"),
    ],
)
def test_its_options_are_refused_by_name(name, said, case, write):
    state = {k: v.numpy() for k, v in case[0].items()} | {name: np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=said):
        crate_jax.load(write(state), heads=HEADS)
