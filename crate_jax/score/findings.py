"""What a pass over a dataset finds: image by image, all together, and kept on the disk.

A pass over COCO takes hours. Its findings are kept batch by batch as they are made, so that a
killed `score`, run again, measures only the rest and ends with the same bytes.
"""

import dataclasses
import io
import json
import pathlib
import zipfile
import zlib

import numpy as np

from crate_jax.files import write_atomically
from crate_jax.segmentation import attention, scoring
from crate_jax.store import npz_bytes

RULES = tuple(attention.RULES)


@dataclasses.dataclass
class Finding:
    """What was found in one image; None where it was not looked for.

    Attributes:
        iou: f64[classes, rules, layers, heads], in the order of `RULES` and of the protocol.
        other: the same of the maps of the image before.
        blind: f64[classes, 2], the baselines all-ones and centre box.
        coding_rate: f32[layers].
        sparsity: f32[layers].
        masks: COCO results by (layer, tau).
    """

    iou: np.ndarray | None = None
    other: np.ndarray | None = None
    blind: np.ndarray | None = None
    coding_rate: np.ndarray | None = None
    sparsity: np.ndarray | None = None
    masks: dict[tuple[int, float], list[dict]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Measured:
    """What one pass found in all images.

    Attributes:
        used: names of the images that were scored.
        failed: {name: reason} of the others.
        iou: by rule, IoU of every layer's heads; the layers in the protocol's order.
        other: by rule, the same against the label map of the next image used, which says how much
            is a prior on place.
        blind: f64[2] an image with objects, the baselines all-ones and centre box.
        coding_rate: f32[layers] an image.
        sparsity: f32[layers] an image.
        masks: COCO results by (layer, tau).
        without_mask: images in which no mask was found, by (layer, tau).
    """

    used: list[str] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    iou: dict[str, scoring.ImageScores] = dataclasses.field(
        default_factory=lambda: {rule: scoring.ImageScores() for rule in RULES}
    )
    other: dict[str, scoring.ImageScores] = dataclasses.field(
        default_factory=lambda: {rule: scoring.ImageScores() for rule in RULES}
    )
    blind: list[np.ndarray] = dataclasses.field(default_factory=list)
    coding_rate: list[np.ndarray] = dataclasses.field(default_factory=list)
    sparsity: list[np.ndarray] = dataclasses.field(default_factory=list)
    masks: dict[tuple[int, float], list[dict]] = dataclasses.field(default_factory=dict)
    without_mask: dict[tuple[int, float], int] = dataclasses.field(default_factory=dict)

    def add(self, name: str, finding: Finding) -> None:
        """Takes one image; the order of the images is that of the figures' bootstrap."""
        self.used.append(name)
        if finding.iou is not None:
            for place, rule in enumerate(RULES):
                self.iou[rule].add(finding.iou[:, place])
            if len(finding.blind):
                self.blind.append(finding.blind.mean(0))
            self.coding_rate.append(finding.coding_rate)
            self.sparsity.append(finding.sparsity)
        if finding.other is not None:
            for place, rule in enumerate(RULES):
                self.other[rule].add(finding.other[:, place])
        for key, results in finding.masks.items():
            self.masks.setdefault(key, []).extend(results)
            self.without_mask[key] = self.without_mask.get(key, 0) + (not results)


@dataclasses.dataclass
class Batch:
    """The findings of a batch whose images could all be used.

    Attributes:
        findings: one an image.
        kept: bool[rules, layers, heads, n], the patches kept of its last image: the next batch
            compares its first image with them. None where attention is not scored.
    """

    findings: list[Finding]
    kept: np.ndarray | None = None

    def to_bytes(self) -> bytes:
        """The batch as the content of an .npz file; the same batch gives the same bytes."""
        arrays = {
            f"{place}/{field}": array
            for place, finding in enumerate(self.findings)
            for field, array in vars(finding).items()
            if isinstance(array, np.ndarray)
        }
        masks = [[[*key, found] for key, found in f.masks.items()] for f in self.findings]
        arrays["masks"] = np.frombuffer(json.dumps(masks).encode(), np.uint8)
        if self.kept is not None:
            arrays["kept"] = self.kept
        return npz_bytes(arrays)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Batch":
        """The reverse of `to_bytes`."""
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
        findings = [
            Finding(masks={(layer, tau): found for layer, tau, found in masks})
            for masks in json.loads(arrays.pop("masks").tobytes())
        ]
        kept = arrays.pop("kept", None)
        for name, array in arrays.items():
            place, field = name.split("/")
            setattr(findings[int(place)], field, array)
        return cls(findings, kept)


class Store:
    """The batches of a pass in a folder, each a file that is there whole or not at all.

    Args:
        folder: of this pass alone; made with the first batch.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def has(self, start: int) -> bool:
        """Whether the batch that begins with image `start` was kept."""
        return self._path(start).is_file()

    def read(self, start: int, images: int) -> Batch | None:
        """A batch of so many images; None where its file is damaged: it is to be measured again."""
        try:
            batch = Batch.from_bytes(self._path(start).read_bytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None
        return batch if len(batch.findings) == images else None

    def write(self, start: int, batch: Batch) -> None:
        """Keeps a batch."""
        write_atomically(self._path(start), batch.to_bytes())

    def _path(self, start: int) -> pathlib.Path:
        return self.folder / f"{start:08d}.npz"
