"""CSV files with a header: delimiter, byte order mark, and columns that go by many names."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cytolens.formats.intake import Intake, Reference, as_number, encoding_of
from cytolens.formats.options import ReadOptions
from cytolens.formats.sources import ImageIndex, posix_name
from cytolens.labels import folded
from cytolens.problems import FormatError, SettingError, did_you_mean, listing

BOX = ("x_min", "y_min", "x_max", "y_max")
SUFFIXES = frozenset({".csv", ".tsv"})

# Our name → what files call it (as `folded` compares it), the likeliest first. "x0" is left out on
# purpose: beside it "x1" is the right edge, not the left one.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "image": (
        "image", "filename", "file name", "file", "image id", "image name", "img", "img name", "img id", "image path",
        "img path", "path", "name",
    ),
    "x_min": ("x min", "xmin", "x1", "left", "bbox x min", "xtl"),
    "y_min": ("y min", "ymin", "y1", "top", "bbox y min", "ytl"),
    "x_max": ("x max", "xmax", "x2", "right", "bbox x max", "xbr"),
    "y_max": ("y max", "ymax", "y2", "bottom", "bbox y max", "ybr"),
    "label": ("class", "label", "category", "subtype", "cell type", "class name", "label name", "prediction"),
    "score": ("score", "confidence", "conf", "probability"),
    "split": ("split", "subset", "set", "partition"),
    "group": ("group", "patient", "patient id", "slide", "slide id", "plate"),
    "ignore": ("ignore", "difficult", "iscrowd"),
}  # fmt: skip
_TRUE = frozenset({"1", "1.0", "true", "t", "yes", "y"})


@dataclass(frozen=True)
class Table:
    """A CSV file's columns under our names.

    Attributes:
        columns: our name → values as text, one per row, without surrounding blanks.
        lines: the line of each row in the file.
        decimal_comma: whether numbers may be written with a comma.
        names: our name → the file's name of the column.
    """

    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]
    decimal_comma: bool
    names: Mapping[str, str]

    def texts(self, name: str) -> list[str | None]:
        """A column with empty fields (or the whole absent column) as None."""
        return [value or None for value in self.columns.get(name, [""] * len(self.lines))]

    def numbers(self, name: str) -> list[float | None]:
        """A column of numbers; empty fields are None, and what is no number is NaN."""
        mark = "," if self.decimal_comma else "."
        return [None if text is None else as_number(text.replace(mark, ".")) for text in self.texts(name)]

    def flags(self, name: str) -> list[bool]:
        """A column of yes and no; empty and anything unknown is no."""
        return [value.casefold() in _TRUE for value in self.columns.get(name, [""] * len(self.lines))]


def read_table(
    intake: Intake,
    path: Path,
    needed: Sequence[str],
    optional: Sequence[str],
    synonyms: Mapping[str, Sequence[str]] = SYNONYMS,
) -> Table:
    """Read a CSV file; its columns are found by `synonyms` and by `ReadOptions.columns`.

    Raises:
        FormatError: it is no CSV text, has no header, lacks a needed column, or a row has too few or many fields.
        SettingError: `ReadOptions.columns` has an unknown key.
    """
    text = intake.read_text(path)
    delimiter = _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    values: list[list[str]] = []
    lines: list[int] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            if any(field.strip() for field in row):
                values.append(_fitted(row, len(header), path, reader.line_num))
                lines.append(reader.line_num)
    except csv.Error as error:
        raise FormatError(f"{path}, line {reader.line_num}: is not proper CSV ({error}).") from error
    positions = _columns(header, [*needed, *optional], intake, path, synonyms)
    missing = [name for name in needed if name not in positions]
    if missing:
        raise FormatError(_lacking(path, missing, header, synonyms))
    columns = {name: [row[at].strip() for row in values] for name, at in positions.items()}
    return Table(columns, lines, delimiter != ",", {name: header[at] for name, at in positions.items()})


def find_table(
    source: Path,
    fits: Callable[[set[str]], bool],
    what: str,
    options: ReadOptions,
    synonyms: Mapping[str, Sequence[str]] = SYNONYMS,
) -> Path:
    """The CSV file that is meant: the source itself, or the only one of its folder whose columns fit.

    Raises:
        FormatError: there is none, or several.
    """
    if source.is_file():
        return source
    there = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    fitting = there if options.columns else [path for path in there if fits(header_of(path, synonyms))]
    if len(fitting) == 1 or len(there) == 1:
        return (fitting or there)[0]
    found = listing(path.name for path in fitting or there) or "none"
    raise FormatError(f"{source}: wanted one CSV file of {what}; found {found}. Name the file itself.")


def image_references(
    table: Table, intake: Intake, path: Path, *folders: str
) -> tuple[list[Reference], list[int], ImageIndex]:
    """The images that a table names, and for each row its position among them (-1: the row names none).

    `folders` are those that `Intake.index` looks for.
    """
    index = intake.index(*folders)
    place = intake.place(path)
    rows_of: dict[str, list[int]] = {}
    for row, text in enumerate(table.columns["image"]):
        rows_of.setdefault(posix_name(text), []).append(row)
    for row in rows_of.pop("", ()):
        where = f"{place}:{table.lines[row]}"
        intake.problems.add("image-unnamed", where, "the row names no image; it is left out.", severity="error")
    found = index.resolve(rows_of)
    splits, groups = table.texts("split"), table.texts("group")
    references, of_row = [], [-1] * len(table.lines)
    for position, (name, its_rows) in enumerate(rows_of.items()):
        for row in its_rows:
            of_row[row] = position
        references.append(
            Reference(
                name=name,
                where=f"{place}:{table.lines[its_rows[0]]}",
                image_id=found[name],
                splits=tuple(dict.fromkeys(s for row in its_rows if (s := splits[row]) is not None)),
                group=next((g for row in its_rows if (g := groups[row]) is not None), None),
            )
        )
    return references, of_row, index


def header_of(path: Path, synonyms: Mapping[str, Sequence[str]] = SYNONYMS) -> set[str]:
    """Our names of the columns that a CSV file has; empty where it is no CSV file. For telling formats apart."""
    try:
        with path.open("rb") as stream:
            encoding = encoding_of(stream.read(2))
        with path.open(encoding=encoding) as stream:
            first = stream.readline(65536)
        header = next(csv.reader([first], delimiter=_delimiter(first), strict=True), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return set()
    names = {folded(name) for name in header}
    return {ours for ours, theirs in synonyms.items() if names & {*theirs, folded(ours)}}


def is_boxes(columns: set[str]) -> bool:
    """Whether columns are those of a table of boxes."""
    return {"image", *BOX} <= columns


def is_image_labels(columns: set[str]) -> bool:
    """Whether columns are those of a table of image labels."""
    return {"image", "label"} <= columns and not columns & set(BOX)


def _delimiter(text: str) -> str:
    header = text.split("\n", 1)[0]
    return max(",;\t", key=header.count)


def _fitted(row: list[str], width: int, path: Path, line: int) -> list[str]:
    """A row as long as the header; only empty fields may be too many."""
    if len(row) < width or any(field.strip() for field in row[width:]):
        raise FormatError(
            f"{path}, line {line}: {len(row)} fields, but the header has {width}. "
            "Check for a cut line, a stray delimiter or a missing quotation mark."
        )
    return row[:width]


def _columns(
    header: Sequence[str], wanted: Sequence[str], intake: Intake, path: Path, synonyms: Mapping[str, Sequence[str]]
) -> dict[str, int]:
    """Our name → position in the header."""
    asked = intake.options.columns or {}
    for ours in asked:
        if ours not in wanted:
            hint = did_you_mean(ours, wanted)
            raise SettingError(f'columns: unknown name "{ours}". {hint + " " if hint else ""}Names: {listing(wanted)}')
    positions: dict[str, int] = {}
    names = [folded(name) for name in header]
    for ours in wanted:
        if ours in asked:
            if asked[ours] not in header:
                raise FormatError(_lacking(path, [asked[ours]], header, synonyms))
            positions[ours] = header.index(asked[ours])
            continue
        fitting = [names.index(theirs) for theirs in synonyms[ours] if theirs in names]
        if fitting:
            positions[ours] = fitting[0]
        if len(fitting) > 1:
            others = listing(header[at] for at in fitting[1:])
            what = f'{ours} is read from the column "{header[fitting[0]]}"; there is also {others}.'
            intake.problems.add("column-ambiguous", intake.place(path), what, "Choose with columns.", "note")
    return positions


def _lacking(path: Path, missing: Sequence[str], header: Sequence[str], synonyms: Mapping[str, Sequence[str]]) -> str:
    hints = {name: " or ".join(synonyms[name][:4]) for name in missing if name in synonyms}
    wanted = "; ".join(f"{name} ({hints[name]})" if name in hints else f'"{name}"' for name in missing)
    return (
        f"{path}: no column for {wanted}. Columns there: {listing(header, 20) or 'none'}. "
        "Name them with columns: our name → the file's."
    )
