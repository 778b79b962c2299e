"""What is printed: as it is, whole in terminals of any width."""

import fcntl
import functools
import itertools
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios

import jax
import pytest

from reptile_jax.app import cli, presets, runner, terminal
from reptile_jax.app.config import SinusoidConfig


def test_names_of_files_are_printed_as_they_are(capsys):
    terminal.table("a [b]", ["x", "y"], [["[/b]/[red]c.png", "1"]])
    printed = capsys.readouterr().out
    assert "[/b]/[red]c.png" in printed
    assert "a [b]" in printed


def test_words_between_colons_are_printed_as_they_are(capsys):
    terminal.say("runs/day:a:1")
    assert capsys.readouterr().out == "runs/day:a:1\n"


CONTROLS = "a\x1b[2J\x07b\r\nc\x9b1md\u202ee\u2028f\udcff"
HARMLESS = r"a\x1b[2J\x07b\r\nc\x9b1md\u202ee\u2028f\udcff"


@pytest.mark.attack
def test_control_characters_are_shown_and_do_nothing(capsys):
    terminal.say(CONTROLS)
    terminal.fail(CONTROLS)
    terminal.table(CONTROLS, ["name", CONTROLS], [[CONTROLS, "1"]])
    with terminal.Bar(CONTROLS, total=1, unit="steps") as bar:
        bar.update(1, CONTROLS)
    out, error = capsys.readouterr()
    assert error == f"reptile-jax: {HARMLESS}\n"
    lines = out.splitlines()
    assert lines[:2] == [HARMLESS, HARMLESS]
    assert sum(line.count(HARMLESS) for line in lines) == 6
    assert all(character.isprintable() for character in "".join(lines))


@pytest.mark.attack
@pytest.mark.parametrize("columns", [20, 200])
def test_a_progress_bar_shows_names_as_they_are(columns):
    code = f"""
from reptile_jax.app import terminal
with terminal.Bar("[b]" + {CONTROLS!r}, total=1, unit="steps") as bar:
    bar.update(1, {CONTROLS!r})
with terminal.Downloads() as show:
    show({CONTROLS!r}, 1, 2)
"""
    shown = "".join("".join(in_a_terminal(columns, "-c", code)).split())
    assert r"\x1b[2J\x07" in shown or columns < 60
    assert "\x1b" not in shown
    assert "\x07" not in shown


@pytest.mark.attack
@pytest.mark.parametrize("argv", [["evaluate", CONTROLS[:-1]], [CONTROLS[:-1]]])
def test_an_error_shows_a_name_as_it_is(argv, capsys):
    assert cli.main(argv) == 1
    error = capsys.readouterr().err
    assert r"\x1b[2J" in error
    assert error.count("\n") == 1
    assert error.rstrip("\n").isprintable()


@pytest.mark.parametrize("closed_before", ["start", "update", "thread", "stop"])
def test_a_bar_whose_terminal_is_closed_ends_nothing(closed_before):
    """Rich redraws it in a thread, which fails as well."""
    code = f"""
import os, pty, sys, time
from reptile_jax.app import terminal
ours, theirs = pty.openpty()
os.dup2(theirs, 1)
os.close(theirs)
def close_before(moment):
    if moment == {closed_before!r}:
        os.close(ours)
bar = terminal.Bar("training", 10, "steps")
close_before("start")
with bar:
    close_before("update")
    bar.update(1)
    close_before("thread")
    time.sleep(0.3)
    close_before("stop")
print("lost" if terminal.lost() else "not lost", file=sys.stderr)
"""
    env = {**os.environ, "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, env=env, text=True, check=True
    )
    *before, last = done.stderr.splitlines()
    assert last == "lost"
    assert before == ["reptile-jax: standard output: Input/output error; going on without it"]


def in_a_terminal(columns, *argv):
    """What a command shows in a terminal of that width, line by line, without its colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    env |= {"TERM": "xterm", "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    with subprocess.Popen(
        [sys.executable, *argv],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env,
    ) as process:
        os.close(theirs)
        shown = b""
        while chunk := read(ours):
            shown += chunk
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    return text.replace("\r\n", "\n").split("\n")


def read(descriptor):
    try:
        return os.read(descriptor, 2**16)
    except OSError:  # on Linux, what the end of a terminal is
        return b""


def words(lines):
    """What is shown, without the lines of tables and however it is broken into lines."""
    return " ".join(" ".join(lines).translate(dict.fromkeys(map(ord, "┃│"), " ")).split())


FIGURES = [[f"{row + step / 7:.3f} ± {step / 70:.3f}" for step in range(7)] for row in range(3)]
TABLES = {
    "curves": (
        "mean squared error ± 95% interval over 1,000 held-out tasks, 10 points given",
        ["inner steps", "0", "1", "2", "4", "8", "16", "32"],
        [
            [n, *row]
            for n, row in zip(["Reptile", "random", "joint training"], FIGURES, strict=True)
        ],
    ),
    "images": (
        "adapted to 2 classes of support",
        ["image", "class", "probability"],
        [[f"{'a long folder/' * 8}image-{i}.png", f"class{i}", f"0.{i}25"] for i in range(5)],
    ),
    "small": ("a [b]", ["x", "y"], [["[/b]/[red]c.png", "1"]]),
}


@functools.cache
def tables_in_a_terminal(columns):
    """The lines of each table, by name, in a terminal of that width."""
    code = f"""
from reptile_jax.app import terminal
for table in {list(TABLES.values())!r}:
    terminal.table(*table)
    print("end")
"""
    lines, tables = in_a_terminal(columns, "-c", code), {}
    for name in TABLES:
        end = lines.index("end")
        tables[name], lines = lines[:end], lines[end + 1 :]
    return tables


@pytest.mark.parametrize("columns", [20, 60, 80, 200])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_fits_its_terminal_and_loses_nothing(columns, name):
    title, header, rows = TABLES[name]
    lines = tables_in_a_terminal(columns)[name]
    assert max(map(len, lines)) <= columns
    shown = words(lines)
    without_breaks = "".join(shown.split())
    for text in (title, *header, *itertools.chain(*rows)):
        assert "".join(text.split()) in without_breaks
        if max(map(len, text.split())) < columns:  # no word is longer than a line
            assert text in shown


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_figure_is_not_broken_into_lines(columns):
    lines = tables_in_a_terminal(columns)["curves"]
    for figure in itertools.chain(*FIGURES):
        assert any(figure in line for line in lines)


def test_a_table_is_upright_turned_or_in_paragraphs():
    upright, turned, paragraphs = (tables_in_a_terminal(n)["curves"] for n in (200, 80, 60))
    of = lambda lines, start: next(line for line in lines if line.startswith(start))
    assert all(figure in of(upright, "│ random ") for figure in FIGURES[1])
    assert all(figures[4] in of(turned, "│ 8 ") for figures in FIGURES)
    assert "  0: 1.000 ± 0.000, 1: 1.143 ± 0.014, 2: 1.286 ± 0.029," in paragraphs


def test_without_a_terminal_a_table_has_the_width_that_it_takes(capsys):
    title, header, rows = TABLES["images"]
    terminal.table(title, header, rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == title
    for row in rows:
        assert any(all(text in line for text in row) for line in lines)


@pytest.fixture(scope="module")
def waves(tmp_path_factory):
    """The folder of a run on the sine waves, all trained."""
    folder = tmp_path_factory.mktemp("runs") / "waves"
    config = SinusoidConfig(meta_steps=4, eval_tasks=3)
    runner.train(config, out=folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_run_shows_its_table_whole_in_any_terminal(columns, waves, tmp_path):
    shutil.copytree(waves, tmp_path / "waves")
    lines = in_a_terminal(columns, "-m", "reptile_jax", "train", "--resume", "waves")
    results = json.loads((tmp_path / "waves" / "results-2.json").read_text())
    start = next(i for i, line in enumerate(lines) if "mean squared error ±" in line)
    end = next(i for i, line in enumerate(lines) if line.startswith("the score: "))
    table = lines[start:end]
    assert max(map(len, table)) <= columns
    shown = words(table)
    assert "over 3 held-out tasks, 10 points given, after 4 meta steps" in shown
    assert "inner steps" in shown
    for name, scores in results["scores"].items():
        assert name in shown
        curve = scores["error"]
        for step in (0, 1, 2, 4, 8, 16, 32):
            assert re.search(rf"\b{step}\b", shown)
            assert f"{curve['mean'][step]:.3f} ± {curve['ci95'][step]:.3f}" in shown
    assert "the run is in waves" in words(lines[end:])


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_presets_are_shown_whole_in_any_terminal(columns):
    lines = in_a_terminal(columns, "-m", "reptile_jax", "presets")
    end = next(i for i, line in enumerate(lines) if line.startswith("in all: "))
    assert max(map(len, lines[:end])) <= columns
    shown = words(lines[:end])
    for name, config in presets.PAPER.items():
        assert f" {name} " in shown
        for field in ("dataset", "ways", "shots", "inner_rate", "meta_steps", "transductive"):
            assert field.replace("_", " ") in shown
            assert str(getattr(config, field)) in shown
