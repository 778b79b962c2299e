"""A few-shot configuration's network, optimisers, learner, data and tasks."""

from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from reptile_jax import datasets, fewshot, mini_imagenet, models, omniglot, presets, runs
from reptile_jax.devices import Mesh
from reptile_jax.reptile import LossFn, MetaState, meta_learner, reptile


def problem_of(config: presets.FewShotImages, mesh: Mesh | None = None) -> runs.Problem:
    """The network, the optimisers and the learner of a configuration."""
    net = models.omniglot_net if config.size < 64 else models.mini_imagenet_net
    model = net(config.ways)
    if config.classifier == "zero":
        model = model.clone(classifier_init=jax.nn.initializers.zeros)
    # Adam with β1 = 0, without its useless first moment.
    inner = optax.chain(
        optax.scale_by_rms(decay=0.999, eps=1e-8, eps_in_sqrt=False, bias_correction=True),
        optax.scale(-config.inner_rate),
    )
    loss_fn = models.cross_entropy(model.apply, config.inner_batch)
    learner = meta_learner(
        reptile(loss_fn, inner),
        meta_optimizer(config),
        inner_state=config.inner_state,
        mesh=mesh,
    )
    images = jnp.zeros((1, config.size, config.size, 1 if config.color == "grey" else 3))
    # Jitted, as all that is drawn at the start: one program compiles faster than each operation.
    init_key = jax.random.fold_in(jax.random.key(config.seed), 0)
    first_state = lambda: learner.init(jax.jit(model.init)(init_key, images))
    return runs.Problem(model, loss_fn, inner, learner, first_state)


def adaptation_loss(
    config: presets.FewShotImages, model: models.ConvNet, batch_size: int, *, balanced: bool
) -> LossFn:
    """The loss that held-out tasks are adapted by, in mini-batches of `batch_size`.

    Weighed as in training, whose second moment Adam starts from. Balanced mini-batches of many
    classes have to be larger than training's: their sum would make longer steps than any there, so
    that they take the mean. The paper's protocol, which is not balanced, takes the sum.
    """
    size = max(config.inner_batch, batch_size) if balanced else config.inner_batch
    return models.cross_entropy(model.apply, size)


def meta_rate_schedule(config: presets.FewShotImages) -> optax.Schedule:
    """ε over the meta steps of a configuration."""
    return optax.linear_schedule(config.meta_rate, config.meta_rate_final, config.meta_steps)


def meta_optimizer(config: presets.FewShotImages) -> optax.GradientTransformation:
    """The meta-optimiser of a configuration."""
    sgd = optax.sgd(meta_rate_schedule(config), config.meta_momentum or None, nesterov=True)
    return classifier_left_alone(sgd) if config.classifier == "zero" else sgd


def classifier_left_alone(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """`optimizer` for all parameters but the classifier's, which stay as they are."""
    # Zeroed in front of the optimiser, so that what it holds of the classifier is zero as well.
    return optax.chain(optax.masked(optax.set_to_zero(), models.classifier_mask), optimizer)


def resized(state: MetaState, like: MetaState) -> MetaState:
    """A state whose classifier starts at zero, for as many ways as `like`'s.

    Such a classifier is one for any number of classes. What the inner optimiser holds of it is
    averaged over the classes that it was trained with, between which nothing tells: they are drawn
    in a uniform order. For another number of ways that is an approximation, as gradients of the
    classifier shrink with the number of classes.

    Args:
      like: a state, or its shapes and dtypes.
    """

    def resize(leaf, like):  # only the classifier's leaves differ: in their last axis, the ways
        if leaf.shape == like.shape:
            return leaf
        return jnp.broadcast_to(leaf.mean(-1, keepdims=True), like.shape)

    return jax.tree.map(resize, state, like)


def load_data(config: presets.FewShotImages, data: Path) -> datasets.ImageSplits:
    """The data set of a configuration, from the folder `data`."""
    color = {"omniglot": "grey", "mini-imagenet": "rgb"}.get(config.dataset, config.color)
    if config.color != color:
        raise ValueError(f"the images of {config.dataset} are {color}, not {config.color}.")
    if config.dataset == "omniglot":
        return omniglot.load_omniglot(data, split=config.split, size=config.size)
    if config.dataset == "mini-imagenet":
        return mini_imagenet.load_mini_imagenet(data, size=config.size)
    return datasets.load_image_folder(
        data,
        size=config.size,
        color=config.color,
        min_images=max(config.train_shots, config.shots + config.query_shots),
        test_fraction=config.test_fraction,
        seed=config.split_seed,
    )


def training_tasks(config: presets.FewShotImages, splits: datasets.ImageSplits) -> fewshot.FewShot:
    """The episodes that a configuration is trained on."""
    return fewshot.few_shot(
        splits.train,
        ways=config.ways,
        shots=config.train_shots,
        steps=config.inner_steps,
        batch_size=config.inner_batch,
        balanced=config.balanced_batches,
    )


def held_out_tasks(config: presets.FewShotImages, splits: datasets.ImageSplits) -> fewshot.FewShot:
    """The episodes that a configuration is evaluated on."""
    if config.ways > len(splits.test_names):
        raise ValueError(
            f"ways={config.ways}, but there are only {len(splits.test_names)} held-out classes: "
            "give fewer ways, or more classes."
        )
    return fewshot.few_shot(
        splits.test,
        ways=config.ways,
        shots=config.shots,
        query_shots=config.query_shots,
        steps=config.eval_steps,
        batch_size=config.eval_batch,
        balanced=config.balanced_eval,
    )
