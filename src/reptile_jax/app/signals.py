"""SIGINT, SIGTERM and SIGHUP: the first asks to stop, a second one leaves at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

# A terminal that is closed; Windows has no such signal.
_HANGUP = getattr(signal, "SIGHUP", None)
_SIGNALS = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, _HANGUP)))


class Interrupted(KeyboardInterrupt):
    """Work that a signal ended; the message says how to go on with it.

    `together`: all processes that work on it have agreed to stop here.
    """

    def __init__(self, signum: int, message: str = "interrupted", *, together: bool = False):
        super().__init__(message)
        self.signum, self.together = signum, together


def interrupt(signum: int) -> None:
    """Ends the work at once."""
    raise Interrupted(signum)


def leave(status: int) -> NoReturn:
    """Ends the process at once, without the interpreter's own end.

    Where a signal has ended a computation, XLA's threads may still compile it: they would use what
    the interpreter's end destroys. Nor are there threads to be waited for, which read files, say.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


@contextlib.contextmanager
def handled(
    act: Callable[[int], None], at_once: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Inside, the first signal is handed to `act` and a second one ends the process.

    SIGHUP is left alone where it is ignored, as under `nohup`. It is never the second: of one
    closed terminal it comes from the shell and from the system.

    The main thread can be inside a compiled program for minutes, where Python's handlers wait. So
    the signals also wake a thread, which calls `at_once` at the first and leaves at the second.
    What handled the signals before does so again afterwards. Outside the main thread, where Python
    allows no handlers, nothing is handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def handler(signum: int, _) -> None:
        seen.append(signum)
        if len(seen) == 1:
            act(signum)

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_watch, args=(reading, at_once), daemon=True).start()
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    is_ignored = lambda signum: signum == _HANGUP and signal.getsignal(signum) is signal.SIG_IGN
    numbers = [signum for signum in _SIGNALS if not is_ignored(signum)]
    before = {signum: signal.signal(signum, handler) for signum in numbers}
    try:
        yield
    finally:
        for signum, handler_before in before.items():
            signal.signal(signum, handler_before)
        signal.set_wakeup_fd(woken)
        os.close(writing)  # which ends the thread


def _watch(reading: int, at_once: Callable[[], None]) -> None:
    seen = 0
    while byte := os.read(reading, 1):
        if byte[0] in _SIGNALS:
            seen += 1
            if seen == 1:
                at_once()
            elif byte[0] != _HANGUP:
                if sys.stdout.isatty():
                    with contextlib.suppress(OSError):
                        os.write(1, b"\x1b[?25h\n")  # the cursor that a progress bar hides
                os._exit(128 + byte[0])
    os.close(reading)
