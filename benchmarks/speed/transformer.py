"""A meta step of a transformer of 1 B parameters, which fills several chips: does it fit?

Tasks are divided over the axis "tasks" of a mesh, the transformer over "model": attention by its
heads, the other products by their wide side, the embedding by its words. It computes in bfloat16
from float32 parameters, and keeps of each layer its input alone for the backward pass.
"""

import math
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import reptile_jax as rj
from benchmarks import tables
from benchmarks.speed import hlo, targets


class Sizes(NamedTuple):
    """Of a transformer, and of its tasks."""

    layers: int = 18
    width: int = 2048
    heads: int = 32
    words: int = 32_768
    tasks: int = 8
    steps: int = 10  # inner steps
    batch: int = 16  # sequences in a mini-batch
    length: int = 2048  # of a sequence

    @property
    def parameters(self) -> int:
        """θ: the embedding, which makes the logits too, and of each layer its six products."""
        return self.words * self.width + self.layers * (12 * self.width**2 + 2 * self.width)

    @property
    def flops(self) -> int:
        """Of the products in an inner step of one task: forward twice, and backward."""
        tokens = self.batch * self.length
        attention = 4 * self.layers * self.width * self.length
        return 8 * tokens * (self.parameters + attention // 2)


DIVIDED = {  # over the axis "model"
    "embed": PartitionSpec("model", None),
    "qkv": PartitionSpec(None, None, None, "model", None),
    "out": PartitionSpec(None, "model", None, None),
    "up": PartitionSpec(None, None, "model"),
    "down": PartitionSpec(None, "model", None),
}


def shapes(sizes: Sizes) -> dict[str, jax.ShapeDtypeStruct]:
    """θ, its layers stacked."""
    layers, width, heads = sizes.layers, sizes.width, sizes.heads
    of = {
        "embed": (sizes.words, width),
        "norms": (layers, 2, width),
        "qkv": (layers, width, 3, heads, width // heads),
        "out": (layers, heads, width // heads, width),
        "up": (layers, width, 4 * width),
        "down": (layers, 4 * width, width),
    }
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in of.items()}


def loss_fn(params: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
    """The cross-entropy of each token `[batch, length + 1]` after those before it."""
    words, targets = tokens[:, :-1], tokens[:, 1:]
    stacked = {name: leaf for name, leaf in params.items() if name != "embed"}
    x, _ = jax.lax.scan(jax.checkpoint(_layer), params["embed"][words], stacked)
    logits = jnp.einsum("bsd,vd->bsv", _normed(x), params["embed"]).astype(jnp.float32)
    # No index into the logits, which are divided by words.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    chosen = jnp.sum(jnp.where(is_target, logits, 0), -1)
    return jnp.mean(jax.nn.logsumexp(logits, -1) - chosen)


def _layer(x, of):
    q, k, v = jnp.einsum("bsd,dchk->cbshk", _normed(x) * of["norms"][0], of["qkv"])
    scores = jnp.einsum("bqhk,bshk->bhqs", q, k).astype(jnp.float32) / q.shape[-1] ** 0.5
    is_past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(is_past, scores, -jnp.inf)).astype(x.dtype)
    mixed = jnp.einsum("bhqs,bshk->bqhk", weights, v)
    x = x + jnp.einsum("bqhk,hkd->bqd", mixed, of["out"])
    hidden = jax.nn.gelu(_normed(x) * of["norms"][1] @ of["up"])
    return x + hidden @ of["down"], None


def _normed(x):
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True) + 1e-6)
    return x * scale.astype(x.dtype)


class Case(NamedTuple):
    """What is compiled, and for what."""

    chip: targets.Chip
    parts: tuple[int, int]  # of the axes "tasks" and "model"
    sizes: Sizes = Sizes()

    @property
    def label(self) -> str:
        """Its name in a record."""
        return "transformer, {} x {} of {}".format(*self.parts, self.chip.name)

    @property
    def about(self) -> dict[str, Any]:
        """What a record says of it, whether it compiles or not."""
        sizes, formula = self.sizes, memory(self.sizes, self.parts[1])
        named = {"chip": self.chip.name, "parts": self.parts, "sizes": sizes._asdict()}
        return named | {"parameters": sizes.parameters, "formula": formula}


MESHES = ((1, 4), (1, 16), (8, 32))


def memory(sizes: Sizes, model: int) -> dict[str, float]:
    """Bytes on each chip by the formula of docs/guides/devices.md, one task at a time."""
    theta, tokens = 4 * sizes.parameters / model, sizes.batch * sizes.length
    scores = tokens * sizes.length * sizes.heads / model
    return {
        "state": 3 * theta,  # θ, and the two moments of the inner Adam
        "sums": 3 * theta,  # of the deltas and of the moments
        "task": 4.5 * theta,  # φ, its moments and gradient; φ in bfloat16
        # Each layer's input; the scores of one layer, their gradient and the weights; a few copies.
        "activations": 2 * sizes.layers * tokens * sizes.width
        + 10 * scores
        + 12 * tokens * sizes.width,
    }


def lowered(sizes: Sizes, mesh: Mesh) -> jax.stages.Lowered:
    """A meta step of the library with the paper's inner optimiser, for a mesh of two axes."""
    meta_gradient = rj.reptile(rj.nn.in_bfloat16(loss_fn), optax.adam(1e-3, b1=0.0))
    learner = rj.meta_learner(
        meta_gradient, optax.sgd(1.0), inner_opt_state="average", tasks_at_once=1, mesh=mesh
    )

    def place(path, leaf):
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        spec = DIVIDED.get(names[-1], PartitionSpec()) if names else PartitionSpec()
        return leaf.update(sharding=NamedSharding(mesh, spec))

    state = jax.tree.map_with_path(place, jax.eval_shape(learner.init, shapes(sizes)))
    divided = NamedSharding(mesh, PartitionSpec("tasks"))
    tokens = (sizes.tasks, sizes.steps, sizes.batch, sizes.length + 1)
    given = jax.ShapeDtypeStruct(tokens, jnp.int32, sharding=divided)
    return learner.step.lower(state, rj.Task(given))


def estimate(case: Case) -> dict[str, Any]:
    """Compiles the meta step, and reads what the compiler says of it."""
    tasks, model = case.parts
    devices = case.chip.mesh(tasks * model).devices.reshape(case.parts)
    begun = time.perf_counter()
    compiled = lowered(case.sizes, Mesh(devices, ("tasks", "model"))).compile()
    seconds, sizes, text = (
        time.perf_counter() - begun,
        compiled.memory_analysis(),
        compiled.as_text(),
    )
    in_turn = -(-case.sizes.tasks // tasks) * case.sizes.steps
    step = hlo.Program(text).cost / in_turn / case.chip.costs_per_second
    return case.about | {
        "seconds": round(seconds, 1),
        "argument_bytes": sizes.argument_size_in_bytes,
        "temporary_bytes": sizes.temp_size_in_bytes,
        "bytes_over_tasks": bytes_over_tasks(text),
        "seconds_of_a_step": step,
        "share_of_peak": case.sizes.flops / model / case.chip.flops / step if step else None,
    }


def bytes_over_tasks(text: str) -> int:
    """What the all-reduce over "tasks" adds up on each chip."""
    wide = {"f32": 4, "bf16": 2, "s32": 4}
    found = re.findall(r" = (\S+|\(.*?\)) all-reduce(?:-start)?\([^\n]*shard_map/psum", text)
    leaves = re.findall(r"(f32|bf16|s32)\[([\d,]*)\]", " ".join(found))
    count = lambda extents: math.prod(int(extent) for extent in extents.split(",") if extent)
    return sum(wide[kind] * count(extents) for kind, extents in leaves)


def in_words(found: Mapping[str, Any]) -> str:
    """The memory in a line."""
    if "error" in found:
        return found["error"][:300]
    return f"{found['seconds']:.0f} s, {_gib(_compiler(found))} GiB on each chip"


COLUMNS = [
    "chips",
    "tasks x model",
    "θ on a chip, GiB",
    "state",
    "sums",
    "task",
    "activations",
    "formula, GiB",
    "the compiler's, GiB",
    "over tasks, GiB",
    "s to compile",
    "s an inner step",
]


def table(data: Mapping[str, Any]) -> tables.Table:
    """A row for each mesh: the memory on a chip by the formula, and by the compiler."""
    sizes = next(iter(data.values()))
    title = (
        f"A transformer of {sizes['parameters'] / 1e9:.2f} B parameters: the compiler's estimates "
        "for chips that were not there"
    )
    return tables.Table(title, COLUMNS, [_row(found) for found in data.values()], data)


def _row(found: Mapping[str, Any]) -> list[str]:
    tasks, model = found["parts"]
    formula = found["formula"]
    start = [
        f"{tasks * model} x {found['chip']}",
        f"{tasks} x {model}",
        *map(_gib, (4 * found["parameters"] / model, *formula.values(), sum(formula.values()))),
    ]
    if "error" in found:
        return [*start, _refusal(found["error"]), *[""] * 3]
    return [
        *start,
        _gib(_compiler(found)),
        _gib(found["bytes_over_tasks"]),
        f"{found['seconds']:.0f}",
        f"{found['seconds_of_a_step']:.2f}",
    ]


def _compiler(found: Mapping[str, Any]) -> int:
    return found["argument_bytes"] + found["temporary_bytes"]


def _refusal(error: str) -> str:
    """ "Refused", with what the compiler says that it would need."""
    said = re.search(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", error)
    return "refused: {} of {} besides the state".format(*said.groups()) if said else error[:80]


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
