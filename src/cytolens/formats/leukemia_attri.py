"""LeukemiaAttri's label files: YOLO's layout, with the codes of attributes behind the box.

How many columns a line has differs between the files that are about, and no line says which kind it is. So the profile
is named, and every line must have its number of columns:

| profile | columns | |
|---|---|---|
| ``leukemia_attri`` | 12 | class, box, seven attributes |
| ``leukemia_attri_11`` | 11 | class, box, the same without the cell size |
| ``lld`` | 16 | class, box, four numbers of a region (px1 px2 py1 py2), seven attributes |

The four numbers of a region are checked to be numbers and not used: their order is not documented. Written, they are
the box's x_min, x_max, y_min, y_max in px. Where no file names the classes, they are the 14 of the data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cytolens.cells import BOX_COLUMNS, Cells
from cytolens.dataset import Dataset
from cytolens.formats import yolo
from cytolens.formats.assembly import Imported
from cytolens.formats.export import number_text
from cytolens.formats.intake import Intake, as_number
from cytolens.formats.leukemia_codes import SCHEMA, SIZE, Coded, Legend, codes_of, decoded, is_artefact
from cytolens.formats.leukemia_names import with_names
from cytolens.formats.options import ReadOptions, WriteOptions
from cytolens.labels import LabelSet
from cytolens.problems import FormatError, Problems

_BOX = 5  # columns of class and box
_MISSING = 2
_NAMES = tuple(attribute.name for attribute in SCHEMA)


@dataclass(frozen=True)
class Profile:
    """One kind of label file.

    Attributes:
        name: of the format.
        attributes: their names, in the order of the columns.
        region: how many numbers stand between box and attributes.
    """

    name: str
    attributes: tuple[str, ...]
    region: int = 0

    @property
    def columns(self) -> int:
        """How many numbers a line has."""
        return _BOX + self.region + len(self.attributes)

    @property
    def CANNOT_KEEP(self) -> tuple[str, ...]:  # noqa: N802 - the name that every format has
        """What the format has no place for."""
        kept = [aspect for aspect in yolo.CANNOT_KEEP if aspect != "attributes"]
        sizes = [] if SIZE in self.attributes else ["cell sizes of LeukemiaAttri"]
        return (*kept, "scores", "attributes other than LeukemiaAttri's", *sizes, "probabilities of attributes")

    def legend(self, size_two: str = "large") -> Legend:
        """The columns of the attributes, counted from 1, and their codes of missing values."""
        first = _BOX + self.region + 1
        missing = {name: _MISSING for name in self.attributes if name != SIZE or size_two == "ignore"}
        return Legend({name: f"{first + at} ({name})" for at, name in enumerate(self.attributes)}, missing)

    def read(self, source: Path, options: ReadOptions) -> Imported:
        """Read a folder (or its ``data.yaml``) as `yolo.read` does, with attributes.

        Raises:
            FormatError: a line has another number of columns than the profile, or no image is found.
        """
        legend = self.legend(options.size_two)

        def values(
            intake: Intake, lines: Sequence[yolo.Line], labels: Sequence[str | None]
        ) -> Mapping[str, Sequence[str | None]]:
            cells = [Coded(line.where, label, line.codes) for line, label in zip(lines, labels, strict=True)]
            return decoded(intake, cells, legend)

        dialect = yolo.Dialect(
            format=self.name,
            numbers=self._numbers,
            standard=LabelSet.shipped("leukemia_attri").names,
            schema=legend.schema,
            values=values,
            described=with_names,
        )
        return yolo.read_with(dialect, source, options)

    def _numbers(self, words: Sequence[str], where: str) -> yolo.Numbers:
        if len(words) != self.columns:
            fits = [name for name, profile in PROFILES.items() if profile.columns == len(words)]
            hint = f"These are the columns of {fits[0]}: name that format." if fits else "Correct the file."
            raise FormatError(
                f"{where}: {len(words)} columns, but the profile {self.name} has {self.columns} "
                f"(class, box, {f'{self.region} of a region, ' if self.region else ''}"
                f"{len(self.attributes)} attributes). {hint}"
            )
        plain = yolo.box_numbers(words[:_BOX])
        if not np.isfinite([as_number(word) for word in words[_BOX : _BOX + self.region]]).all():
            raise ValueError("the numbers of the region are no numbers")
        return plain._replace(codes=tuple(words[_BOX + self.region :]))

    def write(self, data: Dataset, path: Path, options: WriteOptions) -> Problems:
        """Write ``labels/[<split>/]<image>.txt``, ``data.yaml`` and ``classes.txt`` into the new folder `path`.

        Raises:
            FormatError: as of `yolo.write`.
        """
        problems = Problems()
        if SIZE in self.attributes:
            _note_sizes(data, self.legend(), problems)
        problems.extend(yolo.write(data, path, options, more=self._words))
        return problems

    def _words(self, cells: Cells) -> list[list[str]]:
        """What stands behind the box in the line of each cell."""
        codes = codes_of(cells, self.legend())
        edges = cells.frame.select(BOX_COLUMNS).rows()
        rows = []
        for (x_min, y_min, x_max, y_max), label, own in zip(edges, cells.label_names(), codes.tolist(), strict=True):
            region = [number_text(edge) for edge in (x_min, x_max, y_min, y_max)][: self.region]
            blank = is_artefact(label)
            rows.append([*region, *(str(_MISSING if blank or code < 0 else code) for code in own)])
        return rows


def _note_sizes(data: Dataset, legend: Legend, problems: Problems) -> None:
    """Cells whose size is not known, for which the files have no code of their own."""
    sizes = codes_of(data.cells, legend)[:, list(legend.fields).index(SIZE)]
    labels = data.cells.label_names()
    count = sum(
        size < 0 and label is not None and not is_artefact(label) for size, label in zip(sizes, labels, strict=True)
    )
    if count:
        what = f"{count} cells have no cell size, for which the format has no code: they get 2, which also says large."
        fix = "Read it with --size-two ignore, or write leukemia_attri_11, which has no sizes."
        problems.add("attribute-no-code", data.name, what, fix)


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("leukemia_attri", _NAMES),
        Profile("leukemia_attri_11", tuple(name for name in _NAMES if name != SIZE)),
        Profile("lld", _NAMES, region=4),
    )
}


def looks_like_attributes(path: Path) -> list[str]:
    """The profiles that the first line of a label file has the columns of: fractions of a box, then whole numbers."""
    try:
        with path.open("rb") as stream:
            words = stream.readline(4096).split()
    except OSError:
        return []
    numbers = [as_number(word.decode("latin-1")) for word in words]
    boxed = len(numbers) > _BOX and not all(number.is_integer() for number in numbers[1:_BOX])
    coded = boxed and all(number.is_integer() for number in numbers[9:])
    return [name for name, profile in PROFILES.items() if coded and profile.columns == len(numbers)]
