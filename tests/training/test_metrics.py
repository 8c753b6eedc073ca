import json
import math
import resource
import struct

import pytest

from crate_jax.training import metrics


def test_lines_after_the_restored_step_and_a_torn_one_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": k, "x": 0.5 * k} for k in (1, 2, 3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "x"')
    file = metrics.MetricsFile(path, resume_step=2)
    file.write(3, {"x": math.nan, "y": 7})
    file.sync()
    file.close()
    expected = [*lines[:2], {"step": 3, "x": None, "y": 7}]
    assert [json.loads(line) for line in path.read_text().splitlines()] == expected
    assert file.has(3, "y")
    assert file.latest("x")["step"] == 3


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "null",
        "3",
        '{"loss": 1}',
        '{"step": "1"}',
        '{"step": tr',
        '{"step": 2, "time/x": "1"}',
    ],
)
def test_a_line_that_is_something_else_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: expected an object .* in line 2"):
        metrics.read(path)


def test_bytes_that_a_power_cut_left_behind_end_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\x00\xff')
    assert metrics.read(path) == [{"step": 1}]
    assert metrics.read(tmp_path / "none") == []


def test_boards_have_what_a_chart_is_for():
    names = [
        *("train/loss", "val/top1", "val/cls_iou_all_ones", "val/coding_rate/layer01"),
        *(f"val/cls_iou{kind}/mass/best/layer12" for kind in ("", "_random", "_other")),
    ]
    others = [
        *("val/coding_rate/layer01/low", "val/cls_iou/mass/best/layer01/high"),
        *("val/cls_iou/mass/fixed/layer01", "val/cls_iou_gain/mass/best/layer01"),
        *("val/cls_iou/area/best/layer01", "val/cls_auroc/best/layer01"),
    ]
    assert [name for name in names + others if metrics.is_charted(name)] == names


def events_of(directory):
    """Of all event files, in order: records of a length, its sum, an event and its sum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(directory.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            found.append(event_pb2.Event.FromString(content[at + 12 : at + 12 + length]))
            at += length + 16
    return found


def test_boards_files_hold_the_metrics_and_hide_what_is_repeated(tmp_path):
    board = metrics.TensorBoard(tmp_path / "a", 4, True)
    board.write(5, {"train/loss": 0.5, "val/top1": math.nan})
    version, start, event = events_of(tmp_path / "a")  # before it is closed
    board.close()
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, start.session_log.START)
    assert event.step == 5
    assert event.wall_time > 1.7e9
    loss, top1 = event.summary.value
    assert (loss.tag, loss.simple_value, top1.tag) == ("train/loss", 0.5, "val/top1")
    assert math.isnan(top1.simple_value)


def test_boards_files_that_cannot_be_written_are_an_error_at_once(tmp_path):
    """tensorboardX's thread died of it, and its queue was then waited for without an end."""
    board = metrics.TensorBoard(tmp_path / "board", 0, True)

    def write_on():
        for step in range(100):
            board.write(step, {"train/loss": 1.0})

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, before[1]))
    try:
        with pytest.raises(OSError, match="board cannot be written: File too large"):
            write_on()
        board.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
