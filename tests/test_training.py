"""Runs of many meta steps are the same however they are cut, compile once, and compile well."""

import copy
import dataclasses
import pickle
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reptile_jax as rj
from reptile_jax import checkpoint, training
from reptile_jax.nn import MLP, cross_entropy, mini_imagenet_net, omniglot_net, squared_error
from reptile_jax.tasks import sinusoids

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def learner():
    schedule = optax.linear_schedule(1.0, 0.0, 12)
    meta_gradient = rj.reptile(squared_error(MLP((8, 1)).apply), optax.sgd(0.02, momentum=0.5))
    return rj.meta_learner(meta_gradient, optax.sgd(schedule), inner_opt_state="average")


def start(learner):
    return learner.init(MLP((8, 1)).init(jax.random.key(0), jnp.zeros((1, 1))))


def run(learner, state, until, steps_per_dispatch, meta_batch=3):
    loop = rj.train(
        learner,
        state,
        sinusoids(),
        KEY,
        until=until,
        meta_batch=meta_batch,
        steps_per_dispatch=steps_per_dispatch,
    )
    reports = []
    for after, infos in loop:
        reports.append(jax.device_get(infos))
        state = after
    return state, jax.tree.map(lambda *leaves: np.concatenate(leaves), *reports)


def test_a_run_is_the_same_bit_for_bit_however_it_is_cut(learner):
    state, infos = run(learner, start(learner), 12, 12)
    assert infos.losses.shape == (12, 3, 5)
    assert int(state.step) == 12
    pieces, same_infos = run(learner, start(learner), 12, 5)
    chex.assert_trees_all_equal((state, infos), (pieces, same_infos))


def test_a_resumed_run_is_the_uninterrupted_one(learner, tmp_path):
    state, _ = run(learner, start(learner), 12, 4)
    half, _ = run(learner, start(learner), 6, 4)
    checkpoint.save(tmp_path / "checkpoints", half)
    like = jax.eval_shape(lambda: start(learner))
    restored = checkpoint.restore(tmp_path / "checkpoints", like)
    chex.assert_trees_all_equal(restored, half)
    chex.assert_trees_all_equal(run(learner, restored, 12, 4)[0], state)


def test_a_checkpoint_that_is_not_there_is_named(learner, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint folder"):
        checkpoint.restore(tmp_path / "nothing", start(learner))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        checkpoint.restore(tmp_path / "empty", start(learner))


def test_a_dispatch_is_its_meta_steps_one_by_one(learner):
    distribution = sinusoids()
    state = start(learner)
    for step in range(3):
        keys = [jax.random.fold_in(jax.random.fold_in(KEY, step), task) for task in range(4)]
        tasks = [distribution.sample(key) for key in keys]
        state, _ = learner.step(state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks))
    dispatched, _ = rj.meta_steps(
        learner, start(learner), distribution, KEY, num_steps=3, meta_batch=4
    )
    chex.assert_trees_all_close(dispatched, state, rtol=1e-4, atol=1e-6)


def test_a_second_dispatch_compiles_nothing(learner):
    state, _ = run(learner, start(learner), 4, 2, meta_batch=2)
    compiled = training._in_a_dispatch._cache_size()
    run(learner, state, 8, 2, meta_batch=2)
    assert training._in_a_dispatch._cache_size() == compiled


def test_nothing_is_left_to_do_at_the_end(learner):
    state, _ = run(learner, start(learner), 2, 2)
    assert list(rj.train(learner, state, sinusoids(), KEY, until=2, meta_batch=1)) == []


@pytest.mark.parametrize("sizes", [{"meta_batch": 0}, {"meta_batch": 1, "steps_per_dispatch": 0}])
def test_sizes_below_one_are_refused(learner, sizes):
    with pytest.raises(ValueError, match=r"(meta_batch|steps_per_dispatch) is at least 1"):
        next(rj.train(learner, start(learner), sinusoids(), KEY, until=2, **sizes))


def test_a_learner_that_does_not_donate_can_train_with_an_optimizer_that_keeps_the_parameters():
    keeps = optax.GradientTransformation(
        lambda params: params, lambda grads, state, params=None: (grads, state)
    )
    meta_gradient = rj.reptile(squared_error(MLP((8, 1)).apply), optax.sgd(0.02))
    learner = rj.meta_learner(meta_gradient, keeps, donate=False)
    state, _ = run(learner, start(learner), 2, 2)
    assert int(state.step) == 2


# What is wrong with a state is said, before anything is compiled or computed.


@pytest.mark.attack
@pytest.mark.parametrize(
    ("outer", "policy", "part"),
    [(optax.adam(0.1), "average", "opt_state"), (optax.sgd(0.1), "average", "inner_opt_state")],
)
def test_a_state_of_another_learner_says_so(outer, policy, part):
    loss_fn = squared_error(MLP((8, 1)).apply)
    one = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.02)), optax.sgd(0.1))
    inner = optax.sgd(0.02, momentum=0.9)
    other = rj.meta_learner(rj.reptile(loss_fn, inner), outer, inner_opt_state=policy)
    message = f"this state is of another learner: its {part} is "
    with pytest.raises(ValueError, match=message):
        next(rj.train(other, start(one), sinusoids(), KEY, until=2, meta_batch=2))
    tasks = jax.vmap(sinusoids().sample)(jax.random.split(KEY, 2))
    with pytest.raises(ValueError, match=message):
        other.step(start(one), tasks)


@pytest.mark.attack
def test_a_state_that_is_used_up_says_so(learner, tmp_path):
    train = lambda state: rj.train(
        learner, state, sinusoids(), KEY, until=2, meta_batch=3, steps_per_dispatch=2
    )
    tasks = jax.vmap(sinusoids().sample)(jax.random.split(KEY, 2))
    state = start(learner)
    both = train(state), train(state)
    next(both[0])
    loss_fn, params = squared_error(MLP((8, 1)).apply), state.params
    for use in (
        lambda: next(both[1]),
        lambda: train(state),
        lambda: rj.meta_steps(learner, state, sinusoids(), KEY, num_steps=2, meta_batch=3),
        lambda: learner.step(state, tasks),
        lambda: learner.init(params),
        lambda: checkpoint.save(tmp_path, state),
        lambda: rj.evaluate(
            loss_fn, lambda *_: 0.0, optax.sgd(0.1), params, sinusoids(), KEY, num_tasks=2
        ),
    ):
        with pytest.raises(ValueError, match=r"this state was donated: .* give it a copy, jax"):
            use()


@pytest.mark.attack
def test_a_state_with_one_array_twice_says_so(learner):
    state = start(learner)
    twice = state._replace(inner_opt_state=(state.params, state.inner_opt_state[1]))
    tasks = jax.vmap(sinusoids().sample)(jax.random.split(KEY, 2))
    for use in (
        lambda: rj.train(learner, twice, sinusoids(), KEY, until=2, meta_batch=2),
        lambda: learner.step(twice, tasks),
    ):
        with pytest.raises(ValueError, match=r"one array twice, as params\[.*\] and inner_opt_st"):
            use()


@pytest.mark.parametrize("leaves", [False, True])
def test_a_distribution_that_is_no_pytree_of_arrays_is_told_how_to_be_one(learner, leaves):
    class Waves:
        def sample(self, key):
            return sinusoids().sample(key)

    waves = Waves()
    if leaves:
        flat = lambda waves: (("high",), None)
        jax.tree_util.register_pytree_node(Waves, flat, lambda _, leaves: Waves())
    message = "register Waves, with jax.tree_util.register_dataclass"
    with pytest.raises(TypeError, match=message):
        rj.train(learner, start(learner), waves, KEY, until=1, meta_batch=1)
    loss_fn, params = squared_error(MLP((8, 1)).apply), start(learner).params
    with pytest.raises(TypeError, match=message):
        rj.evaluate(loss_fn, lambda *_: 0.0, optax.sgd(0.1), params, waves, KEY, num_tasks=2)


def test_what_is_drawn_from_is_on_the_device_once(learner, monkeypatch):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Shifted:
        by: np.ndarray

        def sample(self, key):
            task = sinusoids().sample(key)
            return task._replace(query=self.by)

    given, state, seen = Shifted(np.ones((1, 1), np.float32)), start(learner), []
    run = training.meta_steps
    spy = lambda *args, **how: seen.append(args[2].by) or run(*args, **how)
    monkeypatch.setattr(training, "meta_steps", spy)
    for _ in rj.train(learner, state, given, KEY, until=3, meta_batch=1, steps_per_dispatch=1):
        pass
    assert isinstance(seen[0], jax.Array)
    assert seen[0] is seen[1] is seen[2]


def test_tasks_that_are_no_distribution_are_told_where_to_go(learner):
    tasks = jax.vmap(sinusoids().sample)(jax.random.split(KEY, 2))
    with pytest.raises(TypeError, match=r"got Task: learner\.step and rj\.evaluate take a Task"):
        rj.train(learner, start(learner), tasks, KEY, until=1, meta_batch=2)


def test_parameters_of_float64_are_taken_as_jax_takes_them(learner):
    params = jax.tree.map(np.float64, jax.device_get(start(learner).params))
    taken = learner.init(params).params
    assert {leaf.dtype for leaf in jax.tree.leaves(taken)} == {np.dtype("float32")}


def test_an_evaluation_names_what_is_no_task():
    @jax.tree_util.register_pytree_node_class
    class Pairs:
        sample = staticmethod(lambda key: (key, key))
        tree_flatten = lambda self: ((), None)
        tree_unflatten = classmethod(lambda cls, _, leaves: cls())

    params, score = {"w": jnp.zeros(1)}, lambda *_: 0.0
    with pytest.raises(TypeError, match="returns a Task, got tuple"):
        rj.evaluate(score, score, optax.sgd(0.1), params, Pairs(), KEY, num_tasks=2)


# What the compiler makes of the paper's networks: what speed rests on, without timing.

ROWS = {  # network, images [size, size, channels], shots and inner steps of training
    "o15": (omniglot_net, (28, 28, 1), 10, 5),
    "m15": (mini_imagenet_net, (84, 84, 3), 15, 8),
}


@pytest.fixture(scope="module", params=ROWS)
def compiled(request):
    """Two meta steps of a row of the paper, with Adam's averaged second moment."""
    network, image, shots, steps = ROWS[request.param]
    classes = rj.tasks.ImageClasses(
        np.zeros((10 * shots, *image), np.uint8),
        np.arange(10, dtype=np.int32) * shots,
        np.full(10, shots, np.int32),
    )
    distribution = rj.tasks.few_shot(classes, ways=5, shots=shots, steps=steps, batch_size=10)
    model = network(5)
    inner = optax.chain(
        optax.scale_by_rms(decay=0.999, eps=1e-8, eps_in_sqrt=False, bias_correction=True),
        optax.scale(-1e-3),
    )
    learner = rj.meta_learner(
        rj.reptile(cross_entropy(model.apply, 10), inner),
        optax.sgd(optax.linear_schedule(1.0, 0.0, 100_000)),
        inner_opt_state="average",
    )
    first = lambda: learner.init(model.init(jax.random.key(0), jnp.zeros((1, *image))))
    with jax.numpy_dtype_promotion("standard"):
        state = jax.eval_shape(first)
        lowered = training._in_a_dispatch.lower(
            learner, state, distribution, jax.random.key(0), 2, 5
        )
        return state, lowered.compile()


@pytest.mark.slow
def test_no_convolution_is_left_in_the_loops(compiled):
    """In a loop on a CPU its gradients would miss the fast path: the step would be 10x slower."""
    _, program = compiled
    text = program.as_text()
    assert " dot(" in text or "__ynn" in text
    assert not re.search(r"\bconvolution\(", text)


@pytest.mark.slow
def test_the_loops_are_those_of_the_algorithm(compiled):
    """Meta steps, tasks, inner steps and the draw of classes; the others are random numbers."""
    _, program = compiled
    loops = re.findall(r" while\(.*?op_name=\"([^\"]*)\"", program.as_text())
    calls = {"closed_call", "eval_jaxpr"}  # what a loop's body is called, by the version of jax
    # The platform's number of tasks at once is a branch, and a task is a function traced once.
    calls |= {"cond", "branch_0_fun", "jit(_run_one)"}
    own = {"jit(_meta_steps)", "jit(meta_step)", "while", "body"} | calls
    assert len([loop for loop in loops if set(loop.split("/")) <= own]) == 4


@pytest.mark.slow
def test_the_state_is_donated(compiled):
    state, program = compiled
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert program.memory_analysis().alias_size_in_bytes >= size


SCALARS = [np.int64, np.int8, np.array, jnp.int32, jnp.array]


@pytest.mark.parametrize("number", SCALARS, ids=lambda scalar: scalar.__name__)
def test_an_integer_may_be_one_of_numpy_or_jax(number):
    loss_fn, inner = squared_error(MLP((8, 1)).apply), optax.sgd(0.02)
    learner = rj.meta_learner(rj.reptile(loss_fn, inner), inner, tasks_at_once=number(2))
    waves = rj.tasks.sinusoids(shots=number(4), steps=number(2), batch_size=number(4))
    state = start(learner)
    sizes = {"meta_batch": number(3), "steps_per_dispatch": number(1)}
    *_, (state, _) = rj.train(learner, state, waves, KEY, until=number(2), **sizes)
    *_, (state, _) = rj.train(learner, state, waves, KEY, until=state.step + 1, **sizes)
    state, _ = rj.meta_steps(learner, state, waves, KEY, num_steps=number(2), meta_batch=number(3))
    assert int(state.step) == 5
    sizes = {"num_tasks": number(3), "score_every": number(1), "tasks_at_once": number(1)}
    sizes["tasks_per_dispatch"] = number(2)
    score = lambda params, task: loss_fn(params, task.query)
    result = rj.evaluate(loss_fn, score, inner, state.params, waves, KEY, **sizes)
    assert result.scores.shape == (3, 3)
    sizes = {"steps": number(2), "batch_size": number(3)}
    assert rj.tasks.minibatch_order(KEY, number(6), **sizes).shape == (2, 3)
    classes = rj.tasks.ImageClasses(
        np.zeros((8, 4, 4, 1), np.uint8), np.int32([0, 4]), np.int32([4, 4])
    )
    given = {"ways": 2, "shots": 1, "steps": 2, "batch_size": 2, "query_shots": 1}
    images = rj.tasks.few_shot(classes, **{name: number(size) for name, size in given.items()})
    assert jax.eval_shape(images.sample, KEY).support.inputs.shape == (2, 2, 4, 4, 1)


@pytest.mark.parametrize(
    "value",
    [jnp.float32(2), jnp.array([2]), np.array([2]), jnp.array(True), np.True_, np.array(2.0)],
)
def test_an_array_that_is_no_integer_is_refused(learner, value):
    with pytest.raises(TypeError, match="until is an integer, got"):
        rj.train(learner, start(learner), sinusoids(), KEY, until=value, meta_batch=1)
    with pytest.raises(TypeError, match="meta_batch is an integer, got"):
        rj.meta_steps(learner, start(learner), sinusoids(), KEY, num_steps=1, meta_batch=value)


def test_a_number_that_is_not_known_yet_is_refused_in_words(learner):
    train_to = lambda until: rj.train(
        learner, start(learner), sinusoids(), KEY, until=until, meta_batch=1
    )
    with pytest.raises(TypeError, match=r"until is an integer, got .*Tracer|until .*JitTracer"):
        jax.jit(lambda until: list(train_to(until)))(3)


@pytest.mark.parametrize(
    "copy_of", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))]
)
def test_copies_of_a_state_train_alike(learner, copy_of):
    state, _ = run(learner, start(learner), 2, 2)
    same = copy_of(state)
    chex.assert_trees_all_equal(same, state)
    assert type(same) is rj.MetaState
    after, _ = run(learner, state, 4, 2)  # donates the first, not its copy
    chex.assert_trees_all_equal(run(learner, same, 4, 2)[0], after)


def test_a_state_may_hold_random_keys_and_be_copied():
    noisy = optax.add_noise(0.01, 0.55, jax.random.key(3))
    learner = rj.meta_learner(rj.reptile(squared_error(MLP((8, 1)).apply), optax.sgd(0.02)), noisy)
    with jax.numpy_dtype_promotion("standard"):
        state = start(learner)
        for same in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
            chex.assert_trees_all_equal(same, state)


def test_a_learner_inside_of_jit_donates_nothing_of_its_callers(learner):
    batch = jax.vmap(sinusoids().sample)(jax.random.split(KEY, 3))
    expected, _ = learner.step(start(learner), batch)
    state = start(learner)

    @jax.jit
    def two_ways(state):
        once, _ = learner.step(state, batch)
        return once, rj.meta_steps(learner, state, sinusoids(), KEY, num_steps=1, meta_batch=3)[0]

    once, drawn = two_ways(state)
    chex.assert_trees_all_close(once, expected, rtol=1e-5)
    chex.assert_trees_all_close(
        drawn,
        rj.meta_steps(learner, state, sinusoids(), KEY, num_steps=1, meta_batch=3)[0],
        rtol=1e-5,
        atol=1e-7,
    )
    assert jax.tree.leaves(state)[0].is_deleted()  # by the last call, which was not in `jit`


@pytest.mark.slow
@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("mesh", [None, 2])
def test_whole_trainings_of_many_seeds_run_side_by_side(jit, mesh):
    mesh = mesh and rj.task_mesh(jax.devices()[:mesh])
    meta_gradient = rj.reptile(squared_error(MLP((8, 1)).apply), optax.sgd(0.02, momentum=0.5))
    learner = rj.meta_learner(meta_gradient, optax.sgd(0.5), inner_opt_state="average", mesh=mesh)
    train_on = lambda state, key: rj.meta_steps(
        learner, state, sinusoids(), key, num_steps=3, meta_batch=4
    )
    keys, state = jax.random.split(KEY, 3), start(learner)
    states, infos = jit(jax.vmap(train_on, (None, 0)))(state, keys)
    assert infos.losses.shape == (3, 3, 4, 5)
    for number, key in enumerate(keys):
        expected, _ = train_on(jax.tree.map(jnp.copy, state), key)  # the state is there still
        one = jax.tree.map(lambda leaf, at=number: leaf[at], states)
        chex.assert_trees_all_close(one, expected, rtol=1e-3, atol=1e-5)
