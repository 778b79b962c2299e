"""The weights that come along: whole, small, with cards, and without the command's packages."""

import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import reptile_jax as rj
from reptile_jax.deploy import catalogue

NAMES = ["omniglot-20way", "omniglot-5way", "omniglot-paper", "sine-waves"]


def test_the_names_are_these():
    assert [*rj.deploy.cards()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_whole_small_and_described(name):
    model, card = rj.pretrained(name), rj.deploy.cards()[name]
    assert all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(model.params))
    jax.eval_shape(model.apply, model.params, np.zeros((2, *model.input_shape), np.float32))
    assert (catalogue.WEIGHTS / f"{name}.safetensors").stat().st_size < 1.5e6
    assert model.card == card
    assert card["summary"]
    assert card["data"]
    for figures in card["figures"]:
        assert {"error"} == set(figures["scores"]) or len(figures["scores"]) == 2
        assert all(0 < score["ci95"] < score["mean"] for score in figures["scores"].values())


def test_images_are_adapted_from_trainings_second_moment():
    model = rj.pretrained("omniglot-5way")
    nu = jax.tree.leaves(model.inner_opt_state[0].nu)
    assert max(float(leaf.max()) for leaf in nu) > 0
    assert int(model.inner_opt_state[0].count) > 0
    assert rj.pretrained("sine-waves").inner_opt_state is None


def test_sine_waves_are_learned():
    model = rj.pretrained("sine-waves")
    x = np.linspace(-5, 5, 10)[:, None]
    predicted = model.predict(x, 3 * np.sin(x + 1), x + 0.2)
    assert float(np.mean((np.asarray(predicted) - 3 * np.sin(x + 1.2)) ** 2)) < 0.2
    before = model.trajectory(x, 3 * np.sin(x + 1), x).predictions[0]
    assert float(np.mean((np.asarray(before) - 3 * np.sin(x + 1)) ** 2)) > 1


def test_other_names_and_damaged_weights_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="there is no pretrained 'omniglot', only omniglot-20way,"):
        rj.pretrained("omniglot")
    with pytest.raises(ValueError, match=r"there is no pretrained \['omniglot-5way'\], only"):
        rj.pretrained(["omniglot-5way"])
    shutil.copytree(catalogue.WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr(catalogue, "WEIGHTS", tmp_path / "weights")
    path = tmp_path / "weights" / "sine-waves.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="the weights of sine-waves are damaged"):
        rj.pretrained("sine-waves")


def test_only_the_packages_of_the_library_are_needed():
    code = """
import sys
import reptile_jax as rj
rj.pretrained("sine-waves"), rj.export, rj.deploy.load
wanted = ("tyro", "matplotlib", "PIL", "orbax.checkpoint", "reptile_jax.app")
print([name for name in wanted if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]"]
