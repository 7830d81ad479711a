"""Detection: from a field to a network's input, and from its output to boxes of the field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens import boxes as box
from cytolens.prepare import stain
from cytolens.prepare.stain import FieldStain, StainSettings
from cytolens.views import View, fitted

MULTIPLE = 32  # the largest stride
EARLY_MAPS = ("map_4", "map_8")  # what an exported detector calls the maps that attributes are read from
BORDER = 114  # the grey that the published networks know as "outside"


class DetectInput(BaseModel):
    """What the detector is shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: int = Field(default=416, ge=64, multiple_of=MULTIPLE, description="longer side of the network's input")
    stain: StainSettings = StainSettings()


class DetectOutput(BaseModel):
    """What is kept of the detector's answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score_floor: float = Field(default=0.01, ge=0, le=1, description="findings below it are thrown away")
    nms_iou: float = Field(
        default=0.65, gt=0, le=1, description="of two findings of one label that overlap more, one stays"
    )
    most: int = Field(default=1000, gt=0, description="findings kept per image")
    views: int = Field(
        default=1, ge=1, le=8, description="flips and turns of the field that are looked at; their findings are fused"
    )
    thresholds: dict[str, float] = Field(
        default_factory=dict, description="score from which a finding of a label is counted; 0.5 where not named"
    )

    def threshold(self, label: str) -> float:
        """The score from which a finding of this label is counted."""
        return self.thresholds.get(label, 0.5)


class Fusion(BaseModel):
    """How the findings of several detectors, or of several views, become one list: by weighted box fusion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    iou: float = Field(default=0.55, gt=0, lt=1, description="overlap above which two boxes are the same cell")
    lists: Literal["per-model", "one"] = Field(
        default="per-model", description="per-model: a detector that lacks a cell speaks against it; one: it does not"
    )


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found in one field, best first.

    Attributes:
        boxes: in pixels of the field, shape (N, 4).
        classes: class indices, shape (N,).
        scores: shape (N,).
        attributes: column → probabilities over its values, shape (N, V); rows of NaN where nothing is said.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.intp]
    scores: NDArray[np.float32]
    attributes: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def kept(self, rows: NDArray[np.intp]) -> Findings:
        """Some of them, in the order of the rows."""
        told = {column: table[rows] for column, table in self.attributes.items()}
        return Findings(self.boxes[rows], self.classes[rows], self.scores[rows], told)


def picture(
    pixels: NDArray[np.uint8], settings: DetectInput, field: FieldStain | None = None
) -> tuple[NDArray[np.uint8], View]:
    """The network's input for one field: uint8 RGB (h, w, 3), sides multiples of 32, and its view.

    The field is normalised, scaled so that its longer side is `side_px`, and laid at the upper left
    of a grey canvas just large enough.

    Args:
        pixels: the field, or a tile of it.
        settings: what the network is shown.
        field: the stain of the field; None: measured here.
    """
    import cv2

    height, width = pixels.shape[:2]
    view, inner = fitted((width, height), settings.side_px, MULTIPLE)
    shrink = max(width / inner[0], height / inner[1])
    scaled = cv2.resize(pixels, inner, interpolation=cv2.INTER_AREA if shrink > 2 else cv2.INTER_LINEAR)
    change = stain.change(field or stain.measure(pixels), settings.stain)
    canvas = np.full((view.wh[1], view.wh[0], 3), BORDER, np.uint8)
    canvas[: inner[1], : inner[0]] = stain.normalise(np.asarray(scaled, np.uint8), change)
    return canvas, view


def findings(boxes: NDArray[np.float32], scores: NDArray[np.float32], view: View, settings: DetectOutput) -> Findings:
    """The network's answer for one field, as boxes of that field.

    Each location speaks for its best class only; then non-maximum suppression within each class.

    Args:
        boxes: decoded boxes in pixels of the input, shape (L, 4).
        scores: objectness × class, shape (L, C).
        view: how the input was made.
        settings: what to keep.
    """
    label = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), label]
    good = np.flatnonzero((best >= settings.score_floor) & np.isfinite(boxes).all(axis=1))
    label, best = label[good], best[good]
    width, height = view.source_wh
    placed = box.clip(view.back_boxes(boxes[good]), width, height)
    whole = box.valid(placed, width, height)
    placed, label, best = placed[whole], label[whole], best[whole]
    keep = box.non_maximum_suppression(placed, best, settings.nms_iou, label)[: settings.most]
    return Findings(placed[keep], label[keep], best[keep])
