"""Maps and masks drawn on images. Everything returns uint8[height, width, 3] at the image's size.

Maps and masks may come at the resolution of the patch grid or at the image's own; they are
brought to the image here.
"""

import base64
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from crate_jax.segmentation.attention import cell_of_pixel

COLORMAP = "inferno"
_MASK_COLORS = "tab10"
_UNDEFINED = (128, 128, 128)
_BAND = 256  # rows


def checked_image(image: np.ndarray) -> np.ndarray:
    """The image if it is uint8[height, width, 3]; ValueError with the remedy otherwise."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"image: expected uint8[height, width, 3], got {image.dtype} {image.shape}; undo the "
            "normalisation, scale to 0..255, repeat a grey channel, drop alpha"
        )
    return image


def to_size(values: np.ndarray, size: tuple[int, int], smooth: bool = False) -> np.ndarray:
    """A map or mask [rows, columns] at (height, width), nearest or (smooth) bilinear."""
    values = np.asarray(values)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"map: expected one, or a mask, [rows, columns], got {values.shape}")
    if values.shape == tuple(size):
        return values
    if smooth:
        picture = Image.fromarray(values.astype(np.float32))
        return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR))
    rows, columns = (cell_of_pixel(c, p) for c, p in zip(values.shape, size, strict=True))
    return values[rows[:, None], columns]


def colorize(
    values: np.ndarray,
    colormap: str = COLORMAP,
    low: float | None = None,
    high: float | None = None,
) -> np.ndarray:
    """A map's values as colours.

    Args:
        values: f[rows, columns].
        colormap: a name that matplotlib knows.
        low: value of the first colour; None for the map's least.
        high: value of the last colour; None for the map's greatest.

    Returns:
        uint8[rows, columns, 3]. A constant map has the first colour; what is not finite is grey.
    """
    scaled = _scaled(np.asarray(values, np.float64), low, high)
    colors = matplotlib.colormaps[colormap](np.nan_to_num(scaled), bytes=True)[..., :3]
    return np.where(np.isnan(scaled)[..., None], np.uint8(_UNDEFINED), colors)


def _scaled(values, low=None, high=None) -> np.ndarray:
    finite = values[np.isfinite(values)]
    low = (finite.min() if finite.size else 0.0) if low is None else low
    high = (finite.max() if finite.size else 0.0) if high is None else high
    spread = high - low
    scaled = np.clip((values - low) / spread, 0, 1) if spread > 0 else np.zeros_like(values)
    return np.where(np.isfinite(values), scaled, np.nan)


def heat_overlay(
    image: np.ndarray,
    heat: np.ndarray,
    *,
    opacity: float = 0.6,
    colormap: str = COLORMAP,
    smooth: bool = True,
) -> np.ndarray:
    """A map laid over its image.

    Args:
        image: uint8[height, width, 3].
        heat: f[rows, columns], scaled from its least to its greatest value.
        opacity: of the colours, in [0, 1].
        colormap: a name that matplotlib knows.
        smooth: bilinear between patch centres; False shows the patches.

    Returns:
        uint8[height, width, 3].
    """
    image = checked_image(image)
    _check_opacity(opacity)
    heat = to_size(np.asarray(heat, np.float64), image.shape[:2], smooth)
    finite = heat[np.isfinite(heat)] if not np.isfinite(heat).all() else heat
    ends = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    result = np.empty_like(image)
    # In bands: the colours of 100 megapixels in floating point would take gigabytes.
    for start in range(0, len(image), _BAND):
        band = slice(start, start + _BAND)
        result[band] = _blend(image[band], colorize(heat[band], colormap, *ends), opacity)
    return result


def mask_overlay(
    image: np.ndarray,
    masks: np.ndarray,
    *,
    opacity: float = 0.45,
    contour: bool = True,
    colors: Sequence[tuple[int, int, int]] | None = None,
) -> np.ndarray:
    """Masks as tints with contours; a later mask lies over an earlier one.

    Args:
        image: uint8[height, width, 3].
        masks: bool[rows, columns] or bool[k, rows, columns]. Empty ones draw nothing but keep
            their colour, so that colours follow the index.
        opacity: of the tint, in [0, 1]; 0 leaves contours alone.
        contour: draws each mask's inner edge, about 1/200 of the image's side thick.
        colors: (r, g, b) in 0..255 in the masks' order, repeated as needed.

    Returns:
        uint8[height, width, 3].
    """
    image = checked_image(image)
    _check_opacity(opacity)
    masks = np.asarray(masks, bool)
    masks = masks[None] if masks.ndim == 2 else masks
    if colors is None:
        palette = matplotlib.colormaps[_MASK_COLORS].colors
        colors = [tuple(round(255 * channel) for channel in color) for color in palette]
    thickness = max(1, round(min(image.shape[:2]) / 200))
    result = image.copy()
    for index, mask in enumerate(masks):
        mask = to_size(mask, image.shape[:2])
        color = np.uint8(colors[index % len(colors)])
        tinted = _blend(np.arange(256)[:, None], color, opacity)  # of every value of each channel
        for channel in range(3):
            layer = result[..., channel]
            layer[mask] = tinted[layer[mask], channel]
        if contour:
            # Outside the image counts as mask: the frame is no contour.
            inner = ndimage.binary_erosion(mask, iterations=thickness, border_value=1)
            result[mask & ~inner] = color
    return result


def spotlight(image: np.ndarray, mask: np.ndarray, *, dim: float = 0.8) -> np.ndarray:
    """The image with all but the mask darkened by `dim` in [0, 1] -> uint8[height, width, 3]."""
    image = checked_image(image)
    _check_opacity(dim)
    inside = to_size(np.asarray(mask, bool), image.shape[:2])[..., None]
    return np.where(inside, image, _blend(image, np.uint8((0, 0, 0)), dim))


def _check_opacity(opacity: float) -> None:
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected a number in [0, 1], got {opacity}")


def _blend(below: np.ndarray, above: np.ndarray, opacity: float) -> np.ndarray:
    mixed = (1 - opacity) * below.astype(np.float32) + opacity * above.astype(np.float32)
    return np.round(mixed).astype(np.uint8)


def montage(
    panels: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    gap: int = 8,
    background: tuple[int, int, int] = (255, 255, 255),
    title: str = "",
) -> np.ndarray:
    """Pictures of one size side by side, each with a caption below it.

    Args:
        panels: uint8[height, width, 3] each.
        captions: one a panel, cut where it is wider than the panel; None for no captions.
        columns: None for the most nearly square arrangement.
        gap: pixels between panels and around them.
        background: (r, g, b); the text is black or white, whichever reads better on it.
        title: above them all, in lines as wide as the picture.

    Returns:
        uint8[height', width', 3].
    """
    panels = [checked_image(panel) for panel in panels]
    if not panels or len({panel.shape for panel in panels}) > 1:
        raise ValueError(
            f"panels: expected at least one and all of one size, got {[p.shape for p in panels]}"
        )
    if captions is not None and len(captions) != len(panels):
        raise ValueError(f"captions: expected {len(panels)}, one a panel, got {len(captions)}")
    columns = min(columns or int(np.ceil(np.sqrt(len(panels)))), len(panels))
    rows = -(-len(panels) // columns)
    height, width, _ = panels[0].shape
    text_size = max(9, min(20, width // 9))
    text_height = 0 if captions is None else round(1.6 * text_size)
    full_width = columns * (width + gap) + gap
    title_size = max(11, min(18, full_width // 24))
    title_font = _font(title_size)
    title = _wrapped(title, title_font, full_width - 2 * gap)
    top = round(1.35 * title_size) * len(title) + (gap if title else 0)
    sheet = Image.new(
        "RGB", (full_width, top + rows * (height + text_height + gap) + gap), background
    )
    draw = ImageDraw.Draw(sheet)
    font = _font(text_size)
    ink = (0, 0, 0) if np.dot(background, (0.299, 0.587, 0.114)) > 128 else (255, 255, 255)
    for number, line in enumerate(title):
        place = (gap, gap + number * round(1.35 * title_size))
        draw.text(place, line, fill=ink, font=title_font)
    for index, panel in enumerate(panels):
        x = gap + index % columns * (width + gap)
        y = top + gap + index // columns * (height + text_height + gap)
        sheet.paste(Image.fromarray(panel), (x, y))
        if captions is not None:
            text = captions[index]
            while text and draw.textlength(text, font=font) > width:
                text = text[:-1]
            draw.text((x, y + height + 0.25 * text_size), text, fill=ink, font=font)
    return np.asarray(sheet)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """A small image uint8[h, w, 3] by the least whole factor that makes both sides `side` px.

    Every pixel stays a square of one colour, so that what a network sees is what is shown.
    """
    factor = -(-side // min(checked_image(image).shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def head_montage(
    image: np.ndarray,
    maps: np.ndarray,
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    opacity: float = 0.6,
    title: str = "",
) -> np.ndarray:
    """The image and every head's map over it, one panel a head (2308.16271, figure of heads).

    Args:
        image: uint8[height, width, 3].
        maps: f[heads, rows, columns] of one layer.
        captions: one a head; None for "head 0", "head 1", ...
        columns: of the montage, the image being its first panel.
        opacity: of the maps.
        title: above it all.

    Returns:
        uint8[height', width', 3].
    """
    if captions is None:
        captions = [f"head {head}" for head in range(len(maps))]
    panels = [image, *(heat_overlay(image, heat, opacity=opacity) for heat in maps)]
    return montage(panels, ["image", *captions], columns=columns, title=title)


def layer_montage(
    image: np.ndarray,
    maps: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    scores: np.ndarray | None = None,
    title: str = "",
    side: int = 96,
) -> np.ndarray:
    """Every layer's (row) and head's (column) map, the object at the left of each row.

    Args:
        image: uint8[height, width, 3].
        maps: f[layers, heads, rows, columns], shown patch by patch, each scaled by itself.
        mask: the object, bool[height, width]; None shows the image at the left instead.
        scores: f[layers, heads] in the captions, such as each map's IoU with the object.
        title: above it all.
        side: least side of a panel, in pixels.

    Returns:
        uint8[height', width', 3].
    """
    maps, large = np.asarray(maps), enlarge(image, side)
    if maps.ndim != 4:
        raise ValueError(f"maps: expected [layers, heads, rows, columns], got {maps.shape}")
    first = large if mask is None else spotlight(large, mask)
    panels, captions = [], []
    for layer, heads in enumerate(maps):
        panels += [first, *(colorize(to_size(heat, large.shape[:2])) for heat in heads)]
        numbers = [""] * len(heads) if scores is None else [f" {s:.2f}" for s in scores[layer]]
        captions += [f"layer {layer + 1}", *(f"head {h}{n}" for h, n in enumerate(numbers))]
    return montage(panels, captions, columns=1 + maps.shape[1], title=title)


def encode(picture: np.ndarray, kind: str = "png") -> bytes:
    """A picture uint8[height, width(, 3 or 4)] as the bytes of a PNG or (lossy, 85) WebP file."""
    buffer = io.BytesIO()
    options = {"png": {"optimize": True}, "webp": {"quality": 85, "method": 5}}[kind]
    Image.fromarray(picture).save(buffer, kind.upper(), **options)
    return buffer.getvalue()


def data_uri(picture: np.ndarray | bytes, kind: str = "png") -> str:
    """A picture, or its encoded bytes, as a `data:` address that a page can hold."""
    content = picture if isinstance(picture, bytes) else encode(picture, kind)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
