# PYTHON_ARGCOMPLETE_OK
"""Look at this machine and this installation, and say what to mend.

    python -m crate_jax.doctor                          # half a minute
    python -m crate_jax.doctor --data=IMAGES --data=VOCdevkit --workdir=/big/disk
    python -m crate_jax.doctor --json > report.json     # for a bug report

Versions, extras, what keeps JAX from an accelerator that is there, room on the disk, data, and, in
a process of its own, a matrix product and training steps of a tiny CRATE on all devices. Of the
environment only variables of JAX, XLA and CUDA are printed.

Exit status: 0 no problem (there may be notes); 1 a problem; 2 wrong usage.
"""

import argparse
import functools
import json
import sys
from collections.abc import Iterator

from crate_jax import command_line
from crate_jax.doctor.findings import Check, Finding, examine

_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "bold red")}


def findings(
    data: list[str], workdir: str = ".", timeout: float = 180.0, quick: bool = False
) -> Iterator[Finding]:
    """All findings, as they are made.

    Args:
        data: folders to look at.
        workdir: where a run would write.
        timeout: seconds that devices may take; compiling included.
        quick: leave the devices alone.
    """
    from crate_jax.doctor import accelerators, environment, machine, packages
    from crate_jax.doctor import data as datasets

    gpus: list[str] = []
    tpu: list[bool] = []

    def hardware() -> None:
        gpus.extend(machine.nvidia())
        tpu.append(machine.has_tpu())

    yield from examine([hardware])
    has_gpu, has_tpu = bool(gpus), any(tpu)
    accelerator = "cuda" if has_gpu else "tpu" if has_tpu else None

    def python() -> Finding:
        return machine.python(packages.declaration()["python"])

    def trial() -> Iterator[Finding]:
        return accelerators.judge(accelerators.attempt(timeout), gpus, has_tpu)

    def library_path() -> Finding | None:
        plugin = any(packages.installed(f"jax-cuda{c}-plugin") for c in (12, 13))
        return environment.library_path(plugin)

    def extras() -> Iterator[Finding]:
        return packages.extras(accelerator)

    checks: list[Check] = [
        *(python, machine.system, machine.processor, machine.shared_memory),
        functools.partial(machine.disk, workdir),
        *(packages.ourselves, packages.dependencies, packages.jax_versions, extras),
        functools.partial(packages.clashes, has_gpu),
        functools.partial(environment.platforms, has_gpu, has_tpu),
        *(environment.gpu_memory, library_path, environment.xla_flags, environment.shadows),
        functools.partial(accelerators.tpu_lock, has_tpu),
        accelerators.gpu_neighbours,
        *([] if quick else [trial]),
        datasets.default,
        *(functools.partial(datasets.folder, place) for place in data),
    ]
    yield from examine(checks)


def show(found: Iterator[Finding]) -> list[Finding]:
    """Prints findings as they come, each with its remedy below it; returns them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    seen = []
    for finding in found:
        seen.append(finding)
        mark, style = _MARKS[finding.status]
        row = Table.grid(padding=(0, 2))  # one for each finding: they come one by one
        row.add_column(width=7, justify="right")
        row.add_column(width=15)
        row.add_column(overflow="fold")
        row.add_row(Text(mark, style), Text(finding.topic, "bold"), Text(finding.what))
        if finding.remedy:
            row.add_row("", "", Text(f"-> {finding.remedy}", "cyan"))
        console.print(row)
    console.print(f"\n{summary(seen)}")
    return seen


def summary(found: list[Finding]) -> str:
    """One line: how many problems and notes."""
    counts = {status: sum(f.status == status for f in found) for status in _MARKS}
    problems, notes = (
        f"{counts[status] or 'no'} {status}{'s' * (counts[status] != 1)}"
        for status in ("problem", "note")
    )
    return f"{problems}, {notes}, {counts['ok']} ok"


def main(argv: list[str] | None = None) -> int:
    """Prints the report; returns the exit status."""
    parser = command_line.parser("python -m crate_jax.doctor", __doc__)
    add = parser.add_argument
    add("--data", action="append", default=[], metavar="DIR", help="look for data there; repeat it")
    add("--workdir", default=".", metavar="DIR", help="where runs are to write (default: here)")
    add("--json", action="store_true", help="print JSON")
    add("--quick", action="store_true", help="leave the devices alone: no JAX is started")
    add("--timeout", type=float, default=180, help="seconds for the devices (default 180)")
    return command_line.run(functools.partial(_report, command_line.parse(parser, argv)))


def _report(args: argparse.Namespace) -> int:
    found = findings(args.data, args.workdir, args.timeout, args.quick)
    if args.json:
        from crate_jax._version import __version__

        seen = list(found)
        report = {
            "crate_jax": __version__,
            "summary": summary(seen),
            "findings": [vars(finding) for finding in seen],
        }
        print(json.dumps(report, indent=2))
    else:
        seen = show(found)
    return int(any(finding.status == "problem" for finding in seen))


if __name__ == "__main__":
    sys.exit(main())
