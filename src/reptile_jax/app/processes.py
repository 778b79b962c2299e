"""One command on many devices, and in many processes that work as one.

Every process runs the same program on the same data and has the same state. The first one keeps
the run's folder; each of the others has one of its own, which it throws away at the end. So nothing
else has to know how many processes there are.
"""

import contextlib
import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

import reptile_jax as rj
from reptile_jax.app import roll_call, signals, terminal

_SILENCE = 30  # seconds after which a process that is not heard of is taken for dead
_GOODBYE = 60  # seconds that the first to finish waits for the others
_START = 120  # seconds that processes wait for each other to start


@dataclasses.dataclass(frozen=True)
class Sharing:
    """Which devices share the tasks of a meta step."""

    # Of this process; by default all its GPUs or TPUs, where more than one help; else 1.
    devices: int | None = None
    distributed: bool = False  # this is one of several processes, all with the same command
    coordinator: str | None = None  # HOST:PORT of process 0; by default as the cluster has it
    num_processes: int | None = None  # by default as the cluster has it
    process_index: int | None = None  # from 0; by default as the cluster has it

    @property
    def where(self) -> tuple[str | None, int | None, int | None]:
        """How the processes find each other, as far as it is given."""
        return self.coordinator, self.num_processes, self.process_index

    def problem(self) -> str | None:
        """What is wrong with the values, if anything."""
        if self.devices is not None and self.devices < 1:
            return f"--devices is at least 1, got {self.devices}."
        if not self.distributed and self.where != (None, None, None):
            return "--coordinator, --num-processes and --process-index go with --distributed."
        host, _, port = (self.coordinator or "").rpartition(":")
        if self.coordinator is not None and not (host and port.isdigit() and int(port) < 2**16):
            return f"--coordinator is HOST:PORT, got {self.coordinator!r}."
        number, index = self.num_processes, self.process_index
        if number is not None and number < 1:
            return f"--num-processes is at least 1, got {number}."
        if index is not None and not 0 <= index < (number or 2**31):
            return f"--process-index is 0 to --num-processes less 1, got {index} of {number}."
        return None


@contextlib.contextmanager
def joined(
    sharing: Sharing, folder: Path | None, *, share: bool = True
) -> Iterator[tuple[Mesh | None, Any]]:
    """Joins the other processes, and gives the mesh and the folder that this process is to use.

    It has to come before anything else uses JAX. One of several processes that fails, or that a
    signal ends alone, ends here, at once: the others wait for it, and are to learn that it is gone.

    Args:
      folder: of the run, new or old.
      share: whether all GPUs or TPUs of a single process take part unless told otherwise.

    Yields:
      The mesh, None for one device; and `folder`, or what this process has instead.

    Raises:
      ValueError: for devices that are not there, and for options that contradict each other.
    """
    _start(sharing)
    if jax.process_count() == 1:
        yield _mesh(sharing, share), folder
        return
    try:
        mesh = _mesh(sharing, share)
        with _own_folder(folder) as own:
            yield mesh, own
    except signals.Interrupted as stop:
        if stop.together:
            jax.distributed.shutdown()
            raise
        _leave(128 + stop.signum, str(stop))
    except Exception as error:
        _leave(1, _explained(error))


def _leave(status: int, message: str) -> NoReturn:
    terminal.fail(f"process {jax.process_index()}: {message}")
    signals.leave(status)


def _explained(error: Exception) -> str:
    """What an error means that ends one of several processes."""
    message = str(error)
    # XLA's errors start with the kind. This one is of the process itself, as most others are not.
    if not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" in message:
        return message
    return (
        "the processes have lost each other: one has died, or cannot be reached. Start all again; "
        f"a run goes on from its newest checkpoint with --resume. ({message[:300]})"
    )


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them have to ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def check_told_the_same(config: Any) -> None:
    """Raises a ValueError unless all processes have the same configuration; all have to ask.

    Rates and numbers of steps are constants of each process's own program, so nothing else would
    notice: parameters would drift apart, or a process wait for ever.
    """
    if jax.process_count() == 1:
        return
    told = np.frombuffer(hashlib.blake2b(repr(config).encode()).digest(), np.uint8)
    if (multihost_utils.process_allgather(told) != told).any():
        raise ValueError(
            "the processes were not all told the same: give each the same options, and run the "
            f"same version. This one has {config}."
        )


def _start(sharing: Sharing) -> None:
    if problem := sharing.problem():
        raise ValueError(problem)
    if sharing.devices is not None:
        # Where JAX has started, as in a notebook, its devices are what they are.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", sharing.devices)
    if not sharing.distributed:
        return
    # SIGTERM is to end a process, or to be handled here.
    jax.config.update("jax_enable_preemption_service", False)
    terminal.say(f"waiting for the other processes, {_START} s at most")
    coordinator, number, index = sharing.where
    hint = " Give --coordinator HOST:PORT, --num-processes, --process-index."
    detect, bound = None, None
    try:
        if coordinator is not None and number is not None and index is not None:
            hint, detect = "", "deactivate"
            roll_call.hold(coordinator, number, index, _START)
            is_local = roll_call.is_loopback(coordinator.rpartition(":")[0])
            bound = coordinator if is_local else None
        jax.distributed.initialize(
            *sharing.where,
            cluster_detection_method=detect,
            coordinator_bind_address=bound,
            initialization_timeout=_START,
            heartbeat_timeout_seconds=_SILENCE,
            shutdown_timeout_seconds=_GOODBYE,
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the processes cannot be joined: {error}{hint}") from error
    if jax.process_index():
        terminal.be_quiet()


def _mesh(sharing: Sharing, share: bool) -> Mesh | None:
    there = len(jax.local_devices())
    by_default = there if share and jax.default_backend() != "cpu" else 1
    number = sharing.devices or by_default
    problem = None
    if number > there:
        problem = f"--devices {number}, but JAX has {there} here: {jax.local_devices()}."
    numbers = [len(jax.local_devices(process)) for process in range(jax.process_count())]
    if problem is None and len(set(numbers)) > 1:
        problem = (
            f"the processes have unequal numbers of devices, {numbers}: give each the same "
            "--devices, on hosts that are alike."
        )
    if problem:  # every process finds the second, before they talk to each other
        raise ValueError(problem)
    check_told_the_same(f"--devices {number}")
    if number * jax.process_count() == 1:
        return None
    first = lambda process: jax.local_devices(process)[:number]
    return rj.task_mesh([d for process in range(jax.process_count()) for d in first(process)])


@contextlib.contextmanager
def _own_folder(folder: Path | None) -> Iterator[Path | None]:
    """The folder, for the first process; for the others a copy of it, as it is now."""
    with tempfile.TemporaryDirectory(prefix="reptile-jax-") as own:
        if jax.process_index():
            copy = Path(own) / "run"
            if folder and folder.is_dir():
                shutil.copytree(folder, copy)
            folder = copy
        multihost_utils.sync_global_devices("every process has its folder")
        yield folder
