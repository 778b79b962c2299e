"""Reptile for a language model in NNX: it spells words, and a language is a task.

The words are Debian's lists, of which each language has 10,000 here. The model adapts to 200 words
of a language that it has not seen, and is scored on 200 others. On Debian or Ubuntu, as root:

    apt-get install --no-install-recommends wamerican wcatalan wdanish wdutch wesperanto wfaroese \
        wfrench wgaelic wgalician-minimos wngerman wirish witalian wmanx wnorwegian wpolish \
        wportuguese wspanish wswedish
    python examples/languages.py [meta steps]
"""

import dataclasses
import functools
import math
import sys
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import reptile_jax as rj

FOLDER = Path("/usr/share/dict")
LISTS = {  # the file of each language
    "Bokmål": "bokmaal",
    "Catalan": "catalan",
    "Danish": "danish",
    "Dutch": "dutch",
    "English": "american-english",
    "Esperanto": "esperanto",
    "Faroese": "faroese",
    "French": "french",
    "Gaelic": "gaelic",
    "Galician": "galician-minimos",
    "German": "ngerman",
    "Irish": "irish",
    "Italian": "italian",
    "Manx": "manx",
    "Nynorsk": "nynorsk",
    "Polish": "polish",
    "Portuguese": "portuguese",
    "Spanish": "spanish",
    "Swedish": "swedish",
}
LETTERS = "abcdefghijklmnopqrstuvwxyzßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýąćĉęĝĥĵłńśŝŭźż"
LENGTH = 16  # characters of the longest word and its end


# The words ----------------------------------------------------------------------------------------


def read_words(path: Path, number: int) -> list[str]:
    """Words of a list in random order, the same ones each time, at most `number`.

    Lists are in UTF-8 or Latin-1. Capitals at the beginning become small. Words with other capitals
    or with anything but letters are left out: abbreviations, compounds, and forms such as "dog's".
    """
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        lines = content.decode("latin-1").split("\n")
    words: dict[str, None] = {}  # in order, each once
    for index in np.random.default_rng(0).permutation(len(lines)):
        word = unicodedata.normalize("NFC", lines[index].strip())
        word = word[:1].lower() + word[1:]
        if 2 <= len(word) < LENGTH and set(word) <= set(LETTERS):
            words[word] = None
        if len(words) == number:
            break
    return list(words)


def encode(words: Iterable[str]) -> np.ndarray:
    """Words as `[words, LENGTH]` uint8: letters from 1, and 0 from the end on."""
    codes = {letter: code for code, letter in enumerate(LETTERS, 1)}
    rows = [[codes[letter] for letter in word] for word in words]
    return np.array([row + [0] * (LENGTH - len(row)) for row in rows], np.uint8)


def decode(rows: np.ndarray) -> list[str]:
    """The words of `encode`."""
    letters = "\n" + LETTERS
    return ["".join(letters[code] for code in row).partition("\n")[0] for row in np.asarray(rows)]


def load(folder: Path = FOLDER, number: int = 10_000) -> dict[str, np.ndarray]:
    """`number` words of every language, `[words, LENGTH]`."""
    return {name: encode(read_words(folder / file, number)) for name, file in LISTS.items()}


# The tasks ----------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Languages:
    """Draws a language, and mini-batches of its words: of all of them, or of a few."""

    words: jax.Array  # [languages, words, LENGTH] uint8
    shots: int | None = dataclasses.field(default=None, metadata={"static": True})
    steps: int = dataclasses.field(default=100, metadata={"static": True})
    batch_size: int = dataclasses.field(default=20, metadata={"static": True})

    def sample(self, key: jax.Array) -> rj.Task:
        """A task of a random language: support `[steps, batch_size, LENGTH]`."""
        key, own = jax.random.split(key)
        return self.task(jax.random.randint(own, (), 0, len(self.words)), key)

    def task(self, language: jax.Array, key: jax.Array) -> rj.Task:
        """A task of a given language; with few shots, 200 other words are the query set."""
        count, size = self.words.shape[1], (self.steps, self.batch_size)
        if self.shots is None:
            return rj.Task(self.words[language, jax.random.randint(key, size, 0, count)])
        choice, order = jax.random.split(key)
        words = self.words[language, rj.tasks.draw_distinct(choice, count, self.shots + 200)]
        shots, others = words[: self.shots], words[self.shots :]
        own = rj.tasks.minibatches(order, shots, steps=self.steps, batch_size=self.batch_size)
        return rj.Task(own, others)


# The model ----------------------------------------------------------------------------------------


class Block(nnx.Module):
    """Attention to the characters before, and a layer for each character."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, rngs=rngs)
        self.before, self.between = (nnx.RMSNorm(width, rngs=rngs) for _ in range(2))
        self.into, self.out = linear(width, 3 * width), linear(width, width)
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)
        self.heads = heads

    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*x.shape[:2], self.heads, -1)
        parts = jnp.split(self.into(self.before(x)), 3, -1)
        query, key, value = (part.reshape(shape) for part in parts)
        seen = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.between(x))))


class Transformer(nnx.Module):
    """From words `[words, LENGTH]` to logits `[words, LENGTH, 1 + letters]` of their characters."""

    def __init__(self, rngs: nnx.Rngs, width: int = 32, layers: int = 2, heads: int = 4):
        self.letters = nnx.Embed(1 + len(LETTERS), width, rngs=rngs)
        self.places = nnx.Embed(LENGTH, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, rngs) for _ in range(layers)])
        self.last = nnx.RMSNorm(width, rngs=rngs)
        self.logits = nnx.Linear(width, 1 + len(LETTERS), rngs=rngs)

    def __call__(self, words: jax.Array) -> jax.Array:
        before = jnp.pad(words.astype(jnp.int32), ((0, 0), (1, 0)))[:, :-1]
        x = self.letters(before) + self.places.embedding[...]
        for block in self.blocks:
            x = block(x)
        return self.logits(self.last(x))


def network(seed: int) -> tuple[Any, nnx.GraphDef]:
    """The first parameters, and the graph that makes them a model again."""
    graph, params = nnx.split(Transformer(nnx.Rngs(seed)))
    return params, graph


def bits_per_character(graph: nnx.GraphDef) -> Callable[[Any, jax.Array], jax.Array]:
    """A loss `(params, words [words, LENGTH]) -> bits`; the end of a word is a character too."""

    def bits(params, words):
        targets = words.astype(jnp.int32)
        logits = nnx.merge(graph, params)(words)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        counts = jnp.pad(targets, ((0, 0), (1, 0)), constant_values=1)[:, :-1] > 0
        return jnp.sum(nats * counts) / jnp.sum(counts) / math.log(2)

    return bits


@functools.partial(jax.jit, static_argnums=(0, 3))
def spell(graph: nnx.GraphDef, params: Any, key: jax.Array, number: int) -> jax.Array:
    """Words that the model makes up, `[number, LENGTH]`, character by character."""

    def draw(place, words):
        logits = nnx.merge(graph, params)(words)[:, place]
        drawn = jax.random.categorical(jax.random.fold_in(key, place), logits)
        ended = (place > 0) & (words[:, place - 1] == 0)
        return words.at[:, place].set(jnp.where(ended, 0, drawn).astype(jnp.uint8))

    return jax.lax.fori_loop(0, LENGTH, draw, jnp.zeros((number, LENGTH), jnp.uint8))


# The training -------------------------------------------------------------------------------------


def main(meta_steps: int) -> None:
    words = load()
    unseen = {name: words.pop(name) for name in ("German", "Irish", "Italian")}
    params, graph = network(0)
    bits, key = bits_per_character(graph), jax.random.key(1)
    inner = optax.adam(5e-3, b1=0.0)
    learner = rj.meta_learner(
        rj.reptile(bits, inner),
        optax.sgd(optax.linear_schedule(1.0, 0.0, meta_steps)),
        inner_opt_state="average",
        mesh=None,  # on many devices: rj.task_mesh()
    )
    state, seen = learner.init(params), Languages(jnp.array([*words.values()]))
    training = rj.train(
        learner, state, seen, key, until=meta_steps, meta_batch=4, steps_per_dispatch=10
    )
    for state, infos in training:
        losses = infos.losses.mean((0, 1))
        print(f"meta step {int(state.step)}: loss {losses[0]:.3f}, at the end {losses[-1]:.3f}")

    # A lower rate: 200 words are soon known by heart.
    adapt = jax.jit(functools.partial(rj.inner_loop, bits, optax.adam(1e-3, b1=0.0)))
    params, start = jax.device_get((state.params, state.inner_opt_state))  # from all devices to one
    for name, own in unseen.items():
        task = Languages(jnp.array([own]), shots=200).sample(key)
        adapted = adapt(params, task.support, start).params
        before, after = (float(bits(of, task.query)) for of in (params, adapted))
        print(f"{name}: {before:.3f} bits per character, adapted {after:.3f}")
        print("  made up:", *decode(spell(graph, adapted, key, 10)))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
