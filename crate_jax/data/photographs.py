"""The photographs behind the objects of `scenes`, and the licence of each.

They ship inside scikit-image's wheel, the only dependency that brings photographs with stated
terms. Those are used whose documentation (docstrings of `skimage.data`) states a licence or a
dedication that allows free use: `moon`, `page`, the faces of LFW and the Middlebury motorcycle
state none and are left out, and so is what is no photograph. Nothing is fetched from a network.
"""

import dataclasses
import functools
import os

import cv2
import numpy as np

from crate_jax.data import images


@dataclasses.dataclass(frozen=True)
class Photograph:
    """One photograph: file name in `skimage.data_dir`, the split that may see it, its terms."""

    file: str
    split: str
    licence: str
    credit: str


# Training and validation never share a photograph. Both have coarse and fine texture, colour and
# grey, smooth and cluttered regions.
PHOTOGRAPHS = {
    "astronaut": Photograph("astronaut.png", "train", "public domain", "NASA"),
    "brick": Photograph("brick.png", "train", "CC0", "CC0 Textures, Bricks25"),
    "camera": Photograph("camera.png", "train", "CC0", "Lav Varshney"),
    "cell": Photograph("cell.png", "train", "CC0", "Paul Müller et al."),
    "chelsea": Photograph("chelsea.png", "train", "CC0", "Stefan van der Walt"),
    "gravel": Photograph("gravel.png", "train", "CC0", "CC0 Textures, Gravel04"),
    "hubble_deep_field": Photograph(
        "hubble_deep_field.jpg", "train", "public domain", "NASA, HubbleSite"
    ),
    "immunohistochemistry": Photograph(
        "ihc.png", "train", "no known copyright restrictions", "CMMI"
    ),
    "retina": Photograph("retina.jpg", "train", "CC0", "Mikael Häggström"),
    "text": Photograph("text.png", "train", "public domain", "Wikimedia Commons, Corner.png"),
    "clock": Photograph("clock_motion.png", "val", "public domain", "Stefan van der Walt"),
    "coffee": Photograph("coffee.png", "val", "CC0", "Rachel Michetti, Pikolo Espresso Bar"),
    "coins": Photograph("coins.png", "val", "no known copyright restrictions", "Brooklyn Museum"),
    "grass": Photograph("grass.png", "val", "CC0", "linolafett (DeviantArt)"),
    "rocket": Photograph("rocket.jpg", "val", "public domain", "SpaceX"),
}


def names(split: str) -> tuple[str, ...]:
    """Names of the photographs that `split` ("train" or "val") may use."""
    return tuple(name for name, photo in PHOTOGRAPHS.items() if photo.split == split)


@functools.lru_cache(maxsize=64)
def load(name: str, short_side: int) -> np.ndarray:
    """Reads a photograph, shrunk (by area) to at most `short_side` pixels on its shorter side.

    Returns:
        uint8[height, width, 3], RGB, read-only; a grey photograph has three equal channels.

    Raises:
        FileNotFoundError: the installed scikit-image does not ship the file.
        ValueError: the file is damaged.
    """
    import skimage  # here: imported by whoever composes scenes, not by `import crate_jax`

    path = os.path.join(skimage.data_dir, PHOTOGRAPHS[name].file)
    remedy = (
        f"reinstall scikit-image (here {skimage.__version__}; 0.24 to 0.26 are known to have it), "
        "or leave it out with the option photographs=(...)"
    )
    try:
        pixels = images.read(path).pixels
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: expected a photograph, got no file; {remedy}") from error
    except images.UnreadableImage as error:
        raise ValueError(
            f"{path}: expected a photograph, got a damaged file ({error}); {remedy}"
        ) from error
    factor = short_side / min(pixels.shape[:2])
    if factor < 1:
        size = (round(pixels.shape[1] * factor), round(pixels.shape[0] * factor))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    pixels.setflags(write=False)
    return pixels
