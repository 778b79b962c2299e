"""Weights that come with the package, each with the card of its training."""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reptile_jax.deploy import tensors
from reptile_jax.deploy.adaptable import AdaptableModel
from reptile_jax.deploy.recipes import from_config

WEIGHTS = Path(__file__).parent / "weights"


@functools.cache
def cards() -> Mapping[str, Mapping[str, Any]]:
    """The cards of the pretrained models by name: data, training, figures and checksum."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(WEIGHTS.glob("*.json"))}


def pretrained(name: str) -> AdaptableModel:
    """A model that the package brings along, to adapt without data or training.

        model = rj.pretrained("omniglot-5way")
        probabilities = model.predict(support_images, labels, query_images)

    Args:
      name: "omniglot-20way", the most accurate at 20 classes, and "omniglot-5way", both for any
        number; "omniglot-paper", by the paper's recipe, for 5 classes; "sine-waves".
        `model.card` has the training, the data and the accuracy.

    Raises:
      ValueError: for another name, or weights that are damaged.
    """
    card = cards().get(name) if isinstance(name, str) else None
    if card is None:
        raise ValueError(f"there is no pretrained {name!r:.80}, only {', '.join(cards())}.")
    content = (WEIGHTS / f"{name}.safetensors").read_bytes()
    if hashlib.sha256(content).hexdigest() != card["sha256"]:
        raise ValueError(f"the weights of {name} are damaged: install reptile-jax again.")
    facts = {key: value for key, value in card.items() if key != "config"}
    return tensors.loaded(from_config(card["config"], **facts), content)
