"""Edits: the append-only log of a review.

A person's corrections are never written into the cells they correct. They are a list of edits, one
changed field each, that refers to cells by `cell_id`; `Dataset.apply` makes a new dataset of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from cytolens.cells import Cells
from cytolens.problems import DatasetError, LabelError, did_you_mean, listing, written

SCHEMA = {
    "cell_id": pl.String,
    "field": pl.String,
    "old": pl.String,
    "new": pl.String,
    "who": pl.String,
    "when": pl.String,  # ISO 8601, UTC
    "why": pl.String,
}
FIELDS = ("label", "ignore", "refer", "counted", "x_min", "y_min", "x_max", "y_max", "deleted")


@dataclass(frozen=True, eq=False)
class Edits:
    """A frozen log of edits, oldest first, with the columns of `SCHEMA`.

    Raises:
        DatasetError: other columns, or a field that cannot be edited.
    """

    frame: pl.DataFrame

    def __post_init__(self) -> None:
        if dict(self.frame.schema) != SCHEMA:
            raise DatasetError(f"not a log of edits: columns {self.frame.columns}, wanted {list(SCHEMA)}")
        wrong = sorted(set(self.frame["field"].to_list()) - set(FIELDS))
        if wrong:
            raise DatasetError(
                f"edits of unknown fields {listing(wrong)}; fields that can be edited: {listing(FIELDS)}"
            )

    @classmethod
    def empty(cls) -> Self:
        """A log without edits."""
        return cls(pl.DataFrame(schema=SCHEMA))

    def __len__(self) -> int:
        return len(self.frame)

    def note(
        self,
        cells: Cells,
        cell_id: str,
        field: str,
        new: str | float | bool | None,
        *,
        who: str,
        why: str = "",
        when: datetime | None = None,
    ) -> Self:
        """The log with one more edit of a cell of `cells`; the old value is looked up there.

        Raises:
            DatasetError: there is no such cell or field, or the new value is not one that the field can have.
            LabelError: the new label is not in the cells' label set.
        """
        _require_field(field)
        _value(field, _text(new), cells)
        row = cells.frame.filter(pl.col("cell_id") == cell_id)
        if not len(row):
            raise DatasetError(f'no cell "{cell_id}" among {len(cells)} cells')
        old = "false" if field == "deleted" else _text(row[field][0])
        moment = (when or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
        line = pl.DataFrame([[cell_id, field, old, _text(new), who, moment, why]], schema=SCHEMA, orient="row")
        return type(self)(pl.concat([self.frame, line]))

    def note_all(
        self, cells: Cells, changes: Iterable[tuple[str, str, str, str]], *, who: str, when: datetime | None = None
    ) -> Self:
        """The log with many edits at once: (cell_id, field, new value as text, why) each; checked like `note`.

        Raises:
            DatasetError, LabelError: as `note` does.
        """
        changes = list(changes)
        moment = (when or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
        position = {cell_id: row for row, cell_id in enumerate(cells.frame["cell_id"].to_list())}
        values = {name: cells.frame[name].to_list() for name in {field for _, field, _, _ in changes} & {*FIELDS[:-1]}}
        lines = []
        for cell_id, field, new, why in changes:
            _require_field(field)
            _value(field, new, cells)
            if cell_id not in position:
                raise DatasetError(f'no cell "{cell_id}" among {len(cells)} cells')
            old = "false" if field == "deleted" else _text(values[field][position[cell_id]])
            lines.append([cell_id, field, old, new, who, moment, why])
        return type(self)(pl.concat([self.frame, pl.DataFrame(lines, schema=SCHEMA, orient="row")]))

    def concat(self, *others: Edits) -> Self:
        """This log followed by others."""
        return type(self)(pl.concat([self.frame, *(other.frame for other in others)]))

    def applied_to(self, cells: Cells) -> Cells:
        """The cells after all edits, in order; the last edit of a field wins.

        Raises:
            DatasetError: an edit refers to a cell that is not there, or to one of several of the same
                cell_id, or holds a value that its field cannot have.
            LabelError: a new label is not in the cells' label set.
        """
        last = self.frame.unique(["cell_id", "field"], keep="last", maintain_order=True)
        lost = sorted(set(last["cell_id"].to_list()) - set(cells.frame["cell_id"].to_list()))
        if lost:
            raise DatasetError(f"{len(lost)} edited cells are not here: {listing(lost, 5)}")
        shared = cells.frame.filter(
            pl.col("cell_id").is_duplicated() & pl.col("cell_id").is_in(last["cell_id"].implode())
        )
        if len(shared):
            names = shared["cell_id"].unique().sort().to_list()
            raise DatasetError(f"several cells have the same cell_id, so an edit of it is unclear: {listing(names, 5)}")
        frame = cells.frame
        for field in FIELDS:
            changed = last.filter(pl.col("field") == field).select("cell_id", "new")
            if not len(changed):
                continue
            values = dict(changed.iter_rows())
            if field == "deleted":
                gone = [cell_id for cell_id, value in values.items() if _value(field, value, cells)]
                frame = frame.filter(~pl.col("cell_id").is_in(gone))
                continue
            typed = {cell_id: _value(field, value, cells) for cell_id, value in values.items()}
            kept = frame[field].cast(pl.String).to_list() if field == "label" else frame[field].to_list()
            new = [typed.get(i, value) for i, value in zip(frame["cell_id"].to_list(), kept, strict=True)]
            frame = frame.with_columns(pl.Series(field, new, frame.schema[field]))
            if field == "label":
                # A person disagreed, so what the model thought of the cell no longer counts. After an undo it does.
                agreed = pl.Series([one == other for one, other in zip(kept, new, strict=True)], dtype=pl.Boolean)
                frame = frame.with_columns(probabilities=pl.when(agreed).then(pl.col("probabilities")))
        return Cells(frame, cells.labels)

    def write_csv(self, path: Path) -> None:
        """Write the log as CSV."""
        with written(path) as part:
            self.frame.write_csv(part)

    @classmethod
    def read_csv(cls, path: Path) -> Self:
        """Read a log that `write_csv` wrote.

        Raises:
            DatasetError: the file is missing or not such a log.
        """
        try:
            frame = pl.read_csv(path, infer_schema=False, glob=False)
            # Spreadsheets move columns about, so they are taken by name.
            return cls(frame.select(list(SCHEMA)))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DatasetError(f"{path}: cannot be read as a log of edits ({error})") from error


def _require_field(field: str) -> None:
    if field not in FIELDS:
        hint = did_you_mean(field, FIELDS)
        raise DatasetError(f'the field "{field}" cannot be edited. {hint} Fields: {listing(FIELDS)}')


def _text(value: object) -> str | None:
    if value is None:
        return None
    return str(value).lower() if isinstance(value, (bool, np.bool_)) else str(value)


def _value(field: str, text: str | None, cells: Cells) -> str | float | bool | None:
    """The text of an edit as a value of its field."""
    if field == "label":
        if text is not None and text not in cells.labels:
            raise LabelError(f'an edit names the label "{text}"; labels here: {listing(cells.labels.names, 30)}')
        return text
    if field in ("ignore", "refer", "counted", "deleted"):
        if text not in ("true", "false"):
            raise DatasetError(f'an edit sets "{field}" to "{text}"; allowed: true, false')
        return text == "true"
    try:
        number = float(text if text is not None else "nan")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DatasetError(f'an edit sets "{field}" to "{text}"; allowed: a number of pixels')
    return number


def undo(edits: Edits, rows: Sequence[int]) -> Edits:
    """A log that ends by putting back the old values of some rows, newest first."""
    frame = edits.frame
    back: Iterable[pl.DataFrame] = (
        frame[row].with_columns(old=pl.col("new"), new=pl.col("old"), why=pl.lit("undone"))
        for row in sorted(rows, reverse=True)
    )
    return Edits(pl.concat([frame, *back]))
