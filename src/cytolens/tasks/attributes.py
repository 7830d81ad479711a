"""Attributes: from a cell's known values to a network's targets, and from its output to values.

A network gives the logits of all attributes side by side, (N, ΣV), in the order of the label set's attributes and
their values. What is known of a cell travels as one row: which leaves its name allows (K), then the index of each
attribute's value (A), −1 where it is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens import boxes as box
from cytolens import match
from cytolens.cells import Cells
from cytolens.labels import AttributeSchema, LabelSet
from cytolens.problems import LabelError, did_you_mean, listing
from cytolens.tasks.classify import probabilities, sigmoids, targets

UNKNOWN = -1


class AttributeOutput(BaseModel):
    """How a network's output becomes values of attributes; columns are "<schema>.<name>"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outputs: Literal["softmax", "sigmoid"] = Field(
        default="softmax", description="sigmoid: trained with the asymmetric loss, each value by itself"
    )
    temperature: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="column → what its logits are divided by first, 1 where not named"
    )
    sure: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict, description="column → probability from which its value is given, 0 where not named"
    )
    kinds: dict[str, dict[str, tuple[float, ...]]] = Field(
        default_factory=dict,
        description="label → column → share of each value among the training's cells of that label; cells of other "
        "kinds are not described",
    )


def chosen(available: Iterable[AttributeSchema], names: Sequence[str]) -> tuple[AttributeSchema, ...]:
    """The attributes that are meant by names of schemas ("wbcatt") or columns ("wbcatt.cell_size"), in their order.

    Raises:
        LabelError: a name is neither.
    """
    there = {attribute.column: attribute for attribute in available}
    schemas = {attribute.schema for attribute in there.values()}
    for name in names:
        if name not in there and name not in schemas:
            hint = did_you_mean(name, [*there, *schemas])
            raise LabelError(
                f'attributes = "{name}": the data have no such schema or column. {hint + " " if hint else ""}'
                f"There are: {listing([*sorted(schemas), *there], 30) or 'none'}"
            )
    return tuple(a for a in there.values() if a.column in names or a.schema in names)


def widths(attributes: Iterable[AttributeSchema]) -> tuple[int, ...]:
    """The number of values of each attribute."""
    return tuple(len(attribute.values) for attribute in attributes)


# -- what is known ----------------------------------------------------------------------------------


def value_indices(cells: Cells) -> NDArray[np.int8]:
    """The index of each attribute's value, −1 where it is not known; shape (N, A). Artefacts have none."""
    columns = [cells.frame[a.column].to_physical() for a in cells.labels.attributes]
    table = [column.cast(int).fill_null(UNKNOWN).to_numpy() for column in columns]
    indices = np.array(table, np.int8).reshape(len(table), len(cells)).T
    if not len(table):
        return indices
    no_cells = [name for name in cells.labels.names if cells.labels.role(name) == "artefact"]
    bare = cells.frame["label"].cast(str).is_in(no_cells).fill_null(False).to_numpy()
    return np.where(bare[:, None], np.int8(UNKNOWN), indices)


def known_partners(truth: Cells, boxes: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.int8]]:
    """Which findings of one image, boxes (N, 4), are cells with a value, and the indices of their values (M, A).

    Findings are told from each other by overlap alone, whatever they are called.
    """
    known = value_indices(truth)
    rows = np.flatnonzero((known != UNKNOWN).any(axis=1) & ~truth.frame["ignore"].to_numpy())
    pairs = match.pair(box.iou(boxes, truth.boxes()[rows]), np.zeros(len(rows), bool))
    return pairs.found, known[rows[pairs.truth]]


def known(cells: Cells) -> NDArray[np.bool_] | NDArray[np.int8]:
    """What is known of each cell, shape (N, K + A); without attributes only the allowed leaves (N, K), as booleans.

    A cell without a name allows no leaf: it teaches nothing of names.
    """
    names = cells.label_names()
    allowed = np.zeros((len(cells), len(cells.labels.leaves)), bool)
    named = [row for row, name in enumerate(names) if name is not None]
    allowed[named] = targets([str(names[row]) for row in named], cells.labels)
    return with_values(allowed, value_indices(cells))


def with_values(allowed: NDArray[np.bool_], indices: NDArray[np.int8]) -> NDArray[np.bool_] | NDArray[np.int8]:
    """Allowed leaves (N, K) and indices of values (N, A) as rows (N, K + A); booleans where A is 0."""
    return np.concatenate([allowed, indices], axis=1, dtype=np.int8) if indices.shape[1] else allowed


def told(cells: Cells) -> NDArray[np.bool_]:
    """Which cells have a name or the value of an attribute, shape (N,)."""
    return cells.frame["label"].is_not_null().to_numpy() | (value_indices(cells) != UNKNOWN).any(axis=1)


def shares_by_kind(cells: Cells) -> dict[str, dict[str, tuple[float, ...]]]:
    """Label → column → share of each value among the cells of that label and its kinds, for labels with any value.

    One imagined cell, spread evenly over the values, is added to each, so that no value is impossible.
    """
    names, indices = cells.label_names(), value_indices(cells)
    kinds: dict[str, dict[str, tuple[float, ...]]] = {}
    for name in cells.labels.names:
        rows = [row for row, one in enumerate(names) if one is not None and cells.labels.is_a(one, name)]
        for attribute, column in zip(cells.labels.attributes, indices[rows].T, strict=True):
            count = len(attribute.values)
            seen = np.bincount(column[column != UNKNOWN], minlength=count)
            if seen.any():
                table = (seen + 1 / count) / (seen.sum() + 1)
                kinds.setdefault(name, {})[attribute.column] = tuple(round(float(s), 6) for s in table)
    return kinds


# -- what is said -----------------------------------------------------------------------------------


def parted(table: NDArray[np.floating], attributes: Sequence[AttributeSchema]) -> dict[str, NDArray[np.floating]]:
    """Column → its part (N, V) of a table (N, ΣV)."""
    ends = np.cumsum(widths(attributes))
    parts = np.split(np.asarray(table), ends[:-1], axis=1) if len(ends) else []
    return {a.column: part for a, part in zip(attributes, parts, strict=True)}


def shares(logits: NDArray[np.floating], column: str, output: AttributeOutput) -> NDArray[np.float32]:
    """Probabilities (N, V) of one attribute's values from its logits (N, V), summing to 1.

    Sigmoids, each value by itself as it was learnt, are divided by their sum; that changes no order.
    """
    warmth = output.temperature.get(column, 1.0)
    if output.outputs == "softmax":
        return probabilities(logits, warmth)
    table = np.maximum(sigmoids(logits, warmth).astype(np.float64), 1e-12)
    return (table / table.sum(axis=1, keepdims=True)).astype(np.float32)


def values_given(table: NDArray[np.floating], attribute: AttributeSchema, output: AttributeOutput) -> list[str | None]:
    """The most probable value of each cell (N), or None where it is not sure, from probabilities (N, V).

    Rows of NaN say nothing.
    """
    sure = output.sure.get(attribute.column, 0.0)
    filled = np.where(np.isnan(table), -1.0, table)
    best, height = filled.argmax(axis=1), filled.max(axis=1, initial=-1.0)
    return [attribute.values[int(i)] if h >= 0 and h >= sure else None for i, h in zip(best, height, strict=True)]


def describable(names: Sequence[str | None], labels: LabelSet, output: AttributeOutput) -> NDArray[np.bool_]:
    """Which cells of these names may be described, shape (N,): those of kinds that were learnt from.

    A wider name may be of such a kind, and so may a cell without a name; a finer name is of the kind it refines. A
    sibling of the kinds that were learnt from is not: nobody said what its attributes are.
    """
    learnt = {name for kind in output.kinds if (name := labels.resolve(kind)) is not None}
    finest = [name for name in learnt if not any(other != name and labels.is_a(other, name) for other in learnt)]
    fits = {n: not learnt or n in learnt or any(labels.is_a(n, k) for k in finest) for n in set(names) if n is not None}
    return np.array([name is None or fits[name] for name in names], bool)


def kind_of(name: str | None, labels: LabelSet, output: AttributeOutput) -> str | None:
    """The key of `output.kinds` for a cell of this name: its own, or that of the nearest wider name."""
    if name is None:
        return None
    keys = {labels.resolve(kind): kind for kind in output.kinds}
    return next((keys[one] for one in (name, *labels.ancestors(name)) if one in keys), None)
