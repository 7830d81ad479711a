from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cytolens.evaluate.page import Page, Picture, Tile, cell_text, interval_text


def png(colour=(255, 0, 0)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(stream, "PNG")
    return stream.getvalue()


class Outline(HTMLParser):
    """Collects tags, attributes and text; fails where tags are not closed in order."""

    EMPTY = frozenset({"meta", "img", "link", "br", "!doctype"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and data.strip():
            self.words.append(data.strip())


def everything() -> Page:
    return (
        Page("Title", "subtitle")
        .tiles([Tile("recall", "0.91", "0.88 – 0.94"), Tile("cells", "12")])
        .section("Table", "A paragraph.")
        .table(["label", "cells", "F1"], [["WBC", 1200, 0.5], ["RBC", 7, None]], "caption")
        .section("Pictures")
        .figure(png(), "one", alt="a red field")
        .figures([Picture(png(), "two"), Picture(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "three")])
        .grid([Picture(png(), "four", "detail"), Picture(None, "five")])
        .section("Notes")
        .notes(["a note"])
        .notes(["a warning"], "warning")
        .text("The end.")
    )


def test_blocks_appear_in_order():
    words = Outline(everything().render()).words
    order = [
        "Title", "subtitle", "recall", "0.91", "0.88 – 0.94", "Table", "A paragraph.", "caption", "label", "WBC",
        "1,200", "0.500", "RBC", "7", "–", "Pictures", "one", "two", "three", "four", "detail", "no picture", "five",
        "Notes", "a note", "a warning", "The end.",
    ]  # fmt: skip
    start = words.index("subtitle")
    assert words[:start] == ["Title", "Title"]  # the tab's title and the heading
    assert words[start + 1 : start + 4] == ["Table", "Pictures", "Notes"]  # the contents
    rest = [words[0], words[start], *words[start + 4 :]]
    positions = []
    for word in order:
        positions.append(rest.index(word, positions[-1] + 1 if positions else 0))
    assert positions == sorted(positions)


def test_the_page_is_one_file_that_loads_nothing():
    html = everything().render()
    for _, attributes in Outline(html).tags:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#"))
    policy = next(a["content"] for t, a in Outline(html).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "<script" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"https?://", html)


def test_pictures_are_inside():
    import base64

    sources = [a["src"] for t, a in Outline(everything().render()).tags if t == "img"]
    assert [source.split(";")[0] for source in sources if source] == [
        "data:image/png",
        "data:image/png",
        "data:image/svg+xml",
        "data:image/png",
    ]
    first = sources[0]
    assert first is not None
    assert base64.b64decode(first.split(",")[1]) == png()


def test_a_single_figure_is_wide():
    figures = [a for t, a in Outline(everything().render()).tags if t == "figure"]
    assert [a.get("class") for a in figures] == ["wide", None, None, None, None]


def test_text_is_escaped():
    evil = "<script>alert('x')</script>\"&"
    page = (
        Page(evil, evil, evil)
        .tiles([Tile(evil, evil, evil)])
        .section(evil, evil)
        .table([evil], [[evil]], evil)
        .grid([Picture(png(), evil, evil, evil), Picture(None, evil)])
        .notes([evil])
        .text(evil)
    )
    html = page.render()
    outline = Outline(html)
    assert "<script" not in html
    assert not any(tag == "script" for tag, _ in outline.tags)
    assert outline.words.count(evil) >= 14
    assert [a["alt"] for t, a in outline.tags if t == "img"] == [evil]


def test_a_page_is_not_changed_by_its_blocks():
    page = Page("Title")
    page.notes(["x"]).text("y")
    assert page.blocks == ()
    assert page.notes([]) is page


def test_contents_link_to_sections():
    outline = Outline(everything().render())
    links = [a["href"] for t, a in outline.tags if t == "a"]
    anchors = [a["id"] for t, a in outline.tags if t == "h2"]
    assert links == [f"#{anchor}" for anchor in anchors] == ["#section-1", "#section-2", "#section-3"]
    assert not any(t == "a" for t, _ in Outline(Page("x").section("one").render()).tags)


def test_numbers_stand_to_the_right_and_names_do_not():
    rows = [["1", "WBC", 3, 0.5, "0.5 (0.4–0.6)"], ["2", "RBC", None, np.nan, "–"]]
    page = Page("x").table(["number", "name", "count", "share", "figure"], rows)
    cells = [a.get("class") for t, a in Outline(page.render()).tags if t == "td"]
    assert cells == [None, "right", "right", "right"] * 2


def test_a_crooked_table_is_refused():
    with pytest.raises(ValueError, match="a row has 1 cells for 2 columns"):
        Page("x").table(["a", "b"], [[1]])


def test_bytes_that_are_no_picture_are_refused():
    with pytest.raises(ValueError, match="not a PNG, JPEG or SVG"):
        Page("x").figure(b"GIF89a", "y").render()


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (True, "yes"), (12345, "12,345"), (0.12349, "0.123"), ("a", "a")],
)
def test_cell_text(value, text):
    assert cell_text(value) == text


def test_interval_text():
    assert interval_text(0.9123, [0.88, 0.94], 2) == "0.91 (0.88–0.94)"
    assert interval_text(0.9123, None) == "0.912"
    assert interval_text(None, [0, 1]) == "–"


def test_write_leaves_one_file(tmp_path):
    everything().write(tmp_path / "new" / "report.html")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == everything().render()
