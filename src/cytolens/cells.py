"""Cells: one row per cell, whether said by a person or found by a model.

A thin frozen class around one polars frame whose columns are always all present, so that an empty
table is zero rows and joining two tables of equal label sets always works.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from cytolens.boxes import Boxes, as_boxes
from cytolens.cell_columns import BOX_COLUMNS, cell_ids, known_vectors, schema, vectors
from cytolens.labels import AttributeSchema, LabelSet
from cytolens.problems import DatasetError, LabelError, SettingError, did_you_mean, listing

__all__ = ["BOX_COLUMNS", "Cells", "cell_ids", "join", "schema"]


@dataclass(frozen=True, eq=False)
class Cells:
    """A frozen table of cells of one label set, with the columns of `schema`.

    Raises:
        DatasetError: the frame has other columns or types.
    """

    frame: pl.DataFrame
    labels: LabelSet

    def __post_init__(self) -> None:
        wanted = schema(self.labels)
        if dict(self.frame.schema) != wanted:
            have = dict(self.frame.schema)
            wrong = [name for name in wanted if have.get(name) != wanted[name]]
            extra = [name for name in have if name not in wanted]
            raise DatasetError(f"not a table of cells of this label set: wrong {wrong}, unknown {extra}")
        object.__setattr__(self, "frame", self.frame.select(list(wanted)))

    # -- making ---------------------------------------------------------------------------------

    @classmethod
    def empty(cls, labels: LabelSet) -> Self:
        """A table without rows."""
        return cls(pl.DataFrame(schema=schema(labels)), labels)

    @classmethod
    def of(
        cls,
        labels: LabelSet,
        *,
        image_id: Sequence[str],
        boxes: ArrayLike,
        label: Sequence[str | None],
        source: str,
        image_key: Sequence[str | None] | None = None,
        score: ArrayLike | None = None,
        probabilities: ArrayLike | None = None,
        known: ArrayLike | None = None,
        mask: Sequence[bytes | None] | None = None,
        attributes: Mapping[str, Sequence[Any]] | None = None,
        ignore: ArrayLike | bool = False,
        counted: ArrayLike | bool = True,
        refer: ArrayLike | bool = False,
    ) -> Self:
        """A table from columns; N is the number of cells.

        Args:
            labels: the label set of the cells.
            image_id: the image of each cell (N).
            boxes: pixel edges, shape (N, 4).
            label: names of `labels`, or None where found but not named (N).
            source: who says so, such as "human:ab" or "import:bccd".
            image_key: the image's sha256 per cell (N), for the ids; None there: image_id stands in.
            score: shape (N,); None: said by a person.
            probabilities: over the leaves of `labels`, shape (N, K); None: unknown.
            known: shape (N,), which rows of `probabilities` are known; None: all.
            mask: COCO's compressed code or None (N).
            attributes: column name → values (N), and "<column>_probabilities" → shape (N, V) over the attribute's
                values, a row of NaN (or None in a list) where they are unknown; columns that are not named are null.
            ignore, counted, refer: flags, one for all or one per cell.

        Raises:
            LabelError: a label or attribute value is not in the label set.
            ValueError: a column is not as long as there are boxes.
        """
        corners = as_boxes(boxes).astype(np.float32)
        count = len(corners)
        keys = image_id if image_key is None else image_key
        for name, column in {"image_id": image_id, "label": label, "image_key": keys}.items():
            if len(column) != count:
                raise ValueError(f'{count} boxes need as many values of "{name}"; got {len(column)}')
        _require_known("label", label, labels.names)
        columns: dict[str, Any] = {
            "cell_id": cell_ids([source] * count, [k or i for k, i in zip(keys, image_id, strict=True)]),
            "image_id": list(image_id),
            **{name: corners[:, i] for i, name in enumerate(BOX_COLUMNS)},
            "label": list(label),
            "probabilities": vectors(probabilities, known, count, len(labels.leaves)),
            "score": [None] * count if score is None else np.asarray(score, np.float32),
            "mask": [None] * count if mask is None else list(mask),
        }
        given = dict(attributes or {})
        for attribute in labels.attributes:
            columns[attribute.column] = values = given.pop(attribute.column, [None] * count)
            _require_known(attribute.column, values, attribute.values)
            name = f"{attribute.column}_probabilities"
            columns[name] = vectors(
                *known_vectors(given.pop(name, None), len(attribute.values)), count, len(attribute.values)
            )
        if given:
            raise LabelError(f"attributes not in this label set: {listing(given)}")
        columns["source"] = [source] * count
        for name, flag in (("ignore", ignore), ("counted", counted), ("refer", refer)):
            columns[name] = np.broadcast_to(np.asarray(flag, bool), count)
        return cls(pl.DataFrame(columns, schema=schema(labels)), labels)

    # -- looking --------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        return f"Cells({len(self)} cells in {self.frame['image_id'].n_unique()} images, {self.labels!r})"

    def to_polars(self) -> pl.DataFrame:
        """The frame itself."""
        return self.frame

    def boxes(self) -> Boxes:
        """The boxes, float32, shape (N, 4)."""
        return self.frame.select(BOX_COLUMNS).to_numpy().reshape(-1, 4)

    def scores(self) -> NDArray[np.float32]:
        """The scores, shape (N,); 1 where a person spoke."""
        return self.frame["score"].fill_null(1.0).to_numpy()

    def masks(self) -> list[bytes | None]:
        """The encoded masks, None where there is only a box."""
        return self.frame["mask"].to_list()

    def label_names(self) -> list[str | None]:
        """The labels as names."""
        return self.frame["label"].cast(pl.String).to_list()

    def probabilities(self) -> NDArray[np.float32]:
        """Probabilities over the leaves, shape (N, K); NaN where unknown."""
        width = len(self.labels.leaves)
        table = np.full((len(self), width), np.nan, np.float32)
        known = self.frame["probabilities"].is_not_null().to_numpy()
        if known.any():
            table[known] = self.frame["probabilities"].drop_nulls().to_numpy()
        return table

    def attribute_values(self, column: str) -> list[str | None]:
        """The values of an attribute, None where it is not annotated (N).

        Raises:
            DatasetError: there is no such attribute.
        """
        self._attribute(column)
        return self.frame[column].cast(pl.String).to_list()

    def attribute_probabilities(self, column: str) -> NDArray[np.float32]:
        """Probabilities over the values of an attribute, shape (N, V); NaN where unknown.

        Raises:
            DatasetError: there is no such attribute.
        """
        table = np.full((len(self), len(self._attribute(column).values)), np.nan, np.float32)
        given = self.frame[f"{column}_probabilities"]
        known = given.is_not_null().to_numpy()
        if known.any():
            table[known] = given.drop_nulls().to_numpy()
        return table

    def _attribute(self, column: str) -> AttributeSchema:
        known = {attribute.column: attribute for attribute in self.labels.attributes}
        if column not in known:
            hint = did_you_mean(column, known)
            raise DatasetError(
                f'cells have no attribute "{column}". {hint + " " if hint else ""}'
                f"Attributes: {listing(known, 30) or 'none'}"
            )
        return known[column]

    def where(self, **equals: Any) -> Self:
        """The cells whose columns have these values; a list means any of them.

        A label also takes in its kinds and may be given by an alias: ``where(label="WBC")``. None means
        what is not known: ``where(label=None)`` are the cells that nobody named.

        Raises:
            LabelError: the label is unknown.
            DatasetError: there is no such column.
        """
        keep = pl.lit(True)
        for name, value in equals.items():
            if name not in self.frame.columns:
                raise _no_column(name, self.frame.columns)
            many = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
            if name == "label":
                wanted = [self.labels.require(label) for label in many if label is not None]
                unnamed = [None] if None in many else []
                many = [*unnamed, *(n for n in self.labels.names if any(self.labels.is_a(n, w) for w in wanted))]
            keep &= pl.col(name).is_in(many, nulls_equal=True)
        return self.filter(keep)

    def filter(self, keep: pl.Expr | NDArray[np.bool_]) -> Self:
        """The cells for which an expression or a boolean array is true."""
        return type(self)(self.frame.filter(keep), self.labels)

    def of_image(self, image_id: str) -> Self:
        """The cells of one image."""
        return self.filter(pl.col("image_id") == image_id)

    def by_image(self) -> Iterator[tuple[str, Self]]:
        """The cells image by image, in order of first appearance; images without cells do not appear."""
        for (image_id,), frame in self.frame.group_by(["image_id"], maintain_order=True):
            yield str(image_id), type(self)(frame, self.labels)

    # -- changing (into a new table) ------------------------------------------------------------

    def with_boxes(self, boxes: ArrayLike) -> Self:
        """The same cells with other boxes, shape (N, 4)."""
        corners = as_boxes(boxes).astype(np.float32)
        return type(self)(
            self.frame.with_columns([pl.Series(n, corners[:, i]) for i, n in enumerate(BOX_COLUMNS)]), self.labels
        )

    def with_masks(self, masks: Sequence[bytes | None]) -> Self:
        """The same cells with other encoded masks (N)."""
        return type(self)(self.frame.with_columns(pl.Series("mask", list(masks), pl.Binary)), self.labels)

    def with_columns(self, **columns: Any) -> Self:
        """The same cells with some columns replaced (a value, a sequence of N or an expression).

        Raises:
            DatasetError: there is no such column.
        """
        types = schema(self.labels)
        new = []
        for name, value in columns.items():
            if name not in types:
                raise _no_column(name, types)
            if isinstance(value, pl.Expr):
                new.append(value.cast(types[name]).alias(name))
            elif value is None or isinstance(value, (str, bytes, bool, int, float, np.generic)):
                value = value.item() if isinstance(value, np.generic) else value
                new.append(pl.lit(value).cast(types[name]).alias(name))
            else:
                new.append(pl.Series(name, value, types[name]))
        return type(self)(self.frame.with_columns(new), self.labels)

    def concat(self, *others: Cells) -> Self:
        """These cells and others of the same label set.

        Raises:
            LabelError: the label sets differ; `relabel` first.
        """
        for other in others:
            if other.labels != self.labels:
                raise LabelError("cells of different label sets cannot be joined; relabel(to) one of them first")
        return type(self)(pl.concat([self.frame, *(other.frame for other in others)]), self.labels)

    def relabel(self, to: LabelSet, *, missing: str = "error") -> Self:
        """The same cells in the words of another label set, through aliases and parents.

        Probabilities are summed where several leaves become one; attributes that `to` lacks are dropped.

        Args:
            to: the label set to speak.
            missing: what to do with labels that `to` has no word for: "error", "null" (keep the cell
                unnamed) or "drop" (leave the cell out).

        Raises:
            LabelError: a label present here has no counterpart (with missing="error"), or an attribute has
                other values there.
            SettingError: `missing` is none of the three.
        """
        if missing not in ("error", "null", "drop"):
            raise SettingError(f'missing="{missing}" is unknown; allowed: error, null, drop')
        if to == self.labels:
            return self
        own_values = {attribute.column: attribute.values for attribute in self.labels.attributes}
        if other := [a.column for a in to.attributes if own_values.get(a.column, a.values) != a.values]:
            raise LabelError(f"attributes with other values in the label set to be spoken: {listing(other)}")
        mapping = self.labels.mapping_to(to)
        present: list[str] = self.frame["label"].drop_nulls().unique().cast(pl.String).to_list()
        lost = sorted(name for name in present if mapping[name] is None)
        if lost and missing == "error":
            raise LabelError(f"no counterpart for {listing(lost)} among: {listing(to.names, 30)}")
        table, transfer = self.probabilities(), _leaf_transfer(self.labels, to, mapping)
        known = ~np.isnan(table).any(axis=1) if table.shape[1] else np.zeros(len(self), bool)
        moved = np.nan_to_num(table) @ transfer
        known &= transfer.sum() > 0 and moved.sum(axis=1) > 0
        frame = self.frame.with_columns(
            pl.col("label").cast(pl.String).replace_strict(mapping, return_dtype=pl.String).cast(pl.Enum(to.names)),
            pl.Series(
                "probabilities", vectors(moved, known, len(self), len(to.leaves)), pl.Array(pl.Float32, len(to.leaves))
            ),
        )
        wanted = schema(to)
        absent = [pl.lit(None, dtype).alias(name) for name, dtype in wanted.items() if name not in frame.columns]
        out = type(self)(frame.with_columns(absent).select([pl.col(n).cast(t) for n, t in wanted.items()]), to)
        if missing == "drop" and lost:
            return out.filter(~self.frame["label"].cast(pl.String).is_in(lost).fill_null(False).to_numpy())
        return out

    # -- on disk --------------------------------------------------------------------------------

    def write_parquet(self, path: Path) -> None:
        """Write the table; its label set travels in the file's metadata. Renamed into place when whole."""
        from cytolens.problems import written

        with written(path) as part:
            self.frame.write_parquet(part, metadata={"cytolens_labels": json.dumps(self.labels.to_dict())})

    @classmethod
    def read_parquet(cls, path: Path) -> Self:
        """Read what `write_parquet` wrote.

        Raises:
            DatasetError: the file is missing or not such a table.
        """
        path = Path(path)
        try:
            labels = LabelSet.from_dict(json.loads(pl.read_parquet_metadata(path)["cytolens_labels"]))
            return cls(pl.read_parquet(path, glob=False), labels)
        except FileNotFoundError:
            raise DatasetError(
                f"{path}: there is no such file. Name a cells.parquet or the folder that holds one."
            ) from None
        except (KeyError, TypeError, ValueError, OSError, pl.exceptions.PolarsError) as error:
            raise DatasetError(f"{path}: is not a table of cells written by cytolens ({error})") from error


def _require_known(column: str, values: Iterable[Any], allowed: Sequence[str]) -> None:
    known = {None, *allowed}
    unknown = sorted({str(value) for value in values if value not in known})
    if unknown:
        hint = did_you_mean(unknown[0], allowed)
        raise LabelError(
            f'unknown values of "{column}": {listing(unknown)}. {hint + " " if hint else ""}'
            f"Allowed here: {listing(allowed, 30)}"
        )


def _no_column(name: str, columns: Iterable[str]) -> DatasetError:
    hint = did_you_mean(name, columns)
    return DatasetError(f'cells have no column "{name}". {hint + " " if hint else ""}Columns: {listing(columns, 30)}')


def _leaf_transfer(labels: LabelSet, to: LabelSet, mapping: Mapping[str, str | None]) -> NDArray[np.float32]:
    """How leaf probabilities of `labels` become leaf probabilities of `to`, shape (K, K').

    Only leaf-to-leaf steps are exact; a leaf that becomes an inner label there has no place.
    """
    transfer = np.zeros((len(labels.leaves), len(to.leaves)), np.float32)
    columns = {leaf: i for i, leaf in enumerate(to.leaves)}
    for row, leaf in enumerate(labels.leaves):
        target = mapping[leaf]
        if target in columns:
            transfer[row, columns[target]] = 1
    return transfer


def join(tables: Iterable[Cells], labels: LabelSet) -> Cells:
    """One table from many of the same label set; empty where there are none."""
    tables = list(tables)
    return tables[0].concat(*tables[1:]) if tables else Cells.empty(labels)
