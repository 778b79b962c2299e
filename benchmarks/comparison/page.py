"""The parts of docs/results/reptile_and_maml.md: the experiments, from their records alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import records, tables
from benchmarks.comparison import (
    claims,
    contest,
    gradient_combinations,
    minibatch_overlap,
    outcomes,
    sine_maml,
    stability,
)
from benchmarks.comparison.experiment import record


def draw(results: Path, size: str) -> None:
    """Draws the pictures of all experiments."""
    chosen, paper = contest.SIZES[size], gradient_combinations.SIZES[size]
    path = record("reptile_vs_maml", size, results)
    gradient_combinations.draw(record("gradient_combinations", size, results), paper)
    minibatch_overlap.draw(record("minibatch_overlap", size, results), paper)
    sine_maml.draw(record("sine_maml", size, results), paper)
    stability.draw(path, chosen)
    outcomes.draw(path, chosen)


def parts(results: Path, page: Path, size: str) -> dict[str, str]:
    """Verdicts, tables and pictures; what is not measured yet says so."""
    chosen, paper = contest.SIZES[size], gradient_combinations.SIZES[size]
    path = record("reptile_vs_maml", size, results)
    found = claims.all_claims(results / "speed" / "memory.json", path, chosen)
    picture = lambda name, title: tables.picture(title, path.parent / f"{name}.png", page)
    combined = record("gradient_combinations", size, results)
    overlapping = record("minibatch_overlap", size, results)
    waves = record("sine_maml", size, results)
    joined = lambda *pieces: "\n\n".join(piece for piece in pieces if piece)
    return {
        "verdicts": joined(_missing(path, chosen), _verdicts(found), _source(path, page)),
        "findings": _findings(found),
        "budgets": joined(_budgets(chosen), _at_an_end(path, chosen)),
        "equal budgets on sine waves": joined(
            _contest_table(path, chosen, "sine"),
            _source(path, page),
            picture("sine-error", "Sine waves: error by meta steps, gradient evaluations and time"),
        ),
        "equal budgets on Omniglot": joined(
            _contest_table(path, chosen, "omniglot"),
            _source(path, page),
            picture("omniglot-transductive", "Omniglot: transductive accuracy by each budget"),
            picture(
                "omniglot-non-transductive", "Omniglot: non-transductive accuracy by each budget"
            ),
        ),
        "stability": joined(
            picture("stability", "Errors by inner and outer rate"),
            picture("stability-spread", "Their spread over seeds"),
            _source(path, page),
        ),
        "sine waves": joined(
            f"After {paper.sine_steps:,} meta steps at rates that were not tuned:",
            tables.markdown(*sine_maml.rows(waves, paper)),
            _source(waves, page),
            picture("sine_maml", "Three held-out waves"),
        ),
        "inner gradients": joined(
            f"{paper.combination_steps:,} meta steps of one task (the paper: 40,000) and "
            f"{paper.filters} filters (the paper: 64):",
            _combinations(combined, paper),
            _source(combined, page),
            picture("gradient_combinations", "Accuracy by meta steps, for sums of inner gradients"),
        ),
        "overlap": joined(
            f"{paper.overlap_steps:,} meta steps of one task and {paper.filters} filters "
            "(the paper: 64):",
            tables.markdown(*minibatch_overlap.rows(overlapping, paper)),
            _source(overlapping, page),
            picture("minibatch_overlap", "Accuracy by inner steps, batch and outer step size"),
        ),
    }


def _source(path: Path, page: Path) -> str:
    found = records.read(path)
    return f"`{found['command']}`, {tables.link(path.name, path, page)}." if found else ""


def _budgets(size: contest.Size) -> str:
    """The numbers of the contest that depend on its size."""
    seeds = lambda number: f"{number} seed{'s' * (number > 1)}"
    lines = [
        f"Rates are chosen by the mean over {seeds(size.sine_tuning_seeds)} on the waves and "
        f"{seeds(size.omniglot_tuning_seeds)} on Omniglot; these seeds are not among those scored.",
        f"The largest budget is {size.sine_budgets[-1]:,} meta steps of MAML on the sine waves and "
        f"{size.omniglot_budgets[-1]:,} on Omniglot. After many times as many, the results may "
        "differ.",
        f"All seeds are scored on the same test tasks, {size.sine_tasks} waves and "
        f"{size.omniglot_tasks} Omniglot tasks. Intervals over seeds do not tell what other tasks "
        "would change.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _at_an_end(path: Path, size: contest.Size) -> str:
    """Names the chosen rates that are the lowest or highest of their grid."""
    found = [
        f"{method} ({' and '.join(ends)}, {outcomes.TITLES[kind]})"
        for kind in outcomes.PROBLEMS
        for method, ends in outcomes.at_an_end(path, kind, size).items()
        if ends
    ]
    start = "At the end of a grid, beyond which better rates may exist: "
    return start + ", ".join(found) + "." if found else ""


def _missing(path: Path, size: contest.Size) -> str:
    there = stability.stored(path, size)
    absent = [stability.arm(name) for name in stability.METHODS if name not in there]
    absent += outcomes.missing(path, size)
    return f"**Not measured yet, and in no verdict: {', '.join(absent)}.**" if absent else ""


def _verdicts(found: Sequence[claims.Claim]) -> str:
    rows = [[claim.statement, f"**{claim.verdict}**"] for claim in found]
    return tables.markdown(["claim", "verdict"], rows, words=("verdict",))


def _findings(found: Sequence[claims.Claim]) -> str:
    pieces = []
    for claim in found:
        pieces.append(f"**{claim.statement}: {claim.verdict}.** Yes if {claim.criterion}.")
        if claim.findings:
            lines = [f"- {f.where}: {f.figures}: {f.answer}" for f in claim.findings]
            pieces.append("\n".join(lines))
    return "\n\n".join(pieces)


def _contest_table(path: Path, size: contest.Size, kind: str) -> str:
    found, times = outcomes.results(path, kind, size), outcomes.milliseconds(path, kind, size)
    scores, lengths = outcomes.SCORES[kind], outcomes.lengths(path, kind, size)
    rows = []
    for method, runs in found.items():
        chosen = outcomes.choice(path, kind, method, size)
        for steps in sorted(runs):
            equal = sorted(lengths[method][steps])
            values = [runs[steps][score] * (1 if kind == "sine" else 100) for score in scores]
            rows.append(
                [
                    method,
                    f"{steps:,}",
                    "; ".join(f"{basis} ({budget:,})" for budget, basis in equal),
                    f"{steps * times[method] / 1000:.1f}",
                    f"{chosen['inner rate']:g}, {chosen['outer rate']:g}",
                    *(f"{v.mean():.3g} ± {v.std(ddof=1):.2g}" for v in values),
                ]
            )
    columns = ["method", "meta steps", "equal to MAML in (its meta steps)", "seconds", "rates"]
    unit = "" if kind == "sine" else ", %"
    return tables.markdown([*columns, *(f"{score}{unit}" for score in scores)], rows)


def _combinations(path: Path, size: gradient_combinations.Size) -> str:
    rows = []
    for name, arm in gradient_combinations.combination_arms(path, size).items():
        ends = [100 * np.array(arm["data"][mode])[:, -1] for mode in gradient_combinations.MODES]
        rows.append([name, *(f"{end.mean():.1f} ± {end.std(ddof=1):.1f}" for end in ends)])
    return tables.markdown(["followed", *gradient_combinations.MODES], rows)
