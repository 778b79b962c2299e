"""Progress and tables; the only module that prints.

What is printed may have names from outside: of files, of classes, in a server's answer. Their
control characters are shown, escaped, and do nothing.
"""

import contextlib
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO, cast

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table
from rich.text import Text

_LINE_EVERY = 10.0  # seconds, where there is no terminal to redraw a bar on
# What moves the cursor, colours, ends a line, or turns the direction of writing; and the bytes of a
# file's name that are no text.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class _Output:
    """Standard output, given up where it fails: a training is not to end because its log does.

    Lines, tables, bars, and the thread that redraws a bar all write here.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(_of_the_process(sys.stdout), name)

    def write(self, text: str) -> int:
        with _going_on():
            _of_the_process(sys.stdout).write(text)
        return len(text)

    def flush(self) -> None:
        with _going_on():
            _of_the_process(sys.stdout).flush()


def _of_the_process(stream: TextIO) -> TextIO:
    """The stream itself: while a bar is drawn, Rich puts its own in front of it."""
    return getattr(stream, "rich_proxied_file", stream)


_console = Console(file=cast(TextIO, _Output()))
_lost = False


def be_quiet() -> None:
    """Prints nothing from here on but why a command failed."""
    _console.quiet = True


def say(*lines: str) -> None:
    """Prints lines as they are."""
    for line in lines:
        shown = _escaped(line)
        _console.print(shown, markup=False, highlight=False, emoji=False, soft_wrap=True)


def fail(message: str) -> None:
    """Prints what went wrong, on standard error, if that is not closed as well."""
    with contextlib.suppress(OSError, ValueError):
        stream = _of_the_process(sys.stderr)
        print(f"reptile-jax: {_escaped(message)}", file=stream, flush=True)


def _escaped(text: str) -> str:
    """The text with its control characters as Python writes them: a line that does nothing."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def lost() -> bool:
    """Whether something could not be printed, other than to a reader who had seen enough."""
    return _lost


@contextlib.contextmanager
def _going_on() -> Iterator[None]:
    """Inside, an output that fails is given up; the first time, standard error says so."""
    global _lost
    try:
        yield
    except OSError as error:
        _console.quiet = True
        with contextlib.suppress(OSError, ValueError):  # what is still buffered goes nowhere
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), _of_the_process(sys.stdout).fileno())
        if not isinstance(error, BrokenPipeError):
            _lost = True
            fail(f"standard output: {error.strerror}; going on without it")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table, whole: its first column is of names, and nothing is cut off.

    Where a terminal is too narrow for it, the table is turned, its rows as columns; where that is
    too wide as well, each row is a paragraph. Lines break between words and figures, not in them.
    """
    title, cells = _escaped(title), [[*map(_escaped, row)] for row in (columns, *rows)]
    turned = [list(column) for column in zip(*cells, strict=True)]
    # A file or a pipe has no width to fit.
    width = _console.width if _console.is_terminal else max(_width(cells), cell_len(title))
    fitting = next((grid for grid in (cells, turned) if _width(grid) <= width), None)
    console = Console(file=_console.file, width=width, quiet=_console.quiet)
    console.print(Text(title))
    console.print(_paragraphs(cells, width) if fitting is None else _drawn(fitting))


def _width(grid: Sequence[Sequence[str]]) -> int:
    """The columns of a terminal that a table takes, with its lines and margins."""
    return sum(max(map(cell_len, column)) + 3 for column in zip(*grid, strict=True)) + 1


def _paragraphs(cells: Sequence[Sequence[str]], width: int) -> Text:
    """The names of the columns, then each row as its name and what it has by column."""
    (corner, *columns), *rows = cells
    paragraphs = [(corner, columns)]
    for name, *values in rows:
        paragraphs.append((name, [f"{c}: {v}" for c, v in zip(columns, values, strict=True)]))
    lines = []
    for name, parts in paragraphs:
        joined = ", ".join(part.replace(" ", "\xa0") for part in parts)  # lines break between parts
        indent = {"initial_indent": "  ", "subsequent_indent": "  "}
        wrapped = textwrap.wrap(joined, width, break_on_hyphens=False, **indent)
        lines += [name, *(line.replace("\xa0", " ") for line in wrapped)]
    return Text("\n".join(lines), overflow="fold")


def _drawn(grid: Sequence[Sequence[str]]) -> Table:
    """The first column flush left, the others right."""
    header, *rows = grid
    drawn = Table()
    for index, name in enumerate(header):
        drawn.add_column(Text(name), justify="right" if index else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*map(Text, row))  # as it is: a file's name is no markup
    return drawn


class Bar:
    """A progress bar with rate and time left; without a terminal, a line every ten seconds.

    with Bar("training", total=1000, unit="meta steps") as bar:
        bar.update(100, "loss 0.5")
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0):
        self._title, self._total, self._unit = _escaped(title), total, unit
        self._first = done
        self._start = self._last_line = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(40 if _console.width > 110 else 8),  # figures come first
            TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
            TextColumn(
                "{task.fields[note]}", markup=False, table_column=Column()
            ),  # the first to be wrapped
            TimeRemainingColumn(),
            console=_console,
            disable=not _console.is_terminal,
        )
        self._task = self._progress.add_task(
            self._title, total=total, completed=done, unit=unit, note=""
        )

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` of the total are done, and a note such as the loss."""
        now = time.monotonic()
        rate, note = (done - self._first) / max(now - self._start, 1e-9), _escaped(note)
        self._progress.update(self._task, completed=done, note=f"{rate:,.1f}/s  {note}")
        if not _console.is_terminal and (
            now - self._last_line > _LINE_EVERY or done == self._total
        ):
            self._last_line = now
            left = (self._total - done) / max(rate, 1e-9)
            say(
                f"{self._title}: {done:,}/{self._total:,} {self._unit}, {rate:,.1f}/s, "
                f"{left:,.0f} s left  {note}"
            )

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


class Downloads:
    """Shows downloads; as a context it is the callback that `download` takes."""

    def __init__(self):
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=_console,
            disable=not _console.is_terminal,
        )

    def __enter__(self) -> "Downloads":
        self._progress.start()
        return self

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """Shows that `done` bytes of `name` are there, of `total` if that is known."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(_escaped(name))
        self._progress.update(self._tasks[name], completed=done, total=total)

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
