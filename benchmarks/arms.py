"""The same meta step in other hands: the obvious JAX, and the bare matrix products alone."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.workloads import Workload
from reptile_jax import MetaLearner, models


def stepping(learner: MetaLearner, params, tasks) -> Callable:
    """Calls the learner's step again and again, each on the state that the last one left."""
    states = [learner.init(params)]

    def arm():
        state, info = learner.step(states.pop(), tasks)
        states.append(state)
        return info

    return arm


class _ObviousNet(nn.Module):
    """`models.ConvNet` as it is written first: Flax's own convolution, batch norm and pooling."""

    like: models.ConvNet

    @nn.compact
    def __call__(self, x):
        for _ in range(self.like.blocks):
            x = nn.Conv(self.like.features, (3, 3), strides=1 if self.like.pool else 2)(x)
            x = nn.BatchNorm(use_running_average=False, epsilon=1e-3)(x)
            if self.like.pool:
                x = nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
            x = nn.relu(x)
        return nn.Dense(self.like.ways)(x.reshape(x.shape[0], -1))


def obvious(workload: Workload, model: models.ConvNet, tasks, *, adam: float) -> Callable:
    """`vmap(scan(grad(conv)))`, Adam inside, the mean of the deltas outside; one dispatch."""
    net = _ObviousNet(model)
    inputs = jax.tree.leaves(tasks.support)[0][0, 0]
    variables = net.init(jax.random.key(0), inputs)
    inner = optax.adam(adam, b1=0.0)

    def loss_fn(params, batch):
        logits, _ = net.apply(
            {**variables, "params": params}, batch.inputs, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets).mean()

    def adapt(params, batches):
        def step(carry, batch):
            params, state = carry
            updates, state = inner.update(jax.grad(loss_fn)(params, batch), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, inner.init(params)), batches)[0][0]

    @jax.jit
    def meta_step(params, support):
        adapted = jax.vmap(adapt, (None, 0))(params, support)
        return jax.tree.map(lambda p, a: p + jnp.mean(a - p, axis=0), params, adapted)

    held = [variables["params"]]

    def arm():
        held[0] = meta_step(held[0], tasks.support)
        return held[0]

    return arm


def bare_products(workload: Workload, num_tasks: int) -> Callable:
    """The matrix products of a meta step and little else, in the same scan over tasks and steps.

    Forward, weights' gradient, inputs' gradient for each layer, each by itself. The weights are the
    loop's carry and every product feeds them, so none can be left out or moved out of the loop.
    The weights' gradient is taken in the cheaper of its two forms, as the library takes it.
    """
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    inputs = [draw(layer.rows, layer.fan_in) for layer in workload.layers]
    weights = [0.01 * draw(layer.fan_in, layer.fan_out) for layer in workload.layers]

    def step(weights, _):
        moved = []
        for index, (w, x) in enumerate(zip(weights, inputs, strict=True)):
            y = x @ w
            if x.shape[1] <= y.shape[1]:
                gradient = x.T @ y
            else:
                gradient = jax.lax.optimization_barrier(y.T @ x).T
            if index:
                gradient += (y @ w.T)[0][:, None]
            moved.append(w - 1e-9 * gradient)
        return moved, None

    @jax.jit
    def run(weights):
        one_task = lambda weights, _: jax.lax.scan(step, weights, length=workload.steps)
        return jax.lax.scan(lambda w, _: (one_task(w, None)[0], None), weights, length=num_tasks)[0]

    return lambda: run(weights)
