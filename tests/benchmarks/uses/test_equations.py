"""The uses of equations: the same loss in opifex's hands, and tables that say what was measured."""

import importlib
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reptile_jax as rj
from benchmarks.uses import equations, opifex_example


@pytest.fixture
def opifex_arm(monkeypatch):
    """The arm's module, where opifex is not."""
    for name in ("opifex", "opifex.optimization", "opifex.optimization.l2o"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    core = types.SimpleNamespace(Task=object, TaskFamily=object)
    learning = types.SimpleNamespace(maml_meta_train=None, reptile_meta_train=None)
    monkeypatch.setitem(sys.modules, "opifex.optimization.l2o.core", core)
    monkeypatch.setitem(sys.modules, "opifex.optimization.l2o.meta_learning", learning)
    yield importlib.import_module("benchmarks.uses.opifex_arm")
    del sys.modules["benchmarks.uses.opifex_arm"]


@pytest.mark.slow
@pytest.mark.usefixtures("relaxed")
def test_both_arms_have_the_same_residual_and_setting(opifex_arm):
    params = opifex_example.first_weights(0)
    family = rj.tasks.burgers()
    batch = family.sample(jax.random.key(0)).query
    layers = [(layer["kernel"], layer["bias"]) for layer in params["params"].values()]
    arguments = layers, batch.inside, batch.viscosity
    reverse = jax.jit(opifex_arm.reverse_residual)(*arguments)
    forward = jax.jit(opifex_arm.forward_residual)(*arguments)[:, 0]
    np.testing.assert_allclose(forward, reverse, atol=1e-5)
    exact = batch._replace(
        initial=rj.Batch(batch.initial.inputs, opifex_arm.network(layers, batch.initial.inputs)),
        boundary=jnp.zeros((1, 2)),  # where a network without biases is zero
    )
    np.testing.assert_allclose(opifex_example._LOSS(params, exact), np.mean(reverse**2), rtol=1e-4)
    assert (opifex_arm.VISCOSITY, opifex_arm.HORIZON) == (family.viscosity, family.horizon)
    numbers = opifex_arm.POINTS, opifex_arm.INITIAL_POINTS, opifex_arm.BOUNDARY_POINTS
    assert numbers == (family.points, family.initial_points, family.boundary_points)


def test_a_row_of_speed_leaves_compilation_out_of_a_meta_step():
    arm = lambda factor: {
        "seconds": [factor * 2 + 5, factor * 3 + 5],
        "seconds of one": 5,
        "more meta steps": 1000,
        "losses": [0.25, 0.125],
    }
    arms = {"Reptile: reptile_jax": arm(1), "Reptile: opifex": arm(3)}
    row = opifex_example._speed_row("Reptile: opifex", arms["Reptile: opifex"], arms)
    assert row == ["Reptile: opifex", "12.5", "7.5", "3.00", "0.250", "0.125"]


@pytest.fixture
def standard():
    with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("standard")
def test_the_parts_without_opifex_are_measured_once_and_tabulated(tmp_path, capsys):
    argv = ["--only", "heat", "published", "--seeds", "1", "--quick", "--out", str(tmp_path)]
    assert equations.main(argv) == 0
    record = json.loads((tmp_path / "quick" / "uses" / "equations_heat.json").read_text())
    assert len(record["arms"]) == len(equations.ADAPTING)
    assert len(record["rows"]) == len(equations.ADAPTING) * 3 * 2
    published = json.loads((tmp_path / "quick" / "uses" / "equations_published.json").read_text())
    assert [row[0] for row in published["rows"]][:2] == ["random: published", "random: here"]
    capsys.readouterr()
    assert equations.main(argv) == 0
    assert capsys.readouterr().out.count("measured already") == len(equations.ADAPTING) + 1


def test_speed_asks_for_the_python_that_has_opifex(capsys):
    with pytest.raises(SystemExit):
        equations.main(["--only", "speed"])
    assert "speed needs --opifex PYTHON" in capsys.readouterr().err
