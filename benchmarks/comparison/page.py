"""`REPTILE_AND_MAML.md`: the experiments read for a user, from their JSON files alone."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import (
    claims,
    contest,
    outcomes,
    overlap,
    paper_experiments,
    sine_experiment,
    stability,
)

PAGE = Path(__file__).parent / "REPTILE_AND_MAML.md"


def write(results: Path, size: str, page: Path = PAGE) -> None:
    """Draws the pictures again and writes the page; what is not measured yet is named as such.

    Args:
      results: the folder that the experiments wrote to.
      size: of the experiments.
    """
    chosen, paper = contest.SIZES[size], paper_experiments.SIZES[size]
    folder = lambda name: results / name / size
    comparison = folder("reptile_vs_maml")
    paper_experiments.draw_combinations(folder("gradient_combinations"), paper)
    overlap.draw(folder("minibatch_overlap"), paper)
    sine_experiment.draw(folder("sine_maml"), paper)
    stability.draw(comparison, chosen)
    outcomes.draw(comparison, chosen)
    found = claims.all_claims(results, comparison, chosen)
    sections = [
        _HEAD.format(size=size),
        _missing(comparison, chosen),
        _verdicts(found),
        _findings(found),
        _CONTEST.format(
            sine=chosen.sine_budgets[-1],
            omniglot=chosen.omniglot_budgets[-1],
            waves_seeds=_seeds(chosen.sine_tuning_seeds),
            images_seeds=_seeds(chosen.omniglot_tuning_seeds),
            waves=chosen.sine_tasks,
            tasks=chosen.omniglot_tasks,
        ),
        _at_an_end(comparison, chosen),
        *_contest_tables(comparison, chosen),
        *(_picture(page, comparison / name, title) for name, title in _CONTEST_PICTURES.items()),
        _STABILITY,
        _picture(page, comparison / "stability.png", "Errors by inner and outer rate"),
        _picture(page, comparison / "stability-spread.png", "Their spread over seeds"),
        _SINE.format(steps=paper.sine_steps),
        _table(*sine_experiment.rows(folder("sine_maml"), paper)),
        _picture(page, folder("sine_maml") / "sine_maml.png", "Three held-out waves"),
        _COMBINATIONS.format(steps=paper.combination_steps, filters=paper.filters),
        _combinations(folder("gradient_combinations"), paper),
        _picture(
            page,
            folder("gradient_combinations") / "gradient_combinations.png",
            "Accuracy by meta steps, for sums of inner gradients",
        ),
        _OVERLAP.format(steps=paper.overlap_steps, filters=paper.filters),
        _table(*overlap.rows(folder("minibatch_overlap"), paper)),
        _picture(
            page,
            folder("minibatch_overlap") / "minibatch_overlap.png",
            "Accuracy by inner steps, batch and outer step size",
        ),
    ]
    page.write_text("\n\n".join(section for section in sections if section) + "\n")


_HEAD = """# Reptile and MAML

Written by `python -m benchmarks reptile_and_maml --size {size}` from the JSON files under
`results/`, one for each arm, with its settings, its machine and every seed's figures. The verdicts
are computed by the criteria stated; none is typed.

The three methods differ in one thing: what a task says about the initialisation. **Reptile** goes
towards where the inner loop ended. **FOMAML** takes the gradient of a query set's loss there, as if
it were taken at the start. **MAML** differentiates that loss through the inner loop, and so needs
second derivatives, and every inner step's activations in memory.

## Claim by claim

*Holds*: everywhere it was looked into. *Depends on*: in some places only. *Does not hold*: nowhere.
Where *no difference* was *seen* anywhere, more seeds or longer trainings might show one."""

_CONTEST = """## Equal budgets

All methods have five inner steps, five tasks in a meta step, the same networks, starting points,
seeds and test tasks, and see the same number of labelled examples of a task: all of them in
mini-batches for Reptile; split into what the inner loop is given and a query set for the others (on
the waves, all points are the query set). Reptile's outer step is the paper's, FOMAML's and MAML's
is Adam: a better one, as the maps below show, which have Reptile with Adam outside as well. On
Omniglot Reptile's inner optimiser is the paper's too, Adam without momentum, its state averaged
over tasks, where the others have SGD. All outer rates go linearly to zero, and every point below is
a training of its own that came to its end.

The rates were chosen for each method from a grid of as many cells, on validation tasks: new waves,
and on Omniglot 200 characters of the training split, which no method trains on; by the mean over
{waves_seeds} on the waves and {images_seeds} on Omniglot, other ones than those scored. So was the
number of inner steps to score after; both are the same at every budget. Test characters had no part
in any choice. A gradient evaluation is a gradient of a task's loss, or one of MAML's products on
the way back; batches differ in size, which only the time takes into account. Time is that of a
compiled meta step, one run alone, the methods measured turn by turn.

The largest budget here is {sine:,} meta steps of MAML on the sine waves and {omniglot:,} on
Omniglot: what holds there need not hold after many times as many. All seeds are scored on the same
test tasks, {waves} waves and {tasks} Omniglot tasks: intervals over seeds do not tell what other
tasks would change."""

_CONTEST_PICTURES = {
    "sine-error.png": "Sine waves: error by meta steps, gradient evaluations and time",
    "omniglot-transductive.png": "Omniglot: transductive accuracy by each budget",
    "omniglot-non-transductive.png": "Omniglot: non-transductive accuracy by each budget",
}

_STABILITY = """## Stability

Every cell of the grid is trained from several seeds on the sine waves, and scored after as many
inner steps as in training. A run has diverged if its error is not finite, or above twice that of
answering 0 everywhere, the best that a network can do which does not adapt. The rates reach from
those too low to learn much in the time to those that no method stands. Tasks whose loss or gradient
is not finite are left out of a meta step by the library, for every method. The outer rates of the
last three maps are Adam's and the same; the first map's are the paper's ε, on a grid of its own.
The shares in the claims leave out inner rates at which every run of every method diverged."""

_SINE = """## Sine waves

Mean squared error ± spread over seeds, by the number of inner steps on ten points (section 4 of the
paper), after {steps:,} meta steps at rates that were not tuned."""

_COMBINATIONS = """## Which inner gradients to follow

Section 6.2 of the paper, Omniglot 5-way 5-shot: {steps:,} meta steps of one task (the paper's:
40,000), {filters} filters (64), plain SGD inside, every mini-batch of images not seen before, so
the gradients g1, g2, ... differ only in where they are taken. g1 alone is joint training. The paper
found that g1 gains little, that g2 beats g1 + g2, and that with more steps the sums do best.
Accuracy in % on test characters at the end, ± spread over seeds:"""

_OVERLAP = """## Overlap of the inner mini-batches

Section 6.3 of the paper: {steps:,} meta steps of one task, {filters} filters (64 in the paper),
plain SGD inside. FOMAML follows the last mini-batch's gradient alone. A *shared tail* is drawn from
the same 100 images as the mini-batches before it; a *separate tail* is set apart from them (50
images at most, so that with it "100" means mini-batches of the other 50). *Cycling* goes through
all images before any comes again; *replacement* draws each mini-batch afresh. The paper found that
FOMAML with a shared tail gets worse where the tail's images have been seen before: with five inner
steps and more of 25 images, with larger batches, and then with larger outer steps. Accuracy in % on
test characters, non-transductive, ± spread over seeds:"""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Not measured yet."
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _at_an_end(folder: Path, size: contest.Size) -> str:
    """Says so where the rates chosen are the lowest or highest of their grid."""
    found = [
        f"{method} ({' and '.join(ends)}, {outcomes.TITLES[kind]})"
        for kind in outcomes.PROBLEMS
        for method, ends in outcomes.at_an_end(folder, kind, size).items()
        if ends
    ]
    if not found:
        return ""
    return (
        "Chosen at the end of a grid, beyond which there may be better: " + ", ".join(found) + "."
    )


def _seeds(number: int) -> str:
    return f"{number} seed{'s' * (number > 1)}"


def _missing(folder: Path, size: contest.Size) -> str:
    there = stability.stored(folder, size)
    absent = [stability.arm(name) for name in stability.METHODS if name not in there]
    absent += outcomes.missing(folder, size)
    return f"**Not measured yet, and in no verdict: {', '.join(absent)}.**" if absent else ""


def _verdicts(found: Sequence[claims.Claim]) -> str:
    lines = [f"| {claim.statement} | **{claim.verdict}** |" for claim in found]
    return "\n".join(["| claim | verdict |", "|---|---|", *lines])


def _findings(found: Sequence[claims.Claim]) -> str:
    parts = ["### What each verdict rests on"]
    for claim in found:
        parts.append(f"**{claim.statement}: {claim.verdict}.** Yes if {claim.criterion}.")
        if claim.findings:
            parts.append("\n".join(f"- {f.where}: {f.figures}: {f.answer}" for f in claim.findings))
    return "\n\n".join(parts)


def _picture(page: Path, picture: Path, title: str) -> str:
    if not picture.exists():
        return ""
    return f"![{title}]({os.path.relpath(picture, page.parent)})"


def _contest_tables(folder: Path, size: contest.Size):
    for kind in outcomes.PROBLEMS:
        found, times = (
            outcomes.results(folder, kind, size),
            outcomes.milliseconds(folder, kind, size),
        )
        yield f"### {outcomes.TITLES[kind]}"
        scores = outcomes.SCORES[kind]
        lengths = outcomes.lengths(folder, kind, size)
        rows = []
        for method, runs in found.items():
            chosen = outcomes.choice(folder, kind, method, size)
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
        yield _table([*columns, *(f"{score}{unit}" for score in scores)], rows)


def _combinations(folder: Path, size: paper_experiments.Size) -> str:
    rows = []
    for name, arm in paper_experiments.combination_arms(folder, size).items():
        ends = [100 * np.array(arm["data"][mode])[:, -1] for mode in paper_experiments.MODES]
        rows.append([name, *(f"{end.mean():.1f} ± {end.std(ddof=1):.1f}" for end in ends)])
    return _table(["followed", *paper_experiments.MODES], rows)
