"""The tables of docs/uses, from the records of the uses."""

from pathlib import Path

from benchmarks import records, tables

PAGES = (
    "clients",
    "equations",
    "fields",
    "languages",
)  # by name; a page's records are those whose names begin with its own


def parts(results: Path, page: Path) -> dict[str, str]:
    """Every table with its record."""
    found = {}
    for path in sorted((results / "uses").glob(f"{page.stem}*.json")):
        record = records.read(path)
        table = tables.markdown(record["columns"], record["rows"])
        found[path.stem] = f"{table}\n\n{tables.source(record, path, page)}"
    return found
