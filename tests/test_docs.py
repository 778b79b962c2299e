"""Every code block of the README and the documentation runs, and the commands in them exist.

Pages of executed cells (`{code-cell}`) run when the documentation is built. The Python blocks of
all other pages run here, page by page, in order and in one namespace, and in a process of their
own: the tests' strict promotion is not what a reader has.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from reptile_jax.app import cli

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language, as the page has them."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_the_python_of_a_page_runs(page, tmp_path):
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page, "python")))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def commands_of(page: Path) -> list[list[str]]:
    """The calls of `reptile-jax` in a page's shell blocks, and in tables and sentences."""
    lines = "\n".join(blocks(page, "sh")).splitlines()
    lines += re.findall(r"`(reptile-jax [^`]+)`", page.read_text())
    found = (re.search(r"reptile-jax (?!\[)(.*)", line) for line in lines)
    return [shlex.split(match[1], comments=True) for match in found if match]


def help_of(words: list[str]) -> str:
    """What `reptile-jax WORDS --help` prints."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        assert cli.main([*words, "--help"]) == 0
    return shown.getvalue()


@pytest.mark.parametrize("page", [p for p in PAGES if commands_of(p)], ids=name_of)
def test_the_commands_of_a_page_exist(page, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(cli, "_keep_programs", lambda: None)  # which would outlast the test
    for words in commands_of(page):
        options = [word for word in words if word.startswith("--")]
        assert words[0] in help_of([]), words
        if "..." in words or words[1:] in ([], ["--help"]) or words[0] == "COMMAND":
            continue
        if "--resume" in options:
            shown = "--resume --data --out"  # its own options, whose help needs no run
        elif "--preset" in options:
            shown = help_of(["train", "--preset", words[words.index("--preset") + 1]]) + "--preset"
        elif words[0] in ("train", "download"):
            shown = help_of(words[:2])
        else:
            shown = help_of(words[:1])
        for option in options:
            assert option in shown, f"{option} is not an option of {' '.join(words)}"


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 1000


def test_every_link_has_a_text():
    """GitHub shows nothing for a link without one, which Sphinx would fill in."""
    for page in PAGES:
        assert "[](" not in page.read_text(), name_of(page)


def test_the_links_between_files_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def test_each_promise_has_a_test_that_exists():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs/promises.md").read_text())
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in tests] == []
