"""Evaluation against training, per image."""

import jax

from benchmarks import measure, workloads
from benchmarks.throughput import ours
from reptile_jax import fewshot, presets
from reptile_jax.evaluate import evaluate
from reptile_jax.fewshot_problem import problem_of


def throughput(quick: bool = False) -> None:
    """An evaluation beside training on as many images: at most 1.3 times the time is aimed at.

    A task is adapted in 50 steps of 5 images, and its query images are classified in both ways
    before and after. The images of that are those of five training tasks.
    """
    rounds, number = (2, 2) if quick else (9, 10)
    config = presets.PAPER["o15"]
    workload, problem = workloads.few_shot("o15"), problem_of(config)
    held_out = fewshot.few_shot(
        workload.distribution.classes,
        ways=config.ways,
        shots=config.shots,
        query_shots=config.query_shots,
        steps=config.eval_steps,
        batch_size=config.eval_batch,
    )
    score = fewshot.accuracy(problem.model.apply)
    opt_state = problem.inner_optimizer.init(workload.params)

    def evaluation():
        return evaluate(
            problem.loss_fn,
            score,
            problem.inner_optimizer,
            workload.params,
            held_out,
            jax.random.key(0),
            num_tasks=number,
            opt_state=opt_state,
        ).mean

    # 50 steps of 5 images are the images of five training tasks.
    measured = measure.interleaved(
        {"evaluation": evaluation, "training": ours(workload, workload.tasks(5 * number))},
        repeats=rounds,
        seconds=1.0,
    )
    ratio = measure.paired_ratio(measured["evaluation"], measured["training"])
    rows = [
        [name, f"{times['median'] / number:.1f}", f"{1e3 * number / times['median']:.1f}"]
        for name, times in measured.items()
    ]
    rows.append(["ratio", f"{ratio:.2f}", ""])
    measure.save(
        "evaluation",
        "250 images: an evaluation of 50 steps, scored both ways; five training tasks",
        ["arm", "ms", "per second"],
        rows,
        measured,
    )
