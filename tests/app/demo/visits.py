"""Visits to a demo that this process serves, over real sockets."""

import base64
import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import uvicorn

from reptile_jax.app.demo import server


@contextlib.contextmanager
def served(app) -> Iterator[int]:
    """Serves an application; yields the port."""
    with server.bound(None) as listening:
        config = uvicorn.Config(app, log_level="warning", ws="none", lifespan="off")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join()


def visit(
    port: int, method: str, address: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    """The status, content and headers of an answer; `host=""` sends no Host."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"host": f"127.0.0.1:{port}"} | headers
    connection.putrequest(method, address, skip_host=True)
    for name, value in headers.items():
        if value:
            connection.putheader(name.replace("_", "-"), value)
    if body is not None:
        connection.putheader("content-length", str(len(body)))
    connection.endheaders(body)
    with contextlib.closing(connection):
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers


def ask(port: int, address: str, question: Any) -> Any:
    """The answer to a question."""
    body = json.dumps(question).encode()
    status, content, _ = visit(port, "POST", address, body, content_type="application/json")
    assert status == 200, content
    return json.loads(content)


def encoded(image: np.ndarray) -> str:
    return base64.b64encode(image.astype(np.uint8).tobytes()).decode()
