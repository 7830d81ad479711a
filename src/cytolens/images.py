"""The table of images, and where image files are found. Reading them is `image_files`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import polars as pl

from cytolens.image_files import MAX_PIXELS, LoadedImage, Pixels, decode_image, image_size_wh, load_image
from cytolens.problems import DatasetError, did_you_mean, listing

__all__ = [
    "MAX_PIXELS",
    "SCHEMA",
    "SLIDE_SUFFIXES",
    "SUFFIXES",
    "Images",
    "LoadedImage",
    "Pixels",
    "decode_image",
    "find_images",
    "image_size_wh",
    "load_image",
]

# Slides of scanners, which are read by regions only.
SLIDE_SUFFIXES = frozenset({".svs", ".svslide", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu"})
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}) | SLIDE_SUFFIXES

SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "image_id": pl.String,  # POSIX path relative to the import root
    "path": pl.String,  # where the file is; absolute in memory
    "width_px": pl.Int32,
    "height_px": pl.Int32,
    "um_per_px": pl.Float32,
    "sha256": pl.String,  # of the file's bytes
    "group": pl.String,  # patient, slide, plate: what must not straddle a split
    "complete_for": pl.List(pl.String),  # labels annotated exhaustively here; null: all of them
    "stain": pl.String,
    "scanner": pl.String,
    "magnification": pl.String,
    "fold": pl.Int32,
    "split": pl.String,
}


@dataclass(frozen=True, eq=False)
class Images:
    """A frozen table of images, one row each, with the columns of `SCHEMA`.

    Raises:
        DatasetError: a column is missing or of another type, or an image_id is null or repeats.
    """

    frame: pl.DataFrame

    def __post_init__(self) -> None:
        have = dict(self.frame.schema)
        if have != SCHEMA:
            wrong = [f"{n} ({have.get(n, 'missing')}, wanted {t})" for n, t in SCHEMA.items() if have.get(n) != t]
            extra = [name for name in have if name not in SCHEMA]
            raise DatasetError(f"not a table of images: wrong [{listing(wrong)}], unknown {extra}")
        object.__setattr__(self, "frame", self.frame.select(list(SCHEMA)))
        if self.frame["image_id"].has_nulls():
            raise DatasetError(f"{self.frame['image_id'].null_count()} images have no image_id; every image needs one")
        repeated = self.frame.filter(pl.col("image_id").is_duplicated())["image_id"].unique().sort()
        if len(repeated):
            raise DatasetError(f"image_id must be unique; repeated: {repeated.head(5).to_list()}")

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Self:
        """A table from dictionaries; columns that a row does not name are null.

        Raises:
            DatasetError: a row names an unknown column, has no image_id, or an image_id repeats.
        """
        rows = list(rows)
        for name in dict.fromkeys(name for row in rows for name in row):
            _require_column(name)
        columns = {name: [row.get(name) for row in rows] for name in SCHEMA}
        return cls(pl.DataFrame(columns, schema=SCHEMA))

    @classmethod
    def empty(cls) -> Self:
        """A table without rows."""
        return cls(pl.DataFrame(schema=SCHEMA))

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def ids(self) -> list[str]:
        """The image ids, in order."""
        return self.frame["image_id"].to_list()

    def rows(self) -> list[dict[str, Any]]:
        """All rows as dictionaries."""
        return self.frame.to_dicts()

    def row(self, image_id: str) -> dict[str, Any]:
        """One image's row.

        Raises:
            DatasetError: there is no such image.
        """
        found = self.frame.filter(pl.col("image_id") == image_id)
        if not len(found):
            raise DatasetError(f'no image "{image_id}" among {len(self)} images')
        return found.row(0, named=True)

    def where(self, **equals: Any) -> Self:
        """The images whose columns have these values; a list means any of them, None what is not known.

        Raises:
            DatasetError: there is no such column.
        """
        keep = pl.lit(True)
        for name, value in equals.items():
            _require_column(name)
            many = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
            keep &= pl.col(name).is_in(list(many), nulls_equal=True)
        return type(self)(self.frame.filter(keep))

    def with_columns(self, **columns: Any) -> Self:
        """The same images with some columns replaced (a value, a sequence of N or an expression).

        A list for `complete_for` is one value: the labels of every image.

        Raises:
            DatasetError: there is no such column, or an image_id is null or repeats.
        """
        new: list[pl.Expr | pl.Series] = []
        for name, value in columns.items():
            _require_column(name)
            if isinstance(value, (list, tuple)) and name != "complete_for":
                value = pl.Series(name, value, SCHEMA[name])
            elif not isinstance(value, (pl.Expr, pl.Series)):
                value = pl.lit(value)
            new.append(value.alias(name).cast(SCHEMA[name]))
        return type(self)(self.frame.with_columns(new))

    def concat(self, *others: Images) -> Self:
        """These images and those of other tables."""
        return type(self)(pl.concat([self.frame, *(other.frame for other in others)]))


def _require_column(name: str) -> None:
    if name not in SCHEMA:
        hint = did_you_mean(name, SCHEMA)
        raise DatasetError(
            f'images have no column "{name}". {hint + " " if hint else ""}Columns: {listing(SCHEMA, 30)}'
        )


def find_images(sources: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Image files named by files, folders (searched whole, hidden ones left out) and glob patterns, sorted.

    Raises:
        DatasetError: a source matches nothing.
    """
    import glob

    found: dict[Path, None] = {}
    for source in sources:
        text = os.fspath(source)
        path = Path(text)
        if path.is_dir():
            matches = [p for p in sorted(path.rglob("*")) if _is_visible_image(p, path)]
        elif path.exists():
            matches = [path]
        else:
            # pathlib's own glob takes no absolute pattern.
            names = sorted(glob.glob(text, recursive=True))  # noqa: PTH207
            matches = [Path(name) for name in names if not Path(name).is_dir()]
        if not matches:
            raise DatasetError(
                f'"{text}" names no image. Give an image, a folder with images ({", ".join(sorted(SUFFIXES))}) '
                'or a pattern such as "smears/*.jpg".'
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def _is_visible_image(path: Path, folder: Path) -> bool:
    if path.suffix.lower() not in SUFFIXES or any(part.startswith(".") for part in path.relative_to(folder).parts):
        return False
    return path.is_file()
