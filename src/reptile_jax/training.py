"""Many meta steps per dispatch, and the loop around them."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax._checks import check_training
from reptile_jax._devices import in_auto_axes, kept, placement, replicate
from reptile_jax._state_checks import check_usable
from reptile_jax._types import Draws, Key, MetaInfo, MetaLearner, MetaState, TaskDistribution
from reptile_jax._values import check_integers


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
      state: donated, even if the learner does not donate; not inside `jit`, `vmap` and the like.
      distribution: p(τ), a pytree.
      key: the run's root key, not consumed.
      num_steps, meta_batch: meta steps, and tasks in each.

    Returns:
      The state, and `MetaInfo` whose leaves are led by `[num_steps]`.
    """
    sizes = check_integers(num_steps=num_steps, meta_batch=meta_batch)
    check_training(learner, state, distribution, key)
    # Under a transformation of the user's the state may be in use for other seeds or batches.
    leaves = jax.tree.leaves((state, distribution, key))
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    run = _in_a_trace if traced else _in_a_dispatch
    return run(learner, state, distribution, key, *sizes, placement(state, learner.mesh))


@in_auto_axes
def _meta_steps(learner, state, distribution, key, num_steps, meta_batch, placed=None):
    def step(state, _):
        step_key = jax.random.fold_in(key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(meta_batch))
        state, info = learner.step(state, Draws(distribution, keys))
        return kept(state, placed), info

    return jax.lax.scan(step, state, length=num_steps)


_in_a_trace = jax.jit(_meta_steps, static_argnums=(0, 4, 5, 6))
_in_a_dispatch = jax.jit(_meta_steps, static_argnums=(0, 4, 5, 6), donate_argnums=1)


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

        for state, infos in rj.train(learner, state, distribution, key, until=1000, meta_batch=5):
            print(int(state.step), infos.losses.mean())

    A state from `checkpoint.restore`, with the same key, goes on as if there had been no stop:
    dispatches end at multiples of `steps_per_dispatch`, so they are cut as before. Each dispatch
    reuses the memory of the state before it. The first dispatch reuses the memory of the given
    `state`. Copy a state to keep it.

    Yields:
      `MetaState`, and `MetaInfo` whose leaves are led by the meta steps of the dispatch.

    Raises:
      TypeError: for numbers that are not integers, or what is not a learner, state, distribution
        or key.
      ValueError: for a meta-batch or a number of steps below 1, and for a state that was donated or
        is of another learner.
    """
    sizes = {"meta_batch": meta_batch, "steps_per_dispatch": steps_per_dispatch}
    meta_batch, steps_per_dispatch = check_integers(**sizes)
    (until,) = check_integers(0, until=until)
    check_training(learner, state, distribution, key)
    # A state that was restored, and what is drawn from, go to where the learner's tasks run.
    state, on_devices = replicate((state, (distribution, key)), learner.mesh)
    is_on_host = lambda leaf: isinstance(leaf, np.ndarray)  # still, without a mesh
    on_devices = jax.tree.map(lambda x: jnp.asarray(x) if is_on_host(x) else x, on_devices)

    # A generator inside, so that checks run at the call and not at the first iteration.
    def dispatches(state: MetaState) -> Iterator[tuple[MetaState, MetaInfo]]:
        check_usable(state)  # another loop may have begun with it
        step = int(state.step)
        while step < until:
            end = min(until, (step // steps_per_dispatch + 1) * steps_per_dispatch)
            state, infos = meta_steps(
                learner, state, *on_devices, num_steps=end - step, meta_batch=meta_batch
            )
            step = end
            yield state, infos

    return dispatches(state)
