"""The one measure of emergence: how well [CLS] attention fits objects, beside every control.

Training's evaluation, `score`, the report and the notebooks all say what is computed here: from
maps and objects to values of each image (`Measured`), and from those to means with intervals
(`estimates`). NumPy on the host, counts in float64.

A map holds one number a patch, so it is constant inside a patch, and every measure is a function of
how many pixels of the object lie in each patch (`Objects`): no upsampled map is ever made, and the
result is exactly that of upsampling by nearest neighbour and counting pixels. Of each head, layer
and object:

- `mass`, `area`: IoU of the patches that the two rules keep (`attention.keep_mass`, `keep_area`).
- `auroc`: the probability that the map is higher at a pixel of the object than at one beside it;
  equal values count 1/2. 0.5 is chance, and what an object without a pixel beside it gets.
- `ap`: average precision, the sum over the distinct values of the map, from the highest down, of
  the gain in recall times the precision; the pixels of one value enter together. Chance is the
  object's share of the image.
- `pointing`: 1 where the largest patch (of equal ones the last in reading order, as the rules have
  it) is a hit: at least half of its valid pixels are the object's; otherwise 0.

The last three do not depend on the part of a map that is kept.

Heads, for each measure on its own: `best`, the best head of each object, chosen with the object in
hand (the published protocol, docs/protocols.md section 3); `mean` over the heads; and `fixed`, one
head for all images, chosen by its mean over the other half of them (the images with objects,
numbered, fall into even and odd). Then the mean over the objects of an image and over images.

Controls: the same network with random weights (`random`), and **the maps of an image against the
objects of the next image of the set that holds any, the last one's against the first's** (`other`),
which says how much is a prior on place. There `fixed` is the head chosen for the images' own
objects. Images without objects are counted and are part of none of this.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import ArrayLike, Float, Float32, Float64, Integer, Shaped

from crate_jax.segmentation import attention, map_measures, scoring

RULES = tuple(attention.RULES)
MEASURES = (*RULES, "auroc", "ap", "pointing")
HEADS = ("best", "mean", "fixed")


@dataclasses.dataclass(frozen=True)
class Objects:
    """What is known of the objects of one image: enough for every measure of a map.

    Attributes:
        counts: f64[k, n], pixels of each object in each cell of the grid.
        valid: f64[n], pixels of each cell that count (all that are not void).
        all_ones: f64[k], IoU of the whole image with each object: its share of the valid pixels.
        centre_box: f64[k], IoU of `scoring.centre_box`.
    """

    counts: Float64[np.ndarray, "k n"]
    valid: Float64[np.ndarray, " n"]
    all_ones: Float64[np.ndarray, " k"]
    centre_box: Float64[np.ndarray, " k"]

    def __len__(self) -> int:
        return len(self.counts)


def objects_of_mask(mask: Shaped[ArrayLike, "height width"], grid: tuple[int, int]) -> Objects:
    """Of an image with one object, bool[height, width]; none where the mask is empty."""
    return objects_of_labels(np.asarray(mask, bool).astype(np.uint8), grid)


def objects_of_labels(
    labels: Integer[ArrayLike, "height width"],
    grid: tuple[int, int],
    *,
    background: int = 0,
    void: int = 255,
) -> Objects:
    """Of an image with a semantic label map: each class that is present is an object.

    Args:
        labels: int[height, width], as in PASCAL VOC.
        grid: (rows, columns) of patches that cover the image; they need not divide it.
        background: the label that is no object.
        void: the label whose pixels count for nothing.

    Raises:
        ValueError: `labels` is not two-dimensional.
    """
    labels = np.asarray(labels)
    present, counts = scoring.class_counts(labels, grid, void=void)
    objects = counts[present != background]
    valid = labels != void
    box = scoring.centre_box(labels.shape) & valid
    in_box = np.array([(box & (labels == c)).sum() for c in present if c != background], float)
    pixels = objects.sum(axis=1)
    return Objects(
        counts=objects,
        valid=counts.sum(axis=0),
        all_ones=pixels / max(valid.sum(), 1),
        centre_box=in_box / np.maximum(box.sum() + pixels - in_box, 1),
    )


@dataclasses.dataclass
class Measured:
    """What was measured of a set of images, in their order; parts of a set can be joined.

        measured = Measured()
        for ...:
            measured.add(maps, objects_of_mask(mask, grid), coding_rate, sparsity)
        estimates(measured)

    `a.extend(b)` equals having added b's images after a's, wherever a set is cut.

    Attributes:
        keep: the part of mass or area that the two rules keep.
        layers: indices of the layers that are measured, as their names have them; None for all.
        own: one f64[measures, layers, heads + 1] an image with objects, in the order of
            `MEASURES`: the mean over objects of each head and, last, of each object's best head.
        other: the same of the maps against the next image's objects; of the last image it is made
            by `estimates`.
        baselines: one f64[2] an image with objects, IoU of all-ones and of the centre box.
        coding_rate: one f64[layers] an image.
        sparsity: one f64[layers] an image.
        without_object: how many images held none.
        first: objects of the first image that holds any.
        last: maps f32[layers, heads, n] of the last image that holds any.
    """

    keep: float = attention.PAPER_FRACTION
    layers: tuple[int, ...] | None = None
    own: list[np.ndarray] = dataclasses.field(default_factory=list)
    other: list[np.ndarray] = dataclasses.field(default_factory=list)
    baselines: list[np.ndarray] = dataclasses.field(default_factory=list)
    coding_rate: list[np.ndarray] = dataclasses.field(default_factory=list)
    sparsity: list[np.ndarray] = dataclasses.field(default_factory=list)
    without_object: int = 0
    first: Objects | None = None
    last: Float32[np.ndarray, "layers heads n"] | None = None

    def __len__(self) -> int:
        """Images that hold an object."""
        return len(self.own)

    def add(
        self,
        maps: Float[np.ndarray, "layers heads n"] | None,
        objects: Objects | None,
        coding_rate: Float[np.ndarray, " layers"],
        sparsity: Float[np.ndarray, " layers"],
    ) -> None:
        """Takes one image; see `add_batch`."""
        self.add_batch(
            None if maps is None else maps[None],
            None if objects is None else [objects],
            coding_rate[None],
            sparsity[None],
        )

    def add_batch(
        self,
        maps: Float[np.ndarray, "b layers heads n"] | None,
        objects: Sequence[Objects] | None,
        coding_rate: Float[np.ndarray, "b layers"],
        sparsity: Float[np.ndarray, "b layers"],
    ) -> None:
        """Takes images; the same as one by one, to the last bit.

        Args:
            maps: f32[b, layers, heads, n] from `attention.layer_maps`; None without objects.
            objects: of each image; None where the set has no masks at all.
            coding_rate: f[b, layers].
            sparsity: f[b, layers].

        Raises:
            FloatingPointError: an array holds NaN or infinity.
        """
        for name, values in (("coding_rate", coding_rate), ("sparsity", sparsity)):
            if not np.isfinite(values).all():
                bad = values[~np.isfinite(values).all(axis=1)][0]
                raise FloatingPointError(
                    f"{name.replace('_', ' ')}: expected finite values, got {bad}; check the "
                    "weights"
                )
            getattr(self, name).extend(np.asarray(values, np.float64))
        if objects is None or maps is None:
            return
        some = [row for row, of_image in enumerate(objects) if len(of_image)]
        self.without_object += len(objects) - len(some)
        together = max(1, _TOGETHER // maps[0].size)
        for start in range(0, len(some), together):
            rows = some[start : start + together]
            self.extend(self._of(maps[rows], [objects[row] for row in rows]))

    def _of(self, values: np.ndarray, objects: Sequence[Objects]) -> "Measured":
        """Images with objects, without what is measured of the layers."""
        maps = map_measures.Maps(values, self.keep)
        return Measured(
            self.keep,
            self.layers,
            own=[*_mean_over_objects(maps, objects)],
            other=[*_mean_over_objects(maps, objects[1:])],
            baselines=[np.array([o.all_ones.mean(), o.centre_box.mean()]) for o in objects],
            first=objects[0],
            last=np.asarray(values[-1], np.float32),
        )

    def extend(self, following: "Measured") -> None:
        """Takes the images of `following`, which come after those that are here.

        Raises:
            ValueError: the two were measured with another `keep`, or of other layers.
        """
        mine, theirs = (self.keep, self.layers), (following.keep, following.layers)
        if mine != theirs:
            raise ValueError(
                f"parts of one set: expected the same keep and layers, got {mine} and {theirs}; "
                "measure all parts alike"
            )
        if self.last is not None and following.first is not None:
            self.other.append(self._against(self.last, following.first))
        for name in ("own", "other", "baselines", "coding_rate", "sparsity"):
            getattr(self, name).extend(getattr(following, name))
        self.without_object += following.without_object
        if self.first is None:
            self.first = following.first
        if following.first is not None:
            self.last = following.last

    def against_next(self) -> Float64[np.ndarray, "images measures layers heads_and_best"]:
        """`other` of every image, that of the last one against the first's objects.

        Raises:
            ValueError: fewer than two images hold an object.
        """
        if self.first is None or self.last is None or len(self) < 2:
            raise ValueError(
                f"another image's objects: expected at least 2 images with objects, got {len(self)}"
            )
        return np.array([*self.other, self._against(self.last, self.first)])

    def _against(self, maps: np.ndarray, objects: Objects) -> np.ndarray:
        """The maps f32[layers, heads, n] of one image against the objects of another."""
        return _mean_over_objects(map_measures.Maps(maps[None], self.keep), [objects])[0]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The part as arrays by name, for an .npz file; `keep` and `layers` are not among them."""
        arrays = {name: np.array(getattr(self, name)) for name in _LISTS if getattr(self, name)}
        arrays["without_object"] = np.array(self.without_object)
        if self.first is not None:
            arrays |= {f"first/{name}": array for name, array in vars(self.first).items()}
            arrays["last"] = np.asarray(self.last)
        return arrays

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], keep: float, layers: tuple[int, ...] | None = None
    ) -> "Measured":
        """The reverse of `to_arrays`, exactly."""
        first = {n.removeprefix("first/"): a for n, a in arrays.items() if n.startswith("first/")}
        return cls(
            keep,
            layers,
            **{name: list(arrays[name]) for name in _LISTS if name in arrays},
            without_object=int(arrays["without_object"]),
            first=Objects(**first) if first else None,
            last=arrays.get("last"),
        )


_TOGETHER = 2**19  # entries of maps that are measured at once: some 50 MB
_LISTS = ("own", "other", "baselines", "coding_rate", "sparsity")


def _mean_over_objects(maps: map_measures.Maps, objects: Sequence[Objects]) -> np.ndarray:
    """f64[images, measures, layers, heads + 1]: every head, and the best head of each object.

    `objects` of each image, of the first images where there are fewer than maps.
    """
    if not objects:
        return np.empty((0,))
    sizes = np.array([len(of_image) for of_image in objects])
    images = np.repeat(np.arange(len(objects)), sizes)
    counts = np.concatenate([of_image.counts for of_image in objects])
    valid = np.stack([of_image.valid for of_image in objects])[images]
    scores = np.moveaxis(map_measures.measure(maps, images, counts, valid), 1, 0)
    scores = np.concatenate([scores, scores.max(axis=-1, keepdims=True)], axis=-1)
    sums = np.add.reduceat(scores, np.cumsum(sizes) - sizes, axis=0)
    return sums / sizes.reshape(-1, 1, 1, 1)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over images, and the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def estimates(
    measured: Measured,
    random: Measured | None = None,
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Every mean over images by name, with its interval; all share the draws of images.

    MEASURE is cls_iou/mass, cls_iou/area, cls_auroc, cls_ap or cls_pointing, HEAD best, mean or
    fixed, and layers count from 01; /RULE stays behind the kind, as in cls_iou_random/mass/best.

        MEASURE/HEAD/layerNN
        MEASURE_random/HEAD/layerNN           the network with random weights
        MEASURE_gain/HEAD/layerNN             minus that, paired by image
        MEASURE_other/HEAD/layerNN            the maps against the next image's objects
        MEASURE_own_minus_other/HEAD/layerNN  minus that, paired by image
        cls_iou_all_ones, cls_iou_centre_box, object_fraction
        coding_rate/layerNN, sparsity/layerNN

    What was not measured has no name: there is no `other` of a single image.

    Args:
        measured: of the network.
        random: of the same network with random weights on the same images; None leaves it out.
        samples: draws of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: `random` was measured on another number of images, or no image was measured.
    """
    rows: dict[str, np.ndarray] = {}
    if measured.own:
        own = np.array(measured.own)
        fixed = _fixed_heads(own)
        kinds = {"": _by_head(own, fixed)}
        if random is not None:
            if len(random) != len(measured):
                raise ValueError(
                    f"random weights: expected the same {len(measured)} images with objects, got "
                    f"{len(random)}; measure both networks on one set"
                )
            untrained = np.array(random.own)
            kinds["_random"] = _by_head(untrained, _fixed_heads(untrained))
            kinds["_gain"] = _differences(kinds[""], kinds["_random"])
        if len(measured) > 1:
            kinds["_other"] = _by_head(measured.against_next(), fixed)
            kinds["_own_minus_other"] = _differences(kinds[""], kinds["_other"])
        for kind, heads in kinds.items():
            rows |= _named(kind, heads, _layer_names(measured, own.shape[2]))
        rows["cls_iou_all_ones"], rows["cls_iou_centre_box"] = np.array(measured.baselines).T
        # A mask of everything has the object's share of the image as its IoU.
        rows["object_fraction"] = rows["cls_iou_all_ones"]
    for kind in ("coding_rate", "sparsity"):
        table = np.array(getattr(measured, kind)).T
        for layer, row in zip(_layer_names(measured, len(table)), table, strict=True):
            rows[f"{kind}/{layer}"] = row
    return with_intervals(rows, samples=samples, seed=seed)


def with_intervals(
    rows: Mapping[str, Shaped[np.ndarray, " _"]], *, samples: int = 10_000, seed: int = 0
) -> dict[str, Estimate]:
    """Means of rows f[images] by name with their bootstrap intervals; equal lengths share draws.

    Raises:
        ValueError: a row without an image.
    """
    result: dict[str, Estimate] = {}
    for length in sorted({len(row) for row in rows.values()}):
        names = [name for name, row in rows.items() if len(row) == length]
        values = np.stack([rows[name] for name in names]).astype(np.float64)
        ends = scoring.bootstrap_interval(values, samples=samples, seed=seed)
        for name, *three in zip(names, values.mean(axis=1), *ends, strict=True):
            result[name] = Estimate(*map(float, three))
    return {name: result[name] for name in rows}


def flatten(estimated: Mapping[str, Estimate]) -> dict[str, float]:
    """As a line of metrics.jsonl has them: NAME, NAME/low and NAME/high."""
    flat = {}
    for name, estimate in estimated.items():
        flat |= {name: estimate.value, f"{name}/low": estimate.low, f"{name}/high": estimate.high}
    return flat


def _fixed_heads(own: np.ndarray) -> np.ndarray | None:
    """int[images, measures, layers], the head that is best over the other half of the images."""
    if len(own) < 2:
        return None
    best = [own[half::2, ..., :-1].mean(axis=0).argmax(axis=-1) for half in (1, 0)]
    return np.stack([best[image % 2] for image in range(len(own))])


def _by_head(values: np.ndarray, fixed: np.ndarray | None) -> dict[str, np.ndarray]:
    """f64[images, measures, layers, heads + 1] -> one f64[images, measures, layers] a head."""
    heads = {"best": values[..., -1], "mean": values[..., :-1].mean(axis=-1)}
    if fixed is not None:
        heads["fixed"] = np.take_along_axis(values, fixed[..., None], axis=-1)[..., 0]
    return heads


def _differences(first: dict[str, np.ndarray], second: dict[str, np.ndarray]):
    return {head: values - second[head] for head, values in first.items()}


def _layer_names(measured: Measured, count: int) -> list[str]:
    layers = range(count) if measured.layers is None else measured.layers
    return [layer_name(index) for index in layers]


def layer_name(index: int) -> str:
    """Index 0 -> "layer01"."""
    return f"layer{index + 1:02d}"


def _named(kind: str, heads: dict[str, np.ndarray], layers: list[str]) -> dict[str, np.ndarray]:
    """Rows f64[images] by the names that `estimates` describes."""
    stems = [f"cls_iou{kind}/{m}" if m in RULES else f"cls_{m}{kind}" for m in MEASURES]
    return {
        f"{stem}/{head}/{layer}": values[:, place, index]
        for place, stem in enumerate(stems)
        for head, values in heads.items()
        for index, layer in enumerate(layers)
    }
