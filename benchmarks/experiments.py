"""The command line of the experiments: `python -m benchmarks NAME --data DIR --size small`."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    contest,
    maml_page,
    measure,
    overlap,
    paper_experiments,
    reptile_vs_maml,
    sine_experiment,
)

# By name: (data, folder, size, fresh) -> None, and the sizes.
EXPERIMENTS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "gradient_combinations": (paper_experiments.gradient_combinations, paper_experiments.SIZES),
    "minibatch_overlap": (overlap.minibatch_overlap, paper_experiments.SIZES),
    "sine_maml": (sine_experiment.sine_maml, paper_experiments.SIZES),
    "reptile_vs_maml": (reptile_vs_maml.reptile_vs_maml, contest.SIZES),
}
PAGE = "reptile_and_maml"  # the page that reads them all, from their files alone


def main(argv: Sequence[str]) -> int:
    """Runs one experiment: what is measured already, with the same settings, is not run again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*EXPERIMENTS, PAGE])
    parser.add_argument("--data", type=Path, help="the folder with Omniglot's two zip files")
    parser.add_argument("--size", choices=("tiny", "small", "full"), default="small")
    parser.add_argument("--fresh", action="store_true", help="measure again, into new files")
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="where results lie")
    parser.add_argument("--page", type=Path, default=maml_page.PAGE, help="the page to write")
    args = parser.parse_args(argv)
    if args.name == PAGE:
        maml_page.write(args.out, args.size, args.page)
        return 0
    if args.data is None and args.name != "sine_maml":
        parser.error(f"{args.name} needs --data, the folder with Omniglot's two zip files.")
    experiment, sizes = EXPERIMENTS[args.name]
    folder = args.out / args.name / args.size
    folder.mkdir(parents=True, exist_ok=True)
    experiment(args.data, folder, sizes[args.size], args.fresh)
    return 0
