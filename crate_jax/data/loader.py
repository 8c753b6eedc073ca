"""The input pipeline: random-access source -> batches of numpy arrays, through Grain.

Every batch is a function of (source, seed, batch number) alone. Therefore the number of worker
processes, of hosts and of interruptions changes nothing in the data, and the state of a training
iterator is the number of batches that it has handed out. Grain supplies the shuffle, the threads
and the worker processes.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags, logging
from grain.experimental import index_shuffle

from crate_jax.data import processes, randomness, shared_batches
from crate_jax.data.decode import CorruptImage, Encoded

Example = dict[str, np.ndarray]
Transform = Callable[[np.ndarray | Encoded, np.random.Generator], np.ndarray]

_PREFETCHED_BATCHES = 2  # ahead of the consumer, for each worker
_ATTEMPTS = 100  # neighbours to try in place of an unreadable example


class Source(Protocol):
    """A random-access dataset.

    `source[i]` gives a dict with `image` uint8[h, w, 3], `label` int32, `index` int64 and, if
    `has_masks`, `mask` bool[h, w]. Optional members serve encoded images: `encoded(i)`, the same
    with an image not yet decoded (`decode.Encoded`), which the transform decodes at the size that
    it needs; `on_corrupt`, "error" or "skip", with `path(i)`, the name of an example's file.
    """

    num_classes: int
    class_names: tuple[str, ...]
    has_masks: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class TrainIterator(Iterator[Example]):
    """Endless shuffled batches; made by `train_iterator`, which has the description.

    Attributes:
        batches: how many have been handed out.
        skipped: indices of the unreadable examples met so far, in order of meeting, each once;
            empty unless the source says on_corrupt="skip". Only this process's part of the batches
            counts.
    """

    def __init__(self, source: Source, make_batch: "_TrainBatches", workers: int):
        self._source, self._make_batch, self._workers = source, make_batch, workers
        self.batches = 0
        self.skipped: list[int] = []
        self._prefetched: _Prefetched | None = None

    def __next__(self) -> Example:
        if self._prefetched is None:
            self._prefetched = _Prefetched(self._make_batch, self.batches, self._workers)
        batch = next(self._prefetched)
        self.batches += 1
        for index in batch.pop("replaced").tolist():
            if index >= 0 and index not in self.skipped:
                self.skipped.append(index)
                logging.warning("Skipped a corrupt image: %s", self._source.path(index))
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position, as a dict that JSON can hold."""
        return {**self._identity(), "batches": self.batches, "skipped": list(self.skipped)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after the batch at which `get_state` gave `state`.

        The number of workers and of processes may differ from those of the interrupted run.

        Raises:
            ValueError: the state is of another seed, batch size or dataset length.
        """
        identity = self._identity()
        differ = [
            f"{key} {state.get(key)} (saved) against {value} (now)"
            for key, value in identity.items()
            if state.get(key) != value
        ]
        if differ:
            raise ValueError(
                f"saved position: expected one of this run of the data, got {'; '.join(differ)}; "
                "restore these values, or start in a new workdir"
            )
        self.close()
        self.batches, self.skipped = int(state["batches"]), list(state["skipped"])

    def close(self) -> None:
        """Stops the workers. A later `next` starts new ones."""
        if self._prefetched is not None:
            self._prefetched.close()
            self._prefetched = None

    def __enter__(self) -> "TrainIterator":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def _identity(self) -> dict[str, int]:
        maker = self._make_batch
        return {"seed": maker.seed, "batch_size": maker.batch_size, "examples": maker.examples}


def train_iterator(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    transform: Transform | None = None,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainIterator:
    """Endless, shuffled, restorable training batches.

    An epoch shows every example once, in an order that depends on (seed, epoch) (Grain's index
    shuffle); the next epoch follows without a gap, so a batch may hold the end of one and the start
    of the next. The global batch k is the same for any number of workers and of processes: of its
    `batch_size` examples, process p takes the p-th of `process_count` equal runs.

    Args:
        source: the dataset.
        batch_size: examples in a global batch.
        seed: of the order and of the augmentation, 0 <= seed < 2^63.
        transform: `transform(image, rng) -> uint8[h, w, 3]`, with a generator that depends on
            (seed, epoch, index) alone; None: as the source gives it.
        workers: worker processes; 0: one thread of this process. Workers initialise no JAX backend.
        process_index: of this JAX process.
        process_count: JAX processes that share a global batch.

    Returns:
        An iterator of dicts `image` uint8[b, h, w, 3], `label` int32[b], `index` int64[b] with
        b = batch_size / process_count. Masks are left out.

    Raises:
        ValueError: batch_size not divisible by process_count; an empty source.
        WorkerDied: (while iterating) a worker process ended, killed for its memory for instance.
    """
    local = _local_batch_size(batch_size, process_index, process_count)
    make_batch = _TrainBatches(source, transform, batch_size, local, process_index, seed)
    return TrainIterator(source, make_batch, processes.check(workers))


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    transform: Transform | None = None,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Example]:
    """All examples in order, each exactly once over all processes.

    Every process gets ceil(len(source) / batch_size) batches of equal shape. The last is padded:
    where `valid` is False the row is zeros with index -1. A corrupt image, if the source skips
    such, is not valid either, and keeps its index.

    Args:
        source: the dataset.
        batch_size: examples in a global batch; process p takes the p-th of `process_count` equal
            runs.
        transform: as in `train_iterator`; its generator depends on the index alone. Masks pass
            through untouched, so with masks it must not move pixels.
        workers: worker processes; 0: one thread of this process.
        process_index: of this JAX process.
        process_count: JAX processes that share a global batch.

    Yields:
        Dicts `image` uint8[b, h, w, 3], `label` int32[b], `index` int64[b], `valid` bool[b] and, if
        the source has masks, `mask` bool[b, h, w].

    Raises:
        ValueError: batch_size not divisible by process_count; an empty source.
        WorkerDied: (while iterating) a worker process ended, killed for its memory for instance.
    """
    local = _local_batch_size(batch_size, process_index, process_count)
    make_batch = _EvalBatches(source, transform, batch_size, local, process_index)
    return _iterate(make_batch, processes.check(workers))


def _iterate(make_batch: "_EvalBatches", workers: int) -> Iterator[Example]:
    prefetched = _Prefetched(make_batch, 0, workers)
    try:
        yield from prefetched
    finally:
        prefetched.close()


class _Batches:
    """Random access to one process's part of the global batches; lives in the workers."""

    def __init__(self, source, transform, batch_size, local, process_index):
        if len(source) == 0:
            raise ValueError("The dataset is empty: expected at least one example.")
        self.source, self.transform = source, transform
        self.batch_size, self.local = batch_size, local
        self.offset = process_index * local
        self.examples = len(source)
        self._read = getattr(source, "encoded", source.__getitem__)
        self._skip_corrupt = getattr(source, "on_corrupt", "error") == "skip"

    def read(self, index: int, seed: int, epoch: int) -> Example:
        example = dict(self._read(index))
        rng = randomness.generator(seed, randomness.AUGMENT, epoch, index)
        image = example["image"]
        if self.transform is not None:
            image = self.transform(image, rng)
        example["image"] = image.decode() if isinstance(image, Encoded) else image
        return example


class _TrainBatches(_Batches):
    def __init__(self, source, transform, batch_size, local, process_index, seed):
        super().__init__(source, transform, batch_size, local, process_index)
        self.seed = randomness.check_seed(seed)
        if self.examples >= 2**31:
            raise ValueError(f"examples: expected at most 2^31 - 1 to shuffle, got {self.examples}")
        # Grain's own seed has 32 bits
        self._shuffle_seed = int(np.random.SeedSequence(self.seed).generate_state(1)[0])

    def __len__(self) -> int:
        return sys.maxsize // self.batch_size

    def __getitem__(self, batch: int) -> Example:
        start = batch * self.batch_size + self.offset
        examples, replaced = [], []
        for position in range(start, start + self.local):
            epoch, within = divmod(position, self.examples)
            example, skipped = self._readable(self._shuffled(epoch, within), epoch)
            examples.append(example)
            replaced.append(skipped)
        processes.assert_no_backend()
        stacked = {name: _stack(examples, name) for name in ("image", "label", "index")}
        return stacked | {"replaced": np.array(replaced, np.int64)}

    def _shuffled(self, epoch: int, position: int) -> int:
        """As `MapDataset.range(examples).shuffle(seed)` of Grain orders its epochs."""
        seed = (self._shuffle_seed + epoch) % 2**32
        return index_shuffle(position, max_index=self.examples - 1, seed=seed, rounds=4)

    def _readable(self, index: int, epoch: int) -> tuple[Example, int]:
        """The example, or the next readable one; and the index that it replaces, or -1."""
        if not self._skip_corrupt:
            return self.read(index, self.seed, epoch), -1
        for step in range(min(_ATTEMPTS, self.examples)):
            try:
                example = self.read((index + step) % self.examples, self.seed, epoch)
                return example, index if step else -1
            except CorruptImage as error:
                last = error
        raise CorruptImage(
            f"{_ATTEMPTS} images in a row cannot be decoded; the last: {last}. The dataset is "
            "damaged beyond skipping: copy or prepare it again."
        )


class _EvalBatches(_Batches):
    def __len__(self) -> int:
        return -(-self.examples // self.batch_size)

    def __getitem__(self, batch: int) -> Example:
        start = batch * self.batch_size + self.offset
        indices = range(start, min(start + self.local, self.examples))
        read = [self._read_valid(index) for index in indices]
        good = [example for example in read if "image" in example]
        # a batch of padding alone still needs the shape of an image
        template = good[0] if good else self._any_example()
        names = ["image", "label", "index", *(["mask"] if "mask" in template else [])]
        blank = {name: np.zeros_like(template[name]) for name in names} | {"index": np.int64(-1)}
        rows = [blank | example for example in read]
        rows += [blank] * (self.local - len(rows))
        processes.assert_no_backend()
        valid = np.array(["image" in example for example in read])
        valid = np.pad(valid, (0, self.local - len(read))).astype(bool)
        return {name: _stack(rows, name) for name in names} | {"valid": valid}

    def _read_valid(self, index: int) -> Example:
        try:
            return self.read(index, 0, 0)
        except CorruptImage as error:
            if not self._skip_corrupt:
                raise
            logging.warning("Skipped a corrupt image: %s", error)
            return {"index": np.int64(index)}

    def _any_example(self) -> Example:
        for index in range(self.examples):
            if "image" in (example := self._read_valid(index)):
                return example
        raise CorruptImage("dataset: expected images, got not one that can be decoded")


def _stack(examples: list[Example], name: str) -> np.ndarray | shared_batches.Lent:
    values = [example[name] for example in examples]
    shapes = [np.shape(value) for value in values]
    odd = [i for i, shape in enumerate(shapes) if shape != shapes[0]]
    if odd:
        raise ValueError(
            f"{name}: expected one shape in a batch, got {shapes[0]} of example "
            f"{examples[0]['index']} and {shapes[odd[0]]} of {examples[odd[0]]['index']}; give a "
            "transform that crops or resizes to one size"
        )
    return shared_batches.stack(values)


def _local_batch_size(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size: expected a positive multiple of the number of processes, got "
            f"batch_size={batch_size} for {process_count} processes; "
            f"{max(batch_size // process_count, 1) * process_count} would do."
        )
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index: expected one in [0, {process_count}), got {process_index}"
        )
    return batch_size // process_count


class _Prefetched(Iterator[Example]):
    """Batches start, start + 1, ... in order, made ahead in a thread or in worker processes."""

    def __init__(self, make_batch: _Batches, start: int, workers: int):
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which notebooks never parse
        in_process = workers == 0
        options = grain.ReadOptions(
            num_threads=1 if in_process else 0,
            prefetch_buffer_size=_PREFETCHED_BATCHES if in_process else 0,
        )
        dataset = grain.MapDataset.source(make_batch)[start:].to_iter_dataset(options)
        if not in_process:
            processes.make_room(workers)
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(workers, per_worker_buffer_size=_PREFETCHED_BATCHES),
                worker_init_fn=processes.start,
            )
        self._iterator = iter(dataset)
        self._borrower = shared_batches.Borrower()

    def __next__(self) -> Example:
        with processes.watched():
            batch = next(self._iterator)
        return {name: self._borrower.open(value) for name, value in batch.items()}

    def close(self) -> None:
        self._iterator.close()
