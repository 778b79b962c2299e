"""The one route of a run, shown by an experiment made up for it."""

import dataclasses
import json
import shutil
import signal

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from PIL import Image

import reptile_jax as rj
from reptile_jax.app import cli, experiments, json_files, run_folder, runner, signals
from reptile_jax.app.config import Config
from reptile_jax.app.experiment import Experiment, key

# ------------------------------------------------------------------- an experiment of 30 lines


@dataclasses.dataclass(frozen=True)
class LinesConfig(Config):
    """Lines y = a x + b, by Reptile."""

    meta_steps: int = 24
    eval_tasks: int = 10
    steps_per_dispatch: int = 4
    save_every: int = 8
    inner_rate: float = 0.1  # of SGD

    experiment = "lines"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lines:
    centre: jax.Array

    def sample(self, rng) -> rj.Task:
        a, b = self.centre + jax.random.normal(rng, (2,))
        x = jnp.linspace(-1, 1, 12).reshape(3, 4)
        return rj.Task((x, a * x + b), (x.ravel(), a * x.ravel() + b))


def build(config: LinesConfig, mesh=None) -> Experiment:
    loss_fn = lambda params, xy: jnp.mean((params["a"] * xy[0] + params["b"] - xy[1]) ** 2)
    inner = optax.sgd(config.inner_rate)
    learner = rj.meta_learner(rj.reptile(loss_fn, inner), optax.sgd(0.5), mesh=mesh)
    start = lambda: dict(zip("ab", jax.random.normal(key(config.seed, "init"), (2,)), strict=True))
    return Experiment(
        title="lines",
        learner=learner,
        first_state=lambda: learner.init(start()),
        training_tasks=Lines(jnp.array([3.0, -2.0])),
        held_out_tasks=Lines(jnp.array([3.0, -2.0])),
        loss_fn=loss_fn,
        inner_optimizer=inner,
        score_fn=lambda params, task: {"error": loss_fn(params, task.query)},
        main_score="error",
        rivals={"random": None},
    )


# ---------------------------------------------------------------- what the runner makes of it


def draw(path, steps, shown) -> None:
    path.write_text(" ".join(shown))
    assert all(arrays["error"].shape == (3, len(steps)) for arrays in shown.values())


@pytest.fixture(autouse=True, scope="module")
def registered():
    """The line of the table that a new experiment needs."""
    with pytest.MonkeyPatch.context() as patch:
        entry = experiments.Entry(LinesConfig(), build, draw=draw)
        patch.setitem(experiments.EXPERIMENTS, "lines", entry)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, registered):
    """A run of the experiment that was left alone; not to be written to."""
    return runner.train(LinesConfig(), out=tmp_path_factory.mktemp("runs") / "whole")


def stop_at(step):
    return lambda folder, now, row: now == step and signal.raise_signal(signal.SIGTERM)


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def assert_same(one, other):
    first_state = build(LinesConfig()).first_state
    states = [run_folder.restore(folder, first_state) for folder in (one, other)]
    chex.assert_trees_all_equal(*states)
    assert int(states[0].step) == LinesConfig().meta_steps
    assert read(one, "results")["scores"] == read(other, "results")["scores"]
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def test_a_run_leaves_its_scores_and_its_pictures(whole):
    results = read(whole, "results")
    assert set(results["scores"]) == {"Reptile", "random"}
    errors = {name: scores["error"] for name, scores in results["scores"].items()}
    assert errors["Reptile"]["inner steps"] == [0, 3]
    assert errors["Reptile"]["mean"][0] < errors["random"]["mean"][0]
    assert errors["Reptile"]["mean"][1] < errors["Reptile"]["mean"][0]
    assert all(0 < half < 10 for error in errors.values() for half in error["ci95"])
    assert (results["score"], results["tasks"], results["meta steps"]) == ("error", 10, 24)
    assert results["config"] == dataclasses.asdict(LinesConfig())
    assert {"seconds", "evaluation seconds", "environment"} < set(results)
    with Image.open(whole / "learning_curve.png") as picture:
        assert picture.width > 400
    assert (whole / "adaptation.png").read_text() == "Reptile random"


@pytest.mark.parametrize("step", [4, 16, 24])
def test_a_run_that_is_stopped_and_resumed_is_the_uninterrupted_one(whole, tmp_path, step):
    stopped = tmp_path / "stopped"
    with pytest.raises(signals.Interrupted, match=f"stopped at meta step {step}; go on with: rep"):
        runner.train(LinesConfig(), out=stopped, on_metrics=stop_at(step))
    assert not (stopped / "results.json").exists()
    assert runner.resume(stopped) == stopped
    assert_same(whole, stopped)
    assert (stopped / "adaptation.png").exists()


def test_an_evaluation_gives_the_score_of_the_run_and_another_of_changed_values(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    result = runner.evaluate(run)
    own = read(run, "results")["scores"]["Reptile"]
    assert read(run, "evaluation")["scores"] == {"Reptile": own}
    assert result.mean["error"].tolist() == own["error"]["mean"]
    assert result.ci95["error"].tolist() == own["error"]["ci95"]
    assert runner.evaluate(run, inner_rate=0.0).mean["error"].std() == 0
    changed = read(run, "evaluation-2")
    assert changed["config"]["inner_rate"] == 0
    assert changed["scores"]["Reptile"]["error"]["mean"][0] == own["error"]["mean"][0]


@pytest.mark.slow
def test_a_run_has_its_own_precision_of_products(tmp_path, monkeypatch):
    traced = []

    @jax.tree_util.register_dataclass
    class Noting(Lines):
        def sample(self, rng):
            traced.append(jax.config.jax_default_matmul_precision)
            return super().sample(rng)

    def noting(config, mesh=None):
        tasks = Noting(jnp.array([3.0, -2.0]))
        return dataclasses.replace(build(config, mesh), training_tasks=tasks, held_out_tasks=tasks)

    def while_it_runs(act, *args, **options):
        traced.clear()
        act(*args, **options)
        return set(traced)

    entry, folder = experiments.Entry(LinesConfig(), noting), tmp_path / "run"
    monkeypatch.setitem(experiments.EXPERIMENTS, "lines", entry)
    config = LinesConfig(meta_steps=8, eval_tasks=2, matmul_precision="float32")
    with pytest.raises(signals.Interrupted):
        while_it_runs(runner.train, config, out=folder, on_metrics=stop_at(4))
    assert set(traced) == {"float32"}
    with jax.default_matmul_precision("bfloat16"):
        assert while_it_runs(runner.resume, folder) == {"float32"}
        assert while_it_runs(runner.evaluate, folder) == {"float32"}
    assert read(folder, "config")["matmul_precision"] == "float32"
    assert read(folder, "evaluation")["config"]["matmul_precision"] == "float32"
    changed = while_it_runs(runner.evaluate, folder, matmul_precision="tensorfloat32")
    assert changed == {"tensorfloat32"}
    # A run that is older than the field has what is set around it.
    fields = json_files.read_json(folder / "config.json")
    fields.pop("matmul_precision")
    (folder / "config.json").write_text(json.dumps(fields))
    with jax.default_matmul_precision("bfloat16"):
        assert while_it_runs(runner.evaluate, folder) == {"bfloat16"}
    assert jax.config.jax_default_matmul_precision is None


def test_the_commands_take_the_experiment_as_any_other(whole, tmp_path, capsys):
    argv = ["train", "lines", "--steps-per-dispatch", "4", "--eval-tasks", "10", "--seed", "0"]
    assert cli.main([*argv, "--out", "run"]) == 0
    assert_same(whole, tmp_path / "run")
    assert cli.main(["evaluate", "run", "--eval-tasks", "20"]) == 0
    assert read(tmp_path / "run", "evaluation")["tasks"] == 20
    printed = capsys.readouterr().out
    assert "score ± 95% interval over 10 held-out tasks, after 24 meta steps" in printed
    error = read(tmp_path / "run", "evaluation")["scores"]["Reptile"]["error"]
    assert f"the score: {error['mean'][-1]:.3f} ± {error['ci95'][-1]:.3f}, error" in printed
    assert cli.main(["train", "--resume", "run", "--data", "x"]) == 1
    assert "a run of lines: it takes no --data" in capsys.readouterr().err


def test_what_can_be_refused_is_refused_before_there_is_a_run(tmp_path):
    with pytest.raises(ValueError, match="meta_steps is at least 1, got 0"):
        runner.train(LinesConfig(meta_steps=0), out=tmp_path / "run")
    with pytest.raises(ValueError, match="it takes no --data"):
        runner.train(LinesConfig(), tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_checkpoint_is_not_scored(tmp_path):
    folder = run_folder.create(tmp_path / "run", "lines", LinesConfig(), {})
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        runner.evaluate(folder)


def test_rows_of_a_table_are_told_apart_by_what_differs(monkeypatch, tmp_path, capsys):
    def with_two_scores(config, mesh=None):
        built = build(config, mesh)
        both = lambda params, task: {**built.score_fn(params, task), "slope": params["a"]}
        return dataclasses.replace(built, score_fn=both, setting="12 points")

    entry = experiments.Entry(LinesConfig(), with_two_scores)
    monkeypatch.setitem(experiments.EXPERIMENTS, "lines", entry)
    runner.train(LinesConfig(meta_steps=4), out=tmp_path / "run")
    printed = capsys.readouterr().out
    for name in ("Reptile, error", "Reptile, slope", "random, error", "random, slope"):
        assert f"│ {name} " in printed
    runner.evaluate(tmp_path / "run")
    printed = capsys.readouterr().out
    assert "held-out tasks, 12 points, after 4 meta steps" in printed
    assert all(f"│ {name} " in printed for name in ("error", "slope"))
