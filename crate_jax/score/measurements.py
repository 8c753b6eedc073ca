"""What a pass of a network over a dataset measures; kept by batches, so that a killed one goes on.

A pass over COCO takes hours. What was measured of a batch is kept as it is made, and joined in the
order of the images: a killed `score`, run again, measures only the rest and ends with the same
bytes.
"""

import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from crate_jax.score.tasks import Row
from crate_jax.segmentation import emergence
from crate_jax.store import npz_bytes

_COLUMN = "column/"

Cut = tuple[int, float]
"""Which masks of MaskCut: (index of the layer, tau)."""


@dataclasses.dataclass
class Measurements:
    """What was measured of some images, in their order; `extend` joins what follows.

    Attributes:
        attention: of the images' [CLS] maps; without images where attention is not scored.
        used: names of the images that were scored.
        failed: {name: reason} of the others.
        masks: by layer and tau, the COCO results of each image used.
        columns: by name, what the other tasks keep of each image used (`tasks.Row`).
    """

    attention: emergence.Measured
    used: list[str] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    masks: dict[Cut, list[list[dict]]] = dataclasses.field(default_factory=dict)
    columns: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    def add_rows(self, rows: Sequence[Row]) -> None:
        """Takes what a task keeps of the images, in their order."""
        for row in rows:
            for name, values in row.items():
                self.columns.setdefault(name, []).append(values)

    def extend(self, following: "Measurements") -> None:
        """Takes the images of `following`, which come after those that are here."""
        self.attention.extend(following.attention)
        self.used += following.used
        self.failed |= following.failed
        for cut, results in following.masks.items():
            self.masks.setdefault(cut, []).extend(results)
        for name, values in following.columns.items():
            self.columns.setdefault(name, []).extend(values)

    def without_mask(self) -> dict[Cut, int]:
        """How many images have no mask, by layer and tau."""
        return {cut: sum(not found for found in results) for cut, results in self.masks.items()}

    def to_bytes(self) -> bytes:
        """As the content of an .npz file; the same measurements give the same bytes."""
        masks = [[*cut, results] for cut, results in self.masks.items()]
        rest = json.dumps({"used": self.used, "failed": self.failed, "masks": masks})
        arrays = self.attention.to_arrays() | {"rest": np.frombuffer(rest.encode(), "u1")}
        arrays |= {_COLUMN + name: np.stack(rows) for name, rows in self.columns.items()}
        return npz_bytes(arrays)

    def of_bytes(self, content: bytes) -> "Measurements | None":
        """The reverse of `to_bytes`, for attention measured as here; None of a damaged file."""
        like = self.attention
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = dict(file)
            rest = json.loads(arrays.pop("rest").tobytes())
            columns = {
                name.removeprefix(_COLUMN): list(arrays.pop(name))
                for name in [name for name in arrays if name.startswith(_COLUMN)]
            }
            return Measurements(
                emergence.Measured.from_arrays(arrays, like.keep, like.layers),
                rest["used"],
                rest["failed"],
                {(layer, tau): results for layer, tau, results in rest["masks"]},
                columns,
            )
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
            return None
