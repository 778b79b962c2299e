"""opifex's own meta-training, in the Python that has opifex: a process that answers lines of JSON.

    {"method": "reptile", "meta_steps": 300, "seed": 0, "weights": [[...], ...], "forward": false}

asks for a training from some weights and biases. The answer has the seconds that it took, with its
compilation, and what it ended with. The setting is that of opifex's example of meta-learning
(docs/examples/optimization/meta-optimization.md of its repository).
"""

import dataclasses
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from opifex.optimization.l2o.core import Task, TaskFamily
from opifex.optimization.l2o.meta_learning import maml_meta_train, reptile_meta_train

VISCOSITY, HORIZON = (0.005, 0.05), 0.5
POINTS, INITIAL_POINTS, BOUNDARY_POINTS = 200, 50, 20


def network(params, points):
    """A tanh network of `[(weight, bias), ...]`: `[batch, 2]` -> `[batch, 1]`."""
    *hidden, (weight, bias) = params
    for w, b in hidden:
        points = jnp.tanh(points @ w + b)
    return points @ weight + bias


def reverse_residual(params, points, viscosity):
    """The residual by gradients of gradients, one point at a time, as in opifex's example."""
    u = lambda point: network(params, point[None])[0, 0]
    slope = jax.grad(u)

    def residual(point):
        u_x, u_t = slope(point)
        u_xx = jax.grad(lambda point: slope(point)[0])(point)[0]
        return u_t + u(point) * u_x - viscosity * u_xx

    return jax.vmap(residual)(points)


def forward_residual(params, points, viscosity):
    """The same in forward mode, all points at once, as `rj.tasks.residual_loss` has it."""
    u = lambda points: network(params, points)
    along = lambda axis: jnp.zeros_like(points).at[:, axis].set(1)
    in_x = lambda points: jax.jvp(u, (points,), (along(0),))
    (value, u_x), (_, u_xx) = jax.jvp(in_x, (points,), (along(0),))
    _, u_t = jax.jvp(u, (points,), (along(1),))
    return u_t + value * u_x - viscosity * u_xx


@dataclasses.dataclass(frozen=True)
class Burgers(Task):
    """One viscosity, with new points for each key."""

    viscosity: jax.Array
    residual: object

    def init(self, key):
        raise NotImplementedError("all trainings start from the weights that they are given.")

    def loss(self, params, key):
        keys = jax.random.split(key, 4)
        x, t, start, ends = (
            jax.random.uniform(key, (number,))
            for key, number in zip(
                keys, (POINTS, POINTS, INITIAL_POINTS, 2 * BOUNDARY_POINTS), strict=True
            )
        )
        start = 2 * start - 1
        sides = jnp.repeat(jnp.array([-1.0, 1.0]), BOUNDARY_POINTS)
        residual = self.residual(params, jnp.stack([2 * x - 1, HORIZON * t], 1), self.viscosity)
        at_start = network(params, jnp.stack([start, jnp.zeros_like(start)], 1))[:, 0]
        at_sides = network(params, jnp.stack([sides, HORIZON * ends], 1))
        errors = residual, at_start + jnp.sin(jnp.pi * start), at_sides
        return sum(jnp.mean(error**2) for error in errors)


@dataclasses.dataclass(frozen=True)
class Family(TaskFamily):
    """Viscosities drawn uniformly."""

    residual: object

    def sample(self, key):
        low, high = VISCOSITY
        return Burgers(jax.random.uniform(key, (), minval=low, maxval=high), self.residual)


def trained(asked):
    """The answer to one question."""
    arrays = [jnp.asarray(np.asarray(leaf, np.float32)) for leaf in asked["weights"]]
    params = list(zip(arrays[::2], arrays[1::2], strict=True))
    family = Family(forward_residual if asked["forward"] else reverse_residual)
    how = {"num_outer_steps": asked["meta_steps"], "num_tasks": 8, "inner_lr": 0.01}
    begin = time.perf_counter()
    if asked["method"] == "reptile":
        train, how = reptile_meta_train, {**how, "inner_steps": 20, "meta_lr": 0.3}
    else:
        train, how = maml_meta_train, {**how, "inner_steps": 5, "meta_lr": 1e-3}
        how["first_order"] = True
    params, _ = jax.block_until_ready(train(family, params, jax.random.key(asked["seed"]), **how))
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "weights": [np.asarray(leaf).tolist() for pair in params for leaf in pair],
    }


if __name__ == "__main__":
    print(json.dumps({"jax": jax.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(trained(json.loads(line))), flush=True)
