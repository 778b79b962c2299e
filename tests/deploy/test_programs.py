"""Exported models: equal to the library without it, of any size, and clear about what is broken."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

import reptile_jax as rj
from reptile_jax.deploy import programs

GUIDE = Path(__file__).parents[2] / "docs/guides/deploy.md"
LOADER = re.search(r"```python\n(# without reptile_jax\n.*?)```", GUIDE.read_text(), re.DOTALL)[1]


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return rj.export(model, tmp_path_factory.mktemp("exported") / "model")


def answers_without_the_library(folder, *tasks):
    """What the guide's loader answers in a process that cannot import reptile_jax."""
    flat = [array for task in tasks for array in task]
    np.savez(folder / "tasks.npz", *flat)
    code = f"""
import sys
sys.modules["reptile_jax"] = None
try:
    import reptile_jax
except ImportError:
    print("there is none")
import numpy
given = [*numpy.load("tasks.npz").values()]
found = []
for at in range(0, len(given), 3):
    support, labels, query = given[at : at + 3]
    {"    ".join(LOADER.splitlines(keepends=True))}
    found.append(probabilities)
numpy.savez("answers.npz", *found)
"""
    script = folder / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", script.name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["there is none"]
    return [*np.load(folder / "answers.npz").values()]


def as_numbers(support, labels, query):
    return np.float32(support) / 255, np.int32(labels), np.float32(query) / 255


def test_one_program_without_the_library_answers_as_predict(model, exported, task):
    support, _, query = task
    other = support[:3], np.array([1, 0, 2]), query[:2]
    answers = answers_without_the_library(exported.parent, as_numbers(*task), as_numbers(*other))
    for found, given in zip(answers, (task, other), strict=True):
        np.testing.assert_allclose(found, model.predict(*given), atol=1e-5)


def test_a_program_is_for_all_platforms_and_says_what_it_is(model, exported):
    program = jax.export.deserialize(bytearray(exported.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    facts = json.loads(Path(f"{exported}.json").read_text())
    assert facts["platforms"] == ["cpu", "cuda", "tpu"]
    assert facts["jax"] == jax.__version__
    assert "six months" in facts["expires"]
    assert facts["arguments"] == {
        "support": "float32[support, 4, 4, 1]",
        "targets": "int32[support]",
        "query": "float32[queries, 4, 4, 1]",
    }
    assert facts["ways"] == 3
    assert facts["card"] == {"name": "small"}
    arrays = safetensors.numpy.load_file(f"{exported}.safetensors")
    kernel = model.params["params"]["Conv_0"]["kernel"]
    np.testing.assert_array_equal(arrays["params/params/Conv_0/kernel"], kernel)
    assert len(arrays) == len(jax.tree.leaves(model.params))


def test_what_cannot_be_answered_is_nan(exported, task):
    support, labels, query = as_numbers(*task)
    answer = rj.deploy.load(exported)
    assert np.isfinite(answer(support, labels, query)).all()
    for odd in ([0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 0, 1], [-1, 0, 1, 2, 0, 1]):
        assert np.isnan(answer(support, np.int32(odd), query)).all()


def test_transductive_programs_and_fixed_sizes(model, task, tmp_path):
    support, labels, query = task
    small = dataclasses.replace(model, inner_steps=2)
    path = rj.export(small, tmp_path / "fixed", transductive=True, shots=2, queries=5)
    answer = rj.deploy.load(path)
    labels = np.array([0, 0, 1, 1, 2, 2])
    expected = small.predict(support, labels, query, transductive=True)
    np.testing.assert_allclose(answer(*as_numbers(support, labels, query)), expected, atol=1e-5)
    with pytest.raises(ValueError, match="Shape mismatch"):
        answer(*as_numbers(support[:3], labels[::2], query))


def test_a_start_from_prototypes_of_any_number_of_images(from_prototypes, task, tmp_path):
    answer = rj.deploy.load(rj.export(from_prototypes, tmp_path / "prototypes"))
    support, _, query = task
    for given in (task, (support[:3], np.array([1, 0, 2]), query[:2])):
        expected = from_prototypes.predict(*given)
        np.testing.assert_allclose(answer(*as_numbers(*given)), expected, atol=1e-5)
    assert np.isnan(answer(*as_numbers(support, [0, 1, 0, 1, 0, 1], query))).all()


def test_a_curve(curve, tmp_path):
    answer = rj.deploy.load(rj.export(curve, tmp_path / "curve"))
    x = np.linspace(-1, 1, 7, dtype=np.float32)[:, None]
    np.testing.assert_allclose(answer(x, 3 * x, x), curve.predict(x, 3 * x, x), atol=1e-5)


def test_nothing_is_overwritten(model, exported):
    before = exported.read_bytes()
    with pytest.raises(FileExistsError, match="model exists, and no export is overwritten"):
        rj.export(model, exported)
    (exported.parent / "other.safetensors").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"other\.safetensors exists"):
        rj.export(model, exported.parent / "other")
    assert exported.read_bytes() == before


def test_a_full_disk_leaves_nothing_and_another_export_stays(tmp_path, monkeypatch):
    first, second = tmp_path / "a", tmp_path / "b"
    second.write_text("of somebody else, meanwhile")
    with pytest.raises(FileExistsError):
        programs._write_new({first: b"1", second: b"2"})
    assert not first.exists()
    assert second.read_text() == "of somebody else, meanwhile"

    monkeypatch.setattr(Path, "open", lambda path, mode: _Full(path, mode))
    with pytest.raises(OSError, match=r"No space left on device: .*a"):
        programs._write_new({first: b"1"})
    assert not first.exists()


class _Full:
    """A new file on a full disk."""

    def __init__(self, path, mode):
        self.file = open(path, mode)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        raise OSError(28, "No space left on device")


@pytest.mark.attack
def test_only_regular_files_are_loaded(tmp_path):
    os.mkfifo(tmp_path / "model")
    with pytest.raises(OSError, match=r"model is a named pipe"):
        rj.deploy.load(tmp_path / "model")
    (tmp_path / "whole").write_bytes(b"x")
    (tmp_path / "whole.json").write_bytes(b"[" * 200_000)
    with pytest.raises(ValueError, match=r"whole is damaged: the JSON beside it"):
        rj.deploy.load(tmp_path / "whole")


@pytest.mark.parametrize("size", [len, lambda x: x.shape[0]])
def test_a_model_that_needs_to_know_its_sizes_says_so(curve, tmp_path, size):
    odd = dataclasses.replace(curve, apply=lambda p, x: x @ p["slope"] if size(x) > 3 else x)
    with pytest.raises(ValueError, match="for any number of examples: give shots and queries"):
        rj.export(odd, tmp_path / "odd")
    assert not [*tmp_path.iterdir()]
    rj.export(odd, tmp_path / "odd", shots=5, queries=4)


def test_what_is_damaged_or_expired_is_named(curve, tmp_path, monkeypatch):
    path = rj.export(curve, tmp_path / "curve")
    content, beside = path.read_bytes(), Path(f"{path}.json")
    facts = beside.read_text()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="curve is damaged: its checksum is not that in the JSON"):
        rj.deploy.load(path)
    path.write_bytes(content)
    for damage in ("{", "{}", "[]"):
        beside.write_text(damage)
        with pytest.raises(ValueError, match="damaged: the JSON beside it cannot be read"):
            rj.deploy.load(path)
    beside.write_text(facts.replace(jax.__version__, "0.4.30"))
    rj.deploy.load(path)  # as long as this JAX reads it

    def refuse(content):
        raise ValueError("expired\nmore")

    monkeypatch.setattr(programs.jax_export, "deserialize", refuse)
    message = r"is of JAX 0\.4\.30, and JAX .* cannot read it: export the model again.* \(expired\)"
    with pytest.raises(ValueError, match=message):
        rj.deploy.load(path)
    beside.unlink()
    with pytest.raises(FileNotFoundError):
        rj.deploy.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["omniglot-5way", "omniglot-paper", "sine-waves"])
def test_pretrained_models_without_the_library(name, tmp_path):
    model = rj.pretrained(name)
    rng = np.random.default_rng(0)
    if model.ways is None:
        x = rng.uniform(-5, 5, (10, 1)).astype(np.float32)
        task = x, np.sin(x), x
    else:
        images = rng.random((8, 28, 28, 1)).astype(np.float32)
        task = images[:6], np.int32([0, 1, 2, 3, 4, 1]), images[6:]
    rj.export(model, tmp_path / "model")
    (found,) = answers_without_the_library(tmp_path, task)
    np.testing.assert_allclose(found, model.predict(*task), atol=1e-4)
