"""Compiled programs are kept: where, for whom, and what happens where they cannot be."""

import signal

import jax
import pytest

from crate_jax.training import compilation
from tests.end_to_end import runs

NAMES = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def unset():
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_users_own_folder_is_left_alone():
    folder = jax.config.jax_compilation_cache_dir
    assert "by JAX_COMPILATION_CACHE_DIR" in compilation.keep_programs("/elsewhere", 1)
    assert jax.config.jax_compilation_cache_dir == folder


def test_folders(unset, tmp_path, monkeypatch):
    assert compilation.keep_programs("", 1) == "not kept"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    line = compilation.keep_programs("~/.cache/crate_jax/xla", 0.5)
    assert line.startswith(f"kept in {tmp_path}/crate_jax/xla/")
    assert line.endswith("at most 0.5 GiB")
    assert jax.config.jax_compilation_cache_max_size == 2**29


def test_folder_that_cannot_be_written(unset, tmp_path):
    (tmp_path / "file").write_text("")
    line = compilation.keep_programs(str(tmp_path / "file" / "cache"), 1)
    assert line.startswith("not kept: ")
    assert "--config.compilation_cache=FOLDER" in line
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.slow
@pytest.mark.usefixtures("signals_heard")
def test_a_resumed_run_compiles_nothing(tmp_path, monkeypatch):
    """A whole run, another that is stopped, and the rest of that: the folder gains no program."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    cache = tmp_path / "cache"

    def programs():
        return {path.name for path in cache.rglob("*-cache")}

    flag, config = f"--config.compilation_cache={cache}", f"{runs.TINY}:40"
    runs.run(tmp_path / "a", flag, config=config)
    first = programs()
    assert first
    status, output = runs.interrupt(tmp_path / "b", signal.SIGTERM, 10, flag, config=config)
    assert status == 0, output
    done = runs.run(tmp_path / "b", flag, config=config)
    assert "programs  kept in" in done.stdout
    assert "resumed  after step" in done.stdout
    assert programs() == first
