"""Settings that every training has: how the weights are learnt, and on what hardware."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Optimise(BaseModel):
    """How the weights are learnt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=40, ge=1)
    closing_epochs: int = Field(
        default=5, ge=0, description="last epochs, at the lowest learning rate and with calm data"
    )
    batch: int = Field(default=16, ge=1)
    optimiser: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.0025, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    warmup_epochs: float = Field(default=2.0, ge=0)
    final_share: float = Field(default=0.05, gt=0, le=1, description="share of the learning rate left at the end")
    average_decay: float = Field(
        default=0.9998, ge=0, lt=1, description="decay of the running average of the weights; 0: off"
    )
    average_ramp: float = Field(
        default=2000.0, gt=0, description="updates over which the average slows down to its decay"
    )
    clip_norm: float = Field(default=0.0, ge=0, description="largest norm of the gradient; 0: not clipped")
    patience_epochs: int = Field(
        default=0, ge=0, description="stop after so many epochs without a better score; 0: never"
    )


class Hardware(BaseModel):
    """Where and how the arithmetic runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int | Literal["auto"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = Field(
        default="auto", description="auto: bfloat16 where the processor has it, otherwise 32 bits"
    )
    channels_last: bool = True
    workers: int = Field(default=1, ge=0, description="processes that load and augment")
    threads: int = Field(default=0, ge=0, description="threads of the arithmetic on a CPU; 0: one per core")
