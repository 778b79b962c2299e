"""From a configuration to a model: what its classifier starts from."""

import dataclasses

import pytest

import reptile_jax as rj
from reptile_jax.app.config import FewShotConfig
from reptile_jax.app.models import described


@pytest.mark.parametrize(
    ("classifier", "takes_any", "starts"),
    [("learned", False, False), ("zero", True, False), ("prototypes", True, True)],
)
def test_a_model_starts_as_its_run_was_trained(classifier, takes_any, starts):
    config = FewShotConfig(size=8, classifier=classifier, balanced_batches=True)
    model = rj.deploy.from_config(described(config))
    assert (model.apply_for is not None) == takes_any
    assert (model.prototypes is not None) == starts
    # Programs are compiled for it: runs of one network share them.
    other = rj.deploy.from_config(described(dataclasses.replace(config, seed=1)))
    assert other.prototypes is model.prototypes
    assert other.apply == model.apply
    if takes_any:
        assert other.apply_for(7) == model.apply_for(7)


def test_a_model_is_for_the_classes_that_its_run_is_scored_on():
    config = FewShotConfig(size=8, classifier="zero", eval_ways=3)
    model = rj.deploy.from_config(described(config))
    assert model.ways == 3
    assert model.params["params"]["Dense_0"]["kernel"].shape[-1] == 3
