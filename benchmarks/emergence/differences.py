"""Differences between conditions, with intervals over seeds and scenes.

The values of a condition are f64[seeds, groups], means over groups of held-out scenes, the same
scenes for every run. The bootstrap draws groups for all conditions together and seeds for each
apart: n - 1 of n (Rao and Wu, Journal of the American Statistical Association 83, 1988), since n
draws of n vary by a factor of (n - 1) / n too little, a fifth with five seeds. And since a few
seeds say little about their spread, a tail holds not 2.5 % of the draws but as much of them as the
normal distribution has beyond t, the 97.5 % quantile of Student's distribution with Welch and
Satterthwaite's degrees of freedom (Hesterberg's expanded percentiles, arXiv 1411.5279).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from benchmarks.emergence.grid import Condition
from benchmarks.emergence.results_file import Results
from crate_jax.segmentation.emergence import Estimate

Values = np.ndarray  # f64[seeds, groups]
LEVEL = 0.95
HEADLINE = "mass"
CURVE = f"cls_iou_own_minus_other/{HEADLINE}/best"  # the headline's column along training
NO_DIFFERENCE = 0.03  # smaller ones are not worth the name


def layers_of(rows: Sequence[Mapping], shown: str, measure: str = HEADLINE) -> np.ndarray:
    """Own minus other of the best head, f64[seeds, layers, groups].

    Args:
        rows: of the runs of a condition, from results.json.
        shown: "learned" or "held_out".
        measure: of `emergence.MEASURES`.
    """
    return np.array([row["groups"][shown][measure] for row in rows]) / 1000


def layer_of_all(rows: Sequence[Mapping]) -> int:
    """The layer that is best over all scenes of learned objects and all seeds."""
    return int(layers_of(rows, "learned").mean(axis=(0, 2)).argmax())


def chosen_layers(layers: np.ndarray) -> tuple[int, int]:
    """For even and for odd groups, the layer that is best on the others, by the mean over seeds.

    Args:
        layers: f64[seeds, layers, groups].
    """
    even, odd = (int(layers[..., half::2].mean(axis=(0, 2)).argmax()) for half in (1, 0))
    return even, odd


def best_layer(layers: np.ndarray) -> Values:
    """f64[seeds, groups] of the best layer, chosen on the other half of the groups."""
    values = np.empty((layers.shape[0], layers.shape[2]))
    for half, layer in enumerate(chosen_layers(layers)):
        values[:, half::2] = layers[:, layer, half::2]
    return values


def headline(results: Results, condition: Condition, shown: str, measure: str) -> Values | None:
    """`best_layer` of a condition; None where fewer than two of its seeds are done."""
    rows = results.of_condition(condition)
    return best_layer(layers_of(rows, shown, measure)) if len(rows) > 1 else None


def interval(terms: Sequence[Values], signs: Sequence[int], *, samples: int = 10_000) -> Estimate:
    """The sum of the terms' means over seeds and groups, each with its sign.

    Args:
        terms: f64[seeds, groups] each, at least two of both; groups are the same in all.
        signs: 1 or -1 each.
        samples: draws of the bootstrap.
    """
    scenes = _shares(0, terms[0].shape[1], samples)
    draws = np.zeros(samples)
    for number, (sign, values) in enumerate(zip(signs, terms, strict=True), start=1):
        seeds = _shares(number, len(values), samples)
        draws += sign * (seeds * (scenes @ values.T)).sum(axis=1)
    value = sum(sign * values.mean() for sign, values in zip(signs, terms, strict=True))
    tail = stats.norm.cdf(-stats.t.ppf((1 + LEVEL) / 2, _freedom(terms, signs)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


@functools.lru_cache(maxsize=16)
def _shares(seed: int, count: int, samples: int) -> np.ndarray:
    """f64[samples, count], the share of each in draws of count - 1."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count - 1, np.full(count, 1 / count), size=samples) / (count - 1)


def _freedom(terms: Sequence[Values], signs: Sequence[int]) -> float:
    """Welch and Satterthwaite's degrees of freedom, of each term's seeds and of the groups."""
    by_group = sum(s * values.mean(axis=0) for s, values in zip(signs, terms, strict=True))
    samples = [*(values.mean(axis=1) for values in terms), by_group]
    variances = np.array([x.var(ddof=1) / len(x) for x in samples])
    free = np.array([len(x) - 1 for x in samples])
    total = (variances**2 / free).sum()
    return float(variances.sum() ** 2 / total) if total else float(free.sum())


def verdict(difference: Estimate) -> str:
    """What docs/emergence.md has the interval of the main comparison decide."""
    if difference.low > 0:
        return "holds"
    if difference.high < 0:
        return "is reversed"
    if max(-difference.low, difference.high) <= NO_DIFFERENCE:
        return "fails"
    return "is not decided"


@dataclasses.dataclass(frozen=True)
class EqualAccuracy:
    """Both conditions along training, where their top-1 is the same.

    Attributes:
        top1: the lower of the two means at the end.
        difference: of own minus other there, with an interval over seeds.
    """

    top1: float
    difference: Estimate


def equal_accuracy(ours: Sequence[Mapping], reference: Sequence[Mapping]) -> EqualAccuracy:
    """Own minus other where top-1 is the lower of the two at the end, by straight lines between.

    Each condition's layer is its best at the end, by the mean over seeds; a run that never reaches
    that accuracy counts with its end. Interval: Welch's, over seeds.

    Args:
        ours: rows of a condition from results.json, at least two.
        reference: of the other.
    """
    top1 = min(np.mean([row["curves"]["top1"][-1] for row in rows]) for rows in (ours, reference))
    first, second = (_at(rows, float(top1)) for rows in (ours, reference))
    test = stats.ttest_ind(first, second, equal_var=False)
    low, high = test.confidence_interval(LEVEL)
    value = float(first.mean() - second.mean())
    return EqualAccuracy(float(top1), Estimate(value, float(low), float(high)))


def _at(rows: Sequence[Mapping], top1: float) -> np.ndarray:
    """f64[seeds], own minus other where a run's top-1 first reaches a value."""
    curves = [np.array(row["curves"][CURVE]) for row in rows]
    layer = np.mean([curve[-1] for curve in curves], axis=0).argmax()
    found = []
    for row, curve in zip(rows, curves, strict=True):
        accuracy = np.maximum.accumulate(row["curves"]["top1"])
        found.append(np.interp(top1, accuracy, curve[:, layer]))
    return np.array(found)
