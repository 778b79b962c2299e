"""The vocabulary: what the functions of this library take and return."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np
import optax
from jax.sharding import Mesh

Key: TypeAlias = jax.Array
Params: TypeAlias = Any  # a pytree of floating-point arrays
Examples: TypeAlias = Any  # a pytree whose leaves are led by [examples]
Batches: TypeAlias = Any  # a pytree whose leaves are led by [steps, batch]; `Repeated`; `TaskState`
Optimizer: TypeAlias = optax.GradientTransformation | optax.MultiSteps
OptState: TypeAlias = Any  # an optimiser's, a pytree of arrays
ModelState: TypeAlias = Any  # what a model keeps besides its parameters, such as running averages
# (params, batch) -> scalar, or (scalar, aux). With a model state (params, model_state, batch) ->
# (scalar, model_state), or (scalar, model_state, aux).
LossFn: TypeAlias = Callable[..., Any]
ExampleLoss: TypeAlias = Callable[[Params, Examples], jax.Array]  # (params, examples) -> [batch]
Apply: TypeAlias = Callable[..., Any]  # (params, inputs [batch, ...]) -> outputs [batch, ...]
# (params, task) -> a pytree of arrays, or (params, model_state, task).
ScoreFn: TypeAlias = Callable[..., Any]
InnerState: TypeAlias = Literal["reset", "average", "carry"]


class Batch(NamedTuple):
    """Inputs and targets: what the library's own tasks are made of. Your own may be any pytree."""

    inputs: Any  # [batch, ...]
    targets: Any  # [batch, ...]


class Task(NamedTuple):
    """One task; or a meta-batch of them, every leaf led by `[tasks]` as well.

    `query` is whatever the loss accepts as a batch; Reptile itself needs none. `weight` is the
    task's share in the weighted mean of the meta-gradient, and of the scores in `evaluate`. Without
    it all tasks count alike; a task whose weight is not finite and positive counts for nothing.
    """

    support: Batches  # [steps, batch, ...], or `Repeated` [batch, ...]
    query: Examples = None  # [query, ...]
    weight: Any = None  # []


@runtime_checkable
class TaskDistribution(Protocol):
    """p(τ): a pytree, so that its arrays are arguments of the compiled program."""

    def sample(self, key: Key) -> Task:
        """Draws one task. Pure: the same key gives the same task."""
        ...


class Draws(NamedTuple):
    """A meta-batch not yet drawn: one task per key.

    Each task is drawn where it is used, so a large meta-batch is never in memory whole.
    """

    distribution: TaskDistribution
    keys: Key  # [tasks]


MetaBatch: TypeAlias = Task | Draws  # a `Task` with leaves led by [tasks]; `train` makes `Draws`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Repeated:
    """A support set whose every step has the same examples, which are in memory once.

    Make one with `repeat`. In a meta-batch the leaves are `[tasks, batch, ...]`.
    """

    examples: Examples  # [batch, ...]
    steps: int = dataclasses.field(metadata={"static": True})


class ImageClasses(NamedTuple):
    """Images grouped by class in one array; classes may differ in size.

    The images of class `c` are `images[starts[c] : starts[c] + counts[c]]`.
    """

    images: jax.Array | np.ndarray  # [images, height, width, channels] uint8
    starts: jax.Array | np.ndarray  # [classes] int32
    counts: jax.Array | np.ndarray  # [classes] int32


class Adapted(NamedTuple):
    """The result of an inner loop."""

    params: Params  # φ
    opt_state: OptState  # the inner optimiser's
    losses: jax.Array  # [steps], each before its step
    model_state: ModelState = None  # after the last step
    aux: Any = None  # what the loss returns besides, leaves [steps, ...]


class TaskState(NamedTuple):
    """A task whose mini-batches come from a stream: all that changes in its inner loop.

    As a support set it is the inner loop that has led to it: `rj.streamed` makes a meta-batch of
    such tasks.
    """

    params: Params  # φ, so far
    opt_state: OptState  # the inner optimiser's
    step: jax.Array  # [] int32: inner steps taken
    loss: jax.Array  # [], of the last step; NaN before the first
    model_state: ModelState = None


class InnerInfo(NamedTuple):
    """What inner steps report, for people: the next ones need none of it."""

    losses: jax.Array  # [steps], each before its step
    aux: Any = None  # what the loss returns besides, leaves [steps, ...]


class TaskGradient(NamedTuple):
    """The result of one task: its meta-gradient, and what its inner loop ended with."""

    gradient: Params
    opt_state: OptState  # the inner optimiser's, after the task
    losses: jax.Array  # [steps]
    model_state: ModelState = None  # after the task
    aux: Any = None  # leaves [steps, ...]


class MetaGradient(NamedTuple):
    """A pair of pure functions that make a meta-gradient of one task.

    `init(params)` is the inner optimiser's first state. `compute(params, opt_state, task)` is the
    meta-gradient at `params` when the inner optimiser starts from `opt_state`, or from its first
    state if that is None. A model with state adds `model_state` as a fourth argument.
    Write your own meta-gradient as such a pair.
    """

    init: Callable[[Params], OptState]
    compute: Callable[..., TaskGradient]


class MetaState(NamedTuple):
    """All that changes in meta-training: what a checkpoint saves."""

    params: Params  # θ
    opt_state: OptState  # the meta-optimiser's
    inner_opt_state: OptState | None  # what inner loops start from; None when it is reset
    step: jax.Array  # [] int32
    model_state: ModelState = None  # what inner loops start from; None for a model without


class MetaInfo(NamedTuple):
    """What a meta step reports, for people: the next one needs none of it."""

    losses: jax.Array  # [tasks, steps]
    finite: jax.Array  # [tasks] bool: tasks that are not were left out of the mean
    gradient_norm: jax.Array  # []
    aux: Any = None  # what the loss returns besides, leaves [tasks, steps, ...]


class MetaLearner(NamedTuple):
    """A pair of functions, as in `optax.GradientTransformation`, and where they run."""

    init: Callable[..., MetaState]  # (params), or (params, model_state)
    step: Callable[[MetaState, MetaBatch], tuple[MetaState, MetaInfo]]
    mesh: Mesh | None = None  # the devices that the tasks are divided over, if more than one
