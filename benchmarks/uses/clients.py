"""FedAvg and its relatives on Omniglot's writers: clients before and after adapting, and the speed.

    python -m benchmarks clients --data DIR [--seeds 3] [--only NAME ...]

All trainings take as many local steps. The rates were chosen on clients of people 13 to 15 of each
alphabet, after trainings on people 1 to 12; the clients scored here are of people 16 to 20.
"""

import argparse
import dataclasses
import functools
import types
from collections.abc import Sequence
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
from reptile_jax.app import plots
from reptile_jax.app.config import ClientsConfig
from reptile_jax.app.experiment import Experiment, key
from reptile_jax.app.experiments import clients

FEDERATED = {
    "FedAvg": {},
    "FedAvg, all clients weigh 1": {"weighted": False},
    "FedAvg, server momentum": {"server": "momentum", "meta_rate": 0.3},
    "FedAvg, server Adam": {"server": "adam", "meta_rate": 0.01},
}
CENTRAL, LOCAL = "centralised", "local alone"
METHODS = (*FEDERATED, CENTRAL, LOCAL)
CENTRAL_RATE, LOCAL_STEPS = 0.05, 200
COLUMNS = ("accuracy, %", "mean", "worst tenth", "deviation", "among its own alphabets")


def main(argv: Sequence[str]) -> int:
    """Trains what is not measured yet, and writes both tables."""
    args = _arguments(argv)
    folder = (args.out / "quick" if args.quick else args.out) / "uses"
    path, data = folder / "clients.json", args.data
    command = records.command_of(["clients", "--data", "DIR"])
    about = {
        "title": "Held-out clients' accuracy before and after adapting, ± 95% over the trainings",
        "command": command,
    }
    config = ClientsConfig(meta_steps=4, eval_steps=5) if args.quick else ClientsConfig()
    for name in args.only:
        for seed in range(args.seeds):
            own = dataclasses.replace(config, seed=seed, **FEDERATED.get(name, {}))
            settings = {"method": name, **dataclasses.asdict(own)}
            measured = functools.partial(scored, name, own, data)
            records.run(path, about, f"{name}, {seed}", settings, measured, fresh=args.fresh)
    rows = tabulated(path)
    records.update(path, {**about, "machine": records.machine(), "columns": COLUMNS, "rows": rows})
    tables.show(tables.Table(about["title"], COLUMNS, rows))
    _draw(path)
    speed = folder / "clients_speed.json"
    if args.fresh or not speed.exists():
        table = share_of_bare_products(clients.build(config, None, data), config)
        records.save(speed, table, command)
        tables.show(table)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks clients")
    parser.add_argument("--data", type=Path, required=True, help="the folder of Omniglot")
    parser.add_argument(
        "--seeds", type=int, default=3, choices=range(1, 11), metavar="N", help="trainings of each"
    )
    parser.add_argument("--only", nargs="+", choices=METHODS, metavar="NAME", default=[*METHODS])
    parser.add_argument("--fresh", action="store_true", help="measure again, and keep both")
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    parser.add_argument("--out", type=Path, default=records.RESULTS, help="where results go")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.only = min(args.seeds, 2), args.only[-2:]
    return args


def scored(name: str, config: ClientsConfig, data: Path) -> dict[str, Any]:
    """Trains by a method; every held-out client's scores at the start and at the end."""
    if name == LOCAL:
        config = dataclasses.replace(config, eval_steps=4 * config.eval_steps)
    experiment = _experiment(dataclasses.replace(config, seed=0), data)
    params = _first(experiment, config.seed)
    if name in FEDERATED:
        params = _trained(experiment.learner, params, experiment.training_tasks, config)
    elif name == CENTRAL:
        learner, tasks = _centralised(dataclasses.replace(config, seed=0), data)
        params = _trained(learner, params, tasks, dataclasses.replace(config, meta_batch=1))
    result = rj.evaluate(
        experiment.loss_fn,
        experiment.score_fn,
        experiment.inner_optimizer,
        params,
        experiment.held_out_tasks,
    )
    return {score: np.round(values, 4) for score, values in result.scores.items()}


@functools.cache  # so that trainings which differ in the seed alone share their programs
def _experiment(config: ClientsConfig, data: Path) -> Experiment:
    return clients.build(config, None, data)


def _first(experiment: Experiment, seed: int) -> Any:
    labels = experiment.first_state().params["params"]["Dense_1"]["bias"].size
    init = jax.jit(clients.Network(labels).init)
    return init(key(seed, "init"), jnp.zeros((1, 28, 28, 1)))


@functools.cache
def _centralised(config: ClientsConfig, data: Path) -> tuple[rj.MetaLearner, rj.tasks.Clients]:
    """SGD on all clients' examples: a meta step is one client's, of as many steps as a round."""
    training = clients.clients_of(*clients.load(data), range(clients.TRAINING_PEOPLE))
    batches = [-(-len(client.targets) // config.inner_batch) for client in training.values()]
    tasks = rj.tasks.clients(
        [clients.pooled(training)],
        batch_size=config.inner_batch,
        steps=round(config.local_epochs * config.meta_batch * float(np.mean(batches))),
    )
    loss_fn = _experiment(config, data).loss_fn
    return rj.meta_learner(rj.reptile(loss_fn, optax.sgd(CENTRAL_RATE)), optax.sgd(1.0)), tasks


def _trained(learner: rj.MetaLearner, params: Any, tasks: Any, config: ClientsConfig) -> Any:
    for state, _ in rj.train(
        learner,
        learner.init(params),
        tasks,
        key(config.seed, "training"),
        until=config.meta_steps,
        meta_batch=config.meta_batch,
        steps_per_dispatch=config.steps_per_dispatch,
    ):
        params = state.params
    return params


def tabulated(path: Path) -> list[list[str]]:
    """Two rows for each method: means over its trainings, with 95% intervals."""
    found, rows = records.newest(path), []
    for method in METHODS:
        runs = [arm["data"] for name, arm in found.items() if name.rpartition(", ")[0] == method]
        if not runs:
            continue
        accuracy, own = (
            100 * np.array([run[name] for run in runs])  # [trainings, clients, 2]
            for name in ("accuracy", "among its own alphabets")
        )
        spreads = [rj.spread(scores) for scores in accuracy]
        figures = [[each.mean, each.worst_tenth, each.std] for each in spreads]
        figures = np.concatenate([figures, own.mean(1)[:, None]], 1)  # [trainings, figures, 2]
        for point, when in enumerate(("before", "after")):
            cells = [_interval(values) for values in figures[:, :, point].T]
            rows.append([f"{method}, {when}", *cells])
    return rows


def _draw(path: Path) -> None:
    """Every client before and after, in the first training by each of some methods."""
    found = records.newest(path)
    shown = {name: found.get(f"{name}, 0") for name in ("FedAvg", CENTRAL, LOCAL)}
    ends = {name: 100 * np.array(arm["data"]["accuracy"]) for name, arm in shown.items() if arm}
    if ends:
        plots.before_and_after(path.with_suffix(".png"), "accuracy, %", ends)


def _interval(values: np.ndarray) -> str:
    return tables.interval(values, 1)


def share_of_bare_products(
    experiment: Experiment, config: ClientsConfig, rounds: int = 5
) -> tables.Table:
    """Rounds in one dispatch, clients drawn on the device, beside their bare matrix products.

    The products are those of as many mini-batches as the drawn clients took, in one scan.
    """
    learner, params = experiment.learner, experiment.first_state().params
    workload = Workload(
        "clients",
        params,
        experiment.loss_fn,
        optax.sgd(0.1),
        experiment.training_tasks,
        "reset",
        (),
    )
    step = arms.dispatching(learner, workload, rounds, config.meta_batch)
    # The same clients at every call, up to the round's number, on which the draw depends.
    taken = [int(np.count_nonzero(np.asarray(step().losses))) for _ in range(8)]
    batches = round(float(np.mean(taken)))
    bare = dataclasses.replace(
        workload,
        distribution=types.SimpleNamespace(steps=batches),
        layers=_layers(params, config.inner_batch),
    )
    measured = interleaved({"ours": step, "bare": arms.bare_products(bare, 1)}, repeats=9)
    share = 1 / paired_ratio(measured["ours"], measured["bare"])
    median = measured["ours"]["median"] / rounds
    row = [
        f"{config.meta_batch} clients, {batches / rounds:.0f} local steps of {config.inner_batch}",
        f"{median:.0f}",
        f"{1e3 * config.meta_batch / median:.0f}",
        f"{bare.flops / rounds / median / 1e6:.0f}",
        f"{share:.0%}",
    ]
    columns = ["a round", "ms", "clients/s", "GFLOP/s", "of bare products"]
    return tables.Table("A round of FedAvg", columns, [row], measured)


def _layers(params: Any, batch: int) -> tuple[Layer, ...]:
    """The network's products: convolutions as patches times kernels, of 14, 7 and 4 pixels."""
    weights = params["params"]
    kernels = [weights[f"kernel{layer}"] for layer in range(3)]
    products = [
        Layer(batch * side**2, int(np.prod(kernel.shape[:3])), kernel.shape[3])
        for side, kernel in zip((14, 7, 4), kernels, strict=True)
    ]
    dense = [weights[f"Dense_{layer}"]["kernel"].shape for layer in range(2)]
    return (*products, *(Layer(batch, *shape) for shape in dense))
