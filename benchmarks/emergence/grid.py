"""The grid: which networks are trained, how, on how many scenes, and what is compared.

Whatever the grid does not set is the quick start's, configs/scenes_tiny.py.
"""

import bisect
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from crate_jax import config, keys
from crate_jax.models import variants
from crate_jax.models.base import ImageModelConfig

LEARNED, HELD_OUT = 100, 20  # objects: those that training shows, those that it never shows
# Title, and the fields in which CRATE's config changes.
NETWORKS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "crate": ("CRATE", {}),
    "vit": ("ViT", {}),
    "crate-mlp": ("CRATE-MLP", {"nonlinearity": "mlp"}),
    "crate-mhsa": ("CRATE-MHSA", {"attention": "mhsa"}),
    "crate-sth": ("CRATE-sth", {"nonlinearity": "ista-soft-threshold"}),
    "crate-alpha": ("CRATE-alpha", {}),
}
POOLS = {"cls": "[CLS]", "mean": "mean pooling", "last_vit": "LaSt-ViT's pooling"}
# Title, the key of the rate that is tried, and the keys in which the quick start's change.
OPTIMIZERS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "muon": ("Muon", "muon_learning_rate", {}),
    "muon_light": ("a third of the weight decay", "muon_learning_rate", {"weight_decay": 0.05}),
    "adamw": ("AdamW", "learning_rate", {"name": "adamw"}),
}
SWEEP_SEED = 1000  # of no run of the grid
JUDGED_SEED = 1  # of the training scenes, never trained on, by which the sweep is judged
GROUPS = 50  # of consecutive held-out scenes, whose means the bootstrap draws


@dataclasses.dataclass(frozen=True)
class Condition:
    """What is trained, whatever the seed.

    Attributes:
        network: of `NETWORKS`.
        matching: "width", as wide and deep as CRATE; "parameters", as many of them as CRATE.
        pool: of `POOLS`.
        optimizer: of `OPTIMIZERS`.
    """

    network: str
    matching: str = "width"
    pool: str = "cls"
    optimizer: str = "muon"

    @property
    def name(self) -> str:
        """Such as vit-parameters-cls-muon."""
        return "-".join(dataclasses.astuple(self))

    @property
    def title(self) -> str:
        """Such as "ViT, mean pooling"; what is as in the main comparison goes without saying."""
        parts = [NETWORKS[self.network][0]]
        if self.matching == "parameters":
            parts.append("CRATE's number of parameters")
        if self.pool != "cls":
            parts.append(POOLS[self.pool])
        if self.optimizer != "muon":
            parts.append(OPTIMIZERS[self.optimizer][0])
        return ", ".join(parts)

    @property
    def swept(self) -> "Condition":
        """The condition whose rate it takes: the same with [CLS] pooling."""
        return dataclasses.replace(self, pool="cls")


@dataclasses.dataclass(frozen=True)
class Run:
    """A condition and a seed, of the weights and of which scenes are seen in which order."""

    condition: Condition
    seed: int

    @property
    def name(self) -> str:
        """That of its directory."""
        return f"{self.condition.name}-{self.seed}"


CRATE, VIT = Condition("crate"), Condition("vit")
MAIN = (CRATE, VIT, Condition("crate-mlp"), Condition("crate-mhsa"))
FURTHER = (
    Condition("crate", optimizer="adamw"),
    Condition("vit", optimizer="adamw"),
    Condition("crate", optimizer="muon_light"),
    Condition("vit", optimizer="muon_light"),
    Condition("vit", matching="parameters"),
    Condition("crate", pool="mean"),
    Condition("vit", pool="mean"),
    Condition("crate", pool="last_vit"),
    Condition("vit", pool="last_vit"),
    Condition("crate-sth"),
    Condition("crate-alpha"),
)


def _pair(**fields: str) -> tuple[Condition, Condition]:
    return Condition("crate", **fields), Condition("vit", **fields)


# What is compared, and with what; the first is the main comparison.
COMPARISONS: tuple[tuple[str, Condition, Condition], ...] = (
    ("main comparison", CRATE, VIT),
    ("CRATE-MLP", Condition("crate-mlp"), VIT),
    ("CRATE-MHSA", Condition("crate-mhsa"), VIT),
    ("ViT with CRATE's number of parameters", CRATE, Condition("vit", matching="parameters")),
    ("both with AdamW", *_pair(optimizer="adamw")),
    ("both with a third of the weight decay", *_pair(optimizer="muon_light")),
    ("both with mean pooling", *_pair(pool="mean")),
    ("both with LaSt-ViT's pooling", *_pair(pool="last_vit")),
    ("ViT alone with LaSt-ViT's pooling", CRATE, Condition("vit", pool="last_vit")),
    ("CRATE-sth", Condition("crate-sth"), VIT),
    ("CRATE-alpha", Condition("crate-alpha"), VIT),
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is trained and measured.

    Attributes:
        main: conditions with `seeds` seeds.
        further: conditions with `fewer`.
        seeds, fewer: how many.
        images: training scenes of a run.
        factors: of the quick start's rate, tried for each network.
        sweep_images: training scenes of each trial.
        evaluations: along training.
        curve_images: held-out scenes of each of them.
        learned, held_out: scenes of the last evaluation, of objects learned and never learned.
        cut: of these, the first so many that MaskCut and TokenCut cut.
        samples: draws of the bootstrap.
        model: fields that replace the quick start's in every network.
        training: keys of the config, likewise.
    """

    main: tuple[Condition, ...] = MAIN
    further: tuple[Condition, ...] = FURTHER
    seeds: int = 5
    fewer: int = 3
    images: int = 64_000
    factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    sweep_images: int = 16_000
    evaluations: int = 6
    curve_images: int = 500
    learned: int = 2000
    held_out: int = 1000
    cut: int = 500
    samples: int = 10_000
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)


BUDGETS: Mapping[str, Budget] = {
    "smoke": Budget(
        main=(CRATE, VIT),
        further=(Condition("vit", pool="mean"),),
        seeds=2,
        fewer=1,
        images=64,
        factors=(1.0,),
        sweep_images=32,
        evaluations=2,
        curve_images=16,
        learned=3 * GROUPS,  # thirds by size have as many groups
        held_out=2 * GROUPS,
        cut=8,
        samples=100,
        model={"patch_size": 16, "dim": 16, "heads": 2, "depth": 2},
        training={"batch_size": 8, "optimizer.warmup": "8 examples"},
    ),
    "cpu": Budget(),
    "gpu": Budget(
        images=2_000_000,
        sweep_images=300_000,
        curve_images=2000,
        model={"image_size": (128, 128), "dim": 384, "heads": 6, "depth": 12},
        training={
            "batch_size": 256,
            "dtype": "bfloat16",
            "data.image_size": 128,
            "data.workers": 12,
            "data.scenes.train_length": 20_000_000,
            "log_every": "25600 examples",
            "checkpoint_every": "100000 examples",
            "optimizer.warmup": "50000 examples",
        },
    ),
}


def runs(budget: Budget) -> Iterator[Run]:
    """In the order in which they are trained: the main networks seed by seed, then the others."""
    for some, seeds in ((budget.main, budget.seeds), (budget.further, budget.fewer)):
        for seed in range(seeds):
            yield from (Run(condition, seed) for condition in some)


def rates(condition: Condition, budget: Budget) -> list[float]:
    """The peak rates that are tried: factors of the quick start's."""
    rate = _quick_start(condition, budget).optimizer[OPTIMIZERS[condition.optimizer][1]]
    return [float(f"{factor * rate:.6g}") for factor in budget.factors]


def run_config(run: Run, budget: Budget, rate: float) -> ml_collections.ConfigDict:
    """The config of a run of the grid."""
    c = _config(run, budget, rate, budget.images)
    c.evaluate_every = f"{c.steps // budget.evaluations} steps"
    return c


def sweep_config(condition: Condition, budget: Budget, rate: float) -> ml_collections.ConfigDict:
    """The config of a trial of a rate: shorter, and not evaluated along training."""
    c = _config(Run(condition, SWEEP_SEED), budget, rate, budget.sweep_images)
    c.evals.validation = c.evals.emergence = "never"
    return c


def network(condition: Condition, budget: Budget) -> ImageModelConfig:
    """The network of a condition."""
    return variants.from_dict(_model(condition, budget).to_dict())


@functools.cache
def parameters(network: ImageModelConfig) -> int:
    """How many a network has."""
    return variants.count_parameters(network)


@functools.cache
def matched_width(wide: ImageModelConfig, target: int) -> int:
    """The width, a multiple of the heads, at which a network has nearest to so many parameters."""

    def count(width: int) -> int:
        return parameters(dataclasses.replace(wide, dim=width, head_dim=width // wide.heads))

    widths = range(wide.heads, wide.dim + 1, wide.heads)
    place = bisect.bisect(widths, target, key=count)
    return min(widths[max(place - 1, 0) : place + 1], key=lambda w: abs(count(w) - target))


def recipe(budget: Budget) -> dict[str, Any]:
    """What docs/emergence.md says of the recipe: the first run's config, and all parameters."""
    first = run_config(Run(CRATE, 0), budget, rates(CRATE, budget)[0])
    networks = {one.name: network(one, budget) for one in (*budget.main, *budget.further)}
    return {
        "config": config.plain(first),
        "parameters": {name: parameters(one) for name, one in networks.items()},
        "widths": {name: one.dim for name, one in networks.items()},
    }


def digest(resolved: Any) -> str:
    """The first 12 digits of the SHA-256 of all keys that make two configs different runs."""
    values = config.flatten(config.plain(resolved))
    fixed = {name: value for name, value in values.items() if name not in keys.FREE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:12]


def _quick_start(condition: Condition, budget: Budget) -> ml_collections.ConfigDict:
    """The quick start's config, with the keys that the budget replaces."""
    family = "vit" if condition.network == "vit" else "crate"
    c = config.load("scenes_tiny", f"model={family},objects={LEARNED + HELD_OUT}")
    c.update_from_flattened_dict(dict(budget.training))
    return c


def _config(run: Run, budget: Budget, rate: float, images: int) -> ml_collections.ConfigDict:
    c = _quick_start(run.condition, budget)
    c.model = _model(run.condition, budget)
    c.seed = run.seed
    c.steps = images // c.batch_size
    c.data.scenes.held_out = str(HELD_OUT)
    c.data.scenes.val_length = c.evaluation.capture_images = budget.curve_images
    c.evaluation.batch_size = min(250, budget.curve_images)
    _, rate_key, changes = OPTIMIZERS[run.condition.optimizer]
    c.optimizer.update({**changes, rate_key: rate})
    c.keep_checkpoints = 1
    c.report = c.tensorboard = False
    return c


def _model(condition: Condition, budget: Budget) -> ml_collections.ConfigDict:
    """The quick start's model with the fields of the budget and the condition."""
    fields = _quick_start(condition, budget).model.to_dict() | dict(budget.model)
    fields |= {"pool": condition.pool, "head_dim": None}
    if condition.network == "crate-alpha":
        shared = ("image_size", "patch_size", "dim", "heads", "depth", "classes", "pool")
        return config.model("crate-alpha-testing", **{name: fields[name] for name in shared})
    whole = variants.from_dict(fields | dict(NETWORKS[condition.network][1]))
    if condition.matching == "parameters":
        width = matched_width(whole, parameters(network(CRATE, budget)))
        whole = dataclasses.replace(whole, dim=width, head_dim=width // whole.heads)
    return config.model_section(whole)
