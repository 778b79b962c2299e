"""Task distributions, drawn on the device, and what your own are made of."""

from reptile_jax._types import ImageClasses as ImageClasses
from reptile_jax._types import Repeated as Repeated
from reptile_jax.tasks.few_shot import Classes as Classes
from reptile_jax.tasks.few_shot import Episode as Episode
from reptile_jax.tasks.few_shot import FewShot as FewShot
from reptile_jax.tasks.few_shot import accuracy as accuracy
from reptile_jax.tasks.few_shot import draw_distinct as draw_distinct
from reptile_jax.tasks.few_shot import few_shot as few_shot
from reptile_jax.tasks.few_shot import group_by_class as group_by_class
from reptile_jax.tasks.few_shot import query_logits as query_logits
from reptile_jax.tasks.minibatches import minibatch_order as minibatch_order
from reptile_jax.tasks.minibatches import minibatches as minibatches
from reptile_jax.tasks.padding import Masked as Masked
from reptile_jax.tasks.padding import masked_mean as masked_mean
from reptile_jax.tasks.padding import stack_batches as stack_batches
from reptile_jax.tasks.padding import stack_tasks as stack_tasks
from reptile_jax.tasks.repeated import repeat as repeat
from reptile_jax.tasks.sinusoids import Sinusoids as Sinusoids
from reptile_jax.tasks.sinusoids import sinusoids as sinusoids
