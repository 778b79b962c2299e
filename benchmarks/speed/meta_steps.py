"""A meta step against PyTorch, the obvious JAX and its bare matrix products; by meta-batch."""

import contextlib
import functools
import itertools

import jax

import reptile_jax as rj
from benchmarks.speed import arms, workloads
from benchmarks.speed.arms import ours
from benchmarks.speed.workloads import Workload
from benchmarks.tables import Table
from benchmarks.timing import interleaved, paired_ratio
from reptile_jax.app import presets

_ON_TWO = "reptile_jax, two devices"


def peers(quick: bool = False) -> Table:
    """The time of one meta step of five tasks, in this library and in other hands.

    All arms take the same step from the same parameters on the same tasks. "Bare matrix products"
    are the step's products in the same loops and nothing else: no program can do without them.
    `vmap(scan(conv))` is how one first writes the step in JAX. "Two devices" are two virtual
    devices that divide the tasks between the same two cores, as `--devices 2` does.
    """
    with contextlib.suppress(RuntimeError):  # after JAX has started, its devices stay as they are
        jax.config.update("jax_num_cpu_devices", 2)
    rounds = 2 if quick else 15
    rows, data = [], {}
    for name in ("o15", "sinusoid"):
        workload = workloads.named(name)
        measured = interleaved(_contenders(workload), repeats=rounds)
        data[name] = measured
        bases = [measured["reptile_jax"], measured.get(_ON_TWO)]
        for arm, times in measured.items():
            ratios = [f"{paired_ratio(times, base):.2f}" if base else "" for base in bases]
            rows.append(
                [
                    f"{name}: {arm}",
                    f"{times['median']:.1f}",
                    "{:.1f} - {:.1f}".format(*times["quartiles"]),
                    *ratios,
                    f"{5 * workload.flops / times['median'] / 1e6:.0f}",
                ]
            )
    return Table(
        "One meta step of 5 tasks (o15: 5 inner steps of 10 images; sinusoid: 32 of 10 points)",
        ["arm", "median ms", "quartiles", "times reptile_jax", "... on two devices", "GFLOP/s"],
        rows,
        data,
    )


def _contenders(workload: Workload) -> dict:
    """The arms that take the same meta step."""
    import torch  # only this script needs it

    from benchmarks.speed import torch_arms

    images, tasks, params = workload.name != "sinusoid", workload.tasks(5), workload.params
    inners = {}
    if images:
        row = presets.PAPER[workload.name]
        model, rate, at_once = rj.nn.omniglot_net(row.ways), row.inner_rate, None
        inner = functools.partial(torch.optim.Adam, lr=rate, betas=(0.0, 0.999))
        inners = {", fused Adam": functools.partial(inner, fused=True)}
    else:
        model, rate, at_once = rj.nn.MLP(), 0.02, 5
        inner = functools.partial(torch.optim.SGD, lr=rate)
    contenders = {
        "reptile_jax": ours(workload, tasks, at_once),
        "bare matrix products": arms.bare_products(workload, 5, at_once or 1),
        "PyTorch torch.func, vmap": torch_arms.vectorised(model, params, tasks, rate, images),
    }
    formats = {"": False, ", channels last": True} if images else {"": False}
    for how, layout, adam in itertools.product(("eager", "torch.compile"), formats, ("", *inners)):
        contenders[f"PyTorch {how}{layout}{adam}"] = torch_arms.one_by_one(
            model,
            params,
            tasks,
            inners.get(adam, inner),
            channels_last=formats[layout],
            compiled=how == "torch.compile",
        )
    two = rj.task_mesh(jax.devices()[:2])
    if images and two.size == 2:
        contenders[_ON_TWO] = ours(workload, rj.replicate(tasks, two), mesh=two)
        bare = arms.bare_products(workload, 5, mesh=two)
        contenders["bare matrix products, two devices"] = bare
    if images:
        contenders["JAX, vmap(scan(conv))"] = arms.obvious(workload, model, tasks, adam=rate)
    return contenders


def inner_step(quick: bool = False) -> Table:
    """What other ways to write the inner step gain: one array, unrolled steps, no donation.

    All arms take a plain batched Reptile step with the workload's inner optimiser. The last column
    is the time as a multiple of the first arm's.
    """
    rounds = 2 if quick else 9
    ways = {
        "a pytree, donated": {},
        "one array": {"ravel": True},
        "unrolled by 5": {"unroll": 5},
        "not donated": {"donate": False},
    }
    rows, data = [], {}
    races = ((workloads.few_shot("o15"), 1), (workloads.sinusoid(), 5))
    for workload, at_once in races[1:] if quick else races:
        tasks = workload.tasks(5)
        measured = interleaved(
            {name: arms.plain(workload, tasks, at_once, **how) for name, how in ways.items()},
            repeats=rounds,
        )
        data[workload.name] = measured
        for name, times in measured.items():
            ratio = paired_ratio(times, next(iter(measured.values())))
            rows.append([workload.name, name, f"{times['median']:.2f}", f"{ratio:.2f}"])
    return Table(
        "A meta step of five tasks, by how its inner step is written",
        ["workload", "inner step", "ms", "times the first"],
        rows,
        data,
    )


META_BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
CELL_SECONDS = 30  # cells that would take longer are left out


def meta_batches(quick: bool = False) -> Table:
    """Tasks per second by the size of the meta-batch, for the paper's rows and the sine waves.

    The last column is the share of the speed of the meta step's bare matrix products: the same
    shapes in the same loops, and nothing else. Sizes that would take too long are left out, and
    the table says so.
    """
    rounds, budget = (2, 1) if quick else (5, CELL_SECONDS)
    rows, data = [], {}
    for name in ("o15", "o120", "m15", "sinusoid"):
        workload = workloads.named(name)
        per_task = 0.0  # seconds that both arms took for one, at the size before
        for number in META_BATCHES[:2] if quick else META_BATCHES:
            # The first call, which compiles, and one more come before the rounds.
            expected = (2 + rounds) * number * per_task
            if expected > budget:
                data[f"{name} x {number}"] = {"left out, for it would take seconds": expected}
                rows.append([name, f"{number:,}", f"over {budget} s", "", "", ""])
                continue
            row, measured = at_meta_batch(workload, number, rounds)
            per_task = sum(times["median"] for times in measured.values()) / 1e3 / number
            data[f"{name} x {number}"] = measured
            rows.append([name, *row])
    return Table(
        "Meta steps by the size of the meta-batch",
        ["workload", *META_BATCH_COLUMNS],
        rows,
        data,
    )


META_BATCH_COLUMNS = ["tasks", "ms per meta step", "tasks/s", "GFLOP/s", "of bare products"]


def at_meta_batch(
    workload: Workload, number: int, rounds: int, at_once: int | None = None
) -> tuple[list[str], dict]:
    """One size: its row under `META_BATCH_COLUMNS`, and what was measured.

    `at_once` is how many tasks run side by side, in the bare products as well. The default suits a
    CPU: up to 16 sine waves, and images one task at a time.
    """
    chunk = at_once or (min(number, 16) if workload.name == "sinusoid" else 1)
    tasks = workload.tasks(number)
    measured = interleaved(
        {
            "ours": ours(workload, tasks, chunk),
            "bare": arms.bare_products(workload, number, chunk),
        },
        repeats=rounds,
    )
    median = measured["ours"]["median"]
    share = 1 / paired_ratio(measured["ours"], measured["bare"])
    rate = number * workload.flops / median / 1e6
    row = [f"{number:,}", f"{median:.1f}", f"{1e3 * number / median:,.0f}", f"{rate:,.0f}"]
    return [*row, f"{share:.0%}"], measured
