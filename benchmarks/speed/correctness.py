"""Whether the library computes the right values on this device: against float64 on the host."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reptile_jax as rj
from benchmarks.speed import convolutions
from benchmarks.speed.arms import ObviousNet

# The precision of float32 products, as JAX calls it. bfloat16 is a dtype, not a precision.
PRECISIONS = {"TF32": "tensorfloat32", "float32": "highest", "bfloat16": None}
# The largest error over the norm of the true value; TF32 has 10 bits of mantissa, bfloat16 7.
TOLERANCES = {"float32": 1e-5, "TF32": 5e-3, "bfloat16": 4e-2}


def cells(quick: bool) -> Iterator:
    """Gradients of the convolution, and a meta step, against float64 on the host."""
    for stride, (name, precision) in itertools.product((1, 2), PRECISIONS.items()):
        yield (
            [f"gradients of a convolution, stride {stride}", name],
            lambda stride=stride, name=name, precision=precision: _verdict(
                convolution_error(stride, precision), TOLERANCES[name]
            ),
        )
    nets = {
        "strided": (rj.nn.omniglot_net(5), 28, 1),
        "pooled": (rj.nn.mini_imagenet_net(5), 42, 3),
    }
    if quick:
        nets = {"pooled": (rj.nn.ConvNet(3, features=4, pool=True, blocks=1), 7, 2)}
    for (kind, net), name in itertools.product(nets.items(), ("TF32", "float32")):
        # Inner steps carry rounding errors on, and a ReLU or a maximum may switch.
        yield (
            [f"a meta step of the {kind} network", name],
            lambda net=net, name=name: _verdict(
                meta_step_error(*net, PRECISIONS[name]), 20 * TOLERANCES[name]
            ),
        )


def _verdict(error: float, allowed: float) -> tuple[list[str], dict[str, Any]]:
    right = bool(error <= allowed)
    row = [f"{error:.1e}", f"{allowed:.0e}", "right" if right else "WRONG"]
    return row, {"error": error, "allowed": allowed, "right": right}


def convolution_error(stride: int, precision: str | None) -> float:
    """The norm of both gradients' error under `vmap` over their true norm."""
    random = np.random.default_rng(stride)
    image, kernel = random.normal(size=(3, 2, 9, 9, 16)), random.normal(size=(3, 3, 3, 16, 8))
    weights = random.normal(size=(3, 2, *[-(-9 // stride)] * 2, 8))

    def gradients(formulation, image, kernel, weights):
        loss = lambda image, kernel, w: jnp.sum(formulation(image, kernel, stride) * w)
        return jax.jit(jax.vmap(jax.grad(loss, (0, 1))))(image, kernel, weights)

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        right = gradients(convolutions.native, *map(jnp.asarray, (image, kernel, weights)))
        right = jax.device_get(right)
    with jax.default_matmul_precision(precision):
        dtype = jnp.float32 if precision else jnp.bfloat16
        given = (jnp.asarray(array, dtype) for array in (image, kernel, weights))
        return _distance(gradients(convolutions.ours, *given), right)


def meta_step_error(model: rj.nn.ConvNet, size: int, channels: int, precision: str) -> float:
    """The error of two tasks' mean delta, three steps of gradient descent, over its true norm."""
    random = np.random.default_rng(0)
    images = random.uniform(size=(2, 3, 10, size, size, channels)).astype(np.float32)
    labels = random.integers(0, model.ways, (2, 3, 10)).astype(np.int32)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0), images[0, 0]))
    rate = 0.05
    with jax.default_matmul_precision(precision):
        tasks = rj.Task(rj.Batch(jnp.asarray(images), jnp.asarray(labels)))
        learner = rj.meta_learner(
            rj.reptile(rj.nn.cross_entropy(model.apply), optax.sgd(rate)),
            optax.sgd(1.0),
            tasks_at_once=2,
        )
        moved = jax.device_get(learner.step(learner.init(params), tasks)[0].params)
    change = lambda new, old: jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), new, old)
    right = change(_in_float64(model, params, images, labels, rate), params)
    return _distance(change(moved, params), right)


def _in_float64(model: rj.nn.ConvNet, params, images, labels, rate: float):
    """A meta step by gradient descent on the host in double precision, in Flax's own layers.

    Args:
      images, labels: `[tasks, steps, batch, ...]`.

    Returns:
      θ plus the mean of the tasks' deltas, with the structure of `params`.
    """
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        net = ObviousNet(model)
        theta = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params["params"])
        stats = jax.jit(net.init)(jax.random.key(0), images[0, 0].astype(np.float64))["batch_stats"]

        def loss(params, images, labels):
            variables = {"params": params, "batch_stats": stats}
            logits, _ = net.apply(variables, images, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        gradient = jax.jit(jax.grad(loss))
        total = jax.tree.map(jnp.zeros_like, theta)
        for task_images, task_labels in zip(images.astype(np.float64), labels, strict=True):
            adapted = theta
            for batch in zip(task_images, task_labels, strict=True):
                grads = gradient(adapted, *batch)
                adapted = jax.tree.map(lambda p, g: p - rate * g, adapted, grads)
            total = jax.tree.map(lambda t, a, p: t + (a - p), total, adapted, theta)
        moved = jax.tree.map(lambda p, t: p + t / len(images), theta, total)
        return {"params": jax.device_get(moved)}


def _distance(found, right) -> float:
    """The norm of the difference over the norm of the true value, over all leaves together."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True)
    squares = [
        (np.sum((np.float64(a) - np.float64(b)) ** 2), np.sum(np.float64(b) ** 2)) for a, b in pairs
    ]
    return float(np.sqrt(sum(wrong for wrong, _ in squares) / sum(norm for _, norm in squares)))
