"""`score --task=saliency`: masks of the salient object, by both public metric codes."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from crate_jax.export.tables import Cell, Table, cell
from crate_jax.score import tasks
from crate_jax.score.tasks import Columns, Example, Row, check_finite, nearest_multiple, resized
from crate_jax.segmentation import attention, discovery, maskcut, saliency, scoring
from crate_jax.segmentation.emergence import Estimate

PREDICTORS = {
    "tokencut": "TokenCut",
    "maskcut": "MaskCut, first mask",
    "attention": "[CLS] attention",
}
_BASELINES = {"all_ones": "the whole image", "centre_box": "a centred box"}
_SHOWN = {
    "tokencut": ("max_f_of_set", "max_f_of_image", "iou", "accuracy"),
    "selfmask": ("max_f_of_set", "max_f_of_image", "iou", "accuracy", "mae", "s_measure"),
    "found": ("max_f_of_set", "max_f_of_image", "iou", "accuracy", "mae", "s_measure"),
}
_TITLES = {
    "max_f_of_set": "max F, one threshold",
    "max_f_of_image": "max F, per image",
    "iou": "IoU",
    "accuracy": "accuracy",
    "mae": "MAE",
    "s_measure": "S-measure",
}
_CODES = {
    "tokencut": "TokenCut's code (F with 0.3; any nonzero pixel is the object)",
    "selfmask": "SelfMask's code (F with 0.09; any nonzero pixel is the object; soft MAE)",
    "found": "FOUND's code (F with 0.09; the object is 255; MAE of the mask)",
}
PUBLISHED = {
    "ecssd": "80.3 / 71.2 / 91.8",
    "duts": "67.2 / 57.6 / 90.3",
    "omron": "60.0 / 53.3 / 88.0",
}


class Saliency(tasks.OfFeatures, tasks.OfWeights):
    """TokenCut's mask, MaskCut's first and the mean head's [CLS] attention against masks.

    Protocol (docs/protocols.md section 8): the image at the nearest whole number of patches (a set
    without sizes of its own: at the network's input), masks brought to the image's size by nearest
    neighbour and scored there; attention scaled to [0, 255] between its least and largest value.

    Args:
        *what: see `tasks.OfFeatures`; the data with `salient`.
        mask_tau: MaskCut's.
        **options: see there.
    """

    name = "saliency"
    headline: ClassVar[Mapping[str, str]] = {
        "saliency/tokencut/tokencut/max_f_of_set": "max F, TokenCut"
    }

    def __init__(self, *what: Any, mask_tau: float = 0.15, **options: Any):
        super().__init__(*what, **options)
        self.mask_tau = mask_tau
        own = "nearest multiple of the patch" if self.data.own_sizes else list(self.size)
        self.settings |= {
            "maskcut_tau": mask_tau,
            "attention_layer": self._arrays.maps_layer,
            "attention": "mean over heads",
            "input": own,
        }

    def __call__(self, examples: Sequence[Example], params: Any) -> list[Row]:
        """saliency/values f64[predictors, values] and saliency/f f32[predictors, codes, 255]."""
        inputs = [self._input(example) for example in examples]
        rows = []
        for example, (features, heads, grid) in zip(
            examples, self._arrays(inputs, params), strict=True
        ):
            check_finite(example, features, heads)
            truth = self.data.salient(example.name)
            found = [
                saliency.measure(prediction, truth)
                for prediction in self._predictions(features, heads, grid, example.size)
            ]
            rows.append(
                {
                    "saliency/values": np.array(
                        [[one.values[n] for n in saliency.VALUES] for one in found]
                    ),
                    "saliency/f": np.array(
                        [[one.f[code] for code in saliency.CODES] for one in found], np.float32
                    ),
                }
            )
        return rows

    def _input(self, example: Example) -> np.ndarray:
        if not self.data.own_sizes:
            return example.pixels
        return resized(example.picture, nearest_multiple(example.size, self._patch))

    def _predictions(self, features, heads, grid, size) -> list[np.ndarray]:
        """Of each predictor and baseline uint8[height, width] at the image's own size."""
        mean = heads.mean(axis=0)
        span = mean.max() - mean.min()
        scaled = (mean - mean.min()) / span if span > 0 else np.zeros_like(mean)
        cells = [
            discovery.tokencut(features, grid, self.tau).mask.ravel() * 255,
            maskcut.maskcut(features, grid, self.mask_tau, 1).masks[0].ravel() * 255,
            np.rint(scaled * 255),
        ]
        rows, columns = (attention.cell_of_pixel(c, p) for c, p in zip(grid, size, strict=True))
        masks = [c.reshape(grid)[rows][:, columns].astype(np.uint8) for c in cells]
        whole = np.full(size, 255, np.uint8)
        return [*masks, whole, scoring.centre_box(size) * whole]

    def scores(self, stem: str, columns: Columns) -> dict[str, Estimate]:
        """saliency/PREDICTOR/CODE/NAME, and saliency_random/ of the three methods."""
        found = {}
        rows = list(zip(columns["saliency/values"], columns["saliency/f"], strict=True))
        predictors = [*PREDICTORS, *(_BASELINES if stem == self.name else ())]
        for place, predictor in enumerate(predictors):
            images = [_image(values[place], f[place]) for values, f in rows]
            scores = saliency.estimates(images, samples=self.samples, seed=self.seed)
            found |= {f"{stem}/{predictor}/{name}": e for name, e in scores.items()}
        return found

    def tables(self, estimates: Mapping[str, Estimate]) -> list[Table]:
        """A table for each code."""
        tables = []
        for code, names in _SHOWN.items():
            rows = []
            for kind, titles in (("", PREDICTORS), ("_random", PREDICTORS), ("", _BASELINES)):
                for predictor, title in titles.items():
                    stem = f"saliency{kind}/{predictor}/{code}"
                    if f"{stem}/max_f_of_set" not in estimates:
                        continue
                    control = bool(kind) or titles is _BASELINES
                    cells = [
                        cell(estimates.get(f"{stem}/{n}"), percent=n != "mae", control=control)
                        for n in names
                    ]
                    label = f"{title}, random weights" if kind else title
                    rows.append([Cell(label), *cells])
            tables.append(
                Table(
                    f"Saliency by {_CODES[code]}",
                    self._note(code),
                    ["prediction", *(_TITLES[n] for n in names)],
                    rows,
                )
            )
        return tables

    def _note(self, code: str) -> str:
        note = "Per cent but for MAE."
        if code == "tokencut" and self.dataset in PUBLISHED:
            note += (
                " Published, TokenCut of DINO ViT-S/16 without bilateral solver, max F / IoU / "
                f"accuracy: {PUBLISHED[self.dataset]}."
            )
        return note


def _image(values: np.ndarray, f: np.ndarray) -> saliency.Saliency:
    curves: dict[str, np.ndarray] = dict(zip(saliency.CODES, f.astype(np.float64), strict=True))
    named = dict(zip(saliency.VALUES, map(float, values), strict=True))
    return saliency.Saliency(named, {}, {}, curves)
