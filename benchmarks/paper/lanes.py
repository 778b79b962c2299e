"""Twenty ways by prototypes, many trainings in one program: a table.

    python -m benchmarks lanes --data DIR [--meta-steps 4894] [--tasks 400] [--only PROGRAM ...]

A lane is one training. The lanes of a program differ only in numbers, such as the inner rate, so
that one `vmap` runs them side by side. The paper's network is small: one training leaves most of a
GPU idle, and twenty lanes take the time of a few. Lanes with the same seed see the same tasks. The
scores are on the characters that `recipes` sets apart.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj
from benchmarks import records, tables
from benchmarks.paper import levers, recipes
from benchmarks.paper.lane_list import PROGRAMS, WORDS, Lane, Program
from benchmarks.paper.recipe_list import Recipe
from benchmarks.paper.scoring import MODES, PAPER, balanced
from benchmarks.speed.time_to_accuracy import set_apart
from reptile_jax.app import presets
from reptile_jax.app.config import FewShotConfig
from reptile_jax.app.experiments import few_shot
from reptile_jax.deploy.recipes import adam_without_momentum

DISPATCH = 20  # meta steps
AT_ONCE = 100  # held-out tasks
EVALUATIONS = {"paper": PAPER, "balanced": balanced(20), "start alone": balanced(20, 1, rate=0.0)}
# Of a program's first lane as well: factors of all rates, and of the classifier's.
VARIANTS = {
    "classifier's rate times 0.3": (1.0, 0.3),
    "classifier's rate times 0.1": (1.0, 0.1),
    "rates times 0.3": (0.3, 1.0),
    "rates times 2": (2.0, 1.0),
}
COLUMNS = ["training", "meta steps", "tasks", *(f"{mode}, %" for mode in MODES)]
COLUMNS += [f"{kind}, {mode}, %" for kind in ("balanced", "start alone") for mode in MODES]


def main(argv: Sequence[str]) -> int:
    """Trains and scores the programs that are to be tried, and writes the table of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks lanes")
    parser.add_argument("--data", type=Path, required=True, help="the folder of Omniglot")
    parser.add_argument("--meta-steps", type=int, default=4894, help="of o120, for its images")
    parser.add_argument("--tasks", type=int, default=400, help="held-out tasks")
    names = [*PROGRAMS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="PROGRAM", default=names)
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    parser.add_argument("--out", type=Path, default=records.RESULTS, help="where results go")
    args = parser.parse_args(argv)
    if args.quick:
        args.meta_steps, args.tasks, args.only = 4, 2, args.only[:1]
        args.out = args.out / "quick"
    path = args.out / "paper" / "lanes.json"
    asked = f"--meta-steps {args.meta_steps} --tasks {args.tasks}"
    title = f"twenty ways by prototypes, after the images of {args.meta_steps:,} meta steps of o120"
    command = records.command_of(["lanes", "--data", "DIR", asked])
    about = {"title": title, "command": command}
    splits = set_apart(rj.datasets.load_omniglot(args.data), 100)
    for name in args.only:
        program = PROGRAMS[name]
        if args.quick:
            program = program._replace(lanes=program.lanes[:2])
        config = configured(program, args.meta_steps)
        settings = settings_of(program, args.meta_steps, args.tasks)
        measured = functools.partial(tried, program.lanes, config, splits, args.tasks)
        records.run(path, about, name, settings, measured)
    rows = tabulated(path)
    records.update(path, {**about, "machine": records.machine(), "columns": COLUMNS, "rows": rows})
    tables.show(tables.Table(title, COLUMNS, rows))
    return 0


def settings_of(program: Program, meta_steps: int, num_tasks: int) -> dict[str, Any]:
    """All that the figures of a program depend on besides the code."""
    return {
        **program._asdict(),
        "lanes": [lane._asdict() for lane in program.lanes],
        "meta steps": configured(program, meta_steps).meta_steps,
        "held-out tasks": num_tasks,
    }


def configured(program: Program, meta_steps: int) -> FewShotConfig:
    """A program's trainings, over the images of so many meta steps of o120; whole dispatches."""
    changes = {
        "classifier": "zero",
        "balanced_batches": True,
        "ways": program.ways,
        "inner_batch": 2 * program.ways,
        "inner_steps": program.inner_steps,
        "meta_batch": program.meta_batch,
    }
    config = recipes.configured(Recipe(changes), meta_steps, "o120")
    steps = DISPATCH * max(1, round(config.meta_steps / DISPATCH))
    return dataclasses.replace(config, meta_steps=steps)


def tried(
    lanes: Sequence[Lane], config: FewShotConfig, splits: rj.datasets.ImageSplits, num_tasks: int
) -> dict[str, Any]:
    """The lanes' losses and accuracies, the latter in per cent."""
    begin = time.perf_counter()
    states, losses = jax.block_until_ready(trained(lanes, config, splits))
    seconds, found = time.perf_counter() - begin, {}
    for index, lane in enumerate(lanes):
        state = jax.tree.map(lambda leaf, index=index: leaf[index], states)
        accuracy = scored(lane, state, {} if index else VARIANTS, splits, num_tasks)
        changed = zip(WORDS, lane, Lane(), strict=True)
        name = ", ".join(word.format(own) for word, own, usual in changed if own != usual)
        found[name] = {"loss": losses[index], "accuracy": accuracy}
    return {"training seconds": seconds, "lanes": found}


def trained(
    lanes: Sequence[Lane], config: FewShotConfig, splits: rj.datasets.ImageSplits
) -> tuple[rj.MetaState, Any]:
    """The last states, leaves `[lanes, ...]`, and losses `[lanes]`: the last of inner steps.

    Losses are means over the last dispatch.
    """
    model = few_shot.network(config, config.ways)
    tasks: Any = jax.device_put(few_shot.training_tasks(config, splits))
    affine = any(lane.classes or lane.images for lane in lanes)

    def learner(lane):
        outer = optax.linear_schedule(lane.outer, lane.kept * lane.outer, config.meta_steps)
        outer = few_shot.classifier_left_alone(optax.sgd(outer))
        outer = levers.tail_mean(outer, config.meta_steps // 2)
        gradient = rj.reptile(_loss(model, lane), _inner(lane.rate, lane.decay))
        return rj.meta_learner(gradient, outer, inner_opt_state="average")

    def first(lane):
        images = jnp.zeros((1, config.size, config.size, 1))
        return learner(lane).init(model.init(jax.random.key(lane.seed), images))

    def step(tasks, lane, state, key):
        def draw(key):
            task_key, distortion_key = jax.random.split(key)
            task = tasks.sample(task_key)
            return _distorted(distortion_key, task, lane, config.ways, affine=affine)

        keys = jax.random.split(key, config.meta_batch)
        state, info = learner(lane).step(state, jax.vmap(draw)(keys))
        return state, info.losses[:, -1].mean()

    @jax.jit
    def dispatch(tasks, lanes, states, key):
        def run(lane, state):
            keys = jax.random.split(jax.random.fold_in(key, lane.seed), DISPATCH)
            state, losses = jax.lax.scan(functools.partial(step, tasks, lane), state, keys)
            return state, losses.mean()

        return jax.vmap(run)(lanes, states)

    numbers = Lane(*(jnp.asarray(column) for column in zip(*lanes, strict=True)))
    states, losses = jax.jit(jax.vmap(first))(numbers), None
    for index in range(config.meta_steps // DISPATCH):
        key = jax.random.fold_in(jax.random.key(7), index)
        states, losses = dispatch(tasks, numbers, states, key)
    choose = lambda mean, last: jax.vmap(jnp.where)(numbers.kept > 0, mean, last)
    params = jax.tree.map(choose, states.opt_state.mean, states.params)
    return states._replace(params=params), losses


def _inner(rate: Any, decay: Any = 0.0) -> optax.GradientTransformation:
    """The presets' inner Adam, for rates that a program is given, and weight decay after it."""
    return optax.chain(adam_without_momentum(rate), optax.add_decayed_weights(-decay))


def _loss(model: rj.nn.ConvNet, lane: Lane) -> Callable[[Any, rj.Batch], jax.Array]:
    """`rj.nn.prototype_loss` of two images of each class, with labels that may be smoothed."""

    def loss_fn(params, batch):
        by_class = batch.inputs[jnp.argsort(batch.targets)]
        features: Any = model.apply(params, by_class, classify=False)
        first, second = jnp.moveaxis(features.reshape(model.ways, 2, -1), 1, 0)
        labels = optax.smooth_labels(jnp.eye(model.ways), lane.smoothed)

        def one_way(means, queries):
            squares = jnp.sum(queries**2, -1)[:, None] + jnp.sum(means**2, -1)[None]
            logits = -lane.scale * (squares - 2 * queries @ means.T)
            return optax.softmax_cross_entropy(logits, labels).mean()

        return (one_way(first, second) + one_way(second, first)) / 2

    return loss_fn


def _distorted(key: jax.Array, task: rj.Task, lane: Lane, ways: int, *, affine: bool) -> rj.Task:
    """`levers.Distorted` by numbers that a program is given."""
    class_key, image_key, flip_key, _ = jax.random.split(key, 4)
    inputs, targets = task.support
    flips = jax.random.bernoulli(flip_key, lane.mirrored, (ways,))[targets]
    inputs = jnp.where(flips[..., None, None, None], inputs[..., ::-1, :], inputs)
    if affine:
        maps = lane.images * jax.random.normal(image_key, (*targets.shape, 2, 3))
        maps += (lane.classes * jax.random.normal(class_key, (ways, 2, 3)))[targets]
        flat = levers.affine(inputs.reshape(-1, *inputs.shape[2:]), maps.reshape(-1, 2, 3))
        inputs = flat.reshape(inputs.shape)
    return task._replace(support=rj.Batch(inputs, targets))


def scored(
    lane: Lane,
    state: rj.MetaState,
    variants: Mapping[str, tuple[float, float]],
    splits: rj.datasets.ImageSplits,
    num_tasks: int,
) -> dict[str, Any]:
    """A lane's accuracies by every evaluation, and by its variants where there are inner steps.

    The tasks are the same for every lane.
    """
    row, found = dataclasses.replace(presets.PAPER["o120"], classifier="zero"), {}
    state = few_shot.for_ways(row.ways, state)
    for kind, evaluation in EVALUATIONS.items():
        config = dataclasses.replace(row, **evaluation.changes)
        tasks = jax.device_put(few_shot.held_out_tasks(config, splits))
        rates = {kind: (evaluation.rate, 1.0)}
        if evaluation.rate:
            rates |= {f"{kind}, {name}": factors for name, factors in variants.items()}
        for name, (factor, of_classifier) in rates.items():
            rate = jnp.float32(factor * lane.rate)
            numbers = jnp.float32(lane.scale), rate, of_classifier * rate
            found[name] = _accuracies(config, num_tasks, tasks, state, *numbers)
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))  # compiled once for all lanes
def _accuracies(config, num_tasks, tasks, state, scale, rate, classifier_rate):
    model = few_shot.network(config, config.ways)
    score_fn = rj.tasks.accuracy(model.apply)
    loss_fn = few_shot.adaptation_loss(
        config, model, config.eval_batch, balanced=config.balanced_eval
    )
    inner, opt_state = levers.rates(_inner(1.0), rate, classifier_rate), state.inner_opt_state

    def of_task(key):
        task = tasks.sample(key)
        start = rj.nn.from_prototypes(model, scale)(state.params, task.query.support)
        adapted = rj.inner_loop(loss_fn, inner, start, task.support, opt_state)
        return score_fn(adapted.params, task)

    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(1)))(jnp.arange(num_tasks))
    found = jax.lax.map(of_task, keys, batch_size=AT_ONCE)
    return {mode: 100 * found[mode].mean() for mode in MODES}


def tabulated(path: Path) -> list[list[str]]:
    """A row for each lane."""
    rows = []
    for program, arm in records.newest(path).items():
        numbers = [f"{arm['settings'][key]:,}" for key in ("meta steps", "held-out tasks")]
        for lane, found in arm["data"]["lanes"].items():
            accuracy = [found["accuracy"][kind][mode] for kind in EVALUATIONS for mode in MODES]
            name = f"{program}, {lane}" if lane else program
            rows.append([name, *numbers, *(f"{value:.1f}" for value in accuracy)])
    return rows
