"""Models with state, such as running averages, and losses that return more than a number.

The reference is NumPy: a layer, batch norm with running averages, a layer; gradients, MAML's
through the inner loop included, by central differences.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import reptile_jax as rj

RATE, MOMENTUM, EPSILON, WIDTH, TASKS, STEPS = 0.1, 0.9, 1e-5, 3, 3, 4
SIBLINGS = {"reptile": rj.reptile, "fomaml": rj.fomaml, "maml": rj.maml}
GRADIENTS = {
    **SIBLINGS,
    "foml": rj.foml,
    "weighted": lambda *of: rj.weighted_gradients(*of, np.ones(STEPS)),
}


# ------------------------------------------------------------------------------------ the reference


def forward(params, stats, x):
    """params: w `[WIDTH]`, scale, bias, v; stats: mean, var `[WIDTH]`; x `[batch, 1]`."""
    w, scale, bias, v = params.reshape(4, WIDTH)
    hidden = x * w
    mean, var = hidden.mean(0), hidden.var(0)
    y = (scale * (hidden - mean) / np.sqrt(var + EPSILON) + bias) @ v
    new = np.stack([mean, var])
    return y[:, None], MOMENTUM * stats + (1 - MOMENTUM) * new


def error(params, stats, batch):
    y, stats = forward(params, stats, batch[0])
    return ((y - batch[1]) ** 2).mean(), stats


def gradient(function, params, by=1e-6):
    steps = by * np.eye(params.size)
    return np.array([function(params + d) - function(params - d) for d in steps]) / (2 * by)


def adapt(params, stats, batches):
    for batch in batches:
        slope = gradient(lambda p: error(p, stats, batch)[0], params)  # noqa: B023
        _, stats = error(params, stats, batch)
        params = params - RATE * slope
    return params, stats


def task_gradient(name, params, stats, batches, query):
    """The meta-gradient of one task, and the model's state after it."""
    adapted, ended = adapt(params, stats, batches)
    if name == "reptile":
        return params - adapted, ended
    if name == "fomaml":
        return gradient(lambda p: error(p, ended, query)[0], adapted), ended

    def through(start):
        final, final_stats = adapt(start, stats, batches)
        return error(final, final_stats, query)[0]

    return gradient(through, params, by=1e-4), ended


# --------------------------------------------------------------------------------- the same in Flax


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, is_training=True):
        kinds = {"dtype": x.dtype, "param_dtype": x.dtype}
        x = nn.Dense(WIDTH, use_bias=False, **kinds)(x)
        x = nn.BatchNorm(not is_training, momentum=MOMENTUM, epsilon=EPSILON, **kinds)(x)
        return nn.Dense(1, use_bias=False, **kinds)(x)


class NNXNet(nnx.Module):
    def __init__(self):
        kinds = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        self.first = nnx.Linear(1, WIDTH, use_bias=False, **kinds)
        self.norm = nnx.BatchNorm(WIDTH, momentum=MOMENTUM, epsilon=EPSILON, **kinds)
        self.last = nnx.Linear(WIDTH, 1, use_bias=False, **kinds)

    def __call__(self, x):
        return self.last(self.norm(self.first(x), use_running_average=False))


def linen(params, stats):
    w, scale, bias, v = jnp.asarray(params).reshape(4, WIDTH)
    tree = {
        "Dense_0": {"kernel": w[None]},
        "BatchNorm_0": {"scale": scale, "bias": bias},
        "Dense_1": {"kernel": v[:, None]},
    }
    return tree, {"BatchNorm_0": dict(zip(("mean", "var"), jnp.asarray(stats), strict=True))}


def linen_loss(params, stats, batch):
    variables = {"params": params, "batch_stats": stats}
    y, updated = Net().apply(variables, batch[0], mutable=["batch_stats"])
    return jnp.mean((y - batch[1]) ** 2), updated["batch_stats"], {"first": y[0, 0]}


def of_nnx():
    """The parameters and the state of the NNX network, made of arrays, and its loss."""
    graph, *empty = nnx.split(NNXNet(), nnx.Param, nnx.BatchStat)

    def arrays(params, stats):
        w, scale, bias, v = jnp.asarray(params).reshape(4, WIDTH)
        new = jax.tree.map(lambda leaf: leaf, empty)
        new[0]["first"]["kernel"] = new[0]["first"]["kernel"].replace(w[None])
        new[0]["norm"]["scale"] = new[0]["norm"]["scale"].replace(scale)
        new[0]["norm"]["bias"] = new[0]["norm"]["bias"].replace(bias)
        new[0]["last"]["kernel"] = new[0]["last"]["kernel"].replace(v[:, None])
        new[1]["norm"]["mean"] = new[1]["norm"]["mean"].replace(jnp.asarray(stats[0]))
        new[1]["norm"]["var"] = new[1]["norm"]["var"].replace(jnp.asarray(stats[1]))
        return new

    def loss_fn(params, stats, batch):
        model = nnx.merge(graph, params, stats)
        loss = jnp.mean((model(batch[0]) - batch[1]) ** 2)
        return loss, nnx.split(model, nnx.Param, nnx.BatchStat)[2]

    return arrays, loss_fn


@pytest.fixture
def problem(x64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(TASKS, STEPS + 1, 6, 1))
    y = rng.normal(size=(TASKS, 1, 1, 1)) * x + 0.1 * rng.normal(size=x.shape)
    params, stats = rng.normal(size=4 * WIDTH), np.stack([np.zeros(WIDTH), np.ones(WIDTH)])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield params, stats, [list(zip(x[i], y[i], strict=True)) for i in range(TASKS)], (x, y)


def stacked(x, y):
    return rj.Task((x[:, :-1], y[:, :-1]), (x[:, -1], y[:, -1]))


# -------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("policy", ["reset", "average", "carry"])
@pytest.mark.parametrize("name", SIBLINGS)
def test_running_averages_go_through_the_inner_loop_as_in_numpy(problem, name, policy):
    params, stats, tasks, arrays = problem
    learner = rj.meta_learner(
        SIBLINGS[name](linen_loss, optax.sgd(RATE)), optax.sgd(1.0), model_state=policy
    )
    state = learner.init(*linen(params, stats))
    expected, start = params, stats
    for _ in range(2):
        slopes, ends, first = [], [], start
        for *batches, query in tasks:
            slope, end = task_gradient(name, expected, first, batches, query)
            slopes.append(slope)
            ends.append(end)
            first = end if policy == "carry" else first
        expected = expected - np.mean(slopes, 0)
        start = {"reset": start, "average": np.mean(ends, 0), "carry": first}[policy]
        state, info = learner.step(state, stacked(*arrays))
    chex.assert_trees_all_close(
        (state.params, state.model_state), linen(expected, start), rtol=1e-4, atol=1e-6
    )
    assert info.aux["first"].shape == (TASKS, STEPS)


@pytest.mark.parametrize("name", SIBLINGS)
def test_the_state_of_an_nnx_model_is_that_of_a_linen_one(problem, name):
    params, stats, _, arrays = problem
    states = []
    to_nnx, nnx_loss = of_nnx()
    for to, loss_fn in ((linen, linen_loss), (to_nnx, nnx_loss)):
        learner = rj.meta_learner(SIBLINGS[name](loss_fn, optax.sgd(RATE)), optax.sgd(1.0))
        state, _ = learner.step(learner.init(*to(params, stats)), stacked(*arrays))
        states.append(jax.tree.leaves(state.model_state) + jax.tree.leaves(state.params))
    by_size = lambda leaves: sorted(leaf.ravel().tolist() for leaf in leaves)
    chex.assert_trees_all_close(*map(by_size, states), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [2, 3])
@pytest.mark.parametrize("name", GRADIENTS)
def test_side_by_side_and_on_many_devices_is_one_after_another(problem, name, at_once):
    params, stats, _, arrays = problem
    states = []
    for how in ({"tasks_at_once": 1}, {"tasks_at_once": at_once}, {"mesh": rj.task_mesh()}):
        meta_gradient = GRADIENTS[name](linen_loss, optax.adam(RATE))
        learner = rj.meta_learner(meta_gradient, optax.sgd(1.0), inner_opt_state="average", **how)
        state, info = learner.step(learner.init(*linen(params, stats)), stacked(*arrays))
        states.append(jax.device_get((state, info)))
    assert float(jnp.abs(states[0][0].model_state["BatchNorm_0"]["mean"]).min()) > 1e-3
    chex.assert_trees_all_close(*states, rtol=1e-9)


def test_a_task_that_is_not_finite_does_not_enter_the_state(problem):
    params, stats, _, (x, y) = problem
    learner = rj.meta_learner(rj.reptile(linen_loss, optax.sgd(RATE)), optax.sgd(1.0), donate=False)
    first = learner.init(*linen(params, stats))
    bad = np.concatenate([x, np.full_like(x[:1], np.nan)]), np.concatenate([y, y[:1]])
    states = [learner.step(first, stacked(*given))[0] for given in ((x, y), bad)]
    chex.assert_trees_all_close(*states, rtol=1e-12)


def test_an_auxiliary_output_may_be_anything_and_does_not_change_the_step():
    x = jnp.linspace(-1.0, 1.0, 24).reshape(2, 3, 4)
    plain = lambda params, batch: jnp.mean((params["w"] * batch - 1) ** 2)

    def with_aux(params, batch):
        loss = plain(params, batch)
        return loss, {"loss": loss, "labels": jnp.arange(4), "bad": loss / 0}

    infos = []
    for loss_fn in (plain, with_aux):
        learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(1.0))
        state, info = learner.step(learner.init({"w": jnp.ones(())}), rj.Task(x))
        infos.append((state, info._replace(aux=None)))
    chex.assert_trees_all_equal(*infos)
    assert bool(info.finite.all())
    chex.assert_trees_all_equal(info.aux["loss"], info.losses)
    assert info.aux["labels"].shape == (2, 3, 4)
    adapted = rj.inner_loop(with_aux, optax.sgd(0.1), {"w": jnp.ones(())}, x[0])
    chex.assert_trees_all_equal(adapted.aux["loss"], adapted.losses)


def test_random_keys_and_counts_may_be_in_a_model_state():
    """As a dropout layer's of NNX, which counts what it has drawn."""

    def loss_fn(params, state, batch):
        noise = jax.random.normal(jax.random.fold_in(state["key"], state["count"]), batch.shape)
        loss = jnp.mean((params["w"] * batch + noise) ** 2)
        return loss, {"key": state["key"], "count": state["count"] + 1}, noise[0]

    x = jnp.ones((2, 3, 4))
    first = {"key": jax.random.key(7), "count": jnp.zeros((), jnp.uint32)}
    for policy, count in (("reset", 0), ("average", 3), ("carry", 6)):
        for how in ({}, {"tasks_at_once": 2}, {"mesh": rj.task_mesh()}):
            if policy == "carry" and how:
                continue
            meta_gradient = rj.reptile(loss_fn, optax.sgd(0.1))
            learner = rj.meta_learner(meta_gradient, optax.sgd(1.0), model_state=policy, **how)
            state, info = learner.step(learner.init({"w": jnp.ones(())}, first), rj.Task(x))
            assert int(state.model_state["count"]) == count
            assert jnp.array_equal(
                *map(jax.random.key_data, (state.model_state["key"], first["key"]))
            )
            assert len(np.unique(np.asarray(info.aux[0]))) == 3


def test_what_a_loss_returns_is_checked():
    x = jnp.ones((2, 3, 4))
    step = lambda loss_fn, *state: rj.inner_loop(
        loss_fn, optax.sgd(0.1), {"w": jnp.ones(())}, x[0], None, *state
    )
    with pytest.raises(
        ValueError, match=r"returns a scalar, or \(scalar, aux\), but .* \(\(\), \(\)"
    ):
        step(lambda params, batch: (params["w"], 1.0, 2.0))
    stateful = r"returns \(scalar, model_state\), or with aux as a third, but gave the shapes \(\)"
    with pytest.raises(ValueError, match=stateful):
        step(lambda params, state, batch: params["w"], jnp.zeros(3))
    with pytest.raises(ValueError, match=r"it took float32\[3\] and gave float32\[2\]"):
        step(lambda params, state, batch: (params["w"], state[:2]), jnp.zeros(3))
    learner = rj.meta_learner(
        rj.reptile(lambda p, s, b: (p["w"] * b.mean(), s), optax.sgd(0.1)), optax.sgd(1.0)
    )
    flag = learner.init({"w": jnp.ones(())}, jnp.array(True))
    with pytest.raises(TypeError, match=r"bool in it has no mean over the tasks"):
        learner.step(flag, rj.Task(x))
    with pytest.raises(ValueError, match="model_state is one of"):
        rj.meta_learner(rj.reptile(linen_loss, optax.sgd(0.1)), optax.sgd(1.0), model_state="keep")


def test_a_state_of_a_class_that_does_not_compare_is_taken():
    """As Equinox's, which has no `__eq__`."""

    @jax.tree_util.register_pytree_node_class
    class State:
        def __init__(self, total):
            self.total = total

        def tree_flatten(self):
            return (self.total,), None

        @classmethod
        def tree_unflatten(cls, _, leaves):
            return cls(*leaves)

    def loss_fn(params, state, batch):
        return jnp.mean(params["w"] * batch), State(state.total + 1)

    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(1.0))
    state = learner.init({"w": jnp.ones(())}, State(jnp.zeros(())))
    state, _ = learner.step(state, rj.Task(jnp.ones((2, 3, 4))))
    assert float(state.model_state.total) == 3
