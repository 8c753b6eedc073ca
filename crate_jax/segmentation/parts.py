"""Parts by principal components of patch features (arXiv 2308.16271, section 4.2 and appendix).

Tokens of one object's parts lie in different subspaces, so that the leading principal components
of the features U^T LN(z) of images of one class colour the same part alike in each of them.
Principal components are eigenvectors of the features' covariance, in float64. Their sign is
arbitrary; here the loading of largest magnitude is positive, which depends on no machine.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import ndimage

Scaling = Literal["image", "all"]
SCALINGS: tuple[str, ...] = get_args(Scaling)


@dataclass(frozen=True)
class Parts:
    """Parts of J images of one class, n patches each.

    Attributes:
        first: f32[J, n], first principal component of all tokens, min-max scaled to [0, 1].
        foreground: bool[J, n], first > 0.5, holes filled.
        rgb: f32[J, n, 3], the first three components of the foreground tokens, each min-max
            scaled to [0, 1]; zero (black) on the background.
    """

    first: Float[np.ndarray, "J n"]
    foreground: Bool[np.ndarray, "J n"]
    rgb: Float[np.ndarray, "J n 3"]


def parts(
    features: Shaped[jax.typing.ArrayLike, "J n d"],
    grid: tuple[int, int] | None = None,
    flip: bool = False,
    scaling: Scaling = "image",
) -> Parts:
    """Colour the parts of the objects in J images of one class, in two stages.

    (1) Principal components of all J n tokens; the first, min-max scaled, above 0.5 is the
    foreground, and what it encloses on the grid (4-connected) belongs to it. (2) Principal
    components of all images' foreground tokens, the first three, min-max scaled, as RGB.

    Args:
        features: f[J, n, d], patch features without [CLS], all heads side by side.
        grid: (rows, columns) with rows * columns = n; None where it is a square.
        flip: keep the other side of the first component. Which side holds the objects is
            arbitrary: look at the foreground once per class and layer.
        scaling: over what minimum and maximum are taken. "image", each image by itself, as in the
            authors' code: the foreground of an image then depends on its own tokens, and its
            colours span the whole range. "all", over all images: one threshold, and the same
            colour is the same component in each of them.

    Returns:
        `Parts`. Where all tokens of an image are equal it has no foreground; components that do
        not exist (fewer than four foreground tokens, or fewer than three channels) are zero.

    Raises:
        ValueError: features that are not finite or not three-dimensional, a grid that does not
            fit, or an unknown scaling.
    """
    tokens = _check(features)
    if scaling not in SCALINGS:
        raise ValueError(f"scaling: expected one of {', '.join(SCALINGS)}, got {scaling!r}")
    images, patches, channels = tokens.shape
    rows, columns = _grid(grid, patches)
    tokens = tokens.reshape(-1, channels)
    score = principal_components(tokens, 1)
    first = _scaled(-score if flip else score, np.full(images, patches), scaling).reshape(
        images, patches
    )
    # Neighbours within an image only: the structure has no extent along the first axis.
    within = ndimage.generate_binary_structure(2, 1)[None]
    foreground = np.asarray(
        ndimage.binary_fill_holes(
            (first > 0.5).reshape(images, rows, columns), np.pad(within, ((1, 1), (0, 0), (0, 0)))
        )
    ).reshape(images, patches)
    rgb = np.zeros((images, patches, 3), np.float32)
    if foreground.any():
        components = principal_components(tokens[foreground.ravel()], 3)
        rgb[foreground] = _scaled(components, foreground.sum(axis=1), scaling)
    return Parts(first.astype(np.float32), foreground, rgb)


def layer_components(
    features: Shaped[jax.typing.ArrayLike, "J n d"],
) -> tuple[Float[np.ndarray, "J n"], Float[np.ndarray, "J n 3"]]:
    """Show one layer's features by their leading components, without removing a background.

    The paper shows layers 1, 4, 6, 8 and 11 so; `segment --method=parts --keep-background` does.

    Args:
        features: f[J, n, d], tokens of J images, analysed together.

    Returns:
        grey f32[J, n], the first principal component, and rgb f32[J, n, 3], the second to the
        fourth, each min-max scaled to [0, 1] over all tokens.

    Raises:
        ValueError: features that are not finite or not three-dimensional.
    """
    tokens = _check(features)
    scores = _min_max(principal_components(tokens.reshape(-1, tokens.shape[-1]), 4))
    scores = scores.astype(np.float32).reshape(*tokens.shape[:2], 4)
    return scores[..., 0], scores[..., 1:]


def principal_components(
    tokens: Float[np.ndarray, "m d"], count: int
) -> Float[np.ndarray, "m {count}"]:
    """Project f[m, d] on its `count` leading principal directions.

    Args:
        tokens: f[m, d].
        count: number of components; beyond the rank of the centred tokens they are zero.

    Returns:
        f64[m, count], in decreasing order of variance, centred; the loading of largest
        magnitude of each direction is positive.
    """
    centred = tokens - tokens.mean(axis=0, dtype=np.float64)
    if len(tokens) < tokens.shape[1]:  # the same directions from the smaller matrix
        variance, left = np.linalg.eigh(centred @ centred.T)
        directions = centred.T @ left
    else:
        variance, directions = np.linalg.eigh(centred.T @ centred)
    order = np.argsort(variance)[::-1][:count]
    # Smaller ones are rounding, of the product or (all tokens equal) of the mean.
    floor = max(1e-12 * variance.max(), 1e-26 * np.square(tokens, dtype=np.float64).sum())
    order = order[variance[order] > floor]
    directions = directions[:, order] / np.linalg.norm(directions[:, order], axis=0)
    largest = np.argmax(np.abs(directions), axis=0)
    directions *= np.sign(directions[largest, np.arange(len(order))])
    scores = np.zeros((len(tokens), count))
    scores[:, : len(order)] = centred @ directions
    return scores


def _scaled(values: np.ndarray, lengths: Int[np.ndarray, " J"], scaling: Scaling) -> np.ndarray:
    """f[m, k] min-max scaled by column, over runs of rows (one an image) or over all of them."""
    if scaling == "all":
        return _min_max(values)
    return np.concatenate([_min_max(part) for part in np.split(values, np.cumsum(lengths)[:-1])])


def _min_max(values: np.ndarray) -> np.ndarray:
    low, high = values.min(axis=0, initial=np.inf), values.max(axis=0, initial=-np.inf)
    return (values - low) / np.where(high > low, high - low, 1)


def _grid(grid: tuple[int, int] | None, patches: int) -> tuple[int, int]:
    rows, columns = grid or (math.isqrt(patches), math.isqrt(patches))
    if rows * columns != patches:
        raise ValueError(
            f"grid: expected rows x columns = {patches} patches, got {rows} x {columns}; it is "
            "(height // patch, width // patch), a square unless given"
        )
    return rows, columns


def _check(features: jax.typing.ArrayLike) -> Float[np.ndarray, "J n d"]:
    features = np.asarray(features)
    if features.ndim != 3 or 0 in features.shape:
        raise ValueError(
            f"features: expected f[images, patches, channels], not empty, got shape "
            f"{features.shape}; stack the images of one class, drop [CLS], put all heads side by "
            "side"
        )
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        raise ValueError(
            "features: expected finite numbers, got NaN or infinity; check the weights and the "
            "normalisation of the images, or compute in float32"
        )
    return features
