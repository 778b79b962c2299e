"""The front door: every command is listed with its time, and every one exists."""

import ast
import importlib.util
import json
import subprocess
import sys

import pytest

from benchmarks import __main__ as front_door
from benchmarks import commands, tables


def test_without_a_name_all_commands_are_listed_with_their_times(capsys):
    assert front_door.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in commands.COMMANDS.items():
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert command.time in line
        assert command.question in line
    assert [line[:-1] for line in lines if line.endswith(":")] == [*commands.ROOMS]


def test_the_listing_imports_nothing_heavy():
    code = "import sys; from benchmarks.__main__ import main; main([]); print('jax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("command", commands.COMMANDS.values(), ids=commands.COMMANDS)
def test_every_command_has_a_function(command):
    """Found in the source, since some modules need what may not be installed."""
    module, _, name = command.function.partition(":")
    with open(importlib.util.find_spec(module).origin) as file:
        tree = ast.parse(file.read())
    (function,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    (argument,) = function.args.args
    assert argument.arg == ("quick" if command.table else "argv")


def test_a_command_that_does_not_exist_is_named(capsys):
    assert front_door.main(["nothing"]) == 2
    assert "no command 'nothing': `python -m benchmarks` lists them" in capsys.readouterr().err
    assert front_door.main(["paper", "o16"]) == 2
    assert "no command 'paper o16': there are paper sinusoid," in capsys.readouterr().err


def test_names_may_have_two_words():
    assert commands.find(["paper", "o15", "--seed", "1"]) == "paper o15"
    assert commands.find(["peers", "--quick"]) == "peers"
    assert commands.find(["paper"]) is None


def test_quick_results_are_kept_apart_and_results_are_not_replaced(tmp_path, capsys, monkeypatch):
    def script(quick: bool = False):
        return tables.Table("Speed", ["what", "ms"], [["a", "quick" if quick else "1.0"]], {})

    monkeypatch.setattr(front_door, "load", lambda function: script)
    run = lambda *more: front_door.main(["pooling", "--out", str(tmp_path), *more])
    assert run() == 0
    assert run("--quick") == run("--quick") == 0
    content = lambda *parts: json.loads(tmp_path.joinpath(*parts, "speed/pooling.json").read_text())
    assert content()["rows"] == [["a", "1.0"]]
    assert content()["command"] == "python -m benchmarks pooling"
    assert content("quick")["rows"] == [["a", "quick"]]
    with pytest.raises(SystemExit, match="has this measurement already"):
        run()
    assert run("--fresh") == 0
