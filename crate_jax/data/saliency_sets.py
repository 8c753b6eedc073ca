"""ECSSD, DUTS-TE and DUT-OMRON: photographs with masks of the salient object, as unpacked.

ECSSD/images/*.jpg                   ECSSD/ground_truth_mask/*.png           1,000
DUTS/DUTS-TE/DUTS-TE-Image/*.jpg     DUTS/DUTS-TE/DUTS-TE-Mask/*.png         5,019
DUT-OMRON/DUT-OMRON-image/*.jpg      DUT-OMRON/pixelwiseGT-new-PNG/*.png     5,168

Each also as img/ and gt/, as TokenCut's code names them. A photograph and a mask belong together by
their name without its ending, never by their place in a sorted folder.
"""

import io
import os
import pathlib

import numpy as np
from PIL import Image

from crate_jax.data import decode, listing

_IMAGES, _MASKS = (".jpg", ".jpeg", ".png", ".bmp"), (".png", ".bmp", ".jpg")
SETS = {
    # title, folders in which it may lie, (images, masks), published number
    "ecssd": ("ECSSD", ("ECSSD",), ("images", "ground_truth_mask"), 1000),
    "duts": (
        "DUTS-TE",
        ("DUTS", "DUTS-TE", "DUTS/DUTS-TE"),
        ("DUTS-TE-Image", "DUTS-TE-Mask"),
        5019,
    ),
    "omron": ("DUT-OMRON", ("DUT-OMRON",), ("DUT-OMRON-image", "pixelwiseGT-new-PNG"), 5168),
}


class SaliencySet:
    """The photographs and masks of a set.

    Args:
        name: a key of `SETS`.
        root: the set's own folder, or the one that holds it.

    Attributes:
        names: of the photographs without their ending, sorted.
        notes: what is unusual, in lines.

    Raises:
        ValueError: a folder that is missing, and every photograph without a mask or mask without a
            photograph.
    """

    def __init__(self, name: str, root: str | os.PathLike):
        title, places, folders, count = SETS[name]
        root = pathlib.Path(os.path.expanduser(root))
        pairs = [
            (root / place / images, root / place / masks)
            for images, masks in (folders, ("img", "gt"))
            for place in ("", *places)
        ]
        how = (
            f"Expected {root / places[0] / folders[0]} and {root / places[0] / folders[1]} (or "
            "img and gt), as unpacked."
        )
        there = [pair for pair in pairs if any(folder.is_dir() for folder in pair)]
        images, masks = there[0] if there else pairs[len(places)]
        listing.expect_parts(title, [images, masks], how)
        self._images, self._masks = _by_stem(images, _IMAGES), _by_stem(masks, _MASKS)
        self.names = sorted(self._images)
        alone = [str(self._images[n]) for n in self.names if n not in self._masks]
        alone += [str(self._masks[n]) for n in sorted(self._masks) if n not in self._images]
        if alone or not self.names:
            shown = ", ".join(alone[:3]) + (f" and {len(alone) - 3} more" if alone[3:] else "")
            raise ValueError(
                f"{title}: expected photographs and masks in pairs, got {len(self.names)} "
                f"photographs, {len(self._masks)} masks and {len(alone)} without the other"
                f"{': ' + shown if shown else ''}.\n{how}"
            )
        self.notes = []
        if len(self.names) != count:
            self.notes.append(
                f"{title}: {len(self.names)} images, published are {count}: scores are not "
                "comparable"
            )

    def image_path(self, name: str) -> pathlib.Path:
        """The photograph of a name."""
        return self._images[name]

    def mask(self, name: str) -> np.ndarray:
        """The mask as 8-bit grey, uint8[height, width]; edges may be soft.

        Raises:
            ValueError: a file that is no image.
        """
        path = self._masks[name]
        try:
            encoded = decode.read(path, upright=False)
            _ = encoded.size  # kind, size and checksums, before anything is decoded
            with Image.open(io.BytesIO(encoded.data)) as image:
                return np.asarray(image.convert("L"))
        except decode.CorruptImage as error:
            raise ValueError(f"{path}: expected a mask, got {error.reason}") from error
        except (OSError, SyntaxError) as error:  # SyntaxError: Pillow's word for a broken PNG
            raise ValueError(f"{path}: expected a mask, got {error}") from error


def _by_stem(folder: pathlib.Path, endings: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """The images of a folder by their names without ending; no hidden ones, no Thumbs.db."""
    found: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in endings and not path.name.startswith("."):
            if path.stem in found:
                raise ValueError(
                    f"{folder}: expected one file of a name, got {found[path.stem].name} and "
                    f"{path.name}; remove one"
                )
            found[path.stem] = path
    return found
