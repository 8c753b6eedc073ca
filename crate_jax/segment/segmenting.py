"""A folder of images through a network and a method to files, resumable and in shards.

Batches are cut from the sorted list of all images, whatever is done already and whichever shard
works: every image always has the same neighbours and the same row, so that a resumed run, and
several shards together, write the bytes that one uninterrupted run writes.
"""

import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from crate_jax import inference
from crate_jax.data import images
from crate_jax.export import coco, explorer, overlays
from crate_jax.files import read, write_atomically
from crate_jax.progress import Progress
from crate_jax.segment import methods, summary
from crate_jax.segment.records import Records
from crate_jax.segmentation import parts
from crate_jax.store import npz_bytes

SAVES = ("png", "npz", "coco")
ON_ERROR = ("fail", "skip", "stop")
_PREVIEW = 360  # px, longest side
_SMALL = 128  # px: below it a preview is a PNG, exact
_AT_LEAST = 4  # a reduced JPEG is decoded to no less than this many times the network's input


@dataclasses.dataclass(frozen=True)
class Options:
    """How to segment; the meaning of each is in `python -m crate_jax.segment --help`."""

    method: str
    layer: int | None = None
    size: tuple[int, int] | int | None = None
    batch_size: int = 4
    save: tuple[str, ...] = SAVES
    features: str = "subspace"
    tau: float = 0.15
    max_masks: int = 3
    corrected: bool = False
    crf: bool = False
    rule: str = "mass"
    keep: float = 0.6
    head: int | None = None
    heads_montage: bool = False
    flip: bool = False
    scaling: parts.Scaling = "image"
    keep_background: bool = False
    shard: tuple[int, int] = (1, 1)
    on_error: str = "fail"
    annotations: str | None = None

    def settings(self) -> dict[str, Any]:
        """What the method's results depend on: only the options that it reads."""
        read = {
            "attention": ("rule", "keep", "head", "heads_montage"),
            "maskcut": ("features", "tau", "max_masks", "corrected", "crf"),
            "parts": ("features", "flip", "scaling", "keep_background"),
        }[self.method]
        frame = {} if self.annotations is None else {"frame": "stored"}
        return {"save": list(self.save)} | {name: getattr(self, name) for name in read} | frame


@dataclasses.dataclass(frozen=True)
class _Loaded:
    pixels: np.ndarray  # uint8[height, width, 3], the network's input
    preview: np.ndarray  # uint8[h, w, 3]
    size: tuple[int, int]


def segment(
    network: inference.Network,
    folder: pathlib.Path,
    names: list[str],
    out: pathlib.Path,
    options: Options,
    say: Callable[[str], None] = print,
) -> int:
    """Segments images; writes their results, and what covers them all, into `out`.

    Args:
        network: from `inference.load`.
        folder: the images' folder.
        names: all images, as `images.find` lists them; a shard takes its batches of this list.
        out: the folder of results; those of the same settings that are there are kept.
        options: see `Options`.
        say: prints a line.

    Returns:
        The number of this shard's images that failed; they are in `out`/failures.jsonl.

    Raises:
        ValueError: options that do not fit the network, annotations that do not tell the images'
            ids, an `out` of other settings or of something else, or another process at work there.
    """
    # Rows that no image fills are computed too.
    options = dataclasses.replace(options, batch_size=min(options.batch_size, len(names)))
    layer = inference.layer_index(network.config, options.layer, options.method)
    size = inference.input_size(network.config, options.size)
    grid = inference.grid_of(network.config, size)
    if options.head is not None and not 0 <= options.head < network.config.heads:
        raise ValueError(
            f"head: expected an index in [0, {network.config.heads}) or mean, got {options.head}"
        )
    settings = {
        "weights": network.fingerprint,
        "model": network.config.to_dict(),
        "method": options.method,
        "layer": layer,
        "size": list(size),
        "batch_size": options.batch_size,
        **options.settings(),
    }
    listed = summary.listed(names, options.annotations)
    sizes = {name: one.size for name, one in listed.items()}
    with Records(out, names, settings, options.shard) as records:
        run = _Run(network, folder, records, options, layer, size, grid, sizes, say)
        failed = run.all_batches()
        if options.method == "parts":
            run.parts()
        run.explorer()
        ids = {name: one.id for name, one in listed.items()}
        summary.collect(records, ids, folder, options.save, say)
    return failed


@dataclasses.dataclass
class _Run:
    network: inference.Network
    folder: pathlib.Path
    records: Records
    options: Options
    layer: int
    size: tuple[int, int]
    grid: tuple[int, int]
    sizes: Mapping[str, tuple[int, int] | None]  # height and width that annotations say
    say: Callable[[str], None]

    def all_batches(self) -> int:
        """This shard's unfinished batches; returns how many of their images failed."""
        shard, shards = self.options.shard
        mine = self._batches()
        unfinished = [batch for batch in mine if not all(self._done(name) for name in batch)]
        self.records.remove_unfinished(name for batch in unfinished for name in batch)
        count = sum(map(len, mine))
        todo = sum(map(len, unfinished))
        here = "" if shards == 1 else f", {count} of them in shard {shard}/{shards}"
        there = f", {count - todo} done before" if todo < count else ""
        self.say(f"images    {len(self.records.names)}{here}{there}")
        if not unfinished:
            return 0
        batches = self._compile()
        progress = Progress("segment", todo, self.say)
        failed = 0
        # More readers would help little, and each may hold an image of 100 megapixels.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            writing: list[Future] = []
            for batch, loaded in inference.read_ahead(pool, self._read, unfinished):
                found = self._compute(batches, loaded)
                failed += sum(future.result() for future in writing)
                writing = [
                    pool.submit(self._write, *image)
                    for image in zip(batch, loaded, found, strict=True)
                ]
                if self.options.on_error == "stop" and any(f.result() for f in writing):
                    self.say("stopped   at the first failure, as --on-error=stop asks")
                    break
                progress.add(len(batch))
            failed += sum(future.result() for future in writing)
        return failed

    def parts(self) -> None:
        """The second stage, over all images together, once each has its features."""
        names = [n for n in self.records.names if "failed" not in (self.records.record(n) or {})]
        features = [self.records.path("features", name, ".npy") for name in names]
        if missing := sum(not path.is_file() for path in features):
            self.say(
                f"parts     wait for the features of {missing} images: run the other shards too"
            )
            return
        if not names or all(self.records.done(name) for name in names):
            return
        stacked = self._features(features)
        if self.options.keep_background:
            components = zip(*parts.layer_components(stacked), strict=True)
            segmented = (methods.from_components(grey, rgb, self.grid) for grey, rgb in components)
        else:
            found = parts.parts(stacked, self.grid, self.options.flip, self.options.scaling)
            segmented = (methods.from_parts(found, i, self.grid) for i in range(len(names)))
        for name, one in zip(names, segmented, strict=True):
            loaded = self._read(name)
            if isinstance(loaded, _Failure):
                raise ValueError(f"{name}: {loaded.message}; it was readable before. Run again.")
            self._save(name, loaded, one)

    def explorer(self) -> None:
        """What the gallery's explorer holds of the first images, of those that this shard saves.

        One image at a time: what a row of a batch gives depends on the batch's length.
        """
        config, patches = self.network.config, self.grid[0] * self.grid[1]
        width = config.heads * config.head_dim
        arrays = inference.distinct_arrays(self.network, self.size)
        count, layers = explorer.affordable(config.depth, patches, width, arrays, self.layer)
        # Parts are saved of all images at once, by the shard that finishes last.
        own = self._batches() if self.options.method != "parts" else [self.records.names]
        mine = {name for batch in own for name in batch}
        missing = [
            name
            for name in self.records.names[:count]
            if name in mine and self.records.done(name) and self.records.explorable(name) is None
        ]
        if not missing:
            return
        run = inference.captured(self.network, layers)
        compute = inference.Batches(self.network, run, 1, self.size)
        progress = Progress("explorer", len(missing), self.say)
        for name in missing:
            loaded = self._read(name)
            if isinstance(loaded, _Loaded):
                captured = {key: x[:, 0] for key, x in compute(loaded.pixels[None]).items()}
                packed = explorer.pack(captured, self.grid, layers, config.registers)
                path = self.records.path("explorer", name, ".npz")
                write_atomically(path, npz_bytes(packed))
            progress.add(1)

    def _features(self, paths: list[pathlib.Path]) -> np.ndarray:
        needed = 4 * sum(path.stat().st_size for path in paths)  # in float64, and centred
        free = inference.free_host_memory()
        if free is not None and needed > free:
            raise ValueError(
                f"parts: {len(paths)} images need about {needed / 2**30:.1f} GiB together, "
                f"{free / 2**30:.1f} are free; take fewer images or a smaller --size"
            )
        return np.stack([np.load(io.BytesIO(read(path))) for path in paths])

    def _batches(self) -> list[list[str]]:
        """This shard's images, cut into batches."""
        shard, shards = self.options.shard
        length, names = self.options.batch_size, self.records.names
        starts = range((shard - 1) * length, len(names), shards * length)
        return [names[start : start + length] for start in starts]

    def _done(self, name: str) -> bool:
        if self.options.method == "parts" and self.records.path("features", name, ".npy").is_file():
            return True
        return self.records.done(name)

    def _compile(self) -> inference.Batches:
        patches = self.grid[0] * self.grid[1]
        self.say(
            f"input     {self.size[0]} x {self.size[1]} px in patches of "
            f"{self.network.config.patch_size}: {self.grid[0]} x {self.grid[1]} = {patches} "
            f"patches; layer {self.layer} of 0..{self.network.config.depth - 1}"
        )
        if self.options.method == "attention":
            run = inference.cls_maps(self.network, [self.layer])
        else:
            run = inference.patch_features(self.network, [self.layer], self.options.features)
        batches = inference.Batches(self.network, run, self.options.batch_size, self.size)
        matrix = patches if self.options.method == "maskcut" else 0
        self.say(inference.memory_line(batches, self.options.batch_size, matrix))
        for note in self.network.notes:
            self.say(f"weights   {note}")
        return batches

    def _read(self, name: str) -> "_Loaded | _Failure":
        try:
            at_least = (_AT_LEAST * self.size[0], _AT_LEAST * self.size[1])
            upright = self.options.annotations is None  # else in the frame that these are in
            picture = images.read(self.folder / name, at_least, upright=upright)
        except images.UnreadableImage as error:
            return _Failure("unreadable", str(error))
        except OSError as error:
            return _Failure("file", error.strerror or str(error))
        if self.sizes[name] not in (None, picture.size):
            return _Failure(
                "size", f"the image is {picture.size}, its annotation says {self.sizes[name]}"
            )
        preview = images.resize(picture.pixels, _preview_size(picture.size))
        return _Loaded(images.resize(picture.pixels, self.size), preview, picture.size)

    def _compute(self, batches: inference.Batches, loaded: list) -> Sequence[Any]:
        """What the method needs of each image; None for one that failed to load."""
        pixels = np.zeros(batches.shape, np.uint8)
        valid = np.array([isinstance(picture, _Loaded) for picture in loaded])
        for row in np.flatnonzero(valid):
            pixels[row] = loaded[row].pixels
        if not valid.any():
            return [None] * len(loaded)
        result = batches(pixels)[:, 0]
        if self.options.method == "maskcut":
            valid = np.concatenate([valid, np.zeros(len(pixels) - len(valid), bool)])
            options = {k: getattr(self.options, k) for k in ("tau", "max_masks", "corrected")}
            return methods.cut(result, valid, self.grid, **options)[: len(loaded)]
        return list(np.asarray(result)[: len(loaded)])

    def _write(self, name: str, picture: "_Loaded | _Failure", result: Any) -> int:
        """Saves an image's results, unless they are there; returns 1 if it failed."""
        if self._done(name):
            return 0
        if isinstance(picture, _Failure):
            self.records.write_failure(name, picture.kind, picture.message)
            return 1
        try:
            if self.options.method == "parts":
                self._save_features(name, result)
                return 0
            self._save(name, picture, self._segmented(picture, result))
        except (images.UnreadableImage, FileNotFoundError) as error:  # read again at its full size
            self.records.write_failure(name, "vanished", str(error))
            return 1
        except FloatingPointError as error:
            self.records.write_failure(name, "not finite", str(error))
            return 1
        return 0

    def _segmented(self, picture: _Loaded, result: Any) -> methods.Segmented:
        o = self.options
        if o.method == "attention":
            return methods.from_attention(result, self.grid, head=o.head, rule=o.rule, keep=o.keep)
        return methods.from_maskcut(
            result, self.network.config.patch_size, picture.pixels, refine=o.crf
        )

    def _save_features(self, name: str, features: np.ndarray) -> None:
        if not np.isfinite(features).all():
            raise FloatingPointError("the features hold NaN or infinity; check the weights")
        self.records.write_features(name, features)

    def _save(self, name: str, picture: _Loaded, found: methods.Segmented) -> None:
        path, files = self.records.path, {}
        if "npz" in self.options.save:
            files[path("maps", name, ".npz")] = npz_bytes(found.arrays)
        if "png" in self.options.save:
            upright = self.options.annotations is None
            full = images.read(self.folder / name, upright=upright).pixels
            files[path("overlays", name, ".png")] = _png(found.draw(full))
            del full
        if self.options.heads_montage and found.draw_heads:
            files[path("heads", name, ".png")] = _png(found.draw_heads(picture.preview))
        previews = {"image": picture.preview, "overlay": found.draw(picture.preview)}
        if found.draw_grey:
            previews["grey"] = found.draw_grey(picture.preview)
        kind = "png" if max(picture.preview.shape[:2]) <= _SMALL else "webp"
        for caption, shown in previews.items():
            files[path("previews", name, f".{caption}.{kind}")] = overlays.encode(shown, kind)
        objects = []
        if "coco" in self.options.save:
            objects = coco.results(0, found.masks(picture.size), found.confidences)
        record = {
            "height": picture.size[0],
            "width": picture.size[1],
            "confidences": found.confidences,
            "objects": objects,
            "note": found.note,
        }
        self.records.write(name, record, files)


@dataclasses.dataclass(frozen=True)
class _Failure:
    kind: str
    message: str


def _preview_size(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1, _PREVIEW / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    # Not `overlays.encode`: optimising takes minutes on 100 megapixels, for a few per cent.
    Image.fromarray(picture).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
