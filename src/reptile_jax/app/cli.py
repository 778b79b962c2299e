"""The command line: `reptile-jax train | evaluate | adapt | ...`."""

import io
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_NEEDS = 'the commands need more packages: pip install "reptile-jax[cli]" ({})'

try:
    from reptile_jax.app import signals, terminal
except ModuleNotFoundError as error:
    raise SystemExit(f"reptile-jax: {_NEEDS.format(error)}") from error

USAGE = """\
usage: reptile-jax COMMAND ...

  train sinusoid                    the paper's sine waves, in less than a minute
  train burgers                     a family of differential equations; or train heat
  train ct                          tomography from few views, by neural fields
  train clients --data DIR          federated averaging of Omniglot's writers
  train omniglot --data DIR         Omniglot, from the two official zip files
  train mini-imagenet --data DIR    mini-ImageNet, in any of its usual layouts
  train images --data DIR           a folder with one folder of images per class
  train --preset NAME --data DIR    a row of the paper (o15, o15t, o55, ..., m55t)
                                    or beyond it
  train --resume RUN [--data DIR]   go on with a run that was stopped
  evaluate RUN [--data DIR]         score a trained run on held-out tasks
  plot RUN                          draw its pictures and report anew
  adapt RUN --support DIR --query IMAGES
                                    classify new images of new classes
                                    RUN may be omniglot-5way and the like
  predict MODEL --query IMAGES      with a model that adapt --save made
  export RUN --out FILE             the model with its adaptation, for JAX alone
  demo [RUN]                        draw symbols on a page, and see it adapt
  download omniglot --out DIR       fetch Omniglot from its official repository
  presets                           the presets and their values

Every command takes --help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status; a person's mistake is one line, no traceback.

    Without `argv` the command is the process's own: a signal that ends it ends the process here.
    """
    status = _status(list(sys.argv[1:] if argv is None else argv))
    if argv is None and status > 128:
        signals.leave(status)
    return status


def _status(argv: list[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal cannot show is no failure
        sys.stdout.reconfigure(errors="replace")
    if not argv or argv[0] in ("-h", "--help"):
        terminal.say(*USAGE.splitlines())
        return 0 if argv else 2
    try:
        return _run(*argv)
    except OSError as error:
        terminal.fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    except ModuleNotFoundError as error:
        terminal.fail(_NEEDS.format(error))
        return 1
    except (ValueError, ImportError, FloatingPointError) as error:
        terminal.fail(str(error))
        return 1
    except MemoryError as error:
        return _out_of_memory(error)
    except KeyboardInterrupt as stop:
        terminal.fail(str(stop) or "interrupted")
        return 128 + getattr(stop, "signum", signal.SIGINT)
    except Exception:
        if not (problem := _why_jax_does_not_start()):
            raise
        terminal.fail(problem)
        return 1


def _run(command: str, *argv: str) -> int:
    import jax

    from reptile_jax.app import commands, run_folder  # only here, so that --help is quick

    if command not in commands.COMMANDS:
        terminal.fail(f"there is no command {command!r}: see reptile-jax --help.")
        return 1
    _keep_programs()
    words = [_at_home(word) for word in argv]
    for word in words:
        run_folder.check_local(word.partition("=")[2] if word.startswith("--") else word)
    try:
        with signals.handled(signals.interrupt):
            commands.COMMANDS[command](words)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _out_of_memory(error)
    return int(terminal.lost())


def _at_home(word: str) -> str:
    """The word with `~` as the home folder, which shells do not see in `--out=~/run`."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + os.path.expanduser(value)


def _why_jax_does_not_start() -> str | None:
    """What is wrong with the installation, if JAX finds no device."""
    import jax

    try:
        jax.devices()
        return None
    except Exception as error:  # JAX itself raises an AssertionError, without a word
        reason = (str(error).splitlines() or ["there is no such device"])[0]
        reason = reason.partition(" (set JAX_PLATFORMS")[0].rstrip(".")
    asked = getattr(jax.config, "jax_platforms", None)
    if not asked:
        return f"JAX does not start: {reason}"
    return (
        f"JAX does not start with JAX_PLATFORMS={asked}: {reason}. Unset it, or install JAX for it "
        '(pip install "reptile-jax[cuda]" or "reptile-jax[tpu]").'
    )


def _out_of_memory(error: Exception) -> int:
    terminal.fail(f"out of memory: ask for smaller sizes, or fewer tasks at once. {error}")
    return 1


def _keep_programs() -> None:
    """Keeps compiled programs in the user's cache, unless JAX has been told where, or not to."""
    import jax

    setting = lambda name: getattr(jax.config, f"jax_{name}")
    if setting("compilation_cache_dir") or not setting("enable_compilation_cache"):
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reptile_jax"
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
    except (OSError, RuntimeError):  # read-only, full, or no home: every run compiles
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))
