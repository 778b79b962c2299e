"""Processes that are to work as one find each other, before JAX joins them.

Each says its index to the first process, which answers when all are there, and that one is not
there, or twice. JAX itself would end processes that do not fit together, without a word to a
person, after minutes. It is called on the coordinator's port, which is JAX's afterwards.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

_HELLO = "reptile_jax"
_AGAIN = 0.2  # seconds until a process that was not answered asks again


def hold(coordinator: str, number: int, index: int, seconds: float) -> None:
    """Waits until all processes are there.

    Args:
      coordinator: HOST:PORT of the first process.
      number: of processes.
      index: of this one.
      seconds: how long to wait.

    Raises:
      ValueError: if they do not come, or an index comes twice, or the port is taken.
    """
    host, _, port = coordinator.rpartition(":")
    address = host.strip("[]"), int(port)
    end = time.monotonic() + seconds
    if index:
        # What the first process has to say it says at the end of its own time, at the latest.
        answered = lambda: _asked(address, {"index": index, "number": number}, seconds + 5)
        _answer(answered, coordinator, end)
    else:
        _call(address, number, end)


def is_loopback(host: str) -> bool:
    """Whether processes of this machine alone can reach the host."""
    return host in ("localhost", "127.0.0.1", "::1", "[::1]")


def _call(address: tuple[str, int], number: int, end: float) -> None:
    """The first process's part: hears the others, and answers them all."""
    problem, there = None, {}
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_listening(address, number))
        while problem is None:
            # One that has ended meanwhile may come again.
            there = {at: other for at, other in there.items() if not _has_left(other)}
            if len(there) == number - 1:
                break
            missing = ", ".join(str(i) for i in range(1, number) if i not in there)
            listening.settimeout(max(end - time.monotonic(), 0.01))
            try:
                heard = stack.enter_context(listening.accept()[0])
            except TimeoutError:
                problem = f"the processes {missing} of {number} did not come in time"
                continue
            told = _received(heard, 1.0)
            if told is None or type(told.get("index")) is not int:  # it is none of them
                heard.close()
                continue
            index = told.get("index")
            if told.get("number") != number:
                problem = f"--num-processes is {number} here, and another in process {index}"
            elif index == 0 or (index in there and not _has_left(there[index])):
                problem = f"two processes have --process-index {index}: give each its own"
            there[index if problem is None else "other"] = heard
        for heard in there.values():
            with contextlib.suppress(OSError):
                heard.settimeout(1.0)
                heard.sendall(_line({"problem": problem}))
                heard.shutdown(socket.SHUT_WR)
                _received(heard, 1.0)  # the other closes first, which leaves the port free
    if problem:
        raise ValueError(f"{problem}.")


def _answer(answered: Callable[[], dict[str, Any] | None], coordinator: str, end: float) -> None:
    """The part of every other process: asks the first until it answers."""
    while True:
        try:
            answer = answered()
            break
        except OSError as error:  # it has not begun, or has just ended
            if time.monotonic() + _AGAIN > end:
                raise ValueError(
                    f"process 0 does not answer at {coordinator} ({error}): start it there, or "
                    "give its address with --coordinator."
                ) from error
            time.sleep(_AGAIN)
    if answer is None:
        raise ValueError(
            f"what answers at {coordinator} is not process 0, or process 0 has ended or begun: see "
            "what it said."
        )
    if answer.get("problem"):
        raise ValueError(f"{answer['problem']}.")


def _asked(address: tuple[str, int], told: dict[str, int], seconds: float) -> dict[str, Any] | None:
    """What the first process answers."""
    with socket.create_connection(address, timeout=5) as first:
        first.sendall(_line(told))
        return _received(first, seconds)


def _listening(address: tuple[str, int], number: int) -> socket.socket:
    """A socket as JAX's coordinator will have it."""
    host, port = address
    try:
        if is_loopback(host):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        with contextlib.suppress(OSError):  # so that a process 0 there knows it too
            _asked((host or "localhost", port), {"index": 0, "number": number}, 1.0)
        raise ValueError(
            f"port {port} of this machine cannot be used ({os.strerror(error.errno or 0)}): "
            "another program has it, or another process with --process-index 0. Give another "
            "port with --coordinator, to all processes."
        ) from error


def _line(told: dict[str, Any]) -> bytes:
    return json.dumps({"from": _HELLO, **told}).encode() + b"\n"


def _received(connection: socket.socket, seconds: float) -> dict[str, Any] | None:
    """The line that the other says, or None if it is none of ours, or none in time."""
    connection.settimeout(seconds)
    with contextlib.suppress(OSError, ValueError, RecursionError):
        told = json.loads(connection.makefile("rb").readline(1000))
        if isinstance(told, dict) and told.get("from") == _HELLO:
            return told
    return None


def _has_left(connection: socket.socket) -> bool:
    """Whether the other end has closed the connection."""
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
