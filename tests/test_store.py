"""A folder of results: of one set of settings, whose file is what it says it is."""

import os

import pytest

from crate_jax.store import Store

WRONG = {
    "a list": lambda path: path.write_text("[]"),
    "nested deeply": lambda path: path.write_text("[" * 10**5),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\0"),
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
    "without end": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_settings_that_are_something_else(make, tmp_path):
    make(tmp_path / "settings.json")
    with pytest.raises((ValueError, OSError), match=r"expected (settings as JSON|a file), got"):
        Store(tmp_path, {"tau": 0.1}).__enter__()
    assert os.listdir(tmp_path) == ["settings.json"]


def test_a_command_that_fails_before_its_first_result_binds_nobody(tmp_path):
    with pytest.raises(ValueError, match="too large"), Store(tmp_path, {"size": 10**6}):
        raise ValueError("too large")
    assert os.listdir(tmp_path) == []
    with Store(tmp_path, {"size": 32}) as store:
        (store.out / "records").mkdir()
    with pytest.raises(ValueError, match="size: 32 -> 64"):
        Store(tmp_path, {"size": 64}).__enter__()


def test_one_of_a_billion_shares_begins_at_once_and_knows_who_divides_otherwise(tmp_path):
    many = 10**9
    with Store(tmp_path, {"size": 32}, share=(1, many)):
        with Store(tmp_path, {"size": 32}, share=(many, many)):
            pass
        for other in ((1, 1), (1, 2)):
            with pytest.raises(ValueError, match="no other process at work there"):
                Store(tmp_path, {"size": 32}, share=other).__enter__()
