"""DINOv2, DINOv3, timm's and transformers' ViTs beside outputs of their authors' code."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy

import crate_jax
from crate_jax.convert import checkpoints, inspection
from crate_jax.convert.__main__ import main
from crate_jax.models.positions import resize_positions
from crate_jax.segmentation import attention

REFERENCE = pathlib.Path(__file__).parents[1] / "reference" / "any_vit"
DECLARED = {
    "dinov2_mini": {"heads": 2},
    "dinov2_reg_mini": {"heads": 2},
    "dinov2_swiglu_mini": {"heads": 2},
    "dinov3_mini": {},
    "dinov3_swiglu_untied_mini": {},
    "dinov3_7b_like_mini": {},
    "timm_vit_mini": {"heads": 2, "positions": "antialias"},
    "timm_vit_dinov2_style_mini": {"heads": 2, "image_size": (28, 42)},
    "hf_dinov2_reg_mini": {},
    "hf_dinov2_mini": {},
    "hf_vit_mini": {},
    "hf_dinov3_mini": {},
}
AUTHORS = [name for name in DECLARED if name.startswith("dino")]


def arrays_of(name):
    with np.load(REFERENCE / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def state_of(name):
    return safetensors.numpy.load_file(REFERENCE / f"{name}.safetensors")


def load(name):
    return crate_jax.load(REFERENCE / f"{name}.safetensors", **DECLARED[name])


def grids(arrays):
    return sorted(key.removesuffix("images") for key in arrays if key.endswith("images"))


@pytest.mark.parametrize("name", DECLARED)
def test_the_authors_numbers(name, run, error):
    arrays, model = arrays_of(name), load(name)
    r = model.config.registers
    for grid in grids(arrays):
        logits, out = run(model, arrays[f"{grid}images"].transpose(0, 2, 3, 1), capture=True)
        normed = np.asarray(model.normalise(out["tokens"][-1]))
        expected = {k.removeprefix(grid): v for k, v in arrays.items() if k.startswith(grid)}
        got = {
            "query": out["query"],
            "key": out["key"],
            "tokens": out["tokens"],
            "key_before_rope": out.get("key_unrotated"),
            "normed": normed,
            "last_hidden_state": normed,
            "norm_cls": normed[:, 0],
            "norm_reg": normed[:, 1 : 1 + r],
            "norm_storage": normed[:, 1 : 1 + r],
            "norm_patch": normed[:, 1 + r :],
            "logits": logits,
            "cls_map_last": attention.cls_maps(out["query"][-1], out["key"][-1], r),
        }
        if "hidden_states" in expected:
            expected["tokens"] = expected["hidden_states"][1:]
        compared = set(got) & {key for key, values in expected.items() if values.size}
        assert {"tokens", "cls_map_last"} < compared
        errors = {key: error(got[key], expected[key]) for key in compared}
        assert max(errors.values()) < 1e-5, (grid, errors)


@pytest.mark.parametrize("name", ["dinov2_mini", "dinov2_reg_mini"])
def test_positions_at_every_stored_grid(name, error):
    arrays, model = arrays_of(name), load(name)
    for key in [key for key in arrays if key.endswith("/pos_embed")]:
        rows, columns = map(int, key.partition("/")[0].split("x"))
        got = resize_positions(
            model.positions[...], model.config.grid, (rows, columns), model.config.positions
        )
        assert error(got, arrays[key]) < 1e-5


def test_training_checkpoints_prefixes_and_chunks(torch):
    plain = checkpoints.read(REFERENCE / "dinov2_mini.safetensors", heads=2)
    training = checkpoints.read(REFERENCE / "dinov2_mini_training.pth", heads=2)
    assert "dino_head." in " ".join(training.notes)
    assert set(training.params) == set(plain.params)
    for path, values in plain.params.items():
        np.testing.assert_array_equal(training.params[path], values)
    assert crate_jax.load(REFERENCE / "dinov3_mini.pth").config.heads == 2


@pytest.mark.parametrize("name", AUTHORS)
def test_given_back_as_the_authors_have_it(name, tmp_path):
    """Bit for bit, but the rows of the masked bias, which nothing reads."""
    checkpoints.save(
        checkpoints.read(REFERENCE / f"{name}.safetensors", **DECLARED[name]), tmp_path / "y.npz"
    )
    state = state_of(name)
    with np.load(tmp_path / "y.npz") as again:
        assert set(again.files) == set(state)
        for key, values in state.items():
            mask = state.get(key + "_mask", np.ones_like(values))
            np.testing.assert_array_equal(again[key], values * mask)


@pytest.mark.parametrize("name", sorted(set(DECLARED) - set(AUTHORS)))
def test_written_in_the_authors_names(name, tmp_path, run):
    source, target = REFERENCE / f"{name}.safetensors", tmp_path / "y.safetensors"
    checkpoints.save(checkpoints.read(source, **DECLARED[name]), target)
    names = set(safetensors.numpy.load_file(target))
    assert {"cls_token", "patch_embed.proj.weight", "blocks.1.attn.qkv.weight"} < names
    model, again = load(name), crate_jax.load(target)
    assert again.config == model.config
    arrays = arrays_of(name)
    images = arrays[f"{grids(arrays)[0]}images"].transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(run(model, images)[0], run(again, images)[0])


MEMORY = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "encoder.layer.": "layers.",
}


@pytest.mark.parametrize("name", [name for name in DECLARED if name.startswith("hf")])
@pytest.mark.parametrize("prefix", ["", "vit.", "dinov2_with_registers."])
def test_names_as_in_memory_and_of_task_models(name, prefix, tmp_path):
    state = {}
    for key, values in state_of(name).items():
        if prefix == "vit.":  # any spelling with any prefix
            for theirs, ours in MEMORY.items():
                key = key.replace(theirs, ours)
            if ".mlp.weights_in." in key:
                gate, up = np.split(values, 2)
                state[prefix + key.replace("weights_in", "gate_proj")] = gate
                state[prefix + key.replace("weights_in", "up_proj")] = up
                continue
            key = key.replace("weights_out", "down_proj")
        state[prefix + key] = values
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, path)
    shutil.copy(REFERENCE / f"{name}.config.json", tmp_path / "config.json")
    expected = checkpoints.read(REFERENCE / f"{name}.safetensors")
    got = checkpoints.read(tmp_path)  # the directory as transformers writes it
    assert got.config == expected.config
    assert got.origin["heads"] == "config.json"
    for key, values in expected.params.items():
        np.testing.assert_array_equal(got.params[key], values)


def test_preprocessing_and_activation_beside_the_weights(tmp_path):
    shutil.copy(REFERENCE / "hf_vit_mini.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="heads: undeclared"):
        crate_jax.load(tmp_path)
    config = json.loads((REFERENCE / "hf_vit_mini.config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    model = crate_jax.load(tmp_path)
    assert (model.config.epsilon, model.config.mean) == (1e-12, (0.5, 0.5, 0.5))
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "quick_gelu"}))
    with pytest.raises(ValueError, match=r"hidden_act: expected gelu.*'quick_gelu'"):
        crate_jax.load(tmp_path)


@pytest.mark.parametrize("name", ["hf_dinov2_mini", "hf_dinov2_reg_mini"])
def test_classifiers_of_dinov2_read_cls_beside_the_mean(name, tmp_path, run, error):
    """`Dinov2ForImageClassification` and its like with registers."""
    arrays, state = arrays_of(name), state_of(name)
    rng = np.random.default_rng(0)
    head = {"weight": rng.normal(size=(5, 64)), "bias": rng.normal(size=5)}
    prefix = "dinov2." if name == "hf_dinov2_mini" else "dinov2_with_registers."
    state = {prefix + k: v for k, v in state.items()}
    state |= {f"classifier.{k}": v.astype(np.float32) for k, v in head.items()}
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    shutil.copy(REFERENCE / f"{name}.config.json", tmp_path / "config.json")
    model = crate_jax.load(tmp_path)
    grid = grids(arrays)[0]
    last = arrays[f"{grid}last_hidden_state"].astype(np.float64)
    patches = last[:, 1 + model.config.registers :]
    features = np.concatenate([last[:, 0], patches.mean(axis=1)], axis=1)
    logits, out = run(model, arrays[f"{grid}images"].transpose(0, 2, 3, 1))
    assert error(out["features"], features) < 1e-5
    assert error(logits, features @ head["weight"].T + head["bias"]) < 1e-5
    with pytest.raises(ValueError, match="pool: declared as 'mean', but inferred"):
        crate_jax.load(tmp_path, pool="mean")
    checkpoints.save(model, tmp_path / "y.safetensors")
    assert crate_jax.load(tmp_path / "y.safetensors").config == model.config
    assert crate_jax.load(tmp_path, drop_head=True).config.pool == "cls"


@pytest.mark.parametrize("name", ["mask_token", "masked_embed"])
def test_tokens_of_masked_training_change_nothing(name, write, tmp_path):
    state = state_of("timm_vit_mini")
    masked = write(state | {name: np.ones((1, 32), np.float32)})
    declared = DECLARED["timm_vit_mini"]
    expected, got = (
        checkpoints.read(path, **declared)
        for path in (REFERENCE / "timm_vit_mini.safetensors", masked)
    )
    assert got.config == expected.config
    assert set(got.params) == set(expected.params)
    checkpoints.save(got, tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz") as again:
        assert set(again.files) == {*state, name}


def test_the_activation_of_a_gated_dinov3_is_said_or_refused(tmp_path):
    rng, state = np.random.default_rng(0), state_of("hf_dinov3_mini")
    for i in range(10):
        if (up := state.get(f"layer.{i}.mlp.up_proj.weight")) is not None:
            state[f"layer.{i}.mlp.gate_proj.weight"] = rng.normal(size=up.shape).astype(np.float32)
            state[f"layer.{i}.mlp.gate_proj.bias"] = np.zeros(len(up), np.float32)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(state, path)
    found = checkpoints.read(path, heads=2)
    assert found.config.ffn == "swiglu"
    assert any("gated by SiLU" in text for text in found.warnings)
    config = json.loads((REFERENCE / "hf_dinov3_mini.config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "silu"}))
    assert not checkpoints.read(path).warnings
    for said in ({"hidden_act": "gelu"}, {}):  # which is what transformers takes unless told
        rest = {k: v for k, v in config.items() if k != "hidden_act"}
        (tmp_path / "config.json").write_text(json.dumps(rest | said))
        with pytest.raises(ValueError, match="hidden_act: expected silu"):
            crate_jax.load(path)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"num_register_tokens": 3}, "registers: config.json as 3, but .* as 4; fetch it and"),
        ({"patch_size": 16}, "patch_size: config.json as 16, but inferred from shapes as 14"),
        ({"hidden_size": 64}, "dim: config.json as 64"),
        ({"num_hidden_layers": 12}, "depth: config.json as 12"),
        ({"patch_size": "14 px"}, "patch_size: expected an integer"),
    ],
)
def test_a_config_of_another_file_is_refused(said, what, tmp_path):
    shutil.copy(REFERENCE / "hf_dinov2_reg_mini.safetensors", tmp_path / "model.safetensors")
    config = json.loads((REFERENCE / "hf_dinov2_reg_mini.config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"patch_size": [14, 14]}))
    assert crate_jax.load(tmp_path).config.registers == 4
    (tmp_path / "config.json").write_text(json.dumps(config | said))
    with pytest.raises(ValueError, match=what):
        crate_jax.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "registers", "patch"),
    [("dinov2_reg_mini", 4, 14), ("dinov2_mini", 0, 14), ("dinov3_mini", 4, 16)],
)
def test_registers_and_patches_that_are_declared_are_compared(name, registers, patch):
    path, heads = REFERENCE / f"{name}.safetensors", DECLARED[name]
    model = crate_jax.load(path, registers=registers, patch_size=patch, **heads)
    assert (model.config.registers, model.config.patch_size) == (registers, patch)
    with pytest.raises(ValueError, match=f"registers: declared as 8, but .* as {registers}; "):
        crate_jax.load(path, registers=8, **heads)
    with pytest.raises(ValueError, match=f"patch_size: declared as 8, but .* as {patch}"):
        crate_jax.load(path, patch_size=8, **heads)


def test_transformers_keeps_a_tensor_of_no_registers(tmp_path):
    """`num_register_tokens=0`: what is written has the shape (1, 0, d)."""
    state = state_of("hf_dinov3_mini")
    empty = state.pop("embeddings.register_tokens")[:, :0]
    config = json.loads((REFERENCE / "hf_dinov3_mini.config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_register_tokens": 0}))
    params = []
    for held in (state, state | {"embeddings.register_tokens": np.ascontiguousarray(empty)}):
        safetensors.numpy.save_file(held, tmp_path / "model.safetensors")
        params.append(checkpoints.read(tmp_path))
    assert params[0].config == params[1].config
    assert params[1].config.registers == 0
    assert set(params[0].params) == set(params[1].params)


def test_parts_and_their_index(tmp_path):
    state = state_of("hf_dinov2_reg_mini")
    names = sorted(state)
    parts = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for part, held in parts.items():
        safetensors.numpy.save_file({k: state[k] for k in held}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    where = {name: part for part, held in parts.items() for name in held}
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    shutil.copy(REFERENCE / "hf_dinov2_reg_mini.config.json", tmp_path / "config.json")
    expected = checkpoints.read(REFERENCE / "hf_dinov2_reg_mini.safetensors").params
    for path in (index, tmp_path):
        got = checkpoints.read(path).params
        for key, values in expected.items():
            np.testing.assert_array_equal(got[key], values)
    gone = list(parts)[1:]
    for part in gone:
        (tmp_path / part).unlink()
    with pytest.raises(ValueError, match=f"its 3 parts beside it, got all but {', '.join(gone)}"):
        crate_jax.load(index)
    index.write_text('{"weight_map": {"cls_token": "../x.safetensors"}}')
    with pytest.raises(ValueError, match=r"expected parts beside the index, got \.\./x"):
        crate_jax.load(index)
    index.write_text('{"weights": {}}')
    with pytest.raises(ValueError, match="weight_map"):
        crate_jax.load(index)


def timm_style(**changes):
    """timm's own form of `dinov2_reg_mini`, from which it differs in nothing that is computed."""
    state = {k: v for k, v in state_of("dinov2_reg_mini").items() if k != "mask_token"}
    positions, registers = state["pos_embed"], state.pop("register_tokens")
    if changes.get("embed_class"):
        r = np.random.default_rng(0).normal(size=registers.shape).astype(np.float32)
        state["reg_token"] = registers - r
        state["pos_embed"] = np.concatenate([positions[:, :1], r, positions[:, 1:]], axis=1)
    else:
        state["reg_token"] = registers
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
    return state


@pytest.mark.parametrize("embed_class", [False, True])
def test_timms_positions_of_cls_and_registers(embed_class, write, run, error):
    arrays = arrays_of("dinov2_reg_mini")
    model = crate_jax.load(write(timm_style(embed_class=embed_class)), heads=2)
    _, out = run(model, arrays["3x8/images"].transpose(0, 2, 3, 1), capture=True)
    assert error(out["tokens"], arrays["3x8/tokens"]) < 1e-5


def test_positions_that_fit_two_grids_are_declared(write):
    """Eight registers: 25 are 5 x 5 patches, or [CLS], the registers and 4 x 4."""
    state = timm_style(embed_class=False)
    rng, dim = np.random.default_rng(0), state["cls_token"].shape[-1]
    state["reg_token"] = rng.normal(size=(1, 8, dim)).astype(np.float32)
    state["pos_embed"] = rng.normal(size=(1, 25, dim)).astype(np.float32)
    path = write(state)
    with pytest.raises(ValueError, match=r"fit 16 patches, a square of 4 or 25 .*image_size"):
        crate_jax.load(path, heads=2)
    for side in (4, 5):
        assert crate_jax.load(path, heads=2, image_size=14 * side).config.grid == (side, side)


def test_timms_gated_ffn_has_the_mlps_names(write):
    state = {
        k.replace(".w12.", ".fc1.").replace(".w3.", ".fc2."): v
        for k, v in state_of("dinov2_swiglu_mini").items()
    }
    expected = checkpoints.read(REFERENCE / "dinov2_swiglu_mini.safetensors", heads=2)
    got = checkpoints.read(write(state), heads=2)
    assert got.config == expected.config
    for key, values in expected.params.items():
        np.testing.assert_array_equal(got.params[key], values)


def test_no_qkv_bias_and_no_registers(write):
    state = {k: v for k, v in state_of("dinov2_mini").items() if "qkv.bias" not in k}
    config = crate_jax.load(write(state), heads=2).config
    assert (config.qkv_bias, config.registers, config.positions) == (False, 0, "dino")
    state = {k: v for k, v in state_of("dinov3_mini").items() if k != "storage_tokens"}
    assert crate_jax.load(write(state, "y.safetensors")).config.registers == 0


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_a_mask_of_biases_that_is_another(value, write):
    state = state_of("dinov3_mini")
    state["blocks.1.attn.qkv.bias_mask"][40] = value
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv\.bias_mask: expected ones, zeros"):
        crate_jax.load(write(state))


def test_dinov3_stores_no_positions(write):
    config = load("dinov3_mini").config
    assert config.image_size == (256, 256)
    path = REFERENCE / "dinov3_mini.safetensors"
    assert crate_jax.load(path, image_size=(48, 80)).config.image_size == (48, 80)
    with pytest.raises(ValueError, match="dinov3 resamples none"):
        crate_jax.load(path, positions="dino")
    with pytest.raises(ValueError, match="heads: declared as 4, but"):
        crate_jax.load(path, heads=4)
    notes = checkpoints.read(path).notes
    assert "rotary periods: as the file has them" in notes
    notes = checkpoints.read(REFERENCE / "hf_dinov3_mini.safetensors").notes
    assert "rotary periods: by the formula" in notes


def test_inspection_names_layout_and_sizes():
    text = inspection.inspect(REFERENCE / "hf_dinov2_reg_mini.safetensors")
    assert "transformers (Hugging Face)" in text
    assert "registers" in text
    assert re.search(r"heads +2 \(config.json\)", text)
    text = inspection.inspect(REFERENCE / "dinov3_7b_like_mini.safetensors")
    assert "dinov3" in text
    assert "undeclared" not in text
    text = inspection.inspect(REFERENCE / "timm_vit_dinov2_style_mini.safetensors")
    assert "6 positions are no square grid" in text


def test_conversion_says_what_it_did(tmp_path, capsys):
    source = REFERENCE / "hf_dinov3_mini.safetensors"
    assert main([f"--source={source}", f"--target={tmp_path}/y.safetensors"]) == 0
    said = capsys.readouterr().out
    assert "heads = 2 (config.json)" in said
    assert "rotary periods: by the formula" in said
