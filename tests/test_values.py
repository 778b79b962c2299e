"""Trees are compared by structure, shapes and dtypes, whatever their class, and read by people."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import reptile_jax as rj
from reptile_jax._values import check_leading_axis, check_number, kind, same_shapes
from reptile_jax.tasks import burgers, clients, phantoms, stack_tasks


@jax.tree_util.register_pytree_node_class
class Plain:
    """A pytree with neither `==` nor `repr` of its own."""

    def __init__(self, w):
        self.w = w

    def tree_flatten(self):
        return (self.w,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def linear():
    return nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("make", [lambda: Plain(jnp.ones((2, 1))), linear])
def test_parameters_of_any_class_learn(make):
    weights = lambda params: jax.tree.leaves(params)[0]
    loss_fn = lambda params, batch: jnp.mean((batch @ weights(params)) ** 2)
    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(1.0))
    state, _ = learner.step(learner.init(make()), rj.Task(jnp.ones((2, 3, 4, 2))))
    assert type(state.params) is type(make())
    assert not np.allclose(weights(state.params), weights(make()))


def test_examples_of_any_class_are_stacked_and_grouped():
    tasks = [rj.Task(Plain(np.full((2, 3), i, np.float32))) for i in range(2)]
    assert stack_tasks(tasks).support.examples.w.shape == (2, 2, 3)
    made = clients([task.support for task in tasks], batch_size=2, epochs=1)
    assert made.sample(jax.random.key(0)).support.examples.w.shape == (1, 2, 3)
    tasks[1] = rj.Task(Plain(np.zeros((2, 3, 4), np.float32)))
    with pytest.raises(ValueError, match=r"number 1 is .*: float32\[4\], one of .*: float32\[\]\."):
        stack_tasks(tasks)
    with pytest.raises(ValueError, match=r"client 1 is .*: float32\[3, 4\] an ex.*: float32\[3\]:"):
        clients([task.support for task in tasks], batch_size=2, epochs=1)


def test_kinds_tell_structure_shapes_and_dtypes_apart():
    trees = [{"w": np.zeros(2, np.float32)}, {"w": np.zeros(2, np.int8)}, {"w": 0}, {"v": 0}]
    trees += [{"w": 0.0}, {"w": np.zeros((1, 2), np.float32)}, {"w": "words"}, {"w": None}]
    for one, other in itertools.combinations(trees, 2):
        assert kind(one) != kind(other)
    assert same_shapes(trees[0], trees[1])
    assert not same_shapes(trees[0], trees[5])
    assert kind(trees[5], 1) == kind(trees[0], 0)
    # What JAX takes for the same is the same, inside and outside of a trace.
    assert kind({"w": np.zeros(2)}) == kind(jax.eval_shape(lambda: trees[0])) == kind(trees[0])
    assert kind(2.5) == kind(np.float64(1)) == kind(jnp.float32(1))
    batch = rj.Batch(np.zeros((4, 1)), 3)
    assert str(kind(batch)) == "Batch(inputs='float32[4, 1]', targets='int32[]')"
    assert str(kind(linear())).endswith("kernel.value: float32[2, 1]")


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), 0.5])
def test_a_number_may_be_one_of_numpy(number):
    assert type(check_number("x", number, least=0, largest=1)) is float
    ones = jnp.ones((2, 3)), jnp.ones(3), jnp.ones(3)
    assert rj.nn.batch_norm(*ones, epsilon=number).shape == (2, 3)
    assert hash(dataclasses.replace(phantoms(noise=number), size=8))
    assert burgers(horizon=number).horizon == phantoms(noise=number).noise == 0.5


@pytest.mark.parametrize("bad", [2, -0.1, np.nan, "1", None, jnp.ones(1)])
def test_what_is_no_number_in_range_is_named(bad):
    with pytest.raises(ValueError, match="x is a number between 0 and 1, got"):
        check_number("x", bad, least=0, largest=1)
    if bad != 2:
        with pytest.raises(ValueError, match="x is a number of at least 0, got"):
            check_number("x", bad, least=0)


def test_a_scalar_has_no_leading_axis():
    for tree in (jnp.float32(1), {"a": 1, "b": 2.0}):
        with pytest.raises(ValueError, match=r"it has no leading axis \[steps\]: .* are scalars"):
            check_leading_axis(tree, "steps", "it")
