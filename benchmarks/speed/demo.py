"""How long a visitor of the demo waits after a stroke."""

import http.client
import json
import statistics
import threading
import time
from base64 import b64encode

import numpy as np
import uvicorn

from benchmarks.tables import Table
from reptile_jax.app.demo import models, server


def strokes(quick: bool = False) -> Table:
    """The time from a question to its answer, over HTTP, with all inner steps in between.

    Each question has one example of each symbol and one query, as after a stroke on the page. The
    first one, which compiles, does not count.
    """
    repeats = 2 if quick else 30
    symbols, waves, about = models.load(None)
    rows, data = [], {}
    with server.bound(None) as listening:
        app = server.application(symbols, waves, about)
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", listening.getsockname()[1])
        rng = np.random.default_rng(0)
        for ways in (3,) if quick else (3, 5, 10, 15, 20):
            drawn = rng.integers(0, 256, (ways + 1, symbols.size, symbols.size), dtype=np.uint8)
            images = [b64encode(image.tobytes()).decode() for image in drawn]
            question = {"support": images[:-1], "queries": images[-1:], "transductive": False}
            body = json.dumps(question | {"start": "learned"})
            _ask(connection, body)
            seconds = [_ask(connection, body) for _ in range(repeats)]
            data[ways] = seconds
            low, middle, high = (1e3 * value for value in statistics.quantiles(seconds, n=4))
            rows.append(
                [str(ways), str(symbols.steps(ways)), f"{middle:.0f}", f"{low:.0f} - {high:.0f}"]
            )
        running.should_exit = True
        connection.close()
        thread.join()
    columns = ["symbols", "inner steps", "ms", "quartiles"]
    return Table("From a stroke in the demo to its answer", columns, rows, data)


def _ask(connection: http.client.HTTPConnection, body: str) -> float:
    start = time.perf_counter()
    connection.request("POST", "/symbols", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"the demo answered {answer.status}: {content[:200]!r}")
    return time.perf_counter() - start
