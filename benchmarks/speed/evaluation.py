"""Evaluation against training, per image."""

import jax

import reptile_jax as rj
from benchmarks.speed import workloads
from benchmarks.speed.arms import ours
from benchmarks.tables import Table
from benchmarks.timing import interleaved, paired_ratio
from reptile_jax.app import presets
from reptile_jax.app.experiments import few_shot


def throughput(quick: bool = False) -> Table:
    """The time of an evaluation and of training on as many images. The aim: at most 1.3 times.

    The evaluation adapts to a task in 50 steps of 5 images and classifies its query images in both
    ways before and after. That is as many images as in five training tasks.
    """
    rounds, number = (2, 2) if quick else (9, 10)
    config = presets.PAPER["o15"]
    workload, learned = workloads.few_shot("o15"), few_shot.learned_by(config)
    held_out = rj.tasks.few_shot(
        workload.distribution.classes,
        ways=config.ways,
        shots=config.shots,
        query_shots=config.query_shots,
        steps=config.eval_steps,
        batch_size=config.eval_batch,
    )
    score_fn = rj.tasks.accuracy(learned.model.apply)
    opt_state = learned.inner_optimizer.init(workload.params)

    def evaluation():
        return rj.evaluate(
            workload.loss_fn,
            score_fn,
            learned.inner_optimizer,
            workload.params,
            held_out,
            jax.random.key(0),
            num_tasks=number,
            opt_state=opt_state,
        ).mean

    # 50 steps of 5 images are the images of five training tasks.
    measured = interleaved(
        {"evaluation": evaluation, "training": ours(workload, workload.tasks(5 * number))},
        repeats=rounds,
        seconds=1.0,
    )
    ratio = paired_ratio(measured["evaluation"], measured["training"])
    rows = [
        [name, f"{times['median'] / number:.1f}", f"{1e3 * number / times['median']:.1f}"]
        for name, times in measured.items()
    ]
    rows.append(["ratio", f"{ratio:.2f}", ""])
    return Table(
        "250 images: an evaluation of 50 steps, scored both ways; five training tasks",
        ["arm", "ms", "per second"],
        rows,
        measured,
    )
