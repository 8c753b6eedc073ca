import json

import pytest

from crate_jax import config as configuration
from crate_jax.training import workdir


@pytest.fixture
def config():
    c = configuration.default()
    c.steps = 3
    return configuration.resolve(c)


def test_claimed_once_and_recognised(tmp_path, config):
    run = tmp_path / "a" / "run"
    workdir.check(run, config, 0)
    assert not run.exists()
    workdir.claim(run, config, 0)
    assert json.loads((run / "config.json").read_text()) == configuration.plain(config)
    workdir.claim(run, config, 0)


def test_too_little_room_is_told_beforehand(tmp_path, config):
    for function in (workdir.check, workdir.claim):
        with pytest.raises(OSError, match=r"expected 1000000000.00 GB free"):
            function(tmp_path / "run", config, 10**18)
    assert not (tmp_path / "run").exists()


def test_results_of_who_knows_what_are_left_alone(tmp_path, config):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"holds metrics.jsonl but no config.json"):
        workdir.claim(tmp_path, config, 0)


def test_below_a_file_there_is_no_directory(tmp_path, config):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        workdir.claim(tmp_path / "file" / "run", config, 0)
