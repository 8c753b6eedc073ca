"""COCO 2017 instances, in the official layout as unpacked.

ROOT/val2017/000000000139.jpg ...              5,000 images
ROOT/annotations/instances_val2017.json
"""

import os
import pathlib

from crate_jax.data import listing
from crate_jax.files import read_json

_HOW = """Expected the official layout, as it unpacks:
    {root}/{split}/000000000139.jpg ... and {root}/annotations/instances_{split}.json
Get and unpack into {root}:
    http://images.cocodataset.org/zips/{split}.zip
    http://images.cocodataset.org/annotations/annotations_trainval2017.zip"""


class COCO:
    """The images and annotations of a split.

    Args:
        root: the folder that holds `annotations`, and the images in SPLIT or images/SPLIT.
        split: "val2017" or "train2017".
        limit: take only the first so many images by id; None for all.

    Attributes:
        names: file names, in the order of the images' ids.
        ids: {file name: id}.
        annotations: the COCO dictionary of these images.

    Raises:
        ValueError: names every part that is missing, and says how to get it.
    """

    def __init__(self, root: str | os.PathLike, split: str = "val2017", limit: int | None = None):
        root = pathlib.Path(os.path.expanduser(root))
        how = _HOW.format(root=root, split=split)
        file = root / "annotations" / f"instances_{split}.json"
        folders = [root / split, root / "images" / split]
        self.folder = next((f for f in folders if f.is_dir()), folders[0])
        listing.expect_parts("COCO", [self.folder, file], how)
        try:
            everything = read_json(file)
            images = sorted(everything["images"], key=lambda image: image["id"])[:limit]
            chosen = {image["id"] for image in images}
            annotations = [a for a in everything["annotations"] if a["image_id"] in chosen]
            kinds = {type(image["id"]) for image in everything["images"]}
            odd = [a for a in everything["annotations"] if type(a["image_id"]) not in kinds]
            if odd:  # it would belong to no image, and be left out
                image = odd[0]["image_id"]
                raise ValueError(f"an annotation of image {image!r}, an id of another type")
            self.names = [os.fspath(image["file_name"]) for image in images]
            self.ids = {image["file_name"]: image["id"] for image in images}
            self.sizes = {i["file_name"]: (int(i["height"]), int(i["width"])) for i in images}
            if not len(images) == len(self.ids) == len(chosen):
                raise ValueError(
                    f"{len(chosen)} ids and {len(self.ids)} names, which may not repeat"
                )
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(
                f"COCO: {file}: expected a whole annotation file, got "
                f"{type(error).__name__}: {error}.\n{how}"
            ) from error
        self.annotations = {"images": images, "annotations": annotations}
        listing.expect_files("COCO", [self.image_path(name) for name in self.names], file, how)

    def __len__(self) -> int:
        return len(self.names)

    def image_path(self, name: str) -> pathlib.Path:
        """The photograph of a file name."""
        return self.folder / name
