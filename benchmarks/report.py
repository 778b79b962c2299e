"""Writes the tables and pictures of the documentation from the records alone."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import records, tables
from benchmarks.comparison import page as comparison_page
from benchmarks.comparison.contest import SIZES
from benchmarks.paper import page as paper_page
from benchmarks.robustness import attack
from benchmarks.speed import page as speed_page
from benchmarks.uses import page as uses_page

PAGES = Path(__file__).parent.parent / "docs"


def pages(results: Path, folder: Path, size: str) -> dict[Path, str]:
    """The text of every page, its marked parts filled from the records.

    Args:
      results: the folder of the records.
      folder: of the documentation.
      size: of the experiments in the comparison.
    """
    speed, estimates, paper, recipes, comparison = (
        folder / "results" / f"{name}.md"
        for name in ("speed", "estimates", "paper", "recipes", "reptile_and_maml")
    )
    uses = [folder / "uses" / f"{name}.md" for name in uses_page.PAGES]
    found = {
        speed: speed_page.parts(results, speed),
        estimates: speed_page.estimates(results, estimates),
        paper: paper_page.parts(results, paper),
        recipes: paper_page.tried(results, recipes),
        comparison: comparison_page.parts(results, comparison, size),
        **{page: uses_page.parts(results, page) for page in uses},
        folder / "promises.md": attack.parts(results, folder / "promises.md"),
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
    parser.add_argument("--pages", type=Path, default=PAGES, help="the folder docs")
    args = parser.parse_args(argv)
    speed_page.draw(args.out)
    paper_page.draw(args.out)
    comparison_page.draw(args.out, args.size)
    for path, text in pages(args.out, args.pages, args.size).items():
        path.write_text(text)
        print(path, flush=True)
    return 0
