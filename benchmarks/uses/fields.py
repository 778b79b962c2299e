"""Neural fields for tomography from few views: what a learned initialisation gains.

    python -m benchmarks fields [--seeds 5] [--only gain speed]

Trains by `reptile-jax train ct`'s defaults, and reconstructs phantoms that it has not seen, from
six initialisations. Each has its own optimiser, rate and number of steps for each number of views,
chosen on validation phantoms after the first training. Every training has test phantoms of its own.
"""

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reptile_jax as rj
from benchmarks import records, tables
from benchmarks.speed import arms
from benchmarks.speed.workloads import Layer, Workload
from benchmarks.timing import interleaved, paired_ratio
from reptile_jax.app.config import TomographyConfig
from reptile_jax.app.experiment import key
from reptile_jax.app.experiments import EXPERIMENTS, tomography

# Names and rates of the optimisers that reconstruct.
OPTIMIZERS = {
    "Adam, 0.001": functools.partial(optax.adam, 1e-3),
    "Adam, 0.003": functools.partial(optax.adam, 3e-3),
    "SGD, 1": functools.partial(optax.sgd, 1.0),
}
SMOOTH = "standard, scale 5"  # the scale that is best for it
STARTS = ("learned", "standard", SMOOTH, "mean", "matched", "shuffled")


def main(argv: Sequence[str]) -> int:
    """Measures what is missing, and writes the tables and the picture."""
    args = _arguments(argv)
    for part in args.only:
        {"gain": gain, "speed": speed}[part](args)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parts = ("gain", "speed")
    parser = argparse.ArgumentParser(prog="python -m benchmarks fields")
    parser.add_argument("--only", nargs="+", choices=parts, metavar="PART", default=parts)
    parser.add_argument(
        "--seeds", type=int, default=5, choices=range(2, 11), metavar="N", help="trainings"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again, and keep both")
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    parser.add_argument("--out", type=Path, default=records.RESULTS, help="where results go")
    args = parser.parse_args(argv)
    args.folder = (args.out / "quick" if args.quick else args.out) / "uses"
    args.config = EXPERIMENTS["ct"].start
    args.most_steps, args.validation, args.test = 400, 3, 8
    args.optimizers = [*OPTIMIZERS]
    if args.quick:
        args.config = dataclasses.replace(
            args.config, size=8, features=4, width=4, meta_steps=2, inner_steps=2
        )
        args.most_steps, args.validation, args.test = 10, 1, 2
        args.optimizers = args.optimizers[:1]
    return args


# The gain -----------------------------------------------------------------------------------------


def gain(args: argparse.Namespace) -> None:
    """PSNR by initialisation and number of views; what was chosen; the picture."""
    path = args.folder / "fields.json"
    about = {
        "title": f"PSNR in dB of phantoms of {args.config.size} x {args.config.size} pixels, with "
        f"95% intervals over {args.seeds} trainings",
        "command": records.command_of(["fields", "--only", "gain", f"--seeds {args.seeds}"]),
    }
    settings = {
        **dataclasses.asdict(args.config),
        "most steps": args.most_steps,
        "validation phantoms": args.validation,
        "test phantoms": args.test,
        "optimisers": args.optimizers,
    }
    run = functools.partial(records.run, path, about, fresh=args.fresh)
    starts = functools.cache(lambda seed: initialisations(args.config, seed))
    choose = lambda: chosen(args, starts(0))
    best = run("choice", settings, choose)["data"]
    found = []
    for seed in range(args.seeds):
        tested = lambda seed=seed: scores(args, starts(seed), best, seed)
        found.append(run(f"seed {seed}", {**settings, "seed": seed}, tested)["data"])
    rows = [*_rows(found), *_differences(found)]
    columns = ["initialisation", *tomography.NAMES]
    about |= {"machine": records.machine(), "columns": columns, "rows": rows}
    records.update(path, about)
    tables.show(tables.Table(about["title"], columns, rows))
    _save_choice(args, best)
    picture = path.with_suffix(".png")
    if args.fresh or not picture.exists():
        _draw(picture, args, starts(0), best)


def initialisations(config: TomographyConfig, seed: int) -> dict[str, Any]:
    """The parameters by name, after a training with a seed."""
    config = dataclasses.replace(config, seed=seed)
    experiment = EXPERIMENTS["ct"].build(config)
    standard, training = experiment.first_state().params, key(seed, "training")
    *_, (state, _) = rj.train(
        experiment.learner,
        experiment.first_state(),
        experiment.training_tasks,
        training,
        until=config.meta_steps,
        meta_batch=config.meta_batch,
        steps_per_dispatch=config.meta_steps,
    )
    keys = jax.random.split(jax.random.fold_in(training, 1), 3)
    return {
        "learned": state.params,
        "standard": standard,
        SMOOTH: standard,  # the scale is no parameter
        "mean": fitted_to_the_mean(config, standard, keys[0]),
        "matched": matched(state.params, keys[1]),
        "shuffled": shuffled(state.params, keys[2]),
    }


def fitted_to_the_mean(config: TomographyConfig, params: Any, key: jax.Array) -> Any:
    """A standard initialisation, trained to show the mean of 1,000 phantoms."""
    apply, optimizer = tomography.network(config).apply, optax.adam(1e-3)
    draw = lambda key: tomography.few_views(config.size, 1, 1).sample(key).query.image
    mean = jax.lax.map(draw, jax.random.split(key, 1000)).mean(0)
    loss_fn = lambda params, image: jnp.mean(
        (rj.tasks.field_image(apply, params, config.size) - image) ** 2
    )
    fit = jax.jit(
        lambda params: rj.inner_loop(loss_fn, optimizer, params, rj.tasks.repeat(mean, 500))
    )
    return fit(params).params


def matched(params: Any, key: jax.Array) -> Any:
    """Normal weights with the mean and the deviation of each array of the parameters."""
    return _by_array(
        lambda key, leaf: leaf.mean() + leaf.std() * jax.random.normal(key, leaf.shape), params, key
    )


def shuffled(params: Any, key: jax.Array) -> Any:
    """The weights of each array in random order."""
    return _by_array(
        lambda key, leaf: jax.random.permutation(key, leaf.reshape(-1)).reshape(leaf.shape),
        params,
        key,
    )


def _by_array(change, params: Any, key: jax.Array) -> Any:
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [change(*both) for both in zip(keys, leaves, strict=True)])


def chosen(args: argparse.Namespace, starts: Mapping[str, Any]) -> dict[str, Any]:
    """For each initialisation and number of views, what does best on validation phantoms."""
    validation = jax.random.fold_in(key(0, "evaluation"), 1)
    best: dict[str, Any] = {}
    for name, params in starts.items():
        best[name] = {}
        for views, label in zip(tomography.VIEWS, tomography.NAMES, strict=True):
            tried = []
            for optimizer in args.optimizers:
                functions = _functions(_config(args, name), optimizer)
                result = _fits(
                    args, functions, params, views, args.most_steps, validation, args.validation
                )
                # A fit that diverges is no choice.
                point = int(np.argmax(np.nan_to_num(result.mean, nan=-np.inf)))
                tried.append((float(result.mean[point]), int(result.steps[point]), optimizer))
            psnr, steps, optimizer = max(tried)
            best[name][label] = {"optimizer": optimizer, "steps": steps, "psnr": psnr}
            print(name, label, best[name][label], flush=True)
    return best


def scores(
    args: argparse.Namespace, starts: Mapping[str, Any], best: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """PSNR of each test phantom, by initialisation and number of views."""
    test = key(seed, "evaluation")
    found: dict[str, Any] = {}
    for name, params in starts.items():
        found[name] = {}
        for views, label in zip(tomography.VIEWS, tomography.NAMES, strict=True):
            how = best[name][label]
            steps = max(1, how["steps"])
            functions = _functions(_config(args, name), how["optimizer"])
            result = _fits(args, functions, params, views, steps, test, args.test, steps)
            found[name][label] = result.scores[:, 0 if how["steps"] == 0 else -1]
    return found


def _fits(
    args: argparse.Namespace,
    functions: tuple[Any, Any, Any],
    params: Any,
    views: int,
    steps: int,
    tasks: jax.Array,
    number: int,
    every: int = tomography.SCORE_EVERY,
) -> rj.Evaluation:
    """Reconstructions of phantoms from some views."""
    loss_fn, score_fn, optimizer = functions
    return rj.evaluate(
        loss_fn,
        score_fn,
        optimizer,
        params,
        tomography.few_views(args.config.size, views, steps),
        tasks,
        num_tasks=number,
        score_every=every,
    )


def _config(args: argparse.Namespace, start: str) -> TomographyConfig:
    """The configuration whose field an initialisation is of."""
    return dataclasses.replace(args.config, scale=5.0) if start == SMOOTH else args.config


@functools.cache  # each has a compiled program of its own
def _functions(config: TomographyConfig, optimizer: str) -> tuple[Any, Any, Any]:
    """The loss, the score and the optimiser."""
    apply = tomography.network(config).apply
    return rj.tasks.projection_loss(apply), rj.tasks.psnr(apply), OPTIMIZERS[optimizer]()


def _rows(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    over_seeds = lambda name, label: [np.mean(of_seed[name][label]) for of_seed in found]
    return [
        [name, *(_interval(over_seeds(name, label)) for label in tomography.NAMES)]
        for name in STARTS
    ]


def _differences(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The learned initialisation against the standard ones with twice the views."""
    rows = []
    for standard in ("standard", SMOOTH):
        cells = []
        for few, twice in itertools.pairwise(tomography.NAMES):
            gains = [
                np.mean(np.subtract(of_seed["learned"][few], of_seed[standard][twice]))
                for of_seed in found
            ]
            cells.append(_interval(gains, sign="+"))
        rows.append([f"learned, less {standard} with twice the views", *cells, ""])
    return rows


def _interval(values: Sequence[float], sign: str = "") -> str:
    return tables.interval(values, 1, sign)


def _save_choice(args: argparse.Namespace, best: Mapping[str, Any]) -> None:
    cell = lambda how: f"{how['optimizer']}, {how['steps']} steps"
    rows = [[name, *(cell(best[name][label]) for label in tomography.NAMES)] for name in STARTS]
    table = tables.Table(
        "Optimiser, rate and inner steps, chosen on validation phantoms",
        ["initialisation", *tomography.NAMES],
        rows,
    )
    command = records.command_of(["fields", "--only", "gain"])
    records.save(args.folder / "fields_choice.json", table, command)


def _draw(
    path: Path, args: argparse.Namespace, starts: Mapping[str, Any], best: Mapping[str, Any]
) -> None:
    """A test phantom, and what each initialisation makes of its views."""
    from reptile_jax.app import plots

    size, of_test = args.config.size, jax.random.fold_in(key(0, "evaluation"), 0)
    images: dict[str, Any] = {name: [] for name in starts}
    for name, params in starts.items():
        config = _config(args, name)
        for views, label in zip(tomography.VIEWS, tomography.NAMES, strict=True):
            how, fitted = best[name][label], params
            loss_fn, _, optimizer = _functions(config, how["optimizer"])
            if how["steps"]:
                task = tomography.few_views(size, views, how["steps"]).sample(of_test)
                fit = jax.jit(functools.partial(rj.inner_loop, loss_fn, optimizer))
                fitted = fit(params, task.support).params
            image = rj.tasks.field_image(tomography.network(config).apply, fitted, size)
            images[name].append(image)
    phantom = tomography.few_views(size, 1, 1).sample(of_test).query.image
    found = {name: np.stack(rows) for name, rows in images.items()}
    plots.reconstructions(path, np.asarray(phantom), tomography.NAMES, found)


# Speed --------------------------------------------------------------------------------------------


def speed(args: argparse.Namespace) -> None:
    """A meta step of the training, in a dispatch of many, beside its bare matrix products."""
    path = args.folder / "fields_speed.json"
    records.check_free(path, args.fresh or args.quick)
    rows, data, steps = [], {}, 2 if args.quick else 10
    small = args.config
    configs = {
        "the default": small,
        "the network of the paper, at the default's size": dataclasses.replace(
            small, features=256, width=256
        ),
        "64 pixels": dataclasses.replace(small, size=64),
    }
    for name, config in configs.items():
        if args.quick and config is not small:
            continue
        workload = workload_of(config)
        learner = arms.learner_of(workload)
        measured = interleaved(
            {
                "training": arms.dispatching(learner, workload, steps, 1),
                "bare": arms.bare_products(workload, steps),
            },
            repeats=2 if args.quick else 7,
        )
        data[name] = measured
        share = 100 * paired_ratio(measured["bare"], measured["training"])
        cells = [measured[arm]["median"] / steps for arm in ("training", "bare")]
        rows.append([name, *(f"{cell:.1f}" for cell in cells), f"{share:.0f}"])
    table = tables.Table(
        "A meta step of one task, tasks drawn on the device and many meta steps in a dispatch",
        ["", "ms", "ms of its bare products", "share, %"],
        rows,
        data,
    )
    records.save(path, table, records.command_of(["fields", "--only", "speed"]))
    tables.show(table)


def workload_of(config: TomographyConfig) -> Workload:
    """One task of the training."""
    network = tomography.network(config)
    pixels = config.size**2
    widths = [2 * config.features, *[config.width] * (network.layers - 1), 1]
    return Workload(
        "fields",
        network.init(jax.random.key(0), jnp.zeros((1, 2))),
        rj.tasks.projection_loss(network.apply),
        optax.adam(config.inner_rate, b1=0.0),
        tomography.training_tasks(config),
        "average",
        tuple(Layer(pixels, *pair) for pair in itertools.pairwise(widths)),
    )
