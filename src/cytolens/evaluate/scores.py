"""What an evaluation is asked for, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens.evaluate.uncertainty import percentile_interval
from cytolens.problems import Problems


class EvaluateSettings(BaseModel):
    """How findings are compared with the truth.

    Attributes:
        iou_min: overlap from which a finding and a truth are the same cell (counts and names; average
            precision has its own ten limits).
        missing: what to do with a truth image that has no found image: "error", or "ok" to score the rest.
        level: label names to which both sides are rolled up before scoring; None: the truth's own.
        intervals: whether to work out 95 % intervals.
        bootstrap: how many resamples an interval is made from.
        seed: of the resampling.
        expected_counts: task "cytologia" only, an oracle: how many cells each image has is taken from the truth
            ("truth") or from a file like the challenge's ``test.csv``, instead of from what counts.
        class_only_from: task "attributes" only: the folder of a dataset from which it is learnt what each label
            usually looks like; None: from the truth itself, without each cell's own group or image.
        boundary_px: outlines only: how far apart two contours may be and still agree. None, and no
            `boundary_share`: 2 px.
        boundary_share: the same as a share of the image's diagonal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    iou_min: float = Field(default=0.5, gt=0, le=1)
    missing: Literal["error", "ok"] = "error"
    level: tuple[str, ...] | None = Field(default=None, min_length=1)
    intervals: bool = True
    bootstrap: int = Field(default=1000, ge=2)
    seed: int = Field(default=0, ge=0)
    expected_counts: str | None = Field(default=None, min_length=1)
    class_only_from: str | None = Field(default=None, min_length=1)
    boundary_px: float | None = Field(default=None, ge=0)
    boundary_share: float | None = Field(default=None, ge=0, le=1)


@dataclass(frozen=True, eq=False)
class Scores:
    """The outcome of an evaluation.

    Attributes:
        task: what was scored, such as "detection".
        figures: nested plain data. "<figure>_interval" beside a figure is [low, high], 95 %; None is undefined.
        notes: sentences that a reader of the figures has to know.
        problems: what was wrong in the data, row by row.
        tables: row-level data for plots and the report, by name; each task's module says which.
    """

    task: str
    figures: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    problems: Problems = field(default_factory=Problems)
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)

    def to_json_dict(self) -> dict[str, Any]:
        """One flat JSON object: the task, the figures, the notes and the problems; no NaN."""
        return plain(
            {"task": self.task, **self.figures, "notes": list(self.notes), "problems": self.problems.to_dicts()}
        )


def plain(value: Any) -> Any:
    """Nested data as JSON can hold it: NumPy numbers become Python's, NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (str, bool)) or value is None:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no place among figures")


class Interval(list[float]):
    """[low, high], with the resamples that it was read from.

    Figures that were drawn with the same resamples can be compared pair by pair; see `paired_interval`.

    Attributes:
        samples: the figure in each resample, shape (R,).
    """

    def __init__(self, ends: Sequence[float], samples: NDArray[np.floating]) -> None:
        super().__init__(ends)
        self.samples = samples


def paired_interval(one: object, other: object) -> list[float] | None:
    """The 95 % interval of the difference of two figures, one minus other, from their intervals.

    Both have to be of the same images, in the same order, under the same seed: then chance that moves both alike does
    not widen it.

    Returns:
        None where one has no interval, or they have unlike numbers of resamples.
    """
    if not isinstance(one, Interval) or not isinstance(other, Interval) or one.samples.shape != other.samples.shape:
        return None
    return percentile_interval(one.samples - other.samples)


def figure(name: str, value: float, samples: NDArray[np.floating] | None) -> dict[str, Any]:
    """One figure and, where resamples are given, its 95 % interval, under their names.

    Args:
        name: the figure's name; its interval is "<name>_interval".
        value: NaN where undefined.
        samples: the figure in each resample, shape (R,); None: no interval.
    """
    entry: dict[str, Any] = {name: plain(value)}
    if samples is not None:
        ends = None if entry[name] is None else percentile_interval(samples)
        entry[f"{name}_interval"] = None if ends is None else Interval(ends, np.asarray(samples))
    return entry
