"""FedAvg and its relatives: every method runs, and the table is made of the arms."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks import records
from benchmarks.uses import clients as bench
from reptile_jax.app.config import ClientsConfig
from reptile_jax.app.experiments import clients

CONFIG = ClientsConfig(
    meta_steps=3, meta_batch=2, inner_batch=8, eval_batch=4, eval_steps=5, eval_tasks=4
)


@pytest.fixture
def made(monkeypatch):
    """Ten alphabets of eight characters in place of Omniglot."""
    drawings = np.random.default_rng(0).integers(0, 255, (80, 20, 28, 28, 1), np.uint8)
    alphabets = [f"alphabet{number // 8}" for number in range(80)]
    monkeypatch.setattr(clients, "load", lambda data: (drawings, alphabets))


def test_the_rows_are_means_with_students_interval_over_the_trainings(tmp_path):
    path, rng = tmp_path / "clients.json", np.random.default_rng(0)
    runs = rng.uniform(size=(3, 25, 2))
    for seed, run in enumerate(runs):
        data = {"accuracy": run.tolist(), "among its own alphabets": (run / 2).tolist()}
        arm = {"arm": f"FedAvg, {seed}", "settings": {}, "data": data}
        records.add_arm(path, {}, arm)
    for point, (name, *cells) in enumerate(bench.tabulated(path)):
        assert name == f"FedAvg, {('before', 'after')[point]}"
        assert len(cells) == len(bench.COLUMNS) - 1
        means = 100 * runs[:, :, point].mean(1)
        half = 4.303 * means.std(ddof=1) / 3**0.5
        assert cells[0] == f"{means.mean():.1f} ± {half:.1f}"
        worst = 100 * np.sort(runs[:, :, point], 1)[:, :3].mean()  # a tenth of 25, rounded up
        assert cells[1].startswith(f"{worst:.1f} ±")
        assert cells[3].startswith(f"{means.mean() / 2:.1f} ±")
    assert point == 1


def test_more_trainings_than_students_t_is_known_for_are_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--data", "DIR", "--seeds", "11"])
    assert "argument --seeds: invalid choice: 11" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", bench.METHODS)
def test_every_method_trains_and_scores_every_client(method, made):
    config = dataclasses.replace(CONFIG, **bench.FEDERATED.get(method, {}))
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam does not pass the strict one
        found = bench.scored(method, config, "data")
    assert found["accuracy"].shape == found["among its own alphabets"].shape == (4, 2)
    assert np.all(found["accuracy"] <= found["among its own alphabets"])


@pytest.mark.slow
def test_the_products_counted_are_all_of_the_networks_weights():
    params = clients.Network(50).init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    layers = bench._layers(params, 20)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    assert sum(layer.fan_in * layer.fan_out for layer in layers) == weights
    assert [layer.rows for layer in layers] == [20 * 14**2, 20 * 7**2, 20 * 4**2, 20, 20]
