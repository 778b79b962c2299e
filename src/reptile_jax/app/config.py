"""What a run can be told: one dataclass per experiment, whose fields are the command's options.

The comment beside a field is its help on the command line; a field without one would have that of
a field before it. `Config.check` refuses an integer below 1, a negative number, and what a Literal
does not name. The field's metadata sets other bounds, `{"least": 0}` or `{"largest": 1}`. Fields of
other types take any value.
"""

import abc
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, get_type_hints

import jax

from reptile_jax.app import bounds

Classifier: TypeAlias = Literal["learned", "zero", "prototypes"]


@dataclasses.dataclass(frozen=True)
class Config(abc.ABC):
    """What the runner asks of every configuration; an experiment adds its own fields."""

    meta_steps: int = 1000  # of training
    meta_batch: int = 5  # tasks in a meta step
    eval_tasks: int = dataclasses.field(default=1000, metadata={"least": 2})  # held-out tasks
    steps_per_dispatch: int = 100  # meta steps between lines of metrics
    save_every: int = 1000  # meta steps between checkpoints
    give_up_after: int = 100  # meta steps in a row in which no task is finite
    seed: int = dataclasses.field(default=0, metadata={"least": 0})  # of all that is drawn
    # Of products of float32 matrices; by default JAX's own, which depends on the device.
    matmul_precision: Literal["bfloat16", "tensorfloat32", "float32"] | None = None

    @property
    @abc.abstractmethod
    def experiment(self) -> str:
        """The name of the experiment that this configures, in `experiments.EXPERIMENTS`."""

    @property
    def shares_devices(self) -> bool:
        """Whether all GPUs or TPUs take part unless told otherwise."""
        return True

    def check(self) -> None:
        """Raises a ValueError for a value that could only fail later."""
        for problem in self.problems():
            raise ValueError(problem)

    def problems(self) -> Iterator[str]:
        """What is wrong with the values, first alone, then together."""
        kinds = get_type_hints(type(self))
        for name in (field.name for field in dataclasses.fields(self)):
            value = getattr(self, name)
            if rule := bounds.broken_rule(type(self), name, kinds[name], value):
                yield f"{name} is {rule}, got {value!r}."


def precise(matmul_precision: str | None) -> contextlib.AbstractContextManager[Any]:
    """Inside, what is traced has this precision of matrix products; None leaves what was set."""
    if matmul_precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision(matmul_precision)


@dataclasses.dataclass(frozen=True)
class SinusoidConfig(Config):
    """The paper's sine waves, by batched Reptile (section 4)."""

    meta_steps: int = 30_000  # of training
    meta_rate: float = 1.0  # ε at the start, annealed linearly to 0
    inner_steps: int = 5  # in training
    inner_batch: int = 10  # points of an inner step in training
    inner_rate: float = 0.02  # of SGD
    eval_shots: int = 10  # points given at evaluation
    eval_steps: int = 32  # inner steps at evaluation, each on all points given
    steps_per_dispatch: int = 1000  # meta steps between lines of metrics
    save_every: int = 5000  # meta steps between checkpoints

    @property
    def experiment(self) -> str:
        return "sinusoid"

    @property
    def shares_devices(self) -> bool:
        return False  # a network this small gains nothing


@dataclasses.dataclass(frozen=True)
class EquationsConfig(Config):
    """A family of differential equations for a physics-informed network: Burgers' or the heat's."""

    equation: Literal["burgers", "heat"] = "burgers"  # what follows train
    viscosity: tuple[float, float] = (0.005, 0.05)  # lowest and highest in training
    eval_viscosity: tuple[float, float] | None = None  # at evaluation; by default as in training
    horizon: float = 0.5  # the last t
    points: int = 200  # where an inner step asks for the equation; at the edges, a part of that
    hidden: tuple[int, ...] = (32, 32)  # units of the hidden layers
    meta_steps: int = 2000  # of training
    meta_batch: int = 2  # tasks in a meta step
    meta_rate: float = 1.0  # ε at the start, annealed linearly to 0
    inner_steps: int = 50  # in training
    inner_rate: float = 3e-3  # of Adam with β1 = 0
    eval_steps: int = 1000  # inner steps at evaluation
    eval_rate: float = 1.5e-3  # of Adam at evaluation
    eval_tasks: int = dataclasses.field(default=50, metadata={"least": 2})  # held-out tasks

    @property
    def experiment(self) -> str:
        return self.equation

    @property
    def shares_devices(self) -> bool:
        return False  # a network this small gains nothing


@dataclasses.dataclass(frozen=True)
class ClientsConfig(Config):
    """Federated averaging over clients who write Omniglot's alphabets: a meta step is a round."""

    local_epochs: int = 1  # of a client in a round
    inner_batch: int = 20  # examples of a local step in training
    inner_rate: float = 0.1  # of SGD
    weighted: bool = True  # clients count by their numbers of examples
    server: Literal["sgd", "momentum", "adam"] = "sgd"  # the server's optimiser
    meta_rate: float = 1.0  # of the server's optimiser
    meta_steps: int = 500  # rounds of training
    meta_batch: int = 10  # clients in a round
    steps_per_dispatch: int = 50  # meta steps between lines of metrics
    eval_steps: int = 50  # inner steps at evaluation, on half of a client's drawings
    eval_batch: int = 20  # examples of an inner step at evaluation
    eval_rate: float = 0.03  # of SGD at evaluation
    # Clients that are scored, of the 76 whose drawings are by other people.
    eval_tasks: int = dataclasses.field(default=76, metadata={"least": 2, "largest": 76})

    @property
    def experiment(self) -> str:
        return "clients"


@dataclasses.dataclass(frozen=True)
class TomographyConfig(Config):
    """Neural fields for tomography from few views; the network is smaller than the paper's."""

    size: int = dataclasses.field(default=32, metadata={"least": 8})  # pixels in height and width
    features: int = 64  # Fourier features of the field; the paper has 256
    width: int = 64  # units of its hidden layers; the paper has 256
    scale: float = 10.0  # of the Fourier features, in radians across the image; the paper has 30
    views: int = 20  # angles that a phantom is seen from in training
    inner_views: int = 2  # views of an inner step
    inner_steps: int = 12  # in training
    inner_rate: float = 1e-3  # of Adam with β1 = 0
    meta_steps: int = 4000  # of training
    meta_batch: int = 1  # tasks in a meta step
    meta_rate: float = 1.0  # ε at the start, annealed linearly to 0
    eval_steps: int = 200  # inner steps at evaluation, each with all views
    eval_tasks: int = dataclasses.field(default=50, metadata={"least": 2})  # held-out phantoms

    @property
    def experiment(self) -> str:
        return "ct"

    @property
    def shares_devices(self) -> bool:
        return self.meta_batch > 1


@dataclasses.dataclass(frozen=True)
class FewShotConfig(Config):
    """N-way K-shot image classification as in the paper; the defaults are row o15.

    The released code sums the loss over the inner batch. Here it is that sum divided by training's
    `inner_batch`: Adam is insensitive to that, and a plain-SGD rate of the paper is multiplied by
    that size. In evaluation, whose batches have another size, the mean would be something else:
    the second moment that Adam starts from is training's, so half as many examples would make
    steps half as long. With prototypes, training takes a mean, and evaluation the sum divided by
    the ways of the task.
    """

    dataset: Literal["omniglot", "mini-imagenet", "images"] = "omniglot"  # what follows train
    ways: int = 5  # classes in an episode
    shots: int = 1  # support images of each class at evaluation
    train_shots: int = 10  # support images of each class in training
    inner_batch: int = 10  # support images in a mini-batch of training
    balanced_batches: bool = False  # every mini-batch of training shows each class as often
    inner_steps: int = 5  # in training
    inner_rate: float = 1e-3  # of Adam with β1 = 0
    # Where inner optimisers start: at their first state, at the mean of the last meta step's, or at
    # the state of the task before, as in the released code.
    inner_opt_state: Literal["reset", "average", "carry"] = "average"
    # Where the linear classifier starts: meta-learned with the rest, or at zero in every task (Kao,
    # Chiu & Chen 2021, arXiv:2106.15367). The inner optimiser's state of it goes on all the same.
    # With prototypes, training is by distances to the classes' mean features, without a linear
    # classifier (Snell, Swersky & Zemel 2017, arXiv:1703.05175); at evaluation it starts from them.
    classifier: Classifier = "learned"
    meta_steps: int = 100_000  # of training
    meta_rate: float = 1.0  # ε at the start
    meta_rate_final: float = 0.0  # ε at the end, annealed linearly
    # Nesterov momentum of the outer step.
    meta_momentum: float = dataclasses.field(default=0.0, metadata={"largest": 1})
    # Classes at evaluation; they may differ from ways unless the classifier is learned.
    eval_ways: int | None = None
    eval_batch: int = 5  # support images in a mini-batch of evaluation
    balanced_eval: bool = False  # every mini-batch of evaluation shows each class as often
    eval_steps: int = 50  # inner steps at evaluation
    eval_tasks: int = 10_000  # held-out tasks
    query_shots: int = 1  # query images of each class at evaluation
    transductive: bool = False  # which of the two scores is this configuration's
    split: Literal["paper", "background"] = "paper"  # of Omniglot
    mirrored: bool = False  # adds Omniglot's training classes mirrored, as other classes
    # Of the split of a folder of images into training and held-out classes.
    split_seed: int = dataclasses.field(default=0, metadata={"least": 0})
    test_fraction: float = 0.2  # of its classes that are held out
    size: int = 28  # height and width of the images; from 64 on, the mini-ImageNet network
    color: Literal["grey", "rgb"] = "grey"  # of the images

    @property
    def experiment(self) -> str:
        return self.dataset

    @property
    def shares_devices(self) -> bool:
        return self.inner_opt_state != "carry"  # which runs on one device

    @property
    def held_out_ways(self) -> int:
        """The classes of an evaluation's task."""
        return self.ways if self.eval_ways is None else self.eval_ways

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        held_out = self.held_out_ways
        if held_out != self.ways and self.classifier == "learned":
            yield (
                f"the classifier is meta-learned with the rest, for {self.ways} ways: held-out "
                f"tasks have {self.ways} classes, not {held_out}. A run trained with "
                "--classifier zero or prototypes takes any number."
            )
        each, more = divmod(self.inner_batch, self.ways)  # images of a class in a mini-batch
        is_halved = self.balanced_batches and not more and each % 2 == 0
        # Images of a class are shuffled anew when all are used: not in the midst of a mini-batch.
        is_apart = is_halved and (
            self.inner_steps * each <= self.train_shots or self.train_shots % each == 0
        )
        if self.classifier == "prototypes" and not is_apart:
            yield (
                "with prototypes, the halves of a mini-batch classify each other, so no image may "
                "be in both: give balanced_batches, as inner_batch a multiple of twice the "
                f"{self.ways} ways, and as train_shots a multiple of the images of a class in a "
                "mini-batch, or enough for all inner steps; got balanced_batches="
                f"{self.balanced_batches}, inner_batch={self.inner_batch}, "
                f"train_shots={self.train_shots}, inner_steps={self.inner_steps}."
            )
        for is_balanced, name, ways in (
            (self.balanced_batches, "inner_batch", self.ways),
            (self.balanced_eval, "eval_batch", held_out),
        ):
            if is_balanced and (size := getattr(self, name)) % ways:
                yield (
                    f"balanced mini-batches show each of {ways} classes as often: {name} is a "
                    f"multiple of the ways, got {size}."
                )
        color = {"omniglot": "grey", "mini-imagenet": "rgb"}.get(self.dataset, self.color)
        if self.color != color:
            yield f"the images of {self.dataset} are {color}, not {self.color}."
        meant_for = {"split": "omniglot", "mirrored": "omniglot"}
        meant_for |= {"split_seed": "images", "test_fraction": "images"}
        for name, dataset in meant_for.items():
            given = getattr(self, name)
            if self.dataset != dataset and given != getattr(type(self), name):
                yield (
                    f"{name} is for {dataset} alone: leave {name}={given!r} out for {self.dataset}."
                )
