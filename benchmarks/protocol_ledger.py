# PYTHON_ARGCOMPLETE_OK
"""How far the variants of a metric in public code move its score on the same masks.

    python -m benchmarks.protocol_ledger

Composed scenes have exact masks and boxes. The features are the pixels of each patch, centred: no
network, so that the table can be made anywhere, and masks of middling quality, where variants part.
Prints the table of docs/protocol_ledger.md.
"""

import sys

from crate_jax import command_line


def main() -> int:
    """Prints the table."""
    parser = command_line.parser("python -m benchmarks.protocol_ledger", __doc__)
    parser.add_argument("--scenes", type=int, default=200, metavar="N", help="how many (200)")
    options = command_line.parse(parser)
    from benchmarks import metric_variants

    for name, value in metric_variants.rows(options.scenes):
        print(f"| {name} | {value:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
