"""What a compiler says of a program for a chip that is not there, and the tables of it."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from benchmarks import tables
from benchmarks.speed import hlo, programs
from benchmarks.speed.targets import CHIPS, Chip


class Case(NamedTuple):
    """What is compiled, and for what."""

    program: str
    chip: Chip
    chips: int
    tasks: int  # on each chip
    at_once: int | None = None  # None: the library's default
    formulation: str = "default"

    @property
    def label(self) -> str:
        """Its name in a record."""
        how = "" if self.at_once is None else f", {self.formulation}, {self.at_once} at once"
        return f"{self.program}, {self.chips} x {self.chip.name}{how}"

    @property
    def about(self) -> dict[str, Any]:
        """What a record says of it, whether it compiles or not."""
        named = self._asdict() | {"chip": self.chip.name, "asked_at_once": self.at_once}
        return {name: value for name, value in named.items() if name != "at_once"}


def estimate(case: Case) -> dict[str, Any]:
    """Compiles one program, and reads what the compiler says of it."""
    network, kind = programs.PROGRAMS[case.program]
    mesh = case.chip.mesh(case.chips)
    jax.clear_caches()  # no trace of another formulation
    with programs.FORMULATIONS[case.formulation]():
        program = programs.KINDS[kind](network, mesh, case.tasks * case.chips, case.at_once)
        begun = time.perf_counter()
        compiled = program.jitted.lower(*program.shapes).compile()
    sizes = compiled.memory_analysis()
    return case.about | {
        "seconds": round(time.perf_counter() - begun, 1),  # to trace and to compile
        "temporary_bytes": sizes.temp_size_in_bytes,
        "argument_bytes": sizes.argument_size_in_bytes,
        **read(hlo.Program(compiled.as_text()), case, program),
    }


def read(found: hlo.Program, case: Case, program: programs.Program) -> dict[str, Any]:
    """What the optimised program says; costs are for one task and one inner step."""
    number = case.tasks * program.inner_steps
    inner = sum(run.cost * run.times for run in found.inner) / number
    at_peak = case.chip.costs_per_second * (program.flops or 0.0) / case.chip.flops
    # A chunk of tasks is one run of all inner steps.
    chunks = max((run.times for run in found.inner), default=0) / program.inner_steps
    return {
        "cost": inner,
        "cost_of_the_rest": found.cost / number - inner,
        "share_of_peak": at_peak / inner if at_peak and inner else None,
        "kernels": sum(run.kernels for run in found.inner),
        "calls_without_cost": found.calls_without_cost,
        "at_once": round(case.tasks / chunks) if chunks else None,
        "collectives": found.collectives,
        "lines": found.lines()[:8],
        "operations": [
            [operation.name, operation.line, operation.path[-80:], share]
            for operation, share in found.costliest(8)
        ],
    }


def in_words(found: Mapping[str, Any]) -> str:
    """A program's figures in a line, with the lines of the library that cost most."""
    if "error" in found:
        return found["error"][:300]
    lines = ", ".join(f"{line} {share:.0%}" for line, share in found["lines"][:5])
    unit = CHIPS[found["chip"]].unit
    return f"{found['seconds']:.0f} s, {_cost(found)} {unit}, {found['kernels']} kernels; {lines}"


def _cost(found: Mapping[str, Any]) -> str:
    """The cost in words; a GPU's library calls have none."""
    digits = 0 if CHIPS[found["chip"]].platform == "tpu" else 2
    calls = found["calls_without_cost"] if CHIPS[found["chip"]].platform == "cuda" else 0
    return f"{found['cost']:,.{digits}f}" + (f" + {calls} calls" if calls else "")


COLUMNS = (
    "program",
    "chips",
    "tasks",
    "at once on a chip",
    "s to compile",
    "collectives",
    "temporary MiB",
    "of memory",
    "kernels",
    "{unit}",
    "the rest",
    "of peak",
    "costliest line",
)


def table(chip: Chip, data: Mapping[str, Any]) -> tables.Table:
    """A row for each program and number of chips of one kind."""
    title = f"{chip.name}: the compiler's estimates for a chip that was not there"
    columns = [column.format(unit=chip.unit) for column in COLUMNS]
    return tables.Table(title, columns, [_row(chip, found) for found in data.values()], data)


def _row(chip: Chip, found: Mapping[str, Any]) -> list[str]:
    start = [found["program"], f"{found['chips']}", f"{found['tasks'] * found['chips']:,}"]
    if "error" in found:
        return [*start, *[""] * (len(COLUMNS) - 4), found["error"][:80]]
    collectives = [f"{number} {kind}" for kind, number in found["collectives"].items()]
    line, share = (found["lines"] or [("", 0.0)])[0]
    peak, whole = found["share_of_peak"], found["cost"] + found["cost_of_the_rest"]
    return [
        *start,
        f"{found['at_once']}",
        f"{found['seconds']:.0f}",
        ", ".join(collectives) or "none",
        f"{found['temporary_bytes'] / 2**20:,.1f}",
        f"{found['temporary_bytes'] / chip.memory:.1%}",
        f"{found['kernels']}",
        _cost(found),
        f"{found['cost_of_the_rest'] / whole:.0%}" if whole else "",
        "" if peak is None else f"{peak:.1%}",
        f"{line} ({share:.0%})",
    ]


def race_table(data: Mapping[str, Any]) -> tables.Table:
    """A row for each program, chip and formulation; a column for each number of tasks at once.

    The lowest cost of a row is bold.
    """
    chunks = sorted({found["asked_at_once"] for found in data.values()})
    races: dict[tuple[str, ...], dict[int, Mapping[str, Any]]] = {}
    for found in data.values():
        unit = CHIPS[found["chip"]].unit
        key = found["program"], f"{unit} on {found['chip']}", found["formulation"]
        races.setdefault(key, {})[found["asked_at_once"]] = found
    rows = []
    for key, race in races.items():
        best = min((found["cost"] for found in race.values() if "cost" in found), default=None)
        cells = []
        for found in map(race.get, chunks):
            text = "" if found is None else _cost(found) if "cost" in found else "refused"
            cells.append(f"**{text}**" if found and found.get("cost") == best else text)
        rows.append([*key, *cells])
    title = "Estimates: an inner step of one task, by tasks at once on a chip"
    return tables.Table(title, ["program", "of", "convolution", *map(str, chunks)], rows, data)
