import gc
import os
import subprocess
import sys

import numpy as np
import pytest

from crate_jax import data
from crate_jax.data import scenes
from crate_jax.data.shared_batches import Borrower, Lender, Lent

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system has no memfd")


def rows(value, count=8, side=64):
    return [np.full((side, side, 3), value + k, np.uint8) for k in range(count)]


@pytest.fixture
def lender():
    return Lender()


@pytest.fixture
def borrower():
    return Borrower()


def test_round_trip(lender, borrower):
    lent = lender.stack(rows(1))
    assert isinstance(lent, Lent)
    np.testing.assert_array_equal(borrower.open(lent), np.stack(rows(1)), strict=True)


def test_piece_is_used_again_once_nothing_refers_to_it(lender, borrower):
    first = lender.stack(rows(1))
    borrower.open(first)
    assert lender.stack(rows(2)).descriptor == first.descriptor


def test_view_keeps_its_piece(lender, borrower):
    first = lender.stack(rows(1))
    view = borrower.open(first)[2:4, ::2]
    gc.collect()
    for value in (20, 30):
        other = lender.stack(rows(value))
        assert other.descriptor != first.descriptor
        borrower.open(other)
    np.testing.assert_array_equal(view, np.stack(rows(1))[2:4, ::2])


def test_not_yet_received_is_not_overwritten(lender, borrower):
    lent = [lender.stack(rows(10 * k)) for k in range(5)]
    for k, one in enumerate(lent):
        np.testing.assert_array_equal(borrower.open(one), np.stack(rows(10 * k)))


def test_sizes_do_not_mix(lender, borrower):
    small = lender.stack(rows(1, side=96))
    borrower.open(small)
    large = lender.stack(rows(1, side=128))
    assert large.descriptor != small.descriptor
    assert borrower.open(large).shape == (8, 128, 128, 3)


def test_small_arrays_are_sent_as_they_are(lender, borrower):
    labels = lender.stack([np.int32(3), np.int32(4)])
    assert borrower.open(labels) is labels
    np.testing.assert_array_equal(labels, np.array([3, 4], np.int32), strict=True)


def test_without_memfd_arrays_are_sent_as_they_are(lender, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    np.testing.assert_array_equal(lender.stack(rows(1)), np.stack(rows(1)))


@pytest.mark.slow
def test_workers_do_not_write_where_somebody_reads():
    source = scenes.Scenes(split="train", seed=0, length=64)
    options = {"batch_size": 16, "seed": 1}
    with data.train_iterator(source, **options) as one:
        expected = [next(one) for _ in range(10)]
    with data.train_iterator(source, **options, workers=2) as several:
        kept = [next(several)["image"] for _ in range(10)]  # more than the workers have pieces
    assert isinstance(kept[0], np.ndarray)
    for mine, theirs in zip(kept, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs["image"])


def test_memory_stays_when_the_lender_dies(borrower):
    """A worker may end before its last batches are used."""
    code = (
        "import sys, numpy as np\n"
        "from crate_jax.data.shared_batches import Lender\n"
        "lent = Lender().stack([np.full((256, 256), 7, np.uint8)] * 2)\n"
        "print(lent.pid, lent.descriptor, flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        pid, descriptor = map(int, child.stdout.readline().split())
        array = borrower.open(Lent(pid, descriptor, (2, 256, 256), "|u1"))
        child.kill()
    assert (array == 7).all()
