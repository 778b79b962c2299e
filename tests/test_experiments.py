"""The experiments: what is drawn and followed, many runs as one, arms on disk, and verdicts."""

import functools
import json
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import (
    arm_files,
    claims,
    contest,
    experiments,
    maml_page,
    outcomes,
    overlap,
    paper_experiments,
    seeds,
    stability,
)

import reptile_jax as rj
from reptile_jax import evaluate, fewshot
from reptile_jax.sinusoids import sinusoids
from reptile_jax.train import meta_steps

pytestmark = pytest.mark.slow


@pytest.fixture
def lenient():
    """Optax's own arithmetic is not for strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def loss_fn(params, batch):
    return jnp.mean((jnp.tanh(batch.inputs * params["w"]) @ params["v"] - batch.targets) ** 2)


def init(key):
    w, v = jax.random.normal(key, (2, 1, 3))
    return {"w": w, "v": v.T}


WAVES = sinusoids(points=8, shots=4, steps=2, batch_size=2)
METHOD = seeds.Method(rj.reptile, lambda rate: optax.adam(rate, b1=0.0), optax.sgd, averaged=True)


@pytest.mark.usefixtures("lenient")
def test_many_runs_in_one_program_are_each_the_run_alone():
    """Against a learner with constant rates, trained and evaluated by the library's own loops."""
    chosen = [(0, 0.1, 0.5), (1, 0.3, 1.0)]
    start = lambda: seeds.first(METHOD, init, *zip(*chosen, strict=True))
    advance = functools.partial(seeds.advance, METHOD, loss_fn, meta_batch=2)
    runs = start()
    for steps in (2, 1):  # of 4, so that the rate is half way down
        runs = advance(runs, WAVES, steps, 4, side_by_side=False)
    at_once = advance(start(), WAVES, 3, 4, side_by_side=True)
    chex.assert_trees_all_close(runs.state, at_once.state, rtol=1e-5)

    score = lambda params, task: loss_fn(params, task.query)
    scored = {"num_tasks": 3, "score_every": 1}
    key = jax.random.key(5)
    scores = seeds.scores(
        METHOD.inner, loss_fn, score, runs, WAVES, key, side_by_side=True, **scored
    )
    seed, inner_rate, outer_rate = chosen[1]
    init_key, task_key = jax.random.split(jax.random.key(seed))
    inner, anneal = METHOD.inner(inner_rate), optax.linear_schedule(outer_rate, 0.0, 4)
    learner = rj.meta_learner(rj.reptile(loss_fn, inner), optax.sgd(anneal), inner_state="averaged")
    state, _ = meta_steps(
        learner, learner.init(init(init_key)), WAVES, task_key, num_steps=3, meta_batch=2
    )
    own = jax.tree.map(lambda leaf: leaf[1], runs.state)
    chex.assert_trees_all_close(own.params, state.params, rtol=1e-4)
    chex.assert_trees_all_close(own.inner_opt_state, state.inner_opt_state, rtol=1e-4)
    result = evaluate.evaluate(
        loss_fn, score, inner, state.params, WAVES, key, opt_state=state.inner_opt_state, **scored
    )
    np.testing.assert_allclose(scores[1], result.scores, rtol=1e-3)


def test_an_arm_is_measured_once_and_never_overwritten(tmp_path):
    calls = []

    def measured():
        calls.append(1)
        return {"x": jnp.array([1.0, jnp.nan]), "call": len(calls)}

    run = lambda settings, **how: arm_files.run(tmp_path, "a", settings, measured, **how)["data"]
    assert run({"rate": 0.1, "weights": (1, 2)}) == {"x": [1.0, None], "call": 1}
    assert run({"rate": 0.1, "weights": (1, 2)})["call"] == 1
    assert run({"rate": 0.2})["call"] == 2
    assert run({"rate": 0.1, "weights": (1, 2)})["call"] == 1
    assert run({"rate": 0.1, "weights": (1, 2)}, fresh=True)["call"] == 3
    assert arm_files.stored(tmp_path, "a", {"rate": 0.1, "weights": (1, 2)})["data"]["call"] == 3
    assert arm_files.stored(tmp_path, "a", {"rate": 0.3}) is None
    younger = lambda *defaults, **asked: arm_files.stored(tmp_path, "a", asked, *defaults)
    assert younger(rate=0.1, weights=(1, 2), momentum=0.0) is None
    defaults = {"rate": 0.5, "momentum": 0.0}  # what a file says counts before them
    assert younger(defaults, rate=0.1, weights=(1, 2), momentum=0.0)["data"]["call"] == 3
    assert younger(defaults, rate=0.1, weights=(1, 2), momentum=0.9) is None
    assert younger(defaults, rate=0.5, weights=(1, 2), momentum=0.0) is None
    stored = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted(content["data"]["call"] for content in stored) == [1, 2, 3]


SMALL = paper_experiments.SIZES["small"]


def test_the_papers_ten_curves_are_weights_of_the_inner_gradients():
    curves = dict(paper_experiments.combinations(SMALL).values())
    assert len(curves) == 10
    assert curves["g1 + g2"] == (1, 1)
    assert curves["(g1 + g2 + g3 + g4) / 4"] == (0.25,) * 4
    assert curves["g3"] == (0, 0, 1)


@pytest.mark.usefixtures("lenient")
def test_the_sums_outer_rate_is_the_papers_for_reptile():
    """Their update is ε times the way the inner loop went; ours sums gradients of the mean loss."""
    alpha, epsilon = paper_experiments.INNER_RATE, paper_experiments.META_RATE
    assert (alpha, epsilon) == (0.075, 0.25)
    task = WAVES.sample(jax.random.key(0))
    params, inner = init(jax.random.key(1)), optax.sgd(alpha)
    reptile = rj.reptile(loss_fn, inner).estimate(params, None, task).gradient
    summed = rj.weighted(loss_fn, inner, (1.0, 1.0)).estimate(params, None, task).gradient
    scale = lambda rate, tree: jax.tree.map(lambda leaf: rate * leaf, tree)
    chex.assert_trees_all_close(scale(epsilon, reptile), scale(epsilon * alpha, summed), rtol=1e-4)


def numbered_images():
    """Six classes of 20 images, each image its own grey level: its number."""
    images = np.arange(120, dtype=np.uint8).reshape(120, 1, 1, 1)
    starts = np.arange(6, dtype=np.int32) * 20
    return fewshot.ImageClasses(images, starts, np.full(6, 20, np.int32))


@pytest.mark.parametrize(
    ("name", "steps", "batch"),
    [
        *((name, 4, 25) for name in overlap.OVERLAPS),
        ("FOMAML, shared tail, cycling", 8, 25),
        ("FOMAML, separate tail, cycling", 4, 100),
    ],
)
def test_mini_batches_overlap_as_their_name_says(name, steps, batch):
    drawing = overlap.OVERLAPS[name]
    tasks = overlap.tasks(numbered_images(), drawing, steps, batch)
    task = tasks.sample(jax.random.key(0))
    drawn = np.rint(np.asarray(task.support.inputs) * 255).astype(int).reshape(-1)
    support = drawn.reshape(task.support.targets.shape)
    if "separate" not in name:
        assert task.query is None
        assert support.shape == (steps, batch)
        assert len(set(drawn)) <= 100
        assert len(set(drawn[:100])) == 100 or "cycling" not in name
        fresh_tail = not set(support[-1]) & set(support[:-1].reshape(-1))
        assert fresh_tail == ("cycling" in name and (steps, batch) == (4, 25))
    else:
        tail = np.rint(np.asarray(task.query.inputs) * 255).astype(int).reshape(-1)
        assert len(tail) == len(set(tail)) == min(batch, 50)
        assert support.shape == (steps - 1, min(batch, 100 - len(tail)))
        assert not set(tail) & set(drawn)


SIZE = contest.SIZES["tiny"]


def test_budgets_are_equal_in_what_they_say():
    times = {"Reptile": 10.0, "FOMAML": 12.0, "MAML": 40.0}
    steps = lambda method, basis: outcomes.equal_steps(times, method, basis, 100)
    assert {steps(method, "meta steps") for method in times} == {100}
    assert (steps("Reptile", "time"), steps("FOMAML", "time")) == (400, 333)
    assert steps("Reptile", "gradient evaluations") == 220  # (5 + 1 + 5) / 5
    assert steps("MAML", "gradient evaluations") == steps("MAML", "time") == 100


def test_a_verdict_follows_from_its_findings():
    verdict = lambda *answers: (
        claims.Claim("", "", [claims.Finding("", "", answer) for answer in answers]).verdict
    )
    assert verdict(claims.YES, claims.YES) == "holds"
    assert verdict(claims.YES, claims.OPEN) == "depends on"
    assert verdict(claims.YES, claims.NO) == "depends on"
    assert verdict(claims.NO, claims.OPEN) == "does not hold"
    assert verdict(claims.OPEN, claims.OPEN) == "does not hold: no difference seen"
    assert verdict() == "not measured yet"
    mean, half = claims.paired(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose((mean, half), (2.0, 4.302653 / np.sqrt(3)), rtol=1e-6)


def store_contest(folder, reptile_gain):
    """Made figures of every arm: Reptile better on the sine waves by `reptile_gain`."""
    store = lambda arm, settings, data: arm_files.run(folder, arm, settings, lambda: data)
    for name in stability.METHODS:
        error = np.full((2, 2, 2), 1.0)
        error[0, 0] = np.nan if name == "MAML" else 8.1 if name == "FOMAML" else 7.9
        store(stability.arm(name), stability.settings(name, SIZE), {"error": error, "zero": 4.0})
    for kind in outcomes.PROBLEMS:
        times = {"Reptile": 1.0, "FOMAML": 1.0, "MAML": 4.0}
        data = {name: {"median": ms, "ms": [ms] * 3} for name, ms in times.items()}
        store(f"{kind}-time", outcomes.time_settings(kind, SIZE), data)
        best = np.array([[9.0, 2.0, 3.0], [9.0, 3.0, 1.0]]) * (1 if kind == "sine" else -1)
        data = {"rates": [(0.1, 1), (0.2, 2)]}
        data["scores"] = dict.fromkeys(outcomes.SCORES[kind], best)
        for method in times:
            settings = outcomes.tuning_settings(kind, method, SIZE)
            store(f"{kind}-{method}-rates", settings, data)
        for method, of_method in outcomes.lengths(folder, kind, SIZE).items():
            chosen = outcomes.choice(folder, kind, method, SIZE)
            assert chosen["inner rate"] == 0.2
            assert set(chosen["point"].values()) == {2}
            gain = reptile_gain * (method == "Reptile") if kind == "sine" else 0
            value = np.tile([[0.5 - gain], [0.6 - 1.001 * gain]], 3)
            for steps in of_method:
                settings = outcomes.run_settings(kind, method, chosen, steps, SIZE)
                data = {"scores": dict.fromkeys(outcomes.SCORES[kind], value)}
                store(f"{kind}-{method}-{steps}", settings, data)


def test_the_page_says_what_was_measured_and_what_was_not(tmp_path):
    page = tmp_path / "page.md"
    maml_page.write(tmp_path, "tiny", page)
    assert "holds**" not in page.read_text()
    assert "Not measured yet, and in no verdict: stability-Reptile" in page.read_text()
    folder = tmp_path / "reptile_vs_maml" / "tiny"
    store_contest(folder, reptile_gain=0.1)
    diverged = {name: d["diverged"].mean() for name, d in stability.stored(folder, SIZE).items()}
    assert diverged == {"Reptile": 0, "Reptile, Adam outside": 0, "FOMAML": 0.25, "MAML": 0.25}
    maml_page.write(tmp_path, "tiny", page)
    text = page.read_text()
    verdict = lambda claim: text.partition(f"| {claim} | **")[2].partition("**")[0]
    assert "in no verdict" not in text
    assert verdict("A meta step of MAML takes longer than one of Reptile") == "holds"
    assert verdict("Reptile does better than MAML after equal time") == "depends on"
    unseen = "does not hold: no difference seen"
    assert verdict("MAML does better than FOMAML after equal meta steps") == unseen
    assert verdict("Reptile diverges at fewer rates than MAML") == "holds"
    assert "0% against 25%" in text
    memory = "Reptile's and FOMAML's memory hardly grows with the number of inner steps"
    assert verdict(memory) == "not measured yet"
    for picture in ("stability.png", "sine-error.png", "omniglot-transductive.png"):
        assert (folder / picture).stat().st_size > 1000
        assert f"reptile_vs_maml/tiny/{picture}" in text


def test_the_command_line_asks_for_the_data(capsys):
    with pytest.raises(SystemExit):
        experiments.main(["minibatch_overlap"])
    assert "needs --data" in capsys.readouterr().err
