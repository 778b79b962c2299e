"""`python -m benchmarks NAME`: one question, one record, one table or figure."""

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import commands


def main(argv: list[str]) -> int:
    """Runs one command; without a name, lists them all."""
    if not argv or argv[0] in ("-h", "--help"):
        print(commands.listing())
        return 0
    name = commands.find(argv)
    if name is None:
        there = [known for known in commands.COMMANDS if known.startswith(f"{argv[0]} ")]
        known = f"there are {', '.join(there)}" if there else "`python -m benchmarks` lists them"
        print(f"there is no command {' '.join(argv[:2])!r}: {known}.", file=sys.stderr)
        return 2
    command = commands.COMMANDS[name]
    function = load(command.function)
    if command.table:
        return measure(name, function, argv[1:])
    return function(argv[1:]) or 0


def load(function: str) -> Callable[..., Any]:
    """The function that a command names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def measure(name: str, script: Callable[[bool], Any], argv: list[str]) -> int:
    """Runs a script that returns a table, prints the table and writes its record."""
    from benchmarks import records, speed, tables

    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}")
    parser.description = script.__doc__
    speed.add_options(parser)
    args = parser.parse_args(argv)
    path = speed.record(name, args)
    records.check_free(path, args.fresh or args.quick)
    table = script(args.quick)
    tables.show(table)
    records.save(path, table, records.command_of([name]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
