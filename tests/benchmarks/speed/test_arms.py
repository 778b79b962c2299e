"""The arms that the benchmarks compare take the same meta step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import reptile_jax as rj
from benchmarks.speed import arms, workloads

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("relaxed")]


@pytest.mark.parametrize("kind", ["convolutions", "pooled", "sinusoid"])
def test_pytorch_takes_the_same_meta_step(kind):
    torch = pytest.importorskip("torch")
    from benchmarks.speed import torch_arms

    random = np.random.default_rng(0)
    if kind == "sinusoid":
        model, shape = rj.nn.MLP(), (1,)
        loss_fn, targets = rj.nn.squared_error(model.apply), random.normal(size=(2, 3, 4, 1))
    else:
        model = rj.nn.ConvNet(3, features=4, pool=kind == "pooled", blocks=2)
        shape, targets = (7, 7, 2), random.integers(0, 3, (2, 3, 4))
        loss_fn = rj.nn.cross_entropy(model.apply)
    dtype = jnp.float32 if kind == "sinusoid" else jnp.int32
    inputs = jnp.asarray(random.normal(size=(2, 3, 4, *shape)), jnp.float32)
    tasks = rj.Task(rj.Batch(inputs, jnp.asarray(targets, dtype)))
    params = jax.jit(model.init)(jax.random.key(0), inputs[0, 0])
    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(1.0))
    state, _ = learner.step(learner.init(params), tasks)
    expected = torch_arms.from_flax(state.params)
    inner = functools.partial(torch.optim.SGD, lr=0.1)
    for arm in (
        torch_arms.one_by_one(model, params, tasks, inner),
        torch_arms.one_by_one(model, params, tasks, inner, channels_last=kind != "sinusoid"),
        torch_arms.vectorised(model, params, tasks, 0.1, adam=False),
    ):
        for ours, theirs in zip(expected, arm(), strict=True):
            np.testing.assert_allclose(ours, theirs.detach(), atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("how", [{"unroll": 2}, {"ravel": True}, {"donate": False}])
def test_no_way_to_write_the_inner_step_changes_the_meta_step(at_once, how):
    workload = workloads.sinusoid(steps=2)
    tasks = workload.tasks(2)
    plain, other = (arms.plain(workload, tasks, at_once, **options)() for options in ({}, how))
    plain, other = (ravel_pytree(params)[0] for params in (plain, other))
    np.testing.assert_allclose(plain, other, atol=1e-6)
    learner = arms.learner_of(workload)
    expected = learner.step(learner.init(workload.params), tasks)[0].params
    np.testing.assert_allclose(plain, ravel_pytree(expected)[0], atol=1e-6)
