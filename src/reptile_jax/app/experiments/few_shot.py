"""N-way K-shot image classification, as in the paper (section 6.1, appendix A) and beyond it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import reptile_jax as rj
from reptile_jax.app.config import FewShotConfig
from reptile_jax.app.experiment import Experiment, key
from reptile_jax.app.json_files import read_json
from reptile_jax.datasets import image_folder
from reptile_jax.deploy import adaptation, recipes


class Learned(NamedTuple):
    """What is learned, and how: the part of an experiment that needs no data."""

    model: rj.nn.ConvNet
    inner_optimizer: optax.GradientTransformation
    learner: rj.MetaLearner
    first_state: Callable[[], rj.MetaState]


def build(
    config: FewShotConfig, mesh: Mesh | None, data: Path, run: Path | None = None
) -> Experiment:
    """Reptile on episodes of the data set's training classes, scored on its held-out ones.

    With `run`, the folder of a run that is to be scored, the data may be others than the run's.
    """
    learned = learned_by(config, mesh)  # what it refuses is refused before data are read
    splits = load_data(config, data) if run is None else data_to_score(config, data, run)
    held_out = held_out_tasks(config, splits)
    model = network(config, config.held_out_ways)
    # A run that is scored is not trained again.
    training = training_tasks(config, splits) if run is None else held_out
    classes = {"train": list(splits.train_names), "test": list(splits.test_names)}
    numbers = f"{len(classes['train']):,} training and " if run is None else ""
    summary = [f"{numbers}{len(classes['test']):,} held-out classes"]
    if splits.left_out:
        summary.append(image_folder.summary_of(splits.left_out, data))
    return Experiment(
        title=f"Reptile, {config.ways}-way",
        learner=learned.learner,
        first_state=learned.first_state,
        training_tasks=training,
        held_out_tasks=held_out,
        loss_fn=adaptation_loss(config, model, config.eval_batch, balanced=config.balanced_eval),
        inner_optimizer=learned.inner_optimizer,
        score_fn=rj.tasks.accuracy(model.apply),
        show_fn=_showing(model.apply, transductive=config.transductive),
        main_score="transductive" if config.transductive else "non-transductive",
        measure="accuracy",
        percent=True,
        setting=f"{config.held_out_ways}-way {config.shots}-shot",
        score_every=config.eval_steps // 5 if config.eval_steps % 5 == 0 else None,
        summary="; ".join(summary),
        initialisation=lambda state: for_ways(config.held_out_ways, state),
        start_fn=start_fn(config),
        data_facts={"classes": classes} if run is None else {},
    )


def learned_by(config: FewShotConfig, mesh: Mesh | None = None) -> Learned:
    """The network, the optimisers and the learner of a configuration."""
    model = network(config, config.ways)
    inner = recipes.inner_adam(config.inner_rate)
    learner = rj.meta_learner(
        rj.reptile(training_loss(config, model), inner),
        meta_optimizer(config),
        inner_opt_state=config.inner_opt_state,
        mesh=mesh,
    )
    images = jnp.zeros((1, config.size, config.size, 1 if config.color == "grey" else 3))
    # Jitted, as all that is drawn at the start: one program compiles faster than each operation.
    first_state = lambda: learner.init(jax.jit(model.init)(key(config.seed, "init"), images))
    return Learned(model, inner, learner, first_state)


def network(config: FewShotConfig, ways: int) -> rj.nn.ConvNet:
    """The paper's network for the size of the images."""
    return recipes.network(config.size, ways, config.classifier)


def training_loss(
    config: FewShotConfig, model: rj.nn.ConvNet
) -> Callable[[Any, rj.Batch], jax.Array]:
    """The loss of the inner loop in training."""
    if config.classifier == "prototypes":
        return rj.nn.prototype_loss(model)
    return rj.nn.cross_entropy(model.apply, config.inner_batch)


def start_fn(config: FewShotConfig) -> Callable[[Any, rj.Task], Any] | None:
    """Where held-out tasks start, if not all at the same parameters."""
    start = recipes.prototypes(config.size, config.classifier)
    if start is None:
        return None
    return lambda params, task: start(params, task.query.support)


def adaptation_loss(
    config: FewShotConfig, model: rj.nn.ConvNet, batch_size: int, *, balanced: bool
) -> Callable[[Any, rj.Batch], jax.Array]:
    """The loss that held-out tasks are adapted by, in mini-batches of `batch_size`."""
    return adaptation.adaptation_loss(
        model.apply,
        config.inner_batch,
        batch_size,
        balanced=balanced,
        prototypes=model.ways if config.classifier == "prototypes" else None,
    )


def meta_rate_schedule(config: FewShotConfig) -> optax.Schedule:
    """ε over the meta steps of a configuration."""
    return optax.linear_schedule(config.meta_rate, config.meta_rate_final, config.meta_steps)


def meta_optimizer(config: FewShotConfig) -> optax.GradientTransformation:
    """The meta-optimiser of a configuration."""
    sgd = optax.sgd(meta_rate_schedule(config), config.meta_momentum or None, nesterov=True)
    return classifier_left_alone(sgd) if config.classifier == "zero" else sgd


def classifier_left_alone(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """`optimizer` for all parameters but the classifier's, which stay as they are."""
    # Zeroed in front of the optimiser, so that its state of the classifier is zero as well.
    return optax.chain(optax.masked(optax.set_to_zero(), rj.nn.classifier_mask), optimizer)


def for_ways(ways: int, state: rj.MetaState) -> rj.MetaState:
    """A state whose classifier is not meta-learned, for as many ways."""
    return adaptation.resized(ways, state)


def load_data(config: FewShotConfig, data: Path) -> rj.datasets.ImageSplits:
    """The data set of a configuration, from the folder `data`."""
    if config.dataset == "omniglot":
        how = {"split": config.split, "mirrored": config.mirrored, "size": config.size}
        return rj.datasets.load_omniglot(data, **how)
    if config.dataset == "mini-imagenet":
        return rj.datasets.load_mini_imagenet(data, size=config.size)
    return rj.datasets.load_image_folder(
        data,
        size=config.size,
        color=config.color,
        min_images=max(config.train_shots, config.shots + config.query_shots),
        test_fraction=config.test_fraction,
        seed=config.split_seed,
    )


def data_to_score(config: FewShotConfig, data: Path, run: Path) -> rj.datasets.ImageSplits:
    """Classes to score a run on, as `test`: the held-out ones of its own data set, or another's.

    Another data set is a folder of class folders, all of which are scored, or one that is split, of
    which the test classes are; its images are read with the run's size and colour.

    Raises:
      ValueError: for classes that the run was trained on, and as the loaders.
    """
    trained = read_json(run / "classes.json")
    splits, why = _as_own_kind(config, data)
    if splits is not None:
        names, parts = splits.test_names, {}
    else:
        parts = image_folder.own_splits(data) or {"test": image_folder.class_folders(data)}
        names = tuple(parts["test"])
        if set(names) == {*trained["train"], *trained["test"]}:  # the run's own data set
            names = tuple(trained["test"])
    if seen := sorted(set(names) & set(trained["train"])):
        raise ValueError(
            f"{run} was trained on {len(seen):,} of these classes in {data}: "
            f"{image_folder.listed(seen)}. Give a folder without them.{why}"
        )
    if splits is not None:
        return splits
    classes = {name: parts["test"][name] for name in names}
    image_folder.check_classes(data, classes, config.shots + config.query_shots)
    how = {"size": config.size, "color": config.color, "resample": resample(config)}
    ((test, _),) = image_folder.read_classes(classes, **how)
    none = rj.datasets.ImageClasses(*(array[:0] for array in test))
    others = tuple(image_folder.left_out(data, *parts.values()))
    return rj.datasets.ImageSplits(none, test, (), names, left_out=others)


def _as_own_kind(config: FewShotConfig, data: Path) -> tuple[rj.datasets.ImageSplits | None, str]:
    """The data set as one of the configuration's own kind; None, and why, if it has other images.

    What cannot be read as that kind is another data set only if there are folders of images.
    """
    if config.dataset == "images":  # which folder it is, the names of its classes tell
        return None, ""
    try:
        return load_data(config, data), ""
    except (FileNotFoundError, ValueError) as error:
        is_folder = data.is_dir() and any(rj.datasets.class_folders(data).values())
        if not is_folder and not (data.is_dir() and image_folder.own_splits(data)):
            raise
        return None, f" (It cannot be read as {config.dataset}: {error})"


def resample(config: FewShotConfig) -> rj.datasets.images.Resample:
    """The filter that images are scaled with, as the loader of the data set has it."""
    return "bilinear" if config.dataset == "images" else "nearest"


def training_tasks(config: FewShotConfig, splits: rj.datasets.ImageSplits) -> rj.tasks.FewShot:
    """The episodes that a configuration is trained on."""
    _check_ways(config, config.ways, len(splits.train_names), "training", "smaller")
    return rj.tasks.few_shot(
        splits.train,
        ways=config.ways,
        shots=config.train_shots,
        steps=config.inner_steps,
        batch_size=config.inner_batch,
        balanced=config.balanced_batches,
    )


def held_out_tasks(config: FewShotConfig, splits: rj.datasets.ImageSplits) -> rj.tasks.FewShot:
    """The episodes that a configuration is evaluated on."""
    ways = config.held_out_ways
    _check_ways(config, ways, len(splits.test_names), "held-out", "larger")
    return rj.tasks.few_shot(
        splits.test,
        ways=ways,
        shots=config.shots,
        query_shots=config.query_shots,
        steps=config.eval_steps,
        batch_size=config.eval_batch,
        balanced=config.balanced_eval,
    )


def _check_ways(config: FewShotConfig, ways: int, number: int, split: str, share: str) -> None:
    """Raises a ValueError for more ways than there are classes."""
    if ways > number:
        more = f", or a {share} --test-fraction" if config.dataset == "images" else ""
        raise ValueError(
            f"{ways} ways, but there are only {number} {split} classes: give fewer ways (--ways), "
            f"more classes{more}."
        )


def _showing(
    apply: Callable[..., Any], *, transductive: bool
) -> Callable[[Any, rj.Task], dict[str, jax.Array]]:
    """What the picture of an episode shows."""

    def show(params, task):
        inputs, labels, support = task.query
        how = {"transductive": transductive}
        logits = rj.tasks.query_logits(apply, params, support.inputs, inputs, **how)
        return {
            "support": support.inputs,
            "support_labels": support.targets,
            "query": inputs,
            "query_labels": labels,
            "probabilities": jax.nn.softmax(logits),
        }

    return show


def draw(path: Path, steps: np.ndarray, shown: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draws a sheet of episodes: support and query images, and the predictions."""
    from reptile_jax.app import plots  # the picture alone needs matplotlib

    for arrays in shown.values():  # one initialisation
        images = {name: arrays[name][:, 0] for name in ("support", "query")}
        labels = {name: arrays[f"{name}_labels"][:, 0].astype(int) for name in images}
        plots.episodes(path, steps, images, labels, arrays["probabilities"])
