"""Values of attributes that a file may not have, and those that say nothing: collected, then said once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from cytolens.labels import AttributeSchema
from cytolens.problems import Problems, did_you_mean, listing

_MOST = 100  # rows that are named one by one; a file with more strange values has another fault


class Refusals:
    """Values that an attribute does not have; a problem each, with file, line, column, value and what is allowed."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._more: Counter[str] = Counter()
        self._told = 0

    def add(self, where: str, column: str, value: str, attribute: AttributeSchema, allowed: Iterable[str]) -> None:
        """Note a value that is left empty.

        Args:
            where: file and line.
            column: the column (or field) as the file calls it.
            value: as the file gives it.
            attribute: what the column says.
            allowed: the values that the column may have.
        """
        self._told += 1
        if self._told > _MOST:
            self._more[column] += 1
            return
        allowed = list(allowed)
        what = f'column "{column}": unknown value "{value[:40]}"; allowed: {listing(allowed, 20)}. It is left empty.'
        fix = did_you_mean(value[:40], attribute.values) or "Correct the file."
        self._problems.add("attribute-unknown", where, what, fix, "error")

    def say(self) -> None:
        """Say how many more there were than were named; call it when all are added."""
        for column, count in self._more.items():
            what = f"{count} more values of this column are unknown and left empty."
            self._problems.add("attribute-unknown", f'column "{column}"', what, "Correct the file.", "error")
        self._more.clear()
