"""The same meta step written in other ways, down to its bare matrix products."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import reptile_jax as rj
from benchmarks.speed.workloads import Workload
from reptile_jax._devices import Mesh, over_devices


def learner_of(
    workload: Workload, at_once: int | None = None, mesh: Mesh | None = None
) -> rj.MetaLearner:
    """The library's own learner, as its presets configure it."""
    return rj.meta_learner(
        rj.reptile(workload.loss_fn, workload.inner_optimizer),
        optax.sgd(1.0),
        inner_opt_state=workload.inner_opt_state,
        tasks_at_once=at_once,
        mesh=mesh,
    )


def ours(workload: Workload, tasks, at_once: int | None = None, mesh: Mesh | None = None):
    """The library's own meta step."""
    return stepping(learner_of(workload, at_once, mesh), workload.params, tasks)


def stepping(learner: rj.MetaLearner, params, tasks) -> Callable:
    """Calls the learner's step again and again, each on the state that the last one left."""
    states = [learner.init(params)]

    def arm():
        state, info = learner.step(states.pop(), tasks)
        states.append(state)
        return info

    return arm


def dispatching(learner: rj.MetaLearner, workload: Workload, num_steps: int, meta_batch: int):
    """Takes `num_steps` meta steps in one dispatch, on tasks drawn on the device."""
    states, key = [learner.init(workload.params)], jax.random.key(0)

    def arm():
        state, infos = rj.meta_steps(
            learner,
            states.pop(),
            workload.distribution,
            key,
            num_steps=num_steps,
            meta_batch=meta_batch,
        )
        states.append(state)
        return infos

    return arm


class ObviousNet(nn.Module):
    """`rj.nn.ConvNet` as one first writes it: Flax's own convolution, batch norm and pooling."""

    like: rj.nn.ConvNet

    @nn.compact
    def __call__(self, x):
        for _ in range(self.like.blocks):
            x = nn.Conv(self.like.features, (3, 3), strides=1 if self.like.pool else 2)(x)
            x = nn.BatchNorm(use_running_average=False, epsilon=1e-3)(x)
            if self.like.pool:
                x = nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
            x = nn.relu(x)
        return nn.Dense(self.like.ways)(x.reshape(x.shape[0], -1))


def obvious(workload: Workload, model: rj.nn.ConvNet, tasks, *, adam: float) -> Callable:
    """`vmap(scan(grad(conv)))`, Adam inside, the mean of the deltas outside; one dispatch."""
    net = ObviousNet(model)
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


def plain(
    workload: Workload,
    tasks,
    at_once: int,
    *,
    unroll: int = 1,
    ravel: bool = False,
    donate: bool = True,
) -> Callable:
    """A batched Reptile step as plain as can be, all tasks side by side or one after another.

    Args:
      at_once: 1 for one after another, else all side by side.
      unroll: inner steps in the body of the inner scan.
      ravel: keep the parameters, and so the inner optimiser's state, in one array.
      donate: let the new parameters take the place of the old.
    """
    inner, params, restore = workload.inner_optimizer, workload.params, lambda params: params
    if ravel:
        params, restore = ravel_pytree(params)

    def adapt(params, batches):
        def step(carry, batch):
            params, state = carry
            grads = jax.grad(lambda p: workload.loss_fn(restore(p), batch))(params)
            updates, state = inner.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, inner.init(params)), batches, unroll=unroll)[0][0]

    @functools.partial(jax.jit, donate_argnums=0 if donate else ())
    def meta_step(params, support):
        if at_once == 1:
            adapted = jax.lax.map(lambda batches: adapt(params, batches), support)
        else:
            adapted = jax.vmap(adapt, (None, 0))(params, support)
        return jax.tree.map(lambda p, a: p + jnp.mean(a - p[None], axis=0), params, adapted)

    held = [jax.tree.map(jnp.copy, params)]

    def arm():
        held[0] = meta_step(held[0], tasks.support)
        return held[0]

    return arm


def bare_products(
    workload: Workload, num_tasks: int, at_once: int = 1, mesh: Mesh | None = None
) -> Callable:
    """The matrix products of a meta step and little else, in the same scan over tasks and steps.

    Forward, weights' gradient, inputs' gradient for each layer, each by itself. The weights are the
    loop's carry and every product feeds them, so none can be left out or moved out of the loop.
    The weights' gradient is taken in the cheaper of its two forms, as the library takes it. With
    more tasks `at_once` these are batched products, each task with inputs and weights of its own;
    a last chunk is run in full. A mesh divides the tasks over its devices.
    """
    lead = (at_once,) if at_once > 1 else ()
    draw = lambda *shape: jax.random.normal(jax.random.key(0), (*lead, *shape))
    inputs = [draw(layer.rows, layer.fan_in) for layer in workload.layers]
    weights = [0.01 * draw(layer.fan_in, layer.fan_out) for layer in workload.layers]

    def step(weights, inputs):
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
        return moved

    each = jax.vmap(step) if at_once > 1 else step

    chunks = -(-num_tasks // (at_once * (mesh.size if mesh else 1)))

    def run(weights_and_inputs, _=None):
        weights, inputs = weights_and_inputs
        one_step = lambda weights, _: (each(weights, inputs), None)
        one_task = lambda weights, _: jax.lax.scan(one_step, weights, length=workload.steps)
        chunk = lambda weights, _: (one_task(weights, None)[0], None)
        return jax.lax.scan(chunk, weights, length=chunks)[0]

    if mesh is None:
        return functools.partial(jax.jit(run), (weights, inputs))
    held = rj.replicate((weights, inputs), mesh)
    return functools.partial(jax.jit(over_devices(run, mesh)), held, jnp.zeros(mesh.size))
