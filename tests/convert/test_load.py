"""`crate_jax.load`: what is told, what must be declared, and every fault by its name."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import crate_jax
from crate_jax.convert import checkpoints
from crate_jax.models import variants
from tests.networks import draw

FAMILIES = ("crate_mini", "crate_alpha_mini", "crate_mae_mini", "dino_vit_mini")


def nhwc(images):
    return images.transpose(0, 2, 3, 1)


def check_outputs(name, model, arrays, run, error):
    if name == "crate_mae_mini":
        pred, out = run(model, nhwc(arrays["images"]), mask_noise=arrays["mask_noise"])
        assert error(pred, arrays["pred"]) < 1e-5
        np.testing.assert_array_equal(out["mask"], arrays["mask"])
    else:
        logits, _ = run(model, nhwc(arrays["images"]))
        assert error(logits, arrays["features" if name == "dino_vit_mini" else "logits"]) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_authors_names_load(name, reference, write, run, error):
    state, arrays = reference(name)
    model = crate_jax.load(write(state), heads=4)
    check_outputs(name, model, arrays, run, error)


@pytest.mark.parametrize("name", FAMILIES)
def test_reference_archives_load(name, reference_files):
    model = crate_jax.load(reference_files / f"{name}.npz", heads=4)
    assert (model.config.dim, model.config.heads, model.config.image_size) == (48, 4, (32, 32))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_save_writes_needs_no_declaration(name, suffix, reference, write, tmp_path):
    state, _ = reference(name)
    source = checkpoints.read(write(state), heads=4, positions="dino", mean=(0.5, 0.5, 0.5))
    checkpoints.save(source, tmp_path / f"y{suffix}")
    again = checkpoints.read(tmp_path / f"y{suffix}")
    assert again.config == source.config
    assert again.config.positions == "dino"
    for path, values in source.params.items():
        np.testing.assert_array_equal(again.params[path], values)


@pytest.mark.parametrize("name", FAMILIES)
def test_safetensors_hold_the_authors_tensors_bit_for_bit(name, reference, write, tmp_path):
    state, _ = reference(name)
    checkpoints.save(checkpoints.read(write(state), heads=4), tmp_path / "y.safetensors")
    again = safetensors.numpy.load_file(tmp_path / "y.safetensors")
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in state.items()}
    for key, values in state.items():
        np.testing.assert_array_equal(again[key].view(np.int32), values.view(np.int32))


def test_model_in_memory_is_saved(reference, write, tmp_path):
    state, _ = reference("crate_mae_mini")
    model = crate_jax.load(write(state), heads=4)
    checkpoints.save(model, tmp_path / "y.safetensors")
    again = safetensors.numpy.load_file(tmp_path / "y.safetensors")
    assert set(again) == set(state)  # the class's unused tensors too, for strict loading
    np.testing.assert_array_equal(
        again["blocks.1.layers.0.1.fn.weight"], state["blocks.1.layers.0.1.fn.weight"]
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_undeclared_files_hold_tensors_alone_as_the_authors_do(suffix, reference, write, tmp_path):
    source = checkpoints.read(write(reference("crate_mini")[0]), heads=4)
    bare = tmp_path / f"y{suffix}"
    checkpoints.save(source, bare, declared=False)
    with pytest.raises(ValueError, match="heads: undeclared"):
        checkpoints.read(bare)
    again = checkpoints.read(bare, heads=4)
    for path, values in source.params.items():
        np.testing.assert_array_equal(again.params[path], values)


class TestHeads:
    def test_undeclared_lists_candidates(self, crate_state, write):
        with pytest.raises(ValueError) as raised:
            crate_jax.load(write(crate_state()))
        text = str(raised.value)
        assert "heads: undeclared, and tensor shapes do not tell" in text
        assert "one of 2, 3, 4, 6, 8, 12, 24;" in text
        assert "crate-testing (3 heads)" in text

    @pytest.mark.parametrize("heads", [5, 0, -2, 48])
    def test_impossible(self, heads, crate_state, write):
        with pytest.raises(ValueError, match="heads: expected a divisor of the inner width 24"):
            crate_jax.load(write(crate_state()), heads=heads)

    def test_one_head_has_no_output_map(self, crate_state, write):
        path = write(crate_state(output=False))
        assert crate_jax.load(path).config.heads == 1  # inferred from shapes
        with pytest.raises(ValueError, match="declared as 4, but inferred from shapes as 1"):
            crate_jax.load(path, heads=4)
        with pytest.raises(ValueError, match="one head of full width has no output map"):
            crate_jax.load(write(crate_state(), "y.safetensors"), heads=1)

    def test_inner_width_other_than_the_tokens(self, crate_state, write, run):
        """The class's own default is heads of 64 whatever the width."""
        state = crate_state()
        for i in range(2):
            state[f"transformer.layers.{i}.0.fn.qkv.weight"] = np.ones((192, 24), np.float32)
            state[f"transformer.layers.{i}.0.fn.to_out.0.weight"] = np.ones((24, 192), np.float32)
        model = crate_jax.load(write(state), heads=3)
        assert (model.config.dim, model.config.head_dim) == (24, 64)
        assert crate_jax.load(write(state), heads=1).config.head_dim == 192

    def test_contradiction_with_the_stored_declaration(self, crate_state, write, tmp_path):
        target = tmp_path / "y.safetensors"
        checkpoints.save(checkpoints.read(write(crate_state()), heads=4), target)
        with pytest.raises(ValueError, match="declared as 3, but stored in the file as 4"):
            crate_jax.load(target, heads=3)
        assert crate_jax.load(target, heads=4).config.heads == 4

    def test_published_files_say_theirs(self, crate_state, write):
        from crate_jax.convert import published
        from crate_jax.models import variants

        for entry in published.PUBLISHED.values():
            config = variants.VARIANTS[entry.variant]
            assert not config.dim % entry.declared["heads"]
            assert config.heads == entry.declared["heads"]
        with pytest.raises(ValueError, match="crate-demo is a crate of width 768"):
            crate_jax.load(write(crate_state()), published="crate-demo")
        with pytest.raises(ValueError, match="did you mean crate-demo"):
            crate_jax.load(write(crate_state()), published="crate_demo")

    def test_demo_double_head(self, crate_state, write, run):
        state = crate_state(dim=768, depth=12, patches=4, classes=768)
        state["head.weight"] = np.ones((5, 768), np.float32)
        state["head.bias"] = np.zeros(5, np.float32)
        model = crate_jax.load(write(state), published="crate-demo")
        assert (model.config.heads, model.config.head_hidden, model.config.classes) == (6, 768, 5)
        np.testing.assert_array_equal(model.head_hidden.kernel[...], state["mlp_head.1.weight"].T)


def test_mean_pooling(crate_state, write, run, error):
    path = write(crate_state())
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    cls, out = run(crate_jax.load(path, heads=3), images, capture=-1)
    model = crate_jax.load(path, heads=3, pool="mean")
    mean, mean_out = run(model, images)
    assert model.config.pool == "mean"
    assert error(mean_out["features"], np.asarray(out["tokens"][0]).mean(1)) < 1e-5
    assert error(mean, np.asarray(cls)) > 1e-2


class TestImageSize:
    def test_a_grid_that_is_no_square_is_declared(self, crate_state, write, run):
        path = write(crate_state(patches=15))
        with pytest.raises(ValueError) as raised:
            crate_jax.load(path)
        text = str(raised.value)
        assert "image_size: 15 positions are no square grid" in text
        assert "(8, 120), (24, 40), (40, 24), (120, 8)" in text
        assert "heads: undeclared" in text  # both at once
        model = crate_jax.load(path, heads=3, image_size=(24, 40))
        assert model.config.grid == (3, 5)
        logits, _ = run(model, np.zeros((1, 24, 40, 3), np.float32))
        assert logits.shape == (1, 10)

    def test_wrong_declaration(self, crate_state, write):
        with pytest.raises(ValueError, match="15 positions are no square"):
            crate_jax.load(write(crate_state(patches=15)), heads=3, image_size=(32, 32))
        with pytest.raises(ValueError, match="expected multiples of the patch size 8"):
            crate_jax.load(write(crate_state()), heads=3, image_size=(32, 36))

    @pytest.mark.parametrize("rule", ["size", "dino"])
    def test_another_size_resamples_positions_once(self, rule, reference, write, run, error):
        state, arrays = reference("dino_vit_mini")
        path = write(state)
        stored = crate_jax.load(path, heads=4, positions=rule)
        resized = crate_jax.load(path, heads=4, positions=rule, image_size=(48, 64))
        assert resized.config.image_size == (48, 64)
        assert resized.positions[...].shape == (1, 1 + 6 * 8, 48)
        if rule == "dino":
            assert error(resized.positions[...], arrays["pos_embed_other_size"]) < 1e-6
        images = nhwc(arrays["images_other_size"])
        assert error(run(resized, images)[0], np.asarray(run(stored, images)[0])) < 1e-6

    def test_the_notebook_rule_keeps_the_stored_grid(self, crate_state, write):
        model = crate_jax.load(
            write(crate_state()), heads=3, positions="notebook", image_size=(48, 64)
        )
        assert model.config.image_size == (32, 32)

    def test_a_stored_grid_is_known(self, crate_state, write, tmp_path):
        """16 positions of 2 x 8 patches, asked for at 4 x 4: resampled, not reinterpreted."""
        target = tmp_path / "y.safetensors"
        source = checkpoints.read(write(crate_state()), heads=3, image_size=(16, 64))
        checkpoints.save(source, target)
        again = checkpoints.read(target, image_size=32)
        assert "positions resampled from 2 x 8 patches" in again.notes
        assert not np.array_equal(again.params["positions"], source.params["positions"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_half_precision(dtype, suffix, reference, write, tmp_path):
    """Computed in float32, exactly; converted in the dtype of the file, bit for bit."""
    state = {k: v.astype(dtype) for k, v in reference("crate_alpha_mini")[0].items()}
    path = write(state)
    model = crate_jax.load(path, heads=4)
    kernel = model.layers[0].attention.subspace.kernel[...]
    assert kernel.dtype == np.float32
    name = "transformer.layers.0.0.fn.qkv.weight"
    np.testing.assert_array_equal(kernel, state[name].T.astype(np.float32))
    checkpoints.save(checkpoints.read(path, heads=4), tmp_path / f"y{suffix}")
    checkpoints.save(checkpoints.read(tmp_path / f"y{suffix}"), tmp_path / "z.safetensors")
    again = safetensors.numpy.load_file(tmp_path / "z.safetensors")
    for key, values in state.items():
        assert again[key].dtype == values.dtype
        np.testing.assert_array_equal(again[key].view(np.int16), values.view(np.int16))


class TestViT:
    def test_timm_mean_pooling_shows_in_the_names(self, reference, write, run, error):
        state, arrays = reference("dino_vit_mini")
        timm = {
            k.replace("norm.", "fc_norm.") if k[:5] == "norm." else k: v for k, v in state.items()
        }
        model = crate_jax.load(write(timm), heads=4, pool="mean")
        assert model.config.pool == "mean"
        features, out = run(model, nhwc(arrays["images"]), capture=-1)
        mean = np.asarray(out["tokens"][0])[:, 1:].mean(1)
        centred = mean - mean.mean(-1, keepdims=True)
        expected = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-6)
        expected = expected * state["norm.weight"] + state["norm.bias"]
        assert error(features, expected) < 1e-5

    @pytest.mark.parametrize("pool", ["cls", "mean"])
    def test_a_declared_pooling_is_kept(self, pool, reference, write, tmp_path):
        state, _ = reference("dino_vit_mini")
        source = checkpoints.read(write(state), heads=4, pool=pool)
        assert source.config.pool == pool
        checkpoints.save(source, tmp_path / "y.safetensors")
        names = safetensors.numpy.load_file(tmp_path / "y.safetensors")
        assert "norm.weight" in names  # where the file has it: taken before the mean
        assert checkpoints.read(tmp_path / "y.safetensors").config == source.config

    def test_the_mean_of_normalised_tokens(self, reference, write, run, error):
        """timm's global_pool="avg" without fc_norm: mean(LN z), which is far from LN(mean z)."""
        state, arrays = reference("dino_vit_mini")
        model = crate_jax.load(write(state), heads=4, pool="mean")
        features, out = run(model, nhwc(arrays["images"]), capture=-1)
        tokens = np.asarray(out["tokens"][0], np.float64)[:, 1:]
        centred = tokens - tokens.mean(-1, keepdims=True)
        normed = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-6)
        normed = normed * state["norm.weight"] + state["norm.bias"]
        assert error(features, normed.mean(1)) < 1e-5

    def test_pooling_that_names_do_not_tell(self, reference, write):
        state, _ = reference("dino_vit_mini")
        timm = {k.replace("norm.", "fc_norm.") if k[:5] == "norm." else k: state[k] for k in state}
        path = write(timm)
        assert crate_jax.load(path, heads=4, pool="mean").config.pool == "mean"
        with pytest.raises(ValueError, match=r"pool: undeclared, .*declare pool=mean"):
            crate_jax.load(path, heads=4)
        for pool in ("avgmax", "max"):
            with pytest.raises(ValueError, match=f"pool: expected one of cls, .*, got '{pool}'"):
                crate_jax.load(path, heads=4, pool=pool)

    @pytest.mark.parametrize("ratio", [2.7, 4.0, 8 / 3])
    def test_a_ratio_that_gives_a_rounded_width(self, ratio, tmp_path):
        config = variants.config("vit-testing", mlp_ratio=ratio)
        for suffix in (".safetensors", ".npz"):
            checkpoints.save(draw(config), tmp_path / f"x{suffix}")
            assert checkpoints.read(tmp_path / f"x{suffix}").config == config

    def test_with_a_head_and_another_ratio(self, reference, write):
        state, _ = reference("dino_vit_mini")
        state |= {"head.weight": np.ones((7, 48), np.float32), "head.bias": np.ones(7, np.float32)}
        for i in range(2):
            state[f"blocks.{i}.mlp.fc1.weight"] = np.ones((100, 48), np.float32)
            state[f"blocks.{i}.mlp.fc1.bias"] = np.ones(100, np.float32)
            state[f"blocks.{i}.mlp.fc2.weight"] = np.ones((48, 100), np.float32)
        model = crate_jax.load(write(state), heads=4)
        assert model.config.classes == 7
        assert model.layers[0].operator.expand.kernel[...].shape == (48, 100)


class TestHead:
    def test_headless(self, crate_state, write, run):
        model = crate_jax.load(write(crate_state(classes=0)), heads=3)
        logits, out = run(model, np.zeros((1, 32, 32, 3), np.float32))
        np.testing.assert_array_equal(logits, out["features"])

    @pytest.mark.parametrize("name", ["crate_mini", "crate_alpha_mini"])
    def test_dropped_by_name_only(self, name, reference, write, tmp_path):
        state, _ = reference(name)
        half = {k: v for k, v in state.items() if k != "mlp_head.1.bias"}
        with pytest.raises(ValueError, match=r"1 missing: mlp_head.1.bias[\s\S]*--drop-head"):
            crate_jax.load(write(half), heads=4)
        model = crate_jax.load(write(half), heads=4, drop_head=True)
        assert model.config.classes == 0
        checkpoints.save(checkpoints.read(write(state), heads=4), tmp_path / "y.npz")
        assert crate_jax.load(tmp_path / "y.npz", drop_head=True).config.classes == 0


class TestFaults:
    def test_all_at_once(self, crate_state, write):
        state = crate_state()
        del state["cls_token"], state["transformer.layers.1.1.fn.weight"]
        state["unknown"] = np.zeros(3, np.float32)
        state["mlp_head.0.bias"] = np.zeros(7, np.float32)
        state["mlp_head.1.bias"] = np.zeros(10, np.int32)
        for declared in ({}, {"heads": 3}):
            with pytest.raises(ValueError) as raised:
                crate_jax.load(write(state), **declared)
            text = str(raised.value)
            assert "2 missing: cls_token, transformer.layers.1.1.fn.weight" in text
            assert "1 unexpected: unknown" in text
            assert "1 misshaped: mlp_head.0.bias (expected (24,), got (7,))" in text
            assert "1 not floating-point: mlp_head.1.bias (int32)" in text
            assert ("heads: undeclared" in text) == (not declared)

    def test_a_missing_layer(self, crate_state, write):
        state = {k: v for k, v in crate_state(depth=4).items() if ".layers.2." not in k}
        with pytest.raises(ValueError, match=r"8 missing: transformer\.layers\.2\."):
            crate_jax.load(write(state), heads=3)

    def test_duplicates(self, crate_state, write):
        state = crate_state()
        state |= {f"module.{k}": v for k, v in list(state.items())[:1]}
        with pytest.raises(ValueError, match="1 names twice once prefixes are stripped"):
            crate_jax.load(write(state), heads=3)

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "backbone."])
    def test_prefixes(self, prefix, crate_state, write):
        path = write({prefix + k: v for k, v in crate_state().items()})
        assert crate_jax.load(path, heads=3).config.dim == 24

    @pytest.mark.parametrize(
        ("declared", "message"),
        [
            ({"head": 3}, "did you mean heads"),
            ({"heads": 3, "norm_epsilon": 1e-6}, "norm_epsilon: crate has none"),
            ({"heads": 3, "pool": "max"}, "pool: expected one of cls, mean, last_vit, got 'max'"),
            ({"heads": 3, "positions": "bilinear"}, "positions: expected one of size, dino"),
            ({"heads": 3, "entry": "student"}, "entry: expected one of '', got 'student'"),
            ({"heads": 3, "step": 4}, "expected a run's directory, got the file"),
            (
                {"heads": 3, "image_size": (32,)},
                r"image_size: expected an integer or \(height, width\)",
            ),
            ({"heads": 3, "image_size": 32.5}, r"image_size: expected an integer or"),
            ({"heads": "3"}, "heads: expected an integer, got '3'"),
            ({"heads": 3, "lambd": "x"}, "lambd: expected a number, got 'x'"),
            ({"heads": 3, "mean": 0.5}, "mean: expected three numbers, got 0.5"),
            ({"heads": 3, "epsilon": float("nan")}, "epsilon: expected a finite number"),
            ({"heads": 3, "lambd": float("nan")}, "lambd: expected a finite number"),
            ({"heads": 3, "step_size": float("inf")}, "step_size: expected a finite number"),
            ({"heads": 3, "std": (0.5, 0, 0.5)}, "std: expected a finite number"),
            ({"heads": 3, "mlp_skip": "no"}, "mlp_skip: expected True or False, got 'no'"),
        ],
    )
    def test_declarations(self, declared, message, crate_state, write):
        with pytest.raises(ValueError, match=message):
            crate_jax.load(write(crate_state()), **declared)

    def test_lambda_in_the_name_must_be_declared(self, reference, write):
        state, _ = reference("crate_mae_mini")
        path = write(state, "crate-mae-base-lmd5.0-checkpoint-799.safetensors")
        with pytest.raises(ValueError, match=r"the file's name says lmd5\.0"):
            crate_jax.load(path, heads=4)
        assert crate_jax.load(path, heads=4, lambd=5.0).config.lambd == 5.0
        assert crate_jax.load(path, heads=4, lambd=5.0).layers[0].operator.lambd == 5.0


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "<f4"), (-np.inf, "<f2"), (1e300, "<f8")])
def test_weights_that_are_not_finite_are_refused_by_name(value, dtype, write, crate_state):
    state = crate_state()
    state["mlp_head.1.bias"] = np.full(10, value, dtype)
    with pytest.raises(ValueError, match=r"finite weights, got NaN or infinity in mlp_head.1.bias"):
        crate_jax.load(write(state), heads=3)


def test_weights_of_a_run_that_are_not_finite(run_directory, monkeypatch):
    read = checkpoints.run_directory.read

    def broken(*args):
        params, config, step = read(*args)
        return params | {"cls_token": params["cls_token"] * np.nan}, config, step

    monkeypatch.setattr(checkpoints.run_directory, "read", broken)
    with pytest.raises(ValueError, match=r"at step 20: expected finite weights, .* in cls_token"):
        crate_jax.load(run_directory)
