"""JSON files that a crash leaves readable, and that say what JSON can."""

import json

import numpy as np
import pytest

from reptile_jax.app.json_files import append_json_line, keep_json_lines, write_json
from tests.test_checkpoint import files_of_at_most


def test_a_broken_last_line_is_dropped_wherever_it_was_cut(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "note": "é"}\n'.encode(), '{"step": 2, "note": "θ"}'.encode()]
    for kept in range(len(lines[1]) + 1):
        file.write_bytes(lines[0] + lines[1][:kept])
        keep_json_lines(file, lambda row: row["step"] < 5)
        whole_line = kept == len(lines[1])
        assert file.read_bytes() == lines[0] + (lines[1] + b"\n" if whole_line else b"")


def test_a_broken_line_in_between_is_named_and_nothing_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*metrics.jsonl is not JSON"):
        keep_json_lines(file, lambda row: True)
    assert len(file.read_text().splitlines()) == 3
    for line in ('{"loss": 2}', '{"step": "2"}'):
        file.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
        with pytest.raises(ValueError, match=r"line 2 of .*metrics.jsonl is of no run"):
            keep_json_lines(file, lambda row: row["step"] <= 2)
        assert len(file.read_text().splitlines()) == 3


def test_a_json_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "results.json"
    write_json(file, {"a": 1})
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        write_json(file, {"a": "b" * 1000})
    assert json.loads(file.read_text()) == {"a": 1}


def test_json_has_no_nan(tmp_path):
    append_json_line(tmp_path / "x", {"a": float("nan"), "b": [np.float32("inf"), 1]})
    assert json.loads((tmp_path / "x").read_text()) == {"a": None, "b": [None, 1]}
