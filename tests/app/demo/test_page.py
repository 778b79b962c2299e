"""The demo's page in a real browser: a person draws, and reads what the library says."""

import base64
import json
import shutil

import numpy as np
import pytest

import reptile_jax as rj
from reptile_jax.app.demo import models, server
from tests.app.demo.visits import served

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
STROKES = {  # in shares of the pad's side
    "A": [[(0.2, 0.2), (0.8, 0.8)], [(0.8, 0.2), (0.2, 0.8)]],
    "B": [[(0.5, 0.15), (0.5, 0.85)]],
    "C": [[(0.2, 0.3), (0.8, 0.3)], [(0.2, 0.6), (0.8, 0.6)]],
}


@pytest.fixture(scope="module")
def engines():
    return models.load()


@pytest.fixture(scope="module")
def address(engines):
    with served(server.application(*engines)) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Debian's Chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """A page, with the questions that it asked and the errors that it had."""

    def __init__(self, browser, address: str, **options):
        self.context = browser.new_context(reduced_motion="reduce", **options)
        self.page = self.context.new_page()
        self.errors, self.asked = [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        self.page.on("request", self._keep)
        self.page.set_default_timeout(60_000)
        self.page.goto(address)
        self.settled()

    def _keep(self, request) -> None:
        if request.method == "POST":
            self.asked.append(json.loads(request.post_data))

    def settled(self, contains: str = " inner steps") -> str:
        """Waits until nothing is asked any more; what the page then says."""
        self.page.locator("[role=tabpanel]:visible[aria-busy=false]").wait_for()
        status = self.page.locator("#symbols-status", has_text=contains)
        status.wait_for()
        return status.inner_text()

    def draw(self, pad, strokes) -> None:
        box = pad.bounding_box()
        place = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])
        for first, *others in strokes:
            self.page.mouse.move(*place(*first))
            self.page.mouse.down()
            for point in others:
                self.page.mouse.move(*place(*point), steps=4)
            self.page.mouse.up()

    def probabilities(self) -> list[float]:
        bars = self.page.locator("#bars .bar").all()
        return [float(bar.get_attribute("data-probability")) for bar in bars]

    def last_asked(self, start: str) -> dict:
        return [question for question in self.asked if question["start"] == start][-1]


@pytest.fixture
def visitor(browser, address):
    made = Visitor(browser, address, viewport={"width": 1240, "height": 1000})
    yield made
    made.context.close()
    assert not made.errors


def images(encoded: list[str]) -> np.ndarray:
    greys = [np.frombuffer(base64.b64decode(text), np.uint8) for text in encoded]
    return np.stack(greys).reshape(-1, 28, 28, 1)


def draws_three_symbols(visitor: Visitor) -> None:
    """Draws A, B and C, and a query that is a crooked B."""
    page = visitor.page
    page.get_by_role("button", name="One symbol fewer").click(click_count=2)
    page.get_by_role("button", name="Draw your own").click()
    for letter, strokes in STROKES.items():
        visitor.draw(page.get_by_label(f"Example of {letter}"), strokes)
    visitor.settled("Now draw a query.")
    visitor.draw(page.get_by_label("Query: a pad"), [[(0.46, 0.2), (0.54, 0.8)]])
    visitor.settled()


def test_what_one_draws_is_what_the_library_classifies(visitor):
    draws_three_symbols(visitor)
    asked = visitor.last_asked("learned")
    support, query = images(asked["support"]), images(asked["queries"])
    assert support.shape == (3, 28, 28, 1)
    assert len(query) == 1
    ink = support[..., 0] == 0
    assert set(np.unique(support)) == {0, 255}
    assert ink[1, :, 13:15].sum() > 15
    assert ink[1, :, :12].sum() == 0
    assert ink[2, 8].sum() > 14
    assert ink[2, 12].sum() == 0
    model = rj.pretrained("omniglot-5way").for_ways(3)
    expected = model.predict(support, np.arange(3), query)[0]
    np.testing.assert_allclose(visitor.probabilities(), expected, atol=1e-4)
    assert "B, " in visitor.settled()
    assert np.argmax(expected) == 1


def test_every_inner_step_and_every_initialisation_is_shown(visitor, engines):
    draws_three_symbols(visitor)
    page = visitor.page
    support = images(visitor.last_asked("learned")["support"])
    query = images(visitor.last_asked("learned")["queries"])
    for name in ("Random", "Joint training", "Learned"):
        page.get_by_role("radio", name=name).click()
        visitor.settled()
        model = engines[0].models(3)[name.lower()]
        path = model.trajectory(support, np.arange(3), query).predictions[:, 0]
        slider = page.locator("#symbols-scrub input")
        for step in (0, 1, 7, 50):
            slider.fill(str(step))
            np.testing.assert_allclose(visitor.probabilities(), path[step], atol=1e-4)
    assert page.locator("#symbols-loss path.curve").count() == 3
    assert page.locator("#flow path.band").count() == 3


def test_the_keys_draw_undo_and_load(visitor):
    page = visitor.page
    pad = page.get_by_label("Query: a pad")
    pad.focus()
    page.keyboard.press("Delete")
    visitor.settled("Now draw a query.")
    page.keyboard.press("Space")
    for _ in range(8):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    visitor.settled()
    ink = images(visitor.last_asked("learned")["queries"])[0, ..., 0] == 0
    assert 5 < ink.any(1).sum() < 14
    assert ink.any(0).sum() < 4
    page.keyboard.press("Backspace")
    visitor.settled("Now draw a query.")
    page.keyboard.press("l")
    visitor.settled()


def test_transductive_classifies_all_queries_together(visitor, engines):
    page = visitor.page
    page.get_by_role("button", name="+", exact=True).last.click()
    page.locator("#load-query").click()
    visitor.settled()
    page.get_by_role("switch").check()
    visitor.settled()
    asked = visitor.last_asked("learned")
    assert asked["transductive"]
    assert len(asked["queries"]) == 2
    model = engines[0].models(5)["learned"]
    expected = model.predict(
        images(asked["support"]), np.arange(5), images(asked["queries"]), transductive=True
    )
    np.testing.assert_allclose(visitor.probabilities(), expected[1], atol=1e-4)


def test_a_point_that_is_dragged_takes_the_curve_along(visitor):
    page = visitor.page
    page.get_by_role("tab", name="Sine waves").click()
    page.locator("#waves[aria-busy=false]").wait_for()
    curve = page.locator("#plane path.curve.selected")
    before = curve.get_attribute("d")
    box = page.locator("#plane circle").nth(4).bounding_box()
    page.mouse.move(box["x"] + 8, box["y"] + 8)
    page.mouse.down()
    page.mouse.move(box["x"] + 8, box["y"] + 60, steps=5)
    page.mouse.up()
    page.locator("#waves[aria-busy=false]").wait_for()
    assert curve.get_attribute("d") != before
    asked = visitor.last_asked("learned")
    assert len(asked["x"]) == len(asked["y"]) == 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(browser, address, scheme):
    visitor = Visitor(
        browser,
        address,
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
        color_scheme=scheme,
    )
    page = visitor.page
    for tab in ("Sine waves", "Symbols"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="Draw your own").tap()
    page.get_by_label("Example of A").tap(position={"x": 40, "y": 40})
    page.locator("#symbols-status", has_text="B, C, D, E.").wait_for()  # A has a dot
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(", "))) < 200) == (scheme == "dark")
    visitor.context.close()
    assert not visitor.errors
