"""A made-up run that looks like a real one: photographs, attention on objects, metrics."""

import shutil

import numpy as np
import pytest
from skimage import data, transform

from crate_jax.export import explorer

LAYERS, HEADS, GRID, SIDE = 6, 6, 8, 64
CLASSES = ("sneaker", "coat", "trouser", "sandal", "pullover", "bag")


def scene(rng):
    """A photograph's crop with a bright blob on it, and the blob's mask."""
    photo = [data.astronaut, data.coffee, data.rocket, data.chelsea][rng.integers(4)]()
    top, left = rng.integers(0, 80, 2)
    image = transform.resize(photo[top : top + 200, left : left + 200], (SIDE, SIDE))
    y, x = np.mgrid[:SIDE, :SIDE]
    cy, cx = rng.uniform(20, 44, 2)
    angle = np.arctan2(y - cy, x - cx)
    lobes = 1 + 0.3 * np.sin(rng.integers(2, 5) * angle + rng.uniform(0, 6))
    radius = rng.uniform(12, 18) * lobes
    mask = np.hypot(y - cy, x - cx) < radius
    tint = rng.uniform(0.2, 1, 3)
    image[mask] = 0.25 * image[mask] + 0.75 * tint
    return np.round(255 * image).astype(np.uint8), mask


def attention_maps(rng, mask, layers=LAYERS, heads=HEADS):
    """Maps that fit the mask better from layer to layer, each head in its own way."""
    patch = SIDE // GRID
    target = mask.reshape(GRID, patch, GRID, patch).mean((1, 3))
    focus = np.linspace(0.3, 4, layers)[:, None, None, None]
    skill = rng.uniform(-0.3, 1.2, (1, heads, 1, 1))
    logits = focus * skill * target + rng.normal(0, 0.7, (layers, heads, GRID, GRID))
    maps = np.exp(logits)
    return (maps / maps.sum((2, 3), keepdims=True)).astype(np.float32)


def examples(count=12, **shape):
    rng = np.random.default_rng(0)
    result = []
    for index in range(count):
        image, mask = scene(rng)
        label = CLASSES[index % len(CLASSES)]
        predicted = label if rng.random() < 0.7 else "shirt"
        maps = attention_maps(rng, mask, **shape)
        result.append(
            {"image": image, "mask": mask, "label": label, "predicted": predicted, "maps": maps}
        )
    return result


def history(evaluations=9, layers=LAYERS):
    rng = np.random.default_rng(1)
    lines = []
    for step in range(0, 3001, 20):
        done = step / 3000
        line = {"step": step, "train/loss": 2.3 * np.exp(-2 * done) + 0.03 * rng.normal()}
        line["train/lr"] = 1e-3
        lines.append({name: float(value) for name, value in line.items()})
    for step in np.linspace(0, 3000, evaluations).astype(int):
        done = step / 3000
        line = {
            "val/loss": 2.3 * np.exp(-1.6 * done),
            "val/top1": 0.1 + 0.48 * done**0.5,
            "val/top5": 0.5 + 0.42 * done**0.5,
            "val/cls_iou_all_ones": 0.212,
            "val/cls_iou_centre_box": 0.334,
            "val/images": 2000,
        }
        for layer in range(1, layers + 1):
            place = layer / layers
            line[f"val/coding_rate/layer{layer:02d}"] = 190 - 60 * place * (0.3 + done)
            line[f"val/sparsity/layer{layer:02d}"] = 0.4 + 0.4 * place * (0.2 + done)
            for rule, scale in (("mass", 1), ("area", 0.8)):
                for head, part in (("best", 1), ("mean", 0.7)):
                    grown = (0.2 + 0.28 * place * (1 - 0.2 * (layer == layers)) * done) * part
                    name = f"{rule}/{head}/layer{layer:02d}"
                    line[f"val/cls_iou/{name}"] = grown * scale
                    line[f"val/cls_iou_random/{name}"] = (0.17 + 0.03 * place) * part * scale
                    line[f"val/cls_iou_other/{name}"] = (0.16 + 0.05 * place) * part * scale
                    line[f"val/cls_iou_own_minus_other/{name}"] = (
                        line[f"val/cls_iou/{name}"] - line[f"val/cls_iou_other/{name}"]
                    )
                    line[f"val/cls_iou_gain/{name}"] = (
                        line[f"val/cls_iou/{name}"] - line[f"val/cls_iou_random/{name}"]
                    )
        for name in [n for n in line if "iou" in n or n == "val/top1"]:
            line |= {f"{name}/low": line[name] - 0.011, f"{name}/high": line[name] + 0.012}
        lines.append({"step": int(step)} | {name: float(value) for name, value in line.items()})
    return sorted(lines, key=lambda line: line["step"])


CONFIG = {
    "seed": 0,
    "model": {"name": "crate", "dim": 192, "depth": 6, "heads": 6, "patch": 8},
    "data": {"name": "scenes", "size": 64, "backgrounds": None},
    "optimizer": {"name": "lion", "lr": 2.4e-4, "betas": [0.9, 0.99]},
    "comment": "<script>alert('escaped')</script>",
}
ENVIRONMENT = {"python": "3.11.9", "jax": "0.10.2", "device": "cpu, 2 cores"}
FACTS = {"Parameters": "1.24 M", "Images seen": "192,000", "Object": "21 % of an image"}
LEDE = (
    "A CRATE that was trained on class labels alone. No mask was ever shown to it; the masks here "
    "only measure how well what its [CLS] token attends to fits the object."
)


def subspaces(examples, layers=LAYERS, heads=HEADS, d_head=8, seed=2):
    """w f32[layers, b, 1+n, heads, d_head] that knows of colour, place and object."""
    rng, patch = np.random.default_rng(seed), SIDE // GRID
    y, x = np.mgrid[:GRID, :GRID] / GRID
    place = np.stack([np.cos(6 * x), np.sin(6 * y)], -1)
    known = []
    for example in examples:
        colour = example["image"].reshape(GRID, patch, GRID, patch, 3).mean((1, 3)) / 85 - 1.5
        inside = 2 * example["mask"].reshape(GRID, patch, GRID, patch).mean((1, 3))[..., None]
        patches = np.concatenate([colour, place, inside], -1).reshape(-1, 6)
        known.append(np.concatenate([[[0, 0, 0, 0, 0, 1.5]], patches]))
    mixed = np.stack(known) @ rng.normal(0, 0.6, (layers, 1, 6, heads * d_head))
    return mixed.reshape(layers, len(known), -1, heads, d_head).astype(np.float32)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium without a head."""
    pytest.importorskip("selenium", reason="not installed: the extra `dev`")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chrome, driver = shutil.which("chromium") or shutil.which("google-chrome"), "chromedriver"
    if not (chrome and shutil.which(driver)):
        pytest.skip("no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which(driver)))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def captured():
    """Three examples with what the explorer needs, and their w f32[4, 3, 1+n, 3, 8]."""
    shown = examples(3, layers=4, heads=3)
    coordinates = subspaces(shown, layers=4, heads=3)
    packed = explorer.pack_first({"query": coordinates, "key": coordinates}, (GRID, GRID))
    return [e | {"packed": p} for e, p in zip(shown, packed, strict=True)], coordinates


@pytest.fixture(scope="session")
def run():
    """What `write_report` takes, all of it."""
    shown = examples()
    coordinates = subspaces(shown[:4])
    packed = explorer.pack_first({"query": coordinates, "key": coordinates}, (GRID, GRID))
    for example, one in zip(shown, packed, strict=False):
        example["packed"] = one
    return {
        "title": "CRATE on scenes",
        "lede": LEDE,
        "config": CONFIG,
        "history": history(),
        "examples": shown,
        "facts": FACTS,
        "environment": ENVIRONMENT,
        "reconstructions": [(e["image"], e["image"] // 3, e["image"]) for e in shown[:3]],
    }
