"""The experiment on emergence: its grid, what is measured at the end, and the whole path."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.emergence import __main__ as command
from benchmarks.emergence import final_evaluation, grid, runner
from benchmarks.emergence.results_file import Results
from crate_jax import config, inference
from crate_jax.models import base, variants
from crate_jax.segmentation import attention, emergence, scoring

CPU, SMOKE = grid.BUDGETS["cpu"], grid.BUDGETS["smoke"]


def test_main_networks_come_first_seed_by_seed():
    runs = list(grid.runs(CPU))
    networks = [run.condition.network for run in runs]
    assert networks[:8] == 2 * ["crate", "vit", "crate-mlp", "crate-mhsa"]
    assert [run.seed for run in runs[:20]] == [seed for seed in range(5) for _ in range(4)]
    assert len({run.name for run in runs}) == len(runs) == 20 + 3 * 11
    compared = {condition for _, *pair in grid.COMPARISONS for condition in pair}
    assert compared == {run.condition for run in runs}


@pytest.mark.parametrize("budget", grid.BUDGETS.values(), ids=grid.BUDGETS)
def test_every_run_is_a_config_of_the_same_recipe(budget):
    configs = {}
    for condition in {run.condition for run in grid.runs(budget)}:
        rate = grid.rates(condition, budget)[0]
        resolved = config.resolve(grid.run_config(grid.Run(condition, 0), budget, rate))
        config.resolve(grid.sweep_config(condition, budget, rate))
        configs[condition] = config.flatten(resolved)
    reference = configs[grid.CRATE]
    for condition, values in configs.items():
        changed = {name for name, value in values.items() if reference.get(name) != value}
        changed = {name for name in changed if not name.startswith("model.")}
        assert changed <= {
            "optimizer.name",
            "optimizer.learning_rate",
            "optimizer.muon_learning_rate",
        } | ({"optimizer.weight_decay"} if condition.optimizer == "muon_light" else set())
        same = ["image_size", "patch_size", "depth", "heads", "classes"]
        same += ["dim"] * (condition.matching == "width")
        assert all(values[f"model.{name}"] == reference[f"model.{name}"] for name in same)
        assert values["model.pool"] == condition.pool


@pytest.mark.parametrize("budget", ["cpu", "gpu"])
def test_parameters_are_matched(budget):
    narrow = grid.network(grid.Condition("vit", matching="parameters"), grid.BUDGETS[budget])
    crate = grid.network(grid.CRATE, grid.BUDGETS[budget])
    assert grid.parameters(narrow) / grid.parameters(crate) == pytest.approx(1, abs=0.03)


def test_matched_width_is_the_nearest():
    wide = grid.network(grid.VIT, CPU)
    counts = {
        width: grid.parameters(dataclasses.replace(wide, dim=width, head_dim=width // 4))
        for width in (64, 68)
    }
    for width, count in counts.items():
        assert grid.matched_width(wide, count) == width
        assert grid.matched_width(wide, count + 100) == width
    assert grid.matched_width(wide, 1) == wide.heads


def test_objects_never_learned_are_never_trained_on():
    learned, held_out = (
        runner.source(SMOKE, grid.CRATE, shown) for shown in ("learned", "held_out")
    )
    labels = {
        name: {scene["label"] for scene in map(s.__getitem__, range(100))}
        for name, s in (("learned", learned), ("held_out", held_out))
    }
    assert labels["learned"] == set(range(100))
    assert labels["held_out"] == set(range(100, 120))
    trained = grid.run_config(grid.Run(grid.CRATE, 0), SMOKE, 1.0).data.scenes
    assert trained.held_out == "20"
    assert trained.classes == 120


def test_config_hash_ignores_what_makes_no_other_run():
    c = grid.run_config(grid.Run(grid.CRATE, 0), CPU, 0.02)
    first = grid.digest(config.resolve(c))
    c.log_every = "7 steps"
    assert grid.digest(config.resolve(c)) == first
    c.seed = 1
    assert grid.digest(config.resolve(c)) != first


def square_scenes(count=6, side=32, patch=8, seed=0):
    """A square of another colour, of two by two patches, on a plain background."""
    rng = np.random.default_rng(seed)
    images = np.full((count, side, side, 3), 90, np.uint8)
    masks = np.zeros((count, side, side), bool)
    for image, mask in zip(images, masks, strict=True):
        top, left = patch * rng.integers(0, side // patch - 1, 2)
        mask[top : top + 2 * patch, left : left + 2 * patch] = True
        image[mask] = (200, 30, 60)
    cells = (side // patch,) * 2
    boxes = [
        (
            *(np.argmax(m.any(axis)) for axis in (0, 1)),
            *(side - np.argmax(m.any(axis)[::-1]) for axis in (0, 1)),
        )
        for m in masks
    ]
    objects = [emergence.objects_of_mask(mask, cells) for mask in masks]
    labels = np.arange(count, dtype=np.int32)
    return final_evaluation.HeldOut(images, labels, masks, cells, objects, np.array(boxes, float))


def test_colour_finds_what_differs_from_the_border():
    numbers = final_evaluation.one_map("colour", final_evaluation.colour(square_scenes()), 10)
    assert numbers["colour_auroc"] == [1, 1, 1]
    assert numbers["colour_pointing"] == [1, 1, 1]
    assert set(numbers) > {"colour_iou/mass", "colour_iou_own_minus_other/mass"}


def test_best_iou_is_that_of_upsampled_masks():
    scenes, rng = square_scenes(), np.random.default_rng(0)
    masks = rng.random((3, 4, 4)) < 0.4
    large = np.asarray(attention.upsample(masks.reshape(3, -1), (4, 4), (32, 32)))
    expected = max(float(scoring.iou(mask, scenes.masks[0])) for mask in large)
    assert final_evaluation._best_iou(masks, scenes.objects[0]) == pytest.approx(expected)


def test_cuts_find_squares_by_their_colour_alone():
    scenes = square_scenes()
    patches = scenes.images.reshape(6, 4, 8, 4, 8, 3).mean(axis=(2, 4)).reshape(6, 16, 3)
    centred = patches - patches.mean(axis=1, keepdims=True)
    observed = object.__new__(final_evaluation.Observed)
    observed.scenes, observed.arrays = scenes, {"features": centred[:, None].astype(np.float32)}
    rows, masks = final_evaluation._cuts(observed)
    assert rows["maskcut_iou", "", "layer01"].tolist() == [1] * 6
    assert rows["corloc", "", "layer01"].tolist() == [1] * 6
    assert rows["corloc", "_other", "layer01"].mean() < 1
    precision = final_evaluation._average_precision(masks, scenes)
    assert precision["maskcut_mask_ap"][0] > 0.3


@pytest.fixture(scope="module")
def observed():
    """A network with random weights on scenes whose number no batch divides."""
    scenes = final_evaluation.held_out(runner.source(SMOKE, grid.CRATE, "learned"), 16)
    model = variants.build(grid.network(grid.Condition("vit", pool="mean"), SMOKE), 0)
    network = inference.Network(model.config, *base.split(model))
    return final_evaluation.Observed(final_evaluation.observer(network), scenes, cut=4), model


def test_similarity_is_the_cosine_with_the_pooled_vector(observed):
    found, model = observed
    _, out = model(model.preprocess(found.scenes.images[:3]), capture=True)
    patches = np.asarray(model.norm(out["tokens"][-1, :, 1:]), np.float64)
    pooled = np.asarray(out["features"], np.float64)
    for row in range(3):
        lengths = np.linalg.norm(patches[row], axis=1) * np.linalg.norm(pooled[row])
        cosines = patches[row] @ pooled[row] / lengths
        expected = cosines - cosines.min()
        np.testing.assert_allclose(found.arrays["similarity"][row, 0, 0], expected, atol=1e-5)


def test_groups_have_the_means_of_all_scenes(observed):
    found, _ = observed
    numbers, groups = final_evaluation.evaluate(found, found, samples=10)
    for measure, stem in (
        ("mass", "cls_iou_own_minus_other/mass"),
        ("ap", "cls_ap_own_minus_other"),
    ):
        assert np.shape(groups[measure]) == (2, grid.GROUPS)
        means = np.mean(groups[measure], axis=1) / 1000
        np.testing.assert_allclose(means, [v for v, *_ in numbers[f"{stem}/best"]], atol=1.1e-3)
    assert numbers["cls_iou_random/mass/best"] == numbers["cls_iou/mass/best"]
    assert numbers["corloc_random"] == numbers["corloc"]
    assert not any("_gain" in name or name.endswith("similarity_iou/mass") for name in numbers)
    assert numbers["top1"][0] == round(float(found.classified()["top1"].mean()), 3)


def test_thirds_by_size_are_measured_as_if_alone(observed):
    """The next object, too, is the next of that third."""
    found, model = observed
    scenes, network = found.scenes, inference.Network(model.config, *base.split(model))
    pixels = scenes.masks.sum(axis=(1, 2))
    thirds = scenes.thirds()
    assert sorted(np.concatenate(list(thirds.values()))) == list(range(len(scenes)))
    assert pixels[thirds["small"]].max() <= pixels[thirds["medium"]].min()
    assert pixels[thirds["medium"]].max() <= pixels[thirds["large"]].min()
    low, high = final_evaluation.sizes(scenes)["medium"]
    assert low == pytest.approx(pixels[thirds["medium"]].min() / 64**2, abs=6e-4)
    assert high == pytest.approx(pixels[thirds["medium"]].max() / 64**2, abs=6e-4)
    groups, rows = final_evaluation.by_size(found), thirds["large"]
    alone = final_evaluation.HeldOut(
        *(a[rows] for a in (scenes.images, scenes.labels, scenes.masks)),
        scenes.grid,
        [scenes.objects[row] for row in rows],
        scenes.boxes[rows],
    )
    again = final_evaluation.Observed(final_evaluation.observer(network), alone)
    expected = final_evaluation.grouped(again.measured())["mass"]
    np.testing.assert_allclose(groups["large"]["mass"], expected, atol=1)


def test_results_of_another_budget_are_refused(tmp_path):
    path = tmp_path / "results.json"
    Results.of("smoke").write(path)
    assert Results.read(path).budget is SMOKE
    with pytest.raises(ValueError, match="expected results of --budget=cpu, got 'smoke'"):
        Results.read(path, "cpu")
    path.write_text("{")
    with pytest.raises(ValueError, match="expected the results of"):
        Results.read(path)


def test_the_rate_with_the_lowest_loss_is_chosen():
    results = Results.of("cpu")
    trials = [
        {"rate": r, "loss": loss, "top1": 0.1} for r, loss in ((1.0, 2.0), (2.0, 1.0), (4.0, None))
    ]
    results.add_sweep(grid.VIT, trials)
    assert results.rate(grid.Condition("vit", pool="last_vit")) == 2.0
    assert results.rate(grid.Condition("vit", optimizer="adamw")) is None
    with pytest.raises(FloatingPointError, match="got none with 4"):
        results.add_sweep(grid.CRATE, trials[2:])


def test_a_run_of_another_recipe_is_refused():
    results, run = Results.of("cpu"), grid.Run(grid.CRATE, 0)
    results.add_sweep(grid.CRATE, [{"rate": 0.02, "loss": 1.0, "top1": 0.5}])
    resolved = config.resolve(grid.run_config(run, CPU, 0.02))
    results.add_run(run, {"config_hash": grid.digest(resolved), "images_per_second": 100.0})
    runner.check(run, results)
    assert runner.remaining([run, run], results) == pytest.approx(2 * CPU.images / 100)
    results.run(run)["config_hash"] = "0"
    with pytest.raises(ValueError, match="got 0: the recipe has changed"):
        runner.check(run, results)


def test_results_of_another_recipe_are_not_gone_on_with(tmp_path):
    results = Results.of("smoke")
    runner.keep_recipe(results)
    results.write(tmp_path / "results.json")
    again = Results.read(tmp_path / "results.json")
    runner.keep_recipe(again)
    again.content["recipe"]["config"]["log_every"] = "1 steps"  # makes no other run
    runner.keep_recipe(again)
    again.content["recipe"]["config"]["steps"] = 7
    with pytest.raises(ValueError, match="steps: 7 -> 8; choose another --out"):
        runner.keep_recipe(again)


def test_only_takes_beginnings_of_names():
    chosen = runner.chosen(CPU, ("crate-mlp", "vit-parameters"))
    assert {run.condition.network for run in chosen} == {"crate-mlp", "vit"}
    assert len(chosen) == 8
    with pytest.raises(ValueError, match="got 'vitt'"):
        runner.chosen(CPU, ("vitt",))


@pytest.mark.slow
def test_whole_path(tmp_path, capfd):
    """Less than three minutes; measured again, a run shows the same."""
    assert command.main([f"--out={tmp_path}", "--budget=smoke"]) == 0
    path = tmp_path / "results.json"
    content = json.loads(path.read_text())
    assert [row["name"] for row in content["runs"]] == [run.name for run in grid.runs(SMOKE)]
    for row in content["runs"]:
        assert len(row["curves"]["scenes"]) == SMOKE.evaluations
        assert np.shape(row["curves"]["cls_iou_own_minus_other/mass/best"]) == (2, 2)
        assert set(row["final"]) == {"learned", "held_out"}
        assert set(row["groups"]) == {"learned", "held_out", "small", "medium", "large"}
        assert row["final"]["held_out"]["top1"][0] < 0.2
    last = content["runs"].pop()
    path.write_text(json.dumps(content))
    assert command.main([f"--out={tmp_path}", "--budget=smoke"]) == 0
    assert json.loads(path.read_text())["runs"][-1] == last
    assert command.main([f"--out={tmp_path}", "--budget=smoke", "--list"]) == 0
    assert "left 0 of 5" in capfd.readouterr().out
