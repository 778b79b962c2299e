"""Inner loops on mini-batches from an iterator: what `inner_loop` gives, in pieces."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import reptile_jax as rj
from reptile_jax import checkpoint, streaming
from tests import workers
from tests.conftest import outside_strict
from tests.workers import batches, first_params, loss_fn

ROOT = Path(__file__).parents[1]
BOUND = 120  # seconds; on a machine that does nothing else it is a few
ADAM = outside_strict(optax.adam(0.05, b1=0.5, b2=0.9))


def run(start, stream, until, per_dispatch=5, optimizer=ADAM, loss_fn=loss_fn):
    """The state after `until` steps, and the info of all of them."""
    infos = []
    for state, info in rj.stream(
        loss_fn, optimizer, start, iter(stream), until=until, steps_per_dispatch=per_dispatch
    ):
        start = state
        infos.append(jax.device_get(info))
    return start, jax.tree.map(lambda *leaves: np.concatenate(leaves), *infos)


def stacked(given):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *given)


def f64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def by_hand(params, given, adam):
    """The steps in NumPy, for a linear model: the rate is 0.05, Adam's are 0.5 and 0.9."""
    w, losses = params["w"].copy(), []
    first, second = np.zeros_like(w), np.zeros_like(w)
    for count, (inputs, targets) in enumerate(given, 1):
        error = inputs @ w - targets
        losses.append(np.mean(error**2))
        grad = 2 * inputs.T @ error / error.size
        if adam:
            first, second = 0.5 * first + 0.5 * grad, 0.9 * second + 0.1 * grad**2
            grad = first / (1 - 0.5**count) / (np.sqrt(second / (1 - 0.9**count)) + 1e-8)
        w -= 0.05 * grad
    return w, losses


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("per_dispatch", [1, 4, 17, 100])
@pytest.mark.parametrize("adam", [False, True])
def test_the_steps_are_those_written_by_hand(adam, per_dispatch):
    """Also where the last dispatch is shorter than the others."""
    optimizer = ADAM if adam else optax.sgd(0.05)
    linear = lambda params, batch: jnp.mean((batch.inputs @ params["w"] - batch.targets) ** 2)
    params, given = {"w": f64(first_params()["w"][:, :2])}, f64([*batches(0, 0, 0, 17)])
    start = rj.start_task(optimizer, params)
    state, info = run(start, given, 17, per_dispatch, optimizer, linear)
    w, losses = by_hand(params, given, adam)
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-11)
    np.testing.assert_allclose(info.losses, losses, rtol=1e-11)
    assert (int(state.step), float(state.loss)) == (17, info.losses[-1])


def test_losses_of_every_kind_are_taken_as_inner_loop_takes_them():
    """Model state, aux, and mini-batches that are padded or empty."""

    def masked_loss(params, model_state, batch):
        mean = rj.tasks.masked_mean(lambda params, b: jnp.mean((b[0] @ params["w"]) ** 2, axis=-1))
        loss = mean(params, batch)
        return loss, {"seen": model_state["seen"] + 1}, {"twice": 2 * loss}

    params, model_state = {"w": first_params()["w"]}, {"seen": np.int32(7)}
    each = [
        rj.tasks.Masked(tuple(b), np.array([True, True, i % 2 > 0, False]))
        for i, b in enumerate(batches(0, 0, 0, 9))
    ]
    each[4] = each[4]._replace(mask=np.zeros(4, bool))
    start = rj.start_task(ADAM, params, model_state=model_state)
    state, info = run(start, each, 9, 4, loss_fn=masked_loss)
    expected = rj.inner_loop(masked_loss, ADAM, params, stacked(each), model_state=model_state)
    ended = state.params, state.opt_state, state.model_state, info.losses, info.aux
    wanted = (expected.params, expected.opt_state, expected.model_state)
    chex.assert_trees_all_close(ended, (*wanted, expected.losses, expected.aux), rtol=1e-5)
    assert int(state.model_state["seen"]) == 15  # one mini-batch is empty
    assert int(state.step) == 9


def test_the_optimiser_starts_where_it_is_told():
    first, _ = run(rj.start_task(ADAM, first_params()), batches(0, 0), 11)
    second = rj.start_task(ADAM, first_params(), first.opt_state)
    state, _ = run(second, batches(1, 0), 12)
    given = stacked(batches(1, 0, 0, 12))
    expected = rj.inner_loop(loss_fn, ADAM, first_params(), given, first.opt_state)
    assert int(state.opt_state[0].count) == 23
    chex.assert_trees_all_close(state[:2], expected[:2], rtol=1e-5)


def test_a_task_that_was_saved_goes_on_bit_for_bit(tmp_path):
    """From the end of any dispatch, and with random keys in its state."""

    def keyed(params, model_state, batch):
        key, used = jax.random.split(model_state["key"])
        return loss_fn(params, batch) * jax.random.uniform(used), {"key": key}

    start = lambda: rj.start_task(ADAM, first_params(), None, {"key": jax.random.key(3)})
    steps = lambda task: rj.stream(
        keyed, ADAM, task, batches(0, 0, int(task.step)), until=23, steps_per_dispatch=5
    )
    losses = []
    for ended, info in steps(start()):
        checkpoint.save(tmp_path / str(ended.step), ended)
        losses.append(np.asarray(info.losses))
    assert len(losses) == 5
    for number, at in enumerate((5, 10, 15, 20), 1):
        restored = checkpoint.restore(tmp_path / str(at), like=jax.eval_shape(start))
        *before, (state, _) = again = [*steps(restored)]
        assert len(before) == 4 - number
        for after, (_, info) in zip(losses[number:], again, strict=True):
            assert (info.losses == after).all()
        for part in ("params", "opt_state", "step", "loss"):
            chex.assert_trees_all_equal(getattr(state, part), getattr(ended, part))
        keys = [jax.random.key_data(each.model_state["key"]) for each in (state, ended)]
        chex.assert_trees_all_equal(*keys)


@pytest.mark.parametrize("until", [12, 20])
def test_no_more_is_taken_than_two_dispatches_need(until):
    """One is computed and one is read; what follows is left for others."""
    taken = []
    given = (taken.append(batch) or batch for batch in batches(0, 0, 0, 100))
    start, ahead = rj.start_task(ADAM, first_params()), []
    for _ in rj.stream(loss_fn, ADAM, start, given, until=until, steps_per_dispatch=5):
        ahead.append(len(taken))
    assert ahead == [min(until, 5 * n) for n in range(2, -(-until // 5) + 2)]
    again = rj.start_task(ADAM, first_params())
    assert [*rj.stream(loss_fn, ADAM, again, given, until=0)] == []
    assert len(taken) == until


def test_mini_batches_are_read_while_the_device_computes(monkeypatch):
    """When the first of the next dispatch is taken, this one has not come to its end."""
    under_way, ended_first = [], []

    def given():
        for number, batch in enumerate(batches(0, 0)):
            if number in (2, 4):
                ended_first.append(under_way[-1].is_ready())
            yield batch

    def long(params, batch):
        square = jnp.full((400, 400), 1e-3)
        product = jax.lax.fori_loop(0, 100, lambda _, x: x @ x, square + params["b"][0] * 0)
        return loss_fn(params, batch) + jnp.sum(product)

    run_steps = streaming._steps

    def kept(*args):
        state, info = run_steps(*args)
        under_way.append(info.losses)
        return state, info

    monkeypatch.setattr(streaming, "_steps", kept)
    run(rj.start_task(ADAM, first_params()), given(), 6, 2, loss_fn=long)
    assert ended_first == [False, False]


def test_a_program_for_each_length_of_a_dispatch():
    before = streaming._steps._cache_size()
    state = rj.start_task(ADAM, first_params())
    for until in (23, 43):  # the second goes on at a multiple of 5, after two steps
        state, _ = run(state, batches(0, 0), until)
    assert streaming._steps._cache_size() - before <= 3  # of 5, 3 and 2 steps
    run(rj.start_task(ADAM, first_params()), batches(0, 1), 23)
    assert streaming._steps._cache_size() - before <= 3


def mini_batch(**changed):
    (batch,) = batches(0, 0, 0, 1)
    return batch._replace(**changed)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"the mini-batches end after 10 of 23 inner steps: give as many as steps"),
        ([mini_batch()] * 3, r"the mini-batches end after 13 of 23 inner steps"),
        (
            [mini_batch(), mini_batch(targets=np.zeros((3, 2), np.float32))],
            r"mini-batch 11 is .*'float32\[3, 2\]'\), but the first one was .*'float32\[4, 2\]'\): "
            "give all the same structure, shapes and dtypes",
        ),
        ([mini_batch(inputs=np.zeros((4, 3), np.int8))], r"mini-batch 10 is .*'int8\[4, 3\]'"),
        ([{"inputs": 0}], r"mini-batch 10 is {'inputs': 'int32\[\]'}, but"),
        (iter(lambda: 1 / 0, 1), "division by zero"),
    ],
)
def test_what_goes_wrong_with_a_mini_batch_loses_no_step(given, message):
    """The state before it is yielded first, and another iterator can go on from it."""
    stream = itertools.chain(batches(0, 0, 0, 10), given)
    start, states = rj.start_task(ADAM, first_params()), []
    steps = rj.stream(loss_fn, ADAM, start, stream, until=23, steps_per_dispatch=5)
    with pytest.raises((ValueError, ZeroDivisionError), match=message):
        states.extend(state for state, _ in steps)
    assert int(states[-1].step) == 10
    ended, _ = run(states[-1], batches(0, 0, 10), 23)
    expected, _ = run(rj.start_task(ADAM, first_params()), batches(0, 0), 23)
    chex.assert_trees_all_equal(ended, expected)


def test_bad_input_is_refused_at_the_call():
    start, stream = rj.start_task(ADAM, first_params()), batches(0, 0)

    def refused(error, message, loss=loss_fn, optimizer=ADAM, state=start, given=stream, **how):
        with pytest.raises(error, match=message):
            rj.stream(loss, optimizer, state, given, **{"until": 5, **how})

    refused(ValueError, "steps_per_dispatch is at least 1, got 0", steps_per_dispatch=0)
    refused(TypeError, "steps_per_dispatch is an integer, got 2.5", steps_per_dispatch=2.5)
    refused(ValueError, "until is at least 0, got -1", until=-1)
    for given in ([*batches(0, 0, 0, 9)], stacked(batches(0, 0, 0, 9))):
        refused(TypeError, "mini-batches come from an iterator, which iter", given=given)
    refused(TypeError, "loss_fn is a function", loss=None)
    refused(TypeError, "an optimiser is one of Optax's", optimizer=0.1)
    refused(TypeError, "the state of a task is what rj.start_task gives", state=first_params())
    message = "this state is of another optimiser: .* or start from rj.start_task"
    refused(ValueError, message, optimizer=optax.sgd(0.1))
    with pytest.raises(TypeError, match="save takes a learner's or a task's state, got dict"):
        checkpoint.save("nowhere", first_params())
    with pytest.raises(TypeError, match="parameters are floating-point"):
        rj.start_task(ADAM, {"w": np.zeros(3, np.int32)})
    run(start, stream, 5)
    refused(ValueError, "this state was donated")


def whole_tasks(number, steps=12):
    """A meta-batch for `learner.step`, each task with a query set and a weight."""
    supports = [stacked(batches(0, worker, 0, steps)) for worker in range(number)]
    queries = [next(batches(0, worker, 50, 51)) for worker in range(number)]
    return rj.Task(stacked(supports), stacked(queries), np.float32([1, 3, 0.5, 2][:number]))


def ended_tasks(state, number, mesh=None, steps=12):
    """The same, streamed from a state."""
    tasks, whole = [], whole_tasks(number)
    for worker in range(number):
        start = rj.start_task(ADAM, state.params, state.inner_opt_state, state.model_state)
        ended, _ = run(start, batches(0, worker), steps)
        rest = jax.tree.map(lambda leaf, at=worker: leaf[at], (whole.query, whole.weight))
        tasks.append(rj.Task(ended, *rest))
    return rj.streamed(*tasks, mesh=mesh)


def learner_of(sibling, mesh=None, **options):
    options = {"inner_opt_state": "average", **options}
    outer = optax.sgd(0.5, momentum=0.9)
    return rj.meta_learner(sibling(loss_fn, ADAM), outer, mesh=mesh, **options)


@pytest.mark.parametrize(
    ("sibling", "policy"),
    [
        (rj.reptile, "average"),
        pytest.param(rj.reptile, "reset", marks=pytest.mark.slow),
        pytest.param(rj.fomaml, "average", marks=pytest.mark.slow),
        pytest.param(rj.foml, "average", marks=pytest.mark.slow),
    ],
)
def test_a_meta_step_is_that_of_whole_tasks(sibling, policy):
    learner, states, infos = learner_of(sibling, inner_opt_state=policy), [], []
    for tasks in (lambda _: whole_tasks(3), lambda state: ended_tasks(state, 3)):
        state = learner.init(first_params())
        state, _ = learner.step(state, tasks(state))
        state, info = learner.step(state, tasks(state))
        states.append(state)
        infos.append(info)
    chex.assert_trees_all_close(*states, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(infos[1].losses[:, -1], infos[0].losses[:, -1], rtol=1e-4)
    assert infos[1].losses.shape == (3, 2 if sibling is rj.foml else 1)


@pytest.mark.parametrize("aux", [False, True])
def test_foml_of_streamed_tasks_takes_what_a_loss_returns_besides(aux):
    error = lambda params, batch: jnp.mean((params - batch) ** 2)
    with_aux = lambda params, batch: (error(params, batch), {"mean": jnp.mean(params)})
    sgd, loss = optax.sgd(0.1), with_aux if aux else error
    task, _ = run(rj.start_task(sgd, jnp.ones(3)), [np.zeros(3)] * 2, 2, 2, sgd, loss)
    learner = rj.meta_learner(rj.foml(loss, sgd), optax.sgd(1.0))
    tasks = rj.streamed(rj.Task(task, np.zeros(3, np.float32), weight=2.0))
    assert tasks.weight.tolist() == [2.0]
    state, info = learner.step(learner.init(jnp.ones(3)), tasks)
    np.testing.assert_allclose(state.params, 1 - (1 - 1 / 15) ** 2 / 15, rtol=1e-6)
    assert (info.losses.shape, info.aux) == ((1, 2), None)


def test_a_task_that_has_diverged_is_left_out():
    learner = learner_of(rj.reptile)
    tasks = ended_tasks(learner.init(first_params()), 3)
    broken = tasks._replace(
        support=tasks.support._replace(
            params=jax.tree.map(lambda x: x.at[1].set(np.nan), tasks.support.params)
        )
    )
    state, info = learner.step(learner.init(first_params()), broken)
    assert info.finite.tolist() == [True, False, True]
    without = jax.tree.map(lambda leaf: leaf[np.array([0, 2])], tasks)
    expected, _ = learner.step(learner.init(first_params()), without)
    chex.assert_trees_all_close(state, expected, rtol=1e-6)


def test_a_model_with_state_is_streamed():
    def stateful(params, model_state, batch):
        return loss_fn(params, batch), {
            "mean": 0.9 * model_state["mean"] + 0.1 * batch.inputs.mean()
        }

    learner = rj.meta_learner(rj.reptile(stateful, ADAM), optax.sgd(0.5))
    first = lambda: learner.init(first_params(), {"mean": np.float32(2)})
    expected, _ = learner.step(first(), rj.Task(whole_tasks(1).support))
    state = first()
    task = rj.start_task(ADAM, state.params, state.inner_opt_state, state.model_state)
    task, _ = run(task, batches(0, 0), 12, loss_fn=stateful)
    state, _ = learner.step(state, rj.streamed(task))
    chex.assert_trees_all_close(state, expected, rtol=1e-5)
    assert float(state.model_state["mean"]) < 1


@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_tasks_that_were_streamed_are_divided_over_a_mesh(parts):
    mesh, states = rj.task_mesh(jax.devices()[:parts]), []
    for where in (None, mesh):
        learner = learner_of(rj.reptile, where)
        state = learner.init(first_params())
        state, info = learner.step(state, ended_tasks(state, 4, where))
        states.append(jax.device_get((state, info)))
    chex.assert_trees_all_close(*states, rtol=1e-5)


SPECS = {"w": P(None, "model"), "b": P("model"), "v": P("model", None)}


def on(mesh):
    place = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))
    return jax.tree.map(place, first_params(), SPECS)


def is_divided(tree, parts):
    for name, leaf in tree.items():
        expected = NamedSharding(leaf.sharding.mesh, SPECS[name])
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim)
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // parts}


def test_a_model_stays_divided_over_its_axis():
    """In the state of the task, which is on one part of the tasks' axis, and in the meta step."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("tasks", "model"))
    alone, learner = learner_of(rj.reptile), learner_of(rj.reptile, mesh)
    state, expected = learner.init(on(mesh)), alone.init(first_params())
    task, _ = run(rj.start_task(ADAM, state.params, state.inner_opt_state), batches(0, 0), 12)
    for tree in (task.params, task.opt_state[0].mu, task.opt_state[0].nu):
        is_divided(tree, 4)
    assert task.params["w"].sharding.device_set == set(jax.devices()[:4])
    expected, _ = alone.step(expected, ended_tasks(expected, 2))
    state, _ = learner.step(state, ended_tasks(state, 2, mesh))
    is_divided(state.params, 4)
    is_divided(state.inner_opt_state[0].nu, 4)
    chex.assert_trees_all_close(
        jax.device_get(state), jax.device_get(expected), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_model_on_a_mesh_of_its_own_stays_divided(kind):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(kind,), devices=jax.devices()[4:])
    task, _ = run(rj.start_task(ADAM, on(mesh)), batches(0, 0), 12)
    is_divided(task.params, 4)
    is_divided(task.opt_state[0].nu, 4)
    expected, _ = run(rj.start_task(ADAM, first_params()), batches(0, 0), 12)
    chex.assert_trees_all_close(jax.device_get(task), jax.device_get(expected), rtol=1e-5)


def test_what_needs_the_inner_loop_itself_is_refused():
    learner = learner_of(rj.reptile)
    state = learner.init(first_params())
    tasks = ended_tasks(state, 2)
    no_query = tasks._replace(query=None)
    weighted = lambda loss_fn, inner: rj.weighted_gradients(loss_fn, inner, [1.0])
    for sibling, given, message in (
        (rj.maml, tasks, "of a task that was streamed has no derivative, which rj.maml"),
        (weighted, tasks, "the support set is a task that was streamed: its mini-batches are gone"),
        (rj.foml, no_query, "the support set is a task that was streamed"),
        (rj.fomaml, no_query, "fomaml and maml need a query set"),
    ):
        with pytest.raises(ValueError, match=message):
            learner_of(sibling).step(state, given)
    with pytest.raises(ValueError, match="is a task that was streamed"):
        rj.evaluate(loss_fn, loss_fn, ADAM, first_params(), tasks)


def test_tasks_that_do_not_fit_are_refused():
    learner = learner_of(rj.reptile)
    state = learner.init(first_params())
    narrow = {**first_params(), "v": np.zeros((16, 1), np.float32)}
    other, plain = rj.start_task(ADAM, narrow), rj.start_task(optax.sgd(0.1), first_params())
    with pytest.raises(ValueError, match="the tasks are of another learner: their params is"):
        learner.step(state, rj.streamed(other))
    task = rj.start_task(ADAM, first_params(), None, {"mean": np.float32(0)})
    with pytest.raises(ValueError, match="another learner: their model_state is"):
        learner.step(state, rj.streamed(task))
    with pytest.raises(ValueError, match=r"its opt_state is .*, but that of this inner optimiser"):
        learner.step(state, rj.streamed(plain))
    task = rj.start_task(ADAM, first_params())
    for tasks in ((), (task, other), (task, rj.Task(task, weight=np.float32(1)))):
        with pytest.raises(ValueError, match=rf"got {len(tasks)} tasks: give at least one"):
            rj.streamed(*tasks)
    with pytest.raises(TypeError, match=r"a task that was streamed is what rj\.stream"):
        rj.streamed(rj.Task(whole_tasks(1).support))
    mesh = rj.task_mesh(jax.devices()[:2])
    with pytest.raises(ValueError, match=r"got 3 tasks for the 2 parts"):
        rj.streamed(task, task, task, mesh=mesh)


MEMORY = """
import itertools, resource
import jax, jax.numpy as jnp, numpy as np, optax
import reptile_jax as rj

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
some = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
batches = (some + np.float32(number % 7) for number in itertools.count())
loss_fn, optimizer = lambda params, batch: jnp.mean((batch @ params) ** 2), optax.sgd(1e-3)
task, before, after = rj.start_task(optimizer, some[:, :8]), peak(), {}
for task, _ in rj.stream(loss_fn, optimizer, task, batches, until=10_000, steps_per_dispatch=2):
    after[int(task.step)] = peak()
print(after[1_000] - before, after[10_000] - before, np.isfinite(task.loss))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_memory_does_not_grow_with_the_number_of_steps():
    """10,000 mini-batches of 1 MiB."""
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    soon, late, finite = done.stdout.split()
    print(f"MiB after 1,000 steps {soon}, after 10,000 {late}")
    assert finite == "True"
    assert float(late) < 100
    assert float(late) - float(soon) < 30  # the allocator's; 9,000 MiB have passed by


@contextlib.contextmanager
def started(tmp_path, folder, how="", number=2):
    """Starts as many workers on a folder, to talk over the loopback; ends all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    folder.mkdir(exist_ok=True)
    logs = [tmp_path / f"{index}.log" for index in range(number)]
    processes = []
    try:
        for index, log in enumerate(logs):
            words = "-m", "tests.workers", str(index), str(number), coordinator, str(folder), how
            # One device each, and programs as this process compiles them.
            flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
            with log.open("w") as output:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *words],
                        cwd=ROOT,
                        env={**os.environ, "XLA_FLAGS": flags},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        yield processes, logs
    finally:
        for process in processes:
            process.kill()
            process.wait()


def ended_well(tmp_path, folder, **how):
    """The state that workers end with."""
    with started(tmp_path, folder, **how) as (processes, logs):
        codes = [process.wait(BOUND) for process in processes]
    assert set(codes) == {0}, "\n".join(log.read_text() for log in logs)
    like = workers.learner_on(None).init(first_params())
    return checkpoint.restore(folder / "meta", like=like)


def wait_for(path, processes, logs):
    deadline = time.monotonic() + BOUND
    while not path.exists():
        assert time.monotonic() < deadline, logs[0].read_text()
        assert not any(process.poll() for process in processes), logs[0].read_text()
        time.sleep(0.001)


@pytest.mark.slow
def test_a_task_that_is_killed_again_and_again_ends_bit_for_bit(tmp_path):
    """With SIGKILL, in the middle of an inner loop and perhaps of a save."""
    killed = tmp_path / "killed"
    for step in ("0/10", "1/15", "3/20"):
        with started(tmp_path, killed, number=1) as (processes, logs):
            wait_for(killed / "worker-0" / step, processes, logs)
            processes[0].send_signal(signal.SIGKILL)
    assert ended_well(tmp_path, killed, number=1).step == workers.META_STEPS
    ended = ended_well(tmp_path, killed, number=1)
    expected = ended_well(tmp_path, tmp_path / "alone", number=1)
    chex.assert_trees_all_equal(ended, expected)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What two workers end with, each of whom is the slower one in turn."""
    tmp_path = tmp_path_factory.mktemp("undisturbed")
    return ended_well(tmp_path, tmp_path / "run", how="slowly")


@pytest.mark.slow
def test_workers_of_unequal_speed_do_what_one_process_does(undisturbed):
    """Each is held up until the other has ended its inner loop, so no one waits in that."""
    with jax.numpy_dtype_promotion("standard"):
        learner = workers.learner_on(None)
        state = learner.init(first_params())
        for meta_step in range(workers.META_STEPS):
            supports = [stacked(batches(meta_step, worker)) for worker in range(2)]
            state, _ = learner.step(state, rj.Task(stacked(supports)))
    chex.assert_trees_all_close(undisturbed, state, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_that_is_killed_ends_the_others_and_the_run_goes_on(tmp_path, victim, undisturbed):
    folder = tmp_path / "run"
    with started(tmp_path, folder, "endless") as (both, logs):
        for worker in range(2):
            wait_for(folder / f"worker-{worker}" / "2" / "15" / "checksums.json", both, logs)
        both[victim].send_signal(signal.SIGKILL)
        begin = time.monotonic()
        assert both[1 - victim].wait(BOUND) != 0
        assert time.monotonic() - begin < 40  # seconds; the heartbeats' are 10
    chex.assert_trees_all_equal(ended_well(tmp_path, folder), undisturbed)


@pytest.mark.slow
def test_a_worker_whose_stream_fails_ends_the_others(tmp_path, undisturbed):
    folder = tmp_path / "run"
    with started(tmp_path, folder, "failing") as (both, logs):
        assert 0 not in [process.wait(BOUND) for process in both]
    assert "OSError: the disk of worker 1 is gone" in logs[1].read_text()
    chex.assert_trees_all_equal(ended_well(tmp_path, folder), undisturbed)
