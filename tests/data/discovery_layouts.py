"""Small folders in the layouts of the sets for object discovery, saliency and patch k-NN."""

import json

import numpy as np
from PIL import Image

_OBJECT = """<object><name>cat</name><difficult>{difficult}</difficult><truncated>0</truncated>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>
</part></object>"""


def picture(path, size, seed=0):
    """A photograph of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path)


def grey(path, mask):
    """A mask or label map as an 8-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(mask, np.uint8)).save(path)


def voc_boxes(root, year, objects, size=(40, 56)):
    """VOCdevkit/VOCyear of {id: [(xmin, ymin, xmax, ymax, difficult), ...]}, corners as text."""
    base = root / "VOCdevkit" / f"VOC{year}"
    (base / "Annotations").mkdir(parents=True)
    (base / "ImageSets" / "Main").mkdir(parents=True)
    for seed, (name, boxes) in enumerate(objects.items()):
        picture(base / "JPEGImages" / f"{name}.jpg", size, seed)
        text = "".join(_OBJECT.format(*box[:4], difficult=box[4]) for box in boxes)
        height, width = size
        (base / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height></size>"
            f"{text}</annotation>"
        )
    (base / "ImageSets" / "Main" / "trainval.txt").write_text("".join(f"{n}\n" for n in objects))
    return base


def coco20k(root, boxes, size=(40, 56), crowd=()):
    """ROOT with list, annotations and images of {id: [(x, y, width, height), ...]}."""
    annotations = [
        {"id": 10 * image + n, "image_id": image, "bbox": list(box), "iscrowd": 0}
        for image, own in boxes.items()
        for n, box in enumerate(own)
    ]
    annotations += [
        {"id": 1000 + image, "image_id": image, "bbox": [0, 0, size[1], size[0]], "iscrowd": 1}
        for image in crowd
    ]
    for image in boxes:
        picture(root / "train2014" / f"COCO_train2014_{image:012d}.jpg", size, image)
    listed = [{"id": i, "height": size[0], "width": size[1]} for i in boxes]
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_train2014.json").write_text(
        json.dumps({"images": listed, "annotations": annotations})
    )
    (root / "coco_20k_filenames.txt").write_text(
        "".join(f"train2014/COCO_train2014_{image:012d}.jpg\n" for image in boxes)
    )


SALIENCY = {
    "ecssd": ("ECSSD/images", "ECSSD/ground_truth_mask"),
    "duts": ("DUTS/DUTS-TE/DUTS-TE-Image", "DUTS/DUTS-TE/DUTS-TE-Mask"),
    "omron": ("DUT-OMRON/DUT-OMRON-image", "DUT-OMRON/pixelwiseGT-new-PNG"),
}


def saliency(root, name, masks):
    """The layout of a set of {name: uint8[height, width]}."""
    images, truths = (root / folder for folder in SALIENCY[name])
    for seed, (stem, mask) in enumerate(masks.items()):
        picture(images / f"{stem}.jpg", mask.shape, seed)
        grey(truths / f"{stem}.png", mask)
    return images, truths


def voc_patches(root, train, val):
    """images, SegmentationClassAug, SegmentationClass and sets of {id: label map} each."""
    (root / "sets").mkdir(parents=True)
    for split, folder, labels in (
        ("trainaug", "SegmentationClassAug", train),
        ("val", "SegmentationClass", val),
    ):
        for seed, (name, map_) in enumerate(labels.items()):
            picture(root / "images" / f"{name}.jpg", map_.shape, seed)
            grey(root / folder / f"{name}.png", map_)
        (root / "sets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in labels))
