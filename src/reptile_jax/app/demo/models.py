"""The models that the page compares: a learned one and one of joint training."""

import importlib.resources
import json
from pathlib import Path

import jax

import reptile_jax as rj
from reptile_jax.app import models
from reptile_jax.app.demo import engine
from reptile_jax.deploy import tensors
from reptile_jax.deploy.adaptable import resized

SYMBOLS, WAVES = "omniglot-5way", "sine-waves"  # pretrained


def load(run: Path | str | None = None) -> tuple[engine.Symbols, engine.Waves, str]:
    """The models of both tabs, and a sentence on the learned ones.

    Args:
      run: the folder of a run, or the name of a pretrained model, for the tab that it fits.

    Raises:
      FileNotFoundError, ValueError: as `models.adaptable`, and for a run of two classes.
    """
    learned = {"symbols": rj.pretrained(SYMBOLS), "waves": rj.pretrained(WAVES)}
    names = {"symbols": SYMBOLS, "waves": WAVES}
    if run is not None:
        model = models.adaptable(run)
        tab = "waves" if model.ways is None else "symbols"
        learned[tab], names[tab] = model, str(run)
    least = engine.WAYS[0]
    if (ways := learned["symbols"].ways or 0) < least and not learned["symbols"].apply_for:
        raise ValueError(f"{run} tells {ways} classes apart, and the page needs {least} or more.")
    about = f"Symbols: {names['symbols']}. Sine waves: {names['waves']}."
    if learned["symbols"].prototypes is not None:
        about += " From every initialisation, the classifier starts at the examples' class means."
    return (
        engine.Symbols(learned["symbols"], _joint("symbols", learned["symbols"])),
        engine.Waves(learned["waves"], _joint("waves", learned["waves"])),
        about,
    )


def _joint(tab: str, learned: rj.deploy.AdaptableModel) -> rj.deploy.AdaptableModel | None:
    """The model of joint training that comes with the page; None if the learned one is another."""
    files = importlib.resources.files("reptile_jax.app.demo") / "weights"
    config = json.loads((files / f"joint-{tab}.json").read_text())["config"]
    joint = tensors.loaded(
        rj.deploy.from_config(config), (files / f"joint-{tab}.safetensors").read_bytes()
    )
    shapes = lambda model: jax.tree.map(lambda leaf: leaf.shape, resized(1, model.params))
    return joint if shapes(joint) == shapes(learned) else None
