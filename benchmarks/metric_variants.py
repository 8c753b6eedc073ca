"""Scores of the same masks by the variants of each metric; see `protocol_ledger`."""

from collections.abc import Iterator

import numpy as np

from crate_jax.data.scenes import Scenes
from crate_jax.score.corloc import box_iou
from crate_jax.segmentation import attention, discovery, emergence, patch_knn, saliency, scoring

SIDE, GRID = 96, (16, 16)


def pixels(image: np.ndarray) -> np.ndarray:
    """f32[n, d], the pixels of each patch minus the image's mean colour."""
    (rows, columns), p = GRID, SIDE // GRID[0]
    centred = image.astype(np.float32) - image.mean(axis=(0, 1), dtype=np.float32)
    patches = centred.reshape(rows, p, columns, p, 3).swapaxes(1, 2)
    return patches.reshape(rows * columns, -1)


def upsampled(mask: np.ndarray) -> np.ndarray:
    """A mask bool[rows, columns] at the image's size."""
    return np.asarray(attention.upsample(mask.ravel(), GRID, (SIDE, SIDE)))


def discovered(scenes: Scenes) -> Iterator[tuple[str, float]]:
    """CorLoc of TokenCut's and LOST's boxes by each convention."""
    hits: dict[str, list[float]] = {}
    for index in range(len(scenes)):
        features = pixels(scenes[index]["image"])
        truth = scenes.instances(index)["boxes"].astype(float)
        union = np.array([[*truth[:, :2].min(axis=0), *truth[:, 2:].max(axis=0)]])
        for name, found in (
            ("TokenCut", discovery.tokencut(features, GRID)),
            ("LOST", discovery.lost(features, GRID)),
        ):
            box = discovery.pixel_box(found.box, SIDE // GRID[0], (SIDE, SIDE)).astype(float)
            inclusive = box - [0, 0, 1, 1]
            for variant, value in {
                "any object (the protocol)": box_iou(box, truth).max(),
                "the first object listed": box_iou(box, truth[:1]).max(),
                "one box around all objects": box_iou(box, union).max(),
                "right and bottom inclusive, one pixel short": box_iou(inclusive, truth).max(),
            }.items():
                hits.setdefault(f"{name} CorLoc, {variant}", []).append(value >= 0.5)
    for name, values in hits.items():
        yield name, 100 * float(np.mean(values))


def salient(scenes: Scenes) -> Iterator[tuple[str, float]]:
    """Soft and hard predictions by both codes."""
    kinds: dict[str, list[saliency.Saliency]] = {"hard": [], "soft": []}
    for index in range(len(scenes)):
        scene = scenes[index]
        cut = discovery.tokencut(pixels(scene["image"]), GRID)
        vector = cut.eigenvector.reshape(GRID)
        span = max(np.ptp(vector), 1e-12)
        soft = np.rint((vector - vector.min()) / span * 255).astype(np.uint8)
        kinds["hard"].append(saliency.measure(upsampled(cut.mask), scene["mask"]))
        soft = np.asarray(attention.upsample(soft.ravel(), GRID, (SIDE, SIDE)))
        kinds["soft"].append(saliency.measure(soft, scene["mask"]))
    for kind, images in kinds.items():
        found = saliency.estimates(images, samples=10)
        for name in (
            *("tokencut/max_f_of_set", "tokencut/max_f_of_image"),
            *("found/max_f_of_set", "found/max_f_of_image", "found/f_0.5", "found/f_adaptive"),
            *("tokencut/iou", "found/iou", "selfmask/mae", "found/mae"),
        ):
            yield f"saliency, {kind} mask: {name}", 100 * found[name].value


def segmented(scenes: Scenes, train: Scenes) -> Iterator[tuple[str, float]]:
    """mIoU of patch k-NN, matched and not."""
    classes = 1 + scenes.num_classes

    def labels(source: Scenes, index: int) -> np.ndarray:
        found = source.instances(index)
        result = np.zeros((SIDE, SIDE), int)
        for mask, label in zip(found["masks"], found["labels"], strict=True):
            result[mask] = label + 1
        return result

    features = [pixels(train[index]["image"]) for index in range(len(train))]
    shares = [patch_knn.patch_labels(labels(train, i), GRID, classes) for i in range(len(train))]
    memory = patch_knn.Memory(np.concatenate(features), np.concatenate(shares))
    counts = np.zeros((classes, classes), int)
    for index in range(len(scenes)):
        prediction = patch_knn.decide(memory(pixels(scenes[index]["image"])), GRID, (SIDE, SIDE))
        counts += patch_knn.confusion(prediction, labels(scenes, index), classes)
    ious = np.diag(patch_knn.class_ious(counts))
    predicted = counts.sum(axis=0) > 0
    yield "k-NN mIoU, matched (published)", 100 * patch_knn.miou(counts, matched=True)
    yield "k-NN mIoU, identity", 100 * patch_knn.miou(counts, matched=False)
    yield "k-NN mIoU, identity, without the background", 100 * float(ious[1:].mean())
    yield (
        "k-NN mIoU, identity, classes never predicted left out",
        100 * float(ious[predicted].mean()),
    )


def attended(scenes: Scenes) -> Iterator[tuple[str, float]]:
    """IoU of twelve maps without meaning, by rule and by the choice of the head."""
    random, measured = np.random.default_rng(0), emergence.Measured()
    for index in range(len(scenes)):
        maps = random.dirichlet(np.ones(GRID[0] * GRID[1]), size=(1, 12)).astype(np.float32)
        objects = emergence.objects_of_mask(scenes[index]["mask"], GRID)
        measured.add(maps, objects, np.zeros(1), np.zeros(1))
    found = emergence.estimates(measured, samples=10)
    for rule in emergence.RULES:
        for head in emergence.HEADS:
            name = f"[CLS] IoU of 12 random maps, {rule} rule, {head} head"
            yield name, 100 * found[f"cls_iou/{rule}/{head}/layer01"].value
    yield "IoU of the whole image", 100 * found["cls_iou_all_ones"].value
    yield "IoU of a centred box", 100 * found["cls_iou_centre_box"].value
    centre = [
        float(scoring.iou(scoring.centre_box((SIDE, SIDE)), scenes[i]["mask"])) >= 0.5
        for i in range(len(scenes))
    ]
    yield "share of images in which a centred box has IoU 0.5", 100 * float(np.mean(centre))


def rows(length: int) -> Iterator[tuple[str, float]]:
    """(what, per cent) of every variant, on so many scenes."""
    scenes, train = (
        Scenes(split, image_size=SIDE, length=length, objects=(1, 3)) for split in ("val", "train")
    )
    yield from discovered(scenes)
    yield from salient(scenes)
    yield from segmented(scenes, train)
    yield from attended(scenes)
