"""The library's real programs, to be compiled for devices that are not there.

Nothing is computed and nothing is put on a device: all arguments are shapes.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import reptile_jax as rj
from benchmarks.speed import arms, workloads
from reptile_jax import evaluation
from reptile_jax.app import presets
from reptile_jax.app.experiments import few_shot
from reptile_jax.nn import networks


class Program(NamedTuple):
    """A jitted function with the shapes of its arguments, and the work that it does."""

    jitted: Any
    shapes: tuple[Any, ...]
    inner_steps: int  # of all its meta steps, for each task
    flops: float | None  # of one task's products in one inner step; None: not counted


NETWORKS = ("o15", "o120", "m15", "sinusoid")
_DISPATCHED = 10  # meta steps


def step(network: str, mesh: Mesh, tasks: int, at_once: int | None) -> Program:
    """A meta step of tasks that are given."""
    workload = workloads.named(network)
    learner = arms.learner_of(workload, at_once, mesh)
    given = _divided(rj.Task(_drawn(workload.distribution, tasks).support), mesh)
    shapes = rj.replicate(jax.eval_shape(learner.init, workload.params), mesh), given
    return Program(learner.step, shapes, workload.steps, workload.flops / workload.steps)


def dispatch(network: str, mesh: Mesh, tasks: int, at_once: int | None) -> Program:
    """Ten meta steps in a dispatch, of tasks drawn on the device."""
    workload = workloads.named(network)
    learner = arms.learner_of(workload, at_once, mesh)
    run = functools.partial(rj.meta_steps, learner, num_steps=_DISPATCHED, meta_batch=tasks)
    state = jax.eval_shape(learner.init, workload.params)
    shapes = rj.replicate((state, _shapes(workload.distribution), _shapes(_key())), mesh)
    flops = workload.flops / workload.steps
    return Program(jax.jit(run, donate_argnums=0), shapes, _DISPATCHED * workload.steps, flops)


def evaluate(network: str, mesh: Mesh, tasks: int, at_once: int | None) -> Program:
    """An evaluation as the paper's, before and after all inner steps."""
    workload = workloads.named(network)
    held_out, optimizer = workload.distribution, workload.inner_optimizer
    score_fn, flops = _error(workload.loss_fn), workload.flops / workload.steps
    if network != "sinusoid":
        config = presets.PAPER[network]
        learned = few_shot.learned_by(config)
        score_fn = rj.tasks.accuracy(learned.model.apply)
        held_out = rj.tasks.few_shot(
            workload.distribution.classes,
            ways=config.ways,
            shots=config.shots,
            query_shots=config.query_shots,
            steps=config.eval_steps,
            batch_size=config.eval_batch,
        )
        flops *= config.eval_batch / config.inner_batch
    how = workload.loss_fn, score_fn, optimizer, None, None, at_once
    keys = jax.eval_shape(lambda: jax.random.split(_key(), tasks))
    opt_state = jax.eval_shape(optimizer.init, workload.params)
    given = _shapes(workload.params), None, opt_state, _shapes(held_out)
    scores = functools.partial(evaluation._scores, *how, mesh if mesh.size > 1 else None)
    shapes = (*rj.replicate(given, mesh), _divided(keys, mesh))
    return Program(jax.jit(scores), shapes, held_out.steps, flops)


def maml(network: str, mesh: Mesh, tasks: int, at_once: int | None) -> Program:
    """A meta step of MAML, with SGD inside, through the inner steps of training."""
    workload = workloads.named(network)
    meta_gradient = rj.maml(workload.loss_fn, optax.sgd(0.01))
    learner = rj.meta_learner(meta_gradient, optax.sgd(1.0), tasks_at_once=at_once, mesh=mesh)
    support = _drawn(workload.distribution, tasks).support
    query = jax.eval_shape(lambda batches: jax.tree.map(lambda leaf: leaf[:, 0], batches), support)
    shapes = rj.replicate(jax.eval_shape(learner.init, workload.params), mesh)
    given = _divided(rj.Task(support, query), mesh)
    return Program(learner.step, (shapes, given), workload.steps, None)


def _error(loss_fn: Callable) -> Callable:
    return lambda params, task: loss_fn(params, task.query)


def _key() -> jax.Array:
    return jax.random.key(0)


def _shapes(tree: Any) -> Any:
    return jax.eval_shape(lambda: tree)


def _drawn(distribution: Any, tasks: int) -> rj.Task:
    """The shapes of a meta-batch."""
    draw = lambda: jax.vmap(distribution.sample)(jax.random.split(_key(), tasks))
    return jax.eval_shape(draw)


def _divided(tree: Any, mesh: Mesh) -> Any:
    """Shapes led by `[tasks]`, divided over the chips."""
    sharding = NamedSharding(mesh, PartitionSpec("tasks"))
    return jax.tree.map(lambda leaf: leaf.update(sharding=sharding), tree)


@contextlib.contextmanager
def _lax() -> Iterator[None]:
    """The networks with `lax.conv_general_dilated`."""
    with mock.patch.object(networks, "conv_general_dilated", jax.lax.conv_general_dilated):
        yield


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    """All as it is on a CPU: what every device got before the formulation followed the platform."""
    chosen = lambda *args, cpu=None, default=None, **_: (cpu or default)(*args)
    with mock.patch.object(jax.lax, "platform_dependent", chosen):
        yield


# Ways to write the networks, to race: what is traced inside is written in that way.
FORMULATIONS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "default": contextlib.nullcontext,
    "lax": _lax,
    "cpu": _on_cpu,
}

KINDS: dict[str, Callable[[str, Mesh, int, int | None], Program]] = {
    "step": step,
    "dispatch": dispatch,
    "evaluate": evaluate,
    "maml": maml,
}
# By name: the network and the kind.
PROGRAMS = {f"{network}-{kind}": (network, kind) for kind in KINDS for network in NETWORKS}
