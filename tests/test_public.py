"""The public face: what is exported is there, is documented, and costs no more than it has to."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import reptile_jax as rj

ROOT = Path(__file__).parent.parent
PACKAGES = {"rj": rj, "rj.tasks": rj.tasks, "rj.nn": rj.nn, "rj.datasets": rj.datasets}
PACKAGES |= {"rj.checkpoint": rj.checkpoint, "rj.deploy": rj.deploy}


def exported(package):
    """The names that `from x import name as name` puts into an `__init__`, or public functions."""
    text = Path(package.__file__).read_text()
    names = re.findall(r"^ *from [\w.]+ import (\w+) as \1$", text, re.MULTILINE)
    return names or ["save", "restore"]


EXPORTS = [(where, name) for where, package in PACKAGES.items() for name in exported(package)]


def test_the_face_is_this():
    names = {where: {name for at, name in EXPORTS if at == where} for where in PACKAGES}
    assert names["rj"] == {
        *("inner_loop", "reptile", "fomaml", "maml", "weighted_gradients", "foml"),
        *("meta_step", "meta_learner", "meta_steps", "train", "evaluate", "Evaluation"),
        *("spread", "Spread"),
        *("start_task", "stream", "streamed", "TaskState", "InnerInfo"),
        *("task_mesh", "replicate", "tasks", "nn", "datasets", "checkpoint"),
        *("deploy", "pretrained", "export"),
        *("Task", "Batch", "TaskDistribution", "TaskGradient", "Adapted"),
        *("MetaGradient", "MetaState", "MetaInfo", "MetaLearner"),
    }
    assert names["rj.tasks"] == {
        *("minibatches", "minibatch_order", "Masked", "masked_mean", "stack_batches"),
        *("stack_tasks", "sinusoids", "Sinusoids", "few_shot", "FewShot", "Episode"),
        *("Classes", "ImageClasses", "group_by_class", "accuracy", "query_logits"),
        *("draw_distinct", "repeat", "Repeated", "clients", "Clients"),
        *("burgers", "heat", "Equations", "Conditions", "residual_loss", "relative_error"),
        *("phantoms", "Phantoms", "Views", "draw_ellipses", "project", "pixel_points"),
        *("field_image", "projection_loss", "psnr"),
    }
    assert names["rj.nn"] == {
        *("MLP", "Conv", "BatchNorm", "ConvNet", "omniglot_net", "mini_imagenet_net"),
        *("classifier_mask", "squared_error", "cross_entropy", "conv_general_dilated"),
        *("max_pool", "batch_norm", "Field", "in_bfloat16", "prototype_loss", "from_prototypes"),
    }
    assert {"load_image_folder", "load_omniglot", "load_mini_imagenet"} <= names["rj.datasets"]


@pytest.mark.parametrize(("where", "name"), EXPORTS)
def test_every_name_resolves_and_says_what_it_is(where, name):
    value = getattr(PACKAGES[where], name)
    own = inspect.getdoc(value)
    assert own
    # A NamedTuple or a dataclass without a docstring is given its signature for one.
    assert not own.startswith(f"{name}(")


@pytest.mark.parametrize("where", PACKAGES)
def test_nothing_private_is_exported(where):
    package = PACKAGES[where]
    assert not hasattr(package, "Draws")
    public = {name for name in vars(package) if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(getattr(package, name))}
    if where != "rj.checkpoint":
        extra = public - set(exported(package)) - modules - {"TYPE_CHECKING"}
        assert not extra
    assert not any(name.startswith("_") for name in exported(package))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'reptile_jax' has no attribute 'weighted'"):
        rj.weighted  # noqa: B018


def test_the_import_loads_neither_flax_nor_orbax():
    """`rj.nn`, `rj.deploy` and `rj.checkpoint` load them on first use."""
    code = """
import sys
import reptile_jax as rj
rj.tasks.sinusoids(), rj.datasets.load_omniglot, rj.train
loaded = lambda *names: [name for name in names if name in sys.modules]
print(loaded("flax", "flax.linen", "orbax", "orbax.checkpoint", "PIL", "matplotlib", "tyro"))
wings = ("nn", "checkpoint", "deploy", "app")
print(loaded(*(f"reptile_jax.{wing}" for wing in wings), "safetensors"))
rj.nn.MLP, rj.checkpoint.save
print(loaded("flax.linen", "orbax.checkpoint"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]", "['flax.linen', 'orbax.checkpoint']"]


def test_the_version_is_that_of_the_newest_entry_of_the_changelog():
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    changelog = ROOT / "CHANGELOG.md"
    if not changelog.exists():
        pytest.skip("there is no changelog")
    newest = re.search(r"^## \[?v?(\d+\.\d+\.\d+)", changelog.read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == version[1]


def test_the_algorithm_is_short_enough_to_be_read():
    source = (ROOT / "src/reptile_jax/reptile.py").read_text()
    assert len(source.splitlines()) <= 200
