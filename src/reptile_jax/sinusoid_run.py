"""The sine-wave experiment, from a configuration to a table and a picture (section 4)."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from reptile_jax import evaluate, models, presets, report, runs
from reptile_jax.devices import Mesh
from reptile_jax.meta_training import OnMetrics, meta_train
from reptile_jax.reptile import LossFn, meta_learner, reptile
from reptile_jax.sinusoids import Sinusoids, sinusoids

SHOWN_STEPS = (0, 1, 2, 4, 8, 16, 32)  # in the sine waves' table
DRAWN_STEPS = (0, 1, 8, 32)  # in their picture


def train(
    config: presets.Sinusoid,
    out: Path | None = None,
    on_metrics: OnMetrics | None = None,
    mesh: Mesh | None = None,
) -> Path:
    """The sine waves: trains, compares with two other initialisations, draws. Returns the run."""
    presets.check(config)
    _distributions(config), problem_of(config, mesh)  # before there is a run
    return _train(config, runs.create(out, "sinusoid", config), on_metrics, mesh)


def resume(run: Path, on_metrics: OnMetrics | None = None, mesh: Mesh | None = None) -> Path:
    """Goes on with a run from its newest checkpoint, as if it had never stopped.

    Joint training, which it is compared with, starts over.
    """
    config = runs.load_config(run)
    if not isinstance(config, presets.Sinusoid):
        raise ValueError(f"{run} is not a run on the sine waves.")
    return _train(config, run, on_metrics, mesh)


def problem_of(config: presets.Sinusoid, mesh: Mesh | None = None) -> runs.Problem:
    """The network, the inner optimiser and the learner of a configuration."""
    model, inner = models.MLP(), optax.sgd(config.inner_rate)
    loss_fn = models.squared_error(model.apply)
    anneal = optax.linear_schedule(config.meta_rate, 0.0, config.meta_steps)
    # Side by side: networks as small as this gain more from fewer operations than they lose.
    learner = meta_learner(
        reptile(loss_fn, inner), optax.sgd(anneal), tasks_at_once=config.meta_batch, mesh=mesh
    )
    init_key = jax.random.fold_in(jax.random.key(config.seed), 0)
    first_state = lambda: learner.init(jax.jit(model.init)(init_key, jnp.zeros((1, 1))))
    return runs.Problem(model, loss_fn, inner, learner, first_state)


def _train(
    config: presets.Sinusoid,
    folder: Path,
    on_metrics: OnMetrics | None,
    mesh: Mesh | None,
) -> Path:
    """Trains from where the run stands, then joint training; evaluates both."""
    started = time.monotonic()
    training, joint, held_out = _distributions(config)
    problem = problem_of(config, mesh)
    train_key, eval_key = (jax.random.fold_in(jax.random.key(config.seed), use) for use in (1, 2))
    learn = lambda folder, title, state, waves: (
        meta_train(
            folder, title, problem.learner, state, waves, train_key, config, on_metrics
        ).params
    )
    score = _scoring(problem.model.apply, problem.loss_fn)
    with runs.resumable(folder):
        state = runs.restore_or_start(folder, problem)
        initialisations = {
            "Reptile": learn(folder, "Reptile", state, training),
            "random": problem.first_state().params,
            "joint training": learn(None, "joint training", problem.first_state(), joint),
        }
        evaluations = {
            name: evaluate.evaluate(
                problem.loss_fn,
                score,
                problem.inner_optimizer,
                params,
                held_out,
                eval_key,
                num_tasks=config.eval_tasks,
                score_every=1,
                tasks_at_once=100,
                mesh=mesh,
            )
            for name, params in initialisations.items()
        }
        _tabulate(config, folder, evaluations, started)
        _draw(folder, evaluations)
    report.say(f"{time.monotonic() - started:.0f} s in all; the run is in {folder}")
    return folder


def _distributions(config: presets.Sinusoid) -> tuple[Sinusoids, Sinusoids, Sinusoids]:
    """The waves of training, of joint training, and the held-out ones."""
    training = sinusoids(steps=config.inner_steps, batch_size=config.inner_batch)
    # Reptile with one inner step is joint training: here on the same examples, all at once.
    joint = sinusoids(steps=1, batch_size=config.inner_steps * config.inner_batch)
    held_out = sinusoids(
        shots=config.eval_shots, steps=config.eval_steps, batch_size=config.eval_shots
    )
    return training, joint, held_out


def _scoring(apply: models.Apply, loss_fn: LossFn) -> evaluate.ScoreFn:
    """Scores by the error; with it, what a picture of the task shows."""

    def score(params, task):
        x, wave = task.query
        given = jax.tree.map(lambda leaf: leaf[0, :, 0], task.support)
        shown = {"x": x[:, 0], "wave": wave[:, 0], "given": given}
        return {
            "error": loss_fn(params, task.query),
            "prediction": apply(params, x)[:, 0],
            **shown,
        }

    return score


def _tabulate(config, folder: Path, evaluations, started: float) -> None:
    shown = [step for step in SHOWN_STEPS if step <= config.eval_steps]
    errors = {
        name: {
            "steps": shown,
            "mean": e.mean["error"][shown],
            "interval": e.interval["error"][shown],
        }
        for name, e in evaluations.items()
    }
    results = {"mean squared error": errors, "tasks": config.eval_tasks}
    try:
        stored = runs.store(folder, "results", time.monotonic() - started, results)
    finally:  # what cannot be kept is shown all the same
        report.table(
            f"mean squared error ± 95% interval over {config.eval_tasks:,} held-out waves, "
            f"{config.eval_shots} points given",
            ["steps", *map(str, shown)],
            [
                [
                    name,
                    *(
                        f"{mean:.3f} ± {half:.3f}"
                        for mean, half in zip(error["mean"], error["interval"], strict=True)
                    ),
                ]
                for name, error in errors.items()
            ],
        )
    report.say(stored)


def _draw(folder: Path, evaluations, most: int = 3) -> None:
    from reptile_jax import plots  # the picture alone needs matplotlib

    some = next(iter(evaluations.values())).scores
    waves = min(most, len(some["wave"]))
    plots.adaptation(
        folder / "adaptation.png",
        some["x"][0, 0],
        some["wave"][:waves, 0],
        [(some["given"].inputs[i, 0], some["given"].targets[i, 0]) for i in range(waves)],
        {
            name: [
                {step: outputs[step] for step in DRAWN_STEPS if step < len(outputs)}
                for outputs in e.scores["prediction"][:waves]
            ]
            for name, e in evaluations.items()
        },
    )
