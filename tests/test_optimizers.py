"""Every public optimiser of the installed Optax adapts to tasks, and meta-learns."""

import dataclasses
import functools
import inspect
import warnings
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import reptile_jax as rj

pytestmark = pytest.mark.slow

RATE = 0.05
SGD = optax.sgd(RATE)
PARAMS = {"b": jnp.array([0.1, 0.2]), "w": jnp.array([[1.0, -0.5], [0.3, 0.2], [0.1, 0.4]])}
IS_MATRIX = functools.partial(jax.tree.map, lambda leaf: jnp.ndim(leaf) == 2)
NORM = lambda updates, *_, **__: optax.tree.norm(updates)

# What cannot work, and why.
NO_LOSS_OF_THETA = "a meta-optimiser has no loss of θ to evaluate"
REFUSED_OUTSIDE = {
    "lbfgs": NO_LOSS_OF_THETA,  # its line search; without one, it works
    "scale_by_backtracking_linesearch": NO_LOSS_OF_THETA,
    "scale_by_zoom_linesearch": NO_LOSS_OF_THETA,
    "sophia": NO_LOSS_OF_THETA,  # it estimates the Hessian's diagonal
}
PER_EXAMPLE = "to have a batch dimension"  # Optax says so itself
REFUSED = {
    "monitor": "state changes its form",  # in its first step
    "lookahead": "optax.lookahead moves pairs of fast and slow parameters",
    "dpsgd": PER_EXAMPLE,
    "differentially_private_aggregate": PER_EXAMPLE,
}
PARTS = {  # what does not take gradients of parameters, but is a part of something that does
    "measure_with_ema",  # of `monitor`
    "scale_by_muon",  # of `muon`, which leaves what is not a matrix to Adam
    "hutchinson_estimator_diag_hessian",  # of `sophia`
}

# What needs more than a learning rate, or cannot be built without arguments.
ARGUMENTS = {
    "adaptive_grad_clip": (0.1,),
    "add_noise": (0.1, 0.5, jax.random.key(0)),
    "apply_if_finite": (SGD, 2),
    "chain": (optax.clip(1.0), SGD),
    "clip": (1.0,),
    "clip_by_block_rms": (1.0,),
    "clip_by_global_norm": (1.0,),
    "conditionally_mask": (SGD, lambda step, *_, **__: step >= 0),
    "conditionally_transform": (SGD, lambda step, *_, **__: step >= 0),
    "differentially_private_aggregate": (1.0, 0.1, jax.random.key(0)),
    "dpsgd": (RATE, 1.0, 0.1, 0),
    "ema": (0.9,),
    "flatten": (SGD,),
    "freeze": (IS_MATRIX(PARAMS),),
    "inject_hyperparams": (optax.adam,),
    "inject_stateful_hyperparams": (optax.adam,),
    "lookahead": (SGD, 2, 0.5),
    "masked": (SGD, IS_MATRIX),
    "mechanize": (SGD,),
    "monitor": ({"norm": NORM},),
    "multi_transform": ({True: SGD, False: optax.set_to_zero()}, IS_MATRIX),
    "named_chain": (("descent", SGD),),
    "noisy_sgd": (RATE, 0.01, 0.55, jax.random.key(0)),
    "partition": ({True: SGD, False: optax.set_to_zero()}, IS_MATRIX),
    "sam": (SGD, optax.chain(optax.contrib.normalize(), optax.sgd(RATE))),
    "scale": (-RATE,),
    "scale_by_backtracking_linesearch": (5,),
    "scale_by_schedule": (lambda count: -RATE,),
    "scale_by_zoom_linesearch": (5,),
    "schedule_free": (SGD, RATE),
    "selective_transform": (SGD,),
    "snapshot": ("norm", NORM),
    "split_real_and_imaginary": (SGD,),
    "stateless": (lambda updates, params: updates,),
    "stateless_with_tree_map": (lambda update, param: update,),
    "trace": (0.9,),
    "with_extra_args_support": (SGD,),
    "MultiSteps": (optax.adam(RATE), 2),
}
OPTIONS = {"selective_transform": {"freeze_mask": IS_MATRIX(PARAMS)}}


def public_names():
    """Optax's public functions that build an optimiser, or a part of one."""
    names = ["MultiSteps"]
    for module in (optax, optax.contrib):
        for name, function in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            signature = inspect.signature(function)
            builds = "GradientTransformation" in str(signature.return_annotation)
            if builds or "learning_rate" in signature.parameters or name.startswith("scale_by_"):
                names.append(name)
    return sorted({*names, *ARGUMENTS} - PARTS)


def build(name):
    function = getattr(optax.contrib, name, None) or getattr(optax, name)
    options = dict(OPTIONS.get(name, {}))
    if name not in ARGUMENTS and "learning_rate" in inspect.signature(function).parameters:
        options["learning_rate"] = RATE
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        built = function(*ARGUMENTS.get(name, ()), **options)
        return built(RATE) if name.startswith("inject") else built


def loss_fn(params, batch):
    return jnp.mean((batch @ params["w"] + params["b"] - 1) ** 2)


def tasks(number=2, steps=3):
    rng = np.random.default_rng(0)
    return rj.Task(rng.normal(size=(number, steps, 4, 3)).astype(np.float32))


def two_meta_steps(meta_gradient, meta_optimizer, batch):
    state = rj.meta_learner(meta_gradient, meta_optimizer).init(PARAMS)
    for _ in range(2):
        state, _ = rj.meta_step(meta_gradient, meta_optimizer, state, batch)
    return state


def inside(optimizer):
    return two_meta_steps(rj.reptile(loss_fn, optimizer), SGD, tasks())


def outside(optimizer):
    return two_meta_steps(rj.reptile(loss_fn, SGD), optimizer, tasks())


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's own arithmetic mixes types."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", public_names())
@pytest.mark.parametrize("place", [inside, outside])
def test_every_public_optimiser_can_be_traced(name, place):
    """All that can go wrong here goes wrong in tracing; the slow test below runs the programs."""
    refused = REFUSED | (REFUSED_OUTSIDE if place is outside else {})
    if name in refused:
        with pytest.raises((TypeError, ValueError), match=refused[name]):
            jax.eval_shape(lambda: place(build(name)))
        return
    after = jax.eval_shape(lambda: place(build(name)))
    chex.assert_trees_all_equal_shapes_and_dtypes(after.params, PARAMS)


@pytest.mark.parametrize("place", [inside, outside])
def test_every_public_optimiser_runs(place):
    """All in one program: most of the time would be that of many small ones."""
    refused = REFUSED | (REFUSED_OUTSIDE if place is outside else {})
    names = [name for name in public_names() if name not in refused]
    states = jax.jit(lambda: {name: place(build(name)) for name in names})()
    still = {"set_to_zero", "freeze"}
    for name, state in states.items():
        differ = jax.tree.map(lambda leaf, old: np.any(leaf != old), state.params, PARAMS)
        moved = any(jax.tree.leaves(differ))
        assert moved or name in still, name
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)), name


# With the arguments that each of them takes from a training loop of one's own.
LINE_SEARCH = optax.scale_by_backtracking_linesearch(5, store_grad=True)
WITH_MORE = {
    "lbfgs": (optax.lbfgs(), {"value", "grad", "value_fn"}),
    "sgd and a line search": (optax.chain(SGD, LINE_SEARCH), {"value", "grad", "value_fn"}),
    "polyak_sgd": (optax.polyak_sgd(), {"value"}),
    "momo": (optax.contrib.momo(), {"value"}),
    "momo_adam": (optax.contrib.momo_adam(), {"value"}),
    "on a plateau": (
        optax.chain(optax.adam(0.3), optax.contrib.reduce_on_plateau(patience=1, rtol=0.5)),
        {"value"},
    ),
    "sophia": (optax.contrib.sophia(RATE, update_interval=2), {"obj_fn"}),
    "sam": (
        optax.contrib.sam(SGD, optax.sgd(RATE), opaque_mode=True),
        {"grad_fn"},
    ),
    "MultiSteps": (optax.MultiSteps(optax.lbfgs(), 2), {"value", "grad", "value_fn"}),
}


@pytest.mark.parametrize("name", WITH_MORE)
def test_the_inner_loop_is_the_loop_one_writes_with_optax(name):
    optimizer, names = WITH_MORE[name]
    (batches,) = tasks(1, 5).support

    @jax.jit
    def step(params, state, batch):
        loss_of = lambda params: loss_fn(params, batch)
        value, grad = jax.value_and_grad(loss_of)(params)
        more = {"value": value, "grad": grad, "value_fn": loss_of, "obj_fn": loss_of}
        more["grad_fn"] = jax.grad(lambda params, _: loss_of(params))
        more = {name: more[name] for name in names}
        updates, state = optimizer.update(grad, state, params, **more)
        return optax.apply_updates(params, updates), state, value

    params, state, losses = PARAMS, optimizer.init(PARAMS), []
    for batch in batches:
        params, state, value = step(params, state, batch)
        losses.append(value)
    adapted = jax.jit(functools.partial(rj.inner_loop, loss_fn, optimizer))(PARAMS, batches)
    chex.assert_trees_all_close(adapted[:2], (params, state), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(adapted.losses, losses, rtol=1e-4)


def test_they_evaluate_too_and_so_do_weighted_gradients():
    batch = tasks(3)
    result = rj.evaluate(loss_fn, lambda params, task: params["b"], optax.lbfgs(), PARAMS, batch)
    (one,) = jax.tree.map(lambda leaf: leaf[1:2], batch)[0]
    adapted = rj.inner_loop(loss_fn, optax.lbfgs(), PARAMS, one)
    np.testing.assert_allclose(result.scores[1, -1], adapted.params["b"], rtol=1e-4)
    summed = rj.weighted_gradients(loss_fn, optax.polyak_sgd(), [0, 0, 1])
    last = summed.compute(PARAMS, None, rj.Task(one)).gradient
    before = rj.inner_loop(loss_fn, optax.polyak_sgd(), PARAMS, one[:2]).params
    chex.assert_trees_all_close(last, jax.grad(loss_fn)(before, one[2]), rtol=1e-4)


class Seen(NamedTuple):
    """The state of an optimiser that keeps what it is given."""

    value: jax.Array
    grad: Any


def keeps_what_it_is_given():
    def update(grads, state, params=None, *, value, grad):
        return grads, Seen(value, grad)

    init = lambda params: Seen(jnp.float32(0), params)
    return optax.GradientTransformationExtraArgs(init, update)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Held:
    """A distribution over the tasks of a meta-batch; the key's last word says which."""

    batch: rj.Task

    def sample(self, key):
        number = jax.random.key_data(key)[-1] % len(self.batch.weight)
        return jax.tree.map(lambda leaf: leaf[number], self.batch)


@pytest.mark.parametrize("options", [{}, {"tasks_at_once": 2}, {"devices": 2}])
def test_a_meta_optimiser_gets_the_weighted_mean_of_the_last_inner_losses(options):
    support = tasks(5).support
    support[1, 0] = np.inf
    batch = rj.Task(support, weight=np.float32([1, 2, 0, 3, np.nan]))
    mesh = rj.task_mesh(jax.devices()[: options.pop("devices", 1)])
    meta_gradient, outer = rj.reptile(loss_fn, SGD), keeps_what_it_is_given()
    learner = rj.meta_learner(meta_gradient, outer, mesh=mesh, donate=False, **options)
    state, info = learner.step(learner.init(PARAMS), batch)
    losses = np.asarray(info.losses)[[0, 3], -1]
    np.testing.assert_allclose(state.opt_state.value, losses @ [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(optax.tree.norm(state.opt_state.grad), info.gradient_norm)
    drawn = Held(jax.tree.map(jnp.asarray, batch))
    state, _ = rj.meta_steps(
        learner, learner.init(PARAMS), drawn, jax.random.key(0), num_steps=1, meta_batch=4
    )
    assert 0 < float(state.opt_state.value) < 10


def test_if_no_task_counts_a_meta_optimiser_does_not_see_the_step():
    outer = optax.contrib.reduce_on_plateau()
    meta_gradient = rj.reptile(loss_fn, SGD)
    state = rj.meta_learner(meta_gradient, outer).init(PARAMS)
    batch = rj.Task(np.full((1, 2, 4, 3), np.nan, np.float32))
    after, _ = rj.meta_step(meta_gradient, outer, state, batch)
    chex.assert_trees_all_equal(after.opt_state, state.opt_state)


@pytest.mark.parametrize(
    "outer", [optax.lbfgs(0.1, linesearch=None), optax.MultiSteps(optax.contrib.momo(), 2)]
)
def test_a_refused_meta_optimiser_has_a_form_that_works(outer):
    after = outside(outer)
    assert np.isfinite(after.params["w"]).all()
    assert np.any(after.params["w"] != PARAMS["w"])


@pytest.mark.parametrize(
    "more", ["one", "none", "plain", "chain"], ids=lambda what: f"update takes {what}"
)
def test_an_optimiser_gets_what_it_takes_and_no_more(more):
    """Also where Optax's rule, to accept any extra argument, is not kept."""
    value_of = lambda grads, state, params=None, *, value: (
        jax.tree.map(lambda leaf: -RATE * leaf, grads),
        value.astype(jnp.float32),
    )
    first = lambda params: jnp.float32(-1)
    nothing = lambda grads, state, params=None: value_of(grads, state, params, value=jnp.float32(7))
    extended = optax.GradientTransformationExtraArgs
    optimizer = {
        "one": extended(first, value_of),
        "none": extended(first, nothing),
        "plain": optax.GradientTransformation(first, nothing),
        "chain": optax.chain(extended(first, nothing), optax.identity()),
    }[more]
    (batches,) = tasks(1).support
    adapted = rj.inner_loop(loss_fn, optimizer, PARAMS, batches)
    expected = rj.inner_loop(loss_fn, SGD, PARAMS, batches)
    chex.assert_trees_all_close(adapted.params, expected.params, rtol=1e-6)
    (seen,) = jax.tree.leaves(adapted.opt_state)
    np.testing.assert_allclose(seen, adapted.losses[-1] if more == "one" else 7, rtol=1e-6)


def test_an_error_of_the_loss_in_a_line_search_is_the_one_that_is_shown():
    def twice(params, batch):
        twice.calls += 1
        if twice.calls > 1:
            raise TypeError("the loss has an unexpected problem")
        return loss_fn(params, batch)

    twice.calls = 0
    with pytest.raises(TypeError, match="an unexpected problem"):
        rj.inner_loop(twice, optax.lbfgs(), PARAMS, tasks().support[0])


def test_updates_of_other_shapes_are_refused():
    """Gradients of which every first axis happens to be as long look like those of examples."""
    params = {"b": jnp.zeros(3), "w": jnp.zeros((3, 2))}
    loss = lambda params, batch: jnp.sum((batch @ params["w"]) ** 2) + jnp.sum(params["b"])
    private = build("differentially_private_aggregate")
    with pytest.raises(ValueError, match="a gradient for every example, such as dpsgd"):
        rj.inner_loop(loss, private, params, tasks().support[0])


def test_through_a_line_search_there_is_no_second_derivative():
    batch = tasks()._replace(query=tasks().support[:, 0])
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.eval_shape(lambda: two_meta_steps(rj.maml(loss_fn, optax.lbfgs()), SGD, batch))
    jax.eval_shape(lambda: two_meta_steps(rj.fomaml(loss_fn, optax.lbfgs()), SGD, batch))


def test_a_wrapper_that_counts_in_cycles_has_no_mean_over_the_tasks():
    for optimizer in (optax.MultiSteps(SGD, 2), build("sam"), optax.apply_every(2)):
        for policy in ("reset", "carry", "average"):
            meta_gradient = rj.reptile(loss_fn, optimizer)
            learner = rj.meta_learner(meta_gradient, SGD, inner_opt_state=policy)
            run = functools.partial(jax.eval_shape, learner.step, learner.init(PARAMS), tasks())
            if policy != "average":
                run()
                continue
            with pytest.raises(TypeError, match=r'counts in cycles.*use "reset" or "carry"'):
                run()
