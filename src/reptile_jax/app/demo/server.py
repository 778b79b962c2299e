"""The demo's page and its two questions, for this machine alone.

A request reads and writes no file: the page is in memory, and of an address only its exact text
counts. Another site cannot ask either, by a name of its own that leads here (DNS rebinding): the
host has to be this machine's.
"""

import asyncio
import collections
import functools
import importlib.resources
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from reptile_jax.app.demo import engine, questions

HOST = "127.0.0.1"
_COMPILERS = 40  # threads that compile; the pool for answers has as many
_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def application(symbols: engine.Symbols, waves: engine.Waves, about: str = "") -> ASGIApp:
    """The page and its questions.

    Args:
      about: a sentence on where the learned parameters are from.
    """

    from_symbols, from_waves = _answering(symbols), _answering(waves)

    async def ask_symbols(body: bytes) -> dict[str, Any]:
        asked = questions.about_symbols(body, symbols)
        drawn = asked.start, asked.support, asked.queries
        return await from_symbols(*drawn, transductive=asked.transductive)

    async def ask_waves(body: bytes) -> dict[str, Any]:
        return await from_waves(*questions.about_waves(body, waves))

    largest = questions.largest(symbols)
    routes = [
        *(Route(address, _giving(content, kind)) for address, content, kind in _page()),
        Route("/models.json", _giving(_models(symbols, waves, about), _KINDS["json"])),
        Route("/symbols", _asking(ask_symbols, largest), methods=["POST"]),
        Route("/waves", _asking(ask_waves, largest), methods=["POST"]),
    ]
    return OfThisMachine(Starlette(routes=routes))


def _answering(
    asked: engine.Symbols | engine.Waves,
) -> Callable[..., Awaitable[dict[str, Any]]]:
    """`asked.answer` in a thread: of a pool of its own if it has to compile, so that visitors
    whose programs are compiled find a thread. Who waits for another's compilation takes none.
    """
    waiting: dict[Hashable, asyncio.Lock] = collections.defaultdict(asyncio.Lock)
    compilers = functools.cache(lambda: anyio.CapacityLimiter(_COMPILERS))

    async def answer(*question: Any, **how: Any) -> dict[str, Any]:
        program = asked.program(*question, **how)
        run = functools.partial(asked.answer, *question, **how)
        if not asked.programs.is_compiled(program):
            async with waiting[program]:
                if not asked.programs.is_compiled(program):
                    return await anyio.to_thread.run_sync(run, limiter=compilers())
        return await run_in_threadpool(run)

    return answer


def _page() -> list[tuple[str, bytes, str]]:
    """The address, the content and the kind of each file of the page."""
    files = importlib.resources.files("reptile_jax.app.demo") / "page"
    page = [
        (f"/{file.name}", file.read_bytes(), _KINDS[file.name.rpartition(".")[2]])
        for file in files.iterdir()
    ]
    return [*page, *(("/", content, kind) for name, content, kind in page if name == "/index.html")]


def _models(symbols: engine.Symbols, waves: engine.Waves, about: str) -> bytes:
    """What the page has to know of the models."""
    least, most = symbols.ways
    facts = {
        "about": about,
        "symbols": {
            "starts": symbols.starts,
            "size": symbols.size,
            "ways": {"least": least, "most": most, "usual": min(5, most)},
        },
        "waves": {"starts": waves.starts, "grid": waves.grid.tolist()},
    }
    return json.dumps(facts).encode()


def _giving(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def give(request: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return give


def _asking(
    answer: Callable[[bytes], Awaitable[dict[str, Any]]], largest: int
) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that takes JSON; from another site's page a browser would ask for leave first."""
    too_long = PlainTextResponse(
        f"a question has at most {largest:,} bytes.", 413, {**_HEADERS, "Connection": "close"}
    )

    async def ask(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return PlainTextResponse("a question is application/json.", 415, _HEADERS)
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                if len(body) > largest:
                    return too_long
            return JSONResponse(await answer(bytes(body)), headers=_HEADERS)
        except questions.BadQuestion as problem:
            return PlainTextResponse(str(problem), 400, _HEADERS)
        except ClientDisconnect:
            return PlainTextResponse("", 400, _HEADERS)

    return ask


class OfThisMachine:
    """Refuses requests by another name than this machine's, or from another site's page."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app if _is_own(scope) else _refusal
        await app(scope, receive, send)


_refusal = PlainTextResponse("this page is for its own machine.", 403, _HEADERS)


def _is_own(scope: Scope) -> bool:
    """Whether a request is HTTP, to a name of this machine, from nowhere or from its own page."""
    sent = lambda wanted: [value for name, value in scope["headers"] if name == wanted]
    hosts, port = [host.lower() for host in sent(b"host")], scope["server"][1]
    own = [f"{name}:{port}".encode() for name in (HOST, "localhost")]
    if port == 80:  # which browsers leave out
        own += [HOST.encode(), b"localhost"]
    origins = [b"http://" + host for host in hosts]
    return (
        scope["type"] == "http"
        and len(hosts) == 1
        and hosts[0] in own
        and all(origin.lower() in origins for origin in sent(b"origin"))
    )


def bound(port: int | None) -> socket.socket:
    """A socket that listens on this machine alone, at the port, or at a free one.

    Raises:
      ValueError: if the port is taken, or is none.
    """
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((HOST, port or 0))
        made.listen(128)
    except (OSError, OverflowError) as error:
        made.close()
        raise ValueError(f"the demo cannot have port {port}: {error}") from error
    return made


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Serves until a signal ends it.

    In a thread of its own, where uvicorn leaves the signals to the command line.
    """
    config = uvicorn.Config(app, log_level="warning", access_log=False, ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        thread.join()
    finally:
        server.should_exit = True
        thread.join(2)
