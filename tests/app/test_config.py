"""What is wrong with a configuration is said by the library itself, in the field's own name."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from reptile_jax.app import commands, model_commands
from reptile_jax.app.config import Config, FewShotConfig, SinusoidConfig
from reptile_jax.app.experiments import EXPERIMENTS
from tests.nonsense import NONSENSE, answered, fuzz

PROTOTYPES = {"classifier": "prototypes", "balanced_batches": True}


@settings(fuzz, max_examples=150)
@given(
    st.sampled_from([SinusoidConfig, FewShotConfig]),
    st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(FewShotConfig)]),
        NONSENSE,
        min_size=1,
        max_size=3,
    ),
)
def test_a_configuration_of_anything(kind, values):
    names = {field.name for field in dataclasses.fields(kind)}
    config = kind(**{name: value for name, value in values.items() if name in names})
    with answered():
        config.check()
        for field in dataclasses.fields(kind):
            if field.type in (int, float):
                assert 0 <= getattr(config, field.name) < 2**31


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"meta_steps": 0}, "meta_steps is at least 1, got 0"),
        ({"meta_steps": 2**31}, "meta_steps is at most 2147483647, got 2147483648"),
        ({"meta_steps": 2.0}, "meta_steps is an integer, got 2.0"),
        ({"meta_steps": True}, "meta_steps is an integer, got True"),
        ({"eval_ways": 0}, "eval_ways is at least 1, got 0"),
        ({"eval_ways": "2"}, "eval_ways is an integer, got '2'"),
        ({"eval_tasks": 1}, "eval_tasks is at least 2, got 1"),
        ({"seed": -1}, "seed is at least 0, got -1"),
        ({"inner_rate": float("inf")}, "inner_rate is a finite number, got inf"),
        ({"inner_rate": None}, "inner_rate is a finite number, got None"),
        ({"meta_rate": 2e9}, r"meta_rate is between 0 and 1e\+09, got 2000000000.0"),
        ({"meta_momentum": -0.1}, "meta_momentum is between 0 and 1, got -0.1"),
        ({"inner_opt_state": "averaged"}, "one of 'reset', 'average', 'carry', got 'averaged'"),
        ({"matmul_precision": "half"}, "one of 'bfloat16', 'tensorfloat32', 'float32', got 'half'"),
        ({"transductive": 1}, "transductive is one of False, True, got 1"),
        ({"color": "rgb"}, "the images of omniglot are grey, not rgb"),
        ({"dataset": "mini-imagenet"}, "the images of mini-imagenet are rgb, not grey"),
        ({"split_seed": 1}, "split_seed is for images alone: leave split_seed=1 out for omniglot"),
        (
            {"dataset": "images", "mirrored": True},
            "mirrored is for omniglot alone: leave mirrored=True out for images",
        ),
        ({"eval_ways": 2}, "classifier is meta-learned with the rest, for 5 ways"),
        ({"classifier": "prototypes"}, "give balanced_batches, as inner_batch a multiple of twice"),
        (
            {**PROTOTYPES, "inner_batch": 15},
            "twice the 5 ways, and .*; got balanced_batches=True, inner_batch=15",
        ),
        (
            {**PROTOTYPES, "train_shots": 1},
            "as train_shots a multiple of .*, train_shots=1, inner_steps=5",
        ),
        ({**PROTOTYPES, "train_shots": 9}, "so no image may be in both: .*, train_shots=9"),
        (
            {"balanced_eval": True, "eval_ways": 3, "classifier": "zero"},
            "show each of 3 classes as often: eval_batch is a multiple of the ways, got 5",
        ),
    ],
)
def test_what_cannot_be_is_named_with_its_value(values, message):
    with pytest.raises(ValueError, match=message):
        FewShotConfig(**values).check()


def test_what_can_be_is_taken():
    FewShotConfig(meta_steps=np.int64(3), inner_rate=np.float32(0.5), meta_rate=1).check()
    FewShotConfig(inner_rate=0.0, seed=0, meta_momentum=1.0).check()
    FewShotConfig(eval_ways=5).check()  # those that it is trained for
    FewShotConfig(eval_ways=3, classifier="zero").check()
    FewShotConfig(eval_ways=3, **PROTOTYPES).check()
    FewShotConfig(**PROTOTYPES, train_shots=9, inner_steps=4).check()  # one shuffle is enough
    FewShotConfig(**PROTOTYPES, train_shots=8).check()  # shuffles end with a mini-batch
    FewShotConfig(dataset="images", color="rgb", test_fraction=0.5, split_seed=3).check()


@dataclasses.dataclass(frozen=True)
class OwnConfig(Config):
    """Of an experiment of one's own, with fields of other types and other bounds."""

    eval_tasks: int = 5  # another default, and the bound of `Config`
    label: str = "a"
    folder: Path = Path("data")
    sizes: tuple[int, ...] = ()
    text: str | None = None
    level: float | str = "high"
    choice: Literal[0, "auto"] | None = None
    flag: bool | None = None
    layers: int = dataclasses.field(default=0, metadata={"least": 0, "largest": 9})
    shift: float = dataclasses.field(default=-0.5, metadata={"least": -1, "unit": "m"})

    experiment = "own"


def test_fields_of_other_types_take_any_value():
    OwnConfig().check()
    OwnConfig(label="", folder=Path(), sizes=(3, 4), text="b", level=-2.0, flag=False).check()
    OwnConfig(choice="auto", layers=9, shift=-1.0).check()
    OwnConfig(choice=0).check()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eval_tasks": 1}, "eval_tasks is at least 2, got 1"),
        ({"seed": -1}, "seed is at least 0, got -1"),
        ({"layers": -1}, "layers is at least 0, got -1"),
        ({"layers": 10}, "layers is at most 9, got 10"),
        ({"shift": -1.5}, r"shift is between -1 and 1e\+09, got -1.5"),
        ({"shift": 10**400}, r"shift is a finite number|shift is between"),
        ({"choice": False}, "choice is one of 0, 'auto', got False"),
        ({"flag": 1}, "flag is one of False, True, got 1"),
    ],
)
def test_a_field_sets_bounds_in_its_metadata(values, message):
    with pytest.raises(ValueError, match=message):
        OwnConfig(**values).check()


def test_annotations_may_be_strings():
    Quoted = dataclasses.make_dataclass(
        "Quoted", [("size", "int", 3), ("name", "str", "a")], bases=(OwnConfig,), frozen=True
    )
    Quoted().check()
    with pytest.raises(ValueError, match="size is at least 1, got 0"):
        Quoted(size=0).check()


_kind = lambda entry: type(entry.start)
OPTIONS = [
    kind
    for module in (commands, model_commands)
    for name, kind in vars(module).items()
    if name.endswith("Options") and name != "_TrainOptions"
]


@pytest.mark.filterwarnings("ignore:get_parser:DeprecationWarning")
@pytest.mark.parametrize("kind", dict.fromkeys([*OPTIONS, *map(_kind, EXPERIMENTS.values())]))
def test_every_option_has_a_help_of_its_own(kind):
    actions = tyro.extras.get_parser(kind)._actions
    helps = [action.help.partition("(")[0].strip() for action in actions]
    assert all(helps)
    assert len(helps) == len({*helps})


def test_a_configuration_says_which_experiment_it_is_of_and_whether_devices_help():
    assert (SinusoidConfig().experiment, SinusoidConfig().shares_devices) == ("sinusoid", False)
    carried = FewShotConfig(dataset="images", inner_opt_state="carry")
    assert (carried.experiment, carried.shares_devices) == ("images", False)
    assert FewShotConfig().shares_devices
