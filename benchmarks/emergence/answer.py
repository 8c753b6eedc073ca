"""What the runs say of the claim: the main comparison, and where it holds."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.emergence import differences, grid
from benchmarks.emergence.differences import HEADLINE
from benchmarks.emergence.grid import Condition
from benchmarks.emergence.results_file import Results
from crate_jax.segmentation import emergence
from crate_jax.segmentation.emergence import Estimate

NAMES = {
    "mass": "IoU, mass rule",
    "area": "IoU, area rule",
    "auroc": "AUROC",
    "ap": "average precision",
    "pointing": "pointing",
}
# Of what is compared, CRATE and ViT under other conditions: where the claim may not hold.
_CONDITIONS = grid.COMPARISONS[3:9]
_OPERATORS = (*grid.COMPARISONS[1:3], *grid.COMPARISONS[9:])


@dataclasses.dataclass(frozen=True)
class Answer:
    """What follows from the runs, as sentences; of the last four each may be empty.

    Attributes:
        claim: the verdict, with D and both headlines.
        reversals: the comparisons in which D's interval lies below 0.
        undecided: those in which it holds 0.
        confirmed: those in which it lies above 0.
        operators: the other operators less the ViT.
    """

    claim: str
    reversals: str = ""
    undecided: str = ""
    confirmed: str = ""
    operators: str = ""

    @classmethod
    def of(cls, results: Results) -> "Answer":
        """Draws all intervals."""
        pair = (grid.CRATE, grid.VIT)
        difference = compared(results, *pair, "learned", HEADLINE)
        if difference is None:
            return cls("The main comparison needs two seeds of CRATE and of ViT.")
        seeds = min(len(results.of_condition(one)) for one in pair)
        early = "" if seeds >= results.budget.seeds else f" So far, with {seeds} seeds of each."
        heads = "; ".join(f"{one.title} {spread(headlines(results, one))}" for one in pair)
        places = list(_places(results))
        operators = [
            (ours.title, compared(results, ours, reference, "learned", HEADLINE))
            for _, ours, reference in _OPERATORS
        ]
        return cls(
            f"**The claim {differences.verdict(difference)}** on these scenes: D = "
            f"{signed(difference)} (own minus other: {heads}; mean and standard deviation over "
            f"seeds).{early}",
            _listed("D lies below 0 with", (p for p in places if p[1].high < 0)),
            _listed("Its interval holds 0 with", (p for p in places if p[1].low <= 0 <= p[1].high)),
            _listed("It lies above 0 with", (p for p in places if p[1].low > 0)),
            _listed("Other operators, less the ViT", (o for o in operators if o[1] is not None)),
        )

    @property
    def brief(self) -> str:
        """For other pages than the experiment's."""
        return " ".join(filter(None, (self.claim, self.reversals, self.undecided)))

    def __str__(self) -> str:
        return " ".join(filter(None, (self.brief, self.confirmed, self.operators)))


def _listed(words: str, found: Iterable[tuple[str, Estimate]]) -> str:
    named = [f"{name} ({signed(value)})" for name, value in found]
    return f"{words}: {'; '.join(named)}." if named else ""


def _places(results: Results) -> Iterable[tuple[str, Estimate]]:
    """The comparisons that say where the claim holds, as far as their runs are done."""
    pair = (grid.CRATE, grid.VIT)
    for measure in emergence.MEASURES[1:]:
        yield NAMES[measure], compared(results, *pair, "learned", measure)
    yield "objects never learned", compared(results, *pair, "held_out", HEADLINE)
    rows = [results.of_condition(one) for one in pair]
    at = differences.equal_accuracy(*rows)
    yield f"equal accuracy, top-1 {at.top1:.3f}", at.difference
    for title, *pair in _CONDITIONS:
        if (value := compared(results, *pair, "learned", HEADLINE)) is not None:
            yield title, value


def compared(
    results: Results, ours: Condition, reference: Condition, shown: str, measure: str
) -> Estimate | None:
    """The difference of two conditions' headlines; None where one has fewer than two seeds."""
    terms = [differences.headline(results, one, shown, measure) for one in (ours, reference)]
    if any(values is None for values in terms):
        return None
    return differences.interval(terms, (1, -1), samples=results.budget.samples)


def headlines(results: Results, condition: Condition, shown: str = "learned") -> list[float]:
    """Of each seed."""
    layers = differences.layers_of(results.of_condition(condition), shown)
    return differences.best_layer(layers).mean(axis=1).tolist()


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation over seeds; of one seed its value."""
    if len(values) < 2:
        return f"{values[0]:{sign}.3f}" if values else "–"
    return f"{np.mean(values):{sign}.3f} ± {np.std(values, ddof=1):.3f}"


def signed(estimate: Estimate) -> str:
    """Value and interval."""
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
