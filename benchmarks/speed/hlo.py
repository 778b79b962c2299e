"""What an optimised program says of itself: its loops, kernels, collectives, and estimated costs.

XLA's compilers write their own estimate next to each operation: for a TPU its cycles, for a GPU the
microseconds of a kernel. The text has a loop's body once: costs are multiplied by the trips.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple


class Operation(NamedTuple):
    """An instruction that is run, not one within a fusion."""

    name: str
    kind: str  # "fusion", "convolution", "while", ...
    cost: float | None  # the compiler's estimate; None where it has none
    path: str  # the functions it was traced in, such as "jit(meta_step)/while/body/jvp(...)"
    line: str  # of the library: "nn/layers.py:109", "" where none is known
    bodies: tuple[str, ...]  # the computations that it runs
    condition: str  # of a loop

    @property
    def is_kernel(self) -> bool:
        """Whether it takes a launch or a pass of its own, and is no mere name for data."""
        return self.kind not in _FREE and not self.kind.endswith(("-start", "-done"))


_FREE = frozenset(
    "parameter constant get-tuple-element tuple bitcast after-all partition-id replica-id while "
    "conditional call opt-barrier".split()
)
_COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
_LIBRARY = "/reptile_jax/"


class Run(NamedTuple):
    """A computation and how often the program runs it."""

    operations: tuple[Operation, ...]
    times: int

    @property
    def cost(self) -> float:
        """The estimate of running it once."""
        return sum(operation.cost or 0.0 for operation in self.operations)

    @property
    def kernels(self) -> int:
        return sum(operation.is_kernel for operation in self.operations)


class Program:
    """An optimised program, read from the text of its HLO."""

    def __init__(self, text: str):
        self._frames = _frames(text)
        self._computations: dict[str, tuple[Operation, ...]] = {}
        self._conditions: dict[str, str] = {}
        entry = ""
        for part in re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ [^\n]*\{\n)", text):
            if found := re.match(r"(ENTRY )?%?([\w.\-]+) [^\n]*\{\n", part):
                name = found.group(2)
                entry = name if found.group(1) else entry
                operations = map(self._operation, part.splitlines()[1:])
                self._computations[name] = tuple(each for each in operations if each)
                self._conditions[name] = part
        self.runs = tuple(self._runs(entry, 1))
        kinds = Counter(operation.kind for run in self.runs for operation in run.operations)
        of_kind = lambda kind: kinds[kind] + kinds[f"{kind}-start"]
        self.collectives = {kind: of_kind(kind) for kind in _COLLECTIVES if of_kind(kind)}

    @property
    def cost(self) -> float:
        """The estimate of all of it."""
        return sum(run.cost * run.times for run in self.runs)

    @property
    def inner(self) -> list[Run]:
        """The bodies of inner loops: one, or for MAML one forward and one backward.

        That is a loop which differentiates a loss, and has no such loop in it.
        """
        return [
            run
            for run in self.runs
            if run.times > 1
            and _differentiates(run.operations)
            and not any(_differentiates(body) for body in self._loops_in(run))
        ]

    def _loops_in(self, run: Run) -> Iterator[tuple[Operation, ...]]:
        loops = (operation for operation in run.operations if operation.kind == "while")
        return (self._computations[body] for operation in loops for body in operation.bodies)

    @property
    def calls_without_cost(self) -> int:
        """Calls of libraries in an inner step, of which a GPU's compiler has no estimate."""
        inner = (operation for run in self.inner for operation in run.operations)
        return sum(each.kind == "custom-call" and each.cost is None for each in inner)

    def lines(self) -> list[tuple[str, float]]:
        """The lines of the library that inner steps cost most for, with their shares."""
        costs: Counter[str] = Counter()
        for run in self.inner:
            for operation in run.operations:
                costs[operation.line or "the compiler's own"] += (operation.cost or 0.0) * run.times
        total = sum(costs.values()) or 1.0
        return [(line, cost / total) for line, cost in costs.most_common()]

    def costliest(self, number: int) -> list[tuple[Operation, float]]:
        """The operations of an inner step that cost most, with their shares."""
        runs = self.inner
        total = sum(run.cost for run in runs) or 1.0
        found = [(operation, (operation.cost or 0.0) / total) for r in runs for operation in r[0]]
        return sorted(found, key=lambda each: -each[1])[:number]

    def _operation(self, text: str) -> Operation | None:
        found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([a-z][a-z\-]*)\(", text)
        if not found:
            return None
        name, kind = found.groups()
        path = re.search(r'op_name="([^"]*)"', text)
        frame = re.search(r"stack_frame_id=(\d+)", text)
        condition = re.search(r"condition=%?([\w.\-]+)", text)
        bodies: list[str] = []
        if kind in ("while", "call", "conditional", "async-start"):
            pattern = r"(?:body|calls|to_apply|(?:true|false)_computation)=%?([\w.\-]+)"
            bodies = re.findall(pattern, text)
            if branches := re.search(r"branch_computations=\{([^}]*)\}", text):
                bodies += re.findall(r"%?([\w.\-]+)", branches.group(1))
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', text)
        cost = re.search(r'"estimated_cycles":"(\d+)"', text)
        # Of several models of a GPU's kernel, the one without a name: it knows every kernel.
        cost = cost or re.search(r'"exec_time_us":([\d.e+\-]+)[^}]*"name":""', text)
        return Operation(
            name,
            kind,
            float(cost.group(1)) if cost else None,
            path.group(1) if path else "",
            self._frames.get(int(frame.group(1)), "") if frame else "",
            tuple(bodies),
            trips.group(1) if trips else condition.group(1) if condition else "",
        )

    def _runs(self, name: str, times: int) -> Iterator[Run]:
        operations = self._computations.get(name, ())
        yield Run(operations, times)
        for operation in operations:
            trips = self._trips(operation.condition) if operation.kind == "while" else 1
            for body in operation.bodies:  # of a choice, all of its branches
                yield from self._runs(body, times * trips)

    def _trips(self, condition: str) -> int:
        """How often a loop goes round: its condition compares a counter from 0 with a constant."""
        if condition.isdigit():
            return int(condition)
        limits = re.findall(r"s32\[\][^ ]* constant\((\d+)\)", self._conditions.get(condition, ""))
        return int(limits[0]) if len(limits) == 1 else 1


def _differentiates(operations: tuple[Operation, ...]) -> bool:
    return any("jvp(" in operation.path for operation in operations)


def _frames(text: str) -> dict[int, str]:
    """The innermost line of the library on each stack frame of the program's tables."""
    table = lambda name: re.search(rf"\n{name}\n(.*?)\n\n", text, re.DOTALL)
    found = [table(name) for name in ("FileNames", "FileLocations", "StackFrames")]
    if not all(found):
        return {}
    files, locations, frames = (match.group(1) for match in found if match)
    names = dict(re.findall(r'^(\d+) "(.*)"$', files, re.MULTILINE))
    places = {
        number: f"{names[file].rpartition(_LIBRARY)[2]}:{line}" if _LIBRARY in names[file] else ""
        for number, file, line in re.findall(
            r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", locations, re.MULTILINE
        )
    }
    lines: dict[int, str] = {}
    for number, place, parent in re.findall(
        r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)\}", frames, re.MULTILINE
    ):
        # Parents come before their children, and are numbered one higher than frames: 1 is none.
        lines[int(number)] = places[place] or lines.get(int(parent) - 1, "")
    return lines
