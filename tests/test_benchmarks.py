"""The arms that the benchmarks compare take the same meta step, and count the same work."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import arms, measure, workloads

from reptile_jax import Batch, Task, meta_learner, models, reptile


def test_the_work_of_the_papers_meta_step_is_counted_right():
    """3.93 GFLOP for five tasks of five steps, counted layer by layer."""
    workload = workloads.few_shot("o15")
    assert [layer.rows for layer in workload.layers] == [1960, 490, 160, 40, 10]
    assert [layer.fan_in for layer in workload.layers] == [9, 576, 576, 576, 256]
    np.testing.assert_allclose(5 * workload.flops, 3.93e9, rtol=0.01)


def test_bare_products_feed_the_weights():
    layers = (workloads.Layer(4, 3, 2), workloads.Layer(4, 2, 3))
    workload = workloads.Workload("", None, None, None, None, "fresh", layers)
    object.__setattr__(workload, "distribution", type("", (), {"steps": 2}))
    weights = arms.bare_products(workload, 3)()
    assert [w.shape for w in weights] == [(3, 2), (2, 3)]
    assert all(np.isfinite(w).all() for w in weights)


@pytest.mark.parametrize("kind", ["convolutions", "pooled", "sinusoid"])
def test_pytorch_takes_the_same_meta_step(kind):
    torch = pytest.importorskip("torch")
    from benchmarks import torch_arms

    random = np.random.default_rng(0)
    if kind == "sinusoid":
        model, shape = models.MLP(), (1,)
        loss_fn, targets = models.squared_error(model.apply), random.normal(size=(2, 3, 4, 1))
    else:
        model = models.ConvNet(3, features=4, pool=kind == "pooled", blocks=2)
        shape, targets = (7, 7, 2), random.integers(0, 3, (2, 3, 4))
        loss_fn = models.cross_entropy(model.apply)
    dtype = jnp.float32 if kind == "sinusoid" else jnp.int32
    inputs = jnp.asarray(random.normal(size=(2, 3, 4, *shape)), jnp.float32)
    tasks = Task(Batch(inputs, jnp.asarray(targets, dtype)))
    params = jax.jit(model.init)(jax.random.key(0), inputs[0, 0])
    learner = meta_learner(reptile(loss_fn, optax.sgd(0.1)), optax.sgd(1.0))
    state, _ = learner.step(learner.init(params), tasks)
    expected = torch_arms.from_flax(state.params)
    inner = functools.partial(torch.optim.SGD, lr=0.1)
    for arm in (
        torch_arms.eager(model, params, tasks, inner),
        torch_arms.vectorised(model, params, tasks, 0.1, adam=False),
    ):
        for ours, theirs in zip(expected, arm(), strict=True):
            np.testing.assert_allclose(ours, theirs.detach(), atol=1e-5)


def test_timing_takes_turns_and_keeps_every_round():
    calls = []
    measured = measure.interleaved(
        {name: functools.partial(calls.append, name) for name in "ab"}, repeats=3, seconds=0.0
    )
    assert "".join(calls) == "aabb" + "ab" * 3
    assert len(measured["a"]["ms"]) == 3
    assert measure.paired_ratio({"ms": [2.0, 9.0, 4.0]}, {"ms": [1.0, 1.0, 1.0]}) == 4.0
