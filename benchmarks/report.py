"""Writes the tables and pictures of docs/results from the records alone."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import records, tables
from benchmarks.comparison import page as comparison_page
from benchmarks.comparison.contest import SIZES
from benchmarks.paper import page as paper_page
from benchmarks.speed import page as speed_page

PAGES = Path(__file__).parent.parent / "docs" / "results"


def pages(results: Path, folder: Path, size: str) -> dict[Path, str]:
    """The text of every page, its marked parts filled from the records.

    Args:
      results: the folder of the records.
      folder: of the pages.
      size: of the experiments in the comparison.
    """
    paths = {name: folder / f"{name}.md" for name in ("speed", "paper", "reptile_and_maml")}
    found = {
        paths["speed"]: speed_page.parts(results, paths["speed"]),
        paths["paper"]: paper_page.parts(results, paths["paper"]),
        paths["reptile_and_maml"]: comparison_page.parts(results, paths["reptile_and_maml"], size),
    }
    filled = {}
    for path, parts in found.items():
        try:
            filled[path] = tables.filled(path.read_text(), parts)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return filled


def main(argv: Sequence[str]) -> int:
    """Draws the pictures, and rewrites the marked parts of the pages."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="small", help="of the comparison")
    parser.add_argument("--out", type=Path, default=records.RESULTS, help="where results are")
    parser.add_argument("--pages", type=Path, default=PAGES, help="the folder of the pages")
    args = parser.parse_args(argv)
    speed_page.draw(args.out)
    paper_page.draw(args.out)
    comparison_page.draw(args.out, args.size)
    for path, text in pages(args.out, args.pages, args.size).items():
        path.write_text(text)
        print(path, flush=True)
    return 0
