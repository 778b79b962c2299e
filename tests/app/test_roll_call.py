"""Processes that find each other before JAX joins them: here threads, each with its own socket."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from reptile_jax.app import roll_call

pytestmark = pytest.mark.attack


@pytest.fixture
def coordinator():
    """An address of this machine whose port is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def outcomes(coordinator, *roles, seconds=20.0):
    """What each of several processes is told, by (index, number): None, or why it cannot join."""

    def join(role):
        index, number = role
        try:
            roll_call.hold(coordinator, number, index, seconds)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(roles)) as pool:
        return list(pool.map(join, roles))


@pytest.mark.parametrize("number", [1, 2, 5])
def test_processes_that_are_all_there_go_on(number, coordinator):
    roles = [(index, number) for index in range(number)]
    assert outcomes(coordinator, *roles) == [None] * number
    assert outcomes(coordinator, *roles[::-1]) == [None] * number  # the port is free again


def test_an_index_that_is_given_twice_is_named_by_all(coordinator):
    said = outcomes(coordinator, (0, 4), (2, 4), (2, 4))
    assert said == ["two processes have --process-index 2: give each its own."] * 3


def test_a_second_first_process_is_named_by_both(coordinator):
    said = outcomes(coordinator, (0, 2), (0, 2))
    assert "two processes have --process-index 0: give each its own." in said
    assert any("or another process with --process-index 0" in each for each in said)


def test_numbers_of_processes_that_differ_are_named(coordinator):
    said = outcomes(coordinator, (0, 2), (2, 3))
    assert said == ["--num-processes is 2 here, and another in process 2."] * 2


def test_a_port_that_is_taken_is_named_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (said,) = outcomes(f"127.0.0.1:{port}", (0, 2))
    assert f"port {port} of this machine cannot be used (Address already in use)" in said
    assert "Give another port with --coordinator" in said


def test_processes_that_do_not_come_are_named(coordinator):
    said = outcomes(coordinator, (0, 4), (2, 4), seconds=0.5)
    assert said == ["the processes 1, 3 of 4 did not come in time."] * 2
    (said,) = outcomes(coordinator, (1, 2), seconds=0.5)
    assert f"process 0 does not answer at {coordinator} (" in said


def test_what_else_speaks_to_the_port_is_not_heard(coordinator):
    host, _, port = coordinator.rpartition(":")
    garbage = [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 2000, b"{}\n", b'{"from": "reptile_jax"}\n', b""]

    def disturb():
        for content in garbage:
            while True:
                try:
                    with socket.create_connection((host, int(port)), 5) as other:
                        other.sendall(content)
                    break
                except OSError:
                    continue

    first = threading.Thread(target=disturb)
    first.start()
    with ThreadPoolExecutor(1) as pool:
        called = pool.submit(outcomes, coordinator, (0, 2))
        first.join()
        assert outcomes(coordinator, (1, 2)) == [None]
        assert called.result() == [None]


def test_a_process_that_was_ended_may_come_again(coordinator):
    host, _, port = coordinator.rpartition(":")
    with ThreadPoolExecutor(1) as pool:
        called = pool.submit(outcomes, coordinator, (0, 3))
        while True:
            try:
                with socket.create_connection((host, int(port)), 5) as ended:
                    ended.sendall(b'{"from": "reptile_jax", "index": 1, "number": 3}\n')
                break
            except OSError:
                continue
        assert outcomes(coordinator, (1, 3), (2, 3)) == [None, None]
        assert called.result() == [None]


def test_something_else_in_place_of_the_first_process_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        def speak():
            with other.accept()[0] as connection:
                connection.sendall(b"220 mail\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        (said,) = outcomes(f"127.0.0.1:{port}", (1, 2))
        thread.join()
    assert f"what answers at 127.0.0.1:{port} is not process 0" in said
