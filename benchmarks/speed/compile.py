"""`python -m benchmarks compile`: the library's programs, for TPUs and GPUs that are not there.

XLA compiles for a described chip, and writes its own estimate of each operation's cost. That shows
whether a program compiles, its collectives, its memory and its kernels. Costs are a compiler's
estimates, not times: compare programs on the same chip.

Without --chunks, a record and a table for each TARGET: the library as it is. With --chunks, one
table of all targets: a meta step by the number of tasks at once, and by --formulations. With
--transformer, a table of the memory of a model that fills several chips.
"""

import argparse
import datetime
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import records, speed, tables
from benchmarks.speed import estimates, targets, transformer
from benchmarks.speed.estimates import Case
from benchmarks.speed.programs import FORMULATIONS, NETWORKS, PROGRAMS

_CHIPS = {"tpu": (1, 16, 256), "cuda": (1, 8)}
# On many chips only what many chips are for.
_ON_MANY = [*(f"{network}-dispatch" for network in NETWORKS), "o15-evaluate"]


def main(argv: Sequence[str]) -> int:
    """Compiles what is asked for and is not there yet, and keeps the records."""
    args = _arguments(argv)
    targets.use_compilers()
    there = []
    for name in args.targets or targets.CHIPS:
        chip = targets.CHIPS[name]
        if targets.compilers(chip.platform):
            there.append(chip)
        else:
            print(f"{name} is left out: pip install {targets.INSTALL[chip.platform]}", flush=True)
    if args.chunks:
        path, command = speed.record("compile_chunks", args), ["compile", "--chunks"]
        command += [",".join(map(str, args.chunks)), "--formulations", ",".join(args.formulations)]
        _compile_all(path, _races(there, args), estimates.race_table, command, args)
    if args.transformer:
        path, command = speed.record("compile_transformer", args), ["compile", "--transformer"]
        cases = [transformer.Case(chip, parts) for chip in there for parts in transformer.MESHES]
        _compile_all(path, cases, transformer.table, command, args, transformer)
    for chip in there if not (args.chunks or args.transformer) else ():
        table_of = lambda data, chip=chip: estimates.table(chip, data)
        path = speed.record(f"compile_{chip.name}", args)
        _compile_all(path, _programs(chip, args), table_of, ["compile", chip.name], args)
    return 0 if there else 1


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    names = lambda known: lambda text: _among(known, text.split(","))
    numbers = lambda text: [int(number) for number in text.split(",")]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(targets.CHIPS))
    parser.add_argument("--chips", type=numbers, help="how many; by default 1,16,256 or 1,8")
    parser.add_argument("--programs", type=names(PROGRAMS), help=", ".join(PROGRAMS))
    parser.add_argument("--tasks", type=int, default=64, help="on each chip (64)")
    parser.add_argument("--chunks", type=numbers, help="such as 8,16,32: tasks at once, to race")
    parser.add_argument(
        "--formulations",
        type=names(FORMULATIONS),
        default=["default"],
        help=f"of the convolution, to race: {', '.join(FORMULATIONS)}",
    )
    parser.add_argument("--transformer", action="store_true", help="of 1 B parameters, on a mesh")
    speed.add_options(parser)
    args = parser.parse_args(argv)
    if args.transformer:
        args.targets = args.targets or ["v5e"]
    _among(targets.CHIPS, args.targets)
    return args


def _among(known: Collection[str], names: list[str]) -> list[str]:
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"there is no {', '.join(unknown)}; there are {', '.join(known)}.")
    return names


def _programs(chip: targets.Chip, args: argparse.Namespace) -> list[Case]:
    """The library's programs as they are, by the number of chips."""
    cases = []
    for chips in args.chips or ((1,) if args.quick else _CHIPS[chip.platform]):
        chosen = ["sinusoid-step"] if args.quick else _ON_MANY if chips > 1 else [*PROGRAMS]
        cases += [Case(name, chip, chips, args.tasks) for name in args.programs or chosen]
    return cases


def _races(chips: list[targets.Chip], args: argparse.Namespace) -> list[Case]:
    """A meta step of each network on one chip, by tasks at once and formulation."""
    chosen = args.programs or [f"{name}-step" for name in NETWORKS]
    return [
        Case(name, chip, 1, max(args.tasks, chunk), chunk, formulation)
        for chip in chips
        for name in chosen
        for formulation in args.formulations
        for chunk in args.chunks
    ]


def _compile_all(
    path: Path,
    cases: Iterable[Case] | Iterable[transformer.Case],
    table_of: Callable[[dict[str, Any]], tables.Table],
    command: list[str],
    args: argparse.Namespace,
    how: Any = estimates,
) -> None:
    """Adds cases to a record, one after another: a run that is stopped leaves what it has."""
    data = dict(records.read(path).get("data") or {})
    for case in cases:
        if case.label in data and not (args.fresh or args.quick):
            continue
        print(case.label, end=": ", flush=True)
        compilers = targets.compilers(case.chip.platform)
        about = {"compilers": compilers, "date": datetime.date.today().isoformat()}
        try:
            found = how.estimate(case)
        except Exception as error:  # the compiler refuses: a finding
            found = {**case.about, "error": f"{type(error).__name__}: {error}"[:2000]}
        print(how.in_words(found), flush=True)
        data[case.label] = {**found, **about}
        on = records.machine()
        on["versions"] = on["versions"] | compilers
        records.save(path, table_of(data), records.command_of(command), on)
    tables.show(table_of(data))
