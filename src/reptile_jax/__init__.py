"""Reptile meta-learning, serial and batched, as jitted pure functions.

`tasks` has task distributions, `nn` the paper's networks, `datasets` image files as arrays,
`checkpoint` saves and restores a state, and `deploy` has trained models to adapt and to ship.
"""

import importlib
from typing import TYPE_CHECKING

from reptile_jax import _installation  # noqa: F401, JAX first
from reptile_jax import datasets as datasets
from reptile_jax import tasks as tasks
from reptile_jax._devices import replicate as replicate
from reptile_jax._devices import task_mesh as task_mesh
from reptile_jax._types import Adapted as Adapted
from reptile_jax._types import Batch as Batch
from reptile_jax._types import InnerInfo as InnerInfo
from reptile_jax._types import MetaGradient as MetaGradient
from reptile_jax._types import MetaInfo as MetaInfo
from reptile_jax._types import MetaLearner as MetaLearner
from reptile_jax._types import MetaState as MetaState
from reptile_jax._types import Task as Task
from reptile_jax._types import TaskDistribution as TaskDistribution
from reptile_jax._types import TaskGradient as TaskGradient
from reptile_jax._types import TaskState as TaskState
from reptile_jax.evaluation import Evaluation as Evaluation
from reptile_jax.evaluation import Spread as Spread
from reptile_jax.evaluation import evaluate as evaluate
from reptile_jax.evaluation import spread as spread
from reptile_jax.inner_gradients import foml as foml
from reptile_jax.inner_gradients import weighted_gradients as weighted_gradients
from reptile_jax.reptile import fomaml as fomaml
from reptile_jax.reptile import inner_loop as inner_loop
from reptile_jax.reptile import maml as maml
from reptile_jax.reptile import meta_learner as meta_learner
from reptile_jax.reptile import meta_step as meta_step
from reptile_jax.reptile import reptile as reptile
from reptile_jax.streaming import start_task as start_task
from reptile_jax.streaming import stream as stream
from reptile_jax.streaming import streamed as streamed
from reptile_jax.training import meta_steps as meta_steps
from reptile_jax.training import train as train

if TYPE_CHECKING:
    from reptile_jax import checkpoint as checkpoint
    from reptile_jax import deploy as deploy
    from reptile_jax import nn as nn
    from reptile_jax.deploy.catalogue import pretrained as pretrained
    from reptile_jax.deploy.programs import export as export


def __getattr__(name: str):
    """Loads on first use what needs Flax, `nn` and `deploy`, or Orbax, `checkpoint`."""
    if name in ("checkpoint", "deploy", "nn"):
        return importlib.import_module(f"reptile_jax.{name}")
    if name in (home := {"export": "programs", "pretrained": "catalogue"}):
        return getattr(importlib.import_module(f"reptile_jax.deploy.{home[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
