"""Files that are there whole or not at all, and one process at a time."""

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.partial", re.DOTALL)


def kind(mode: int) -> str:
    """What something on the disk is, by its `st_mode`, where it is no regular file."""
    kinds = {
        **{stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"},
        stat.S_IFLNK: "a symbolic link",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def read(path: str | os.PathLike) -> bytes:
    """What a file holds.

    Raises:
        OSError: it is no file: a pipe would be waited for, a device read for ever.
    """
    path = Path(path)
    if not stat.S_ISREG(mode := path.stat().st_mode):
        raise OSError(f"{path}: expected a file, got {kind(mode)}")
    return path.read_bytes()


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds, in UTF-8 whatever the locale.

    Raises:
        OSError: as `read`.
        ValueError: it is not JSON, or nested deeper than Python reads.
    """
    try:
        return json.loads(read(path))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def destination(path: str | os.PathLike) -> Path:
    """Where a file of this name is written: a symbolic link stays one, and is written through.

    Raises:
        OSError: what is there is no file, or there is no permission to write in its folder.
    """
    real = Path(os.path.realpath(path))
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = real.lstat().st_mode
        if not stat.S_ISREG(mode):
            got = "a link to itself" if stat.S_ISLNK(mode) else kind(mode)
            raise OSError(f"{path}: expected a file, or a new name, to write to, got {got}")
    nearest = next(parent for parent in real.parents if os.path.lexists(parent))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        problem = "no permission to write" if nearest.is_dir() else "no folder"
        raise OSError(f"{path}: expected a folder that can be written, got {problem} at {nearest}")
    return real


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path` to write to, which becomes `path` when all went well.

    A kill, an exception or a full disk never leaves half of a file: what is written reaches the
    disk, and then takes the name in one step. Missing parent folders are made.

    Raises:
        OSError: what is there is no file, the folder cannot be written, or the disk is full; what
            was at `path` before is still there.
    """
    path = destination(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`: its files are private (0600), and a web server could not read the result.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a full disk says only that
        raise


def write_atomically(path: str | os.PathLike, content: str | bytes) -> Path:
    """Writes a file whole or not at all; text as UTF-8.

    Returns:
        The path.

    Raises:
        OSError: as `whole`.
    """
    with whole(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


def remove_partial(paths: Iterable[str | os.PathLike]) -> None:
    """Removes what a killed process left under the temporary names of these files (`whole`).

    Only where no other process can be writing them. Files of any other name stay.
    """
    names: dict[Path, set[str]] = {}
    for path in map(Path, paths):
        names.setdefault(path.parent, set()).add(path.name)
    for folder, targets in names.items():
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
            for entry in found:
                match = _TEMPORARY.fullmatch(entry.name)
                if match and match[1] in targets:
                    Path(entry.path).unlink(missing_ok=True)


_BEAT = 5.0  # seconds between two signs of life of a holder
_PATIENCE = 30.0  # seconds without one, after which a holder on another machine is given up


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl: numbers by name, and their step.

    A torn last one is left out.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: another line is no object of numbers with its step.
    """
    entries = [_parsed(line) for line in read(path).splitlines()]
    if entries and entries[-1] is None:
        entries.pop()
    for number, entry in enumerate(entries, start=1):
        if not _is_of_metrics(entry):
            raise ValueError(
                f"{path}: expected an object of numbers with its step in line {number}, got "
                "something else; restore the file from a backup, or choose another --workdir"
            )
    return entries


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_of_metrics(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and type(entry.get("step")) is int
        and all(value is None or isinstance(value, int | float) for value in entry.values())
    )


class Lock(contextlib.AbstractContextManager):
    """One process at a time, by a file that names the holder: host, process and since when.

    A lock whose process is gone is taken over: at once where the process ran here, on another
    machine (or in another container) after 30 seconds without a sign of life, which a holder gives
    every five. No kernel lock: those are silent about their holder, outlive it in its children,
    and some network file systems have none.

    Args:
        path: of the file; its folder is made if needed.

    Raises:
        ValueError: on entering: another process holds it; the message names that process.
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._over = threading.Event()
        self._mine = b""

    def __enter__(self) -> "Lock":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        place = {"host": socket.gethostname(), "namespace": _namespace(), "pid": os.getpid()}
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = place | {"started": _started(os.getpid()), "since": since}
        self._mine = json.dumps(holder).encode()
        while True:
            try:
                file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                self._take_over()
                continue
            with open(file, "wb") as lock:
                lock.write(self._mine)
            break
        self._over.clear()
        try:
            threading.Thread(target=self._beat, name="lock", daemon=True).start()
        except RuntimeError:  # the system grants no thread
            self.__exit__()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            if self.path.read_bytes() == self._mine:
                self.path.unlink()

    def check(self) -> None:
        """Raises OSError where the lock is no longer this process's, nor then the folder."""
        try:
            content = self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            what = "it was moved or deleted meanwhile"
        else:
            if content == self._mine:
                return
            what = f"{_described(_holder(content))} has taken it over"
        raise OSError(
            f"{self.path.parent}: expected the folder that this process holds, but {what}; put it "
            "back as it was, or choose another folder"
        )

    def _beat(self) -> None:
        while not self._over.wait(_BEAT):
            try:
                if self.path.read_bytes() == self._mine:
                    os.utime(self.path)
            except OSError:
                continue  # a full disk or a share that is away for a moment

    def _read(self) -> tuple[bytes, int]:
        # Opened, not `stat`: NFS asks the server for the time of change when a file is opened.
        with open(self.path, "rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns

    def _take_over(self) -> None:
        """Returns when it is worth another try: the lock's file is away, or says something else.

        Raises:
            ValueError: its process lives.
        """
        try:
            if not stat.S_ISREG(mode := self.path.lstat().st_mode):  # a pipe would be waited for
                raise OSError(f"{self.path}: expected a lock, a file, got {kind(mode)}; remove it")
            seen = self._read()
            alive, until = _is_alive(_holder(seen[0])), time.monotonic() + _PATIENCE
            if alive is None:
                logging.warning(
                    "%s: waiting for a sign of life of %s, which holds %s; it is taken over after "
                    "%.0f s without one",
                    *(self.path.parent, _described(_holder(seen[0])), self.path.name, _PATIENCE),
                )
            while alive is None and time.monotonic() < until:
                time.sleep(min(1.0, _PATIENCE / 10))
                now = self._read()
                if now[0] != seen[0]:  # another holder, or the same has now written its name
                    return
                alive = now[1] != seen[1] or None
            if alive:
                raise ValueError(self._refusal(_holder(seen[0])))
            self._remove(seen[0])
        except FileNotFoundError:
            return

    def _remove(self, content: bytes) -> None:
        """Deletes the lock's file if it still is the one that was seen, one process at a time.

        Others take it over too, and may have their own there already. Of those that opened one
        file a single one may look and delete, so that no newer one is ever away for a moment.
        """
        with open(self.path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)  # another looks
                return
            except OSError:
                pass  # a file system without such locks
            same = os.path.samestat(os.fstat(file.fileno()), self.path.stat())
            if same and file.read() == content:
                self.path.unlink()

    def _refusal(self, holder: Mapping) -> str:
        return (
            f"{self.path.parent}: expected no other process at work there, got "
            f"{_described(holder)}; wait until it has ended, stop it, or choose another folder "
            f"(it holds {self.path.name})"
        )


def _described(holder: Mapping) -> str:
    if not holder:
        return "a process that is just starting"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"


def _holder(content: bytes) -> Mapping:
    """Who holds a lock; empty where its file is being written, or damaged."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    whole_record = isinstance(found, dict) and {"host", "namespace", "pid", "since"} <= set(found)
    return found if whole_record and isinstance(found["pid"], int) else {}


def _is_alive(holder: Mapping) -> bool | None:
    """Whether a lock's process lives; None where it is not among those that we can see."""
    if not holder or (holder["host"], holder["namespace"]) != (socket.gethostname(), _namespace()):
        return None
    return (started := _started(holder["pid"])) is not None and started == holder.get("started")


def _namespace() -> str:
    """What process numbers are counted in: containers of one host have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process began, in ticks since boot ("" where that is not known); None if it is gone.

    A number is given again some time: with the time it is not mistaken for its former owner.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text("latin-1").rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
