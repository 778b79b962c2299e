"""Starts the demo: models, page, browser."""

import threading
import webbrowser
from pathlib import Path

import numpy as np

from reptile_jax.app import terminal
from reptile_jax.app.demo import engine, models

try:
    from reptile_jax.app.demo import server
except ModuleNotFoundError as error:
    raise ImportError(
        f'the demo needs more packages: pip install "reptile-jax[demo]" ({error})'
    ) from error


def run(model: Path | None, port: int | None, *, opens: bool) -> None:
    """Serves the page until a signal.

    Args:
      model: the folder of a run, or the name of a pretrained model; by default pretrained ones.
      port: of this machine; by default a free one.
      opens: whether to open the page in the browser.

    Raises:
      ValueError: if the port is taken; as `models.load`.
    """
    with server.bound(port) as listening:
        symbols, waves, about = models.load(model)
        threading.Thread(target=_compile_usual, args=(symbols, waves), daemon=True).start()
        address = f"http://{server.HOST}:{listening.getsockname()[1]}/"
        terminal.say(about, f"The page is at {address}, for this machine alone. Ctrl-C ends it.")
        if opens:
            # A browser of the console waits for the page, and this for the browser.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        server.serve(server.application(symbols, waves, about), listening)


def _compile_usual(symbols: engine.Symbols, waves: engine.Waves) -> None:
    """What the page asks first is compiled while the browser starts."""
    paper = np.full((min(5, symbols.ways[1]), symbols.size, symbols.size), 255, np.uint8)
    symbols.answer("learned", paper, paper[:1], transductive=False)
    waves.answer("learned", [0.0] * 10, [0.0] * 10)
