"""Trainings side by side are the trainings alone, by numbers that a program is given."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from benchmarks.paper.lane_list import Lane, Program

import reptile_jax as rj
from benchmarks.paper import lane_list, lanes
from reptile_jax.app import presets
from tests.benchmarks.paper.test_recipes import image_splits

pytestmark = pytest.mark.usefixtures("relaxed")
OTHER = Lane(1, 2e-3, 0.05, 1e-2, 0.5, 0.1, 0.03, 0.1, 0.5, 1.0)


@pytest.fixture
def small(monkeypatch):
    """Pictures of 8x8, one dispatch of two meta steps; returns the splits."""
    row = dataclasses.replace(presets.PAPER["o120"], size=8, ways=2, inner_batch=2, eval_batch=2)
    monkeypatch.setitem(presets.PAPER, "o120", row)
    monkeypatch.setattr(lanes, "DISPATCH", 2)
    return image_splits(6, 6)


def test_every_program_sees_the_images_of_o120():
    images = lambda c: c.meta_steps * c.meta_batch * c.inner_steps * c.inner_batch
    asked = images(dataclasses.replace(presets.PAPER["o120"], meta_steps=4894))
    for program in lane_list.PROGRAMS.values():
        config = lanes.configured(program, 4894)
        config.check()
        assert abs(images(config) / asked - 1) < 0.01
        assert config.meta_steps % lanes.DISPATCH == 0


@pytest.mark.slow
def test_two_lanes_side_by_side_are_each_alone(small):
    program = Program([Lane(), OTHER], ways=3, inner_steps=2)
    config = dataclasses.replace(lanes.configured(program, 1), meta_steps=4)
    both, losses = lanes.trained(program.lanes, config, small)
    of = lambda index, states: jax.tree.map(lambda leaf: leaf[index], states.params)
    apart = lambda one, other: optax.tree.norm(optax.tree.sub(one, other))
    far = apart(of(0, both), of(1, both))
    for index, lane in enumerate(program.lanes):
        alone, loss = lanes.trained([lane], config, small)
        np.testing.assert_allclose(losses[index], loss[0], rtol=1e-3)
        # Adam's first step is a gradient's sign: where that is rounding alone, a weight may differ.
        assert apart(of(index, both), of(0, alone)) < 0.01 * far


def test_the_loss_is_that_of_prototypes_but_for_smoothed_labels():
    model = rj.nn.omniglot_net(3)
    images = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
    batch = rj.Batch(images, jnp.array([0, 2, 1, 1, 0, 2]))
    params = jax.jit(model.init)(jax.random.key(1), images)
    value = lambda loss_fn: jax.jit(loss_fn)(params, batch)
    expected = value(rj.nn.prototype_loss(model, 0.3))
    np.testing.assert_allclose(value(lanes._loss(model, Lane(scale=0.3))), expected, rtol=1e-5)
    smoothed = value(lanes._loss(model, Lane(scale=0.3, smoothed=1.0)))
    assert abs(smoothed - expected) > 1e-3  # against uniform labels


def test_parameters_lose_a_share_of_themselves_at_every_inner_step():
    params = jnp.array([10.0, 2.0])
    inner = lanes._inner(0.1, 0.01)
    updates, _ = inner.update(jnp.array([1.0, 0.0]), inner.init(params), params)
    np.testing.assert_allclose(updates, [-0.1 - 0.1, -0.02], rtol=1e-4)


def test_classes_are_mirrored_whole_and_distorted_by_the_numbers():
    targets = jnp.array([[0, 1, 0, 1]])
    inputs = jnp.broadcast_to(jnp.arange(8.0) / 8, (1, 4, 8, 8))[..., None]
    task = rj.Task(rj.Batch(inputs, targets))
    of = lambda lane, affine: lanes._distorted(jax.random.key(0), task, lane, 2, affine=affine)
    mirrored = of(Lane(mirrored=1.0), False).support
    np.testing.assert_array_equal(mirrored.inputs, inputs[..., ::-1, :])
    same = of(Lane(), True).support
    np.testing.assert_allclose(same.inputs, inputs, atol=1e-5)
    moved = of(Lane(classes=0.1), True).support.inputs[0]
    np.testing.assert_allclose(moved[0], moved[2], atol=1e-5)
    assert abs(moved[0] - moved[1]).max() > 0.01
    assert abs(of(Lane(images=0.1), True).support.inputs[0][0] - moved[0]).max() > 0.01


@pytest.mark.slow
def test_a_program_is_recorded_and_found_again(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rj.datasets, "load_omniglot", lambda folder: small)
    monkeypatch.setattr(lanes, "set_apart", lambda splits, characters: splits)
    monkeypatch.setattr(
        lanes,
        "EVALUATIONS",
        {
            "paper": lanes.PAPER,
            "balanced": lanes.balanced(2, 2),
            "start alone": lanes.balanced(2, 1, rate=0.0),
        },
    )
    program = Program([Lane(), Lane(seed=1, rate=2e-3), OTHER], ways=3, inner_steps=2)
    monkeypatch.setitem(lanes.PROGRAMS, "prototypes at 60 ways", program)
    argv = ["--data", "DIR", "--out", str(tmp_path), "--quick"]
    assert lanes.main(argv) == lanes.main(argv) == 0
    assert "prototypes at 60 ways: measured already" in capsys.readouterr().out
    record = json.loads((tmp_path / "quick" / "paper" / "lanes.json").read_text())
    assert record["columns"] == lanes.COLUMNS
    names = ["prototypes at 60 ways", "prototypes at 60 ways, seed 1, inner rate 0.002"]
    assert [row[0] for row in record["rows"]] == names
    first, second = record["arms"][0]["data"]["lanes"].values()
    plain = {"paper", "balanced", "start alone"}
    assert set(second["accuracy"]) == plain
    variants = {f"{kind}, {name}" for kind in ("paper", "balanced") for name in lanes.VARIANTS}
    assert set(first["accuracy"]) == plain | variants
    assert all(0 <= x <= 100 for found in first["accuracy"].values() for x in found.values())
