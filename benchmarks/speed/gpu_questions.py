"""The questions that `gpu` asks. Each is a list of cells, the most important first."""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from benchmarks import timing
from benchmarks.speed import arms, convolutions, correctness, hlo, workloads
from benchmarks.speed.correctness import PRECISIONS
from benchmarks.speed.meta_steps import at_meta_batch
from benchmarks.speed.programs import FORMULATIONS

# The labels of a row, and a function that measures it: its figures as words, and all data.
Cells: TypeAlias = Iterator[tuple[list[str], Callable[[], tuple[list[str], dict[str, Any]]]]]


class Question(NamedTuple):
    """A table to be measured."""

    cells: Callable[[bool], Cells]  # of `quick`
    title: str
    labels: tuple[str, ...]  # columns that name a row; with several flag sets, theirs comes first
    values: tuple[str, ...]  # columns of figures
    weight: float  # share of the time
    flags: Mapping[str, str] = MappingProxyType({"default": ""})  # XLA_FLAGS by name


def limits(quick: bool) -> Cells:
    """The device's own speed: a large matrix product in each precision, and a large copy."""
    for name in PRECISIONS:
        yield ["matrix product", name], functools.partial(_rated, name, quick)
    yield ["copy", ""], functools.partial(_copied, quick)


def _rated(name: str, quick: bool) -> tuple[list[str], dict[str, Any]]:
    rate, times = matmul_rate(PRECISIONS[name], quick, bfloat16=name == "bfloat16")
    return [f"{rate / 1e9:,.0f} GFLOP/s"], times


def _copied(quick: bool) -> tuple[list[str], dict[str, Any]]:
    rate, times = bandwidth(quick)
    return [f"{rate / 1e9:,.0f} GB/s"], times


def matmul_rate(precision: str | None, quick: bool, *, bfloat16: bool = False):
    """Floating-point operations a second of a large product, and the times behind it."""
    size = 256 if quick else 8192
    draw = lambda seed: jax.random.normal(jax.random.key(seed), (size, size))
    a, b = (draw(seed).astype(jnp.bfloat16 if bfloat16 else jnp.float32) for seed in (0, 1))
    with jax.default_matmul_precision(precision):
        times = _timed(functools.partial(jax.jit(jnp.matmul), a, b), quick)
    return 2 * size**3 / times["median"] * 1e3, times


def bandwidth(quick: bool):
    """Bytes a second, read and written, of a large copy, and the times behind it."""
    size = 2**18 if quick else 2**29
    array = jnp.ones(size, jnp.float32)
    times = _timed(functools.partial(jax.jit(lambda x: x + 1), array), quick)
    return 8 * size / times["median"] * 1e3, times


def _timed(arm: Callable[[], Any], quick: bool) -> dict[str, Any]:
    seconds, repeats = (0.01, 2) if quick else (0.15, 5)
    return timing.interleaved({"arm": arm}, repeats=repeats, seconds=seconds)["arm"]


def throughput(quick: bool) -> Cells:
    """Tasks per second by the size of the meta-batch, with the library's defaults.

    The last columns are shares of the measured speed of batched bare products, of a large product
    and of a large copy. For the copy, a task moves each operand and result of its products once;
    the rest of its traffic does not count.
    """
    # Side by side at most, by what a task takes of the memory.
    most = {"o15": 1024, "o120": 512, "m15": 128, "sinusoid": 4096}
    sizes = (("o15", 5), ("o15", 1000), ("sinusoid", 5), ("sinusoid", 1000), ("m15", 5))
    sizes += (("o120", 5), ("m15", 128), ("o120", 512), ("o15", 50), ("o15", 1), ("o15", 4096))
    sizes += (("sinusoid", 4096), ("sinusoid", 1), ("o120", 1), ("m15", 1), ("m15", 1024))
    measured = functools.cache(lambda: (matmul_rate(None, quick)[0], bandwidth(quick)[0]))
    for name, number in (("sinusoid", 2),) if quick else sizes:

        def cell(name=name, number=number):
            workload = workloads.named(name)
            row, data = at_meta_batch(workload, number, 3, min(number, most[name]))
            per_second = number / data["ours"]["median"] * 1e3
            flops, bytes_moved = measured()
            data |= {"matmul_flops": flops, "copy_bytes": bytes_moved}
            of_flops = per_second * workload.flops / flops
            of_bytes = per_second * workload.bytes / bytes_moved
            return [*row[1:], f"{of_flops:.1%}", f"{of_bytes:.1%}"], data

        yield [name, f"{number:,}"], cell


def chunks(quick: bool) -> Cells:
    """A meta step of 64 tasks, by the tasks at once and the networks' convolution.

    `compile` asks this of compilers. Their estimate is next to the time, which has the rest of the
    meta step and the launches as well.
    """
    races = [
        ("o15", (None, 16, 32, 64, 8, 4, 1)),
        ("m15", (None, 4, 16, 64, 1)),
        ("o120", (None, 16, 64, 4, 1)),
        ("sinusoid", (None, 64, 16, 1)),
    ]
    for name, sizes in [("sinusoid", (None, 2))] if quick else races:
        ways = ("default",) if name == "sinusoid" else FORMULATIONS
        for at_once, way in itertools.product(sizes, ways):
            label = "default" if at_once is None else str(at_once)
            yield [name, label, way], functools.partial(_chunked, name, at_once, way, quick)


def _chunked(name, at_once, way, quick) -> tuple[list[str], dict[str, Any]]:
    workload, number = workloads.named(name), 4 if quick else 64
    learner, tasks = arms.learner_of(workload, at_once), workload.tasks(number)
    states = [learner.init(workload.params)]
    begun = time.perf_counter()
    with FORMULATIONS[way]():
        compiled = learner.step.lower(states[0], tasks).compile()
    seconds = time.perf_counter() - begun
    found = hlo.Program(compiled.as_text())

    def arm():
        state, info = compiled(states.pop(), tasks)
        states.append(state)
        return info

    times = _timed(arm, quick)
    steps = number * workload.steps
    data = {
        "kernels": sum(run.kernels for run in found.inner),
        "estimate_us": sum(run.cost * run.times for run in found.inner) / steps,
        "calls_without_estimate": found.calls_without_cost,
        "lines": found.lines()[:8],
        "compile_s": seconds,
    }
    each = f"{1e3 * times['median'] / steps:.2f}"
    row = [f"{times['median']:.3f}", each, f"{data['estimate_us']:.2f}", f"{data['kernels']}"]
    return [*row, f"{data['calls_without_estimate']}", f"{seconds:.1f}"], {**times, **data}


def formulations(quick: bool) -> Cells:
    """A training step of the second layer of both networks, tasks side by side under `vmap`.

    "batch groups" is XLA's convolution with the kernels' gradient in the form of `grad(vmap)`.
    """
    ways = [convolutions.ours, convolutions.batch_groups, convolutions.native]
    ways += [convolutions.shifted_slices, convolutions.nine_products]
    layers = convolutions.LAYERS[3:4] if quick else (convolutions.LAYERS[1], convolutions.LAYERS[5])
    numbers = (2,) if quick else (5, 50, 500, 2000)
    slow: set[tuple] = set()
    for layer, precision, tasks, way in itertools.product(layers, PRECISIONS, numbers, ways):

        def cell(layer=layer, precision=precision, tasks=tasks, way=way):
            size, fan_in, fan_out, stride, batch = layer
            if (way, layer) in slow:
                return ["left out: compiling it took over 20 s with fewer tasks"], {}
            draw = lambda *shape: jax.random.normal(jax.random.key(tasks), (tasks, *shape))
            kernel, image = draw(3, 3, fan_in, fan_out), draw(batch, size, size, fan_in)
            dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
            with jax.default_matmul_precision(PRECISIONS[precision]):
                run = convolutions.training(way, stride, 5, dtype=dtype)
                times = _timed(functools.partial(run, kernel, image), quick)
            if times["first_s"] > 20:
                slow.add((way, layer))
            each = times["median"] / 5
            out = -(-size // stride)
            flops = 6 * tasks * batch * out * out * 9 * fan_in * fan_out
            return [f"{each:.3f}", f"{flops / each / 1e6:,.0f}", f"{times['first_s']:.1f}"], times

        size, fan_in, _, stride, _ = layer
        label = f"{size}x{size}x{fan_in}, stride {stride}"
        yield [label, precision, f"{tasks:,}", way.__name__.replace("_", " ")], cell


def unrolled(quick: bool) -> Cells:
    """The inner loop's scan with 1, 2 or 5 steps in its body."""
    races = (("sinusoid", 2),) if quick else itertools.product(("o15", "sinusoid"), (5, 500))
    for (name, tasks), unroll in itertools.product(races, (1, 2, 5)):

        def cell(name=name, tasks=tasks, unroll=unroll):
            workload = workloads.named(name)
            times = _timed(arms.plain(workload, workload.tasks(tasks), tasks, unroll=unroll), quick)
            return _pace(times, tasks), times

        yield [name, f"{tasks:,}", str(unroll)], cell


def per_dispatch(quick: bool) -> Cells:
    """Meta steps of five tasks drawn on the device, by the number in a dispatch."""
    for name, steps in itertools.product(
        ("sinusoid",) if quick else ("o15", "sinusoid"), (1, 2) if quick else (100, 1, 10, 1000)
    ):
        yield [name, f"{steps:,}"], functools.partial(_dispatched, name, 5, steps, quick)


def command_buffers(quick: bool) -> Cells:
    """Ten meta steps in a dispatch, with the loops launched by the host or by the device."""
    for name, tasks in (
        (("sinusoid", 2),) if quick else itertools.product(("o15", "sinusoid"), (5, 500))
    ):
        steps = 2 if quick else 10
        yield [name, f"{tasks:,}"], functools.partial(_dispatched, name, tasks, steps, quick)


def _dispatched(name, tasks, steps, quick) -> tuple[list[str], dict[str, Any]]:
    workload = workloads.named(name)
    arm = arms.dispatching(arms.learner_of(workload, tasks), workload, steps, tasks)
    times = _timed(arm, quick)
    return _pace(times, tasks, steps), times


def _pace(times: dict[str, Any], tasks: int, steps: int = 1) -> list[str]:
    each = times["median"] / steps
    return [f"{each:.3f}", f"{1e3 * tasks / each:,.0f}", f"{times['first_s']:.1f}"]


_PACE = ("ms per meta step", "tasks/s", "first call, s")
QUESTIONS = {
    "correctness": Question(
        correctness.cells,
        "Against float64 on the host: the norm of the error over that of what is right",
        ("what", "products in"),
        ("error", "allowed", ""),
        3.0,
    ),
    "limits": Question(limits, "The device's measured limits", ("what", "in"), ("rate",), 1.0),
    "throughput": Question(
        throughput,
        "Meta steps by the size of the meta-batch",
        ("workload", "tasks"),
        (
            "ms per meta step",
            "tasks/s",
            "GFLOP/s",
            "of bare products",
            "of matmul rate",
            "of bandwidth",
        ),
        4.0,
    ),
    "chunks": Question(
        chunks,
        "Meta steps of 64 tasks by the tasks at once: time, and the compiler's estimate",
        ("workload", "at once", "convolution"),
        (
            "ms per meta step",
            "µs per task and inner step",
            "estimated µs",
            "kernels per inner step",
            "calls without estimate",
            "compiles in s",
        ),
        4.0,
        {"default": "--xla_gpu_collect_cost_model_stats=true"},
    ),
    "dispatch": Question(
        per_dispatch,
        "Meta steps of five tasks by the number in a dispatch",
        ("workload", "steps per dispatch"),
        _PACE,
        2.0,
    ),
    "convolutions": Question(
        formulations,
        "One step of a convolution, forward and both gradients, in a scan",
        ("layer", "products in", "tasks", "formulation"),
        ("ms", "GFLOP/s", "first call, s"),
        4.0,
    ),
    "command_buffers": Question(
        command_buffers,
        "Meta steps with and without loops in command buffers",
        ("command buffers", "workload", "tasks"),
        _PACE,
        2.0,
        {"default": "", "with WHILE": "--xla_gpu_enable_command_buffer=+WHILE"},
    ),
    "unroll": Question(
        unrolled,
        "Meta steps by the inner steps in the body of the scan",
        ("workload", "tasks", "unroll"),
        _PACE,
        2.0,
    ),
}
