"""Segmentation: what networks of outlines are shown, what they say, and how soft outlines are kept.

Two kinds of networks speak here. A *map* network gives one value per pixel for each of several maps, from which
outlines are read. A *region* network (Mask R-CNN and its kin) proposes boxes, names them, and draws a soft mask in
each; it is exported in three pieces, so that several can be asked together at each stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens.tasks.detect import BORDER, MULTIPLE
from cytolens.views import View

TRUNK_FILE, BOXES_FILE, MASKS_FILE = "trunk.onnx", "boxes.onnx", "masks.onnx"  # the pieces of a region network
PATCH = 28  # side of a region network's soft mask


class SegmentInput(BaseModel):
    """What a region network is shown: the image on a canvas whose sides are multiples of the largest stride."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    magnify: float = Field(default=1.0, gt=0, le=8, description="px of the network's input per px of the image")


class MaskCleaning(BaseModel):
    """What becomes of soft outlines of one cell type, step by step (spec of Sartorius, section 6)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mask_threshold: float = Field(default=0.5, gt=0, lt=1, description="a pixel belongs to a cell above it")
    score_min: float = Field(default=0.5, ge=0, le=1, description="cells from this score on count")
    mask_nms_iou: float = Field(default=0.3, ge=0, le=1, description="of two masks that overlap more, the lower goes")
    area_min_px: int = Field(default=0, ge=0, description="smaller masks go, all of them")
    parts: Literal["largest", "all"] = Field(default="largest", description="what stays of a mask that falls apart")
    redraw: Literal["none", "filled"] = Field(
        default="none", description="filled: every contour is redrawn by a convex fill, as some annotations are"
    )


class SegmentOutput(BaseModel):
    """How the answer of region networks is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    proposals_before: int = Field(default=2000, gt=0, description="proposals per level before suppression")
    proposal_nms_iou: float = Field(default=0.7, gt=0, le=1)
    proposal_floor: float = Field(default=0.0, ge=0, le=1, description="proposals of a lower objectness go")
    proposals_kept: int = Field(default=1000, gt=0, description="proposals that are looked at in all")
    box_nms_iou: float = Field(default=0.6, gt=0, le=1, description="whatever the label")
    score_floor: float = Field(default=0.05, ge=0, le=1, description="cells below it are thrown away")
    most: int = Field(default=1000, gt=0, description="cells kept per image, or per tile of a large one")
    views: int = Field(default=1, ge=1, le=8, description="flips and turns looked at, averaged stage by stage")
    one_label: bool = Field(
        default=False, description="all cells of an image are of the type that most of it speaks for"
    )
    type_score_min: float = Field(
        default=0.5, ge=0, le=1, description="one_label: cells of a lower score are not asked for the type"
    )
    pasting: Literal["exact", "whole-pixels"] = Field(
        default="exact",
        description="how soft masks are laid into the image; whole-pixels: as torchvision does, which rounds the box "
        "outwards and so makes small cells too large",
    )
    cleaning: MaskCleaning = MaskCleaning()
    per_label: dict[str, MaskCleaning] = Field(
        default_factory=dict, description="other steps for a cell type; those not named take `cleaning`"
    )

    def cleaning_of(self, label: str) -> MaskCleaning:
        """The steps for a cell type."""
        return self.per_label.get(label, self.cleaning)


@dataclass(frozen=True, slots=True)
class SoftOutlines:
    """What region networks say of one image, before any pixel is decided; best first.

    Attributes:
        size_hw: of the image.
        boxes: in px of the image, shape (N, 4), float32.
        classes: shape (N,), intp.
        scores: of the class given, shape (N,), float32.
        class_scores: of all classes, shape (N, K), float32.
        patches: the soft mask inside each box, 0 … 255, shape (N, P, P), uint8; bins are equal parts of the box.
    """

    size_hw: tuple[int, int]
    boxes: NDArray[np.float32]
    classes: NDArray[np.intp]
    scores: NDArray[np.float32]
    class_scores: NDArray[np.float32]
    patches: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Outlines:
    """Cells of one image with their masks, best first.

    Attributes:
        boxes: the masks' bounds in px of the image, shape (N, 4), float32.
        classes: shape (N,), intp.
        scores: shape (N,), float32.
        masks: COCO's compressed run-length codes in the frame of the image (N).
        counted: whether the score is high enough, shape (N,), bool.
        notes: what a reader of the count has to know.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.intp]
    scores: NDArray[np.float32]
    masks: list[bytes]
    counted: NDArray[np.bool_]
    notes: tuple[str, ...] = ()


def picture(pixels: NDArray[np.uint8], settings: SegmentInput) -> tuple[NDArray[np.uint8], View]:
    """A region network's input for one image (H, W, 3): magnified, at the upper left of a grey canvas; and its view."""
    import cv2

    height, width = pixels.shape[:2]
    inner = (max(1, round(width * settings.magnify)), max(1, round(height * settings.magnify)))
    wh = (-(-inner[0] // MULTIPLE) * MULTIPLE, -(-inner[1] // MULTIPLE) * MULTIPLE)
    canvas = np.full((wh[1], wh[0], 3), BORDER, np.uint8)
    sampling = cv2.INTER_AREA if settings.magnify < 1 else cv2.INTER_LINEAR
    canvas[: inner[1], : inner[0]] = (
        pixels if settings.magnify == 1 else cv2.resize(pixels, inner, interpolation=sampling)
    )
    return canvas, View((width, height), wh, np.array([[inner[0] / width, 0, 0], [0, inner[1] / height, 0.0]]))
