"""`python -m benchmarks NAME [--quick]`: one question, one table, one JSON file."""

import sys

from benchmarks import convolutions, evaluation, family, report, start_up, task_axis, throughput

SCRIPTS = {
    "peers": throughput.peers,
    "meta_batches": throughput.meta_batches,
    "convolutions": convolutions.formulations,
    "task_axis": task_axis.choices,
    "sampling": task_axis.sampling,
    "dispatch": task_axis.dispatch,
    "evaluation": evaluation.throughput,
    "memory": family.memory,
    "large_model": family.large_model,
    "start_up": start_up.first_step,
}


def main(argv: list[str]) -> int:
    """Runs the scripts named, all of them by default; `report` writes the tables."""
    if argv == ["report"]:
        report.tables()
        return 0
    quick = "--quick" in argv
    names = [word for word in argv if word != "--quick"] or list(SCRIPTS)
    unknown = [name for name in names if name not in SCRIPTS]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(SCRIPTS)}", file=sys.stderr)
        return 2
    for name in names:
        SCRIPTS[name](quick)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
