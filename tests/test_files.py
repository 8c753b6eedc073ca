"""Files whole or not at all; one process at a time."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from crate_jax import files
from crate_jax.files import Lock

_HOLDER = """
import sys, time
from crate_jax.files import Lock
with Lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/.lock."""
    command = [sys.executable, "-c", _HOLDER, str(tmp_path / ".lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_who_is_first(holder, tmp_path):
    with pytest.raises(ValueError, match=f"process {holder.pid} on {socket.gethostname()} since"):
        Lock(tmp_path / ".lock").__enter__()


@pytest.mark.parametrize("reaped", [False, True])
def test_the_lock_of_a_killed_process_is_taken_over_at_once(holder, tmp_path, reaped):
    holder.send_signal(signal.SIGKILL)
    if reaped:
        holder.wait()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # a zombie is no process
    begin = time.monotonic()
    with Lock(tmp_path / ".lock"):
        assert time.monotonic() - begin < 1
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_a_process_number_that_was_given_again_is_not_the_holder(tmp_path):
    with Lock(tmp_path / ".lock"):
        record = json.loads((tmp_path / ".lock").read_text())
    (tmp_path / ".lock").write_text(json.dumps(record | {"started": "1"}))
    with Lock(tmp_path / ".lock"):
        pass


def test_a_lock_is_given_back_after_an_exception_and_can_be_taken_again(tmp_path):
    lock = Lock(tmp_path / "new" / ".lock")
    for _ in range(2):
        with pytest.raises(RuntimeError), lock:
            raise RuntimeError
    assert os.listdir(tmp_path / "new") == []


@pytest.mark.parametrize("content", ["elsewhere", "", "{", "[]", "[" * 10**5, '{"pid": "1"}'])
def test_a_holder_that_cannot_be_seen_is_given_up_after_no_sign_of_life(
    tmp_path, monkeypatch, caplog, content
):
    monkeypatch.setattr(files, "_PATIENCE", 0.3)
    path = tmp_path / ".lock"
    if content == "elsewhere":
        record = {"host": "elsewhere", "namespace": "", "pid": 1, "started": "1", "since": "then"}
        content = json.dumps(record)
    path.write_text(content)
    with Lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    holder = "process 1 on elsewhere since then" if "host" in content else "a process that is just"
    assert f"{tmp_path}: waiting for a sign of life of {holder}" in caplog.text


def test_a_holder_on_another_machine_that_gives_signs_of_life_is_not_given_up(
    tmp_path, monkeypatch
):
    path = tmp_path / ".lock"
    monkeypatch.setattr(files, "_BEAT", 0.05)
    monkeypatch.setattr(files, "_PATIENCE", 5.0)
    with Lock(path):
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(ValueError, match=rf"process {os.getpid()} on .* \(it holds .lock\)"):
            Lock(path).__enter__()


def test_of_several_that_start_at_once_one_gets_it(tmp_path):
    path = tmp_path / ".lock"
    with Lock(path):
        record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"started": "1"}))  # stale: all will take it over
    together, results, refused = threading.Barrier(6), [], threading.Semaphore(0)

    def start():
        together.wait()
        try:
            with Lock(path):
                results.append(1)
                for _ in range(5):  # until all others were refused, however late they came
                    refused.acquire(timeout=5)
        except ValueError:
            results.append(0)
            refused.release()

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == [0] * 5 + [1]
    assert os.listdir(tmp_path) == []


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = files.write_atomically(tmp_path / "a" / "b.txt", "ä")
    assert path.read_bytes() == "ä".encode()
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o444 == 0o444 & ~mask

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space .*b\.txt"):
        files.write_atomically(path, b"longer than before")
    assert path.read_text("utf-8") == "ä"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def special_files(folder):
    """By name, what is no file but may stand where one is to be written; and what it is called."""
    os.mkfifo(folder / "pipe")
    socket.socket(socket.AF_UNIX).bind(os.path.relpath(folder / "socket"))
    (folder / "folder").mkdir()
    for name, leads in (("circle", "circle"), ("device", os.devnull), ("to_pipe", "pipe")):
        (folder / name).symlink_to(leads)
    kinds = {"pipe": "a named pipe", "to_pipe": "a named pipe", "socket": "a socket"}
    return kinds | {"folder": "a folder", "circle": "a link to itself", "device": "a device"}


def test_what_is_no_file_is_not_replaced_by_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket may have 107 bytes
    for name, kind in special_files(tmp_path).items():
        before = os.stat(name, follow_symlinks=False)
        with pytest.raises(OSError, match=f"expected a file, or a new name, .* got {kind}"):
            files.write_atomically(tmp_path / name, "x")
        assert os.stat(name, follow_symlinks=False) == before
    (tmp_path / "link").symlink_to("new")
    files.write_atomically("link", "x")
    assert (tmp_path / "new").read_text() == "x"
    with pytest.raises(OSError, match=f"got no folder at {tmp_path / 'new'}"):
        files.destination(tmp_path / "new" / "y" / "z")


def test_only_files_are_read(tmp_path, monkeypatch):
    """A pipe would be waited for, a device read for ever."""
    monkeypatch.chdir(tmp_path)
    special = special_files(tmp_path) | {"/dev/zero": "a device"}
    special.pop("circle")
    for name, kind in special.items():
        with pytest.raises(OSError, match=f"{name}: expected a file, got {kind}"):
            files.read(name)
    with pytest.raises(OSError):
        files.read("circle")
    with pytest.raises(FileNotFoundError):
        files.read("absent")
    (tmp_path / "deep").write_text('{"a": ' * 10**5)
    with pytest.raises(ValueError, match="nested too deeply"):
        files.read_json("deep")
    (tmp_path / "umlaut").write_bytes('{"ä": 1}'.encode())
    assert files.read_json("umlaut") == {"ä": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=f"got no permission to write at {tmp_path}"):
        files.destination(tmp_path / "a" / "b")


def test_a_lock_that_is_no_file(tmp_path):
    for number, make in enumerate((os.mkfifo, os.mkdir, lambda path: path.symlink_to("nowhere"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        make(folder / ".lock")
        with pytest.raises(OSError, match="expected a lock, a file, got a"):
            Lock(folder / ".lock").__enter__()


def test_only_our_own_temporary_files_are_removed(tmp_path):
    mine = tmp_path / "a.json"
    gone = [f".a.json.{code}.partial" for code in ("00000000", "0123abcd")]
    kept = [
        *(".movie.mkv.partial", ".a.json.partial", ".a.json.0123abc.partial", "a.json"),
        *(".b.json.0123abcd.partial", ".a.json.0123ABCD.partial", "x.a.json.0123abcd.partial"),
    ]
    for name in [*gone, *kept]:
        (tmp_path / name).touch()
    files.remove_partial([mine, tmp_path / "nowhere" / "a.json"])
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    with files.whole(mine) as temporary:
        temporary.touch()
        files.remove_partial([mine])  # the pattern is that of `whole`
        assert not temporary.exists()
        temporary.touch()
