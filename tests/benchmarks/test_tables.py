"""Tables in Markdown, and the marked parts of a page."""

from pathlib import Path

import pytest

from benchmarks import tables


def test_figures_are_aligned_to_the_right():
    text = tables.markdown(["what", "ms", "note"], [["a", "1.0", "x"]], words=("note",))
    assert text == "| what | ms | note |\n|---|---:|---|\n| a | 1.0 | x |"
    assert tables.markdown(["what"], []) == "Not measured yet."


def test_only_what_is_between_the_markers_changes():
    page = "before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n"
    filled = tables.filled(page, {"a": "| new |"})
    assert filled == "before\n<!-- a -->\n\n| new |\n\n<!-- end of a -->\nafter\n"
    assert tables.filled(filled, {"a": "| new |"}) == filled


@pytest.mark.parametrize("parts", [{}, {"a": "", "b": ""}])
def test_page_and_results_have_the_same_parts(parts):
    with pytest.raises(ValueError, match="not in both"):
        tables.filled("<!-- a -->\n<!-- end of a -->", parts)


def test_links_start_from_the_page():
    page = Path("docs/results/speed.md").resolve()
    path = Path("benchmarks/results/speed/peers.json").resolve()
    link = tables.link("peers.json", path, page)
    assert link == "[peers.json](../../benchmarks/results/speed/peers.json)"
    assert tables.picture("p", Path("nowhere.png"), page) == ""


def test_a_table_is_shown(capsys):
    tables.show(tables.Table("The title", ["what", "ms"], [["a", "1.0"]]))
    shown = capsys.readouterr().out
    assert "The title" in shown
    assert "1.0" in shown
