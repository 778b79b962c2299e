"""A meta step against PyTorch, the obvious JAX and its own bare matrix products; by meta-batch."""

import functools

import optax
import torch

from benchmarks import arms, measure, torch_arms, workloads
from benchmarks.workloads import Workload
from reptile_jax import meta_learner, models, presets, reptile


def ours(workload: Workload, tasks, at_once: int | None = None):
    """The library's own meta step, as its presets configure it."""
    learner = meta_learner(
        reptile(workload.loss_fn, workload.inner_optimizer),
        optax.sgd(1.0),
        inner_state=workload.inner_state,
        tasks_at_once=at_once,
    )
    return arms.stepping(learner, workload.params, tasks)


def peers(quick: bool = False) -> None:
    """The paper's meta step of five tasks, in this library and in others' hands."""
    rounds = 2 if quick else 15
    rows, data = [], {}
    for name in ("o15", "sinusoid"):
        workload = workloads.sinusoid() if name == "sinusoid" else workloads.few_shot(name)
        tasks = workload.tasks(5)
        if name == "sinusoid":
            model, adam, rate = models.MLP(), False, 0.02
            inner = functools.partial(torch.optim.SGD, lr=rate)
        else:
            row = presets.PAPER[name]
            model, adam, rate = models.omniglot_net(row.ways), True, row.inner_rate
            inner = functools.partial(torch.optim.Adam, lr=rate, betas=(0.0, 0.999))
        contenders = {
            "reptile_jax": ours(workload, tasks, at_once=5 if name == "sinusoid" else None),
            "bare matrix products": arms.bare_products(workload, 5),
            "PyTorch eager": torch_arms.eager(model, workload.params, tasks, inner),
            "PyTorch torch.func, vmap": torch_arms.vectorised(
                model, workload.params, tasks, rate, adam
            ),
        }
        if name != "sinusoid":
            contenders["JAX, vmap(scan(conv))"] = arms.obvious(workload, model, tasks, adam=rate)
        measured = measure.interleaved(contenders, repeats=rounds)
        data[name] = measured
        mine = measured["reptile_jax"]
        for arm, times in measured.items():
            ratio = measure.paired_ratio(times, mine)
            rows.append(
                [
                    f"{name}: {arm}",
                    f"{times['median']:.1f}",
                    "{:.1f} - {:.1f}".format(*times["quartiles"]),
                    f"{ratio:.2f}",
                    f"{5 * workload.flops / times['median'] / 1e6:.0f}",
                ]
            )
    measure.save(
        "peers",
        "One meta step of 5 tasks (o15: 5 inner steps of 10 images; sinusoid: 32 of 10 points)",
        ["arm", "median ms", "quartiles", "times reptile_jax", "GFLOP/s"],
        rows,
        data,
    )


def meta_batches(quick: bool = False) -> None:
    """Tasks per second against the size of the meta-batch, and the share of the bare products."""
    rounds = 2 if quick else 7
    sizes = {
        "o15": (1, 5, 20),
        "o120": (1, 5),
        "m15": (1, 5),
        "sinusoid": (1, 16, 256, 4096),
    }
    rows, data = [], {}
    for name, numbers in sizes.items():
        workload = workloads.sinusoid() if name == "sinusoid" else workloads.few_shot(name)
        for number in numbers[:1] if quick else numbers:
            tasks = workload.tasks(number)
            at_once = min(number, 16) if name == "sinusoid" else None
            measured = measure.interleaved(
                {
                    "ours": ours(workload, tasks, at_once),
                    "bare": arms.bare_products(workload, number),
                },
                repeats=rounds,
            )
            data[f"{name} x {number}"] = measured
            share = 1 / measure.paired_ratio(measured["ours"], measured["bare"])
            median = measured["ours"]["median"]
            rows.append(
                [
                    name,
                    f"{number}",
                    f"{median:.1f}",
                    f"{1e3 * number / median:,.0f}",
                    f"{share:.0%}",
                ]
            )
    measure.save(
        "meta_batches",
        "Meta steps by the size of the meta-batch",
        ["workload", "tasks", "ms per meta step", "tasks/s", "of bare products"],
        rows,
        data,
    )
