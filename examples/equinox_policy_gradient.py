"""Reinforcement learning: a policy gradient (REINFORCE) in the loss, with an Equinox policy.

Each task is a goal in the plane. The policy moves a point towards it, for five moves, and sees
where the point is but not where the goal is. A mini-batch is the goal and a key; the loss plays
the episodes. The mean return is an auxiliary output.

    python examples/equinox_policy_gradient.py [meta steps]
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj


def goals(key: jax.Array, tasks: int, steps: int) -> rj.Task:
    angle_key, play_key = jax.random.split(key)
    angles = jax.random.uniform(angle_key, (tasks, 1), maxval=jnp.pi)  # a half circle
    goal = jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)
    return rj.Task((jnp.repeat(goal, steps, 1), jax.random.split(play_key, (tasks, steps))))


def main(meta_steps: int) -> None:
    network = eqx.nn.MLP(2, 2, width_size=32, depth=2, key=jax.random.key(0))
    params, static = eqx.partition(network, eqx.is_inexact_array)

    def loss_fn(params, batch):
        (goal, key), policy = batch, jax.vmap(eqx.combine(params, static))

        def move(points, key):
            means = policy(points)
            noise = 0.3 * jax.random.normal(key, means.shape)
            moves = jax.lax.stop_gradient(means + noise)
            log_probs = -jnp.sum((moves - means) ** 2, -1) / (2 * 0.3**2)
            points = points + 0.2 * moves
            return points, (log_probs, -jnp.sum((points - goal) ** 2, -1))

        keys = jax.random.split(key, 5)
        _, (log_probs, rewards) = jax.lax.scan(move, jnp.zeros((20, 2)), keys)  # [moves, episodes]
        to_go = jnp.cumsum(rewards[::-1], 0)[::-1]
        advantages = to_go - to_go.mean(1, keepdims=True)
        return -jnp.mean(jnp.sum(log_probs * advantages, 0)), rewards.sum(0).mean()

    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(0.2))
    state, draw = learner.init(params), jax.jit(lambda key: goals(key, tasks=8, steps=5))
    for step in range(1, meta_steps + 1):
        state, info = learner.step(state, draw(jax.random.key(step)))
        if step % 200 == 0:
            loss, first, last = info.losses.mean(), info.aux[:, 0].mean(), info.aux[:, -1].mean()
            print(f"meta step {step}: loss {loss:.3f}, return {first:.2f}, adapted {last:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
