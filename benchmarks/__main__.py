"""`python -m benchmarks NAME [--quick]`: one question, one table, one JSON file.

And the experiments, of many arms each: `python -m benchmarks EXPERIMENT --data DIR --size SIZE`.
"""

import sys

from benchmarks import (
    convolutions,
    devices,
    evaluation,
    experiments,
    family,
    gpu,
    measure,
    recipes,
    report,
    start_up,
    task_axis,
    throughput,
    time_to_accuracy,
)

SCRIPTS = {
    "peers": throughput.peers,
    "meta_batches": throughput.meta_batches,
    "inner_step": throughput.inner_step,
    "convolutions": convolutions.formulations,
    "pooling": convolutions.pooling,
    "task_axis": task_axis.choices,
    "sampling": task_axis.sampling,
    "dispatch": task_axis.dispatch,
    "evaluation": evaluation.throughput,
    "memory": family.memory,
    "large_model": family.large_model,
    "start_up": start_up.first_step,
    "devices": devices.sharing,
}


# What takes arguments of its own.
COMMANDS = {
    "gpu": gpu.main,
    "time_to_accuracy": time_to_accuracy.main,
    "recipes": recipes.main,
    "report": lambda argv: report.write(SCRIPTS),
}


def main(argv: list[str]) -> int:
    """Runs the scripts named, all of them by default, or one command with its arguments.

    With `--quick` everything is small, to see that it runs, and what it writes is kept apart.
    """
    if "--quick" in argv:
        measure.RESULTS = measure.RESULTS / measure.QUICK
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:]) or 0
    if argv and argv[0] in (*experiments.EXPERIMENTS, experiments.PAGE):
        return experiments.main(argv)
    names = [word for word in argv if word != "--quick"] or list(SCRIPTS)
    unknown = [name for name in names if name not in SCRIPTS]
    if unknown:
        known = ", ".join([*SCRIPTS, *COMMANDS])
        print(f"no benchmark {', '.join(unknown)}; there are {known}", file=sys.stderr)
        return 2
    for name in names:
        SCRIPTS[name]("--quick" in argv)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
