"""The example of languages: how lists are read, what a task is, and the line that is a mesh."""

import os
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import languages

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples/languages.py"
MISSING = [name for name in languages.LISTS.values() if not (languages.FOLDER / name).exists()]
needs_lists = pytest.mark.skipif(
    bool(MISSING) and not os.environ.get("CI"), reason=f"no word lists: {MISSING}"
)


@pytest.fixture
def relaxed():
    """Flax and Optax promote dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def words(number=300, lists=2):
    """Made-up words: language i has its own letters."""
    rng = np.random.default_rng(0)
    rows = np.zeros((lists, number, languages.LENGTH), np.uint8)
    for language in range(lists):
        letters = rng.integers(1 + 10 * language, 11 + 10 * language, (number, 8))
        rows[language, :, :8] = letters
    return jnp.array(rows)


def write(path, lines, encoding="utf-8"):
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def test_words_are_small_letters_and_nothing_else(tmp_path):
    lines = ["Haus", "haus", "dog's", "NATO", "A-aktie", "tAire", "x2", "i", "", " spaced ", "жук"]
    found = languages.read_words(write(tmp_path / "list", lines), 100)
    assert sorted(found) == ["haus", "spaced"]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_both_encodings_are_read(tmp_path, encoding):
    found = languages.read_words(write(tmp_path / "list", ["Ångström", "øl", "é"], encoding), 9)
    assert sorted(found) == ["ångström", "øl"]


def test_an_accent_that_is_a_character_of_its_own_is_joined_to_its_letter(tmp_path):
    (word,) = languages.read_words(write(tmp_path / "list", ["cafe\u0301"]), 9)
    assert word == "caf\u00e9"


def test_words_that_are_too_long_are_left_out_and_the_draw_is_the_same(tmp_path):
    lines = ["a" * length for length in range(1, 20)]
    path = write(tmp_path / "list", lines)
    assert {len(word) for word in languages.read_words(path, 100)} == set(range(2, 16))
    few = languages.read_words(path, 5)
    assert len(few) == 5
    assert few == languages.read_words(path, 5)


def test_codes_are_the_words_again():
    own = ["straße", "ab", "ł" * 15]
    codes = languages.encode(own)
    assert codes.shape == (3, languages.LENGTH)
    assert languages.decode(codes) == own
    assert len(set(languages.LETTERS)) == len(languages.LETTERS) < 255


def test_a_task_is_of_one_language_and_its_query_set_of_other_words():
    family = languages.Languages(words(), shots=50, steps=4, batch_size=25)
    task = jax.jit(family.sample)(jax.random.key(0))
    assert task.support.shape == (4, 25, languages.LENGTH)
    assert task.query.shape == (200, languages.LENGTH)
    known = {tuple(row) for row in np.asarray(task.support).reshape(-1, languages.LENGTH)}
    others = {tuple(row) for row in np.asarray(task.query)}
    assert len(known) == 50
    assert not known & others
    of = lambda rows: {int(max(row) > 10) for row in rows}
    assert len(of(known) | of(others)) == 1


def test_without_shots_a_task_has_as_many_words_as_it_draws():
    task = languages.Languages(words(), steps=4, batch_size=25).task(1, jax.random.key(0))
    rows = {tuple(row) for row in np.asarray(task.support).reshape(-1, languages.LENGTH)}
    assert len(rows) > 70
    assert all(max(row) > 10 for row in rows)


def test_the_model_sees_only_what_was_before(relaxed):
    params, graph = languages.network(0)
    own = words(4)[0]
    changed = own.at[:, 3].set(30)
    at = jax.jit(lambda rows: languages.nnx.merge(graph, params)(rows))
    seen, other = np.asarray(at(own)), np.asarray(at(changed))
    np.testing.assert_array_equal(seen[:, :4], other[:, :4])
    assert np.abs(seen[:, 4:] - other[:, 4:]).max() > 1e-4


def test_bits_are_of_the_characters_and_one_end(relaxed):
    params, graph = languages.network(0)
    flat = jax.tree.map(jnp.zeros_like, params)  # all characters equally likely
    bits = languages.bits_per_character(graph)
    np.testing.assert_allclose(bits(flat, words(4)[0]), np.log2(1 + len(languages.LETTERS)), 1e-6)
    # What is behind the end does not count: logits that favour 0 change 1 of 9 characters.
    flat["logits"]["bias"][...] = flat["logits"]["bias"][...].at[0].set(50.0)
    np.testing.assert_allclose(bits(flat, words(4)[0]), 8 / 9 * 50 / np.log(2), 1e-5)


def test_made_up_words_end_once(relaxed):
    params, graph = languages.network(0)
    rows = np.asarray(languages.spell(graph, params, jax.random.key(0), 50))
    for row in rows:
        assert not row[np.argmax(row == 0) :].any() or row.all()


@pytest.mark.slow
def test_on_a_mesh_one_line_is_different_and_the_run_the_same(monkeypatch, capsys, relaxed):
    own = {name: np.asarray(words(400, 5)[i]) for i, name in enumerate("AB")}
    own |= {name: np.asarray(words(400, 5)[4]) for name in ("German", "Irish", "Italian")}
    text = SCRIPT.read_text()
    line = "mesh=None,  # on many devices: rj.task_mesh()"
    assert text.count(line) == 1
    assert line in (ROOT / "docs/uses/languages.md").read_text()
    printed = []
    for mesh in (line, "mesh=rj.task_mesh(jax.devices()[:2]),"):
        script = {"__name__": "languages_of_a_test"}
        # The example's dataclasses look their module up.
        monkeypatch.setitem(sys.modules, script["__name__"], languages)
        exec(compile(text.replace(line, mesh), SCRIPT, "exec"), script)
        script["load"] = lambda: dict(own)
        script["main"](2)
        printed.append([float(x) for x in re.findall(r"\d+\.\d+", capsys.readouterr().out)])
    assert len(printed[0]) == 2 + 2 * 3
    np.testing.assert_allclose(*printed, atol=0.02)


@pytest.mark.slow
@needs_lists
def test_every_list_of_debian_has_ten_thousand_words():
    own = languages.load()
    assert {rows.shape for rows in own.values()} == {(10_000, languages.LENGTH)}
    assert all(len({row.tobytes() for row in rows}) == 10_000 for rows in own.values())


def test_ci_installs_the_packages_that_the_script_names():
    names = set(
        re.findall(
            r"\bw[a-z]+(?:-minimos)?\b", SCRIPT.read_text().split("as root:")[1].split("python")[0]
        )
    )
    ci = set(re.findall(r"\bw[a-z]+(?:-minimos)?\b", (ROOT / ".ci/run").read_text()))
    assert len(names) == 18
    assert names <= ci
