"""Settings of the training of a region network, and the two schedules over its epochs.

Source of both schedules: the specification of the Sartorius solution (section 4, loss decay; section 9, extra images).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cytolens.models.region_settings import RegionSettings
from cytolens.tasks.detect import MULTIPLE
from cytolens.tasks.segment import SegmentInput, SegmentOutput
from cytolens.train.augment_instances import InstanceAugment
from cytolens.train.settings import Hardware, Optimise

_FULL = 800  # extra images of an epoch that the published schedule starts with


class SegmentOptimise(Optimise):
    """How the weights of a region network are learnt."""

    batch: int = Field(default=4, ge=1)
    optimiser: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_epochs: float = Field(default=1.0, ge=0)
    closing_epochs: int = Field(default=2, ge=0, description="last epochs, at the lowest learning rate")
    final_share: float = Field(default=0.02, gt=0, le=1, description="share of the learning rate left at the end")
    average_ramp: float = Field(
        default=500.0, gt=0, description="updates over which the average slows down to its decay"
    )
    average_decay: float = Field(
        default=0.998, ge=0, lt=1, description="decay of the running average of the weights; 0: off"
    )
    clip_norm: float = Field(default=10.0, ge=0, description="largest norm of the gradient; 0: not clipped")


class SmallRegions(RegionSettings):
    """The shape of a region network and which regions teach it, fit for small crops on a CPU."""

    channels: int = Field(default=128, ge=8, description="of each map of the pyramid, and of the mask head")
    hidden: int = Field(default=512, ge=8, description="width of the two layers of the box head")
    proposals_before: int = Field(default=1000, gt=0, description="training: per level, before suppression")
    proposals_kept: int = Field(default=300, gt=0, description="training: per image")
    region_samples: int = Field(default=128, gt=0, description="regions per image and stage that teach the heads")
    positive_share: float = Field(default=0.5, gt=0, le=1, description="of these, at most so many hold a cell")


class ExtraImages(BaseModel):
    """Pseudo-labelled images beside the annotated ones: many at first, none at the end.

    An image is pseudo-labelled where one of its cells has a score, which a person's cells never have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    most: int = Field(default=_FULL, ge=0, description="pseudo-labelled images in an epoch, at most")
    score_min: float = Field(default=0.5, ge=0, le=1, description="pseudo-labelled cells below it are not truths")
    teacher: str | None = Field(
        default=None,
        description="source that all pseudo-labelled cells must have, such as bundle:nuclei-0@0123456789ab, so that a "
        "student learns from the teacher of its own fold only; None: any",
    )


class SegmentTraining(BaseModel):
    """Settings of the training of a region network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["segment"] = "segment"
    name: str = "outliner"
    family: Literal["mask-rcnn", "cascade", "htc"] = "mask-rcnn"
    backbone: str = Field(default="resnet18", description="any backbone of timm that gives maps")
    keep_stride: bool = Field(
        default=False, description="false: the first convolution looks at every pixel, so all strides are halved"
    )
    freeze_norms: bool = Field(default=False, description="the batch normalisation stays as it starts")
    network: SmallRegions = SmallRegions()
    weights: str | None = Field(default=None, description="starting weights: a file, or the name of public weights")
    labels: tuple[str, ...] = Field(default=(), description="labels to outline; empty: those of the dataset")
    split: str | None = Field(default="train", description="part of the dataset to learn from, where it has parts")
    fold: int | None = Field(default=None, ge=0, description="cross-validation fold whose images are not learnt from")
    tuning_share: float = Field(default=0.1, gt=0, lt=1, description="share of it kept to choose the best epoch")
    seed: int = 1
    input: SegmentInput = SegmentInput()
    output: SegmentOutput = SegmentOutput()
    crop_px: int = Field(default=256, ge=64, multiple_of=MULTIPLE, description="side of the crops that are learnt from")
    crop_px_per_label: dict[str, int] = Field(
        default_factory=dict, description="another side for images most of whose cells have this label"
    )
    repeats: int = Field(default=1, ge=1, description="crops of each image in an epoch")
    augment: InstanceAugment = InstanceAugment()
    loss_decay: bool = Field(
        default=False, description="the mask's loss gains weight over the epochs, as the others lose it"
    )
    extra: ExtraImages = ExtraImages()
    optimise: SegmentOptimise = SegmentOptimise()
    hardware: Hardware = Hardware()

    @property
    def model(self) -> str:
        """What the network is called in messages."""
        return f"{self.family} on {self.backbone}"


def loss_weights(epoch: int, epochs: int) -> dict[str, float]:
    """What each loss weighs in an epoch, as the loss decay has it; the sum of the weighted losses is then divided by
    that of the weights, so that the share of the mask's loss grows.

    The semantic loss of a Hybrid Task Cascade, which the published schedule drops by oversight, weighs as the mask.

    Args:
        epoch: from 1 to `epochs`.
        epochs: of the training.
    """
    if not 1 <= epoch <= epochs:
        raise ValueError(f"epochs are counted from 1 to {epochs}; got {epoch}")
    place = (epochs + 2 - epoch // 2) / (epochs + 2)
    return {
        "class": (epochs + 3 - epoch) / (epochs + 2),
        "box": place,
        "rpn_class": place,
        "rpn_box": place,
        "mask": 1.0,
        "semantic": 1.0,
    }


def extra_images(epochs: int, available: int, most: int = _FULL) -> list[int]:
    """How many pseudo-labelled images each epoch shows, first to last: clip(50 ⌊i^(1 + 20/E) / 5⌋, 0, most).

    i counts down from E − 1 to 0.

    Args:
        epochs: of the training, E.
        available: pseudo-labelled images that there are.
        most: of them in one epoch.
    """
    largest = min(available, most)
    return [min(50 * int(i ** (1 + 20 / epochs) // 5), largest) for i in range(epochs - 1, -1, -1)]
