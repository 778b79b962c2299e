"""The command itself: exit statuses, mistakes in one line, kept programs, outputs that fail."""

import json
import os
import re
import resource
import runpy
import subprocess
import sys

import jax
import pytest

from reptile_jax.app import cli, commands
from reptile_jax.app.experiments import EXPERIMENTS


def test_the_package_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["reptile_jax", "presets"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("reptile_jax", run_name="__main__")
    assert left.value.code == 0
    assert "The paper's rows" in capsys.readouterr().out


@pytest.mark.parametrize("words", [*commands.COMMANDS, *(f"train {name}" for name in EXPERIMENTS)])
def test_the_usage_has_every_command_and_experiment(words):
    assert re.search(rf"\b{words}\b", cli.USAGE)


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = lambda: jax.config.jax_compilation_cache_dir
    given = folder()
    try:
        assert cli.main(["presets"]) == 0
        assert folder() == given  # of the user's own choice
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_enable_compilation_cache", False)
        assert cli.main(["presets"]) == 0
        assert folder() is None
        assert not (tmp_path / "cache").exists()
        jax.config.update("jax_enable_compilation_cache", True)
        (tmp_path / "cache").write_text("a file, where no folder can be made")
        assert cli.main(["presets"]) == 0
        assert folder() is None
        (tmp_path / "cache").unlink()
        assert cli.main(["presets"]) == 0
        assert folder() == str(tmp_path / "cache" / "reptile_jax")
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", given)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fly"], "there is no command 'fly'"),
        (["train"], f"train what? {', '.join(EXPERIMENTS)}, or --preset"),
        (["train", "--preset", "o16", "--data", "."], "--preset is one of m15, m15t,"),
        (
            ["train", "omniglot", "--preset", "m15", "--data", "."],
            "m15 is for mini-imagenet",
        ),
        (["train", "sinusoid", "--preset", "o15"], "preset o15 is for omniglot, not sinusoid"),
        (["train", "omniglot", "--data", "nothing", "--out", "/"], "a run is never overwritten"),
        (["train", "omniglot", "--data", "nothing", "--test-fraction", "0.5"], "for images alone"),
        (
            ["adapt", "run", "--support", "s", "--query", "q", "--json", "no/a.json"],
            "there is no folder no for --json",
        ),
        (["train", "omniglot", "--data", "nothing"], "reptile-jax download omniglot --out nothing"),
        (["train", "images", "--data", "nothing"], "there is no folder nothing"),
        (["evaluate", "nothing", "--data", "."], "nothing is not the folder of a run"),
        (["download", "imagenet"], "Only omniglot can be fetched"),
        (["predict", "model"], "give images to classify with --query."),
        (["presets", "o15"], "presets takes no arguments, got o15"),
    ],
)
def test_mistakes_are_one_clear_line(argv, message, capsys):
    assert cli.main(argv) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (MemoryError("8 TB"), 1, "out of memory: ask for smaller sizes, or fewer tasks at once. 8"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 8 TB"), 1, "out of memory: ask for"),
        (OSError(28, "No space left on device", "runs/x"), 1, "runs/x: No space left on device"),
        (FloatingPointError("nothing was learnt"), 1, "nothing was learnt"),
        (
            ModuleNotFoundError("No module named 'tyro'"),
            1,
            'pip install "reptile-jax[cli]" (No mod',
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_ends_a_command_is_said_in_one_line(error, status, said, monkeypatch, capsys):
    def fail(argv):
        raise error

    monkeypatch.setitem(commands.COMMANDS, "fail", fail)
    assert cli.main(["fail"]) == status
    shown = capsys.readouterr().err
    assert shown.startswith("reptile-jax: ")
    assert said in shown
    assert shown.count("\n") == 1


def command_in(folder, *argv, **environment):
    """What the command leaves when it is run there: its status and its standard error."""
    command = [sys.executable, "-m", "reptile_jax", *argv]
    env = {**os.environ, "HOME": str(folder), **environment}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize("platform", ["cuda", "tpu", "fly"])
def test_a_device_that_is_not_there_is_one_line(platform, tmp_path):
    argv = ("train", "sinusoid", "--out", "run")
    status, error = command_in(tmp_path, *argv, JAX_PLATFORMS=platform)
    assert status == 1
    assert error.startswith(f"reptile-jax: JAX does not start with JAX_PLATFORMS={platform}: ")
    assert 'pip install "reptile-jax[cuda]"' in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("version", "said"),
    [("0.1.0", "requires version >="), ("9.9.9", "newer than"), (None, "requires jaxlib")],
)
def test_a_jaxlib_that_does_not_fit_is_one_line(version, said, tmp_path):
    fake = tmp_path / "path" / "jaxlib"
    fake.mkdir(parents=True)
    if version is None:
        (fake / "__init__.py").write_text("raise ModuleNotFoundError('jaxlib')")
    else:
        (fake / "__init__.py").touch()
        (fake / "version.py").write_text(f"__version__ = {version!r}")
    status, error = command_in(tmp_path, "presets", PYTHONPATH=str(fake.parent))
    assert status == 1
    assert error.startswith("reptile-jax: JAX cannot be imported: ")
    assert said in error
    assert error.count("\n") == 1
    code = [sys.executable, "-c", "import reptile_jax"]  # a script gets the whole error
    env = {**os.environ, "PYTHONPATH": str(fake.parent)}
    done = subprocess.run(code, env=env, capture_output=True, text=True)
    assert "Traceback" in done.stderr


def test_the_home_folder_is_known(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    given = []
    monkeypatch.setitem(commands.COMMANDS, "take", given.extend)
    assert cli.main(["take", "~/run", "--out=~/run", "--out", "~", "a~", "--x=a~/b=~"]) == 0
    home = str(tmp_path / "home")
    assert given == [f"{home}/run", f"--out={home}/run", "--out", home, "a~", "--x=a~/b=~"]
    assert cli.main(["evaluate", "~/run"]) == 1
    assert f"{home}/run is not the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "sinusoid", "--out", "s3://bucket/run"],
        ["train", "sinusoid", "--out=gs://bucket/run"],
        ["train", "images", "--data", "https://host/images"],
        ["evaluate", "gs://bucket/run"],
        ["download", "omniglot", "--out", "az://bucket/omniglot"],
    ],
)
def test_an_address_is_no_folder(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 1
    error = capsys.readouterr().err
    assert "://" in error
    assert error.endswith(" is no folder of this machine: mount it, or copy it.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_defect_is_not_taken_for_a_mistake(monkeypatch):
    def fail(argv):
        raise jax.errors.JaxRuntimeError("INTERNAL: a defect")

    monkeypatch.setitem(commands.COMMANDS, "fail", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a defect"):
        cli.main(["fail"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "said", "status"),
    [("/dev/full", "standard output: No space left on device", 1), ("| true", "", 0)],
)
def test_an_output_that_fails_loses_no_results(output, said, status, run, pictures, tmp_path):
    command = f"{sys.executable} -m reptile_jax evaluate run --data {pictures}"
    command += f" {output}" if output.startswith("|") else f" > {output}"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == status, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    results = json.loads((run / "evaluation.json").read_text())["scores"]["Reptile"]
    assert results["transductive"]["mean"][-1] > 0.7


def cpu_seconds(*argv):
    """The processor's time, user and system, that a command takes, and what it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, done.stdout


def test_help_takes_less_than_a_second_of_its_own():
    """Its own is what it takes beyond the imports of JAX and Optax; noise only adds to it."""
    own = []
    for _ in range(3):
        imports, _ = cpu_seconds("-c", "import jax, optax")
        whole, shown = cpu_seconds("-m", "reptile_jax", "--help")
        assert shown.startswith("usage: reptile-jax COMMAND")
        own.append(whole - imports)
        if own[-1] < 1:
            break
    assert min(own) < 1


def test_help_imports_nothing_that_it_does_not_need():
    code = """
import sys
from reptile_jax.app import cli
assert cli.main(["--help"]) == 0
unneeded = "flax", "orbax", "tyro", "matplotlib", "PIL", "reptile_jax.nn", "reptile_jax.checkpoint"
print([name for name in unneeded if name in sys.modules])
"""
    _, shown = cpu_seconds("-c", code)
    assert shown.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_a_command_that_goes_well_leaves_standard_error_empty(tmp_path):
    """No warning at a save, nor anywhere else."""
    argv = ["train", "sinusoid", "--meta-steps", "8", "--eval-tasks", "2", "--out", "waves"]
    argv += ["--steps-per-dispatch", "2", "--save-every", "2"]
    # On one device, and with no warning left out.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    env |= {"XLA_FLAGS": flags, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "reptile_jax"]
    for more in (argv, ["evaluate", "waves"]):
        done = subprocess.run([*command, *more], env=env, capture_output=True, text=True)
        assert done.stderr == ""
        assert done.returncode == 0
    assert (tmp_path / "waves" / "checkpoints" / "8").is_dir()
