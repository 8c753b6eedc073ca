"""What is measured of a trained network at the end: every layer, beside every control.

Names are those of `segmentation.emergence.estimates` without the layer, each with one (value, low,
high) a layer. Kinds: "" the network's own, `_random` with random weights, `_other` against the next
scene's object, `_own_minus_other` the difference. Besides:

- `maskcut_iou`: the best IoU of the object with one of MaskCut's three masks, on the features of
  each layer; `maskcut_box_ap`, `maskcut_mask_ap` their average precision, without intervals.
- `corloc`: the share of scenes in which TokenCut's box has an IoU of 0.5 or more with the object's.
- `similarity_...`: one map, the cosine of each patch behind the last norm with the vector that the
  class is read from, by the measures that know no mass. Where pooling leaves [CLS] without a label
  the object can still be found here.

And of the scenes alone, the same for all networks, `colour_...`: one map, the distance of each
patch's mean colour from that of the border.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.emergence.grid import GROUPS
from benchmarks.emergence.results_file import SIZES
from crate_jax import inference
from crate_jax.data.scenes import Scenes
from crate_jax.export import coco
from crate_jax.models import base
from crate_jax.score.corloc import box_iou
from crate_jax.segmentation import (
    attention,
    average_precision,
    discovery,
    emergence,
    layerwise,
    maskcut,
)
from crate_jax.segmentation.emergence import Estimate
from crate_jax.training import losses

Numbers = dict[str, Any]
_BATCH = 250
_TAU = 0.15  # MaskCut's, as published


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Scenes that no network of the grid was trained on, and what is known of them.

    Attributes:
        images: uint8[n, side, side, 3].
        labels: int32[n].
        masks: bool[n, side, side].
        grid: (rows, columns) of patches.
        objects: of each, by patches.
        boxes: f64[n, 4], the object's, as pixel edges.
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    grid: tuple[int, int]
    objects: list[emergence.Objects]
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def fractions(self) -> np.ndarray:
        """The object's share of each image, f64[n]."""
        return np.array([one.all_ones[0] for one in self.objects])

    def thirds(self) -> dict[str, np.ndarray]:
        """By size, the indices of a third of the scenes, from the smallest objects up."""
        order = np.argsort(self.fractions(), kind="stable")
        parts = np.array_split(order, len(SIZES))
        return {size: np.sort(part) for size, part in zip(SIZES, parts, strict=True)}

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.images.shape[1] // self.grid[0]


@functools.lru_cache(maxsize=3)
def held_out(source: Scenes, patch: int) -> HeldOut:
    """All scenes of a source, composed once for all runs of a process."""
    scenes = [source[index] for index in range(len(source))]
    images, labels, masks = (np.array([s[k] for s in scenes]) for k in ("image", "label", "mask"))
    grid = (source.image_size // patch,) * 2
    objects = [emergence.objects_of_mask(mask, grid) for mask in masks]
    boxes = [source.instances(index)["boxes"][0] for index in range(len(source))]
    return HeldOut(images, labels, masks, grid, objects, np.array(boxes, float))


def observer(network: inference.Network) -> inference.Batches:
    """(images uint8[b, h, w, 3], params) -> what is measured of them; also for other weights."""
    registers = network.config.registers
    features_and_maps = inference.patch_arrays(network, "subspace")

    def run(params, images):
        model = base.merge(network.definition, params)
        logits, out = model(model.preprocess(images), capture=True)
        features, maps = features_and_maps(out)
        found = layerwise.of_layers(out["query"], out["tokens"], registers)
        similarity = _similarity(model, out)[:, None, None]
        return found | {
            "logits": logits,
            "features": features,
            "maps": maps,
            "similarity": similarity,
        }

    return inference.Batches(network, run, _BATCH, network.config.image_size)


def _similarity(model: Any, out: Mapping[str, jax.Array]) -> jax.Array:
    """f32[b, n]: the cosine of each patch with the pooled vector, above the least of them."""
    last, vector = out["tokens"][-1, :, 1 + model.config.registers :], out["features"]
    if model.config.family == "vit":
        patches = model.norm(last)
    else:
        patches = model.head_norm(last)
        if model.config.pool != "last_vit":  # that one pools patches that are normalised already
            vector = model.head_norm(vector)
    lengths = jnp.linalg.norm(patches, axis=-1) * jnp.linalg.norm(vector, axis=-1)[:, None]
    cosines = jnp.einsum("bnd,bd->bn", patches, vector) / jnp.maximum(lengths, 1e-12)
    return cosines - jnp.min(cosines, axis=1, keepdims=True)


class Observed:
    """A network's output on held-out scenes.

    Args:
        observe: the network's `observer`.
        scenes: what it sees.
        params: weights in place of the network's own.
        cut: of how many scenes, the first, features are kept: they are large.

    Attributes:
        scenes: these.
        arrays: what `observer` returns, of all scenes.
    """

    def __init__(self, observe: Callable, scenes: HeldOut, params: Any = None, cut: int = 0):
        found = []
        for start in range(0, len(scenes), _BATCH):
            images = scenes.images[start : start + _BATCH]
            images = np.pad(images, ((0, _BATCH - len(images)), (0, 0), (0, 0), (0, 0)))
            arrays = observe(images, params)
            arrays["features"] = arrays["features"][: max(cut - start, 0)]
            found.append(jax.device_get(arrays))
        self.scenes = scenes
        self.arrays = {
            name: np.concatenate([arrays[name] for arrays in found])[: len(scenes)]
            for name in found[0]
        }

    def measured(
        self, maps: str = "maps", scenes: Sequence[int] | None = None
    ) -> emergence.Measured:
        """The maps of that name against the objects, of all scenes or of those with an index."""
        rows = np.arange(len(self.scenes)) if scenes is None else np.asarray(scenes)
        layers = self.arrays[maps].shape[1]
        inside = (self.arrays[name][rows, :layers] for name in ("coding_rate", "sparsity"))
        measured = emergence.Measured()
        objects = [self.scenes.objects[row] for row in rows]
        measured.add_batch(self.arrays[maps][rows], objects, *inside)
        return measured

    def classified(self) -> dict[str, np.ndarray]:
        """top1 and loss, f64[scenes]."""
        logits, labels = jnp.asarray(self.arrays["logits"]), jnp.asarray(self.scenes.labels)
        return {
            "top1": np.asarray(losses.top_k_correct(logits, labels, 1), np.float64),
            "loss": np.asarray(losses.cross_entropy(logits, labels), np.float64),
        }


def evaluate(
    trained: Observed, random: Observed, samples: int
) -> tuple[Numbers, dict[str, list[list[int]]]]:
    """What is measured of a network on a set of scenes.

    Args:
        trained: by it.
        random: by the same with random weights; features of as many scenes.
        samples: draws of the bootstrap.

    Returns:
        (numbers by name, `grouped`).
    """
    measured = trained.measured()
    estimates = emergence.estimates(measured, random.measured(), samples=samples)
    cuts, masks = _cuts(trained)
    random_cuts, _ = _cuts(random)
    rows = trained.classified()
    rows |= {f"{name}{kind}/{layer}": values for (name, kind, layer), values in cuts.items()}
    rows |= {
        f"{name}_random/{layer}": values
        for (name, kind, layer), values in random_cuts.items()
        if not kind
    }
    estimates |= emergence.with_intervals(rows, samples=samples)
    numbers = by_layer(estimates) | _average_precision(masks, trained.scenes)
    similar = one_map("similarity", trained.measured("similarity"), samples)
    numbers |= {name: value for name, value in similar.items() if not name.endswith("/mass")}
    return numbers, grouped(measured)


def one_map(title: str, measured: emergence.Measured, samples: int) -> Numbers:
    """The numbers of maps of one layer and one head, as TITLE_iou/mass and so on."""
    found = emergence.estimates(measured, samples=samples)
    return {
        name.replace("cls", title, 1).removesuffix("/best/layer01"): rounded(estimate)
        for name, estimate in found.items()
        if name.startswith("cls_") and name.endswith("/best/layer01")
    }


def colour(scenes: HeldOut) -> emergence.Measured:
    """The distance of each patch's mean colour (RGB) from the mean of the outermost patches'."""
    rows, columns = scenes.grid
    shape = len(scenes), rows, scenes.patch, columns, scenes.patch, 3
    patches = scenes.images.reshape(shape).mean(axis=(2, 4))
    border = np.ones(scenes.grid, bool)
    border[1:-1, 1:-1] = False
    distance = np.linalg.norm(patches - patches[:, border].mean(axis=1)[:, None, None], axis=-1)
    maps = distance.reshape(len(scenes), 1, 1, -1).astype(np.float32)
    nothing = np.zeros((len(scenes), 1))
    measured = emergence.Measured()
    measured.add_batch(maps, scenes.objects, nothing, nothing)
    return measured


def sizes(scenes: HeldOut) -> dict[str, list[float]]:
    """By size, the least and the largest share of the image that an object has."""
    fractions = scenes.fractions()
    return {
        size: [round(float(bound(fractions[rows])), 3) for bound in (np.min, np.max)]
        for size, rows in scenes.thirds().items()
    }


def by_layer(estimates: Mapping[str, Estimate]) -> Numbers:
    """Estimates by name without the layer; trained minus random is left out."""
    numbers: Numbers = {}
    for name, estimate in estimates.items():
        stem, slash, _ = name.partition("/layer")
        if "_gain/" in name:
            continue
        if slash:
            numbers.setdefault(stem, []).append(rounded(estimate))
        else:
            numbers[stem] = rounded(estimate)
    return numbers


def rounded(estimate: Estimate) -> list[float]:
    """[value, low, high] with three decimals."""
    return [round(x, 3) for x in dataclasses.astuple(estimate)]


def grouped(measured: emergence.Measured) -> dict[str, list[list[int]]]:
    """Own minus other of the best head, in thousandths: by measure int[layers, GROUPS].

    A group is of consecutive scenes and its value their mean: all that a bootstrap over scenes
    needs, in little room.
    """
    own_minus_other = (np.array(measured.own) - measured.against_next())[..., -1]
    groups = np.array_split(own_minus_other, GROUPS)
    means = np.stack([group.mean(axis=0) for group in groups], axis=-1)
    thousandths = np.rint(1000 * means).astype(int)
    return dict(zip(emergence.MEASURES, thousandths.tolist(), strict=True))


def by_size(trained: Observed) -> dict[str, dict[str, list[list[int]]]]:
    """By size of the object, `grouped` by the mass rule; the next object is of that size too."""
    return {
        size: {"mass": grouped(trained.measured(scenes=rows))["mass"]}
        for size, rows in trained.scenes.thirds().items()
    }


def _cuts(
    observed: Observed,
) -> tuple[dict[tuple[str, str, str], np.ndarray], list[list[np.ndarray]]]:
    """Of the scenes whose features were kept: MaskCut and TokenCut on each layer.

    Returns:
        (MaskCut's best IoU and TokenCut's hits, f64[scenes] by (name, kind, layer); MaskCut's masks
        bool[3, rows, columns] of each layer and scene).
    """
    scenes, rows, every = observed.scenes, {}, []
    features = observed.arrays["features"]
    following = np.roll(np.arange(len(features)), -1)
    for index in range(features.shape[1]):
        layer = emergence.layer_name(index)
        masks = [maskcut.maskcut(one, scenes.grid, _TAU).masks for one in features[:, index]]
        boxes = [_box(one, scenes) for one in features[:, index]]
        for kind, places in (("", np.arange(len(features))), ("_other", following)):
            rows["maskcut_iou", kind, layer] = np.array(
                [_best_iou(m, scenes.objects[p]) for m, p in zip(masks, places, strict=True)]
            )
            ious = [
                box_iou(box, scenes.boxes[[p]])[0] for box, p in zip(boxes, places, strict=True)
            ]
            rows["corloc", kind, layer] = (np.array(ious) >= 0.5).astype(np.float64)
        every.append(masks)
    return rows, every


def _box(features: np.ndarray, scenes: HeldOut) -> np.ndarray:
    """TokenCut's box f64[4] in pixels."""
    found = discovery.tokencut(features, scenes.grid)
    return discovery.pixel_box(found.box, scenes.patch, scenes.images.shape[1:3]).astype(float)


def _best_iou(masks: np.ndarray, objects: emergence.Objects) -> float:
    """The largest IoU at image resolution of masks bool[k, rows, columns] with the one object."""
    kept = masks.reshape(len(masks), -1)
    inside, pixels = kept @ objects.counts[0], kept @ objects.valid
    return float((inside / (pixels + objects.counts[0].sum() - inside)).max())


def _average_precision(every: list[list[np.ndarray]], scenes: HeldOut) -> Numbers:
    """AP of MaskCut's boxes and masks, one number a layer."""
    numbers: Numbers = {"maskcut_box_ap": [], "maskcut_mask_ap": []}
    size = scenes.images.shape[1:3]
    for layer in every:
        truth, found = [], []
        for index, masks in enumerate(layer):
            large = attention.upsample(masks.reshape(len(masks), -1), scenes.grid, size)
            found += coco.results(index, np.asarray(large))
            truth += coco.results(index, [scenes.masks[index]])
        images = [{"id": i, "height": size[0], "width": size[1]} for i in range(len(layer))]
        scores = average_precision.coco_ap(coco.dataset(images, truth), found)
        for kind in ("box", "mask"):
            numbers[f"maskcut_{kind}_ap"].append(round(scores[f"{kind}/AP"], 3))
    return numbers
