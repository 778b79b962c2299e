"""Adapts a trained run to new classes, given as folders of images, and classifies images.

An adapted model can be kept in a folder of its own, and classifies more images later.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import reptile_jax as rj
from reptile_jax.app import models, run_folder, terminal
from reptile_jax.app.config import FewShotConfig, precise
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
      run: the folder of the run, or the name of a pretrained model.
      support: a folder with one folder of images per class: at most as many as the run's ways, or
        any number unless its classifier is meta-learned.
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
    if save is None:
        _check_given(query, ", or a folder with --save")
    else:
        run_folder.check_free(save, "model", "--save")
    learned = models.adaptable(run)
    if learned.ways is None:
        raise ValueError(f"{run} is not a run on few-shot images.")
    classes = _support_classes(run, learned, support)
    names = list(classes)
    model = learned.for_ways(len(names))
    ways = len(names) if learned.apply_for is not None else learned.ways
    fields: dict[str, Any] = {
        **learned.card["config"],
        "eval_ways": ways,
        "balanced_eval": False,
        **changes,
    }
    fields.pop("experiment")
    config = FewShotConfig(**fields)
    config.check()
    model = dataclasses.replace(model, inner_steps=config.eval_steps, batch_size=config.eval_batch)
    labels = [label for label, name in enumerate(names) for _ in classes[name]]
    _check_shown(model.mini_batches(labels), classes, support)

    images = _read(config, list(itertools.chain(*classes.values())))
    queries = _query_files(query)
    query_images = _read(config, queries) if queries else images[:0]
    with precise(config.matmul_precision):
        params = model.adapt(images, labels).params
    adapted = AdaptedModel(config, names, params, images, transductive)
    answers = _answers(adapted, queries, query_images, transductive)
    found = adapted.params, [answer["probability"] for answer in answers]
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found)):
        raise ValueError(f"adapting {run} to {support} diverged: its answers are not finite.")
    if save is not None:
        _save(save, adapted, {"run": str(run), "support": str(support)})
    return answers


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
      ValueError: if it is damaged or of another version, and without images.
    """
    _check_given(query)
    model = _load(folder)
    queries = _query_files(query)
    how = model.transductive if transductive is None else transductive
    return _answers(model, queries, _read(model.config, queries), how)


def _answers(
    adapted: AdaptedModel, queries: list[Path], images: np.ndarray, transductive: bool
) -> list[dict[str, Any]]:
    """What `adapt` returns, of uint8 images."""
    if not queries:
        return []
    model = _model_of(adapted.config).for_ways(len(adapted.names))
    with precise(adapted.config.matmul_precision):
        found = model.answer(adapted.params, adapted.support, images, transductive=transductive)
    return [
        {
            "image": str(path),
            "class": adapted.names[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": dict(zip(adapted.names, row.tolist(), strict=True)),
        }
        for path, row in zip(queries, np.asarray(found, np.float64), strict=True)
    ]


def _model_of(config: FewShotConfig) -> rj.deploy.AdaptableModel:
    """The model of an adapted model's configuration, without what was learned."""
    return rj.deploy.from_config(models.described(config))


def _check_given(query: Path | Sequence[Path], or_else: str = "") -> None:
    """Raises a ValueError where there is nothing to classify."""
    if not isinstance(query, str | Path) and not query:
        raise ValueError(f"give images to classify with --query{or_else}.")


def _save(folder: Path, model: AdaptedModel, source: dict[str, str]) -> None:
    """Writes the parameters and the support images, and last what they are."""
    arrays = {"params": model.params, "support": jnp.asarray(model.support)}
    state = rj.MetaState(arrays, (), None, jnp.int32(model.config.eval_steps))
    fields = {
        "classes": model.names,
        "images": len(model.support),
        "transductive": model.transductive,
        **source,
        "config": dataclasses.asdict(model.config),
        "environment": run_folder.environment(),
    }
    # Others may have put something there meanwhile.
    run_folder.check_free(folder, "model", "--save")
    with run_folder.emptied_on_failure(folder):
        rj.checkpoint.save(folder / "checkpoints", state)
        write_json(folder / _FILE, fields, is_checked=True)


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
        like = _first_state(config, number)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit this version of reptile_jax: {error}.") from error
    state = rj.checkpoint.restore(folder / "checkpoints", like, on_damage=terminal.fail)
    return AdaptedModel(
        config, names, state.params["params"], np.asarray(state.params["support"]), how
    )


def _first_state(config: FewShotConfig, number: int) -> rj.MetaState:
    """A state such as `_save` saves, for `number` support images."""
    model = _model_of(config)
    support = jnp.zeros((number, *model.input_shape), jnp.uint8)
    return rj.MetaState({"params": model.params, "support": support}, (), None, jnp.int32(0))


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


def _support_classes(
    run: Path, model: rj.deploy.AdaptableModel, support: Path
) -> dict[str, list[Path]]:
    """The classes' image files by name, or a ValueError for classes that the run does not take."""
    classes = rj.datasets.class_folders(support)
    empty = [name for name, files in classes.items() if not files]
    others = image_folder.left_out(support, classes)
    more = f" {image_folder.summary_of(others, support)}." if others else ""
    problem = None
    if not classes:
        problem = f"{support} has no folders: give one folder of images per class.{more}"
    elif len(classes) > (model.ways or 0) and model.apply_for is None:
        problem = (
            f"{support} has {len(classes)} classes, but {run} was trained for {model.ways} ways: "
            "give that many classes or fewer, or train with more --ways, or with --classifier zero "
            "or prototypes."
        )
    elif empty:
        problem = f"these classes in {support} have no images: {image_folder.listed(empty)}.{more}"
    if problem:
        raise ValueError(problem)
    _say_left_out(support, classes)
    return classes


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
