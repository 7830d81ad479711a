"""Settings of the adaptation of a trained network to another microscope."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cytolens.train.settings import Hardware


class AdaptSettings(BaseModel):
    """How a trained network is fitted to pictures of another microscope."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["batch-norm", "mean-teacher"] = Field(
        default="batch-norm",
        description="batch-norm: the statistics of its batch normalisation; mean-teacher: all its weights",
    )
    seed: int = 1
    batch: int = Field(default=16, ge=1)
    share: float = Field(default=1.0, ge=0, le=1, description="batch-norm: what the target's statistics weigh")
    epochs: int = Field(default=5, ge=1, description="mean-teacher: times that every picture is seen")
    learning_rate: float = Field(default=5e-4, gt=0, description="mean-teacher")
    decay: float = Field(default=0.99, ge=0, lt=1, description="mean-teacher: of the teacher's running average")
    confidence: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="mean-teacher: from which the teacher is believed. Default: detect, the threshold of the label; "
        "classify, 0.8",
    )
    doubt: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="mean-teacher, detect: findings above this share of the confidence are not taught as background",
    )
    consistency: float = Field(default=1.0, gt=0, description="mean-teacher: weight of the agreement once ramped up")
    ramp: float = Field(default=0.3, ge=0, le=1, description="mean-teacher: share of the steps in which it grows")
    hardware: Hardware = Hardware()
