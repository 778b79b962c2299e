"""Few-shot image classification: trains, evaluates and adapts a run."""

import dataclasses
import functools
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax import (
    datasets,
    evaluate,
    fewshot,
    presets,
    processes,
    report,
    runs,
)
from reptile_jax.devices import Mesh
from reptile_jax.fewshot_problem import (
    adaptation_loss,
    held_out_tasks,
    load_data,
    problem_of,
    resized,
    training_tasks,
)
from reptile_jax.json_files import read_json
from reptile_jax.meta_training import OnMetrics, meta_train
from reptile_jax.reptile import MetaState, inner_loop
from reptile_jax.tasks import Batch, minibatch_order


def train(
    config: presets.FewShotImages,
    data: Path,
    out: Path | None = None,
    name: str | None = None,
    on_metrics: OnMetrics | None = None,
    mesh: Mesh | None = None,
) -> Path:
    """Few-shot images: trains, saves, and scores on held-out classes. Returns the run."""
    # What can be refused is, before data are read, which may take long, and before there is a run.
    presets.check(config)
    presets.check_training(config)
    problem_of(config, mesh)
    runs.check_free(out)
    splits = load_data(config, data)
    held_out_tasks(config, splits), training_tasks(config, splits)
    folder = runs.create(out, name or config.dataset, config, classes=_classes(splits))
    return _train(config, folder, splits, on_metrics, mesh)


def resume(
    run: Path,
    data: Path,
    on_metrics: OnMetrics | None = None,
    mesh: Mesh | None = None,
) -> Path:
    """Goes on with a run from its newest checkpoint, as if it had never stopped."""
    config, splits = _open(run, data)
    return _train(config, run, splits, on_metrics, mesh)


def score(run: Path, data: Path, mesh: Mesh | None = None, **changes: Any) -> evaluate.Evaluation:
    """Scores a trained run on held-out classes; `changes` replace fields of its configuration.

    Raises:
      ValueError: for values that do not fit the run or the data set: among them other `ways` than
        the run's, unless its classifier starts at zero.
    """
    started = time.monotonic()
    config, splits = _open(run, data, **changes)
    processes.check_told_the_same(config)
    problem, state = _restore(run, config)
    return _score(config, problem, state, run, "evaluation", splits, started, mesh)


def _open(
    run: Path, data: Path, **changes: Any
) -> tuple[presets.FewShotImages, datasets.ImageSplits]:
    trained = _few_shot_config(run)
    config = dataclasses.replace(trained, **changes)
    presets.check(config)
    if config.ways != trained.ways and trained.classifier != "zero":
        raise ValueError(
            f"{run} was trained for {trained.ways} ways, and its classifier is meta-learned with "
            f"the rest: tasks have {trained.ways} classes, not {config.ways}. A run trained with "
            "--classifier zero takes any number."
        )
    return config, _same_classes(run, load_data(config, data))


def _restore(run: Path, config: presets.FewShotImages) -> tuple[runs.Problem, MetaState]:
    """The problem of `config`, and a run's state for as many ways."""
    trained = _few_shot_config(run)
    problem = problem_of(config)
    if config.ways == trained.ways:
        return problem, runs.restore(run, problem)
    state = runs.restore(run, problem_of(trained))
    return problem, resized(state, jax.eval_shape(problem.first_state))


def _train(
    config: presets.FewShotImages,
    folder: Path,
    splits: datasets.ImageSplits,
    on_metrics: OnMetrics | None,
    mesh: Mesh | None,
) -> Path:
    """Trains from where the run stands, and scores."""
    started = time.monotonic()
    report.say(
        f"{len(splits.train_names):,} training and {len(splits.test_names):,} held-out classes"
    )
    problem = problem_of(config, mesh)
    with runs.resumable(folder):
        state = meta_train(
            folder,
            f"Reptile, {config.ways}-way",
            problem.learner,
            runs.restore_or_start(folder, problem),
            training_tasks(config, splits),
            jax.random.fold_in(jax.random.key(config.seed), 1),
            config,
            on_metrics,
        )
        report.say(f"trained in {time.monotonic() - started:.0f} s")
        _score(config, problem, state, folder, "results", splits, started, mesh)
        _draw_learning_curve(folder)
    return folder


def _draw_learning_curve(folder: Path) -> None:
    from reptile_jax import plots  # the picture alone needs matplotlib

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    column = lambda name: np.array([row[name] for row in rows], np.float64)
    curves = {
        "before the first inner step": (column("step"), column("first_loss")),
        "before the last": (column("step"), column("last_loss")),
    }
    plots.learning_curve(folder / "learning_curve.png", folder.name, curves)


def _score(
    config: presets.FewShotImages,
    problem: runs.Problem,
    state: MetaState,
    folder: Path,
    name: str,
    splits: datasets.ImageSplits,
    started: float,
    mesh: Mesh | None,
) -> evaluate.Evaluation:
    begun = time.monotonic()
    loss_fn = adaptation_loss(
        config, problem.model, config.eval_batch, balanced=config.balanced_eval
    )
    with report.Bar("held-out tasks", config.eval_tasks, "tasks") as bar:
        result = evaluate.evaluate(
            loss_fn,
            fewshot.accuracy(problem.model.apply),
            problem.inner_optimizer,
            state.params,
            held_out_tasks(config, splits),
            jax.random.fold_in(jax.random.key(config.seed), 2),
            num_tasks=config.eval_tasks,
            opt_state=state.inner_opt_state,
            score_every=config.eval_steps // 5 if config.eval_steps % 5 == 0 else None,
            tasks_per_dispatch=100 if jax.default_backend() == "cpu" else 2500,
            report=lambda done, total: bar.update(done),
            mesh=mesh,
        )
    own = "transductive" if config.transductive else "non-transductive"
    results = {
        "accuracy": {
            mode: {"inner steps": result.steps, "mean": mean, "interval": result.interval[mode]}
            for mode, mean in result.mean.items()
        },
        "score": own,
        "tasks": config.eval_tasks,
        "meta steps": int(state.step),
        "evaluation seconds": round(time.monotonic() - begun, 1),
        "config": dataclasses.asdict(config),
    }
    percent = lambda mean, half: f"{100 * mean:.2f} ± {100 * half:.2f}"
    try:
        stored = runs.store(folder, name, time.monotonic() - started, results)
    finally:  # what cannot be kept is shown all the same
        report.table(
            f"accuracy % ± 95% interval over {config.eval_tasks:,} held-out tasks, "
            f"{config.ways}-way {config.shots}-shot, after {int(state.step):,} meta steps",
            ["inner steps", *map(str, result.steps)],
            [
                [mode, *map(percent, result.mean[mode], result.interval[mode])]
                for mode in ("transductive", "non-transductive")
            ],
        )
        report.say(f"the score: {percent(result.mean[own][-1], result.interval[own][-1])}, {own}")
    report.say(stored)
    return result


def _classes(splits: datasets.ImageSplits) -> dict[str, list[str]]:
    return {"train": list(splits.train_names), "test": list(splits.test_names)}


def _same_classes(run: Path, splits: datasets.ImageSplits) -> datasets.ImageSplits:
    """The splits, if they are those that the run was made with: none is held out and trained on."""
    if read_json(run / "classes.json") != _classes(splits):
        raise ValueError(
            f"the data set does not split into the classes that {run} was trained and held out "
            "with (its classes.json): give the data as it was, or start a new run."
        )
    return splits


def adapt(
    run: Path, support: Path, query: Path, *, transductive: bool = False, **changes: Any
) -> list[dict[str, Any]]:
    """Adapts a trained run to new classes and classifies images.

    Mini-batches are drawn as in training: balanced, or shuffled and cycled through.

    Args:
      run: the folder of the run.
      support: a folder with one folder of images per class: at most as many as the run's ways, or
        any number if its classifier starts at zero.
      query: a folder of images.
      transductive: normalise all query images together, without the support set. It helps when
        they are many and spread evenly over the classes; else each is normalised with the support
        set, and its answer does not depend on the others.
      changes: replace fields of the run's configuration: `eval_steps` and `eval_batch`.

    Returns:
      For each query image, in the order of the paths: "image", "class", "probability", and
      "probabilities" by class.

    Raises:
      ValueError: for a support set without images, for more classes than the run takes or than its
        mini-batches show, and if the inner loop diverges.
    """
    config = dataclasses.replace(_few_shot_config(run), **changes)
    presets.check(config)
    classes = datasets.class_folders(support)
    names = list(classes)
    if not names:
        raise ValueError(f"{support} holds no folders: give one folder of images per class.")
    if len(names) > config.ways and config.classifier != "zero":
        raise ValueError(
            f"{support} has {len(names)} classes, but {run} was trained for {config.ways} ways: "
            "give that many classes or fewer, or train with more --ways, or --classifier zero."
        )
    if empty := [name for name, files in classes.items() if not files]:
        raise ValueError(f"these classes in {support} hold no images: {', '.join(empty)}.")
    if config.classifier == "zero":
        config = dataclasses.replace(config, ways=len(names))
    order = _adaptation_order(config, [len(files) for files in classes.values()])
    _check_shown(order, classes, support)
    problem, state = _restore(run, config)
    read = lambda files: jnp.asarray(_read(config, files), jnp.float32) / 255
    labels = [label for label, name in enumerate(names) for _ in classes[name]]
    given = Batch(read(list(itertools.chain(*classes.values()))), jnp.array(labels, jnp.int32))
    queries = datasets.image_files(query)
    batches = jax.tree.map(lambda leaf: leaf[order], given)
    loss_fn = adaptation_loss(
        config, problem.model, order.shape[1], balanced=config.balanced_batches
    )
    adapted = inner_loop(
        loss_fn, problem.inner_optimizer, state.params, batches, state.inner_opt_state
    )
    logits = fewshot.query_logits(
        problem.model.apply, adapted.params, given.inputs, read(queries), transductive=transductive
    )
    if not bool(jnp.isfinite(logits).all()):
        raise ValueError(f"adapting {run} to {support} diverged: its answers are not finite.")
    probabilities = np.asarray(jax.nn.softmax(logits[:, : len(names)]), np.float64)
    return [
        {
            "image": str(path),
            "class": names[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": dict(zip(names, row.tolist(), strict=True)),
        }
        for path, row in zip(queries, probabilities, strict=True)
    ]


def _adaptation_order(config: presets.FewShotImages, counts: list[int]) -> jax.Array:
    """Indices `[steps, batch]` into a support set that stands class by class, drawn as in training.

    Balanced mini-batches are as near to `eval_batch` as whole images of every class come, and as
    many as an evaluation's.
    """
    key = jax.random.key(config.seed)
    draw = functools.partial(minibatch_order, steps=config.eval_steps)
    if not config.balanced_batches:
        return draw(key, sum(counts), batch_size=config.eval_batch)
    each = max(1, round(config.eval_batch / len(counts)))
    keys, ends = jax.random.split(key, len(counts)), np.cumsum(counts)
    by_class = [
        end - count + draw(key, count, batch_size=each)
        for key, count, end in zip(keys, counts, ends, strict=True)
    ]
    return jnp.concatenate(by_class, axis=1)


def _check_shown(order: jax.Array, classes: dict[str, list[Path]], support: Path) -> None:
    """Raises a ValueError for classes that are not in the mini-batches; says so of images."""
    shown = np.zeros(sum(map(len, classes.values())), bool)
    shown[np.asarray(order)] = True
    ends = np.cumsum([len(files) for files in classes.values()])
    by_class = dict(zip(classes, np.split(shown, ends[:-1]), strict=True))
    steps, batch = order.shape
    adapts = f"{steps} mini-batches of {batch} images"
    if unseen := [name for name, images in by_class.items() if not images.any()]:
        more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        raise ValueError(
            f"{adapts} show no image of {', '.join(unseen[:3])}{more} in {support}: give "
            "fewer images or classes, or a larger --eval-steps or --eval-batch."
        )
    if not shown.all():
        report.fail(
            f"{adapts} show {shown.sum()} of the {len(shown)} images in {support}: a larger "
            "--eval-steps or --eval-batch shows more"
        )


def _few_shot_config(run: Path) -> presets.FewShotImages:
    config = runs.load_config(run)
    if not isinstance(config, presets.FewShotImages):
        raise ValueError(f"{run} is not a run on few-shot images.")
    return config


def _read(config: presets.FewShotImages, files: list[Path]) -> np.ndarray:
    resample = "bilinear" if config.dataset == "images" else "nearest"
    return datasets.read_images(files, size=config.size, color=config.color, resample=resample)
