"""The cell type of an image, where all its cells are of one: from the cells that were found, or from their density.

Both rules are those of the 11th place of the Sartorius competition, whose images show one of three kinds of neurons;
here votes weigh as much as their score, and every number is a setting.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field


class DensityRule(BaseModel):
    """A cell type from how many places of each level of a region network look like a cell.

    Large cells light up the coarsest levels; of the others, sparse ones light up few places.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    large: str = Field(default="astro", description="the type whose cells light up the coarsest levels")
    sparse: str = Field(default="cort", description="the type of images with few places lit")
    dense: str = Field(default="shsy5y", description="the type of all other images")
    objectness_min: float = Field(default=0.7, ge=0, lt=1, description="a place is lit above this objectness")
    coarse_levels: int = Field(default=2, ge=1, description="how many of the coarsest levels are looked at for large")
    large_above: int = Field(default=10, ge=0, description="large: more places than this are lit there")
    sparse_below: int = Field(default=4500, ge=0, description="sparse: fewer places than this are lit in all")
    fine_level: int = Field(default=1, ge=0, description="the level that is looked at for sparse; 0 is the finest")
    fine_below: int = Field(default=750, ge=0, description="sparse: fewer places than this are lit in that level")


def majority(classes: ArrayLike, scores: ArrayLike, score_min: float) -> int | None:
    """The class that the cells of an image speak for, each as loud as its score; None where there are no cells.

    Args:
        classes: class index of each cell, shape (N,).
        scores: shape (N,).
        score_min: cells of a lower score are not asked, unless there are no others. Of equal sums the first class wins.
    """
    given, loud = np.asarray(classes, np.intp), np.asarray(scores, np.float64)
    if not len(given):
        return None
    asked = loud >= score_min
    if not asked.any():
        asked[:] = True
    return int(np.bincount(given[asked], loud[asked]).argmax())


def lit_places(objectness: Sequence[ArrayLike], objectness_min: float) -> NDArray[np.int64]:
    """How many places of each level have an anchor above an objectness, shape (levels,).

    Args:
        objectness: logits of each level, shape (places, anchors of a place).
        objectness_min: as a probability; places have to be above it.
    """
    # A logit is compared with the limit's logit, so that large logits cannot overflow.
    limit = np.log(objectness_min / (1 - objectness_min)) if objectness_min > 0 else -np.inf
    best = [np.asarray(level, np.float64).max(axis=1, initial=-np.inf) for level in objectness]
    return np.array([np.count_nonzero(level > limit) for level in best], np.int64)


def type_by_density(objectness: Sequence[ArrayLike], rule: DensityRule | None = None) -> str:
    """The cell type of an image from the (merged) proposal maps of region networks.

    Args:
        objectness: logits of each level, finest first, each of shape (places, anchors of a place).
        rule: the limits, and what the types are called; None: those of Sartorius.

    Raises:
        ValueError: there are not as many levels as the rule looks at.
    """
    rule = rule or DensityRule()
    if len(objectness) <= max(rule.fine_level, rule.coarse_levels - 1):
        raise ValueError(
            f"the rule looks at level {rule.fine_level} and the {rule.coarse_levels} coarsest; "
            f"there are {len(objectness)} levels"
        )
    lit = lit_places(objectness, rule.objectness_min)
    if lit[-rule.coarse_levels :].sum() > rule.large_above:
        return rule.large
    if lit.sum() < rule.sparse_below and lit[rule.fine_level] < rule.fine_below:
        return rule.sparse
    return rule.dense
