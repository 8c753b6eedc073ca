"""Compiled programs are kept across runs: what was compiled once is read back."""

import hashlib
import os
import pathlib
import platform
import re
import tempfile

import jax
from jax.experimental.compilation_cache import compilation_cache


def keep_programs(folder: str, gibibytes: float) -> str:
    """Uses a folder as JAX's persistent compilation cache; returns a line that says so.

    Several runs may use one folder at once. Below it there is one for each kind of processor,
    since programs for a CPU are made for its instructions and a home may be shared by several
    kinds. A folder that cannot be written costs nothing but the time to compile. What the user
    chose by JAX's own JAX_COMPILATION_CACHE_DIR is left alone.

    Args:
        folder: `config.compilation_cache`; "" for none. "~" is the home, and "~/.cache" is
            $XDG_CACHE_HOME where that is set.
        gibibytes: at most so many; the programs used least recently go.
    """
    if chosen := jax.config.jax_compilation_cache_dir:
        return f"in {chosen}, by JAX_COMPILATION_CACHE_DIR"
    if not folder:
        return "not kept"
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache and folder.startswith("~/.cache/"):
        folder = os.path.join(cache, folder.removeprefix("~/.cache/"))
    folder = os.path.expanduser(folder)
    if folder.startswith("~"):
        return f"not kept: {folder} leads to no home folder; --config.compilation_cache=FOLDER"
    place = pathlib.Path(folder).absolute() / _processor()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return (
            f"not kept: {place} cannot be written ({error.strerror or error}); "
            "--config.compilation_cache=FOLDER"
        )
    for name, value in {
        "jax_compilation_cache_dir": str(place),
        "jax_compilation_cache_max_size": int(gibibytes * 2**30),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # whether there is one is asked once, at the first compilation
    return f"kept in {place}, at most {gibibytes:g} GiB"


def _processor() -> str:
    """The name of a folder: the architecture, and a digest of the instructions that there are."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        text = platform.processor()
    flags = re.findall(r"^(?:flags|Features)\s*:.*$", text, re.MULTILINE)
    return f"{platform.machine()}-{hashlib.sha256(str(flags[:1]).encode()).hexdigest()[:8]}"
