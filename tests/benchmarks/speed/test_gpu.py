"""The GPU suite runs on any device, measures only GPUs, and says what it left out."""

import json

import pytest

from benchmarks.speed import gpu, gpu_questions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("relaxed")]


def test_the_gpu_suite_runs_on_a_cpu_at_a_tiny_size(tmp_path, capsys):
    assert gpu.main(["limits", "--quick", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "quick" / "speed" / "gpu_limits.json").read_text())
    assert content["command"] == "python -m benchmarks gpu limits"
    assert content["machine"]["backend"] == "cpu"
    assert content["title"].endswith(f"({content['machine']['device']})")
    assert [row[:2] for row in content["rows"]][-1] == ["copy", ""]
    assert all("/s" in row[2] for row in content["rows"])


def test_the_gpu_suite_asks_on_a_device_what_is_asked_of_compilers(tmp_path):
    assert gpu.main(["chunks", "--quick", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "quick" / "speed" / "gpu_chunks.json").read_text())
    assert content["columns"][:3] == ["workload", "at once", "convolution"]
    labels = [row[:3] for row in content["rows"]]
    assert labels == [["sinusoid", "default", "default"], ["sinusoid", "2", "default"]]
    for row, found in zip(content["rows"], content["data"].values(), strict=True):
        assert float(row[3]) > 0
        assert float(row[4]) > 0
        assert found["kernels"] == int(row[6]) > 0


def test_the_gpu_suite_refuses_to_measure_a_cpu(tmp_path):
    with pytest.raises(SystemExit, match="no GPU here"):
        gpu.main(["limits", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_the_gpu_suite_says_what_no_time_was_left_for_and_what_failed(capsys, monkeypatch):
    def cells(quick):
        yield ["a"], lambda: (["1"], {})
        yield ["b"], lambda: 1 / 0

    question = gpu_questions.Question(cells, "", ("what",), ("figure",), 1.0)
    monkeypatch.setitem(gpu.QUESTIONS, "one", question)
    said = []
    for seconds in (60.0, -1.0):
        gpu.answer("one", seconds, True)
        lines = capsys.readouterr().out.splitlines()[1:]
        said.append([json.loads(line)["row"] for line in lines])
    assert said[0][0] == ["a", "1"]
    assert "ZeroDivisionError" in said[0][1][1]
    assert said[1] == [["a", "no time was left"], ["b", "no time was left"]]
