"""Warns of every public name that the reference lacks; with `sphinx-build -W` the build fails.

Public is what a package's `__init__` imports as itself (`from ... import X as X`), and in a plain
module what is defined without an underscore.
"""

import ast
import importlib
import importlib.util
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)


def public_names(module: str) -> list[str]:
    """The public names of a module, in the order of its source."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"there is no module {module}.")
    tree = ast.parse(Path(spec.origin).read_text())
    if spec.submodule_search_locations is None:
        defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        return [name for name in defined if not name.startswith("_")]
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [alias.name for node in imported for alias in node.names if alias.asname == alias.name]


def home_of(module: str, name: str) -> str:
    """Where an object is defined: one that two modules share is described once."""
    thing = getattr(importlib.import_module(module), name)
    parts = (getattr(thing, "__module__", None), getattr(thing, "__qualname__", name))
    return ".".join(part for part in parts if part)


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Compares the public names with the objects that the pages describe."""
    documented = set(env.get_domain("py").objects)
    for module in app.config.public_modules:
        for name in public_names(module):
            if not {f"{module}.{name}", home_of(module, name)} & documented:
                logger.warning("the reference lacks the public name %s.%s", module, name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("public_modules", [], "env")
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
