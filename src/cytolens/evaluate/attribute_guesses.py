"""Attributes guessed from the cell's label alone: what a model that describes cells has to beat.

The guess is the most frequent value among cells of the same label (the first of equals, in the order of the values),
or among all cells where the label was not seen. It is learnt from another dataset, or, where none is named, from the
truth itself without the cell's own group (patient, slide), or without its own image where no group is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens.dataset import Dataset
from cytolens.evaluate.joining import Joined
from cytolens.labels import AttributeSchema
from cytolens.problems import DatasetError, LabelError, listing

Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Guesses:
    """Guesses for all truth cells.

    Attributes:
        values: per attribute, the index of the guessed value of each truth cell, shape (T,); −1: nothing was learnt.
        learnt_from: in words.
        notes: what the reader of the figures has to know.
    """

    values: list[Indices]
    learnt_from: str
    notes: tuple[str, ...] = ()


def guesses(
    joined: Joined, schemas: Sequence[AttributeSchema], truth: Sequence[Indices], learn_from: str | None
) -> Guesses:
    """Guess the attributes of the truth cells from their labels.

    Args:
        joined: the truth.
        schemas: the attributes (A).
        truth: their values, indices of shape (T,) each; −1: not annotated.
        learn_from: the folder of the dataset to learn from; None: the truth itself, leaving out each cell's group.

    Raises:
        DatasetError: there is no such dataset, or it lacks an attribute.
        LabelError: it has values that the truth does not know.
    """
    count = len(joined.labels)
    label = np.where(joined.truth_label < 0, count, joined.truth_label)
    if learn_from is not None:
        return _from_dataset(joined, schemas, label, learn_from)
    group_of = {
        image_id: (group is not None, image_id if group is None else group)
        for image_id, group in joined.images.frame.select("image_id", "group").iter_rows()
    }
    unit = "group" if any(known for known, _ in group_of.values()) else "image"
    numbers: dict[object, int] = {}
    own = [group_of[image_id] for image_id in joined.truth.frame["image_id"]]
    group = np.array([numbers.setdefault(key, len(numbers)) for key in own], np.intp)
    use = ~joined.truth.frame["ignore"].to_numpy()
    values = [
        left_out(group, label, np.where(use, one, -1), count + 1, len(schema.values))
        for schema, one in zip(schemas, truth, strict=True)
    ]
    return Guesses(values, f"the truth itself, without the cell's own {unit}")


def left_out(group: Indices, label: Indices, value: Indices, labels: int, values: int) -> Indices:
    """The most frequent value of each cell's label in the other groups, else of all cells there; −1: there is none.

    Args:
        group, label, value: of each cell (N), values −1 where unknown.
        labels, values: how many of each there are.
    """
    by_label = _others(group, label, value, labels, values)
    by_all = _others(group, np.zeros_like(label), value, 1, values)
    return _most_frequent(by_label, by_all)


def _others(group: Indices, label: Indices, value: Indices, labels: int, values: int) -> NDArray[np.intp]:
    """How often each value occurs with each cell's label in other groups than its own, shape (N, values)."""
    known = np.flatnonzero(value >= 0)
    total = np.zeros((labels, values), np.intp)
    np.add.at(total, (label[known], value[known]), 1)
    _, place = np.unique(group * labels + label, return_inverse=True)
    own = np.zeros((int(place.max(initial=-1)) + 1, values), np.intp)
    np.add.at(own, (place[known], value[known]), 1)
    return total[label] - own[place]


def _most_frequent(by_label: NDArray[np.intp], by_all: NDArray[np.intp]) -> Indices:
    table = np.where(by_label.any(axis=1, keepdims=True), by_label, by_all)
    return np.where(table.any(axis=1), table.argmax(axis=1), -1).astype(np.intp)


def _from_dataset(joined: Joined, schemas: Sequence[AttributeSchema], label: Indices, folder: str) -> Guesses:
    data = Dataset.read(folder)
    cells = data.cells.filter(~pl.col("ignore"))
    mapping = data.labels.mapping_to(joined.labels)
    count = len(joined.labels)
    known = [None if name is None else mapping[name] for name in cells.label_names()]
    theirs = np.array([count if name is None else joined.labels.index(name) for name in known], np.intp)
    columns = {attribute.column for attribute in data.labels.attributes}
    if missing := [schema.column for schema in schemas if schema.column not in columns]:
        raise DatasetError(f"{folder}: has no attribute {listing(missing, 30)}; name another dataset to learn from")
    out = []
    for schema in schemas:
        index = {value: at for at, value in enumerate(schema.values)}
        said = cells.attribute_values(schema.column)
        if strange := sorted({value for value in said if value is not None} - set(index)):
            raise LabelError(f"{folder}: {schema.column} has values that the truth does not know: {listing(strange)}")
        table = np.zeros((count + 1, len(schema.values)), np.intp)
        value = np.array([-1 if name is None else index[name] for name in said], np.intp)
        rows = np.flatnonzero(value >= 0)
        np.add.at(table, (theirs[rows], value[rows]), 1)
        overall = np.broadcast_to(table.sum(axis=0), (len(label), len(schema.values)))
        # What no label covers is guessed from all cells.
        named = np.where((label < count)[:, None], table[label], 0)
        out.append(_most_frequent(named, overall))
    keys = set(data.images.frame["sha256"].drop_nulls()) & set(joined.images.frame["sha256"].drop_nulls())
    notes = (f"{len(keys)} of the images that class-only was learnt from are among those scored.",) if keys else ()
    return Guesses(out, f'the dataset "{data.name}" ({len(cells)} cells)', notes)
