"""How sure a figure is: Wilson's interval for one proportion, the bootstrap over groups for scores.

Cells of one patient, slide or image resemble each other, so scores are resampled by whole groups; an
interval over single cells would be too narrow. All intervals cover the chance of which images were
drawn. They do not cover what a model gets wrong everywhere, nor mistakes in the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cytolens.images import Images

Unit = Literal["group", "image"]
_FEW_GROUPS = 10


def wilson(successes: float, total: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; (0, 1), which says nothing, where `total` is 0.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927) 209.

    Raises:
        ValueError: successes are not between 0 and total, or the level is not between 0 and 1.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"successes are between 0 and the total; got {successes} of {total}")
    if not 0 < level < 1:
        raise ValueError(f"a confidence level is between 0 and 1; got {level}")
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low = 0.0 if successes == 0 else max(0.0, float(centre - half))
    high = 1.0 if successes == total else min(1.0, float(centre + half))
    return low, high


def resample_groups(groups: Sequence[object], resamples: int, seed: int) -> NDArray[np.float32]:
    """How often each item occurs in each bootstrap resample, shape (resamples, items).

    As many groups as there are, are drawn with replacement; all items of a group come along together.

    Args:
        groups: the group of each item; equal values are one group.
        resamples: how many resamples.
        seed: equal seeds give equal resamples.
    """
    order: dict[object, int] = {}
    index = np.array([order.setdefault(group, len(order)) for group in groups], np.intp)
    count = len(order)
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(index)), np.float32)
    for row in weights if count else ():
        drawn = np.bincount(rng.integers(count, size=count), minlength=count)
        row[:] = drawn[index]
    return weights


def percentile_interval(samples: ArrayLike, level: float = 0.95) -> list[float] | None:
    """The middle `level` of the resamples, as [low, high]; None where no resample defines the figure.

    Resamples in which the figure is undefined (NaN) are left out. Source: Efron & Tibshirani,
    "An Introduction to the Bootstrap", 1993, chapter 13 (the percentile interval).
    """
    values = np.asarray(samples, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


@dataclass(frozen=True, eq=False)
class Resampling:
    """The resamples that all intervals of one evaluation share.

    Attributes:
        unit: what is drawn: "group" (patient, slide, plate) or "image".
        groups: how many there are to draw from.
        weights: how often each image occurs in each resample, shape (R, images); None: no intervals.
        notes: what the reader of an interval has to know.
    """

    unit: Unit
    groups: int
    weights: NDArray[np.float32] | None
    notes: tuple[str, ...] = ()


def resampling(images: Images, resamples: int, seed: int) -> Resampling:
    """Resamples of images by their group; where no image has a group, by image.

    Args:
        images: the images that are scored.
        resamples: how many; 0: no intervals are wanted.
        seed: equal seeds give equal resamples.
    """
    known = images.frame["group"].to_list()
    named = sum(group is not None for group in known)
    unit: Unit = "group" if named else "image"
    groups = [("image", i) if group is None else ("group", group) for i, group in enumerate(known)]
    count = len(set(groups))
    notes: list[str] = []
    if named and named < len(known):
        notes.append(f"{len(known) - named} images without a group are resampled as groups of their own.")
    if not resamples:
        return Resampling(unit, count, None)
    if count < 2:
        notes.append(f"There are no intervals: {count} {unit} cannot be resampled.")
        return Resampling(unit, count, None, tuple(notes))
    if count < _FEW_GROUPS:
        notes.append(f"The intervals are rough: they come from {count} {unit}s only.")
    return Resampling(unit, count, resample_groups(groups, resamples, seed), tuple(notes))
