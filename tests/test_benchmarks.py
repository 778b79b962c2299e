"""The arms that the benchmarks compare take the same meta step, and count the same work."""

import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import __main__ as command_line
from benchmarks import (
    arms,
    convolutions,
    correctness,
    gpu,
    gpu_questions,
    measure,
    report,
    time_to_accuracy,
    workloads,
)

from reptile_jax import Batch, Task, datasets, meta_learner, models, presets, reptile, runs

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def relaxed():
    """Benchmarks are written as users write: their arithmetic may promote."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of results that is not the committed one."""
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    return tmp_path


def test_the_work_of_the_papers_meta_step_is_counted_right():
    """3.93 GFLOP for five tasks of five steps, counted layer by layer."""
    workload = workloads.few_shot("o15")
    assert [layer.rows for layer in workload.layers] == [1960, 490, 160, 40, 10]
    assert [layer.fan_in for layer in workload.layers] == [9, 576, 576, 576, 256]
    np.testing.assert_allclose(5 * workload.flops, 3.93e9, rtol=0.01)


@pytest.mark.parametrize("at_once", [1, 2])
def test_bare_products_feed_the_weights(at_once):
    layers = (workloads.Layer(4, 3, 2), workloads.Layer(4, 2, 3))
    workload = workloads.Workload("", None, None, None, None, "fresh", layers)
    object.__setattr__(workload, "distribution", type("", (), {"steps": 2}))
    weights = arms.bare_products(workload, 3, at_once)()
    assert [w.shape[-2:] for w in weights] == [(3, 2), (2, 3)]
    assert all(w.shape[:-2] == ((2,) if at_once == 2 else ()) for w in weights)
    assert all(np.isfinite(w).all() for w in weights)


@pytest.mark.parametrize("kind", ["convolutions", "pooled", "sinusoid"])
def test_pytorch_takes_the_same_meta_step(kind):
    torch = pytest.importorskip("torch")
    from benchmarks import torch_arms

    random = np.random.default_rng(0)
    if kind == "sinusoid":
        model, shape = models.MLP(), (1,)
        loss_fn, targets = models.squared_error(model.apply), random.normal(size=(2, 3, 4, 1))
    else:
        model = models.ConvNet(3, features=4, pool=kind == "pooled", blocks=2)
        shape, targets = (7, 7, 2), random.integers(0, 3, (2, 3, 4))
        loss_fn = models.cross_entropy(model.apply)
    dtype = jnp.float32 if kind == "sinusoid" else jnp.int32
    inputs = jnp.asarray(random.normal(size=(2, 3, 4, *shape)), jnp.float32)
    tasks = Task(Batch(inputs, jnp.asarray(targets, dtype)))
    params = jax.jit(model.init)(jax.random.key(0), inputs[0, 0])
    learner = meta_learner(reptile(loss_fn, optax.sgd(0.1)), optax.sgd(1.0))
    state, _ = learner.step(learner.init(params), tasks)
    expected = torch_arms.from_flax(state.params)
    inner = functools.partial(torch.optim.SGD, lr=0.1)
    for arm in (
        torch_arms.eager(model, params, tasks, inner),
        torch_arms.vectorised(model, params, tasks, 0.1, adam=False),
    ):
        for ours, theirs in zip(expected, arm(), strict=True):
            np.testing.assert_allclose(ours, theirs.detach(), atol=1e-5)


def test_timing_takes_turns_and_keeps_every_round():
    calls = []
    measured = measure.interleaved(
        {name: functools.partial(calls.append, name) for name in "ab"}, repeats=3, seconds=0.0
    )
    assert "".join(calls) == "aabb" + "ab" * 3
    assert len(measured["a"]["ms"]) == 3
    assert measure.paired_ratio({"ms": [2.0, 9.0, 4.0]}, {"ms": [1.0, 1.0, 1.0]}) == 4.0


@pytest.mark.parametrize(("stride", "size"), [(1, 5), (2, 6)])
def test_every_formulation_is_the_same_convolution(stride, size):
    """One step of gradient descent for two tasks under vmap, in image and kernel."""
    keys = jax.random.split(jax.random.key(0), 2)
    kernel = jax.random.normal(keys[0], (2, 3, 3, 2, 3))
    image = jax.random.normal(keys[1], (2, 2, size, size, 2))

    def gradients(way, axis=jax.vmap):
        loss = lambda kernel, image: jnp.sum(jnp.sin(way(image, kernel, stride)))
        return axis(jax.grad(loss, (0, 1)))(kernel, image)

    ways = ("ours", "canonical", "batch_groups", "shifted_slices", "nine_products", "native")

    @jax.jit
    def run():
        found = {way: gradients(getattr(convolutions, way)) for way in ways}
        return {**found, "in a loop": gradients(convolutions.ours, convolutions.one_after_another)}

    found = run()
    right = found.pop("native")
    for way, both in found.items():
        for a, b in zip(both, right, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=way)


def test_batch_groups_stand_in_the_program_as_meant():
    """`vmap(grad)` of the native one has feature groups, of this one batch groups."""
    image, kernel = jnp.ones((2, 1, 4, 4, 2)), jnp.ones((2, 3, 3, 2, 2))

    def lowered(way):
        loss = lambda kernel, image: jnp.sum(jnp.sin(way(image, kernel, 1)))
        return jax.jit(jax.vmap(jax.grad(loss))).lower(kernel, image).as_text()

    assert "batch_group_count = 2" in lowered(convolutions.batch_groups)
    assert "batch_group_count = 2" not in lowered(convolutions.native)


def test_quick_results_are_kept_apart(results, monkeypatch):
    """A quick run overwrites no result, and the report reads none of a quick run's."""

    def script(quick):
        measure.save("speed", "Speed", ["what", "ms"], [["a", "quick" if quick else "1.0"]], {})

    monkeypatch.setitem(command_line.SCRIPTS, "speed", script)
    assert command_line.main(["speed"]) == 0
    assert command_line.main(["speed", "--quick"]) == 0
    rows = lambda path: json.loads(path.read_text())["rows"]
    assert rows(results / "speed.json") == [["a", "1.0"]]
    assert rows(results / "quick" / "speed.json") == [["a", "quick"]]


def test_a_benchmark_that_does_not_exist_is_named(capsys):
    assert command_line.main(["nothing"]) == 2
    assert "nothing; there are peers" in capsys.readouterr().err


def test_the_gpu_suite_runs_on_a_cpu_at_a_tiny_size(results, capsys):
    assert gpu.main(["limits", "--quick"]) == 0
    content = json.loads((results / "gpu_limits.json").read_text())
    assert content["machine"]["backend"] == "cpu"
    assert content["title"].endswith(f"({content['machine']['device']})")
    assert [row[:2] for row in content["rows"]][-1] == ["copy", ""]
    assert all("/s" in row[2] for row in content["rows"])


def test_the_gpu_suite_refuses_to_measure_a_cpu(results):
    with pytest.raises(SystemExit, match="no GPU here"):
        gpu.main(["limits"])
    assert not list(results.iterdir())


def test_the_gpu_suite_says_what_no_time_was_left_for_and_what_failed(capsys, monkeypatch):
    def cells(quick):
        yield ["a"], lambda: (["1"], {})
        yield ["b"], lambda: 1 / 0

    question = gpu_questions.Question(cells, "", ("what",), ("figure",), 1.0)
    monkeypatch.setitem(gpu.QUESTIONS, "one", question)
    said = []
    for seconds in (60.0, -1.0):
        gpu.answer("one", seconds, True)
        lines = capsys.readouterr().out.splitlines()[1:]
        said.append([json.loads(line)["row"] for line in lines])
    assert said[0][0] == ["a", "1"]
    assert "ZeroDivisionError" in said[0][1][1]
    assert said[1] == [["a", "no time was left"], ["b", "no time was left"]]


@pytest.mark.parametrize("precision", ["highest", None])
def test_gradients_are_right_on_this_device(precision):
    error = correctness.convolution_error(2, precision)
    assert 1e-9 < error < correctness.TOLERANCES["float32" if precision else "bfloat16"]


def test_the_meta_step_agrees_with_its_double_precision_reference():
    net = models.ConvNet(3, features=4, pool=True, blocks=1)
    assert correctness.meta_step_error(net, 7, 2, "highest") < 1e-5


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("how", [{"unroll": 2}, {"ravel": True}, {"donate": False}])
def test_no_way_to_write_the_inner_step_changes_the_meta_step(at_once, how):
    workload = workloads.sinusoid(steps=2)
    tasks = workload.tasks(2)
    plain, other = (arms.plain(workload, tasks, at_once, **options)() for options in ({}, how))
    plain, other = (ravel_pytree(params)[0] for params in (plain, other))
    np.testing.assert_allclose(plain, other, atol=1e-6)
    learner = meta_learner(reptile(workload.loss_fn, workload.inner_optimizer), optax.sgd(1.0))
    expected = learner.step(learner.init(workload.params), tasks)[0].params
    np.testing.assert_allclose(plain, ravel_pytree(expected)[0], atol=1e-6)


def test_time_to_accuracy_keeps_characters_apart_and_times_training_alone(capsys):
    images = np.random.default_rng(0).integers(0, 256, (16, 3, 14, 14, 1)).astype(np.uint8)
    names = tuple(f"{c}{turn}" for c in "abcd" for turn in ("", "+90", "+180", "+270"))
    whole = datasets.ImageSplits(datasets.equal_classes(images), None, names, ())
    splits = time_to_accuracy.keep_apart(whole, 2)
    assert splits.train_names == names[:8]
    assert splits.test_names == ("c", "d")
    starts = splits.test.starts
    np.testing.assert_array_equal(splits.test.images[starts], images[[8, 12], 0])
    config = presets.FewShotImages(
        ways=2, train_shots=2, inner_steps=1, meta_batch=1, meta_steps=2, eval_steps=1
    )
    apply = lambda params, images: images.reshape(images.shape[0], -1) @ params
    loss_fn, inner = models.cross_entropy(apply), optax.sgd(0.1)
    learner = meta_learner(reptile(loss_fn, inner), optax.sgd(1.0))
    first_state = lambda: learner.init(jnp.zeros((14 * 14, 2)))
    net = SimpleNamespace(apply=apply)
    problem = runs.Problem(net, loss_fn, inner, learner, first_state)
    curve = time_to_accuracy.measured(config, problem, splits, every=1, num_tasks=2)
    assert [point.meta_steps for point in curve] == [0, 1, 2][: len(curve)]
    assert curve[0].seconds == 0.0 < curve[1].seconds
    assert all(0 <= point.accuracy <= 100 for point in curve)


def test_the_report_shows_tables_figures_and_what_they_say(results, monkeypatch):
    """Quick results are not read; a size that was left out of the measurement is no point."""
    readme = results / "README.md"
    readme.write_text("before\n<!-- tables -->old<!-- end of tables -->after\n")
    monkeypatch.setattr(report, "README", readme)
    times = lambda ms: {"median": ms, "ms": [ms]}
    cell = lambda ms: {"ours": times(ms), "bare": times(ms / 2)}
    data = {"o15 x 1": cell(1.0), "o15 x 4": cell(4.0), "o15 x 16": {"left out": 99}}
    for folder in (results, results / "quick"):
        monkeypatch.setattr(measure, "RESULTS", folder)
        measure.save("meta_batches", f"In {folder.name}", ["what", "ms"], [["o15", "1.0"]], data)
    monkeypatch.setattr(measure, "RESULTS", results)
    report.write(command_line.SCRIPTS)
    text = readme.read_text()
    assert text.startswith("before\n<!-- tables -->\n")
    assert text.endswith("-->after\n")
    assert text.count("###") == 1
    assert "old" not in text
    assert "| what | ms |\n|---|---:|\n| o15 | 1.0 |" in text
    assert "Tasks per second by the size of the meta-batch" in text
    assert "(results/meta_batches.png)" in text
    assert 5_000 < (results / "meta_batches.png").stat().st_size < 60_000


def test_every_table_of_results_can_be_told_in_words():
    names = [*command_line.SCRIPTS, *(f"gpu_{name}" for name in gpu.QUESTIONS)]
    for name in (*names, "time_to_accuracy_o15"):
        assert len(report.reading(name, command_line.SCRIPTS)) > 40, name
