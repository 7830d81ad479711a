"""Blasts among the white cells, against the line from which acute leukaemia is asked about.

Source of the line and of what counts: World Health Organization, Classification of Tumours of Haematopoietic and
Lymphoid Tissues (20 % blasts; promonocytes and abnormal promyelocytes are blast equivalents).
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from cytolens.cells import Cells
from cytolens.evaluate.uncertainty import wilson
from cytolens.labels import LabelSet, taxonomy
from cytolens.problems import LabelError

_FLAGGED = "abnormal promyelocyte"  # acute promyelocytic leukaemia has no line: any count matters


class BlastSettings(BaseModel):
    """What counts as a blast, and from which share on the report says so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...] = Field(
        default=("blast", "blast equivalent"),
        description="what counts, with all of its kinds: myeloblasts, lymphoblasts, monoblasts; promonocytes, abnormal "
        "promyelocytes",
    )
    percent: float = Field(default=20.0, gt=0, le=100, description="of the named white cells: the line")


@dataclass(frozen=True, slots=True)
class Blasts:
    """The blasts among the named white cells of all images.

    Attributes:
        count: of blasts.
        total: of named white cells.
        by_label: label → count, for labels that occur.
        interval: Wilson's 95 % interval of the share, in percent.
        line: in percent.
        flagged: how many are abnormal promyelocytes.
    """

    count: int
    total: int
    by_label: dict[str, int]
    interval: tuple[float, float]
    line: float
    flagged: int

    @property
    def percent(self) -> float | None:
        """The share in percent; None where no white cell has a name."""
        return 100 * self.count / self.total if self.total else None

    @property
    def verdict(self) -> str:
        """Where the share and its interval stand to the line."""
        if self.percent is None:
            return "no white cell has a name"
        low, high = self.interval
        side = "at or above" if self.percent >= self.line else "below"
        sure = "" if low >= self.line or high < self.line else ", but its interval holds the line: count more cells"
        return f"{side} the line of {self.line:g} %{sure}"


def blast_labels(labels: LabelSet, settings: BlastSettings) -> list[str]:
    """The labels that count as blasts, in order; empty where the labels have none.

    Raises:
        LabelError: a name in the settings is known neither here nor in the taxonomy.
    """
    known = taxonomy()
    own = {name: labels.resolve(name) for name in settings.names}
    wide = {name: known.resolve(name) for name in settings.names}
    for name in settings.names:
        if own[name] is None and wide[name] is None:
            raise LabelError(f'blasts.names: "{name}" is no label of the bundle and not in the taxonomy')
    meant = labels.mapping_to(known)

    def counts(label: str) -> bool:
        here = any(one is not None and labels.is_a(label, one) for one in own.values())
        concept = meant[label]
        return here or (
            concept is not None and any(one is not None and known.is_a(concept, one) for one in wide.values())
        )

    return [label for label in labels.names if counts(label)]


def blasts(cells: Cells, settings: BlastSettings) -> Blasts | None:
    """The blasts among the counted white cells that have a name and are not referred; None: the labels have none."""
    names = blast_labels(cells.labels, settings)
    if not names:
        return None
    labels = cells.labels
    white = [name for name in labels.names if labels.role(name) == "leukocyte" or name in names]
    good = cells.frame.filter(pl.col("counted") & ~pl.col("ignore") & ~pl.col("refer"))["label"].cast(pl.String)
    total, counted = int(good.is_in(white).sum()), good.filter(good.is_in(names))
    by_label = {name: int((counted == name).sum()) for name in names if (counted == name).any()}
    low, high = wilson(len(counted), total)
    meant = labels.mapping_to(taxonomy())
    flagged = sum(number for name, number in by_label.items() if meant[name] == _FLAGGED)
    return Blasts(len(counted), total, by_label, (100 * low, 100 * high), settings.percent, flagged)
