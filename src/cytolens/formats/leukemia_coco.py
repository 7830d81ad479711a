"""LeukemiaAttri's JSON: COCO's instances with seven codes per annotation, of which 4 says "not applicable".

The field of the nuclear chromatin is spelt ``nuclear_chromatio``. An absent field or null is a value that nobody gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats import coco, coco_writing
from cytolens.formats.assembly import Imported
from cytolens.formats.intake import Intake
from cytolens.formats.leukemia_codes import SCHEMA, Coded, Legend, codes_of, decoded, is_artefact
from cytolens.formats.leukemia_names import with_names
from cytolens.formats.options import ReadOptions, WriteOptions
from cytolens.problems import FormatError, Problems, listing

CANNOT_KEEP = (
    *(aspect for aspect in coco.CANNOT_KEEP if aspect != "attributes"),
    "attributes other than LeukemiaAttri's",
    "probabilities of attributes",
)
_NOT_APPLICABLE = 4
_SPELLING = {"nuclear_chromatin": "nuclear_chromatio"}
_FIELDS = {attribute.name: _SPELLING.get(attribute.name, attribute.name) for attribute in SCHEMA}
_LEGEND = Legend(_FIELDS, dict.fromkeys(_FIELDS, _NOT_APPLICABLE))


def is_leukemia(data: Any) -> bool:
    """Whether JSON data are an instances file whose first annotation has LeukemiaAttri's fields."""
    annotations = data.get("annotations") if isinstance(data, dict) else None
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    return isinstance(first, dict) and set(_FIELDS.values()) <= first.keys()


def read(source: Path, options: ReadOptions) -> Imported:
    """Read an instances JSON, or a folder of them, as `coco.read` does, with attributes.

    Raises:
        FormatError: there are annotations and none has any of the fields, or as of `coco.read`.
    """
    dialect = coco.Dialect("leukemia_attri_coco", tuple(_FIELDS.values()), SCHEMA, _values, with_names)
    return coco.read_with(dialect, source, options)


def _values(intake: Intake, found: Sequence[coco.Found]) -> Mapping[str, Sequence[str | None]]:
    absent = [
        field for at, field in enumerate(_FIELDS.values()) if all(cell.fields[at] is coco.ABSENT for cell in found)
    ]
    if found and len(absent) == len(_FIELDS):
        raise FormatError(
            f"{intake.root}: no annotation has any of the fields {listing(_FIELDS.values())}. "
            "Read it as coco, or name the files that have them."
        )
    if found and absent:
        what = f"no annotation has the fields {listing(absent)}: these attributes are empty."
        intake.problems.add("attribute-missing", intake.name, what, "Look how the file spells them.")
    cells = [
        Coded(cell.where, cell.label, [None if value is coco.ABSENT else value for value in cell.fields])
        for cell in found
    ]
    return decoded(intake, cells, _LEGEND)


def write(data: Dataset, path: Path, options: WriteOptions) -> Problems:
    """Write an instances JSON as `coco.write` does; artefacts get the code 4, what is not known is null.

    Raises:
        FormatError: as of `coco.write`.
    """
    return coco_writing.write(data, path, options, more=_fields)


def _fields(cells: Cells) -> list[dict[str, Any]]:
    """The seven fields of each cell."""
    rows = []
    for label, codes in zip(cells.label_names(), codes_of(cells, _LEGEND).tolist(), strict=True):
        blank = _NOT_APPLICABLE if is_artefact(label) else None
        told = [blank if code < 0 or blank is not None else code for code in codes]
        rows.append(dict(zip(_FIELDS.values(), told, strict=True)))
    return rows
