"""What the members of an ensemble say of one cell, put together: name, probabilities, attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens.cells import Cells
from cytolens.labels import LabelSet
from cytolens.predict.box_fusion import Array, Fused
from cytolens.tasks.classify import decide


@dataclass(frozen=True, eq=False)
class Rows:
    """What all members say, one after the other (N); what goes into one fused cell (F), and with what force."""

    cells: Cells
    list_of: NDArray[np.intp]  # (N,)
    weights: Array  # of the members, (M,)
    fused: Fused
    force: Array  # of each row in the blended probabilities, (N,)

    def sums(self, values: Array, keep: NDArray[np.bool_]) -> Array:
        """Sums over the rows of each fused cell: values (N,) or (N, K) → (F,) or (F, K)."""
        into = self.fused.member_of
        rows = np.flatnonzero((into >= 0) & keep)
        total = np.zeros((len(self.fused.boxes), *values.shape[1:]))
        np.add.at(total, into[rows], values[rows])
        return total


def blended(rows: Rows, values: NDArray[np.floating]) -> tuple[Array, NDArray[np.bool_]]:
    """Mean of known values (N, K) in each fused cell, (F, K), NaN where none is known; and where some are, (F,)."""
    given = ~np.isnan(values).any(axis=1) & (values.shape[1] > 0)
    total = rows.sums(np.where(given[:, None], values, 0).astype(np.float64) * rows.force[:, None], given)
    force = rows.sums(rows.force, given)
    known = force > 0
    return np.divide(total, force[:, None], out=np.full(total.shape, np.nan), where=known[:, None]), known


def _presence(rows: Rows, keep: NDArray[np.bool_], labels: LabelSet) -> Array:
    """With how much force each name is said of each fused cell, shape (F, labels)."""
    index = [-1 if name is None else labels.index(name) for name in rows.cells.label_names()]
    said = np.zeros((len(index), len(labels)))
    named = np.flatnonzero(np.array(index, np.intp) >= 0)
    said[named, np.array(index, np.intp)[named]] = rows.force[named]
    return rows.sums(said, keep)


def named(
    rows: Rows, table: Array, known: NDArray[np.bool_], sure: float
) -> tuple[list[str | None], NDArray[np.bool_], NDArray[np.bool_]]:
    """The name of each fused cell, whether its probabilities stand, and whether its name is unsure."""
    labels, fused = rows.cells.labels, rows.fused
    everyone = np.ones(len(rows.cells), bool)
    said = _presence(rows, everyone, labels)
    heaviest = [labels.names[i] if total > 0 else None for i, total in zip(said.argmax(1), said.sum(1), strict=True)]
    given = rows.cells.frame["probabilities"].is_not_null().to_numpy()
    alone = rows.sums(np.ones(len(everyone)), everyone) == 1
    stands = known & (2 * rows.sums(rows.force, given) >= rows.sums(rows.force, everyone))
    asked = np.flatnonzero(stands & ~alone)
    # A wide name that members agree on, such as a detector's "leukocyte", is what an unsure cell falls back to.
    before = [name if name is not None and name not in labels.leaves else None for name in heaviest]
    given_names, unsure_rows = decide(table[asked], labels, sure, [before[i] for i in asked])
    names, unsure = list(heaviest), np.zeros(len(fused.boxes), bool)
    for row, name in zip(asked, given_names, strict=True):
        names[row] = name
    unsure[asked] = unsure_rows
    return names, stands, unsure


def disagreeing(rows: Rows, counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether counted rows of a fused cell bear names of which neither is a kind of the other, shape (F,)."""
    labels = rows.cells.labels
    kind_of = np.array([[labels.is_a(a, b) for b in labels.names] for a in labels.names], bool)
    apart = ~(kind_of | kind_of.T)
    said = _presence(rows, counted, labels) > 0
    return np.asarray(((said @ apart.reshape(len(labels), len(labels))) & said).any(axis=1), bool)


def weight_of(rows: Rows, keep: NDArray[np.bool_]) -> Array:
    """The weight of the members that have such a row in each fused cell; a member with two counts once."""
    present = np.zeros((len(keep), len(rows.weights)))
    present[np.arange(len(keep)), rows.list_of] = 1
    return (rows.sums(present, keep) > 0) @ rows.weights


def attributes(rows: Rows, order: NDArray[np.intp]) -> Mapping[str, Any]:
    """Attributes by their blended probabilities where members give them, else as the leading row has them."""
    columns: dict[str, Any] = {}
    frame = rows.cells.frame
    for attribute in rows.cells.labels.attributes:
        name = f"{attribute.column}_probabilities"
        values = np.full((len(frame), len(attribute.values)), np.nan)
        known = frame[name].is_not_null().to_numpy()
        if known.any():
            values[known] = frame[name].drop_nulls().to_numpy()
        table, spoken = blended(rows, values)
        lead = frame[attribute.column].cast(pl.String).to_list()
        columns[attribute.column] = [
            attribute.values[int(table[i].argmax())] if spoken[i] else lead[rows.fused.lead[i]] for i in order
        ]
        columns[name] = [table[i].tolist() if spoken[i] else None for i in order]
    return columns
