"""What a check can be asked, what it gives back, and what its kinds of finding mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from cytolens.images import MAX_PIXELS
from cytolens.problems import Problem, Severity

Tell = Callable[[int, int], None]  # (images done, images in all)

# Shares of a side, by which an edge may lie outside: fractions with six decimals round by as much.
ROUNDING = 1e-6


class CheckSettings(BaseModel):
    """What a check looks at, and from where on something is odd."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: bool = Field(default=True, description="decode every image file; off: the tables alone are checked")
    threads: int = Field(default=0, ge=0, description="images decoded at a time; 0: one per core")
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, description="images with more pixels are reported, not decoded")
    same_iou: float = Field(
        default=0.9, gt=0, le=1, description="overlap from which two boxes of an image are the same box"
    )
    thin_px: float = Field(default=1.0, ge=0, description="boxes no wider or no higher than this are reported")
    aspect_max: float = Field(
        default=5.0, ge=1, description="longer side over shorter side, beyond which a box has an odd shape"
    )
    size_z_max: float = Field(
        default=5.0, gt=0, description="robust z-score of a label's log area, beyond which a box has an odd size"
    )
    size_cells_min: int = Field(default=20, ge=3, description="labels with fewer boxes have no usual size")
    label_cells_min: int = Field(default=10, ge=0, description="labels with fewer cells are noted as rare")


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, and where it can be seen.

    Attributes:
        problem: what is wrong.
        image_id: the image to show; None where it is not about one.
        cell_ids: the cells in question, the one that is wrong first.
        weight: larger is worse, among findings of one kind.
    """

    problem: Problem
    image_id: str | None = None
    cell_ids: tuple[str, ...] = ()
    weight: float = 0.0

    @property
    def kind(self) -> str:
        """The kind of its problem."""
        return self.problem.kind

    def to_dict(self) -> dict[str, object]:
        """The problem as a dictionary, with the image and the cells that it is about."""
        return {**self.problem.to_dict(), "image_id": self.image_id, "cells": list(self.cell_ids)}


def cell_finding(
    kind: str,
    image_id: str,
    cell_ids: tuple[str, ...],
    what: str,
    fix: str,
    severity: Severity = "warning",
    weight: float = 0.0,
) -> Finding:
    """A finding about cells of one image."""
    problem = Problem(kind, f"{image_id}, cell {cell_ids[0]}", what, fix, severity)
    return Finding(problem, image_id, cell_ids, weight)


def image_finding(kind: str, image_id: str, what: str, fix: str, severity: Severity = "warning") -> Finding:
    """A finding about one image."""
    return Finding(Problem(kind, image_id, what, fix, severity), image_id)


def finding(kind: str, where: str, what: str, fix: str, severity: Severity = "warning") -> Finding:
    """A finding about the dataset, a group or a label."""
    return Finding(Problem(kind, where, what, fix, severity))


# What `repair` mends: after it, a check finds none of these.
MENDED = frozenset(
    {
        "box-not-a-number",
        "box-outside-image",
        "box-no-area",
        "box-repeated",
        "box-nearly-repeated",
        "size-mismatch",
    }
)

# Kind → what it means, as a heading.
KINDS = {
    "box-not-a-number": "Boxes that are not four numbers",
    "box-outside-image": "Boxes that reach outside their image",
    "box-no-area": "Boxes without area",
    "box-repeated": "The same box with the same label again",
    "box-nearly-repeated": "Nearly the same box with the same label again",
    "box-several-labels": "One box, several labels or descriptions",
    "box-thin": "Boxes hardly a pixel wide or high",
    "box-odd-size": "Boxes far larger or smaller than others of their label",
    "box-odd-shape": "Boxes far longer than wide",
    "image-without-file": "Images without a file",
    "image-missing": "Image files that are gone",
    "image-unreadable": "Image files that cannot be opened",
    "image-empty": "Empty image files",
    "image-not-an-image": "Files that are no image",
    "image-damaged": "Damaged image files",
    "image-too-large": "Images too large to be decoded at once",
    "image-codec": "Images that need another decoder",
    "image-channels": "Images of other channels than grey or RGB",
    "image-changed": "Image files that changed since the import",
    "image-turned": "Images that are turned by their EXIF orientation",
    "image-in-several-splits": "The same image in several splits or folds",
    "image-repeated": "The same image under several names",
    "image-without-cells": "Images without cells",
    "size-mismatch": "Image sizes that are wrong in the table",
    "size-other-version": "Boxes drawn on another version of their image",
    "group-straddles": "Groups on both sides of a split",
    "label-background": "A label that stands for background",
    "label-number": "Labels that are numbers",
    "label-shift": "Labels that may be off by one",
    "label-typo": "Labels that look misspelt",
    "label-unfamiliar": "Labels that the taxonomy does not know",
    "label-synonyms": "Two labels for the same cell",
    "label-unused": "Labels without cells",
    "label-rare": "Labels with few cells",
    "label-missing": "Cells without a label",
    "attribute-unfamiliar": "Attributes or values outside their schema",
}
