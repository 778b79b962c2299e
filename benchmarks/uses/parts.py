"""What the parts of the benchmark of equations share: their records and tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import records, tables


def over_seeds(values: Sequence[Sequence[float]]) -> list[str]:
    """The mean over seeds, and the lowest and highest, at each number of steps."""
    return [f"{np.mean(at):.4f} ({min(at):.4f}-{max(at):.4f})" for at in zip(*values, strict=True)]


def about(title: str, words: Sequence[str]) -> dict[str, str]:
    return {"title": title, "command": records.command_of(["equations", *words])}


def write(path: Path, about: Mapping[str, str], columns: Sequence[str], rows: Any) -> None:
    """Writes the table into its record, and shows it."""
    machine = records.machine()
    records.update(path, {**about, "machine": machine, "columns": columns, "rows": rows})
    tables.show(tables.Table(about["title"], columns, rows))
