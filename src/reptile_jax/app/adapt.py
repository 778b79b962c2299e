"""Adapts a trained run to new classes, given as folders of images, and classifies images."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import reptile_jax as rj
from reptile_jax.app import run_folder, terminal
from reptile_jax.app.config import FewShotConfig
from reptile_jax.app.experiments import few_shot


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
    trained = run_folder.load_config(run)
    if not isinstance(trained, FewShotConfig):
        raise ValueError(f"{run} is not a run on few-shot images.")
    classes = _support_classes(run, trained, support)
    names = list(classes)
    ways = len(names) if trained.classifier == "zero" else trained.ways
    config = dataclasses.replace(trained, eval_ways=ways, balanced_eval=False, **changes)
    config.check()
    order = _mini_batches(config, [len(files) for files in classes.values()])
    _check_shown(order, classes, support)

    learned = few_shot.learned_by(config)
    state = few_shot.for_ways(ways, run_folder.restore(run, learned.first_state))
    model = few_shot.network(config, ways)
    loss_fn = few_shot.adaptation_loss(
        config, model, order.shape[1], balanced=config.balanced_batches
    )
    labels = [label for label, name in enumerate(names) for _ in classes[name]]
    images = _read(config, list(itertools.chain(*classes.values())))
    given = rj.Batch(images, jnp.array(labels, jnp.int32))
    queries = rj.datasets.image_files(query)
    query_images = _read(config, queries)
    adapted = rj.inner_loop(
        loss_fn,
        learned.inner_optimizer,
        state.params,
        jax.tree.map(lambda leaf: leaf[order], given),
        state.inner_opt_state,
    )
    logits = rj.tasks.query_logits(
        model.apply, adapted.params, given.inputs, query_images, transductive=transductive
    )
    if not bool(jnp.isfinite(logits).all()):
        raise ValueError(f"adapting {run} to {support} diverged: its answers are not finite.")
    return _answers(names, queries, logits[:, : len(names)])


def _answers(names: list[str], queries: list[Path], logits: jax.Array) -> list[dict[str, Any]]:
    """What `adapt` returns, of logits `[queries, names]`."""
    probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
    return [
        {
            "image": str(path),
            "class": names[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": dict(zip(names, row.tolist(), strict=True)),
        }
        for path, row in zip(queries, probabilities, strict=True)
    ]


def _support_classes(run: Path, trained: FewShotConfig, support: Path) -> dict[str, list[Path]]:
    """The classes' image files by name, or a ValueError for classes that the run does not take."""
    classes = rj.datasets.class_folders(support)
    empty = [name for name, files in classes.items() if not files]
    problem = None
    if not classes:
        problem = f"{support} has no folders: give one folder of images per class."
    elif len(classes) > trained.ways and trained.classifier != "zero":
        problem = (
            f"{support} has {len(classes)} classes, but {run} was trained for {trained.ways} ways: "
            "give that many classes or fewer, or train with more --ways, or --classifier zero."
        )
    elif empty:
        problem = f"these classes in {support} have no images: {', '.join(empty)}."
    if problem:
        raise ValueError(problem)
    return classes


def _mini_batches(config: FewShotConfig, counts: list[int]) -> jax.Array:
    """Indices `[steps, batch]` into a support set, class by class, drawn as in training.

    Balanced mini-batches are as near to `eval_batch` as whole images of every class come, and as
    many as an evaluation's.
    """
    key = jax.random.key(config.seed)
    draw = functools.partial(rj.tasks.minibatch_order, steps=config.eval_steps)
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
        terminal.fail(
            f"{adapts} show {shown.sum()} of the {len(shown)} images in {support}: a larger "
            "--eval-steps or --eval-batch shows more"
        )


def _read(config: FewShotConfig, files: list[Path]) -> jax.Array:
    """Images `[files, size, size, channels]` in [0, 1]."""
    resample = "bilinear" if config.dataset == "images" else "nearest"
    images = rj.datasets.read_images(files, size=config.size, color=config.color, resample=resample)
    return jnp.asarray(images, jnp.float32) / 255
