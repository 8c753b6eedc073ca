"""Parts by principal components of patch features (arXiv 2308.16271, section 4.2 and appendix).

Tokens of one object's parts lie in different subspaces, so that the leading principal components
of the features U^T LN(z) of images of one class colour the same part alike in each of them.
Principal components are eigenvectors of the features' covariance, in float64. Their sign is
arbitrary; here the loading of largest magnitude is positive, which depends on no machine.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Parts:
    """Parts of J images of one class, n patches each.

    Attributes:
        first: f32[J, n], first principal component over all tokens, min-max scaled to [0, 1].
        foreground: bool[J, n], first > 0.5.
        rgb: f32[J, n, 3], the first three components of the foreground tokens, each min-max
            scaled to [0, 1] over them; zero (black) on the background.
    """

    first: np.ndarray
    foreground: np.ndarray
    rgb: np.ndarray


def parts(features, flip: bool = False) -> Parts:
    """Colour the parts of the objects in J images of one class, in two stages.

    (1) Principal components of all J n tokens; the first, min-max scaled over all of them, above
    0.5 is the foreground. (2) Principal components of the foreground tokens alone, the first
    three as RGB.

    Args:
        features: f[J, n, d], patch features without [CLS], all heads side by side.
        flip: keep the other side of the first component. Which side holds the objects is
            arbitrary: look at the foreground once per class and layer.

    Returns:
        `Parts`. Where all tokens are equal there is no foreground; components that do not exist
        (fewer than four foreground tokens, or fewer than three channels) are zero.

    Raises:
        ValueError: features that are not finite or not three-dimensional.
    """
    features = _check(features)
    tokens = features.reshape(-1, features.shape[-1])
    score = principal_components(tokens, 1)[:, 0]
    first = _min_max(-score if flip else score)
    foreground = first > 0.5
    rgb = np.zeros((len(tokens), 3), np.float32)
    if foreground.any():
        rgb[foreground] = _min_max(principal_components(tokens[foreground], 3))
    shape = features.shape[:2]
    return Parts(
        first.reshape(shape).astype(np.float32), foreground.reshape(shape), rgb.reshape(*shape, 3)
    )


def layer_components(features) -> tuple[np.ndarray, np.ndarray]:
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
    features = _check(features)
    scores = _min_max(principal_components(features.reshape(-1, features.shape[-1]), 4))
    scores = scores.astype(np.float32).reshape(*features.shape[:2], 4)
    return scores[..., 0], scores[..., 1:]


def principal_components(tokens: np.ndarray, count: int) -> np.ndarray:
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


def _min_max(values: np.ndarray) -> np.ndarray:
    low, high = values.min(axis=0), values.max(axis=0)
    return (values - low) / np.where(high > low, high - low, 1)


def _check(features) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 3 or 0 in features.shape:
        raise ValueError(
            f"features must be f[images, patches, channels] and not empty, got shape "
            f"{features.shape}. Stack the images of one class, drop the [CLS] token and put all "
            "heads side by side."
        )
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        raise ValueError(
            "features must be finite, got NaN or infinity. Check the weights and the "
            "normalisation of the images, or compute in float32."
        )
    return features
