"""Tables: in the terminal, in Markdown, and between the markers of a page."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Table(NamedTuple):
    """What a measurement found."""

    title: str
    columns: Sequence[str]  # the first one is words, the others are figures
    rows: Sequence[Sequence[str]]
    data: Any = None  # all that was measured


# The 97.5% quantile of Student's t, by the number of values.
_STUDENT = dict(
    zip(range(2, 11), (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262), strict=True)
)


def interval(values: Sequence[float], digits: int, sign: str = "") -> str:
    """The mean and Student's 95% interval over 2 to 10 trainings; the mean alone of one."""
    mean = f"{np.mean(values):{sign}.{digits}f}"
    if len(values) == 1:
        return mean
    half = _STUDENT[len(values)] * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean} ± {half:.{digits}f}"


def show(table: Table) -> None:
    """Prints a table."""
    from rich.console import Console
    from rich.table import Table as Drawn

    drawn = Drawn(title=table.title, title_justify="left")
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if index else "left")
    for row in table.rows:
        drawn.add_row(*row)
    Console(width=140).print(drawn)


def markdown(
    columns: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[str] = ()
) -> str:
    """A table in Markdown; figures are aligned to the right.

    Args:
      words: columns of words, besides the first.
    """
    if not rows:
        return "Not measured yet."
    rule = ["---" if i == 0 or name in words else "---:" for i, name in enumerate(columns)]
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join(rule)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def link(text: str, path: Path, page: Path) -> str:
    """A link from a page to a file."""
    return f"[{text}]({_relative(path, page)})"


def picture(text: str, path: Path, page: Path) -> str:
    """A picture on a page; nothing if it has not been drawn."""
    return f"![{text}]({_relative(path, page)})" if path.exists() else ""


def _relative(path: Path, page: Path) -> str:
    return Path(os.path.relpath(path, page.parent)).as_posix()


def source(record: Mapping[str, Any], path: Path, page: Path) -> str:
    """Under a table: the command, the record, the machine and the versions."""
    on = record["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in on["versions"].items() if k != "numpy")
    return (
        f"`{record['command']}`, {link(path.name, path, page)}; {on['cpu']}, {on['cores']} cores, "
        f"{on['device']}; {versions}; {on['date']}."
    )


def filled(text: str, parts: Mapping[str, str]) -> str:
    """The text of a page with its marked parts replaced.

    A part is between `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
      ValueError: if the page marks a part that is not in `parts`, or lacks one that is.
    """
    marked = re.findall(r"<!-- end of (.*?) -->", text)
    if odd := set(marked) ^ set(parts):
        raise ValueError(f"in the page or in the results, but not in both: {sorted(odd)}.")
    for name in marked:
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(start)
        if not found:
            raise ValueError(f"the page has {end} but not {start}.")
        text = f"{before}{start}\n\n{parts[name].strip()}\n\n{end}{rest.partition(end)[2]}"
    return text
