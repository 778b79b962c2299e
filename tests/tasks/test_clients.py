"""Clients: FedAvg written out in NumPy, what is drawn and how evenly, and what is refused."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

import reptile_jax as rj
from reptile_jax import Batch
from reptile_jax.tasks import Masked, Repeated, clients, masked_mean
from tests.nonsense import answered, fuzz, mostly

COUNTS = {"ann": 9, "ben": 2, "cleo": 5, "dan": 8}
FEATURES, LABELS, RATE = 3, 4, 0.3


def numbered(counts=COUNTS):
    """Examples of made-up clients; `number` is an example's place in its client's data."""
    rng = np.random.default_rng(0)
    return {
        name: {
            "x": rng.normal(size=(count, FEATURES)).astype(np.float32),
            "label": rng.integers(0, LABELS, count).astype(np.int32),
            "number": np.arange(count, dtype=np.int32),
        }
        for name, count in counts.items()
    }


@masked_mean
def example_loss(params, batch):
    logits = batch["x"] @ params["w"] + params["b"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def start():
    rng = np.random.default_rng(1)
    return {
        "w": rng.normal(size=(FEATURES, LABELS)).astype(np.float32),
        "b": np.zeros(LABELS, np.float32),
    }


def batches_of(support):
    """The numbers of the real examples of every mini-batch, as lists."""
    numbers, mask = np.asarray(support.examples["number"]), np.asarray(support.mask)
    return [row[real].tolist() for row, real in zip(numbers, mask, strict=True)]


def client_update(w, b, data, batches):
    """Algorithm 1 of McMahan et al.: SGD of softmax regression, in float64."""
    w, b = w.copy(), b.copy()
    for batch in batches:
        x, label = data["x"][batch].astype(np.float64), data["label"][batch]
        logits = x @ w + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(batch)), label] -= 1
        w -= RATE * x.T @ p / len(batch)
        b -= RATE * p.sum(0) / len(batch)
    return w, b


def server_round(w, b, chosen):
    """The server's average of what clients `(data, batches)` send, weighted by their examples."""
    sent = [client_update(w, b, *client) for client in chosen]
    shares = np.array([len(data["label"]) for data, _ in chosen], np.float64)
    shares /= shares.sum()
    return tuple(
        sum(share * new[part] for share, new in zip(shares, sent, strict=True)) for part in (0, 1)
    )


def learner_of(**how):
    return rj.meta_learner(rj.reptile(example_loss, optax.sgd(RATE)), optax.sgd(1.0), **how)


@pytest.mark.parametrize("tasks_at_once", [1, 3])
def test_rounds_over_all_clients_are_those_of_fedavg_in_numpy(tasks_at_once):
    data = numbered()
    distribution = clients(data, batch_size=4, epochs=3)
    draw_all = jax.jit(distribution.all)
    learner = learner_of(tasks_at_once=tasks_at_once)
    state = learner.init(start())
    w, b = (start()[name].astype(np.float64) for name in ("w", "b"))
    for number in range(5):
        tasks = draw_all(jax.random.key(number))
        state, info = learner.step(state, tasks)
        assert info.finite.all()
        chosen, support = [], jax.device_get(tasks.support)
        for place, own in enumerate(data.values()):
            drawn = batches_of(jax.tree.map(lambda leaf, at=place: leaf[at], support))
            count = len(own["label"])
            assert sorted(itertools.chain(*drawn)) == sorted([*range(count)] * 3)
            chosen.append((own, [batch for batch in drawn if batch]))
        w, b = server_round(w, b, chosen)
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.params["b"], b, rtol=1e-5, atol=1e-6)
    assert np.abs(w - start()["w"]).max() > 0.3  # it has gone somewhere


def test_training_on_drawn_clients_is_fedavg_in_numpy():
    """The compiled loop: three clients in a round, drawn with replacement."""
    data, key = numbered(), jax.random.key(3)
    distribution, learner = clients(data, batch_size=4, epochs=2), learner_of()
    (*_, (state, _)) = rj.train(
        learner, learner.init(start()), distribution, key, until=6, meta_batch=3
    )
    w, b = (start()[name].astype(np.float64) for name in ("w", "b"))
    by_count = {len(own["label"]): own for own in data.values()}
    key_of = lambda *numbers: functools.reduce(jax.random.fold_in, numbers, key)
    task_of = jax.jit(lambda *numbers: distribution.sample(key_of(*numbers)))
    for number in range(6):
        chosen = []
        for index in range(3):
            task = task_of(number, index)
            drawn = [batch for batch in batches_of(task.support) if batch]
            chosen.append((by_count[int(task.weight)], drawn))
        w, b = server_round(w, b, chosen)
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.params["b"], b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 9, 20])
def test_every_epoch_has_each_example_once_and_a_ragged_last_batch(batch_size):
    epochs, task_of = 3, jax.jit(clients(numbered(), batch_size=batch_size, epochs=3).task)
    for place, count in enumerate(COUNTS.values()):
        task = task_of(place, jax.random.key(place))
        drawn = batches_of(task.support)
        in_pass = -(-count // batch_size)
        assert len(drawn) == epochs * -(-9 // batch_size)
        taken = drawn[len(drawn) - epochs * in_pass :]
        assert not any(drawn[: len(drawn) - epochs * in_pass])  # the steps at the end are real
        for epoch in range(epochs):
            batches = taken[epoch * in_pass : (epoch + 1) * in_pass]
            assert [len(batch) for batch in batches[:-1]] == [batch_size] * (in_pass - 1)
            assert sorted(itertools.chain(*batches)) == list(range(count))
        assert task.weight == count
        assert task.weight.dtype == jnp.float32


def test_a_number_of_steps_goes_round_and_round():
    task_of = jax.jit(clients(numbered(), batch_size=4, steps=7, weighted=False).task)
    for place, count in enumerate(COUNTS.values()):
        task = task_of(place, jax.random.key(place))
        drawn, in_pass = batches_of(task.support), -(-count // 4)
        assert len(drawn) == 7
        assert task.weight is None
        for first in range(0, 7 - in_pass + 1, in_pass):
            assert sorted(itertools.chain(*drawn[first : first + in_pass])) == list(range(count))


def test_clients_and_orders_are_equally_likely():
    """A client of three: all six orders in each of two epochs, and no link between the epochs."""
    distribution = clients(numbered({"a": 3, "b": 7, "c": 1}), batch_size=1, epochs=2)
    keys = jax.random.split(jax.random.key(0), 12_000)
    tasks = jax.jit(jax.vmap(distribution.sample))(keys)
    weights, counts = np.unique(tasks.weight, return_counts=True)
    assert weights.tolist() == [1, 3, 7]
    np.testing.assert_allclose(counts, 4000, atol=5 * 4000**0.5)
    of_a = np.asarray(tasks.support.examples["number"])[np.asarray(tasks.weight) == 3, -6:, 0]
    seen = collections.Counter(map(tuple, of_a.tolist()))
    assert len(seen) == 36
    expected = len(of_a) / 36
    np.testing.assert_allclose([*seen.values()], expected, atol=5 * expected**0.5)


def test_whole_data_in_every_step_and_queries_are_padded_once():
    data, query = numbered(), numbered({"dan": 3, "cleo": 1, "ben": 4, "ann": 2})  # any order
    distribution = clients(data, query=query, batch_size=None, epochs=5)
    task = distribution.all(jax.random.key(0))
    assert isinstance(task.support, Repeated)
    assert task.support.steps == 5
    for place, name in enumerate(COUNTS):
        for found, own in ((task.support.examples, data[name]), (task.query, query[name])):
            assert isinstance(found, Masked)
            mask = np.asarray(found.mask)[place]
            for field in ("x", "number"):
                kept = np.asarray(found.examples[field])[place][mask]
                np.testing.assert_array_equal(kept, own[field])
    learner = learner_of()
    state, _ = learner.step(learner.init(start()), task)
    w, b = (start()[name].astype(np.float64) for name in ("w", "b"))
    w, b = server_round(w, b, [(own, [list(own["number"])] * 5) for own in data.values()])
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5, atol=1e-6)


def test_pictures_are_scaled_and_a_list_of_clients_will_do():
    images = [np.full((n, 2, 2, 1), 51 * n, np.uint8) for n in (1, 3)]
    task = clients(images, batch_size=2, steps=1).task(1, jax.random.key(0))
    assert task.support.examples.dtype == jnp.float32
    np.testing.assert_allclose(task.support.examples, 0.6, rtol=1e-6)


def test_labels_of_uint8_are_no_pictures():
    data = [Batch(np.zeros((4, 2, 2), np.uint8), np.array([0, 1, 2, 9], np.uint8))]
    made = clients(data, batch_size=None, epochs=1, labels=10, query=data)
    task = made.task(0, jax.random.key(0))
    for batch in (task.support.examples.examples, task.query.examples):
        assert batch.inputs.dtype == jnp.float32
        np.testing.assert_array_equal(batch.targets, data[0].targets, strict=True)


def fields(x=(4, 2), label=(4,), dtype=np.float32):
    return Batch(np.zeros(x, dtype), np.zeros(label, np.int32))


@pytest.mark.parametrize(
    ("data", "how", "message"),
    [
        ({}, {}, "at least one client"),
        (
            {"ann": fields(), "ben": fields((0, 2), (0,))},
            {},
            "the data of client 'ben' has a .* of 0",
        ),
        ([fields(), fields((3, 2), (4,))], {}, "data of client 1 disagree"),
        (
            {"ann": fields(), "ben": fields((4, 3))},
            {},
            "the data of client 'ben' is .*client 'ann'",
        ),
        ({"ann": fields(), "ben": fields(dtype=np.float16)}, {}, "the data of client 'ben' is"),
        ({"ann": fields(), "ben": Batch([0.0], 1)}, {}, "data of client 'ben'"),
        (
            [fields(), Batch(np.zeros((1, 2), np.float32), np.int32([5]))],
            {"labels": 5},
            "data of client 1 has the target 5: labels are 0 to 4",
        ),
        ([Batch(np.zeros((1, 2)), np.array([-1]))], {"labels": 5}, "client 0 has the target -1"),
        ([fields()], {"query": [fields()] * 2}, "same clients, but one lacks 1"),
        ({"a": fields()}, {"query": {"a": fields((0, 2), (0,))}}, "query of client 'a'"),
        ([fields()], {"steps": 2}, "give epochs or steps, one of them, got epochs=1, steps=2"),
        ([fields()], {"epochs": None}, "give epochs or steps"),
        ([fields(dtype="U3")], {}, "client 0 is .*<U3.*: give arrays of numbers"),
        ({"a": {"x": np.zeros(2)}}, {"labels": 2}, "client 'a' has the target None"),
        ([fields()], {"epochs": 0}, "epochs is at least 1, got 0"),
        ([fields()], {"batch_size": 0}, "batch_size is at least 1, got 0"),
    ],
)
def test_bad_clients_are_named(data, how, message):
    with pytest.raises(ValueError, match=message):
        clients(data, **{"batch_size": 2, "epochs": 1, **how})


@fuzz
@given(mostly(data=[fields()], batch_size=2, epochs=1, steps=None, query=None, labels=3))
def test_clients_of_anything(arguments):
    with answered():
        jax.eval_shape(clients(**arguments).sample, jax.random.key(0))
