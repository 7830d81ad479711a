"""Training a region network: the module that Lightning drives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor

from cytolens import match
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate.outline_precision import mean_precision
from cytolens.models import catalog
from cytolens.problems import Problems
from cytolens.tasks.mask_cleaning import cleaned
from cytolens.tasks.segment import Outlines, SegmentOutput, picture
from cytolens.train.batches import readable
from cytolens.train.optimiser import optimiser_and_schedule
from cytolens.train.outlined_samples import Target
from cytolens.train.region_answers import soft_outlines
from cytolens.train.segment_settings import SegmentTraining, loss_weights
from cytolens.views import View

# Scores from which cells are tried to count when an epoch is judged: until a network is sure, 0.5 is too much to ask.
_LIMITS = (0.3, 0.4, 0.5, 0.6, 0.7)


class SegmentModule(LightningModule):
    """A region network in training: losses on batches, mean precision of outlines on the tuning part.

    Args:
        settings: of the training.
        tuning: the images that an epoch is judged by.
        lengths: samples of each epoch, where they differ; None: they do not.
    """

    def __init__(self, settings: SegmentTraining, tuning: Dataset, lengths: Sequence[int] | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.tuning = tuning
        self.lengths = lengths
        self.network = network_of(settings, len(tuning.labels))
        self._truth = {name: cells.filter(_has_mask(cells)) for name, cells in tuning.cells.by_image()}
        self._precision: list[NDArray[np.float64]] = []

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, stepped per batch."""
        return optimiser_and_schedule(self, self.settings.optimise, self.lengths)

    def training_step(self, batch: tuple[Tensor, list[Target]], _: int) -> Tensor:
        """The loss of one batch."""
        images, targets = batch
        # The regions to learn from are drawn by torch's own generator: a resumed run draws the same ones.
        torch.manual_seed(int(np.random.SeedSequence([self.settings.seed, self.global_step]).generate_state(1)[0]))
        images = images.float()
        if self.settings.hardware.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        there = [{name: tensor.to(images.device) for name, tensor in target.items()} for target in targets]
        losses = self.network.losses(images, there)
        total = self.total(losses)
        parts = {"loss": total, **{f"loss_{name}": loss for name, loss in losses.items()}}
        self.log_dict(parts, on_step=False, on_epoch=True, batch_size=len(images))
        self.log("loss_now", total, prog_bar=True, logger=False)
        return total

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """What is made small: the sum of the losses, or with the loss decay their weighted mean."""
        if not self.settings.loss_decay:
            return torch.stack(list(losses.values())).sum()
        epochs = self.settings.optimise.epochs
        weights = loss_weights(min(self.current_epoch + 1, epochs), epochs)
        weighted = torch.stack([loss * weights[name] for name, loss in losses.items()])
        return weighted.sum() / sum(weights[name] for name in losses)

    def validation_step(self, batch: tuple[NDArray[np.uint8], View, str], _: int) -> None:
        """Outline the cells of one image of the tuning part, and judge them."""
        canvas, view, image_id = batch
        soft = soft_outlines(self.network, canvas, view, self.settings.output)
        found = cleaned(soft, self.tuning.labels, counting_from(self.settings.output, min(_LIMITS)))
        truth = self._truth.get(image_id, Cells.empty(self.tuning.labels))
        self._precision.append(precisions(truth, found, soft.size_hw))

    def on_validation_epoch_end(self) -> None:
        """The score of the epoch: the best mean precision that one limit of the scores gives."""
        table = np.mean(self._precision, axis=0) if self._precision else np.zeros(len(_LIMITS))
        self._precision = []
        self.log_dict({f"map from {limit}": float(value) for limit, value in zip(_LIMITS, table, strict=True)})
        self.log("score", float(table.max()), prog_bar=True)


def network_of(settings: SegmentTraining, classes: int) -> Any:
    """The region network of the settings, with freshly drawn weights."""
    return catalog.region_network(
        settings.family,
        settings.backbone,
        classes,
        keep_stride=settings.keep_stride,
        freeze_norms=settings.freeze_norms,
        settings=settings.network,
    )


def counting_from(output: SegmentOutput, limit: float) -> SegmentOutput:
    """The same reading, with cells of every label counted from a score on."""
    change = {"score_min": limit}
    per_label = {name: steps.model_copy(update=change) for name, steps in output.per_label.items()}
    return output.model_copy(update={"cleaning": output.cleaning.model_copy(update=change), "per_label": per_label})


def precisions(truth: Cells, found: Outlines, size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """The mean precision of one image for each limit of the scores from which cells count.

    A cell never takes pixels from one of a higher score, so outlines that were cleaned once serve all limits.
    """
    cells = Cells.of(
        truth.labels,
        image_id=["image"] * len(found.masks),
        boxes=found.boxes,
        label=[truth.labels.names[index] for index in found.classes],
        score=found.scores,
        mask=found.masks,
        source="training",
    )
    table = match.overlaps(truth, cells, size_hw)
    ignored = truth.frame["ignore"].to_numpy()
    return np.array([mean_precision(table[found.scores >= limit], ignored)[1] for limit in _LIMITS])


def _has_mask(cells: Cells) -> NDArray[np.bool_]:
    return cells.frame["mask"].is_not_null().to_numpy()


def tuning_batches(
    tuning: Dataset, settings: SegmentTraining, problems: Problems
) -> list[tuple[NDArray[np.uint8], View, str]]:
    """The inputs of the tuning part, made as in prediction: one per image."""
    rows = tuning.images.rows()
    made = readable([row["path"] for row in rows], problems)
    return [(*picture(pixels, settings.input), rows[position]["image_id"]) for position, pixels in made]
