"""The demo's server: what it answers, what it refuses, and that visitors do not wait in line."""

import concurrent.futures
import dataclasses
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reptile_jax as rj
from reptile_jax.app import cli
from reptile_jax.app.demo import engine, questions, server
from reptile_jax.app.demo import models as models_of_the_page
from reptile_jax.deploy import AdaptableModel
from reptile_jax.deploy.recipes import inner_sgd
from tests.app.demo.visits import ask, encoded, served, visit

SIZE = 8
JSON = {"content_type": "application/json"}


def small(ways: int = 5) -> AdaptableModel:
    """A network that compiles in no time, for greys of 8 x 8."""
    of = lambda ways: rj.nn.ConvNet(ways, features=2, blocks=1)
    init = lambda key: of(ways).init(key, jnp.zeros((1, SIZE, SIZE, 1)))
    return AdaptableModel(
        of(ways).apply,
        init(jax.random.key(1)),
        inner_sgd(0.1),
        (SIZE, SIZE, 1),
        ways,
        5,
        init=init,
        apply_for=lambda ways: of(ways).apply,
    )


@pytest.fixture(scope="module")
def models():
    symbols = engine.Symbols(small(), small().untrained(jax.random.key(2)))
    return symbols, engine.Waves(rj.pretrained("sine-waves"))


@pytest.fixture(scope="module")
def port(models):
    with served(server.application(*models)) as port:
        yield port


def drawings(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, SIZE, SIZE), np.uint8)


def about_symbols(**changes):
    """A question that is answered, unless changed."""
    images = [encoded(image) for image in drawings(4)]
    question = {"start": "learned", "transductive": False}
    return question | {"support": images[:3], "queries": images[3:]} | changes


# --------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("transductive", [False, True])
@pytest.mark.parametrize("start", engine.STARTS)
def test_an_answer_is_the_librarys(port, models, start, transductive):
    images = drawings(5)
    answer = ask(
        port,
        "/symbols",
        about_symbols(
            start=start, transductive=transductive, queries=[encoded(image) for image in images[3:]]
        ),
    )
    model = models[0].models(3)[start]
    support, queries = images[:3, ..., None] / 255, images[3:, ..., None] / 255
    how = {"transductive": transductive}
    expected = model.trajectory(support, np.arange(3), queries, **how)
    assert np.shape(answer["probabilities"]) == (51, 2, 3)
    np.testing.assert_allclose(answer["probabilities"], expected.predictions, atol=1e-5)
    np.testing.assert_allclose(answer["losses"], expected.losses, atol=1e-4)
    np.testing.assert_allclose(
        answer["probabilities"][-1],
        model.predict(support, np.arange(3), queries, **how),
        atol=1e-5,
    )


def test_the_initialisations_differ_and_share_their_steps(models):
    by_start = models[0].models(4)
    leaves = [jax.tree.leaves(model.params) for model in by_start.values()]
    assert len(by_start) == 3
    for one, other in ((0, 1), (0, 2), (1, 2)):
        pairs = zip(leaves[one], leaves[other], strict=True)
        assert any(not np.allclose(a, b) for a, b in pairs)
    assert len({model.inner_steps for model in by_start.values()}) == 1


def test_a_classifier_that_is_learned_keeps_its_width(models):
    learned = dataclasses.replace(small(), apply_for=None)
    symbols = engine.Symbols(learned, small(7).untrained(jax.random.key(2)))
    for start, model in symbols.models(3).items():
        found = jax.eval_shape(model.apply, model.params, jnp.zeros((2, SIZE, SIZE, 1)))
        assert (start, found.shape, model.ways) == (start, (2, 5), 3)


def test_a_run_by_prototypes_says_where_its_classifier_starts(of_prototypes):
    told = "From every initialisation, the classifier starts at the examples' class means."
    assert told in models_of_the_page.load(of_prototypes)[2]
    assert told not in models_of_the_page.load()[2]


def test_steps_get_fewer_where_examples_get_more(models):
    steps = [models[0].steps(ways) for ways in range(3, 21)]
    assert steps[2] == 50
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] >= 20


def test_a_wave_is_fitted_and_its_loss_is_of_the_points(port, models):
    x = np.linspace(-4, 4, 10)
    answer = ask(port, "/waves", {"start": "learned", "x": [*x], "y": [*2 * np.sin(x)]})
    curves = np.array(answer["curves"])
    assert curves.shape == (33, len(models[1].grid))
    assert answer["losses"][-1] < 0.05 < answer["losses"][0]
    at_points = [np.interp(x, models[1].grid, curve) for curve in curves]
    by_hand = [np.mean((values - 2 * np.sin(x)) ** 2) for values in at_points]
    np.testing.assert_allclose(answer["losses"], by_hand, atol=0.05)


def test_answers_are_json_where_an_adaptation_diverges(port):
    points = {"x": [-100.0, 100.0, 3.0], "y": [100.0, -100.0, 100.0]}
    for start in ("learned", "random"):
        assert np.isfinite(ask(port, "/waves", {"start": start} | points)["losses"]).all()


# --------------------------------------------------------------------------------- the page


def test_the_page_has_all_that_it_names_and_nothing_from_elsewhere(port):
    seen, names = {}, ["", "models.json", "omniglot.json"]
    while names:
        name = names.pop()
        if name in seen:
            continue
        status, content, headers = visit(port, "GET", f"/{name}")
        assert status == 200, name
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        seen[name] = content.decode()
        names += re.findall(r'(?:src|href)="([^"]+)"', seen[name]) if not name else []
        names += re.findall(r'from "\./([^"]+)"', seen[name])
    assert {"style.css", "main.js", "pad.js", "symbols.js", "waves.js", "icon.svg"} <= seen.keys()
    for name, content in seen.items():
        others = set(re.findall(r"https?://[\w.]+", content)) - {"http://www.w3.org"}
        assert not others or (name, others) == ("omniglot.json", {"https://github.com"})


def test_the_characters_come_with_their_licence_and_were_held_out(port):
    file = json.loads(visit(port, "GET", "/omniglot.json")[1])
    assert "Copyright (c) 2015 Brenden Lake" in file["licence"]
    assert len(file["names"]) == 40
    trainings = list(
        (Path(__file__).parents[3] / "benchmarks" / "trainings").glob("*/classes.json")
    )
    assert trainings
    for classes in trainings:
        assert set(file["names"]) <= set(json.loads(classes.read_text())["test"])


# -------------------------------------------------------------------------------- refusals

BAD = {
    "no JSON": b"{",
    "not UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 10_000,
    "a list": b"[]",
    "another field": json.dumps(about_symbols(more=1)).encode(),
    "a field less": b'{"start": "learned"}',
    "another start": json.dumps(about_symbols(start="../learned")).encode(),
    "a start that is no text": json.dumps(about_symbols(start=["learned"])).encode(),
    "no truth": json.dumps(about_symbols(transductive=1)).encode(),
    "two symbols": json.dumps(about_symbols(support=about_symbols()["support"][:2])).encode(),
    "too many symbols": json.dumps(about_symbols(support=["AAAA"] * 21)).encode(),
    "no query": json.dumps(about_symbols(queries=[])).encode(),
    "too many queries": json.dumps(about_symbols(queries=about_symbols()["queries"] * 6)).encode(),
    "an image of another size": json.dumps(about_symbols(queries=["AAAA"])).encode(),
    "no base64": json.dumps(about_symbols(queries=["é" * 86])).encode(),
    "a number": json.dumps(about_symbols(queries=[7])).encode(),
    "images that are no list": json.dumps(about_symbols(support="AAAA")).encode(),
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_what_is_no_question_about_symbols_is_refused(port, body):
    status, content, _ = visit(port, "POST", "/symbols", body, **JSON)
    assert status == 400
    assert content


@pytest.mark.parametrize(
    "points",
    [
        {"x": [], "y": []},
        {"x": [1.0], "y": [1.0, 2.0]},
        {"x": [1.0] * 21, "y": [1.0] * 21},
        {"x": ["1"], "y": [1.0]},
        {"x": [True], "y": [1.0]},
        {"x": [float("nan")], "y": [1.0]},
        {"x": [float("inf")], "y": [1.0]},
        {"x": [10**400], "y": [1.0]},
        {"x": 1.0, "y": 1.0},
    ],
)
def test_what_is_no_question_about_points_is_refused(port, points):
    body = json.dumps({"start": "learned"} | points).encode()
    assert visit(port, "POST", "/waves", body, **JSON)[0] == 400


@pytest.mark.parametrize(
    ("method", "address", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/../../../../etc/passwd", 404),
        ("GET", "/%2e%2e/server.py", 404),
        ("GET", "/..%2fserver.py", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", "/server.py", 404),
        ("GET", "/page/index.html", 404),
        ("GET", "/symbols", 405),
        ("POST", "/", 405),
        ("PUT", "/index.html", 405),
        ("DELETE", "/omniglot.json", 405),
    ],
)
def test_an_address_is_one_of_the_pages_or_nothing(port, method, address, status):
    assert visit(port, method, address)[0] == status


def test_a_question_is_json_of_some_size(port, models):
    good = json.dumps(about_symbols()).encode()
    assert visit(port, "POST", "/symbols", good, content_type="text/plain")[0] == 415
    assert visit(port, "POST", "/symbols", good)[0] == 415
    long = good + b" " * questions.largest(models[0])
    status, content, headers = visit(port, "POST", "/symbols", long, **JSON)
    assert (status, headers["connection"]) == (413, "close")
    assert b"a question has at most" in content


@pytest.mark.attack
def test_a_question_without_an_end_is_not_listened_to(port):
    asked = f"POST /waves HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as visitor:
        visitor.sendall(f"{asked}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunks = b"".join([b"10000\r\n", b" " * 2**16, b"\r\n"] * 2000)
        with pytest.raises(ConnectionError):
            visitor.sendall(chunks)


@pytest.mark.parametrize("size", [SIZE, 224])
def test_the_longest_question_is_no_longer_than_the_largest(models, size):
    symbols = engine.Symbols(dataclasses.replace(small(), input_shape=(size, size, 1)))
    image = encoded(np.full((size, size), 255, np.uint8))
    images = {"support": [image] * symbols.ways[1], "queries": [image] * engine.QUERIES}
    points = dict.fromkeys("xy", [-1.2345678901234567e-100] * engine.POINTS[1])
    for question in (about_symbols(**images), {"start": "joint training"} | points):
        body = json.dumps(question, indent=2).encode()
        assert len(body) <= questions.largest(symbols)
    assert len(questions.about_symbols(body_of(images), symbols).support) == 20


def body_of(changes):
    return json.dumps(about_symbols(**changes)).encode()


def test_only_this_machine_is_answered(port):
    status = lambda **headers: visit(port, "GET", "/", **headers)[0]
    assert status(host=f"LOCALHOST:{port}") == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", ""):
        assert 400 <= status(host=host) < 500
    assert status(origin=f"http://127.0.0.1:{port}") == 200
    for origin in ("http://evil.example", f"http://localhost:{port + 1}", "null"):
        assert status(origin=origin) == 403
    with server.bound(None) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(("port", "is_own"), [(80, True), (8000, False)])
@pytest.mark.parametrize("name", [server.HOST, "localhost"])
def test_browsers_leave_out_the_usual_port(port, is_own, name):
    page = f"http://{name}".encode()
    headers = [(b"host", name.encode()), (b"origin", page)]
    scope = {"type": "http", "server": (server.HOST, port), "headers": headers}
    assert server._is_own(scope) is is_own
    assert not server._is_own({**scope, "headers": [*headers, (b"origin", page + b".example")]})


# -------------------------------------------------------------------------- many visitors


def test_nobody_waits_for_anothers_compilation():
    programs, compiling, go_on = engine.Programs(), threading.Event(), threading.Event()

    def slow():
        compiling.set()
        assert go_on.wait(30)
        return "slow"

    found = []
    first = threading.Thread(target=lambda: found.append(programs.run("one", slow)))
    first.start()
    assert compiling.wait(30)
    assert programs.run("other", lambda: "other") == "other"
    same = threading.Thread(target=lambda: found.append(programs.run("one", lambda: "quick")))
    same.start()
    same.join(0.2)
    assert same.is_alive()
    assert not found
    go_on.set()
    first.join(30), same.join(30)
    assert found == ["slow", "quick"]


class Slow(engine.Symbols):
    """Compiles for four symbols until it is told to go on."""

    def __init__(self, learned):
        super().__init__(learned)
        self.asked, self.go_on = [], threading.Event()

    def program(self, start, support, queries, **how):
        self.asked.append(len(support))
        return super().program(start, support, queries, **how)

    def answer(self, start, support, queries, **how):
        program = super().program(start, support, queries, **how)
        wait = lambda: len(support) != 4 or self.go_on.wait(60)
        return {"waited": self.programs.run(program, wait)}


def test_many_who_wait_for_one_program_take_no_threads_from_others(models):
    slow = Slow(small())
    with served(server.application(slow, models[1])) as port:

        def one(ways):
            images = [encoded(image) for image in drawings(ways)]
            return ask(port, "/symbols", about_symbols(support=images, queries=images[:1]))

        with concurrent.futures.ThreadPoolExecutor(50) as visitors:
            assert one(3) == {"waited": True}
            waiting = [visitors.submit(one, 4) for _ in range(45)]
            while len(slow.asked) < 46:
                time.sleep(0.01)
            try:
                for ways in (3, 5):  # one that is compiled, and one that is not
                    assert visitors.submit(one, ways).result(20) == {"waited": True}
                assert not any(visitor.done() for visitor in waiting)
            finally:
                slow.go_on.set()
            assert {visitor.result(30)["waited"] for visitor in waiting} == {True}


def test_an_answer_has_the_precision_of_the_run(models):
    """Which JAX keeps by thread, and reads where a program is traced."""
    seen = []

    def seeing(apply):
        def seen_apply(params, x):
            seen.append(jax.config.jax_default_matmul_precision)
            return apply(params, x)

        return seen_apply

    card = {"config": {"matmul_precision": "bfloat16"}}
    learned, waves = small(), models[1].models["learned"]
    waves = dataclasses.replace(waves, apply=seeing(waves.apply), card=card)
    apply_for = lambda ways: seeing(learned.apply_for(ways))
    symbols = dataclasses.replace(learned, apply=None, apply_for=apply_for, card=card)
    with served(server.application(engine.Symbols(symbols), engine.Waves(waves))) as port:
        ask(port, "/waves", {"start": "learned", "x": [1.0], "y": [1.0]})
        assert set(seen) == {"bfloat16"}
        seen.clear()
        ask(port, "/symbols", about_symbols())
    assert set(seen) == {"bfloat16"}


def test_visitors_are_answered_together(port):
    answers = {}

    def one(ways):
        images = [encoded(image) for image in drawings(ways, ways)]
        question = about_symbols(support=images, queries=images[:1])
        answers[ways] = np.array(ask(port, "/symbols", question)["probabilities"])

    visitors = [threading.Thread(target=one, args=(ways,)) for ways in (4, 6)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert {ways: found.shape for ways, found in answers.items()} == {
        4: (51, 1, 4),
        6: (48, 1, 6),
    }
    for found in answers.values():
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-4)


# ---------------------------------------------------------------------------- the command


def test_the_command_says_what_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("command", "server"):
        monkeypatch.delitem(sys.modules, f"reptile_jax.app.demo.{name}", raising=False)
    monkeypatch.delattr("reptile_jax.app.demo.server", raising=False)
    assert cli.main(["demo"]) == 1
    assert 'pip install "reptile-jax[demo]"' in capsys.readouterr().err


def test_a_port_that_cannot_be_had_is_named(capsys):
    with server.bound(None) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["demo", "--no-open", "--port", str(port)]) == 1
        assert f"cannot have port {port}" in capsys.readouterr().err
    assert cli.main(["demo", "--no-open", "--port", "70000"]) == 1
    assert "cannot have port 70000" in capsys.readouterr().err


def test_joint_training_is_compared_where_the_network_is_its_own():
    assert models_of_the_page._joint("symbols", rj.pretrained("omniglot-20way")) is not None
    assert models_of_the_page._joint("symbols", small()) is None
    assert engine.Symbols(small()).starts == ("learned", "random")


@pytest.mark.slow
def test_the_command_serves_until_a_signal():
    command = [sys.executable, "-m", "reptile_jax", "demo", "--no-open"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        try:
            lines = [demo.stdout.readline(), demo.stdout.readline()]
            port = int(re.search(r"127\.0\.0\.1:(\d+)/", lines[1])[1])
            assert visit(port, "GET", "/")[0] == 200
            demo.send_signal(signal.SIGINT)
            assert demo.wait(60) in (128 + signal.SIGINT, -signal.SIGINT)
            assert demo.stderr.read() == "reptile-jax: interrupted\n"
        finally:
            demo.kill()
