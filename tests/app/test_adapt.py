"""Adapting to new classes: the answers, the mini-batches, and what is refused."""

import contextlib
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reptile_jax.app import adapt, cli, json_files, run_folder
from reptile_jax.deploy import adaptation


@pytest.fixture
def support(pictures, tmp_path):
    """The folder of a support set of two classes, three images each; `query` has the others."""
    for number in (1, 5):
        images = sorted((pictures / f"class{number}").iterdir())
        for part, chosen in (("support", images[:3]), ("query", images[3:])):
            folder = tmp_path / part / (f"bar{number}" if part == "support" else "")
            folder.mkdir(parents=True, exist_ok=True)
            for image in chosen:
                (folder / f"{number}-{image.name}").write_bytes(image.read_bytes())
    return tmp_path / "support"


@pytest.mark.parametrize("flags", [[], ["--transductive"]])
def test_adapt_names_the_class_of_each_image(trained, support, tmp_path, capsys, flags):
    argv = ["adapt", str(trained), "--support", "support", "--query", "query"]
    assert cli.main([*argv, *flags, "--json", "answers.json"]) == 0
    assert "adapted to 2 classes of support" in capsys.readouterr().out
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert len(answers) == 6
    for answer in answers:
        np.testing.assert_allclose(sum(answer["probabilities"].values()), 1, rtol=1e-5)
        assert answer["probability"] == max(answer["probabilities"].values())
    right = [f"/{answer['class'][-1]}-" in answer["image"] for answer in answers]
    assert sum(right) >= 5
    assert cli.main([*argv, "--json", "answers.json"]) == 1
    assert "answers.json exists" in capsys.readouterr().err
    assert cli.main([*argv, *flags, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == answers
    assert cli.main([*argv, *flags, "--eval-steps", "1", "--eval-batch", "4"]) == 0
    assert "1 mini-batches of 4 images show 4 of the 6 images" in capsys.readouterr().err
    assert cli.main([*argv, *flags, "--eval-steps", "1", "--eval-batch", "1"]) == 1
    assert "show no image of bar" in capsys.readouterr().err


def answers_of(capsys, *argv):
    assert cli.main([*map(str, argv), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def assert_alike(answers, expected):
    """The same but for rounding, which depends on how many images are computed at once."""
    assert [answer["image"] for answer in answers] == [answer["image"] for answer in expected]
    for answer, other in zip(answers, expected, strict=True):
        assert answer["class"] == other["class"]
        chances = [list(a["probabilities"].values()) for a in (answer, other)]
        np.testing.assert_allclose(*chances, atol=1e-5)


@pytest.mark.slow
def test_single_images_and_folders_are_classified_in_the_order_given(trained, support, capsys):
    argv = ["adapt", trained, "--support", support]
    one, other, *_, last = sorted(Path("query").iterdir())
    whole = answers_of(capsys, *argv, "--query", "query")
    for given, expected in (
        ([one], whole[:1]),
        ([last, one], [whole[-1], whole[0]]),
        ([other, "--query", "query"], [whole[1], *whole]),
    ):
        assert_alike(answers_of(capsys, *argv, "--query", *given), expected)
    assert adapt.adapt(trained, support, one) == adapt.adapt(trained, support, [one])
    assert cli.main([*map(str, argv), "--query", str(one)]) == 0
    assert f" {one} " in capsys.readouterr().out
    assert cli.main([*map(str, argv), "--query", "query"]) == 0
    assert f" {one.name} " in capsys.readouterr().out
    assert cli.main(list(map(str, argv))) == 1
    assert (
        "give images to classify with --query, or a folder with --save" in capsys.readouterr().err
    )
    assert cli.main([*map(str, argv), "--query", "none.png"]) == 1
    assert "there is no folder or image none.png" in capsys.readouterr().err


def test_files_that_are_left_out_are_counted(trained, support, tmp_path, capsys):
    (tmp_path / "query" / "photo.heic").write_bytes(b"")
    (support / "bar1" / "deeper").mkdir()
    shutil.copy(support / "bar1" / "1-0.png", support / "bar1" / "deeper" / "a.png")
    assert cli.main(["adapt", str(trained), "--support", "support", "--query", "query"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "reptile-jax: support: 1 file left out: 1 .png not directly in a class folder; such as "
        "bar1/deeper/a.png",
        "reptile-jax: query: 1 file left out: 1 .heic; such as photo.heic",
    ]


@pytest.mark.parametrize("flags", [[], ["--transductive"]])
def test_an_adapted_model_is_kept_and_gives_the_same_answers(
    trained, support, tmp_path, capsys, flags
):
    argv = ["adapt", trained, "--support", support, "--query", "query", *flags]
    adapted = answers_of(capsys, *argv, "--save", "model")
    shutil.rmtree(support)
    assert answers_of(capsys, "predict", "model", "--query", "query") == adapted
    other = [] if flags else ["--transductive", "True"]
    assert answers_of(capsys, "predict", "model", "--query", "query", *other)
    assert adapt.predict(tmp_path / "model", Path("query"), transductive=bool(flags)) == adapted
    if not flags:
        one = sorted(Path("query").iterdir())[2]
        assert_alike(adapt.predict(Path("model"), one), adapted[2:3])
    assert cli.main(["predict", "model", "--query", "query", "--json", "answers.json"]) == 0
    assert "2 classes of model" in capsys.readouterr().out
    assert json.loads(Path("answers.json").read_text()) == adapted


def test_a_model_is_adapted_only_to_be_kept_and_never_overwritten(trained, support, capsys):
    argv = ["adapt", str(trained), "--support", "support", "--save", "a/model"]
    assert cli.main(argv) == 0
    assert capsys.readouterr().out.endswith("the adapted model is in a/model\n")
    assert cli.main(["predict", "a/model", "--query", "query"]) == 0
    before = {path: path.read_bytes() for path in Path("a").rglob("*") if path.is_file()}
    assert cli.main([*argv, "--eval-steps", "3"]) == 1
    assert "a/model exists, and a model is never overwritten" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("a").rglob("*") if path.is_file()}


def test_what_others_put_there_meanwhile_stays(trained, support, monkeypatch):
    def busy(*given, read=adapt._read):
        Path("model").mkdir()
        Path("model/notes.txt").write_text("mine")
        return read(*given)

    monkeypatch.setattr(adapt, "_read", busy)
    with pytest.raises(FileExistsError, match="model exists"):
        adapt.adapt(trained, support, save=Path("model"))
    assert [path.name for path in Path("model").iterdir()] == ["notes.txt"]
    with contextlib.suppress(KeyError), run_folder.emptied_on_failure(Path("model")):
        Path("model/half").mkdir()
        raise KeyError
    assert [path.name for path in Path("model").iterdir()] == ["notes.txt"]


def test_what_is_no_adapted_model_is_refused(trained, support, capsys):
    assert cli.main(["predict", str(trained), "--query", "query"]) == 1
    assert "it has no adapted.json. Make one with reptile-jax adapt RUN" in capsys.readouterr().err
    adapt.adapt(trained, support, save=Path("model"))
    assert cli.main(["evaluate", "model", "--data", "query"]) == 1
    assert "model is not the folder of a run" in capsys.readouterr().err
    path = Path("model/adapted.json")
    fields = json_files.read_json(path)
    for damage in ("{", "[]", "{}", {**fields, "config": {"ways": 0}}, {**fields, "images": "x"}):
        path.write_text(damage if isinstance(damage, str) else json.dumps(damage))
        assert cli.main(["predict", "model", "--query", "query"]) == 1
        error = capsys.readouterr().err
        assert "adapted.json" in error
        assert error.count("\n") == 1
    path.write_text(json.dumps({**fields, "images": 7}))
    with pytest.raises(ValueError, match=r"of another model"):
        adapt.predict(Path("model"), Path("query"))
    path.write_text(json.dumps(fields))
    largest = max(Path("model/checkpoints").rglob("*"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        adapt.predict(Path("model"), Path("query"))


def test_support_sets_that_the_run_does_not_take_are_refused(trained, support, pictures, capsys):
    argv = ["adapt", str(trained), "--query", "query", "--support"]
    (support / "empty").mkdir()
    assert cli.main([*argv, str(pictures)]) == 1
    assert f"has 8 classes, but {trained} was trained for 2 ways" in capsys.readouterr().err
    shutil.rmtree(support / "bar5")
    assert cli.main([*argv, str(support)]) == 1
    assert f"these classes in {support} have no images: empty" in capsys.readouterr().err
    assert cli.main([*argv, "query"]) == 1
    assert "query has no folders: give one folder of images per class" in capsys.readouterr().err


def test_runs_that_do_not_classify_are_refused(support, capsys):
    assert cli.main(["adapt", "sine-waves", "--support", str(support), "--query", "query"]) == 1
    assert "sine-waves is not a run on few-shot images" in capsys.readouterr().err


def test_values_that_cannot_be_are_refused(trained, support, capsys):
    argv = ["adapt", str(trained), "--support", str(support), "--query", "query"]
    assert cli.main([*argv, "--eval-steps", "0"]) == 1
    assert "eval_steps is at least 1, got 0" in capsys.readouterr().err


def test_answers_that_are_not_finite_are_refused(trained, support, monkeypatch):
    def restore(*given, restore=run_folder.restore):
        state = restore(*given)
        return state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.inf, state.params))

    monkeypatch.setattr(run_folder, "restore", restore)
    with pytest.raises(ValueError, match=r"adapting .*bars to .*support diverged: its answers"):
        adapt.adapt(trained, support, support.parent / "query")


@pytest.mark.slow
def test_a_run_with_a_precision_of_products_is_adapted_and_exported_with_it(
    run, support, monkeypatch
):
    fields = json_files.read_json(run / "config.json")
    assert fields["matmul_precision"] is None
    (run / "config.json").write_text(json.dumps({**fields, "matmul_precision": "float32"}))
    traced = []

    def noting(name, function, *args, **options):
        traced.append((name, jax.config.jax_default_matmul_precision))
        return function(*args, **options)

    for name in ("inner_loop", "query_logits"):
        noted = functools.partial(noting, name, getattr(adaptation, name))
        monkeypatch.setattr(adaptation, name, noted)
    both = {("inner_loop", "float32"), ("query_logits", "float32")}
    jax.clear_caches()
    adapt.adapt(run, support, Path("query"), save=Path("kept"))
    assert set(traced) == both
    traced.clear()
    jax.clear_caches()
    adapt.predict(Path("kept"), Path("query"))
    assert set(traced) == {("query_logits", "float32")}
    traced.clear()
    assert cli.main(["export", str(run), "--out", "exported"]) == 0
    assert set(traced) == both


def test_how_held_out_tasks_were_scored_does_not_bind_those_who_adapt(run, support, tmp_path):
    fields = json_files.read_json(run / "config.json")
    (run / "config.json").write_text(json.dumps({**fields, "balanced_eval": True}))
    with pytest.raises(ValueError, match="1 mini-batches of 1 images show no image of bar"):
        adapt.adapt(run, support, tmp_path / "query", eval_steps=1, eval_batch=1)
