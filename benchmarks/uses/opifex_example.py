"""opifex's example of meta-learning: its figures in this library, and its time beside its own.

https://github.com/avitai/opifex, docs/examples/optimization/meta-optimization.md.
"""

import argparse
import functools
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reptile_jax as rj
from benchmarks import records
from benchmarks.speed import arms
from benchmarks.speed.workloads import Layer, Workload
from benchmarks.timing import interleaved, paired_ratio
from benchmarks.uses import parts

PUBLISHED = {"random": (0.485, 0.445), "MAML": (0.156, 0.145), "Reptile": (0.168, 0.165)}
# Its MAML is of first order.
METHODS = {
    "Reptile": {"steps": 20, "outer": optax.sgd(0.3), "gradient": rj.reptile},
    "MAML": {"steps": 5, "outer": optax.adam(1e-3), "gradient": rj.fomaml},
}
TASKS = 8  # in a meta step
_SGD, _NETWORK = optax.sgd(0.01), rj.nn.MLP((32, 32, 1))
_LOSS = rj.tasks.residual_loss(_NETWORK.apply)


def published(args: argparse.Namespace) -> None:
    """The example's setting in this library, beside what the example's page says: a table."""
    path = args.folder / "equations_published.json"
    about = parts.about(
        "opifex's example: residual loss on held-out viscosities after SGD steps",
        ["--only", "published"],
    )
    found = []
    for seed in range(args.seeds):
        settings = {"seed": seed, "meta steps": args.meta_steps, "held-out tasks": args.tasks}
        measured = functools.partial(_as_published, seed, args)
        arm = records.run(path, about, f"seed-{seed}", settings, measured, fresh=args.fresh)
        found.append(arm["data"])
    rows = [
        [f"{start}: {where}", *cells]
        for start, figures in PUBLISHED.items()
        for where, cells in (
            ("published", [f"{figure:.3f}" for figure in figures]),
            ("here", parts.over_seeds([one[start] for one in found])),
        )
    ]
    parts.write(path, about, ["start", "0 steps", "100 steps"], rows)


def _as_published(seed: int, args: argparse.Namespace) -> dict[str, list[float]]:
    first = first_weights(seed)
    starts = {"random": first}
    for method in METHODS:
        starts[method] = trained_here(method, first, args.meta_steps, seed)
    return {start: sgd_losses(params, args.tasks) for start, params in starts.items()}


def first_weights(seed: int) -> Any:
    """The example's start: Glorot-normal weights, and biases of zero."""
    shapes = jax.eval_shape(_NETWORK.init, jax.random.key(0), jnp.zeros((1, 2)))
    leaves, tree = jax.tree.flatten(shapes)
    keys, glorot = (
        jax.random.split(jax.random.key(seed), len(leaves)),
        jax.nn.initializers.glorot_normal(),
    )
    drawn = [
        glorot(key, leaf.shape) if len(leaf.shape) == 2 else jnp.zeros(leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


def learner_of(method: str) -> rj.MetaLearner:
    how = METHODS[method]
    return rj.meta_learner(how["gradient"](_LOSS, _SGD), how["outer"])


def trained_here(method: str, first: Any, meta_steps: int, seed: int) -> Any:
    """A training of the example, with a program of its own."""
    learner, family = learner_of(method), rj.tasks.burgers(steps=METHODS[method]["steps"])
    how = {"until": meta_steps, "meta_batch": TASKS, "steps_per_dispatch": meta_steps}
    *_, (state, _) = rj.train(learner, learner.init(first), family, jax.random.key(seed), **how)
    return jax.block_until_ready(state.params)


def sgd_losses(params: Any, num_tasks: int) -> list[float]:
    """The loss on held-out viscosities after 0 and 100 steps of SGD."""
    score = lambda params, task: _LOSS(params, task.query)
    family, key = rj.tasks.burgers(steps=100), jax.random.key(10)
    result = rj.evaluate(_LOSS, score, _SGD, params, family, key, num_tasks=num_tasks)
    return result.mean.tolist()


# Speed --------------------------------------------------------------------------------------------


class Opifex:
    """opifex's own meta-training, in a process of its own."""

    def __init__(self, python: Path):
        script = Path(__file__).with_name("opifex_arm.py")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process: Any = subprocess.Popen([str(python), "-P", str(script)], **pipes)
        self.versions = json.loads(self._process.stdout.readline())

    def train(self, method: str, first: Any, meta_steps: int, seed: int, forward: bool):
        """Seconds with compilation, and what the training ended with."""
        layers = [first["params"][f"Dense_{i}"] for i in range(3)]
        weights = [np.asarray(l[name]).tolist() for l in layers for name in ("kernel", "bias")]
        asked = {"method": method.lower(), "meta_steps": meta_steps, "seed": seed}
        asked |= {"weights": weights, "forward": forward}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        tree = jax.tree.structure(first)
        leaves = [np.asarray(leaf, np.float32) for leaf in answer["weights"]]
        pairs = [leaves[i : i + 2][::-1] for i in range(0, 6, 2)]  # a bias is before its kernel
        return answer["seconds"], jax.tree.unflatten(
            tree, [leaf for pair in pairs for leaf in pair]
        )

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def speed(args: argparse.Namespace) -> None:
    """Equal work in this library and in opifex, turn by turn, and its bare matrix products."""
    path, rounds = args.folder / "equations_speed.json", 1 if args.quick else 2
    about = parts.about(
        f"{args.meta_steps} meta steps of {TASKS} equations, and the loss after them",
        ["--only", "speed", "--opifex", "PYTHON"],
    )
    settings = {"rounds": rounds, "meta steps": args.meta_steps, "held-out tasks": args.tasks}
    measured = functools.partial(_side_by_side, args, rounds)
    data = records.run(path, about, "side-by-side", settings, measured, fresh=args.fresh)["data"]
    rows = [_speed_row(name, arm, data["arms"]) for name, arm in data["arms"].items()]
    bare = data["bare products"]
    share = paired_ratio(bare["bare"], bare["ours"])
    rows.append(
        [
            "Reptile: its matrix products alone",
            "",
            f"{bare['bare']['median']:.1f}",
            f"{share:.2f}",
            "",
            "",
        ]
    )
    columns = [
        "method",
        "s, compiled too",
        "ms a meta step",
        "times reptile_jax",
        "loss",
        "after 100 SGD steps",
    ]
    parts.write(path, about, columns, rows)


def _speed_row(name: str, arm: Mapping[str, Any], all_arms: Mapping[str, Any]) -> list[str]:
    base = all_arms[f"{name.partition(':')[0]}: reptile_jax"]
    per_step = lambda arm: [
        1e3 * (seconds - arm["seconds of one"]) / arm["more meta steps"]
        for seconds in arm["seconds"]
    ]
    ratio = statistics.median(a / b for a, b in zip(per_step(arm), per_step(base), strict=True))
    return [
        name,
        f"{statistics.median(arm['seconds']):.1f}",
        f"{statistics.median(per_step(arm)):.1f}",
        f"{ratio:.2f}",
        *(f"{loss:.3f}" for loss in arm["losses"]),
    ]


def _side_by_side(args: argparse.Namespace, rounds: int) -> dict[str, Any]:
    first, opifex = first_weights(0), Opifex(args.opifex)
    arms_: dict[str, Callable[[int], tuple[float, Any]]] = {}
    for method in METHODS:
        arms_[f"{method}: reptile_jax"] = functools.partial(_timed_here, method, first)
        for forward, name in ((False, "opifex"), (True, "opifex, derivatives as here")):
            ask = functools.partial(_timed_there, opifex, method, first, forward)
            arms_[f"{method}: {name}"] = ask
    found = {
        name: {"seconds": [], "seconds of one": arm(1)[0], "more meta steps": args.meta_steps - 1}
        for name, arm in arms_.items()
    }
    for _ in range(rounds):
        for name, arm in arms_.items():
            seconds, params = arm(args.meta_steps)
            found[name]["seconds"].append(seconds)
            found[name]["losses"] = sgd_losses(params, args.tasks)
    opifex.close()
    return {"arms": found, "bare products": _bare_products(rounds), "opifex": opifex.versions}


def _timed_here(method: str, first: Any, meta_steps: int) -> tuple[float, Any]:
    begin = time.perf_counter()
    params = trained_here(method, first, meta_steps, 0)
    return time.perf_counter() - begin, params


def _timed_there(opifex: Opifex, method: str, first: Any, forward: bool, meta_steps: int):
    return opifex.train(method, first, meta_steps, 0, forward)


def _bare_products(rounds: int) -> dict[str, Any]:
    """A meta step of Reptile, and its matrix products in the same loops and nothing else.

    Inside, all layers but the first have four arrays of the points: u, u_x, u_t and u_xx. At the
    edges there is one.
    """
    family = rj.tasks.burgers()
    edge = family.initial_points + 2 * family.boundary_points
    rows = 4 * family.points + edge
    layers = (Layer(family.points + edge, 2, 32), Layer(rows, 32, 32), Layer(rows, 32, 1))
    workload = Workload("equations", first_weights(0), _LOSS, _SGD, family, "reset", layers)
    learner = learner_of("Reptile")
    contenders = {
        "ours": arms.dispatching(learner, workload, 1, TASKS),
        "bare": arms.bare_products(workload, TASKS),
    }
    return interleaved(contenders, repeats=5 * rounds)
