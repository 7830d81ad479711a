"""What a region network is made of and how it is taught: one table of settings for all families.

Source of the defaults: the spec of Sartorius, section 4, which has them from He et al., "Mask R-CNN", ICCV 2017, and
Cai and Vasconcelos, "Cascade R-CNN", CVPR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Family = Literal["mask-rcnn", "cascade", "htc"]


class RegionSettings(BaseModel):
    """The shape of a region network, and which anchors and regions teach it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int = Field(default=256, ge=8, description="of each map of the pyramid, and of the mask head")
    hidden: int = Field(default=1024, ge=8, description="width of the two layers of the box head")
    mask_layers: int = Field(default=4, ge=1, description="convolutions of the mask head")
    anchor_scale: float = Field(default=8.0, gt=0, description="side of an anchor, in strides of its level")
    anchor_ratios: tuple[float, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1, description="height / width")
    aligned: bool = Field(default=True, description="RoIAlign by pixel centres; torchvision's networks lack it")
    anchor_samples: int = Field(default=256, gt=0, description="anchors per image that teach the proposals")
    proposals_before: int = Field(default=2000, gt=0, description="training: per level, before suppression")
    proposals_kept: int = Field(default=1000, gt=0, description="training: per image")
    proposal_nms_iou: float = Field(default=0.7, gt=0, le=1)
    region_samples: int = Field(default=512, gt=0, description="regions per image and stage that teach the heads")
    positive_share: float = Field(default=0.25, gt=0, le=1, description="of these, at most so many hold a cell")
    proposal_beta: float = Field(default=1 / 9, ge=0, description="where the smooth L1 loss of proposals turns linear")
    box_beta: float | None = Field(
        default=None, ge=0, description="the same of boxes, 0: L1; none: as the family has it, 0 or in a cascade 1"
    )


@dataclass(frozen=True, slots=True)
class AnchorLayout:
    """Where the anchors of a region network lie.

    A level of stride s has a grid of ⌈H / s⌉ rows and ⌈W / s⌉ columns. At row i and column j, one anchor per ratio r
    has its middle at (j·s, i·s) px of the input, the width s·scale / √r and the height s·scale·√r, with its edges
    relative to the middle rounded to whole px (half to even), as torchvision has them. All are in one row: level by
    level from the finest, row by row, column by column, ratio by ratio.

    Attributes:
        strides: of the levels in px of the input, finest first.
        scale: side of a square anchor, in strides.
        ratios: height / width.
    """

    strides: tuple[int, ...]
    scale: float
    ratios: tuple[float, ...]
