"""Turns the JSON under `results/` into the tables of `README.md`: none is typed by hand."""

import json
from pathlib import Path

from benchmarks import measure

_README = Path(__file__).parent / "README.md"
_START, _END = "<!-- tables -->", "<!-- end of tables -->"


def main(argv: list[str]) -> int:
    """Rewrites the part of the README between its two markers."""
    del argv
    parts = []
    for path in sorted(measure.RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        if "columns" not in content:
            continue
        machine = content["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if k != "numpy")
        parts += [
            f"### {content['title']}",
            "",
            f"`{content['command']}`, [{path.name}](results/{path.name}); {machine['cpu']}, "
            f"{machine['cores']} cores, {machine['device']}; {versions}; {machine['date']}.",
            "",
            "| " + " | ".join(content["columns"]) + " |",
            "|---" + "|---:" * (len(content["columns"]) - 1) + "|",
            *("| " + " | ".join(row) + " |" for row in content["rows"]),
            "",
        ]
    before, _, rest = _README.read_text().partition(_START)
    _, _, after = rest.partition(_END)
    _README.write_text(f"{before}{_START}\n\n" + "\n".join(parts) + f"{_END}{after}")
    return 0
