"""Reads docstrings, signatures and fields as they are written in the source.

Indented plain text in a docstring becomes a literal block. Signatures keep the names of the types
as the source has them (`LossFn`, not what it abbreviates). The fields of NamedTuples and
dataclasses are listed with the comments beside them, such as their shapes.
"""

import ast
import inspect
import re
import textwrap
from typing import Any

from sphinx.application import Sphinx


def definition(obj: Any) -> ast.FunctionDef | ast.ClassDef | None:
    """The source of a function or class, parsed; None if there is none."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))
    except (OSError, TypeError):
        return None
    node = ast.parse(source).body[0]
    return node if isinstance(node, ast.FunctionDef | ast.ClassDef) else None


def fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [
        field
        for field in node.body
        if isinstance(field, ast.AnnAssign) and not ast.unparse(field.target).startswith("_")
    ]


def written_signature(app, what, name, obj, options, signature, returns):
    """Arguments, annotations and defaults as the source has them."""
    node = definition(obj)
    if isinstance(node, ast.FunctionDef):
        arguments = node.args
        if what == "method" and arguments.args:
            arguments.args = arguments.args[1:]  # self
        return f"({ast.unparse(arguments)})", ast.unparse(node.returns) if node.returns else None
    if isinstance(node, ast.ClassDef):
        given = ", ".join(without_metadata(field) for field in fields(node))
        return (f"({given})" if given else ""), None
    return signature, returns


def without_metadata(field: ast.AnnAssign) -> str:
    """A field as an argument; what `dataclasses.field` says of it is left out."""
    if isinstance(field.value, ast.Call):
        return f"{ast.unparse(field.target)}: {ast.unparse(field.annotation)}"
    return ast.unparse(field).strip()


def literal_blocks(app, what, name, obj, options, lines: list[str]) -> None:
    """Marks indented plain text as literal, for reStructuredText."""
    indent = lambda line: len(line) - len(line.lstrip())
    result: list[str] = []
    for index, line in enumerate(lines):
        before = lines[index - 2] if index >= 2 and not lines[index - 1].strip() else ""
        inside = bool(result) and any(r.strip() for r in result) and literal_depth(result) > 0
        if line.strip() and before.strip() and not inside and indent(line) >= indent(before) + 4:
            if result[-2].endswith(":") and not result[-2].endswith("::"):
                result[-2] += ":"
            else:
                result += [" " * indent(before) + "::", ""]
        result.append(line)
    lines[:] = result


def code_as_written(app, what, name, obj, options, lines: list[str]) -> None:
    """Leaves roles to names alone: of other code, Sphinx would take `~` and `<...>` for its own."""
    is_name = re.compile(r"[A-Za-z_][\w.]*")
    code = re.compile(r"``.+?``|:[\w:]+:`[^`]+`|`([^`]+)`", re.DOTALL)

    def quote(match: re.Match) -> str:
        text = match[1]
        return match[0] if text is None or is_name.fullmatch(text) else f"``{text}``"

    lines[:] = code.sub(quote, "\n".join(lines)).split("\n")


def literal_depth(lines: list[str]) -> int:
    """The indentation of the literal block that is open at the end of `lines`; 0 if none is."""
    opened = 0
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if line.strip() and opened and depth < opened:
            opened = 0
        if line.endswith("::"):
            opened = depth + 1
    return opened


def list_fields(app, what, name, obj, options, lines: list[str]) -> None:
    """Adds the fields of a class that have a comment beside them."""
    if what != "class" or (node := definition(obj)) is None or not fields(node):
        return
    source = textwrap.dedent(inspect.getsource(obj)).splitlines()
    entries = []
    for field in fields(node):
        comment = source[(field.end_lineno or 1) - 1].partition("  # ")[2]
        if comment:
            entries.append(f"- **{ast.unparse(field.target)}**: {escaped(comment)}")
    if entries:
        lines += ["", "Fields:", "", *entries, ""]


def escaped(text: str) -> str:
    return text.replace("*", "\\*").replace("|", "\\|").replace("[]", "[ ]")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-signature", written_signature)
    app.connect("autodoc-process-docstring", literal_blocks, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", code_as_written, priority=550)
    app.connect("autodoc-process-docstring", list_fields, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
