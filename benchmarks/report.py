"""Turns the JSON under `results/` into the tables and figures of `README.md`; none is by hand."""

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import gpu_questions, measure, plots, recipes, time_to_accuracy

README = Path(__file__).parent / "README.md"
_START, _END = "<!-- tables -->", "<!-- end of tables -->"


def write(scripts: Mapping[str, Callable]) -> None:
    """Rewrites the part of the README between its two markers, and the figures.

    Above each table stands what its script's docstring says of it.
    """
    parts = []
    for path in sorted(measure.RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        if "columns" not in content:
            continue
        parts += [f"### {content['title']}", "", reading(path.stem, scripts), ""]
        if path.stem in plots.FIGURES:
            plots.FIGURES[path.stem](content, path.with_suffix(".png"))
            parts += [f"![{content['title']}](results/{path.stem}.png)", ""]
        parts += [*_table(content), "", f"{_source(path, content)}", ""]
    before, _, rest = README.read_text().partition(_START)
    _, _, after = rest.partition(_END)
    README.write_text(f"{before}{_START}\n\n" + "\n".join(parts) + f"{_END}{after}")


def reading(name: str, scripts: Mapping[str, Callable]) -> str:
    """What the table of that name says, in the words of the script that measures it."""
    question = gpu_questions.QUESTIONS.get(name.removeprefix("gpu_"))
    if name in scripts:
        script = scripts[name]
    elif name.startswith("gpu_") and question:
        script = question.cells
    else:
        families = {"time_to_accuracy": time_to_accuracy.measured, "recipes": recipes.tried}
        script = next((s for start, s in families.items() if name.startswith(start)), None)
    return " ".join((inspect.getdoc(script) or "").split()) if script else ""


def _table(content: dict[str, Any]) -> list[str]:
    columns = content["columns"]
    return [
        "| " + " | ".join(columns) + " |",
        "|---" + "|---:" * (len(columns) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in content["rows"]),
    ]


def _source(path: Path, content: dict[str, Any]) -> str:
    machine = content["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if k != "numpy")
    return (
        f"`{content['command']}`, [{path.name}](results/{path.name}); {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['device']}; {versions}; {machine['date']}."
    )
