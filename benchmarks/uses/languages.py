"""A character model of many languages: Reptile, joint training and no training, then 100 steps.

    python -m benchmarks languages [--seeds 3] [--only choice scores]

The words are Debian's lists (`examples/languages.py` says which packages). Three languages serve
to choose rates, in every seed. A seed draws four of the others, on which the models are scored, and
the twelve that are left are trained on. All trainings take as many gradients.
"""

import argparse
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from examples import languages

import reptile_jax as rj
from benchmarks import records, tables

VALIDATION = ("Catalan", "Danish", "Irish")
TEST = 4  # languages of each seed


class Training(NamedTuple):
    """Joint training for a share of the gradients, and Reptile for the rest."""

    joint: float = 0.0
    rate: float = 0.0  # of joint training
    inner_rate: float = 0.0
    meta_rate: float = 0.0
    meta_batch: int = 1
    shots: int | None = None  # different words in a training task; None is as many as it draws


REPTILE, JOINT, SCRATCH = "Reptile", "joint training", "no training"
CANDIDATES = {
    REPTILE: {
        "inner rate 0.005, meta rate 0.5": Training(0, 0, 0.005, 0.5),
        "inner rate 0.01, meta rate 0.5": Training(0, 0, 0.01, 0.5),
        "inner rate 0.005, meta rate 1": Training(0, 0, 0.005, 1.0),
        "inner rate 0.005, meta rate 1, four tasks": Training(0, 0, 0.005, 1.0, 4),
        "inner rate 0.005, meta rate 0.5, tasks of 200 words": Training(0, 0, 0.005, 0.5, 1, 200),
        "inner rate 0.005, meta rate 0.5, after joint training for half": Training(
            0.5, 0.005, 0.005, 0.5
        ),
    },
    JOINT: {f"rate {rate}": Training(1, rate) for rate in (0.003, 0.005, 0.01)},
    SCRATCH: {"": None},
}
RATES = (0.0005, 0.001, 0.002)  # of adapting
SCRATCH_RATES = (0.01, 0.03, 0.06)


def main(argv: Sequence[str]) -> int:
    """Measures what is missing, and writes both tables."""
    args = _arguments(argv)
    words = languages.load(args.words, args.number)
    for part in args.only:
        {"choice": choice, "scores": scores}[part](args, words)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parts = ("choice", "scores")
    parser = argparse.ArgumentParser(prog="python -m benchmarks languages")
    parser.add_argument("--only", nargs="+", choices=parts, metavar="PART", default=parts)
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 11), metavar="N")
    parser.add_argument("--words", type=Path, default=languages.FOLDER, help="the lists' folder")
    parser.add_argument("--fresh", action="store_true", help="measure again, and keep both")
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    parser.add_argument("--out", type=Path, default=records.RESULTS, help="where results go")
    args = parser.parse_args(argv)
    args.folder = (args.out / "quick" if args.quick else args.out) / "uses"
    args.number, args.gradients, args.draws, args.steps = 10_000, 10_000, 4, 100
    if args.quick:
        args.number, args.gradients, args.draws, args.steps = 500, 80, 1, 8
    return args


def choice(args: argparse.Namespace, words: Mapping[str, np.ndarray]) -> None:
    """Bits per character of the validation languages: how to train, and the rate of adapting."""
    path = args.folder / "languages_choice.json"
    about = {
        "title": "Bits per character of three validation languages after adapting",
        "command": records.command_of(["languages", "--only choice"]),
    }
    training, _ = split(words, 0)
    rows = []
    for method, candidates in CANDIDATES.items():
        for name, candidate in candidates.items():
            arm = f"{method}, {name}".removesuffix(", ")
            validate = functools.partial(_validated, args, candidate, training, words)
            settings = {**_settings(args), "training": candidate and candidate._asdict()}
            found = records.run(path, about, arm, settings, validate, fresh=args.fresh)["data"]
            cells = [f"{rate}: {bits:.3f}" for rate, bits in found["after"].items()]
            rows.append([arm, f"{found['before']:.3f}", *cells])
    columns = ["training", "before", "low rate", "middle rate", "high rate"]
    records.update(path, about | {"machine": records.machine(), "columns": columns, "rows": rows})
    tables.show(tables.Table(about["title"], columns, rows))


def _validated(args, candidate, training, words) -> dict[str, Any]:
    params, opt_state = trained(args, candidate, training, seed=0)
    tasks = _tasks(args, {name: words[name] for name in VALIDATION}, seed=100)
    after = {}
    for rate in SCRATCH_RATES if candidate is None else RATES:
        found = adapted(args, params, opt_state, tasks, rate)
        after[str(rate)] = found.mean(0)[-1]
    return {"before": found.mean(0)[0], "after": after}


def chosen(path: Path, method: str) -> tuple[Training | None, float, str]:
    """The training and the rate of adapting that are best on the validation languages."""
    found = records.newest(path)
    tried = []
    for name, candidate in CANDIDATES[method].items():
        arm = f"{method}, {name}".removesuffix(", ")
        after = found[arm]["data"]["after"]
        tried += [(bits, float(rate), name, candidate) for rate, bits in after.items()]
    _, rate, name, candidate = min(tried, key=lambda entry: entry[0])
    return candidate, rate, name


def scores(args: argparse.Namespace, words: Mapping[str, np.ndarray]) -> None:
    """Bits per character of languages that were neither trained on nor chosen with."""
    path = args.folder / "languages.json"
    about = {
        "title": "Bits per character of held-out languages by steps of adapting, with 95% "
        f"intervals over {args.seeds} seeds",
        "command": records.command_of(["languages", "--only scores", f"--seeds {args.seeds}"]),
    }
    found: dict[str, list[Any]] = {method: [] for method in CANDIDATES}
    for seed in range(args.seeds):
        for method in CANDIDATES:
            how, rate, _ = chosen(args.folder / "languages_choice.json", method)
            settings = {**_settings(args), "seed": seed, "rate": rate}
            settings["training"] = how and how._asdict()
            score = functools.partial(_scored, args, how, rate, words, seed)
            arm = f"{method}, seed {seed}"
            found[method].append(
                records.run(path, about, arm, settings, score, fresh=args.fresh)["data"]
            )
    points = range(0, args.steps + 1, args.steps // 4)
    columns, rows = ["", *(f"{steps} steps" for steps in points)], tabulated(found)
    records.update(path, about | {"machine": records.machine(), "columns": columns, "rows": rows})
    tables.show(tables.Table(about["title"], columns, rows))


def _scored(args, how, rate, words, seed) -> dict[str, Any]:
    training, test = split(words, seed)
    params, opt_state = trained(args, how, training, seed)
    found = adapted(args, params, opt_state, _tasks(args, test, seed), rate)
    by_language = found.reshape(len(test), args.draws, -1).mean(1)
    return dict(zip(test, by_language, strict=True))


def tabulated(found: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]) -> list[list[str]]:
    """A row for each method, and rows of what Reptile gains, paired by seed."""
    bits = {  # [seeds, points]
        method: np.array([np.mean([*data.values()], 0) for data in seeds])
        for method, seeds in found.items()
    }
    rows = [[method, *map(_interval, values.T)] for method, values in bits.items()]
    for method in (JOINT, SCRATCH):
        gain = bits[REPTILE] - bits[method]
        rows.append([f"Reptile, less {method}", *(_interval(at, "+") for at in gain.T)])
    return rows


def _interval(values: np.ndarray, sign: str = "") -> str:
    return tables.interval(values, 3, sign)


def split(
    words: Mapping[str, np.ndarray], seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The languages that a seed trains on, and those that it tests."""
    others = [name for name in words if name not in VALIDATION]
    order = np.random.default_rng(seed).permutation(len(others))
    test = sorted(others[index] for index in order[:TEST])
    training = [name for name in others if name not in test]
    return {name: words[name] for name in training}, {name: words[name] for name in test}


def trained(
    args: argparse.Namespace,
    how: Training | None,
    words: Mapping[str, np.ndarray],
    seed: int,
) -> tuple[Any, Any]:
    """The parameters, and the state that Adam has come to, from which it adapts."""
    params, _ = languages.network(seed)
    if how is None:
        return params, None
    opt_state, own, key = None, jnp.array([*words.values()]), jax.random.key(seed)
    first = round(how.joint * args.gradients)
    if first:
        params, opt_state = _jointly(params, own, key, how.rate, first)
    if first < args.gradients:
        steps = (args.gradients - first) // (args.steps * how.meta_batch)
        learner = rj.meta_learner(
            rj.reptile(_bits(), _adam(how.inner_rate)),
            optax.sgd(optax.linear_schedule(how.meta_rate, 0.0, steps)),
            inner_opt_state="average",
        )
        state = learner.init(params)
        if first:
            state = state._replace(inner_opt_state=opt_state)
        tasks = languages.Languages(own, how.shots, args.steps)
        *_, (state, _) = rj.train(
            learner, state, tasks, key, until=steps, meta_batch=how.meta_batch
        )
        params, opt_state = state.params, state.inner_opt_state
    return params, opt_state


def _jointly(params: Any, words: jax.Array, key: jax.Array, rate: float, steps: int) -> Any:
    """Adam on mini-batches of all languages, at a rate that falls to zero."""
    optimizer = optax.adam(optax.linear_schedule(rate, 0.0, steps))

    @jax.jit
    def train(params, words, key):
        keys, size = jax.random.split(key), (steps, 20)
        which = jax.random.randint(keys[0], size, 0, words.shape[0])
        batches = words[which, jax.random.randint(keys[1], size, 0, words.shape[1])]
        return rj.inner_loop(_bits(), optimizer, params, batches)

    found = train(params, words, key)
    return found.params, (found.opt_state[0], optax.EmptyState())  # a constant rate has no state


def adapted(args, params: Any, opt_state: Any, tasks: rj.Task, rate: float) -> np.ndarray:
    """Bits per character of each task's query set, `[tasks, 5]`: at the start, to the end."""
    return rj.evaluate(
        _bits(),
        _query_bits,
        _adam(rate),
        params,
        tasks,
        opt_state=opt_state,
        score_every=args.steps // 4,
    ).scores


def _tasks(args: argparse.Namespace, words: Mapping[str, np.ndarray], seed: int) -> rj.Task:
    """Each language, with several draws of its words."""
    family = languages.Languages(jnp.array([*words.values()]), 200, args.steps)
    which = jnp.repeat(jnp.arange(len(words)), args.draws)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), len(which))
    return jax.vmap(family.task)(which, keys)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    names = ("number", "gradients", "draws", "steps")
    return {name: getattr(args, name) for name in names}


@functools.cache  # functions and optimisers have compiled programs of their own
def _bits() -> Any:
    return languages.bits_per_character(languages.network(0)[1])


def _query_bits(params: Any, task: rj.Task) -> jax.Array:
    return _bits()(params, task.query)


@functools.cache
def _adam(rate: float) -> optax.GradientTransformation:
    return optax.adam(rate, b1=0.0)
