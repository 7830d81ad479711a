"""LeukemiaAttri's attributes as numbers: each column's own codes, and what stands for a value that is missing.

A value's code is its place in the schema "leukemia_attri". Cells of type None (artefacts) carry no attributes, whatever
their codes are. YOLO files write 2 for a value that is not there, but in the column of the cell size 2 is "large"; it
is taken for a missing value there only where the import says so (`ReadOptions.size_two`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolens.cells import Cells
from cytolens.formats.attribute_values import Refusals
from cytolens.formats.intake import Intake, as_number
from cytolens.labels import AttributeSchema, attribute_schema, taxonomy

SCHEMA: tuple[AttributeSchema, ...] = attribute_schema("leukemia_attri")
SIZE = "cell_size"


@dataclass(frozen=True)
class Legend:
    """Which attributes a kind of file has, in its order, what it calls them, and the code of a missing value.

    Attributes:
        fields: attribute → what the file calls it.
        missing: attribute → the code that says "not applicable" or "not visible"; absent: there is none.
    """

    fields: Mapping[str, str]
    missing: Mapping[str, int]

    @property
    def schema(self) -> tuple[AttributeSchema, ...]:
        """The attributes, in the order of the file."""
        known = {attribute.name: attribute for attribute in SCHEMA}
        return tuple(known[name] for name in self.fields)


@dataclass(frozen=True, slots=True)
class Coded:
    """The codes of one cell as the file gives them (None: nothing), its label, and where they stand."""

    where: str
    label: str | None
    codes: Sequence[object]


def is_artefact(label: str | None) -> bool:
    """Whether cells of a label carry no attributes."""
    return label is not None and taxonomy().resolve(label) == "artefact"


def decoded(intake: Intake, cells: Sequence[Coded], legend: Legend) -> dict[str, list[str | None]]:
    """Attribute column → the value of each cell, None where it is missing; what is odd about codes is a problem."""
    refusals = Refusals(intake.problems)
    artefacts = [is_artefact(cell.label) for cell in cells]
    columns: dict[str, list[str | None]] = {}
    unseen, described = 0, [False] * len(cells)
    for at, attribute in enumerate(legend.schema):
        missing = legend.missing.get(attribute.name)
        values: list[str | None] = []
        for row, cell in enumerate(cells):
            code = _whole(cell.codes[at])
            if artefacts[row] or cell.codes[at] is None:
                described[row] |= code is not None and code != missing and not (attribute.name == SIZE and code == 2)
                values.append(None)
            elif code is not None and code == missing:
                unseen += 1
                values.append(None)
            elif code is not None and 0 <= code < len(attribute.values):
                described[row] |= attribute.name != SIZE or code != 2
                values.append(attribute.values[code])
            else:
                allowed = [f"{number} {value}" for number, value in enumerate(attribute.values)]
                more = [] if missing is None else [f"{missing} not there"]
                field = legend.fields[attribute.name]
                refusals.add(cell.where, field, str(cell.codes[at]), attribute, [*allowed, *more])
                values.append(None)
        columns[attribute.column] = values
    refusals.say()
    _note(intake, cells, artefacts, described, unseen)
    if SIZE in legend.fields and SIZE not in legend.missing:
        _note_sizes(intake, cells, artefacts, described, columns)
    return columns


def _whole(value: object) -> int | None:
    number = as_number(value)
    return int(number) if abs(number) < 1e6 and number.is_integer() else None


def _note(
    intake: Intake, cells: Sequence[Coded], artefacts: Sequence[bool], described: Sequence[bool], unseen: int
) -> None:
    """How many values are missing, and why."""
    if count := sum(artefacts):
        what = f"{count} cells of type None carry no attributes (not applicable)."
        intake.problems.add("attributes-not-applicable", intake.name, what, severity="note")
    if unseen:
        what = f"{unseen} values of other cells have the code of a missing value (not visible); they are left empty."
        intake.problems.add("attributes-not-visible", intake.name, what, severity="note")
    odd = [cell for cell, artefact, told in zip(cells, artefacts, described, strict=True) if artefact and told]
    if odd:
        what = f"{len(odd)} cells of type None have codes of attributes, the first here; they are left out."
        intake.problems.add("attribute-contradiction", odd[0].where, what, "Correct the type or the codes.")


def _note_sizes(
    intake: Intake,
    cells: Sequence[Coded],
    artefacts: Sequence[bool],
    described: Sequence[bool],
    columns: Mapping[str, Sequence[str | None]],
) -> None:
    """Cells that are "large" and of which nothing else is said: their 2 may be meant for "not there"."""
    sizes = columns[f"{SCHEMA[0].schema}.{SIZE}"]
    odd = [
        cell
        for cell, artefact, told, size in zip(cells, artefacts, described, sizes, strict=True)
        if not artefact and not told and size == "large"
    ]
    if odd:
        what = (
            f"{len(odd)} cells have the size 2 (large) and no other attribute, the first here; the 2 may stand for a "
            "missing value. It is kept as large."
        )
        intake.problems.add("attribute-ambiguous", odd[0].where, what, "Read with --size-two ignore if so.")


def codes_of(cells: Cells, legend: Legend) -> NDArray[np.intp]:
    """The code of each value of the cells, shape (N, attributes of the legend); −1: missing."""
    own = {attribute.column for attribute in cells.labels.attributes}
    table = np.full((len(cells), len(legend.fields)), -1, np.intp)
    for at, attribute in enumerate(legend.schema):
        if attribute.column in own:
            place: dict[str | None, int] = {value: code for code, value in enumerate(attribute.values)}
            table[:, at] = [place.get(value, -1) for value in cells.attribute_values(attribute.column)]
    return table
