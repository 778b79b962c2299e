"""The parts of docs/results/speed.md, from the records of speed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import plots, records, tables
from benchmarks.timing import paired_ratio

NOT_YET = "Not measured yet."
_MACHINES = {"Intel Xeon, AVX-512": "peers", "AMD EPYC, AVX2, earlier code": "peers_avx2"}


def draw(results: Path) -> None:
    """Draws the picture of every record that has one."""
    for name, figure in plots.FIGURES.items():
        path = results / "speed" / f"{name}.json"
        if path.exists():
            figure(records.read(path), path.with_suffix(".png"))


def parts(results: Path, page: Path) -> dict[str, str]:
    """Each table with its picture, command and record, by the record's name; and summaries."""
    found = {path.stem: path for path in sorted((results / "speed").glob("*.json"))}
    gpu = [_part(path, page, heading=True) for name, path in found.items() if _on_gpu(name)]
    estimated = [_estimates(path, page) for name, path in found.items() if _is_estimate(name)]
    measured = (name for name in found if not _on_gpu(name) and not _is_estimate(name))
    parts = {name: _part(found[name], page) for name in measured}
    parts["gpu"] = "\n\n".join(gpu) or NOT_YET
    parts["compile"] = "\n\n".join(estimated) or NOT_YET
    read = {name: records.read(path)["data"] for name, path in found.items()}
    parts["aims"] = _aims(read)
    parts["against others"] = _against_others(read)
    return parts


def _on_gpu(name: str) -> bool:
    return name.startswith("gpu_")


def _is_estimate(name: str) -> bool:
    return name.startswith("compile_")


_WORDS = ("of", "convolution", "collectives", "costliest line")


def _estimates(path: Path, page: Path) -> str:
    """A compiler's table, which says at its head and at its end that it is no measurement."""
    record = records.read(path)
    versions = ", ".join(
        f"{name} {version}" for name, version in record["machine"]["versions"].items()
    )
    table = tables.markdown(record["columns"], record["rows"], _WORDS)
    link = tables.link(path.name, path, page)
    source = f"Estimates, not measurements: `{record['command']}`, {link}; {versions}."
    return f"### {record['title']}\n\n{table}\n\n{source}"


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


def _aims(read: Mapping[str, Any]) -> str:
    """The aims on two cores, and what the records say of them."""
    rows = [
        ["o15 meta step against PyTorch eager", "2.5 times"],
        ["... against the obvious JAX", "12 times"],
        ["... of the speed of its bare matrix products", "50%, better 70%"],
        ["sine-wave meta step against PyTorch eager", "40 times"],
    ]
    for name in _MACHINES.values():
        if name not in read:
            return NOT_YET
        o15, wave = read[name]["o15"], read[name]["sinusoid"]
        for row, arm, least, form in (
            (rows[0], _EAGER, 2.5, "{:.1f}"),
            (rows[1], _OBVIOUS, 12, "{:.1f}"),
            (rows[2], _BARE, 0.5, "{:.0%}"),
        ):
            one, two = (_times(arm, base, o15) for base in (_OURS, _TWO))
            row.append(f"{_cell(one, one >= least, form)} ({_cell(two, two >= least, form)})")
        ratio = _times(_EAGER, _OURS, wave)
        rows[3].append(_cell(ratio, ratio >= 40, "{:.0f}"))
    if "evaluation" in read:
        ratio = _times("evaluation", "training", read["evaluation"])
        cell = _cell(ratio, ratio <= 1.3, "{:.3f}")
        rows.append(
            ["an evaluation against training on as many images", "at most 1.3 times", cell, ""]
        )
    if "sampling" in read:
        shares = [_times("draw", "meta step", read["sampling"][n]) for n in ("o15", "sinusoid")]
        forms = zip(shares, ("{:.1%}", "{:.0%}"), strict=True)
        cells = ", ".join(_cell(share, share < 0.05, form) for share, form in forms)
        what = "drawing tasks, of a meta step of o15, and of sine waves"
        rows.append([what, "under 5%", cells, ""])
    if "large_model" in read:
        largest = read["large_model"][-1]
        multiple = largest["bytes"] / (4 * largest["parameters"])
        what = "a large model's peak memory, in sizes of its parameters"
        rows.append([what, "at most 6", "", _cell(multiple, multiple <= 6)])
    return tables.markdown(["", "aim", *_MACHINES], rows)


def _against_others(read: Mapping[str, Any]) -> str:
    """A meta step of o15 against the same step in other hands, on one device and on two."""
    rows = [
        ["faster than eager PyTorch"],
        ["faster than `vmap(scan(conv))` in JAX"],
        ["of the speed of its bare matrix products, on one device"],
        ["the same, with the products divided over two devices as well"],
    ]
    for name in _MACHINES.values():
        if name not in read:
            return NOT_YET
        o15 = read[name]["o15"]
        for row, arm, form in zip(
            rows,
            (_EAGER, _OBVIOUS, _BARE),
            ("{:.1f} times", "{:.1f} times", "{:.0%}"),
            strict=False,
        ):
            row += [form.format(_times(arm, base, o15)) for base in (_OURS, _TWO)]
        rows[3] += ["", f"{_times(f'{_BARE}, two devices', _TWO, o15):.0%}"]
    columns = ["Intel Xeon (AVX-512)", "`--devices 2`", "AMD EPYC (AVX2)", "`--devices 2` "]
    return tables.markdown(["Omniglot 5-way, five inner steps of ten images", *columns], rows)
