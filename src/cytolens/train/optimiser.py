"""The optimiser, its schedule, and the running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from cytolens.train.settings import Optimise


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of convolutions and linear layers with decay; norms and biases without."""
    decayed, plain = [], []
    for parameter in module.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def learning_rate_share(step: float, steps_per_epoch: float, settings: Optimise) -> float:
    """Share of the learning rate at a step: quadratic warm-up, cosine, flat in the closing epochs.

    Source: the YOLOX recipe (``warmcos``).
    """
    warm = settings.warmup_epochs * steps_per_epoch
    end = max((settings.epochs - settings.closing_epochs) * steps_per_epoch, warm + 1)
    if step < warm:
        return max((step / warm) ** 2, 1e-6)
    if step >= end:
        return settings.final_share
    wave = 0.5 * (1 + math.cos(math.pi * (step - warm) / (end - warm)))
    return settings.final_share + (1 - settings.final_share) * wave


def steps_of(length: int, world: int, settings: Optimise) -> int:
    """Batches of an epoch with so many samples in all processes; `batches.loader` leaves out a last partial one."""
    return max(1, -(-length // world) // max(1, settings.batch // world))


def epochs_behind(step: int, steps: Sequence[int]) -> float:
    """How many epochs lie behind a step, where each epoch has its own number of steps; the last one goes on."""
    ends = np.cumsum(steps)
    epoch = min(int(np.searchsorted(ends, step, side="right")), len(ends) - 1)
    return epoch + (step - (int(ends[epoch]) - steps[epoch])) / steps[epoch]


def optimiser_and_schedule(
    module: LightningModule, settings: Optimise, lengths: Sequence[int] | None = None
) -> dict[str, Any]:
    """What Lightning's `configure_optimizers` returns.

    Args:
        module: what is trained.
        settings: how.
        lengths: samples of each epoch, where they differ.
    """
    groups = parameter_groups(module, settings.weight_decay)
    if settings.optimiser == "sgd":
        optimiser: torch.optim.Optimizer = torch.optim.SGD(
            groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0
        )
    else:
        optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate)
    steps = module.trainer.estimated_stepping_batches / settings.epochs
    per_epoch = (
        None if lengths is None else [steps_of(length, module.trainer.world_size, settings) for length in lengths]
    )

    def share(step: int) -> float:
        if per_epoch is None:
            return learning_rate_share(step, steps, settings)
        return learning_rate_share(epochs_behind(step, per_epoch), 1.0, settings)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share)
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class RunningAverage(WeightAveraging):
    """An exponential running average of weights and buffers; it is what is scored and shipped.

    The decay grows as decay · (1 − exp(−n / ramp)) with the number of updates n, as in YOLOX.
    """

    def __init__(self, decay: float, ramp: float) -> None:
        def mean(average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
            if not average.is_floating_point():
                return value
            keep = decay * (1 - math.exp(-float(count) / ramp))
            return average + (value - average) * (1 - keep)  # in this form frozen weights stay exactly what they are

        super().__init__(use_buffers=True, avg_fn=mean)
