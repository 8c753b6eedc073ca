"""The evaluators that `config.evals` names."""

from collections.abc import Callable

from crate_jax.config import Durations
from crate_jax.training import evaluation, object_masks, probing


def make(setting: evaluation.Setting, plan: Durations) -> evaluation.Evaluation:
    """The evaluators of a run.

    Those of the layers are left out where `evaluation.capture_images` is 0.

    Raises:
        ValueError: for MaskCut on data without masks.
    """
    features = probing.Features(setting)
    known: dict[str, Callable[[], evaluation.Evaluator]] = {
        "validation": lambda: evaluation.Validation(setting),
        "emergence": lambda: evaluation.Emergence(setting),
        "knn": lambda: probing.Probe(features, probing.knn_metrics),
        "probe": lambda: probing.Probe(features, probing.linear_metrics),
        "maskcut": lambda: object_masks.MaskCut(setting),
    }
    wanted = set(plan.evaluate)
    if "maskcut" in wanted and not setting.data.val.has_masks:
        raise ValueError(
            "evals.maskcut: expected held-out images with masks, got data "
            f"{setting.config.data.name!r} without; set config.evals.maskcut=never"
        )
    if not setting.config.evaluation.capture_images:
        wanted -= {"emergence", "maskcut"}
    made = {name: make() for name, make in known.items() if name in wanted}
    return evaluation.Evaluation(made, plan.evaluate, plan.total)
