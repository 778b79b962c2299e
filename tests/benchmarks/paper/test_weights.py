"""The package's weights are those of the trainings, bit for bit, with their published figures."""

import json

import jax
import numpy as np
import pytest

import reptile_jax as rj
from benchmarks.paper import weights
from reptile_jax.app import models
from reptile_jax.deploy import cards, catalogue


def test_every_card_is_made_here():
    assert {*cards()} == {*weights.SOURCES}


@pytest.mark.parametrize("name", weights.SOURCES)
def test_the_committed_weights_are_those_of_the_training(name):
    content, card = weights.made(name)
    assert content == (catalogue.WEIGHTS / f"{name}.safetensors").read_bytes()
    assert card == json.loads((catalogue.WEIGHTS / f"{name}.json").read_text())
    there = models.adaptable(weights.TRAININGS / weights.SOURCES[name].training)
    here = rj.pretrained(name)
    for one, other in zip(leaves(here), leaves(there), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def leaves(model):
    return jax.tree.leaves((model.params, model.inner_opt_state))


def test_the_command_writes_them_all(tmp_path, capsys):
    assert weights.main(["--out", str(tmp_path)]) == 0
    for path in catalogue.WEIGHTS.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert capsys.readouterr().out.count("\n") == len(weights.SOURCES)
