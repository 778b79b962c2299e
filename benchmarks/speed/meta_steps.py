"""A meta step against PyTorch, the obvious JAX and its own bare matrix products; by meta-batch."""

import contextlib
import functools

import jax
import optax

from benchmarks import arms, measure, workloads
from benchmarks.workloads import Workload
from reptile_jax import MetaLearner, meta_learner, models, presets, reptile
from reptile_jax.devices import Mesh, replicate, task_mesh

_ON_TWO = "reptile_jax, two devices"


def learner_of(
    workload: Workload, at_once: int | None = None, mesh: Mesh | None = None
) -> MetaLearner:
    """The library's own, as its presets configure it."""
    return meta_learner(
        reptile(workload.loss_fn, workload.inner_optimizer),
        optax.sgd(1.0),
        inner_state=workload.inner_state,
        tasks_at_once=at_once,
        mesh=mesh,
    )


def ours(workload: Workload, tasks, at_once: int | None = None, mesh: Mesh | None = None):
    """The library's own meta step."""
    return arms.stepping(learner_of(workload, at_once, mesh), workload.params, tasks)


def peers(quick: bool = False) -> None:
    """The time of one meta step of five tasks, in this library and in others' hands.

    All take the same step from the same parameters on the same tasks. "Bare matrix products" are
    the step's products in the same loops and nothing else, which no program can do without;
    `vmap(scan(conv))` is how one first writes it in JAX. "Two devices" are two virtual ones that
    divide the tasks between the same two cores, as `--devices 2` has it.
    """
    with contextlib.suppress(RuntimeError):  # where JAX has started, its devices are what they are
        jax.config.update("jax_num_cpu_devices", 2)
    import torch  # the other scripts do without

    from benchmarks import torch_arms

    rounds = 2 if quick else 15
    rows, data = [], {}
    for name in ("o15", "sinusoid"):
        workload = workloads.named(name)
        tasks = workload.tasks(5)
        if name == "sinusoid":
            model, adam, rate = models.MLP(), False, 0.02
            inner = functools.partial(torch.optim.SGD, lr=rate)
        else:
            row = presets.PAPER[name]
            model, adam, rate = models.omniglot_net(row.ways), True, row.inner_rate
            inner = functools.partial(torch.optim.Adam, lr=rate, betas=(0.0, 0.999))
        at_once = 5 if name == "sinusoid" else None
        contenders = {
            "reptile_jax": ours(workload, tasks, at_once),
            "bare matrix products": arms.bare_products(workload, 5, at_once or 1),
            "PyTorch eager": torch_arms.eager(model, workload.params, tasks, inner),
            "PyTorch torch.func, vmap": torch_arms.vectorised(
                model, workload.params, tasks, rate, adam
            ),
        }
        two = task_mesh(jax.devices()[:2])
        if name != "sinusoid" and two.size == 2:
            contenders[_ON_TWO] = ours(workload, replicate(tasks, two), mesh=two)
            contenders["bare matrix products, two devices"] = arms.bare_products(
                workload, 5, mesh=two
            )
        if name != "sinusoid":
            contenders["JAX, vmap(scan(conv))"] = arms.obvious(workload, model, tasks, adam=rate)
        measured = measure.interleaved(contenders, repeats=rounds)
        data[name] = measured
        bases = [measured["reptile_jax"], measured.get(_ON_TWO)]
        for arm, times in measured.items():
            ratios = [f"{measure.paired_ratio(times, base):.2f}" if base else "" for base in bases]
            rows.append(
                [
                    f"{name}: {arm}",
                    f"{times['median']:.1f}",
                    "{:.1f} - {:.1f}".format(*times["quartiles"]),
                    *ratios,
                    f"{5 * workload.flops / times['median'] / 1e6:.0f}",
                ]
            )
    measure.save(
        "peers",
        "One meta step of 5 tasks (o15: 5 inner steps of 10 images; sinusoid: 32 of 10 points)",
        ["arm", "median ms", "quartiles", "times reptile_jax", "... on two devices", "GFLOP/s"],
        rows,
        data,
    )


def inner_step(quick: bool = False) -> None:
    """What is left to gain in an inner step: parameters in one array, steps unrolled, no donation.

    All arms take a plain batched Reptile step with the workload's inner optimiser; the last column
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
        measured = measure.interleaved(
            {name: arms.plain(workload, tasks, at_once, **how) for name, how in ways.items()},
            repeats=rounds,
        )
        data[workload.name] = measured
        for name, times in measured.items():
            ratio = measure.paired_ratio(times, next(iter(measured.values())))
            rows.append([workload.name, name, f"{times['median']:.2f}", f"{ratio:.2f}"])
    measure.save(
        "inner_step",
        "A meta step of five tasks, by how its inner step is written",
        ["workload", "inner step", "ms", "times the first"],
        rows,
        data,
    )


META_BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
CELL_SECONDS = 30  # what would take longer is left out


def meta_batches(quick: bool = False) -> None:
    """Tasks per second by the size of the meta-batch, for the paper's rows and the sine waves.

    Beside them, what share that is of the speed of the meta step's bare matrix products: the same
    shapes in the same loops, and nothing else. A size is left out, and marked so, where measuring
    it would take too long.
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
    measure.save(
        "meta_batches",
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

    `at_once` is how many tasks run side by side, in the bare products as well; by default what
    serves a CPU: up to 16 sine waves, and images one task at a time.
    """
    chunk = at_once or (min(number, 16) if workload.name == "sinusoid" else 1)
    tasks = workload.tasks(number)
    measured = measure.interleaved(
        {
            "ours": ours(workload, tasks, chunk),
            "bare": arms.bare_products(workload, number, chunk),
        },
        repeats=rounds,
    )
    median = measured["ours"]["median"]
    share = 1 / measure.paired_ratio(measured["ours"], measured["bare"])
    rate = number * workload.flops / median / 1e6
    row = [f"{number:,}", f"{median:.1f}", f"{1e3 * number / median:,.0f}", f"{rate:,.0f}"]
    return [*row, f"{share:.0%}"], measured
