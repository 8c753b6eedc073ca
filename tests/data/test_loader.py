import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from crate_jax.data import eval_batches, processes, train_iterator
from crate_jax.data.decode import CorruptImage

N = 37  # no multiple of anything
BATCH = 8


class Numbers:
    """A source whose image tells its index."""

    num_classes, class_names, has_masks = 3, ("a", "b", "c"), True

    def __len__(self):
        return N

    def __getitem__(self, index):
        return {
            "image": np.full((2, 2, 3), index, np.uint8),
            "label": np.int32(index % 3),
            "mask": np.full((2, 2), index % 2 == 0),
            "index": np.int64(index),
        }


class Damaged(Numbers):
    """Examples 5, 6 and 20 cannot be read."""

    on_corrupt = "skip"

    def path(self, index):
        return f"image{index}"

    def __getitem__(self, index):
        if index in (5, 6, 20):
            raise CorruptImage(f"image{index}", "a damaged one")
        return super().__getitem__(index)


def add_noise(image, rng):
    return image + rng.integers(0, 256, image.shape, np.uint8)


def initialise_jax(image, rng):
    import jax

    jax.devices()
    return image


def take(source=None, batches=12, **options):
    options = {"batch_size": BATCH, "seed": 3, "transform": add_noise} | options
    with train_iterator(source or Numbers(), **options) as iterator:
        return [next(iterator) for _ in range(batches)]


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


@pytest.fixture(scope="module")
def reference():
    return take()


def test_batches_have_the_stated_arrays(reference):
    kinds = {name: (value.dtype, value.shape) for name, value in reference[0].items()}
    assert kinds == {
        "image": (np.uint8, (BATCH, 2, 2, 3)),
        "label": (np.int32, (BATCH,)),
        "index": (np.int64, (BATCH,)),
    }
    plain = take(transform=None, batches=1)[0]
    np.testing.assert_array_equal(plain["image"][:, 0, 0, 0], plain["index"])
    np.testing.assert_array_equal(plain["label"], plain["index"] % 3)


def test_an_epoch_is_every_example_once(reference):
    order = np.concatenate([batch["index"] for batch in reference])
    epochs = [order[:N], order[N : 2 * N]]
    for epoch in epochs:
        assert sorted(epoch) == list(range(N))
    assert (epochs[0] != epochs[1]).mean() > 0.8
    assert (epochs[0] != np.arange(N)).mean() > 0.8
    other = np.concatenate([batch["index"] for batch in take(seed=4, batches=5)])
    assert (other[:N] != epochs[0]).mean() > 0.8


def test_randomness_belongs_to_seed_epoch_and_index(reference):
    def noise(batches):
        pairs = [(i, x) for b in batches for i, x in zip(b["index"], b["image"], strict=True)]
        return [{int(i): (x - np.uint8(i)) for i, x in pairs[k * N : (k + 1) * N]} for k in (0, 1)]

    first, second = noise(reference)
    again, _ = noise(take(batch_size=5, batches=15))  # other batches, the same examples
    for index in range(N):
        np.testing.assert_array_equal(first[index], again[index])
    differing = [(first[i] != second[i]).any() for i in range(N)]
    assert all(differing)
    assert len({x.tobytes() for x in first.values()}) == N


def test_the_number_of_workers_changes_nothing(reference):
    assert_same(reference[:6], take(batches=6, workers=2))


def test_processes_share_the_same_global_batch(reference):
    parts = [take(process_index=p, process_count=4) for p in range(4)]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(reference, joined)


@pytest.mark.parametrize("stop", [1, 5, 10])
def test_restores_to_the_batch(reference, stop):
    with train_iterator(Numbers(), batch_size=BATCH, seed=3, transform=add_noise) as iterator:
        for _ in range(stop):
            next(iterator)
        state = json.loads(json.dumps(iterator.get_state()))
        assert state["batches"] == stop
    with train_iterator(Numbers(), batch_size=BATCH, seed=3, transform=add_noise) as iterator:
        next(iterator)  # a used iterator can be set, too
        iterator.set_state(state)
        assert iterator.get_state() == state
        assert_same(reference[stop:], [next(iterator) for _ in range(12 - stop)])


def test_a_state_of_other_data_is_refused():
    iterator = train_iterator(Numbers(), batch_size=BATCH, seed=3)
    state = iterator.get_state()
    other = train_iterator(Numbers(), batch_size=4, seed=5)
    with pytest.raises(ValueError, match=r"seed 3 .saved. against 5.*batch_size 8"):
        other.set_state(state)


@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (0, 4), (1, 1)])
def test_evaluation_counts_every_example_once(workers, processes):
    indices, labels, masks = [], [], []
    for p in range(processes):
        options = {"workers": workers, "process_index": p, "process_count": processes}
        batches = list(eval_batches(Numbers(), batch_size=BATCH, **options))
        assert len(batches) == 5
        for batch in batches:
            assert batch["image"].shape == (BATCH // processes, 2, 2, 3)
            assert (batch["index"][~batch["valid"]] == -1).all()
            assert (batch["image"][~batch["valid"]] == 0).all()
            indices.extend(batch["index"][batch["valid"]])
            labels.extend(batch["label"][batch["valid"]])
            masks.extend(batch["mask"][batch["valid"], 0, 0])
    assert sorted(indices) == list(range(N))
    np.testing.assert_array_equal(np.array(labels), np.array(indices) % 3)
    np.testing.assert_array_equal(masks, np.array(indices) % 2 == 0)


def test_corrupt_images_are_replaced_and_listed_once():
    with train_iterator(Damaged(), batch_size=N, seed=0) as iterator:
        first, second = next(iterator), next(iterator)
        assert sorted(iterator.skipped) == [5, 6, 20]
        state = iterator.get_state()
    for batch in (first, second):
        counts = np.bincount(batch["index"], minlength=N)
        assert (counts[[5, 6, 20]] == 0).all()
        assert counts[7] == 3  # stands in for 5 and 6
        assert counts[21] == 2
        assert set(batch) == {"image", "label", "index"}
    resumed = train_iterator(Damaged(), batch_size=N, seed=0)
    resumed.set_state(state)
    assert sorted(resumed.skipped) == [5, 6, 20]


def test_corrupt_images_are_left_out_of_evaluation():
    batches = list(eval_batches(Damaged(), batch_size=BATCH))
    seen = np.concatenate([batch["index"][batch["valid"]] for batch in batches])
    assert sorted(seen) == [i for i in range(N) if i not in (5, 6, 20)]


def test_corrupt_images_stop_by_default():
    source = Damaged()
    source.on_corrupt = "error"
    with (
        train_iterator(source, batch_size=N, seed=0) as iterator,
        pytest.raises(CorruptImage, match=r"image(5|6|20)"),
    ):
        next(iterator)
    with pytest.raises(CorruptImage, match="image5"):
        list(eval_batches(source, batch_size=BATCH))


def test_a_worker_that_initialises_jax_is_stopped():
    with (
        train_iterator(
            Numbers(), batch_size=BATCH, seed=0, transform=initialise_jax, workers=1
        ) as iterator,
        pytest.raises(RuntimeError, match="JAX backend"),
    ):
        next(iterator)


def test_a_killed_worker_is_an_error_and_no_hang():
    with train_iterator(Numbers(), batch_size=BATCH, seed=0, workers=2) as iterator:
        next(iterator)
        victim = multiprocessing.active_children()[0]
        os.kill(victim.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(RuntimeError, match=r"data worker died.*-9.*memory"):
            list(itertools.islice(iterator, 20))
        assert time.monotonic() - start < 20


ORPHANS = """
import multiprocessing, os, sys
sys.path.insert(0, {here!r})
from test_loader import Numbers
from crate_jax.data import train_iterator
if __name__ == "__main__":  # absl flags are not parsed here, as in a notebook
    iterator = train_iterator(Numbers(), batch_size=8, seed=0, workers=1)
    next(iterator)
    print(multiprocessing.active_children()[0].pid, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(ORPHANS.format(here=os.path.dirname(__file__)))
    paths = os.pathsep.join([os.getcwd(), *sys.path])
    done = subprocess.run(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    worker = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{worker}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                return  # dead; nobody has collected it
        time.sleep(0.1)
    pytest.fail(f"worker {worker} has outlived its parent")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 9, "process_count": 2}, "multiple of the number of processes.*8 would do"),
        ({"batch_size": 0}, "batch_size"),
        ({"process_index": 2, "process_count": 2}, "process_index"),
        ({"workers": -1}, "workers"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        train_iterator(Numbers(), **{"batch_size": BATCH, "seed": 0} | options)


def test_images_of_different_shapes_are_named():
    class Ragged(Numbers):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"image": np.zeros((2 + index, 2, 3), np.uint8)}

    with pytest.raises(ValueError, match=r"one shape in a batch, .*transform"):
        next(train_iterator(Ragged(), batch_size=2, seed=0))


def test_no_backend_is_asserted_only_in_workers():
    processes.assert_no_backend()
