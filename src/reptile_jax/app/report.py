"""The report of a run: one HTML file that needs nothing else, made from the run's folder."""

import base64
import dataclasses
import html
import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reptile_jax.app import run_folder
from reptile_jax.app.config import Config
from reptile_jax.app.experiments import EXPERIMENTS
from reptile_jax.app.json_files import plain, read_json, read_json_lines, write_whole

_OF_SPREAD = {"worst_tenth": "worst tenth", "std": "standard deviation"}


def results_of(folder: Path) -> list[Path]:
    """The files of results in a run's folder, those of the training first."""
    number = lambda path: int(path.stem.partition("-")[2] or 1)
    return [
        path
        for name in ("results", "evaluation")
        for path in sorted(
            (p for p in folder.glob(f"{name}*.json") if _is_numbered(p, name)), key=number
        )
    ]


def _is_numbered(path: Path, name: str) -> bool:
    rest = path.stem.removeprefix(name)
    return not rest or (rest[0] == "-" and rest[1:].isdecimal())


def write(folder: Path, pictures: Sequence[Path]) -> Path:
    """Writes report.html: scores, pictures, configuration and environment of a run."""
    config = run_folder.load_config(folder)
    found = {path: read_json(path) for path in results_of(folder)}
    rows = read_json_lines(folder / "metrics.jsonl")
    steps = rows[-1]["step"] if rows else 0
    body = [
        f"<h1>{html.escape(folder.name)}</h1>",
        f'<p class="soft">Reptile on {html.escape(config.experiment)}, {steps:,} of '
        f"{config.meta_steps:,} meta steps</p>",
    ]
    if found:
        body.append(_headline(next(iter(found.values()))))
    for path, fields in found.items():
        body.append(f"<h2>{'Held-out tasks' if path.stem == 'results' else path.stem}</h2>")
        if changes := _changes(config, fields):
            body.append(f'<p class="soft">{html.escape(", ".join(changes))}</p>')
        body.append(_score_table(fields))
        if "spread" in fields:
            body.append(_spread_table(fields))
        body += map(_figure, _pictures_of(path, pictures))
    body += ["<h2>Training</h2>"]
    body += [_figure(path) for path in pictures if path.stem == "learning_curve"]
    start = dataclasses.asdict(EXPERIMENTS[config.experiment].start)
    values = dataclasses.asdict(config)
    body += ["<h2>Configuration</h2>", '<p class="soft">Coloured: other than the default.</p>']
    body.append(_table(["", "value"], values.items(), lambda name: values[name] != start.get(name)))
    for fields in list(found.values())[:1]:
        body += ["<h2>Environment</h2>", _table(["", "value"], _flat(fields["environment"]))]
    style = (importlib.resources.files("reptile_jax.app") / "report.css").read_text()
    page = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(folder.name)}</title>\n<style>\n{style}</style>\n"
    )
    write_whole(folder / "report.html", (page + "\n".join(body) + "\n</html>\n").encode())
    return folder / "report.html"


def _changes(config: Config, fields: Mapping[str, Any]) -> list[str]:
    """What an evaluation was told: other values than the run's, and a folder of data."""
    own, told = plain(dataclasses.asdict(config)), fields.get("config", {})
    changes = [f"{name}={told[name]}" for name in own if told.get(name, own[name]) != own[name]]
    return [*changes, f"data {fields['data']}"] if "data" in fields else changes


def _pictures_of(results: Path, pictures: Sequence[Path]) -> list[Path]:
    before = "" if results.stem == "results" else f"{results.stem}-"
    names = [f"{before}{name}.png" for name in ("scores", "adaptation")]
    return [path for path in pictures if path.name in names]


def _headline(fields: Mapping[str, Any]) -> str:
    """The score of the run, after the last inner step."""
    ours, name = next(iter(fields["scores"].values())), fields["score"]
    curve = ours[name]
    shown = _shown(curve["mean"][-1], curve["ci95"][-1], fields.get("measure") == "accuracy")
    return (
        f'<p class="score">{shown}</p><p class="soft">{html.escape(name)}, after '
        f"{curve['inner steps'][-1]} inner steps, on {fields['tasks']:,} held-out tasks</p>"
    )


def _score_table(fields: Mapping[str, Any]) -> str:
    """Scores by inner steps, of each initialisation and score."""
    curves = {
        f"{label}, {name}": curve
        for label, by_score in fields["scores"].items()
        for name, curve in by_score.items()
    }
    steps = next(iter(curves.values()))["inner steps"]
    few = sorted({*range(0, len(steps), max(1, len(steps) // 6)), len(steps) - 1})
    percent = fields.get("measure") == "accuracy"
    rows = [
        (label, *(_shown(curve["mean"][i], curve["ci95"][i], percent) for i in few))
        for label, curve in curves.items()
    ]
    return _table(["inner steps", *(str(steps[i]) for i in few)], rows)


def _spread_table(fields: Mapping[str, Any]) -> str:
    """How much the held-out tasks differ, before and after adapting."""
    scale, digits = (100, 1) if fields.get("measure") == "accuracy" else (1, 3)
    number = lambda value: "–" if value is None else f"{scale * value:.{digits}f}"
    rows = [
        (label, step, *(number(found[name][point]) for name in ("mean", *_OF_SPREAD)))
        for label, found in fields["spread"].items()
        for point, step in enumerate(found["inner steps"])
    ]
    return _table(["", "inner steps", "mean", *_OF_SPREAD.values()], rows)


def _shown(mean: float | None, half: float | None, percent: bool) -> str:
    scale, digits = (100, 2) if percent else (1, 3)
    number = lambda value: "–" if value is None else f"{scale * value:.{digits}f}"
    return f"{number(mean)} ± {number(half)}{' %' if percent else ''}"


def _table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], is_marked: Any = lambda name: False
) -> str:
    cell = lambda kind, value: f"<{kind}>{html.escape(str(value))}</{kind}>"
    lines = ["<tr>" + "".join(cell("th", name) for name in columns) + "</tr>"]
    for row in rows:
        mark = ' class="changed"' if is_marked(row[0]) else ""
        lines.append(f"<tr{mark}>" + "".join(cell("td", value) for value in row) + "</tr>")
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def _flat(environment: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The environment's fields, and the versions among them."""
    return [
        row
        for name, value in environment.items()
        for row in (value.items() if isinstance(value, dict) else [(name, value)])
    ]


def _figure(path: Path) -> str:
    picture = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.stem.replace("_", " "))
    return (
        f'<figure><figcaption>{name}</figcaption><img alt="{name}" '
        f'src="data:image/png;base64,{picture}"></figure>'
    )
