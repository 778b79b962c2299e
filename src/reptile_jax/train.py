"""Many meta steps per dispatch, and the loop around them."""

import functools
from collections.abc import Iterator

import jax

from reptile_jax.devices import replicate
from reptile_jax.reptile import MetaInfo, MetaLearner, MetaState
from reptile_jax.tasks import (
    Draws,
    Key,
    TaskDistribution,
    check_distribution,
    check_integers,
    check_key,
)


@functools.partial(
    jax.jit, static_argnames=("learner", "num_steps", "meta_batch"), donate_argnames="state"
)
def meta_steps(
    learner: MetaLearner,
    state: MetaState,
    distribution: TaskDistribution,
    key: Key,
    *,
    num_steps: int,
    meta_batch: int,
) -> tuple[MetaState, MetaInfo]:
    """Takes `num_steps` meta steps in one dispatch, each on tasks drawn on the device.

    The key of a task is `fold_in(fold_in(key, state.step), index of the task)`: a run is the same
    however it is cut into dispatches, chunks of tasks or devices, and wherever it is resumed.

    Args:
      learner: built once; each learner compiles its own program.
      state: donated, whatever the learner's own `step` does.
      distribution: p(τ), a pytree.
      key: the run's root key, not consumed.
      num_steps, meta_batch: meta steps, and tasks in each.

    Returns:
      The state, and `MetaInfo` whose leaves are led by `[num_steps]`.
    """

    def step(state, _):
        step_key = jax.random.fold_in(key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, jax.numpy.arange(meta_batch))
        return learner.step(state, Draws(distribution, keys))

    return jax.lax.scan(step, state, length=num_steps)


def train(
    learner: MetaLearner,
    state: MetaState,
    distribution: TaskDistribution,
    key: Key,
    *,
    until: int,
    meta_batch: int,
    steps_per_dispatch: int = 100,
) -> Iterator[tuple[MetaState, MetaInfo]]:
    """Trains until `state.step` is `until`, yielding `(state, infos)` after every dispatch.

    A loop over it logs, evaluates and saves as it likes:

        for state, infos in train(learner, state, distribution, key, until=1000, meta_batch=5):
            print(int(state.step), infos.losses.mean())

    A state from `checkpoint.restore`, with the same key, goes on as if there had been no stop (see
    there): dispatches end at multiples of `steps_per_dispatch`, so they are cut as before.
    The state given, and each one yielded, is used up by the next dispatch.

    Raises:
      TypeError: for numbers that are not integers, or what is not a learner, state, distribution
        or key.
      ValueError: for a meta-batch or a number of steps below 1.
    """
    check_integers(meta_batch=meta_batch, steps_per_dispatch=steps_per_dispatch)
    check_integers(0, until=until)
    check_key(key)
    check_distribution(distribution)
    if not isinstance(learner, MetaLearner) or not isinstance(state, MetaState):
        raise TypeError(
            "train takes what meta_learner makes, and what its init makes of the parameters, got "
            f"{type(learner).__name__} and {type(state).__name__}."
        )

    # A state that was restored, and what is drawn from, go to where the learner's tasks run.
    state, on_devices = replicate((state, (distribution, key)), learner.mesh)

    def dispatches(state: MetaState) -> Iterator[tuple[MetaState, MetaInfo]]:
        step = int(state.step)
        while step < until:
            end = min(until, (step // steps_per_dispatch + 1) * steps_per_dispatch)
            state, infos = meta_steps(
                learner, state, *on_devices, num_steps=end - step, meta_batch=meta_batch
            )
            step = end
            yield state, infos

    return dispatches(state)
