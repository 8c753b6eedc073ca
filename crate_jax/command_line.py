"""What the commands share: one look of --help, --version, completion by the tab key, and one end.

A command says by an argument's metavar what stands there (DIR, FILE.safetensors, CONFIG); from
that the shell completes it. Nothing here imports JAX.
"""

import argparse
import contextlib
import io
import logging
import os
import pathlib
import re
import select
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from crate_jax import checks, limits
from crate_jax._version import __version__
from crate_jax.checks import Key

# The commands that users call, in the order in which they meet them, with what each does.
COMMANDS = {
    "doctor": "Look at this machine and this installation, and say what to mend.",
    "demo": "See what the network that ships attends to, without a training.",
    "main": "Train, or evaluate what was trained.",
    "keys": "List every config key with its default and its meaning.",
    "segment": "Segment images with what a network attends to.",
    "score": "Score what a network's attention, masks and features find, on public sets or "
    "composed scenes.",
    "probe": "How good frozen features are: a linear probe and k nearest neighbours.",
    "convert": "Convert a checkpoint, or say what one is.",
    "data.prepare": "Prepare class folders for training.",
}
_NO_MEMORY = re.compile("RESOURCE_EXHAUSTED|out of memory", re.IGNORECASE)
CHECKPOINT = "PATH"
CONFIG = "FILE.py[:ARGUMENT]"
_SUFFIXES = {
    "DIR": ("",),  # folders only
    "FILE": (),  # any file
    CHECKPOINT: ("safetensors", "npz", "pth", "tar", "pt"),
    "DIR_OR_FILE": (),
    "JSON": ("json",),
}


def parser(
    prog: str, description: str | None, epilog: str | None = None, **options: Any
) -> argparse.ArgumentParser:
    """A parser that prints its description as it is written and knows --version."""
    made = argparse.ArgumentParser(
        prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **options,
    )
    made.add_argument(
        "--version", action="version", version=f"crate_jax {__version__}", help="print the version"
    )
    return made


def parse(parser: argparse.ArgumentParser, argv: Iterable[str] | None = None) -> argparse.Namespace:
    """The arguments; answers the shell instead where it asks for completions."""
    complete(parser)
    return parser.parse_args(argv)


def run(
    command: Callable[[], int],
    *faults: type[Exception],
    stopped: str = "stopped by Ctrl-C",
    threads: int = limits.THREADS,
) -> int:
    """The exit status of a command, which ends without a traceback by what a user can do.

    An error in what it was given or found: one line on stderr and status 2, or the error's
    `exit_status`. Ctrl-C: one line and 130. A reader of the output that has gone (`| head -1`):
    nothing and 141, as of other programs. No memory left, or no thread granted: one line and 2. Any
    other error is a fault of ours and goes on.

    Args:
        command: does the work and returns its status.
        *faults: errors of a user's besides ValueError, OSError, ImportError and FloatingPointError
            (weights that give no numbers).
        stopped: said after Ctrl-C.
        threads: that it needs beside those a core (`limits.for_computing`); 0: starts no JAX here.
    """
    pressed: list[int] = []
    _open_streams()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # of ours, as they are
    try:
        with _listening(pressed):
            if threads:
                limits.for_computing(threads)
            status = command()
            sys.stdout.flush()
            return status
    except (KeyboardInterrupt, Exception) as error:
        if pressed or isinstance(error, KeyboardInterrupt):
            print(stopped, file=sys.stderr, flush=True)
            return 130
        if isinstance(error, BrokenPipeError) and _reader_gone():
            return 141
        exhausted = _of_machine(error)
        users = (ValueError, OSError, ImportError, FloatingPointError, *faults)
        if not exhausted and not isinstance(error, users):
            raise
        logging.debug("", exc_info=True)
        with contextlib.suppress(OSError):  # what cannot be said changes no status
            print(f"error: {exhausted or error}", file=sys.stderr, flush=True)
        return getattr(error, "exit_status", 2)
    finally:
        _reader_gone()


def _open_streams() -> None:
    """Closed ones (`>&-`) lead nowhere, and what the locale's encoding lacks is escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # else the next file that is opened would get what is printed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, to the end of the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _of_machine(error: BaseException) -> str | None:
    """What is said where memory, a device's too, or threads are used up; None of another error."""
    lines = str(error).splitlines() or [""]
    of_jax = type(error).__name__ == "JaxRuntimeError"
    if isinstance(error, MemoryError) or (of_jax and _NO_MEMORY.search(lines[0])):
        return f"out of memory ({lines[0] or 'of the host'}); make the batch or the images smaller"
    if isinstance(error, RuntimeError) and "can't start new thread" in lines[0]:
        return f"{lines[0]}; {limits.MORE_PROCESSES}"
    return None


@contextlib.contextmanager
def _listening(pressed: list[int]) -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, and is remembered.

    A C extension that is being imported, say, turns it into an ImportError.
    """

    def receive(number: int, frame: types.FrameType | None) -> None:
        del frame
        pressed.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def say(line: str) -> None:
    """Prints a line at once, whatever bytes a file's name in it holds."""
    print(line.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), flush=True)


def _reader_gone() -> bool:
    """Whether stdout is a pipe that nobody reads; then Python will not flush into it at its end."""
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout, select.POLLOUT)
        gone = any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        gone = True
    except (ValueError, io.UnsupportedOperation):  # closed, or no file (a notebook's)
        gone = False
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def of_flags(prog: str, description: str, metavars: Mapping[str, str]) -> argparse.ArgumentParser:
    """A parser with absl's flags of these names: for --help and completion, not for parsing.

    Args:
        prog: the command.
        description: the text above the flags.
        metavars: by flag, in the order of the help text; "" where its choices say it.
    """
    from absl import flags

    made = parser(prog, description, epilog=_CONFIG_KEYS, usage=f"{prog} [--FLAG=VALUE ...]")
    for name, metavar in metavars.items():
        flag = flags.FLAGS[name]
        text = re.sub(r"^<\S+>: ", "", flag.help)  # absl puts an enum's choices there
        text = text.removesuffix(".").replace("%", "%%")
        if flag.default is not None:
            text += f" (default {flag.default})"
        choices = getattr(flag.parser, "enum_values", None)
        made.add_argument(f"--{name}", metavar=metavar or None, choices=choices, help=text)
    return made


_CONFIG_KEYS = """\
--config.KEY=VALUE sets a key of the config, as --config.batch_size=64 or
--config.optimizer.name=lion. All keys with their meanings: python -m crate_jax.keys.
Flags of the libraries beneath (logging, debugging): --helpfull."""


def answer(
    parser: argparse.ArgumentParser, argv: list[str], config_keys: Callable[[str], Iterable[Key]]
) -> None:
    """Ends the process where --help, --version or completions are asked for.

    For commands whose flags absl parses.

    Args:
        parser: of these flags.
        argv: without the command itself.
        config_keys: the keys of the config that begin with a text.
    """
    if "_ARGCOMPLETE" in os.environ:
        words = os.environ.get("COMP_LINE", "").split()
        # Only where one is being typed: there are a hundred.
        for typed in [word for word in words[-1:] if word.startswith("--config.")]:
            for key in config_keys(typed.removeprefix("--config.").partition("=")[0]):
                _add_config_key(parser, key)
        complete(parser)
    for argument in argv:
        if argument in ("-h", "-help", "--help"):
            parser.print_help()
            sys.exit(0)
        if argument in ("-version", "--version"):
            print(f"crate_jax {__version__}")
            sys.exit(0)


def _add_config_key(parser: argparse.ArgumentParser, key: Key) -> None:
    choices = ("True", "False") if key.check is checks.TRUTH else key.check.choices
    metavar = "DIR_OR_FILE" if key.check is checks.PATH else None
    parser.add_argument(
        f"--config.{key.name}", choices=choices or None, metavar=metavar, help=key.meaning
    )


def complete(parser: argparse.ArgumentParser) -> None:
    """Prints completions and ends the process where the shell asks for them; else does nothing."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    _add_completers(parser)
    argcomplete.autocomplete(parser, default_completer=lambda **_: ())


def _add_completers(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _add_completers(below)
        elif not hasattr(action, "completer") and (found := _completer(action)):
            action.completer = found


def _completer(action: argparse.Action) -> Callable | None:
    from argcomplete import completers

    metavar = action.metavar
    if metavar == CONFIG:
        return _configs
    if metavar == "DIR":
        return completers.DirectoriesCompleter()
    if metavar in _SUFFIXES:
        return completers.FilesCompleter(_SUFFIXES[metavar])
    return None


def _configs(prefix: str, **_: Any) -> list[str]:
    """Config files on disk, and those of the package."""
    from argcomplete import completers

    found = completers.FilesCompleter(("py",))(prefix)
    return sorted({*found, *(f"configs/{path.name}" for path in packaged_configs())})


def packaged_configs() -> list[pathlib.Path]:
    """The config files that come with the package."""
    room = pathlib.Path(__file__).parent
    for folder in (room / "configs", room.parent / "configs"):  # installed, editable
        if (folder / "scenes_tiny.py").exists():
            return sorted(p for p in folder.glob("*.py") if p.name != "__init__.py")
    return []


def with_packaged_configs(argv: Iterable[str]) -> list[str]:
    """The arguments with --config=configs/NAME.py[:ARG] from the package where it is not here.

    `--config configs/NAME.py`, in two words, becomes one.
    """
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] in ("--config", "-config"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return [
        f"{name}={packaged_config(value)}" if name.lstrip("-") == "config" and equals else argument
        for argument in joined
        for name, equals, value in [argument.partition("=")]
    ]


def packaged_config(file: str) -> str:
    """A config FILE.py[:ARG]: itself where it exists, else that `recipe` of the package."""
    path, _, argument = file.partition(":")
    if pathlib.Path(path).exists() or pathlib.Path(path).parent.name != "configs":
        return file
    found = recipe(pathlib.Path(path).stem, argument)
    return ":".join(map(str, filter(None, found))) if found else file


def recipe(name: str, argument: str | None = None) -> tuple[pathlib.Path, str] | None:
    """The package's config file of a name, and its argument; None where there is no such file.

    `RECIPE_VALUE` stands for `RECIPE.py:VALUE`, as imagenet_t for imagenet.py:t: the value of the
    recipe's first argument.
    """
    files = {path.stem: path for path in packaged_configs()}
    if name in files:
        return files[name], argument or ""
    stem, _, first = name.rpartition("_")
    return (files[stem], ",".join(filter(None, (first, argument)))) if stem in files else None


def check_config(argv: Iterable[str]) -> None:
    """Says where a config file was looked for, before ml_collections says it at length.

    Raises:
        FileNotFoundError: names the configs of the package.
    """
    for argument in argv:
        name, equals, value = argument.partition("=")
        path = value.partition(":")[0]
        if name.lstrip("-") == "config" and equals and not pathlib.Path(path).is_file():
            known = ", ".join(f"configs/{file.name}" for file in packaged_configs())
            raise FileNotFoundError(
                f"--config: expected a file FILE.py or FILE.py:ARGUMENT, found none at {path!r}; "
                f"the package has {known}"
            )


def shell_code() -> str:
    """What a shell runs to complete these commands: bash and zsh.

    argcomplete's own code, and a function for `python` by name: both shells may have a completion
    of that name already, which goes before a general default.
    """
    import argcomplete

    file = pathlib.Path(argcomplete.__file__).parent / "bash_completion.d" / "_python-argcomplete"
    code = re.sub(r"^#compdef.*\n", "", file.read_text(encoding="utf-8"))
    names = sorted({"python", "python3", f"python{sys.version_info[0]}.{sys.version_info[1]}"})
    modules = ["crate_jax", *(f"crate_jax.{command}" for command in COMMANDS)]
    return code + _SHELL.replace("NAMES", " ".join(names)).replace("MODULES", " ".join(modules))


_SHELL = """
if [[ -z "${ZSH_VERSION-}" ]]; then
    _crate_jax_python () {
        if [[ "${COMP_WORDS[1]}" == -m && "$COMP_CWORD" == 2 ]]; then
            COMPREPLY=($(compgen -W "MODULES" -- "${COMP_WORDS[2]}"))
        else
            _python_argcomplete_global "$@"
        fi
    }
    complete -o default -o bashdefault -F _crate_jax_python NAMES
else
    _crate_jax_python () {
        if [[ "${words[2]}" == -m && "$CURRENT" == 3 ]]; then
            compadd -- MODULES
        elif [[ "${words[2]}" == -m ]]; then
            _python_argcomplete_global "$@"
        else
            _python "$@"
        fi
    }
    compdef _crate_jax_python NAMES
fi
"""
