"""What narrower matrix products cost o15, simulated on a CPU: a table.

    python -m benchmarks precision --data DIR [--meta-steps 1000] [--seeds 2] [--only NAME ...]

Before every matrix product, forward and backward, in training and in evaluation, both operands are
rounded to the nearest number of the narrower kind; the sums are in float32. All else is in float32.
That is what a TPU does to float32 products by default, with bfloat16, and an NVIDIA GPU since
Ampere may do with TF32. The convolutions of `reptile_jax.nn` are matrix products on a CPU.

The scores are on the last 100 characters of the 1,200 for training, set apart with all their
rotations: no test character is used.
"""

import argparse
import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import primitives
from jax.interpreters import mlir

import reptile_jax as rj
from benchmarks import records, tables
from benchmarks.paper import recipes
from benchmarks.paper.recipe_list import RECIPES
from benchmarks.paper.scoring import MODES, PAPER
from benchmarks.speed.time_to_accuracy import set_apart
from reptile_jax.app import presets
from reptile_jax.app.config import FewShotConfig

# Bits of the exponent and of the mantissa, by the names that `jax.default_matmul_precision` takes.
KINDS = {"float32": (8, 23), "tensorfloat32": (8, 10), "bfloat16": (8, 7)}
COLUMNS = ["operands of products", "seed", *(f"{mode}, %" for mode in MODES)]


def main(argv: Sequence[str]) -> int:
    """Trains with the kinds that are asked for, and writes the table of all that were."""
    args = _arguments(argv)
    folder = args.out / "quick" if args.quick else args.out
    path = folder / "paper" / f"precision_o15_{args.meta_steps}.json"
    asked = f"--meta-steps {args.meta_steps} --tasks {args.tasks} --seeds {args.seeds}"
    about = {
        "title": f"o15 after {args.meta_steps:,} meta steps, by the operands of matrix products",
        "command": records.command_of(["precision", "--data", "DIR", asked]),
    }
    splits = set_apart(rj.datasets.load_omniglot(args.data), 100)
    for seed in range(args.seeds):
        for kind in args.only:
            config, settings = _settings(kind, seed, args)
            measured = functools.partial(tried, kind, config, splits, args.tasks)
            how = {"fresh": args.fresh, "defaults": recipes.DEFAULTS}
            records.run(path, about, _arm(kind, seed), settings, measured, **how)
    rows = tabulated(path, args)
    records.update(path, {**about, "machine": records.machine(), "columns": COLUMNS, "rows": rows})
    tables.show(tables.Table(about["title"], COLUMNS, rows))
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks precision")
    parser.add_argument("--data", type=Path, required=True, help="the folder of Omniglot")
    parser.add_argument("--meta-steps", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=2000, help="held-out tasks")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind")
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="KIND", default=[*KINDS])
    parser.add_argument("--fresh", action="store_true", help="train again, and keep both")
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    parser.add_argument("--out", type=Path, default=records.RESULTS, help="where results go")
    args = parser.parse_args(argv)
    if args.quick:
        args.meta_steps, args.tasks, args.seeds = 4, 2, 1
    return args


def _arm(kind: str, seed: int) -> str:
    return f"{kind}-seed{seed}"


def _settings(
    kind: str, seed: int, args: argparse.Namespace
) -> tuple[FewShotConfig, dict[str, Any]]:
    config = dataclasses.replace(presets.PAPER["o15"], meta_steps=args.meta_steps, seed=seed)
    return config, {"operands": kind, **dataclasses.asdict(config), "held-out tasks": args.tasks}


def tried(
    kind: str, config: FewShotConfig, splits: rj.datasets.ImageSplits, num_tasks: int
) -> dict[str, Any]:
    """The paper's training and its scores, with products of a kind; the same held-out tasks."""
    with rounded_products(kind):
        recipe, begin = RECIPES["the paper"], time.perf_counter()
        state = recipes.trained(recipe, config, splits)
        seconds = time.perf_counter() - begin
        how = {"splits": splits, "row": config, "num_tasks": num_tasks}
        found = recipes.score_of(recipe, config, state, PAPER, **how)
        return {**found, "training seconds": seconds}


@contextlib.contextmanager
def rounded_products(kind: str) -> Iterator[None]:
    """Inside, programs for the CPU round the operands of their matrix products of float32.

    They are rounded where the program is lowered: so once, and in derivatives of every order too,
    whose own products are made before.
    """
    if jax.default_backend() != "cpu":
        raise SystemExit("precision simulates the products of a GPU or a TPU on a CPU alone.")
    product, rules = primitives.dot_general_p, mlir._platform_specific_lowerings["cpu"]
    exact = rules[product]

    def lower(context: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
        of_operands = context.replace(avals_out=context.avals_in)
        round_both = mlir.lower_fun(lambda *both: [rounded(kind, one) for one in both])
        return exact.rule(context, *round_both(of_operands, *operands), **params)

    jax.clear_caches()  # compiled programs keep the products that they were lowered with
    mlir.register_lowering(product, lower, platform="cpu")
    try:
        yield
    finally:
        rules[product] = exact
        jax.clear_caches()


def rounded(kind: str, array: jax.Array) -> jax.Array:
    """An array of float32, rounded to the nearest numbers of a kind, of ties to the even one."""
    if array.dtype != jnp.float32:
        return array
    return jax.lax.reduce_precision(array, *KINDS[kind])


def tabulated(path: Path, args: argparse.Namespace) -> list[list[str]]:
    """A row for each training with these arguments."""
    rows = []
    for kind in KINDS:
        for seed in range(args.seeds):
            _, settings = _settings(kind, seed, args)
            found = records.stored(path, _arm(kind, seed), settings, recipes.DEFAULTS)
            if found is not None:
                rows.append([kind, str(seed), *recipes.cells(found["data"])])
    return rows
