"""Damages of a run's files: how many it survives, how many it refuses."""

import argparse
import ast
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import records, tables

_TESTS = Path(__file__).parents[2] / "tests" / "app" / "test_attack.py"


def main(argv: Sequence[str]) -> int:
    """Runs the tests that damage, which fail if a state is wrong, and writes what they counted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks attack", description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="replace what is counted already")
    parser.add_argument("--out", type=Path, default=records.RESULTS, help="where results go")
    args = parser.parse_args(argv)
    path = args.out / "robustness" / "attack.json"
    records.check_free(path, args.fresh)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-m", "attack", "-p", "no:cacheprovider", f"--junitxml={report}"]
        status = subprocess.run([sys.executable, "-m", "pytest", *options, _TESTS]).returncode
        if status:
            return status
        root = xml.etree.ElementTree.parse(report).getroot()
    counted = [ast.literal_eval(found.get("value", "")) for found in root.iterfind(".//property")]
    records.save(path, tabulated(counted), records.command_of(["attack"]))
    return 0


def tabulated(counted: Iterable[Mapping[str, Any]]) -> tables.Table:
    """The figures by kind of run and damage."""
    counted = sorted(counted, key=lambda row: row["run"], reverse=True)  # stopped, finished
    total = {name: sum(row[name] for row in counted) for name in ("resumed", "refused")}
    rows = [
        [row["run"], row["damage"], str(row["resumed"] + row["refused"]), *_figures(row)]
        for row in (*counted, {"run": "all", "damage": "", **total})
    ]
    columns = ["run", "damage", "tried", "as undamaged", "refused or left out", "wrong state"]
    return tables.Table("Damages of a run's files", columns, rows, counted)


def _figures(row: Mapping[str, Any]) -> list[str]:
    return [str(row["resumed"]), str(row["refused"]), "0"]  # a wrong state fails the tests


def parts(results: Path, page: Path) -> dict[str, str]:
    """The marked part of docs/promises.md."""
    path = results / "robustness" / "attack.json"
    record = records.read(path)
    if not record:
        return {"attack": "Not counted yet."}
    table = tables.markdown(record["columns"], record["rows"], words=("damage",))
    return {"attack": f"{table}\n\n{tables.source(record, path, page)}"}
