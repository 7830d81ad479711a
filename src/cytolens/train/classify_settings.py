"""Settings of the training of a classifier."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from cytolens.tasks.classify import ClassifyInput, ClassifyOutput
from cytolens.train.augment_crop import CropAugment
from cytolens.train.settings import Hardware, Optimise


class ClassifyTraining(BaseModel):
    """Settings of the training of a classifier."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["classify"] = "classify"
    name: str = "classifier"
    model: str = Field(default="tf_efficientnet_lite0", description="timm's name of the backbone")
    weights: str | None = Field(default=None, description="starting weights: a file, or the name of public weights")
    labels: tuple[str, ...] = Field(default=(), description="label set to speak; empty: that of the dataset")
    attributes: tuple[str, ...] = Field(
        default=(),
        description="attributes to learn beside the names: schemas, such as wbcatt, or columns, such as "
        "wbcatt.cell_size; empty: none. With labels = a single name only attributes are learnt",
    )
    attribute_share: float = Field(
        default=0.5, ge=0, le=1, description="weight of the attributes in the loss; the names have the rest"
    )
    attribute_loss: Literal["cross-entropy", "asymmetric"] = Field(
        default="cross-entropy",
        description="cross-entropy: of one value of many; asymmetric: of each value by itself, as AttriDet learns",
    )
    concepts: Literal["none", "joint", "sequential"] = Field(
        default="none",
        description="a concept bottleneck: names are read from the probabilities of the attributes alone, by one "
        "linear layer. joint: what names teach shapes the attributes, too; sequential: it ends at that layer",
    )
    attribute_balance: float = Field(
        default=0.0, ge=0, le=1, description="0: every cell weighs the same; 1: all values of an attribute do together"
    )
    attribute_wrong: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="largest share of wrong values among those given, on the tuning part; less sure ones are left "
        "open. None: a value is always given",
    )
    frozen: int | None = Field(
        default=None,
        ge=0,
        description="train only the head and the last so many blocks of the network, and keep the others as they "
        "start; needs weights. None: all is trained",
    )
    norm: Literal["batch", "group"] = "batch"
    dropout: float = Field(default=0.2, ge=0, lt=1)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    split: str | None = Field(default="train", description="part of the dataset to learn from, where it has parts")
    fold: int | None = Field(default=None, ge=0, description="cross-validation fold whose images are not learnt from")
    tuning_share: float = Field(
        default=0.1, gt=0, lt=1, description="share of it kept for selection, thresholds, calibration"
    )
    target: Literal["cell", "image"] = Field(
        default="cell",
        description="cell: one name for a cell, from its crop; image: every name that occurs in an image, from the "
        "image as a whole; needs loss = focal",
    )
    whole_share: float = Field(
        default=0.0, ge=0, le=1, description="target = cell: how often the whole image is shown instead of the box"
    )
    background: str = Field(
        default="",
        description="target = cell: the label of random squares of images without cells, such as Background; empty: "
        "such images are not learnt from",
    )
    background_share: float = Field(
        default=0.1, gt=0, description="squares of background that an epoch draws, relative to the number of cells"
    )
    background_px: tuple[int, int] = Field(
        default=(88, 224), description="shortest and longest side of these squares in px of the image"
    )
    background_tuning_px: int = Field(
        default=146, ge=1, description="side of the one square in the middle of each that is kept for tuning"
    )
    seed: int = 1
    input: ClassifyInput = ClassifyInput()
    output: ClassifyOutput = ClassifyOutput()
    augment: CropAugment = CropAugment()
    balance: float = Field(
        default=0.5, ge=0, le=1, description="0: as often as they occur; 1: every label equally often"
    )
    floor: int = Field(
        default=0,
        ge=0,
        description="labels with fewer cells are shown this often per epoch, each time augmented anew, and all other "
        "cells once; needs balance = 0. 0: off",
    )
    loss: Literal["cross-entropy", "focal"] = Field(
        default="cross-entropy", description="cross-entropy: of one name of many; focal: of each name by itself"
    )
    smoothing: float = Field(default=0.05, ge=0, lt=1, description="label smoothing of the cross-entropy")
    mixup: float = Field(default=0.0, ge=0, description="parameter of the Beta distribution; 0: off")
    cutmix: float = Field(default=0.0, ge=0, description="parameter of the Beta distribution; 0: off")
    mix_share: float = Field(default=0.5, ge=0, le=1, description="share of the batches that are mixed")
    optimise: Optimise = Optimise(optimiser="adamw", learning_rate=1e-3, weight_decay=0.02, batch=64)
    hardware: Hardware = Hardware()

    @field_validator("floor")
    @classmethod
    def _one_rule(cls, floor: int, info: ValidationInfo) -> int:
        # A floor is a promise of counts, and draws by weight keep no counts: neither is dropped silently.
        if floor and info.data.get("balance", 0) > 0:
            raise ValueError(
                f"a floor fixes how often labels are shown, and so does balance = {info.data['balance']}; "
                "set balance = 0 to use the floor, or floor = 0 to draw by weight"
            )
        return floor

    @field_validator("background_px")
    @classmethod
    def _a_range(cls, sides_px: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= sides_px[0] <= sides_px[1]:
            raise ValueError(f"a shortest and a longest side, at least 1; got {sides_px}")
        return sides_px

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if (self.target == "image") != (self.loss == "focal"):
            raise ValueError(
                f"target = {self.target} does not go with loss = {self.loss}; allowed: cell with cross-entropy, image "
                "with focal"
            )
        if self.output.outputs == "sigmoid" and self.loss != "focal":
            raise ValueError("output.outputs = sigmoid needs loss = focal, which sets it by itself")
        if self.attributes and self.target == "image":
            raise ValueError(f"attributes = {list(self.attributes)} are of cells; they need target = cell")
        if self.concepts != "none" and not self.attributes:
            raise ValueError(f"concepts = {self.concepts}: there are no attributes to read names from; set attributes")
        if self.background and self.target == "image":
            raise ValueError(
                f'background = "{self.background}" is for crops; with target = image an image without cells is an '
                "example as it is: none of the names occurs"
            )
        return self
