"""One HTML page for every report: a single file that needs nothing else.

A page is built from blocks, and each block gives a new page::

    html = Page("Evaluation", "87 images").tiles([Tile("recall", "0.91")]).notes(["…"]).render()

Styles and pictures are inside the file; nothing is loaded from anywhere, and a content security
policy in the page makes sure of it. Whatever text comes in is escaped.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from cytolens.problems import written

if TYPE_CHECKING:
    from jinja2 import Template

Tone = Literal["note", "warning", "error"]
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline figure: what it is, its value as text, and a line of detail such as its interval."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture (PNG, JPEG or SVG bytes; None: it cannot be shown) with its caption.

    Attributes:
        data: the file's bytes.
        caption: shown under it.
        detail: a second, fainter line.
        alt: for readers who cannot see it; the caption where empty.
        wide: among large pictures, take the page's whole width.
    """

    data: bytes | None
    caption: str
    detail: str = ""
    alt: str = ""
    wide: bool = False

    @property
    def uri(self) -> str | None:
        """The picture as a data URI.

        Raises:
            ValueError: the bytes are no PNG, JPEG or SVG.
        """
        if self.data is None:
            return None
        return f"data:{_media_type(self.data)};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True)
class Page:
    """A page and its blocks so far.

    Attributes:
        title: the page's heading.
        subtitle: a line under it.
        footer: a line at the end.
        blocks: made by the methods.
    """

    title: str
    subtitle: str = ""
    footer: str = "Made with Cytolens. For research; not for diagnosis."
    blocks: tuple[Mapping[str, Any], ...] = ()

    def section(self, heading: str, text: str = "") -> Self:
        """A heading, with an optional paragraph; it also stands in the list of contents."""
        number = sum(block["kind"] == "section" for block in self.blocks) + 1
        return self._with("section", heading=heading, text=text, anchor=f"section-{number}")

    def text(self, text: str) -> Self:
        """A paragraph."""
        return self._with("text", text=text)

    def tiles(self, tiles: Sequence[Tile]) -> Self:
        """Headline figures side by side."""
        return self._with("tiles", tiles=tuple(tiles))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> Self:
        """A table; wide ones scroll. The first column names the rows; numbers stand to the right.

        None is shown as "–", a float with three decimals.

        Raises:
            ValueError: a row has another number of cells than there are columns.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"a row has {len(row)} cells for {len(columns)} columns: {list(row)}")
        right = [i > 0 and _is_numeric([row[i] for row in rows]) for i in range(len(columns))]
        shown = [[cell_text(cell) for cell in row] for row in rows]
        return self._with("table", columns=tuple(columns), rows=shown, right=right, caption=caption)

    def figure(self, data: bytes, caption: str, alt: str = "") -> Self:
        """One picture over the page's width, with a caption."""
        return self.figures([Picture(data, caption, alt=alt, wide=True)])

    def figures(self, pictures: Sequence[Picture]) -> Self:
        """Large pictures, side by side where there is room."""
        return self._with("figures", pictures=tuple(pictures))

    def grid(self, pictures: Sequence[Picture]) -> Self:
        """Small pictures in rows, each with its caption."""
        return self._with("grid", pictures=tuple(pictures))

    def notes(self, notes: Sequence[str], tone: Tone = "note") -> Self:
        """Sentences set apart in a list; an empty list adds nothing."""
        return self._with("notes", notes=tuple(notes), tone=tone) if notes else self

    def _with(self, kind: str, **content: Any) -> Self:
        return replace(self, blocks=(*self.blocks, {"kind": kind, **content}))

    def render(self) -> str:
        """The page as HTML text."""
        return _template().render(page=self)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file; it takes its name when it is whole."""
        with written(path) as part:
            part.write_text(self.render(), encoding="utf-8")


def cell_text(value: object) -> str:
    """A value as a table shows it."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def interval_text(value: float | None, interval: Sequence[float] | None, digits: int = 3) -> str:
    """A figure and its interval, such as "0.912 (0.88–0.94)"; "–" where undefined."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text if interval is None else f"{text} ({interval[0]:.{digits}f}–{interval[1]:.{digits}f})"


def difference_text(value: float | None, interval: Sequence[float] | None, digits: int = 3) -> str:
    """A difference with its sign, and its interval: "+0.012 (-0.003 to +0.027)"; "–" where undefined."""
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}"
    return text if interval is None else f"{text} ({interval[0]:+.{digits}f} to {interval[1]:+.{digits}f})"


def _is_numeric(values: Sequence[object]) -> bool:
    """Whether a column is set to the right: numbers, or text that starts with one."""
    texts = [cell_text(value) for value in values if value is not None]
    return bool(texts) and all(text[:1].isdigit() or text[:1] in "–-+" for text in texts)


def _media_type(data: bytes) -> str:
    if data.startswith(b"\x89PNG"):
        return "image/png"
    if data.startswith(b"\xff\xd8"):
        return "image/jpeg"
    if data.lstrip()[:5] in (b"<?xml", b"<svg "):
        return "image/svg+xml"
    raise ValueError(f"not a PNG, JPEG or SVG picture (first bytes {data[:8]!r})")


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")
