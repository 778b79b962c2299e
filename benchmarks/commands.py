"""Every command of `python -m benchmarks`: its question, its time, and the function behind it."""

from typing import NamedTuple


class Command(NamedTuple):
    """A line of the listing."""

    question: str
    time: str  # on two cores of a CPU, unless it says otherwise
    function: str  # "module:name"; imported when the command runs
    table: bool = False  # the function is `quick -> Table`; otherwise it takes the arguments


def _script(question: str, time: str, function: str) -> Command:
    return Command(question, time, f"benchmarks.speed.{function}", table=True)


def _training(question: str, time: str) -> Command:
    return Command(question, time, "benchmarks.paper.trainings:main")


def _experiment(question: str, time: str, name: str) -> Command:
    return Command(question, time, f"benchmarks.comparison.{name}:main")


# By room and name. A name may have two words.
ROOMS: dict[str, dict[str, Command]] = {
    "speed": {
        "peers": _script(
            "a meta step against PyTorch, the obvious JAX and bare matrix products (needs torch)",
            "1 minute",
            "meta_steps:peers",
        ),
        "meta_batches": _script(
            "tasks per second by the size of the meta-batch", "3 minutes", "meta_steps:meta_batches"
        ),
        "inner_step": _script(
            "what other ways to write the inner step would gain",
            "half a minute",
            "meta_steps:inner_step",
        ),
        "convolutions": _script(
            "formulations of a convolution, in training", "5 minutes", "convolutions:formulations"
        ),
        "pooling": _script("max-pooling, in training", "half a minute", "convolutions:pooling"),
        "task_axis": _script(
            "tasks side by side, in chunks or one after another", "2 minutes", "task_axis:choices"
        ),
        "sampling": _script("the cost of drawing tasks", "1 minute", "task_axis:sampling"),
        "dispatch": _script("meta steps per dispatch", "1 minute", "task_axis:dispatch"),
        "evaluation": _script(
            "evaluation against training, per image", "half a minute", "evaluation:throughput"
        ),
        "streaming": _script(
            "inner steps on mini-batches from the host, against one scan",
            "1 minute",
            "streaming:inner_steps",
        ),
        "memory": _script(
            "time and memory of Reptile, FOMAML and MAML by inner steps",
            "4 minutes",
            "memory:by_inner_steps",
        ),
        "large_model": _script("peak memory of large models", "1 minute", "memory:large_model"),
        "start_up": _script("time to the first meta step", "1.5 minutes", "start_up:first_step"),
        "demo": _script("from a stroke in the demo to its answer", "1 minute", "demo:strokes"),
        "devices": _script(
            "two virtual devices on the same cores, and a cost model",
            "5 minutes",
            "devices:sharing",
        ),
        "time_to_accuracy": Command(
            "training time until given held-out accuracies (needs Omniglot)",
            "10 minutes",
            "benchmarks.speed.time_to_accuracy:main",
        ),
        "compile": Command(
            "the compilers' estimates for TPUs and GPUs that are not there (needs libtpu, ptxas)",
            "8 minutes a target",
            "benchmarks.speed.compile:main",
        ),
        "gpu": Command(
            "what matters on a GPU, the most important first (needs a GPU)",
            "8 minutes",
            "benchmarks.speed.gpu:main",
        ),
    },
    "paper": {
        "paper sinusoid": _training("the sine waves, 10 seeds, batched and serial", "6 minutes"),
        "paper o15": _training("Omniglot 5-way 1-shot and 5-shot, as published", "2 hours"),
        "paper o120": _training(
            "Omniglot 20-way 1-shot and 5-shot, as published (time from a tenth of it)", "13 hours"
        ),
        "paper o15-zero-pairs": _training(
            "a classifier at zero, meta-batches of two; a quarter of o15", "1.5 hours"
        ),
        "paper o15-balanced-quarter": _training("the same with balanced mini-batches", "1.5 hours"),
        "paper o15-balanced": _training("the same, as long as o15", "2.5 hours"),
        "paper o120-balanced-tenth": _training(
            "the same for 20 ways, a tenth of o120 (time with --eval-tasks 2500)", "2 hours"
        ),
        "paper o120-prototypes": _training(
            "by prototypes on 60 ways, a tenth of o120 (5 minutes on an H200)", "4 hours"
        ),
        "paper m15-made": _training(
            "the path of mini-ImageNet at full size, on made pictures", "15 minutes"
        ),
        "recipes": Command(
            "ways to train that differ from the paper's, on equally many images",
            "1.5 minutes each",
            "benchmarks.paper.recipes:main",
        ),
        "evaluations": Command(
            "a training of a recipe evaluated in other ways than the paper's",
            "2 minutes each",
            "benchmarks.paper.evaluations:main",
        ),
        "lanes": Command(
            "twenty ways by prototypes, up to twenty trainings in one program (made for a GPU)",
            "10 minutes on a GPU",
            "benchmarks.paper.lanes:main",
        ),
        "precision": Command(
            "o15 with matrix products of bfloat16 and TF32, simulated on a CPU (needs Omniglot)",
            "3 minutes each",
            "benchmarks.paper.precision:main",
        ),
    },
    "comparison": {
        "gradient_combinations": _experiment(
            "which inner gradients to follow (section 6.2 of the paper)",
            "8 minutes",
            "gradient_combinations",
        ),
        "minibatch_overlap": _experiment(
            "mini-batches that share images (section 6.3)", "13 minutes", "minibatch_overlap"
        ),
        "sine_maml": _experiment(
            "sine waves before training, after MAML and after Reptile", "1 minute", "sine_maml"
        ),
        "reptile_vs_maml": _experiment(
            "Reptile, FOMAML and MAML: time, accuracy at equal budgets, stability",
            "40 minutes",
            "reptile_vs_maml",
        ),
    },
    "uses": {
        "equations": Command(
            "families of differential equations, and opifex's example (speed needs opifex)",
            "40 minutes",
            "benchmarks.uses.equations:main",
        ),
        "fields": Command(
            "tomography by neural fields: what a learned initialisation gains, and its speed",
            "25 minutes",
            "benchmarks.uses.fields:main",
        ),
        "clients": Command(
            "FedAvg and its relatives, per client before and after adapting (needs Omniglot)",
            "20 minutes",
            "benchmarks.uses.clients:main",
        ),
        "languages": Command(
            "a model of many languages: Reptile, joint training and none (needs word lists)",
            "15 minutes",
            "benchmarks.uses.languages:main",
        ),
    },
    "robustness": {
        "attack": Command(
            "damages of a run's files: how many it survives, how many it refuses",
            "3 minutes",
            "benchmarks.robustness.attack:main",
        ),
    },
    "pages": {
        "report": Command(
            "writes the tables and pictures of the documentation from the JSON alone",
            "half a minute",
            "benchmarks.report:main",
        ),
        "weights": Command(
            "writes the pretrained weights of the package from benchmarks/trainings alone",
            "half a minute",
            "benchmarks.paper.weights:main",
        ),
    },
}
COMMANDS: dict[str, Command] = {name: c for room in ROOMS.values() for name, c in room.items()}


def find(words: list[str]) -> str | None:
    """The command that the first one or two words name."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return name
    return None


def listing() -> str:
    """All commands by room, with their questions and times."""
    width = max(map(len, COMMANDS))
    times = max(len(command.time) for command in COMMANDS.values())
    lines = [
        "usage: python -m benchmarks NAME [options]",
        "",
        "NAME --help lists the options of a command. Times are for two cores of a CPU.",
    ]
    for room, commands in ROOMS.items():
        lines += ["", f"{room}:"]
        for name, command in commands.items():
            lines.append(f"  {name:{width}}  {command.time:{times}}  {command.question}")
    return "\n".join(lines)
