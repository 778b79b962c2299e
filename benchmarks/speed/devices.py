"""A meta step on one and on two virtual CPU devices, and a model of what it costs on more."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

import reptile_jax as rj
from benchmarks.speed import workloads
from benchmarks.speed.arms import learner_of
from benchmarks.tables import Table
from benchmarks.timing import interleaved, paired_ratio, process
from reptile_jax._devices import AXIS, over_devices

_THREADS = {"shared": "", "one each": "--xla_cpu_multi_thread_eigen=false"}
_SIZES = (2**12, 2**22)  # float32s in an all-reduce


def sharing(quick: bool = False) -> Table:
    """One and two devices on the same cores, and times predicted from a few measurements."""
    batches, rounds = ((5, 8), 2) if quick else ((5, 8, 16, 40), 15)
    rows, data = [], {}
    with contextlib.ExitStack() as stack:
        arms = {}
        for threads, flag in _THREADS.items():
            for devices in (1, 2):
                ask = stack.enter_context(_worker(devices, flag))
                for tasks in batches:
                    arms[f"{threads}, {devices}, {tasks}"] = _asking(ask, f"step {tasks}")
                if devices == 2:
                    for size in _SIZES:
                        arms[f"{threads}, reduce, {size}"] = _asking(ask, f"reduce {size}")
        data["times"] = interleaved(arms, repeats=rounds)
    for threads in _THREADS:
        ms = {
            key: data["times"][f"{threads}, {key}"]
            for key in [f"{d}, {n}" for d in (1, 2) for n in batches]
            + [f"reduce, {size}" for size in _SIZES]
        }
        model = data[f"model, threads {threads}"] = _model(ms, batches)
        for devices in (1, 2):
            for tasks in batches:
                times = ms[f"{devices}, {tasks}"]
                fitted = tasks in ((batches[0], batches[-1]) if devices == 1 else (8,))
                ratio = paired_ratio(ms[f"1, {tasks}"], times)
                rows.append(
                    [
                        f"{devices}, threads {threads}",
                        str(tasks),
                        f"{times['median']:.1f}",
                        "{:.1f} - {:.1f}".format(*times["quartiles"]),
                        f"{1e3 * tasks / times['median']:.0f}",
                        f"{ratio:.2f}",
                        "fitted" if fitted else f"{_predicted(model, devices, tasks):.1f}",
                    ]
                )
    return Table(
        "A meta step of o15 on virtual CPU devices, and by the cost model",
        ["devices", "tasks", "ms", "quartiles", "tasks/s", "speed-up over one", "model, ms"],
        rows,
        data,
    )


# ms = fixed + ceil(tasks / devices) · task_ms[devices] + all-reduce, where
# all-reduce = latency + bytes / bandwidth on more than one device. Fitted to one device's two
# extreme meta-batches, to eight tasks on two devices, and to the two all-reduces alone; the other
# rows are predictions.


def _model(ms, batches: tuple[int, ...]) -> dict:
    median = {name: times["median"] for name, times in ms.items()}
    few, many = batches[0], batches[-1]
    task = (median[f"1, {many}"] - median[f"1, {few}"]) / (many - few)
    fixed = median[f"1, {few}"] - few * task
    small, large = (median[f"reduce, {size}"] / _REPEATS for size in _SIZES)
    per_byte = (large - small) / (4 * (_SIZES[1] - _SIZES[0]))
    latency = small - 4 * _SIZES[0] * per_byte
    model = {
        "fixed_ms": fixed,
        "latency_ms": latency,
        "bandwidth_bytes_per_ms": 1 / per_byte,
        "all_reduce_bytes": _all_reduce_bytes(),
    }
    left = median["2, 8"] - fixed - _all_reduce_ms(model)
    return {**model, "task_ms": {1: task, 2: left / 4}}


def _predicted(model: dict, devices: int, tasks: int) -> float:
    of_device = -(-tasks // devices)
    together = _all_reduce_ms(model) if devices > 1 else 0.0
    return model["fixed_ms"] + of_device * model["task_ms"][devices] + together


def _all_reduce_ms(model: dict) -> float:
    return model["latency_ms"] + model["all_reduce_bytes"] / model["bandwidth_bytes_per_ms"]


def _all_reduce_bytes() -> int:
    """Gradients and the inner optimiser's state; losses and the like are a few bytes a task."""
    workload = workloads.few_shot("o15")
    state = workload.inner_optimizer.init(workload.params)
    return 4 * sum(leaf.size for leaf in jax.tree.leaves((workload.params, state)))


# A process has one number of devices, so each number needs a process of its own. It stays alive; an
# arm asks it for one piece of work and waits for its answer.

_REPEATS = 20  # all-reduces in one piece of work


@contextlib.contextmanager
def _worker(devices: int, flag: str) -> Iterator[Callable[[str], None]]:
    argv = ("-m", "benchmarks.speed.devices", str(devices))
    with process(*argv, flags=flag, stdin=subprocess.PIPE, bufsize=1) as worker:

        def ask(work: str) -> None:
            print(work, file=worker.stdin, flush=True)
            if worker.stdout.readline() != "done\n":
                raise RuntimeError(f"the process of {devices} devices failed at {work!r}")

        yield ask
        worker.stdin.close()


def _asking(ask: Callable[[str], None], work: str) -> Callable[[], None]:
    return lambda: ask(work)


def _serve(devices: int) -> None:
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = rj.task_mesh()
    workload = workloads.few_shot("o15")
    learner = learner_of(workload, mesh=mesh)
    state = learner.init(workload.params)
    distribution, key = rj.replicate((workload.distribution, jax.random.key(0)), mesh)

    @jax.jit
    def reduce(vector):
        mean = lambda _, vector: jax.lax.psum(vector, AXIS) / devices
        run = lambda vector, _: jax.lax.fori_loop(0, _REPEATS, mean, vector)
        return over_devices(run, mesh)(vector, jnp.zeros(devices))

    vectors = {size: rj.replicate(jnp.ones(size), mesh) for size in _SIZES}
    for line in sys.stdin:
        work, number = line.split()
        if work == "step":
            state, _ = rj.meta_steps(
                learner, state, distribution, key, num_steps=1, meta_batch=int(number)
            )
            jax.block_until_ready(state)
        else:
            jax.block_until_ready(reduce(vectors[int(number)]))
        print("done", flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
