"""Classification by distances to prototypes: the mean features of each class's examples.

Snell, Swersky & Zemel, "Prototypical Networks for Few-shot Learning", 2017, arXiv:1703.05175.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reptile_jax._types import Batch, LossFn, Params
from reptile_jax.nn.networks import ConvNet

# Of squared distances, in logits; training and evaluation have to agree on it.
SCALE = 0.1


def prototype_loss(model: ConvNet, scale: float = SCALE) -> LossFn:
    """The cross-entropy of a mini-batch whose halves classify each other by prototypes.

    Each half has equally many images of every class. The logits of an image are its squared
    distances, times -`scale`, to the classes' mean features in the other half. The loss is the mean
    over all images. The linear classifier has no part in it: its gradient is zero.

    A mini-batch of one image of each class in each half is an episode of Snell, Swersky & Zemel
    2017 (arXiv:1703.05175), and the same with the two sets exchanged.

    Args:
      model: its `ways` are the classes of a mini-batch.
      scale: of squared distances, in logits: 0.1, where that article has 1.

    Returns:
      `(params, batch) -> loss`, for `Batch` of images `[batch, height, width, channels]` and
      integer labels `[batch]`, of which each occurs equally often, an even number of times. Labels
      that do not are not noticed: `rj.tasks.few_shot(..., balanced=True)` draws such mini-batches.

    Raises:
      ValueError: at tracing, for a mini-batch whose size is not a multiple of twice the ways.
    """

    def loss_fn(params: Params, batch: Batch) -> jax.Array:
        size = batch.targets.shape[0]
        if size % (2 * model.ways):
            raise ValueError(
                f"the halves of a mini-batch have as many images of each of {model.ways} classes: "
                f"give a multiple of {2 * model.ways} images, got {size}."
            )
        by_class = batch.inputs[jnp.argsort(batch.targets)]
        features: Any = model.apply(params, by_class, classify=False)
        halves = features.reshape(model.ways, 2, size // (2 * model.ways), -1)
        labels = jnp.broadcast_to(jnp.arange(model.ways)[:, None], halves.shape[::2])

        def one_way(given: jax.Array, queries: jax.Array) -> jax.Array:
            means = given.mean(1)  # [ways, features]
            squares = jnp.sum(queries**2, -1)[..., None] + jnp.sum(means**2, -1)[None, None]
            logits = -scale * (squares - 2 * queries @ means.T)  # [ways, queries of each, ways]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        first, second = halves[:, 0], halves[:, 1]
        return (one_way(first, second) + one_way(second, first)) / 2

    return loss_fn


def from_prototypes(model: ConvNet, scale: float = SCALE) -> Callable[[Params, Batch], Params]:
    """Where a task starts: its linear classifier measures distances to the prototypes.

    With a class's mean features c, the logits -`scale` ‖f - c‖² of features f are a linear function
    of them up to a term that all classes share: the weights are 2 `scale` c, the biases -`scale`
    ‖c‖². Both are taken less their means over the classes, which changes no probability. This is
    the start of Proto-MAML (Triantafillou et al. 2020, arXiv:1903.03096, section 3), which also
    meta-trains through it; here training is by `prototype_loss`.

    Args:
      model: its `ways` is ignored; the parameters decide.
      scale: as in `prototype_loss`.

    Returns:
      `(params, support) -> params`, for a whole support set, a `Batch` of images `[support, height,
      width, channels]` and integer labels `[support]`, of which each occurs: without images of a
      class the classifier is NaN.
    """

    def start(params: Params, support: Batch) -> Params:
        classifier = params["params"]["Dense_0"]
        features: Any = model.apply(params, support.inputs, classify=False)
        ways = classifier["bias"].shape[-1]
        of_class = jax.nn.one_hot(support.targets, ways, dtype=features.dtype)
        # Sums of features: on a TPU or a GPU the default would round each of them.
        sums = jnp.matmul(of_class.T, features, precision="highest")
        means = sums / of_class.sum(0)[:, None]  # [ways, features]
        bias = -scale * jnp.sum(means**2, -1)
        means = means - means.mean(0, keepdims=True)
        found = {"kernel": 2 * scale * means.T, "bias": bias - bias.mean()}
        found = jax.tree.map(lambda new, old: new.astype(old.dtype), found, {**classifier})
        return {**params, "params": {**params["params"], "Dense_0": found}}

    return start
