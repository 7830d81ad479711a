"""Settings of the training of a map network."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cytolens.tasks.outlines import OutlineInput, OutlineOutput
from cytolens.train.augment_colour import ColourAugment
from cytolens.train.settings import Hardware, Optimise


class OutlineAugment(BaseModel):
    """How pictures and masks are varied in training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotate: bool = Field(default=True, description="turn by any angle; cells have no upright")
    flip: float = Field(default=0.5, ge=0, le=1)
    scale: tuple[float, float] = Field(default=(0.7, 1.4), description="zoom, smallest and largest")
    aspect: float = Field(default=0.1, ge=0, description="largest logarithm of the stretch")
    translate: float = Field(default=0.06, ge=0, description="cell: largest shift of the cell, in sides of the crop")
    invert: float = Field(default=0.0, ge=0, le=1, description="how often dark and bright are exchanged")
    colour: ColourAugment = ColourAugment(stain=0.5, weak=0.2, white_balance=0.5, blur_px=1.2)


class OutlineTraining(BaseModel):
    """Settings of the training of a map network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["outline"] = "outline"
    name: str = "outlines"
    model: str = Field(
        default="tf_efficientnet_lite0", description="timm's name of the encoder, with features at strides 2 to 32"
    )
    width: float = Field(default=1.0, gt=0, description="factor on the widths of the decoder")
    weights: str | None = Field(default=None, description="starting weights: a file, or the name of public weights")
    labels: tuple[str, ...] = Field(
        default=(), description="labels to learn; empty: those of the dataset. shows = cell: the cell, then its parts"
    )
    split: str | None = Field(default="train", description="part of the dataset to learn from, where it has parts")
    fold: int | None = Field(default=None, ge=0, description="cross-validation fold whose images are not learnt from")
    tuning_share: float = Field(
        default=0.1, gt=0, lt=1, description="share of it kept for selection and the limits of reading"
    )
    seed: int = 1
    input: OutlineInput = OutlineInput()
    output: OutlineOutput = OutlineOutput()
    crop_px: int = Field(default=256, ge=64, multiple_of=32, description="shows = field: side of a training picture")
    crops_per_image: int = Field(
        default=1, ge=1, description="shows = field: pictures that an image of up to crop_px gives per epoch"
    )
    most_crops: int = Field(default=4, ge=1, description="shows = field: the most that a larger image gives")
    balance: float = Field(
        default=0.5, ge=0, le=1, description="shows = field: 0: types as often as they occur; 1: all equally often"
    )
    augment: OutlineAugment = OutlineAugment()
    attributes: tuple[str, ...] = Field(default=(), max_length=0, description="none can be learnt")
    optimise: Optimise = Optimise(optimiser="adamw", learning_rate=1e-3, weight_decay=0.01, batch=8, clip_norm=5.0)
    hardware: Hardware = Hardware()
