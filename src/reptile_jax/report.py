"""Progress and tables; the only module that prints."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

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
from rich.table import Table
from rich.text import Text

_LINE_EVERY = 10.0  # seconds, where there is no terminal to redraw a bar on


class _Console(Console):
    def on_broken_pipe(self) -> None:  # Rich's own ends the process
        raise


_console = _Console()
_lost = False


def be_quiet() -> None:
    """Prints nothing from here on but why a command failed."""
    _console.quiet = True


def say(message: str) -> None:
    """Prints one line as it is."""
    with _going_on():
        _console.print(message, markup=False, highlight=False, emoji=False, soft_wrap=True)


def fail(message: str) -> None:
    """Prints what went wrong, on standard error."""
    print(f"reptile-jax: {message}", file=sys.stderr)


def lost() -> bool:
    """Whether something could not be printed, other than to a reader who had seen enough."""
    return _lost


@contextlib.contextmanager
def _going_on() -> Iterator[None]:
    """Inside, an output that fails is given up: a training is not to end because its log does."""
    global _lost
    try:
        yield
    except OSError as error:
        _console.quiet = True
        with contextlib.suppress(OSError, ValueError):  # what it still holds goes nowhere
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            _lost = True
            fail(f"standard output: {error.strerror}; going on without it")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table; the first column is flush left, the others right."""
    drawn = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(columns):
        if index:
            drawn.add_column(Text(column), justify="right", no_wrap=True)
        else:
            drawn.add_column(Text(column), overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))  # as it is: a file's name is no markup
    # A file or a pipe has no width to fit.
    width = None if _console.is_terminal else 160
    with _going_on():
        _Console(width=width, quiet=_console.quiet).print(drawn)


class Bar:
    """A progress bar with rate and time left; without a terminal, a line every ten seconds.

    with Bar("training", total=1000, unit="meta steps") as bar:
        bar.update(100, "loss 0.5")
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0):
        self._title, self._total, self._unit = title, total, unit
        self._first = done
        self._start = self._last_line = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=_console,
            disable=not _console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, unit=unit, note="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` of the total are done, and a note such as the loss."""
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._start, 1e-9)
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
    """Shows downloads; as a context it is the callback that `download` wants."""

    def __init__(self):
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
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
            self._tasks[name] = self._progress.add_task(name)
        self._progress.update(self._tasks[name], completed=done, total=total)

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
