"""JSON files that a crash leaves readable, and that say what JSON can."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from reptile_jax.app.json_files import (
    append_json_line,
    read_json,
    read_json_lines,
    write_json,
    write_json_lines,
)
from tests.test_checkpoint import files_of_at_most


def test_lines_that_are_broken_are_left_out_wherever_they_were_cut(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert read_json_lines(file) == []
    lines = ['{"step": 1, "note": "é"}\n'.encode(), '{"step": 2, "note": "θ"}'.encode()]
    first, second = {"step": 1, "note": "é"}, {"step": 2, "note": "θ"}
    for kept in range(len(lines[1]) + 1):
        file.write_bytes(lines[0] + lines[1][:kept])
        whole_line = kept == len(lines[1])
        assert read_json_lines(file) == [first, second][: 1 + whole_line]
    for broken in (b"\0" * 9, b"[1]", b"3", b"{", b"\xff", b"[" * 9999):
        file.write_bytes(broken + b"\n" + lines[1])
        assert read_json_lines(file) == [second]
    write_json_lines(file, [first, second])
    assert read_json_lines(file) == [first, second]


@pytest.mark.attack
def test_a_checked_file_is_as_it_was_written_or_is_named(tmp_path):
    file = tmp_path / "config.json"
    value = {"rate": 0.1, "sizes": (3, 4), "name": "é", "none": None, "far": float("inf")}
    write_json(file, value, is_checked=True)
    assert read_json(file) == {**value, "sizes": [3, 4], "far": None}
    text = file.read_text()
    for old, new in (("0.1", "0.2"), ('"rate"', '"bate"'), ("[", "[1,"), ("null", "0")):
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(
            ValueError, match=r"config\.json is damaged: it is not as it was writte"
        ):
            read_json(file)


@pytest.mark.attack
@pytest.mark.parametrize("kind", [Path.mkdir, os.mkfifo], ids=lambda kind: kind.__name__)
def test_what_is_no_regular_file_is_named_and_not_waited_for(kind, tmp_path):
    file = tmp_path / "x.json"
    kind(file)
    for use in (read_json, read_json_lines, lambda path: append_json_line(path, {"a": 1})):
        with pytest.raises(OSError, match=r"no regular file|a folder, in the pl") as info:
            use(file)
        assert info.value.filename == str(file)


def test_a_json_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "results.json"
    write_json(file, {"a": 1})
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        write_json(file, {"a": "b" * 1000})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_json_has_no_nan(tmp_path):
    append_json_line(tmp_path / "x", {"a": float("nan"), "b": [np.float32("inf"), 1]})
    assert json.loads((tmp_path / "x").read_text()) == {"a": None, "b": [None, 1]}
