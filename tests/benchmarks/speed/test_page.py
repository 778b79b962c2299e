"""The page of speed: tables and pictures, and what misses its aim is bold."""

from benchmarks import records, tables
from benchmarks.speed import page


def test_each_record_has_its_table_picture_and_command(tmp_path):
    """Quick results are not read; a size that was left out of the measurement is no point."""
    times = lambda ms: {"median": ms, "ms": [ms]}
    cell = lambda ms: {"ours": times(ms), "bare": times(ms / 2)}
    data = {"o15 x 1": cell(1.0), "o15 x 4": cell(4.0), "o15 x 16": {"left out": 99}}
    for folder in (tmp_path, tmp_path / "quick"):
        table = tables.Table(f"In {folder.name}", ["what", "ms"], [["o15", "1.0"]], data)
        records.save(folder / "speed" / "meta_batches.json", table, "the command")
    page.draw(tmp_path)
    parts = page.parts(tmp_path, tmp_path / "docs" / "speed.md")
    assert [*parts] == ["meta_batches", "gpu", "aims"]
    estimates = page.estimates(tmp_path, tmp_path / "docs" / "estimates.md")
    assert {*parts.values(), *estimates.values()} == {parts["meta_batches"], "Not measured yet."}
    picture, table, source = parts["meta_batches"].split("\n\n")
    assert picture == f"![In {tmp_path.name}](../speed/meta_batches.png)"
    assert table == "| what | ms |\n|---|---:|\n| o15 | 1.0 |"
    assert "`the command`, [meta_batches.json](../speed/meta_batches.json)" in source
    assert 5_000 < (tmp_path / "speed" / "meta_batches.png").stat().st_size < 60_000
    assert not (tmp_path / "quick" / "speed" / "meta_batches.png").exists()


def test_gpu_tables_are_in_one_part(tmp_path):
    table = tables.Table("Limits (a GPU)", ["what", "rate"], [["copy", "1 GB/s"]], {})
    records.save(tmp_path / "speed" / "gpu_limits.json", table, "python -m benchmarks gpu limits")
    parts = page.parts(tmp_path, tmp_path / "speed.md")
    assert "gpu_limits" not in parts
    assert parts["gpu"].startswith("### Limits (a GPU)\n\n| what | rate |")


def test_estimates_are_in_one_part_and_say_what_they_are(tmp_path):
    columns = ["program", "collectives", "costliest line", "cycles"]
    row = ["o15-step", "none", "nn/layers.py:12", "12"]
    table = tables.Table("v5e: estimates", columns, [row], {})
    records.save(tmp_path / "speed" / "compile_v5e.json", table, "python -m benchmarks compile v5e")
    assert "compile_v5e" not in page.parts(tmp_path, tmp_path / "speed.md")
    parts = page.estimates(tmp_path, tmp_path / "estimates.md")
    assert [*parts] == ["compile", "bars"]
    heading, table, source = parts["compile"].split("\n\n")
    assert heading == "## v5e: estimates"
    assert table.splitlines()[1:] == ["|---|---|---:|", "| o15-step | none | 12 |"]
    assert source.startswith("Estimates, not measurements: `python -m benchmarks compile v5e`")


def test_what_misses_its_aim_is_bold():
    times = lambda ms: {"ms": [ms]}
    arms = {
        "reptile_jax": times(10.0),
        "reptile_jax, two devices": times(5.0),
        "PyTorch eager": times(20.0),
        "JAX, vmap(scan(conv))": times(130.0),
        "bare matrix products": times(6.0),
        "bare matrix products, two devices": times(4.0),
    }
    data = {
        "peers": {
            "o15": arms | {"PyTorch torch.compile": times(25.0)},
            "sinusoid": {"reptile_jax": times(1.0), "PyTorch eager": times(39.0)},
        },
        "meta_batches": {"m15 x 1": {"ours": times(2.0), "bare": times(1.0)}},
        "evaluation": {"evaluation": times(1.2), "training": times(1.0)},
        "sampling": {
            name: {"draw": times(1.0), "meta step": times(10.0)} for name in ("o15", "sinusoid")
        },
        "large_model": [{"bytes": 16, "parameters": 1}],
    }
    cells = [row.split(" | ")[-1] for row in page._aims(data).splitlines()[2:]]
    assert cells[:2] == ["**2.0** (4.0) |"] * 2
    assert cells[2:4] == ["13.0 (26.0) |", "**60%** (80%) |"]
    assert cells[4:] == ["**50%** |", "**39** |", "1.200 |", "**10.0%**, **10%** |", "4.0 |"]
