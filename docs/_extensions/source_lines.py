"""A role for a line of the source: {line}`reptile.py :: def inner_loop` becomes "reptile.py:58".

The line is looked up at every build. If no line, or more than one, has the fragment, that is a
warning, so that `sphinx-build -W` fails: the numbers on the pages cannot go stale.
"""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

import reptile_jax

ROOT = Path(reptile_jax.__file__).parent


def lines_with(file: str, fragment: str) -> list[int]:
    """The numbers of the lines of `src/reptile_jax/<file>` that have the fragment."""
    lines = (ROOT / file).read_text().splitlines()
    return [number for number, line in enumerate(lines, 1) if fragment in line]


class Line(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        file, _, fragment = (part.strip() for part in self.text.partition("::"))
        self.env.note_dependency(str(ROOT / file))
        found = lines_with(file, fragment) if (ROOT / file).is_file() else []
        if len(found) != 1:
            problem = f"{len(found)} lines of {file} have {fragment!r}: it has to be one."
            return [], [self.inliner.reporter.warning(problem, line=self.lineno)]
        return [nodes.literal(text=f"{file}:{found[0]}")], []


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("line", Line())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
