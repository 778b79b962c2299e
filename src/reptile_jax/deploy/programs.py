"""An adaptable model as one file: a program with its parameters, which needs JAX alone."""

import datetime
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from reptile_jax._files import open_file
from reptile_jax.deploy import tensors
from reptile_jax.deploy.adaptable import AdaptableModel

PLATFORMS = ("cpu", "cuda", "tpu")

_LARGEST = 2**31  # bytes of a program


def export(
    model: AdaptableModel,
    path: Path | str,
    *,
    transductive: bool = False,
    shots: int | None = None,
    queries: int | None = None,
) -> Path:
    """Writes `model.predict` as a program for CPU, CUDA and TPU that is read without this package.

    `(support, targets, query) -> probabilities`, with the whole adaptation inside: the arguments
    are those of `predict`, images as float32 from 0 to 1, and labels as int32. Where a class has no
    example, or a label is out of range, all answers are NaN. The guide has the five lines that load
    it. Beside it are `<path>.json`, with its ways and shapes, checksum, JAX version and the model's
    card, and `<path>.safetensors`, with the parameters alone.

    Args:
      model: `for_ways` changes its ways, which the program fixes.
      path: a new file.
      transductive: as in `predict`.
      shots, queries: images of each class (or points of a curve) and queries. By default any: the
        program is compiled for the sizes that it is called with.

    Returns:
      The path.

    Raises:
      FileExistsError: if one of the files exists.
      ValueError: for a model that JAX cannot export for any number of images.
    """
    path = Path(path)
    files = [path, *(path.with_name(path.name + end) for end in (".json", ".safetensors"))]
    if there := [file for file in files if file.exists()]:
        raise FileExistsError(f"{there[0]} exists, and no export is overwritten: give another.")
    arguments = _arguments(model, shots, queries)
    try:
        traced = jax.jit(model.program(transductive=transductive))
        exported = jax_export.export(traced, platforms=PLATFORMS)(*arguments)
    except (jax.errors.InconclusiveDimensionOperation, TypeError) as error:
        if shots is not None and queries is not None:
            raise
        raise ValueError(
            "JAX cannot export this model for any number of examples: give shots and queries. "
            f"({str(error).splitlines()[0]})"
        ) from error
    content = bytes(exported.serialize())
    facts = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "exported": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "expires": f"JAX reads it in {jax.__version__}, in the releases of the six months after "
        "that, and in those of the three weeks before; later ones may refuse it",
        "platforms": list(exported.platforms),
        "ways": model.ways,
        "transductive": transductive,
        "arguments": {
            name: f"{aval.dtype}[{', '.join(map(str, aval.shape))}]"
            for name, aval in zip(("support", "targets", "query"), exported.in_avals, strict=True)
        },
        "card": dict(model.card),
    }
    text = json.dumps(facts, indent=2, default=str) + "\n"
    contents = content, text.encode(), tensors.saved({"params": model.params})
    _write_new(dict(zip(files, contents, strict=True)))
    return path


def _write_new(contents: dict[Path, bytes]) -> None:
    """Writes all files or none, and none that is there."""
    written = []
    try:
        for path, content in contents.items():
            with path.open("xb") as file:
                written.append(path)
                file.write(content)
    except BaseException as error:
        for path in written:
            path.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def load(path: Path | str) -> Callable[[Any, Any, Any], jax.Array]:
    """The function that `export` wrote, checked: `(support, targets, query) -> probabilities`.

    Raises:
      FileNotFoundError: if it, or the JSON beside it, is missing.
      ValueError: if it is damaged, or has expired for this version of JAX.
    """
    with open_file(path, _LARGEST) as program, open_file(f"{path}.json", _LARGEST) as beside:
        content, written = program.read(), beside.read()
    try:
        facts = json.loads(written)
        version, problem = facts["jax"], "damaged: its checksum is not that in the JSON beside it."
        if facts["sha256"] == hashlib.sha256(content).hexdigest():
            problem = _why_unreadable(content, version)
    except (ValueError, KeyError, TypeError, RecursionError):
        problem = "damaged: the JSON beside it cannot be read."
    if problem:
        raise ValueError(f"{path} is {problem}")
    return jax.jit(jax_export.deserialize(bytearray(content)).call)


def _why_unreadable(content: bytes, version: str) -> str | None:
    """What this version of JAX has against a program that is whole, if anything."""
    try:
        exported = jax_export.deserialize(bytearray(content))
        sizes = lambda shape: [size if isinstance(size, int) else 1 for size in shape]
        example = [jax.ShapeDtypeStruct(sizes(a.shape), a.dtype) for a in exported.in_avals]
        jax.jit(exported.call).lower(*example)  # reads the program, and compiles nothing
        return None
    except Exception as error:  # JAX and its readers raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return (
            f"of JAX {version}, and JAX {jax.__version__} cannot read it: export the model again, "
            f"or install jax=={version}. ({reason})"
        )


def _arguments(model: AdaptableModel, shots: int | None, queries: int | None) -> list[Any]:
    """The shapes of `(support, targets, query)`; sizes that are not given are symbolic."""
    any_support, any_query = jax_export.symbolic_shape("support, queries")
    support = any_support if shots is None else shots * (model.ways or 1)
    query = any_query if queries is None else queries
    target = ((support,), jnp.int32) if model.ways is not None else ((support, 1), jnp.float32)
    return [
        jax.ShapeDtypeStruct((support, *model.input_shape), jnp.float32),
        jax.ShapeDtypeStruct(*target),
        jax.ShapeDtypeStruct((query, *model.input_shape), jnp.float32),
    ]
