"""A run's folder: never overwritten, found damaged, locked, and gone on from or not."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from reptile_jax.app import cli, experiments, run_folder
from reptile_jax.app.config import Config, SinusoidConfig
from tests.app import small_images, tiny_run
from tests.test_checkpoint import files_of_at_most

FACTS = {"facts": {"classes": ["é"]}}


def test_a_run_is_read_as_it_was_written(tmp_path):
    config = SinusoidConfig(meta_steps=7, meta_rate=0.5)
    folder = run_folder.create(tmp_path / "a" / "run", "x", config, {"facts": {"classes": ["é"]}})
    assert run_folder.load_config(folder) == config
    fields = json.loads((folder / "config.json").read_text())
    assert fields["experiment"] == "sinusoid"
    assert fields["meta_steps"] == 7
    run_folder.check_data(folder, {"facts": {"classes": ["é"]}})
    with pytest.raises(
        ValueError, match=r"not the one that .*run was made with \(its facts.json\)"
    ):
        run_folder.check_data(folder, {"facts": {"classes": ["e"]}})


def test_runs_without_a_place_get_the_next_free_one():
    made = [run_folder.create(None, "x", SinusoidConfig(), {}) for _ in range(3)]
    assert list(map(str, made)) == ["runs/x", "runs/x-2", "runs/x-3"]


def test_results_are_never_overwritten(tmp_path):
    stored = [run_folder.store(tmp_path, "evaluation", 1.23, {"tasks": n}) for n in range(3)]
    names = ["evaluation.json", "evaluation-2.json", "evaluation-3.json"]
    assert [path.name for path in stored] == names
    results = [json.loads(path.read_text()) for path in stored]
    assert [result["tasks"] for result in results] == [0, 1, 2]
    assert results[0]["seconds"] == 1.2
    assert set(results[0]["environment"]) == {"python", "versions", "device", "machine"}


@pytest.mark.parametrize("name", ["a\\b", "a**b"])
def test_a_place_where_no_checkpoint_can_be_is_named_before_anything_is_written(name, tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint can be kept under .*Give another folder"):
        tiny_run.new_run(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run"])
def test_an_address_is_no_place_for_a_run(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"bucket/run is no folder of this machine"):
        tiny_run.new_run(Path(address))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["file/run", "/proc/run"])
def test_a_place_where_nothing_can_be_written_is_named(out, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert cli.main(["train", "sinusoid", "--out", out]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"reptile-jax: {out}: ")
    assert error.count("\n") == 1


def test_a_run_is_never_overwritten(trained, pictures, capsys):
    config = (trained / "config.json").read_bytes()
    argv = small_images.train_command(pictures, "--out", str(trained))
    assert cli.main(argv) == 1
    assert "a run is never overwritten" in capsys.readouterr().err
    assert (trained / "config.json").read_bytes() == config


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "3", "{", "[" * 9999, "{}", '{"experiment": []}'),
        '{"experiment": "sinusoid", "inner_rate": "x"}',
        '{"experiment": "sinusoid", "shots": 1}',
    ],
)
def test_a_damaged_configuration_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        run_folder.load_config(tmp_path)


@dataclasses.dataclass(frozen=True)
class PlanesConfig(Config):
    """Of an experiment of one's own, with fields that JSON has no types for."""

    folder: Path = Path("data")
    other: Path | None = None
    sizes: tuple[int, ...] = (3, 4)
    files: tuple[Path, ...] = (Path("a"),)
    names: tuple[tuple[str, int], ...] | None = (("b", 1),)

    experiment = "planes"


def test_a_run_of_an_experiment_that_is_not_registered_says_so(tmp_path, monkeypatch, capsys):
    config = PlanesConfig(other=Path("c"), sizes=())
    folder = run_folder.create(tmp_path / "run", "planes", config, {})
    message = f"{folder} is a run of the experiment 'planes', which is not registered"
    with pytest.raises(ValueError, match=message):
        run_folder.load_config(folder)
    for command in (["train", "--resume", str(folder)], ["evaluate", str(folder)]):
        assert cli.main(command) == 1
        assert message in capsys.readouterr().err
    entry = experiments.Entry(PlanesConfig(), lambda config, mesh: None)
    monkeypatch.setitem(experiments.EXPERIMENTS, "planes", entry)
    assert run_folder.load_config(folder) == config


def test_a_run_has_one_process_at_a_time(whole, folder):
    with run_folder.resumable(folder):
        with pytest.raises(ValueError, match=f"another process is at work on {folder}"):
            with run_folder.resumable(folder):
                pass
        with run_folder.resumable(whole):  # another run is free
            pass
    with run_folder.resumable(folder):
        pass


@pytest.mark.slow
def test_a_run_without_a_checkpoint_starts_over(trained, pictures, tmp_path):
    never_saved = shutil.ignore_patterns("checkpoints", "times.jsonl", "results.json")
    shutil.copytree(trained, tmp_path / "run", ignore=never_saved)
    assert cli.main(["train", "--resume", "run", "--data", str(pictures)]) == 0
    one, other = ((run / "metrics.jsonl").read_text() for run in (trained, tmp_path / "run"))
    assert one == other


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(trained, pictures, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    assert cli.main(["train", "--resume", "run", "--data", str(pictures)]) == 1
    assert "had checkpoints: put them back, or start a new run" in capsys.readouterr().err
    one, other = ((run / "metrics.jsonl").read_text() for run in (trained, tmp_path / "run"))
    assert one == other


def test_a_run_does_not_go_on_with_other_classes(trained, pictures, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(pictures, other)
    shutil.copytree(other / "class0", other / "class8")
    assert cli.main(["train", "--resume", str(trained), "--data", str(other)]) == 1
    assert "the data set is not the one that" in capsys.readouterr().err


@pytest.mark.slow
def test_results_that_cannot_be_kept_are_shown(trained, pictures, monkeypatch, capsys):
    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(run_folder, "write_json", full)
    assert cli.main(["evaluate", str(trained), "--data", str(pictures)]) == 1
    shown, error = capsys.readouterr()
    assert "the score: " in shown
    assert "evaluation" in error
    assert "No space left on device" in error


@pytest.mark.attack
@pytest.mark.parametrize("out", ["run", None])
def test_a_creation_that_fails_leaves_nothing_in_the_way(out, monkeypatch):
    create = lambda: run_folder.create(Path(out) if out else None, "x", SinusoidConfig(), FACTS)
    with files_of_at_most(100), pytest.raises(OSError, match="File too large") as info:
        create()
    folder = Path(out or "runs/x")
    assert info.value.filename == str(folder / "config.json")
    assert list(folder.iterdir()) == []
    made = create()
    assert run_folder.load_config(made) == SinusoidConfig()
    run_folder.check_data(made, FACTS)


@pytest.mark.attack
def test_a_run_whose_configuration_was_changed_does_not_go_on(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"meta_steps": 24', '"meta_steps": 25'))
    with pytest.raises(ValueError, match=r"config\.json is damaged: it is not as it was written"):
        run_folder.load_config(folder)
