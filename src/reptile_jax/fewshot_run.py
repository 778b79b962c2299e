"""Few-shot image classification: trains, evaluates and adapts a run."""

import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reptile_jax import (
    checkpoint,
    datasets,
    evaluate,
    fewshot,
    mini_imagenet,
    models,
    omniglot,
    presets,
    report,
    runs,
)
from reptile_jax.reptile import LossFn, MetaLearner, MetaState, inner_loop, meta_learner, reptile
from reptile_jax.tasks import Batch, Key, minibatches


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a configuration of few-shot images stands for."""

    model: models.ConvNet
    loss_fn: LossFn
    inner_optimizer: optax.GradientTransformation
    learner: MetaLearner
    first_state: Callable[[Key], MetaState]


def problem_of(config: presets.FewShotImages) -> Problem:
    """The network, the optimisers and the learner of a configuration."""
    net = models.omniglot_net if config.size < 64 else models.mini_imagenet_net
    model = net(config.ways)
    # Adam with β1 = 0, without its useless first moment.
    inner = optax.chain(
        optax.scale_by_rms(decay=0.999, eps=1e-8, eps_in_sqrt=False, bias_correction=True),
        optax.scale(-config.inner_rate),
    )
    loss_fn = models.cross_entropy(model.apply)
    anneal = optax.linear_schedule(config.meta_rate, config.meta_rate_final, config.meta_steps)
    learner = meta_learner(
        reptile(loss_fn, inner), optax.sgd(anneal), inner_state=config.inner_state
    )
    images = jnp.zeros((1, config.size, config.size, 1 if config.color == "grey" else 3))
    # Jitted, as all that is drawn at the start: one program compiles faster than each operation.
    first_state = lambda key: learner.init(jax.jit(model.init)(key, images))
    return Problem(model, loss_fn, inner, learner, first_state)


def load_data(config: presets.FewShotImages, data: Path) -> datasets.ImageSplits:
    """The data set of a configuration, from the folder `data`."""
    if config.dataset == "omniglot":
        return omniglot.load_omniglot(data, split=config.split, size=config.size)
    if config.dataset == "mini-imagenet":
        return mini_imagenet.load_mini_imagenet(data, size=config.size)
    needed = max(config.train_shots, config.shots + config.query_shots)
    return datasets.load_image_folder(
        data, size=config.size, color=config.color, min_images=needed, seed=config.seed
    )


def train(
    config: presets.FewShotImages, data: Path, out: Path | None = None, name: str | None = None
) -> Path:
    """Few-shot images: trains, saves, and scores on held-out classes. Returns the run."""
    folder = lambda: runs.create(out, name or config.dataset, config)
    return _train(config, data, folder, None)


def resume(run: Path, data: Path) -> Path:
    """Goes on with a run from its newest checkpoint, as if it had never stopped."""
    config = _few_shot_config(run)
    _, state = restore(run, config)
    return _train(config, data, lambda: run, state)


def _train(config, data: Path, make_folder, state: MetaState | None) -> Path:
    started = time.monotonic()
    splits = load_data(config, data)
    report.say(
        f"{len(splits.train.counts):,} training and {len(splits.test.counts):,} held-out classes, "
        f"loaded in {time.monotonic() - started:.1f} s"
    )
    distribution = fewshot.few_shot(
        splits.train,
        ways=config.ways,
        shots=config.train_shots,
        steps=config.inner_steps,
        batch_size=config.inner_batch,
    )
    held_out_tasks(config, splits)  # bad sizes are found before the training, not after it
    folder = make_folder()
    problem = problem_of(config)
    root = jax.random.key(config.seed)
    runs.meta_train(
        folder,
        f"Reptile, {config.ways}-way",
        problem.learner,
        state or problem.first_state(jax.random.fold_in(root, 0)),
        distribution,
        jax.random.fold_in(root, 1),
        until=config.meta_steps,
        meta_batch=config.meta_batch,
        steps_per_dispatch=config.steps_per_dispatch,
        save_every=config.save_every,
    )
    report.say(f"trained in {time.monotonic() - started:.0f} s")
    _score(config, folder, "results", splits, started)
    return folder


def score(run: Path, data: Path, **changes: Any) -> evaluate.Evaluation:
    """Scores a trained run on held-out classes; `changes` replace fields of its configuration."""
    started = time.monotonic()
    config = dataclasses.replace(_few_shot_config(run), **changes)
    return _score(config, run, "evaluation", load_data(config, data), started)


def held_out_tasks(config: presets.FewShotImages, splits: datasets.ImageSplits) -> fewshot.FewShot:
    """The episodes that a configuration is evaluated on."""
    return fewshot.few_shot(
        splits.test,
        ways=config.ways,
        shots=config.shots,
        query_shots=config.query_shots,
        steps=config.eval_steps,
        batch_size=config.eval_batch,
    )


def restore(run: Path, config: presets.FewShotImages) -> tuple[Problem, MetaState]:
    """The problem of a run, and its newest state."""
    problem = problem_of(config)
    like = jax.eval_shape(problem.first_state, jax.random.key(0))
    return problem, checkpoint.restore(run / "checkpoints", like)


def _score(config, folder: Path, name: str, splits, started: float) -> evaluate.Evaluation:
    problem, state = restore(folder, config)
    begun = time.monotonic()
    with report.Bar("held-out tasks", config.eval_tasks, "tasks") as bar:
        result = evaluate.evaluate(
            problem.loss_fn,
            fewshot.accuracy(problem.model.apply),
            problem.inner_optimizer,
            state.params,
            held_out_tasks(config, splits),
            jax.random.fold_in(jax.random.key(config.seed), 2),
            num_tasks=config.eval_tasks,
            opt_state=state.inner_opt_state,
            score_every=config.eval_steps // 5 if config.eval_steps % 5 == 0 else None,
            tasks_per_dispatch=100 if jax.default_backend() == "cpu" else None,
            report=lambda done, total: bar.update(done),
        )
    modes = sorted(result.mean, reverse=True)
    report.table(
        f"accuracy % ± 95% interval over {config.eval_tasks:,} held-out tasks, {config.ways}-way "
        f"{config.shots}-shot, after {int(state.step):,} meta steps",
        ["inner steps", *map(str, result.steps)],
        [
            [
                mode,
                *(
                    f"{100 * mean:.2f} ± {100 * half:.2f}"
                    for mean, half in zip(result.mean[mode], result.interval[mode], strict=True)
                ),
            ]
            for mode in modes
        ],
    )
    row = "transductive" if config.transductive else "inductive"
    report.say(
        f"the score of this configuration is the {row} one, {100 * result.mean[row][-1]:.2f}"
    )
    accuracy = {
        mode: {
            "inner steps": result.steps,
            "mean": result.mean[mode],
            "interval": result.interval[mode],
        }
        for mode in modes
    }
    results = {
        "accuracy": accuracy,
        "score": row,
        "tasks": config.eval_tasks,
        "meta steps": int(state.step),
        "evaluation seconds": round(time.monotonic() - begun, 1),
        "config": dataclasses.asdict(config),
    }
    runs.finish(folder, name, time.monotonic() - started, results)
    return result


def adapt(
    run: Path, support: Path, query: Path, *, transductive: bool = False
) -> list[dict[str, Any]]:
    """Adapts a trained run to new classes and classifies images.

    Args:
      run: the folder of the run.
      support: a folder with one folder of images per class, at most as many as the run's ways.
      query: a folder of images.
      transductive: normalise all query images together, without the support set. It helps when
        they are many and spread evenly over the classes; else each is normalised with the support
        set, and its answer does not depend on the others.

    Returns:
      For each query image, in the order of the paths: "image", "class", "probability", and
      "probabilities" by class.
    """
    config = _few_shot_config(run)
    problem, state = restore(run, config)
    classes = datasets.class_folders(support)
    names = list(classes)
    if len(names) > config.ways:
        raise ValueError(
            f"{support} has {len(names)} classes, but {run} was trained for {config.ways} ways: "
            "give that many classes or fewer, or train with more --ways."
        )
    if empty := [name for name, files in classes.items() if not files]:
        raise ValueError(f"these classes in {support} hold no images: {', '.join(empty)}.")
    read = lambda files: jnp.asarray(_read(config, files), jnp.float32) / 255
    labels = [label for label, name in enumerate(names) for _ in classes[name]]
    given = Batch(read(list(itertools.chain(*classes.values()))), jnp.array(labels, jnp.int32))
    queries = datasets.image_files(query)
    batches = minibatches(
        jax.random.key(config.seed), given, steps=config.eval_steps, batch_size=config.eval_batch
    )
    adapted = inner_loop(
        problem.loss_fn, problem.inner_optimizer, state.params, batches, state.inner_opt_state
    )
    logits = fewshot.query_logits(
        problem.model.apply, adapted.params, given.inputs, read(queries), transductive=transductive
    )
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


def _few_shot_config(run: Path) -> presets.FewShotImages:
    config = runs.load_config(run)
    if not isinstance(config, presets.FewShotImages):
        raise ValueError(f"{run} is not a run on few-shot images.")
    return config


def _read(config: presets.FewShotImages, files: list[Path]) -> np.ndarray:
    resample = "bilinear" if config.dataset == "images" else "nearest"
    return datasets.read_images(files, size=config.size, color=config.color, resample=resample)
