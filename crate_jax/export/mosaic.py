"""A picture of many small pictures, in rows with a name each, for a page of any colour."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from crate_jax.export.overlays import checked_image, encode

_INK = (125, 119, 134, 255)  # read on white and on black
_GAP, _ROW_GAP, _RADIUS = 8, 10, 9  # px
_SMOOTH = 4  # corners are drawn so many times larger


def mosaic(rows: Mapping[str, Sequence[np.ndarray]], tile: int = 128) -> bytes:
    """Draws rows of square pictures, their names at the left, on nothing.

    Args:
        rows: pictures uint8[side, side, 3] by the row's name; rows of one length. Pixels are
            repeated where they are fewer than the tile's.
        tile: side of a picture in pixels.

    Returns:
        A PNG with alpha.
    """
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), tile // 7)
    margin = font.getbbox("x")[3] + 10
    count = max(map(len, rows.values()))
    size = (
        margin + count * (tile + _GAP) - _GAP,
        len(rows) * (tile + _ROW_GAP) - _ROW_GAP,
    )
    canvas, corners = Image.new("RGBA", size), _rounded(tile)
    for index, (name, pictures) in enumerate(rows.items()):
        top = index * (tile + _ROW_GAP)
        label = Image.new("RGBA", (tile, margin))
        ImageDraw.Draw(label).text((tile / 2, 0), name, _INK, font, anchor="ma")
        canvas.paste(label.rotate(90, expand=True), (0, top))
        for column, picture in enumerate(pictures):
            shown = Image.fromarray(checked_image(picture))
            shown = shown.resize((tile, tile), Image.Resampling.NEAREST)
            canvas.paste(shown, (margin + column * (tile + _GAP), top), corners)
    return encode(np.asarray(canvas))


def _rounded(side: int) -> Image.Image:
    large = Image.new("L", (side * _SMOOTH,) * 2)
    box = (0, 0, side * _SMOOTH - 1, side * _SMOOTH - 1)
    ImageDraw.Draw(large).rounded_rectangle(box, _RADIUS * _SMOOTH, fill=255)
    return large.resize((side, side), Image.Resampling.LANCZOS)
