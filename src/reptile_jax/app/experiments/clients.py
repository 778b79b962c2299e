"""Federated averaging over made-up writers of Omniglot, scored before and after adapting.

The 20 drawings of a character are by 20 people, and drawing k of all characters of an alphabet is
by the same one. A client has one person's drawings of each of two to five alphabets, which are the
labels: unequal data with few of the labels. The held-out clients' drawings are by other people.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import reptile_jax as rj
from reptile_jax.app.config import ClientsConfig
from reptile_jax.app.experiment import Experiment, key

PEOPLE, TRAINING_PEOPLE = 20, 15  # of an alphabet
ALPHABETS = (2, 5)  # of a client, fewest and most


class Network(nn.Module):
    """Three 3x3 convolutions of stride 2 and two dense layers, without batch norm.

    Statistics of a batch would be each client's own, and padding would enter them.
    """

    labels: int
    features: int = 16
    hidden: int = 64

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images `[batch, height, width, 1]` -> logits `[batch, labels]`."""
        x, layout = images, ("NHWC", "HWIO", "NHWC")
        for layer in range(3):
            shape = (3, 3, x.shape[-1], self.features)
            kernel = self.param(f"kernel{layer}", nn.initializers.he_normal(), shape)
            bias = self.param(f"bias{layer}", nn.initializers.zeros, (self.features,))
            x = rj.nn.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=layout)
            x = nn.relu(x + bias[None, None, None])
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(len(x), -1)))
        return nn.Dense(self.labels)(x)


def build(config: ClientsConfig, mesh: Mesh | None, data: Path) -> Experiment:
    """FedAvg, compared with a random start and with training on the clients' pooled data."""
    drawings, alphabets = load(data)
    training = clients_of(drawings, alphabets, range(TRAINING_PEOPLE))
    held_out = clients_of(drawings, alphabets, range(TRAINING_PEOPLE, PEOPLE))
    some = dict(list(held_out.items())[: config.eval_tasks])
    model = Network(len(set(alphabets)))
    loss_fn = local_loss(model.apply)
    local = rj.reptile(loss_fn, optax.sgd(config.inner_rate))
    learner = rj.meta_learner(local, server_optimizer(config), mesh=mesh)
    images = jnp.zeros((1, *drawings.shape[2:]))
    sizes = [len(client.targets) for client in training.values()]
    # As many mini-batches as a client has on average.
    steps = round(np.mean([-(-size // config.inner_batch) for size in sizes]))
    return Experiment(
        title="FedAvg",
        learner=learner,
        first_state=lambda: learner.init(jax.jit(model.init)(key(config.seed, "init"), images)),
        training_tasks=rj.tasks.clients(
            training,
            batch_size=config.inner_batch,
            epochs=config.local_epochs,
            weighted=config.weighted,
        ),
        held_out_tasks=halved(some, config.eval_batch, config.eval_steps),
        loss_fn=loss_fn,
        inner_optimizer=optax.sgd(config.eval_rate),
        score_fn=scoring(model),
        main_score="accuracy",
        score_every=config.eval_steps // 5 if config.eval_steps % 5 == 0 else None,
        measure="accuracy",
        percent=True,
        setting="half of a client's drawings given",
        rivals={
            "random": None,
            # The same inner steps on mini-batches of all clients' data, in no order.
            "pooled": rj.tasks.clients(
                [pooled(training)],
                batch_size=config.inner_batch,
                steps=config.local_epochs * steps,
            ),
        },
        shown=len(some),
        reports_spread=True,
        summary=f"{len(training)} clients with {min(sizes)} to {max(sizes)} drawings; "
        f"{len(held_out)} held out",
        data_facts={"clients": {"train": list(training), "test": list(held_out)}},
    )


def load(data: Path) -> tuple[np.ndarray, list[str]]:
    """Drawings `[characters, people, 28, 28, 1]` uint8, 255 for ink, and the alphabet of each."""
    splits = rj.datasets.load_omniglot(data, split="background", rotations=False)
    images = np.concatenate([splits.train.images, splits.test.images])
    names = [*splits.train_names, *splits.test_names]
    drawings = 255 - images.reshape(len(names), PEOPLE, *images.shape[1:])
    return drawings, [name.partition("/")[0] for name in names]


def clients_of(
    drawings: np.ndarray, alphabets: list[str], people: Iterable[int]
) -> dict[str, rj.Batch]:
    """Clients by name, the same ones on every call, each with its drawings in random order.

    Every person's alphabets are divided among clients. A label is the alphabet's place in the
    sorted list of them.
    """
    names, label = np.unique(alphabets, return_inverse=True)
    clients = {}
    for person in people:
        rng = np.random.default_rng((0, person))
        left = rng.permutation(len(names))
        while len(left):
            size = int(rng.integers(ALPHABETS[0], ALPHABETS[1], endpoint=True))
            if len(left) - size == 1:  # too few for another client
                size += 1 if size < ALPHABETS[1] else -1
            own, left = np.sort(left[:size]), left[size:]
            rows = rng.permutation(np.flatnonzero(np.isin(label, own)))
            name = f"{', '.join(names[own])} by {person + 1}"
            clients[name] = rj.Batch(drawings[rows, person], label[rows].astype(np.int32))
    return clients


def pooled(clients: Mapping[str, rj.Batch]) -> rj.Batch:
    """All clients' examples as one client's."""
    return rj.Batch(*map(np.concatenate, zip(*clients.values(), strict=True)))


def halved(clients: Mapping[str, rj.Batch], batch_size: int, steps: int) -> rj.Task:
    """All clients once: half of each one's drawings to adapt to, the other half to score on."""
    given, asked = {}, {}
    for name, (images, labels) in clients.items():
        half = len(labels) // 2
        given[name] = rj.Batch(images[:half], labels[:half])
        asked[name] = rj.Batch(images[half:], labels[half:])
    tasks = rj.tasks.clients(
        given,
        query=asked,
        batch_size=batch_size,
        steps=steps,
        weighted=False,
    )
    return tasks.all(jax.random.key(0))


def local_loss(apply: Callable[..., Any]) -> Callable[..., Any]:
    """The cross-entropy of mini-batches of unequal size."""
    of_each = optax.softmax_cross_entropy_with_integer_labels
    return rj.tasks.masked_mean(lambda params, x: of_each(apply(params, x.inputs), x.targets))


def server_optimizer(config: ClientsConfig) -> optax.GradientTransformation:
    """What the server does with the mean of the clients' updates (Reddi et al. 2021)."""
    rate = config.meta_rate
    return {
        "sgd": optax.sgd(rate),
        "momentum": optax.sgd(rate, 0.9),
        "adam": optax.adam(rate, b2=0.99, eps=1e-3),
    }[config.server]


def scoring(model: Network) -> Callable[..., dict[str, jax.Array]]:
    """The accuracy, and that among the labels which the client is known to have."""
    apply: Callable[..., Any] = model.apply

    def score(params, task):
        ((images, labels), is_real), (given, is_given) = task.query, task.support
        logits = apply(params, images)
        owned = jnp.zeros(model.labels, bool).at[given.targets].max(is_given)

        def accuracy(logits):
            return jnp.sum(is_real & (logits.argmax(-1) == labels)) / jnp.sum(is_real)

        return {
            "accuracy": accuracy(logits),
            "among its own alphabets": accuracy(jnp.where(owned[None], logits, -np.inf)),
        }

    return score


def draw(path: Path, steps: np.ndarray, shown: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draws every client's accuracy before and after adapting, for each initialisation."""
    from reptile_jax.app import plots  # the picture alone needs matplotlib

    ends = {name: 100 * arrays["accuracy"][:, [0, -1]] for name, arrays in shown.items()}
    plots.before_and_after(path, "accuracy, %", ends)
