"""The networks that come with the package: a name in place of a path, wherever one loads.

Each is one `.safetensors` file in `assets/`, packed from the run that made it, by the commands of
`configs/scenes_shipped.py`, the last of which is

    python -m crate_jax.convert --source=runs/scenes_shipped --with-run \\
        --target=crate_jax/convert/assets/scenes.safetensors

Its metadata hold the declaration and the run: config with its seed, step, training curve and last
scores. The command prints the SHA-256 that is pinned here; a file with another is refused.
"""

import os
import pathlib
from typing import Any

from crate_jax.convert import formats, run_directory

DIRECTORY = pathlib.Path(__file__).with_name("assets")
# Of DIRECTORY/NAME.safetensors.
SHA256 = {"scenes": "59c06801bc267c40ad35e0e2430fe54b542bb585a2ccf411ee44258730929799"}


def resolve(path: str | os.PathLike) -> pathlib.Path:
    """The file of a network that ships, for its name alone; any other path as it is.

    `"./scenes"`, or a `pathlib.Path`, is a file or folder of that name.

    Raises:
        FileNotFoundError: the installation lacks the file.
        ValueError: it is another than the one that was packed.
    """
    if not os.fspath(path):
        raise ValueError("checkpoint: expected a file, a run's directory or a name, got nothing")
    if not isinstance(path, str) or path not in SHA256:
        return pathlib.Path(
            os.path.expanduser(path)
        )  # shells leave the ~ of --checkpoint=~/x alone
    file = DIRECTORY / f"{path}.safetensors"
    remedy = "reinstall crate-jax (pip install --force-reinstall --no-deps crate-jax)"
    if not file.is_file():
        raise FileNotFoundError(
            f"{path}: expected the network that ships with crate_jax at {file}, found no file: "
            f"the installation is not whole; {remedy}, or give ./{path} for a path of yours"
        )
    found = run_directory.checksum(file)
    if found != SHA256[path]:
        raise ValueError(
            f"{file}: expected SHA-256 {SHA256[path]}, got {found}: the file is damaged; {remedy}"
        )
    return file


def run_of(path: str | os.PathLike) -> dict[str, Any]:
    """The run that made a network: of its directory, or from a file packed `--with-run`.

    Returns:
        `config`, the run's, nested; `step`; `history`, lines as in metrics.jsonl; `scores`, the
        last value of every held-out metric.

    Raises:
        ValueError: the file has no record of its run.
    """
    file = resolve(path)
    if steps := run_directory.complete_steps(file):
        return run_directory.record(file, steps[-1])
    declaration = formats.read(file).declaration or {}
    run = declaration.get("run")
    if run is None:
        raise ValueError(
            f"{file}: expected a file with the record of its run, got one without; pack it by "
            "`python -m crate_jax.convert --with-run`"
        )
    return run
