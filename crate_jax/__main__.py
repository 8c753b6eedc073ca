# PYTHON_ARGCOMPLETE_OK
"""CRATE, the white-box transformer, in JAX.

    python -m crate_jax                  # this list of commands
    python -m crate_jax.COMMAND --help   # its arguments, with examples

The first result in minutes, without a download:

    python -m crate_jax.main --config=configs/scenes_tiny.py --workdir=runs/scenes_tiny

Completion by the tab key, in bash and zsh (put it into ~/.bashrc or ~/.zshrc to keep it; in zsh
after `autoload -Uz compinit && compinit`):

    eval "$(python -m crate_jax --completion)"
"""

import sys

from crate_jax import command_line


def main(argv: list[str] | None = None) -> int:
    """Prints the commands; returns the exit status."""
    names = {f"python -m crate_jax.{c}": text for c, text in command_line.COMMANDS.items()}
    width = max(map(len, names))
    listed = "\n".join(f"  {name:{width}}  {text}" for name, text in names.items())
    parser = command_line.parser("python -m crate_jax", __doc__, f"commands:\n{listed}")
    parser.add_argument("--completion", action="store_true", help="print the code for the shell")
    args = command_line.parse(parser, argv)

    def work() -> int:
        print(command_line.shell_code() if args.completion else parser.format_help().rstrip())
        return 0

    return command_line.run(work, threads=0)


if __name__ == "__main__":
    sys.exit(main())
