"""The attributes of truth and findings, brought to the same values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolens.evaluate.joining import Joined
from cytolens.labels import AttributeSchema
from cytolens.problems import DatasetError, LabelError, listing


@dataclass(frozen=True, eq=False)
class Said:
    """One attribute of truth and findings, in indices of the truth's values; −1: not annotated, nothing said.

    Attributes:
        schema: the attribute as the truth has it.
        truth: shape (T,).
        found: shape (F,).
        confidence: the probability of what was said, shape (F,); NaN where unknown.
    """

    schema: AttributeSchema
    truth: NDArray[np.intp]
    found: NDArray[np.intp]
    confidence: NDArray[np.float64]


def shared_attributes(joined: Joined) -> tuple[list[Said], list[str]]:
    """The attributes that both sides carry and the truth has a value of, and which are left out, as notes.

    Raises:
        DatasetError: there is none.
        LabelError: a value on one side is none that the other side knows.
    """
    theirs = {attribute.column: attribute for attribute in joined.found.labels.attributes}
    said, unsaid, blank = [], [], []
    for attribute in joined.truth.labels.attributes:
        values = joined.truth.attribute_values(attribute.column)
        if attribute.column not in theirs:
            unsaid.append(attribute.column)
        elif all(value is None for value in values):
            blank.append(attribute.column)
        else:
            said.append(_said(joined, attribute, values))
    if not said:
        raise DatasetError(
            "truth and findings have no annotated attribute in common. "
            f"The truth has: {listing([a.column for a in joined.truth.labels.attributes], 30) or 'none'}; "
            f"the findings have: {listing(theirs, 30) or 'none'}"
        )
    notes = []
    if unsaid:
        notes.append(f"The findings say nothing of these attributes, which are not scored: {listing(unsaid, 30)}.")
    if blank:
        notes.append(f"The truth has no value of these attributes, which are not scored: {listing(blank, 30)}.")
    return said, notes


def _said(joined: Joined, attribute: AttributeSchema, truth: Sequence[str | None]) -> Said:
    found = joined.found.attribute_values(attribute.column)
    theirs = next(a for a in joined.found.labels.attributes if a.column == attribute.column)
    for side, values, known in (("truth", truth, theirs.values), ("findings", found, attribute.values)):
        if strange := sorted({value for value in values if value is not None} - set(known)):
            other = "findings" if side == "truth" else "truth"
            raise LabelError(
                f"{attribute.column}: the {side} have the values {listing(strange)}, which the {other} do not know "
                f"(known there: {listing(known, 30)})"
            )
    table = joined.found.attribute_probabilities(attribute.column).astype(np.float64)
    place = {value: at for at, value in enumerate(theirs.values)}
    column = np.array([-1 if value is None else place[value] for value in found], np.intp)
    confidence = table[np.arange(len(column)), column] if len(column) else np.zeros(0)
    confidence[column < 0] = np.nan
    index: dict[str | None, int] = {value: at for at, value in enumerate(attribute.values)}
    return Said(
        schema=attribute,
        truth=np.array([index.get(value, -1) for value in truth], np.intp),
        found=np.array([index.get(value, -1) for value in found], np.intp),
        confidence=np.clip(confidence, 0, 1),
    )


def attribute_names(schemas: Sequence[AttributeSchema]) -> list[str]:
    """What figures call the attributes: their names, or the whole columns where two have the same name."""
    names = [schema.name for schema in schemas]
    return names if len(set(names)) == len(names) else [schema.column for schema in schemas]


def any_annotated(said: Sequence[Said]) -> NDArray[np.bool_]:
    """Which truth cells have a value of any of the attributes, shape (T,)."""
    return np.any([one.truth >= 0 for one in said], axis=0)
