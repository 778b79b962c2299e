"""Adapts a trained run to new classes, given as folders of images, and classifies images.

An adapted model can be kept in a folder of its own, and classifies more images later.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import reptile_jax as rj
from reptile_jax.app import run_folder, terminal
from reptile_jax.app.config import FewShotConfig
from reptile_jax.app.experiments import few_shot
from reptile_jax.app.json_files import read_json, write_json
from reptile_jax.datasets import image_folder

_FILE = "adapted.json"  # with it, a folder is that of an adapted model


class AdaptedModel(NamedTuple):
    """A model that is adapted to named classes."""

    config: FewShotConfig  # the run's, with the ways of the classifier as `eval_ways`
    names: list[str]  # of the classes; the classifier may have more
    params: Any
    support: np.ndarray  # [images, size, size, channels], uint8; normalises queries one by one
    transductive: bool  # how it classifies unless told otherwise


def adapt(
    run: Path,
    support: Path,
    query: Path | Sequence[Path] = (),
    *,
    transductive: bool = False,
    save: Path | None = None,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Adapts a trained run to new classes and classifies images.

    Mini-batches are drawn as in training: balanced, or shuffled and cycled through.

    Args:
      run: the folder of the run.
      support: a folder with one folder of images per class: at most as many as the run's ways, or
        any number if its classifier starts at zero.
      query: a folder of images or an image, or several of them; none only to save.
      transductive: normalise all query images together, without the support set. It helps when
        they are many and spread evenly over the classes; else each is normalised with the support
        set, and its answer does not depend on the others.
      save: a new folder to keep the adapted model in, for `predict`.
      changes: replace fields of the run's configuration: `eval_steps` and `eval_batch`.

    Returns:
      For each query image, in the order given and of the paths: "image", "class", "probability",
      and "probabilities" by class.

    Raises:
      FileExistsError: if `save` exists and is not an empty folder.
      ValueError: for a support set without images, for more classes than the run takes or than its
        mini-batches show, and if the inner loop diverges.
    """
    _check_asked(query, save)
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
    loss_fn = few_shot.adaptation_loss(
        config, few_shot.network(config, ways), order.shape[1], balanced=config.balanced_batches
    )
    labels = [label for label, name in enumerate(names) for _ in classes[name]]
    images = _read(config, list(itertools.chain(*classes.values())))
    given = rj.Batch(_scaled(images), jnp.array(labels, jnp.int32))
    queries = _query_files(query)
    query_images = _read(config, queries) if queries else images[:0]
    adapted = rj.inner_loop(
        loss_fn,
        learned.inner_optimizer,
        state.params,
        jax.tree.map(lambda leaf: leaf[order], given),
        state.inner_opt_state,
    )
    model = AdaptedModel(config, names, adapted.params, images, transductive)
    logits = _logits(model, query_images, transductive) if queries else jnp.empty((0, ways))
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((model.params, logits))):
        raise ValueError(f"adapting {run} to {support} diverged: its answers are not finite.")
    if save is not None:
        _save(save, model, {"run": str(run), "support": str(support)})
    return _answers(names, queries, logits)


def predict(
    folder: Path, query: Path | Sequence[Path], *, transductive: bool | None = None
) -> list[dict[str, Any]]:
    """Classifies images with an adapted model: the same answers as from the `adapt` that saved it.

    Args:
      folder: of the adapted model.
      query: a folder of images or an image, or several of them.
      transductive: as in `adapt`; by default as it was there.

    Raises:
      FileNotFoundError: if the folder is not that of an adapted model.
      ValueError: if it is damaged or of another version.
    """
    model = _load(folder)
    queries = _query_files(query)
    how = model.transductive if transductive is None else transductive
    return _answers(model.names, queries, _logits(model, _read(model.config, queries), how))


def _logits(model: AdaptedModel, images: np.ndarray, transductive: bool) -> jax.Array:
    """Logits `[images, classes]` of uint8 images."""
    network = few_shot.network(model.config, model.config.held_out_ways)
    support, query = _scaled(model.support), _scaled(images)
    logits = rj.tasks.query_logits(
        network.apply, model.params, support, query, transductive=transductive
    )
    return logits[:, : len(model.names)]


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


def _check_asked(query: Path | Sequence[Path], save: Path | None) -> None:
    """Raises for an `adapt` without a result, or whose model cannot be saved."""
    if save is None and not isinstance(query, str | Path) and not query:
        raise ValueError("give images to classify with --query, or a folder with --save.")
    if save is not None:
        run_folder.check_local(str(save))
        rj.checkpoint.check_path(save)
    if save is not None and save.exists() and not (save.is_dir() and not any(save.iterdir())):
        raise FileExistsError(
            f"{save} exists, and a model is never overwritten: give another --save, or remove it."
        )


def _save(folder: Path, model: AdaptedModel, source: dict[str, str]) -> None:
    """Writes the parameters and the support images, and last what they are."""
    arrays = {"params": model.params, "support": jnp.asarray(model.support)}
    state = rj.MetaState(arrays, (), None, jnp.int32(model.config.eval_steps))
    rj.checkpoint.save(folder / "checkpoints", state)
    fields = {
        "classes": model.names,
        "images": len(model.support),
        "transductive": model.transductive,
        **source,
        "config": dataclasses.asdict(model.config),
        "environment": run_folder.environment(),
    }
    write_json(folder / _FILE, fields)


def _load(folder: Path) -> AdaptedModel:
    """What `_save` wrote."""
    path = folder / _FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not the folder of an adapted model: it has no {_FILE}. Make one with "
            "reptile-jax adapt RUN --support DIR --save DIR."
        )
    fields = read_json(path)
    try:
        config = FewShotConfig(**fields["config"])
        config.check()
        names, number, how = fields["classes"], int(fields["images"]), bool(fields["transductive"])
        like = jax.eval_shape(lambda: _first_state(config, number))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit this version of reptile_jax: {error}.") from error
    state = rj.checkpoint.restore(folder / "checkpoints", like, on_damage=terminal.fail)
    return AdaptedModel(
        config, names, state.params["params"], np.asarray(state.params["support"]), how
    )


def _first_state(config: FewShotConfig, number: int) -> rj.MetaState:
    """A state such as `_save` saves, for `number` support images."""
    start = few_shot.for_ways(config.held_out_ways, few_shot.learned_by(config).first_state())
    channels = {"grey": 1, "rgb": 3}[config.color]
    support = jnp.zeros((number, config.size, config.size, channels), jnp.uint8)
    return rj.MetaState({"params": start.params, "support": support}, (), None, jnp.int32(0))


def _query_files(query: Path | Sequence[Path]) -> list[Path]:
    """The images, and those of the folders; says what is left out."""
    queries = [query] if isinstance(query, str | Path) else query
    found = []
    for path in queries:
        found += (files := rj.datasets.image_files(path))
        if Path(path).is_dir():
            _say_left_out(Path(path), {"": files})
    return found


def _say_left_out(folder: Path, classes: image_folder.ClassFiles) -> None:
    if others := image_folder.left_out(folder, classes):
        terminal.fail(f"{folder}: {image_folder.summary_of(others, folder)}")


def _support_classes(run: Path, trained: FewShotConfig, support: Path) -> dict[str, list[Path]]:
    """The classes' image files by name, or a ValueError for classes that the run does not take."""
    classes = rj.datasets.class_folders(support)
    empty = [name for name, files in classes.items() if not files]
    others = image_folder.left_out(support, classes)
    more = f" {image_folder.summary_of(others, support)}." if others else ""
    problem = None
    if not classes:
        problem = f"{support} has no folders: give one folder of images per class.{more}"
    elif len(classes) > trained.ways and trained.classifier != "zero":
        problem = (
            f"{support} has {len(classes)} classes, but {run} was trained for {trained.ways} ways: "
            "give that many classes or fewer, or train with more --ways, or --classifier zero."
        )
    elif empty:
        problem = f"these classes in {support} have no images: {image_folder.listed(empty)}.{more}"
    if problem:
        raise ValueError(problem)
    _say_left_out(support, classes)
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
        raise ValueError(
            f"{adapts} show no image of {image_folder.listed(unseen, 3)} in {support}: give "
            "fewer images or classes, or a larger --eval-steps or --eval-batch."
        )
    if not shown.all():
        terminal.fail(
            f"{adapts} show {shown.sum()} of the {len(shown)} images in {support}: a larger "
            "--eval-steps or --eval-batch shows more"
        )


def _read(config: FewShotConfig, files: list[Path]) -> np.ndarray:
    """Images `[files, size, size, channels]`, uint8."""
    how = {"size": config.size, "color": config.color, "resample": few_shot.resample(config)}
    return rj.datasets.read_images(files, **how)


def _scaled(images: np.ndarray) -> jax.Array:
    """The images in [0, 1]."""
    return jnp.asarray(images, jnp.float32) / 255
