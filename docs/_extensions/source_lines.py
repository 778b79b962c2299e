"""Looks up source lines: the code span `reptile.py :: def inner_loop` becomes "reptile.py:58".

A reader of the Markdown sees the file and a part of its line. The number is looked up at every
build. If no line, or more than one, has the fragment, that is a warning, so that
`sphinx-build -W` fails: the numbers on the pages cannot go stale.
"""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

import reptile_jax

ROOT = Path(reptile_jax.__file__).parent


def lines_with(file: str, fragment: str) -> list[int]:
    """The numbers of the lines of `src/reptile_jax/<file>` that have the fragment."""
    lines = (ROOT / file).read_text().splitlines()
    return [number for number, line in enumerate(lines, 1) if fragment in line]


class Lines(SphinxTransform):
    """Replaces every code span `FILE.py :: FRAGMENT`."""

    default_priority = 500

    def apply(self) -> None:
        for node in list(self.document.findall(nodes.literal)):
            file, _, fragment = (part.strip() for part in node.astext().partition(" :: "))
            if not fragment or not file.endswith(".py"):
                continue
            self.env.note_dependency(str(ROOT / file))
            found = lines_with(file, fragment) if (ROOT / file).is_file() else []
            if len(found) == 1:
                node.replace_self(nodes.literal(text=f"{file}:{found[0]}"))
                continue
            problem = f"{len(found)} lines of {file} have {fragment!r}: it has to be one."
            logging.getLogger(__name__).warning(problem, location=node)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(Lines)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
