"""The command line that the experiments share, and where each keeps its arms."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import records

SMALL = "small"  # the size of the committed results


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line asks of an experiment."""

    data: Path | None  # the folder of Omniglot
    size: Any
    path: Path  # of the record
    about: Mapping[str, Any]  # its title and command
    fresh: bool = False

    def run(
        self, arm: str, settings: Mapping[str, Any], measured: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """The stored arm with these settings; otherwise measures it now and stores it."""
        return records.run(self.path, self.about, arm, settings, measured, fresh=self.fresh)


def record(name: str, size: str = SMALL, out: Path = records.RESULTS) -> Path:
    """Where an experiment's record is."""
    folder = out / "comparison"
    return (folder if size == SMALL else folder / size) / f"{name}.json"


def main(
    argv: Sequence[str],
    experiment: Callable[[Asked], None],
    sizes: Mapping[str, Any],
    title: str,
    *,
    needs_data: bool = True,
) -> int:
    """Runs one experiment; arms that are measured with the same settings do not run again."""
    name = experiment.__name__
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}")
    parser.description = experiment.__doc__
    if needs_data:
        parser.add_argument(
            "--data", type=Path, required=True, help="the folder with Omniglot's two zip files"
        )
    parser.add_argument("--size", choices=tuple(sizes), default=SMALL)
    parser.add_argument("--fresh", action="store_true", help="measure again, and keep both")
    parser.add_argument("--out", type=Path, default=records.RESULTS, help="where results go")
    args = parser.parse_args(argv)
    words = ["--data", "DIR"] if needs_data else []
    words += [] if args.size == SMALL else ["--size", args.size]
    about = {"title": title, "command": records.command_of([name, *words])}
    path = record(name, args.size, args.out)
    data = args.data if needs_data else None
    experiment(Asked(data, sizes[args.size], path, about, args.fresh))
    print(f"the arms are in {path}; `python -m benchmarks report` writes their tables", flush=True)
    return 0
