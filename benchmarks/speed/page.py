"""The parts of docs/results/speed.md and estimates.md, from the records of speed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import plots, records, tables
from benchmarks.timing import paired_ratio

NOT_YET = "Not measured yet."


def draw(results: Path) -> None:
    """Draws the picture of every record that has one."""
    for name, figure in plots.FIGURES.items():
        path = results / "speed" / f"{name}.json"
        if path.exists():
            figure(records.read(path), path.with_suffix(".png"))


def parts(results: Path, page: Path) -> dict[str, str]:
    """Each table with its picture, command and record, by the record's name; and the aims."""
    found = _records(results)
    gpu = [_part(path, page, heading=True) for name, path in found.items() if _on_gpu(name)]
    measured = (name for name in found if not _on_gpu(name) and not _is_estimate(name))
    parts = {name: _part(found[name], page) for name in measured}
    parts["gpu"] = "\n\n".join(gpu) or NOT_YET
    parts["aims"] = _aims({name: records.read(path)["data"] for name, path in found.items()})
    return parts


def estimates(results: Path, page: Path) -> dict[str, str]:
    """The compilers' tables in one part, and their aims."""
    found = {name: path for name, path in _records(results).items() if _is_estimate(name)}
    written = "\n\n".join(_estimates(path, page) for path in found.values())
    read = {name: records.read(path)["data"] for name, path in found.items()}
    return {"compile": written or NOT_YET, "bars": _bars(read)}


def _records(results: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((results / "speed").glob("*.json"))}


def _on_gpu(name: str) -> bool:
    return name.startswith("gpu_")


def _is_estimate(name: str) -> bool:
    return name.startswith("compile_")


_WORDS = ("of", "convolution", "collectives")
# A line of code at the record's commit: the code has moved since.
_STALE = "costliest line"


def _estimates(path: Path, page: Path) -> str:
    """A compiler's table, which says at its head and at its end that it is no measurement."""
    record = records.read(path)
    versions = ", ".join(
        f"{name} {version}" for name, version in record["machine"]["versions"].items()
    )
    kept = [i for i, name in enumerate(record["columns"]) if name != _STALE]
    columns, *rows = ([row[i] for i in kept] for row in (record["columns"], *record["rows"]))
    table = tables.markdown(columns, rows, _WORDS)
    link = tables.link(path.name, path, page)
    source = f"Estimates, not measurements: `{record['command']}`, {link}; {versions}."
    return f"## {record['title']}\n\n{table}\n\n{source}"


def _part(path: Path, page: Path, *, heading: bool = False) -> str:
    record = records.read(path)
    pieces = [
        f"### {record['title']}" if heading else "",
        tables.picture(record["title"], path.with_suffix(".png"), page),
        tables.markdown(record["columns"], record["rows"]),
        tables.source(record, path, page),
    ]
    return "\n\n".join(piece for piece in pieces if piece)


def _times(arm: str, base: str, measured: Mapping[str, Any]) -> float:
    return paired_ratio(measured[arm], measured[base])


_OURS, _TWO = "reptile_jax", "reptile_jax, two devices"
_EAGER, _OBVIOUS, _BARE = "PyTorch eager", "JAX, vmap(scan(conv))", "bare matrix products"


def _cell(value: float, good: bool, form: str = "{:.1f}") -> str:
    """A figure, in bold if it misses its aim."""
    text = form.format(value)
    return text if good else f"**{text}**"


def _fastest_torch(measured: Mapping[str, Any], base: str) -> float:
    return min(_times(arm, base, measured) for arm in measured if arm.startswith("PyTorch"))


def _aims(read: Mapping[str, Any]) -> str:
    """The aims on two cores, and what the records say of them."""
    if not {"peers", "meta_batches", "evaluation", "sampling", "large_model"} <= read.keys():
        return NOT_YET
    o15, wave = read["peers"]["o15"], read["peers"]["sinusoid"]
    both = lambda arm: [_times(arm, base, o15) for base in (_OURS, _TWO)]
    best = [_fastest_torch(o15, base) for base in (_OURS, _TWO)]
    # On two devices the products are divided between them as well.
    products = [_times(_BARE, _OURS, o15), _times(f"{_BARE}, two devices", _TWO, o15)]
    rows = []
    for what, aim, ratios, least, form in (
        ("a meta step of o15 against PyTorch eager", "2.5 times", both(_EAGER), 2.5, "{:.1f}"),
        ("... against PyTorch at its best", "2.5 times", best, 2.5, "{:.1f}"),
        ("... against the obvious JAX", "12 times", both(_OBVIOUS), 12, "{:.1f}"),
        ("... of the speed of its bare matrix products", "65%", products, 0.65, "{:.0%}"),
    ):
        cells = (_cell(ratio, ratio >= least, form) for ratio in ratios)
        rows.append([what, aim, "{} ({})".format(*cells)])
    share = 1 / _times("ours", "bare", read["meta_batches"]["m15 x 1"])
    what = "a meta step of m15, of the speed of its bare matrix products"
    rows.append([what, "55%", _cell(share, share >= 0.55, "{:.0%}")])
    ratio = _times(_EAGER, _OURS, wave)
    what = "a meta step of sine waves against PyTorch eager"
    rows.append([what, "40 times", _cell(ratio, ratio >= 40, "{:.0f}")])
    ratio = _times("evaluation", "training", read["evaluation"])
    what = "an evaluation against training on as many images"
    rows.append([what, "at most 1.3 times", _cell(ratio, ratio <= 1.3, "{:.3f}")])
    shares = [_times("draw", "meta step", read["sampling"][n]) for n in ("o15", "sinusoid")]
    forms = zip(shares, ("{:.1%}", "{:.0%}"), strict=True)
    cell = ", ".join(_cell(share, share < 0.05, form) for share, form in forms)
    rows.append(["drawing tasks, of a meta step of o15, and of sine waves", "under 5%", cell])
    largest = read["large_model"][-1]
    multiple = largest["bytes"] / (4 * largest["parameters"])
    what = "a large model's peak memory, in sizes of its parameters"
    rows.append([what, "at most 6", _cell(multiple, multiple <= 6)])
    return tables.markdown(["", "aim", "measured"], rows)


def _bars(read: Mapping[str, Any]) -> str:
    """The compilers' estimates of a meta step, beside the CPU's formulation and the bars."""
    now = {case: found for data in read.values() for case, found in data.items()}
    if "compile_chunks" not in read:
        return NOT_YET
    rows = []
    for chip, what, field, bar, form in (
        ("v5e", "cycles", "cost", 32_000, "{:,.0f}"),
        ("v6e", "cycles", "cost", 24_500, "{:,.0f}"),
        ("h100", "kernels", "kernels", 60, "{:,.0f}"),
        ("h100", "µs", "cost", None, "{:.2f}"),
    ):
        before, after = (
            now[f"o15-step, 1 x {chip}{how}"][field] for how in (", cpu, 64 at once", "")
        )
        aim = f"at most {bar:,}" if bar else "at most 0.8 times"
        good = after <= (bar or 0.8 * before)
        text = _cell(after, good, form)
        rows.append(
            [
                f"o15 on {chip}, {what}",
                form.format(before),
                text if bar else f"{text} ({after / before:.2f})",
                aim,
            ]
        )
    for network in ("o120", "m15"):
        lax = [
            found["cost"]
            for case, found in now.items()
            if case.startswith(f"{network}-step, 1 x v5e, lax")
        ]
        ours = now[f"{network}-step, 1 x v5e"]["cost"]
        rows.append(
            [
                f"{network} on v5e, cycles, against `lax` at its best",
                f"{min(lax):,.0f}",
                f"{_cell(ours, ours <= min(lax), '{:,.0f}')} ({ours / min(lax):.2f})",
                "at most 1.0 times",
            ]
        )
    columns = ["a meta step of 64 tasks, for a task and an inner step", "before", "now", "aim"]
    return tables.markdown(columns, rows)
