"""Reptile meta-learning, serial and batched, as jitted pure functions."""

from reptile_jax.inner_gradients import foml as foml
from reptile_jax.inner_gradients import weighted as weighted
from reptile_jax.padding import Masked as Masked
from reptile_jax.padding import masked_mean as masked_mean
from reptile_jax.padding import stack_batches as stack_batches
from reptile_jax.padding import stack_tasks as stack_tasks
from reptile_jax.reptile import Adapted as Adapted
from reptile_jax.reptile import MetaGradient as MetaGradient
from reptile_jax.reptile import MetaInfo as MetaInfo
from reptile_jax.reptile import MetaLearner as MetaLearner
from reptile_jax.reptile import MetaState as MetaState
from reptile_jax.reptile import fomaml as fomaml
from reptile_jax.reptile import inner_loop as inner_loop
from reptile_jax.reptile import maml as maml
from reptile_jax.reptile import meta_learner as meta_learner
from reptile_jax.reptile import meta_step as meta_step
from reptile_jax.reptile import reptile as reptile
from reptile_jax.task_axis import TaskGradient as TaskGradient
from reptile_jax.tasks import Batch as Batch
from reptile_jax.tasks import Draws as Draws
from reptile_jax.tasks import Task as Task
from reptile_jax.tasks import TaskDistribution as TaskDistribution
from reptile_jax.tasks import minibatches as minibatches
