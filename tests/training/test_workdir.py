import json
import os
import pathlib

import pytest

from crate_jax.config import default, plain, resolve
from crate_jax.training import workdir


@pytest.fixture
def config():
    c = default()
    c.steps = 3
    return resolve(c)


def test_claimed_once_and_recognised(tmp_path, config):
    run = tmp_path / "a" / "run"
    workdir.check(run, config, 0)
    assert not run.exists()
    with workdir.claim(run, config, 0):
        assert json.loads((run / "config.json").read_text()) == plain(config)
        with pytest.raises(ValueError, match=rf"got process {os.getpid()} on"):
            workdir.claim(run, config, 0).__enter__()
    with workdir.claim(run, config, 0) as lock:
        lock.check()
        run.rename(tmp_path / "b")
        with pytest.raises(OSError, match="it was moved or deleted meanwhile"):
            lock.check()


def test_too_little_room_is_told_beforehand(tmp_path, config):
    with pytest.raises(OSError, match=r"expected 1000000000.00 GB free"):
        workdir.claim(tmp_path / "run", config, 10**18).__enter__()
    assert not (tmp_path / "run").exists()


def test_results_of_who_knows_what_are_left_alone(tmp_path, config):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"expected config.json beside metrics.jsonl, got none"):
        workdir.claim(tmp_path, config, 0).__enter__()


def test_below_a_file_there_is_no_directory(tmp_path, config):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="expected a folder to write in"):
        workdir.claim(tmp_path / "file" / "run", config, 0).__enter__()


@pytest.mark.parametrize("content", ["[]", "3", '"config"', "null", "{", '{"a": ['])
def test_a_config_that_is_something_else_is_named(tmp_path, config, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: expected the config of a run"):
        workdir.check(tmp_path, config, 0)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_waited_for(tmp_path, config, name, make):
    with workdir.claim(tmp_path, config, 0):
        pass
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(OSError, match=f"{name}: expected a file, got a"):
        workdir.check(tmp_path, config, 0)


def test_a_name_that_is_no_utf8_is_refused(tmp_path, config):
    directory = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    with pytest.raises(ValueError, match=r"udcff': expected a name in UTF-8"):
        workdir.check(directory, config, 0)
    with workdir.claim(tmp_path / "größe", config, 0):
        pass


def line(step, spent):
    return json.dumps({"step": step, "train/loss": 1.0, "time/checkpoint": spent}) + "\n"


@pytest.mark.parametrize("lost", ["moved", "emptied", "damaged"])
def test_a_run_that_lost_its_checkpoints_does_not_start_over(tmp_path, config, lost):
    checkpoints = tmp_path / "checkpoints"
    with workdir.claim(tmp_path, config, 0):
        pass
    lines = line(1, 0.0)
    (tmp_path / "metrics.jsonl").write_text(lines)
    workdir.check(tmp_path, config, 0)  # killed before the first save
    (tmp_path / "metrics.jsonl").write_text(lines + line(1, None) + line(2, 0.5))
    workdir.check(tmp_path, config, 0)  # killed within the first save
    if lost == "moved":
        checkpoints.rename(tmp_path / "away")
    elif lost == "damaged":
        (tmp_path / "damaged_checkpoints" / "1").mkdir(parents=True)
    else:  # two saves were begun, so the first was complete
        (tmp_path / "metrics.jsonl").write_text(lines + line(2, 0.5) + line(3, 0.6))
    with pytest.raises(ValueError, match=r"expected the checkpoints of the \d steps that metrics"):
        workdir.check(tmp_path, config, 0)
    (checkpoints / "2").mkdir(parents=True)
    workdir.check(tmp_path, config, 0)
