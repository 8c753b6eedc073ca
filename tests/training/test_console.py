"""What a run says, and that it goes on when nobody hears it."""

import os
import sys

import pytest

from crate_jax.training import console


def test_an_evaluation_shows_every_control(capsys):
    values = {"val/images": 2000, "val/loss": 1.2345, "val/top1": 0.5, "val/cls_iou_all_ones": 0.2}
    for kind, value in (("", 0.5), ("_other", 0.42), ("_own_minus_other", 0.08), ("_random", 0.33)):
        name = f"val/cls_iou{kind}/mass/best/layer01"
        values |= {name: value, f"{name}/low": value - 0.01, f"{name}/high": value + 0.01}
    values |= {"val/coding_rate/layer01": 190.0, "val/sparsity/layer01": 0.4}
    console.print_evaluation(values, 0.6)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["val/loss", "1.2345"] in lines
    row = "1 0.500 [0.490–0.510] 0.420 [0.410–0.430] +0.080 [+0.070, +0.090] 0.330 [0.320–0.340]"
    assert row.split() in lines
    assert ["the", "whole", "image", "0.200"] in lines
    assert ["1", "190.000", "0.400"] in lines


@pytest.fixture
def unheard(monkeypatch):
    """Standard output as a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        yield


def test_a_closed_pipe_ends_nothing(unheard):
    for _ in range(3):
        console.say("a line")
    console.print_evaluation({"val/loss": 1.0, "val/images": 3}, 0.6)


def test_a_full_disk_under_the_log_ends_nothing(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        console.say("a line")
        console.say("another")
