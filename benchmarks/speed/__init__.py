"""How fast the library is, on what, and why."""

import argparse
from pathlib import Path

from benchmarks import records


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that the scripts share."""
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that it runs; kept apart"
    )
    parser.add_argument("--fresh", action="store_true", help="replace what is measured already")
    parser.add_argument("--out", type=Path, default=records.RESULTS, help="where results go")


def record(name: str, args: argparse.Namespace) -> Path:
    """Where the record of a script goes; what `--quick` measures is no result."""
    folder = args.out / "quick" if args.quick else args.out
    return folder / "speed" / f"{name}.json"
