"""What a configuration stands for: built with what it needs, refused with what it does not."""

from pathlib import Path

import jax
import numpy as np
import pytest

from reptile_jax.app import experiments
from reptile_jax.app.config import SinusoidConfig
from reptile_jax.app.experiment import key


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("sinusoid", Path("waves"), "this is a run of sinusoid: it takes no --data"),
        ("images", None, "this is a run of images: give the data set's folder with --data"),
        ("omniglot", None, "this is a run of omniglot: give the data set's folder with --data"),
    ],
)
def test_data_that_are_missing_or_not_needed_are_named(name, data, message):
    with pytest.raises(ValueError, match=message):
        experiments.build(experiments.EXPERIMENTS[name].start, data)


def test_each_experiment_starts_from_a_configuration_of_its_own():
    for name, entry in experiments.EXPERIMENTS.items():
        assert entry.start.experiment == name
        entry.start.check()


def test_an_experiment_names_one_of_its_scores_the_main_one():
    experiment = experiments.build(SinusoidConfig())
    task = experiment.held_out_tasks.sample(jax.random.key(0))
    scores = experiment.score_fn(experiment.first_state().params, task)
    assert np.shape(scores[experiment.main_score]) == ()


def test_the_uses_of_a_runs_seed_have_keys_of_their_own():
    uses = ("init", "training", "evaluation")
    keys = {jax.random.key_data(key(0, use)).tobytes() for use in uses}
    assert len(keys | {jax.random.key_data(key(1, "init")).tobytes()}) == 4
    assert key(0, "training") == jax.random.fold_in(jax.random.key(0), 1)
