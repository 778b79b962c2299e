"""Many runs in one program are each the run alone."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reptile_jax as rj
from benchmarks.comparison import seeds

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("relaxed")]


def loss_fn(params, batch):
    return jnp.mean((jnp.tanh(batch.inputs * params["w"]) @ params["v"] - batch.targets) ** 2)


def init(key):
    w, v = jax.random.normal(key, (2, 1, 3))
    return {"w": w, "v": v.T}


WAVES = rj.tasks.sinusoids(points=8, shots=4, steps=2, batch_size=2)
METHOD = seeds.Method(
    rj.reptile, lambda rate: optax.adam(rate, b1=0.0), optax.sgd, inner_opt_state="average"
)


def test_many_runs_in_one_program_are_each_the_run_alone():
    """Against a learner with constant rates, trained and evaluated by the library's own loops."""
    chosen = [(0, 0.1, 0.5), (1, 0.3, 1.0)]
    start = lambda: seeds.first(METHOD, init, *zip(*chosen, strict=True))
    advance = functools.partial(seeds.advance, METHOD, loss_fn, meta_batch=2)
    runs = start()
    for steps in (2, 1):  # of 4, so that the rate is half way down
        runs = advance(runs, WAVES, steps, 4, side_by_side=False)
    at_once = advance(start(), WAVES, 3, 4, side_by_side=True)
    chex.assert_trees_all_close(runs.state, at_once.state, rtol=1e-5)

    score = lambda params, task: loss_fn(params, task.query)
    scored = {"num_tasks": 3, "score_every": 1}
    key = jax.random.key(5)
    scores = seeds.scores(
        METHOD.inner, loss_fn, score, runs, WAVES, key, side_by_side=True, **scored
    )
    seed, inner_rate, outer_rate = chosen[1]
    init_key, task_key = jax.random.split(jax.random.key(seed))
    inner, anneal = METHOD.inner(inner_rate), optax.linear_schedule(outer_rate, 0.0, 4)
    learner = rj.meta_learner(
        rj.reptile(loss_fn, inner), optax.sgd(anneal), inner_opt_state="average"
    )
    state, _ = rj.meta_steps(
        learner, learner.init(init(init_key)), WAVES, task_key, num_steps=3, meta_batch=2
    )
    own = jax.tree.map(lambda leaf: leaf[1], runs.state)
    chex.assert_trees_all_close(own.params, state.params, rtol=1e-4)
    chex.assert_trees_all_close(own.inner_opt_state, state.inner_opt_state, rtol=1e-4)
    result = rj.evaluate(
        loss_fn, score, inner, state.params, WAVES, key, opt_state=state.inner_opt_state, **scored
    )
    np.testing.assert_allclose(scores[1], result.scores, rtol=1e-3)
