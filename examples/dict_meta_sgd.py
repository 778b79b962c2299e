"""Meta-SGD (Li et al. 2017, arXiv:1707.09835), as a meta-gradient of your own.

It learns an inner learning rate for every parameter beside the initialisation. The gradient of the
query loss, after the inner steps, goes to both.

    python examples/dict_meta_sgd.py [meta steps]
"""

import sys

import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj


def loss_fn(theta, batch):
    hidden = jnp.tanh(batch.inputs @ theta["w"] + theta["b"])
    hidden = jnp.tanh(hidden @ theta["u"] + theta["c"])
    return jnp.mean((hidden @ theta["v"] - batch.targets) ** 2)


def sgd(rates):
    """SGD with a learning rate for every parameter."""
    return optax.stateless(lambda grads, _: jax.tree.map(lambda a, g: -a * g, rates, grads))


def compute(params, opt_state, task):
    def query_loss(params):
        adapted = rj.inner_loop(loss_fn, sgd(params["rates"]), params["theta"], task.support)
        return loss_fn(adapted.params, task.query), adapted.losses

    gradient, losses = jax.grad(query_loss, has_aux=True)(params)
    return rj.TaskGradient(gradient, opt_state, losses)


def main(meta_steps: int) -> None:
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
    theta = {"w": draw(0, 1, 40), "b": draw(1, 1, 40), "u": draw(2, 40, 40) / 6}
    theta |= {"c": jnp.zeros((1, 40)), "v": draw(3, 40, 1) / 6}
    params = {"theta": theta, "rates": jax.tree.map(lambda x: jnp.full_like(x, 0.01), theta)}
    meta_gradient = rj.MetaGradient(lambda params: (), compute)
    learner = rj.meta_learner(meta_gradient, optax.adam(1e-3))
    waves, key = rj.tasks.sinusoids(shots=10, steps=1), jax.random.key(1)
    start = learner.init(params)
    for state, infos in rj.train(learner, start, waves, key, until=meta_steps, meta_batch=4):
        if int(state.step) % 500 == 0:
            print(f"meta step {int(state.step)}: loss {infos.losses.mean():.3f}")
    score = lambda theta, task: loss_fn(theta, task.query)
    theta, inner, key = state.params["theta"], sgd(state.params["rates"]), jax.random.key(2)
    result = rj.evaluate(loss_fn, score, inner, theta, waves, key, num_tasks=200)
    print(f"held-out error {result.mean[0]:.3f}, after one step {result.mean[1]:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
