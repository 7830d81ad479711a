"""Training a detector: its settings, its samples, and the module that Lightning drives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from cytolens import boxes as box
from cytolens.cells import BOX_COLUMNS, Cells, join
from cytolens.dataset import Dataset
from cytolens.evaluate import EvaluateSettings, evaluate
from cytolens.labels import LabelSet
from cytolens.models import catalog
from cytolens.models.yolox import decode
from cytolens.prepare import stain
from cytolens.problems import LabelError, Problems
from cytolens.tasks.attributes import value_indices, widths
from cytolens.tasks.cell_scale import SCALE_FEATURES, Scale, annotated_ruler_px, scale_features
from cytolens.tasks.detect import MULTIPLE, DetectInput, DetectOutput, Findings, findings, picture
from cytolens.train.augment_field import FieldAugment, FieldSample, augmented, with_regions
from cytolens.train.batches import readable
from cytolens.train.detection_loss import Truth, detection_losses
from cytolens.train.optimiser import optimiser_and_schedule
from cytolens.train.settings import Hardware, Optimise
from cytolens.views import View


class DetectTraining(BaseModel):
    """Settings of the training of a detector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["detect"] = "detect"
    name: str = "detector"
    model: str = "yolox-nano"
    weights: str | None = Field(default=None, description="starting weights: a file, or the name of public weights")
    labels: tuple[str, ...] = Field(default=(), description="labels to find; empty: those of the dataset")
    split: str | None = Field(default="train", description="part of the dataset to learn from, where it has parts")
    fold: int | None = Field(default=None, ge=0, description="cross-validation fold whose images are not learnt from")
    tuning_share: float = Field(
        default=0.1, gt=0, lt=1, description="share of it kept for selection, thresholds, calibration"
    )
    seed: int = 1
    input: DetectInput = DetectInput()
    output: DetectOutput = DetectOutput()
    augment: FieldAugment = FieldAugment()
    multi_scale: int = Field(default=3, ge=0, description="the side varies by so many steps of 32 px, up and down")
    box_loss: Literal["iou", "giou"] = "giou"
    believed_from: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="score from which an unmatched finding of a label that an image is not complete for is believed",
    )
    believed_cost: float = Field(
        default=0.0, ge=0, le=1, description="what such a finding costs, as a share of any other background"
    )
    attributes: tuple[str, ...] = Field(
        default=(),
        description="attributes to learn beside the boxes, from the detector's own maps: schemas, such as "
        "leukemia_attri, or columns, such as wbcatt.cell_size; empty: none",
    )
    attribute_share: float = Field(default=1.0, ge=0, description="weight of the attributes' loss beside the boxes'")
    attribute_loss: Literal["cross-entropy", "asymmetric"] = Field(
        default="cross-entropy",
        description="cross-entropy: of one value of many; asymmetric: of each value by itself, as AttriDet learns",
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
    attribute_head: Literal["small", "attridet"] = Field(
        default="small", description="shape of the head: small for a CPU, attridet as LeukemiaAttri's authors have it"
    )
    attribute_gradient: float = Field(
        default=1.0, ge=0, le=1, description="share of the attributes' gradient that reaches the detector; 0: none"
    )
    attribute_iou: float = Field(
        default=0.6, gt=0, lt=1, description="overlap that regions to learn from keep with the annotated boxes"
    )
    attribute_scale: Scale = Field(
        default="px",
        description="what the head is told of a cell's size: px: its side in px of the input; red-cell: its side in "
        "red cells of the field, or in 7.5 µm where the image's µm per px is known, the same at any magnification",
    )
    optimise: Optimise = Optimise()
    hardware: Hardware = Hardware()


def fields(dataset: Dataset, input_settings: DetectInput, problems: Problems) -> list[FieldSample]:
    """The dataset's images in memory, normalised, with their truths.

    Fields are kept no larger than the augmentation can use. A cell without a name or an area, or
    annotated twice, is not a truth; a named one that is not scored is handed on as `ignored`.
    """
    import cv2

    labels = dataset.labels
    most_px = 2 * input_settings.side_px
    by_image = dict(dataset.cells.by_image())
    rows = dataset.images.rows()
    samples: list[FieldSample] = []
    for position, pixels in readable([row["path"] for row in rows], problems):
        row = rows[position]
        cells = by_image.get(row["image_id"], Cells.empty(labels))
        change = stain.change(stain.measure(pixels), input_settings.stain)
        height, width = pixels.shape[:2]
        scale = min(1.0, most_px / max(height, width))
        if scale < 1:
            pixels = np.asarray(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
        clipped = box.clip(cells.boxes(), width, height)
        first = cells.frame.select(pl.struct(*BOX_COLUMNS, "label").is_first_distinct()).to_series().to_numpy()
        named = first & cells.frame["label"].is_not_null().to_numpy() & box.valid(clipped)
        complete = row["complete_for"]
        shown = input_settings.side_px / max(height, width)
        ruler = (annotated_ruler_px(cells, row["um_per_px"]) or 0.0) * shown
        samples.append(
            FieldSample(
                pixels=stain.normalise(pixels, change),
                boxes=clipped[named] * np.float32(scale),
                classes=cells.frame["label"].to_physical().to_numpy()[named].astype(np.int64),
                ignored=cells.frame["ignore"].to_numpy()[named],
                incomplete=np.array([complete is not None and name not in complete for name in labels.names], bool),
                values=value_indices(cells)[named],
                sides_px=(np.sqrt(box.areas(clipped[named])) * shown).astype(np.float32),
                rulers_px=np.full(int(named.sum()), ruler, np.float32),
            )
        )
    return samples


def sample_maker(samples: list[FieldSample], settings: DetectTraining) -> Callable[[int, Generator, int], FieldSample]:
    """The function that makes the training sample of one ticket."""
    closing_from = settings.optimise.epochs - settings.optimise.closing_epochs

    def make(index: int, random: Generator, epoch: int) -> FieldSample:
        closing = epoch >= closing_from
        sample = augmented(
            index, len(samples), samples.__getitem__, settings.input.side_px, settings.augment, random, closing
        )
        return with_regions(sample, settings.attribute_iou, random) if settings.attributes else sample

    return make


def collate(samples: list[FieldSample]) -> tuple[Tensor, list[Truth]]:
    """Images (B, 3, H, W) uint8 BGR and their truths."""
    images = np.stack([sample.pixels[:, :, ::-1].transpose(2, 0, 1) for sample in samples])
    return torch.from_numpy(images), [_truth(sample) for sample in samples]


def _truth(sample: FieldSample) -> Truth:
    scored = ~sample.ignored
    return Truth(
        boxes=torch.from_numpy(np.ascontiguousarray(sample.boxes[scored])),
        classes=torch.from_numpy(sample.classes[scored]),
        ignored=torch.from_numpy(np.ascontiguousarray(sample.boxes[sample.ignored])),
        incomplete=torch.from_numpy(sample.incomplete),
        regions=None if sample.regions is None else torch.from_numpy(sample.regions[scored]),
        sides_px=torch.from_numpy(sample.sides_px[scored]),
        scales=torch.from_numpy(scale_features(sample.sides_px, sample.rulers_px)[scored]),
        values=torch.from_numpy(sample.values[scored]),
    )


def label_set(dataset: Dataset, names: tuple[str, ...]) -> LabelSet:
    """The labels to find, without attributes.

    Raises:
        LabelError: the dataset has no labels at all.
    """
    labels = LabelSet.of(names) if names else replace(dataset.labels, attributes=())
    if not len(labels):
        raise LabelError("the dataset has no labels, so there is nothing to find; import it with its classes")
    return labels


class DetectModule(LightningModule):
    """A detector in training: losses on batches, average precision on the tuning part."""

    def __init__(self, settings: DetectTraining, tuning: Dataset) -> None:
        super().__init__()
        self.settings = settings
        self.tuning = tuning
        self.network = catalog.detector(
            settings.model,
            len(tuning.labels),
            widths(tuning.labels.attributes),
            settings.attribute_head,
            SCALE_FEATURES if settings.attribute_scale == "red-cell" else 0,
        )
        self._found: list[Cells] = []

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, stepped per batch."""
        return optimiser_and_schedule(self, self.settings.optimise)

    def training_step(self, batch: tuple[Tensor, list[Truth]], _: int) -> Tensor:
        """The loss of one batch."""
        images, truths = batch
        images, truths = self._at_another_scale(images, truths)
        images = images.float()
        if self.settings.hardware.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        closing = self.current_epoch >= self.settings.optimise.epochs - self.settings.optimise.closing_epochs
        truths = [truth.to(images.device) for truth in truths]
        raw, more = self.said(images, truths)
        losses = detection_losses(
            raw,
            truths,
            (images.shape[2], images.shape[3]),
            box=self.settings.box_loss,
            with_l1=closing,
            believed_from=self.settings.believed_from,
            believed_cost=self.settings.believed_cost,
        )
        total = losses.total + sum(more.values())
        parts = {"loss": total, "loss_box": losses.box, "loss_objectness": losses.objectness}
        parts |= {"loss_classes": losses.classes, "loss_l1": losses.l1, **more}
        self.log_dict(parts, on_step=False, on_epoch=True, batch_size=len(images))
        self.log("loss_now", total, prog_bar=True, logger=False)
        return total

    def said(self, images: Tensor, truths: list[Truth]) -> tuple[Tensor, dict[str, Tensor]]:
        """The raw output (B, L, 5 + C) for images (B, 3, S, S), and losses by name that are added to its own."""
        return self.network(images), {}

    def _at_another_scale(self, images: Tensor, truths: list[Truth]) -> tuple[Tensor, list[Truth]]:
        """The batch at a side that changes every ten steps."""
        steps = self.settings.multi_scale
        if not steps:
            return images, truths
        random = np.random.default_rng([self.settings.seed, self.global_step // 10, 7])
        side = self.settings.input.side_px + MULTIPLE * int(random.integers(-steps, steps + 1))
        side = max(side, 2 * MULTIPLE)
        if side == images.shape[2]:
            return images, truths
        ratio = side / images.shape[2]
        smaller = F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=ratio < 0.8)
        return smaller, [truth.scaled(ratio) for truth in truths]

    def validation_step(self, batch: tuple[NDArray[np.uint8], View, str], _: int) -> None:
        """Find the cells of one image of the tuning part."""
        pixels, view, image_id = batch
        tensor = torch.from_numpy(pixels[:, :, ::-1].transpose(2, 0, 1).copy()).to(self.device)[None].float()
        raw, maps = self.network.look(tensor)
        raw = raw.float()
        boxes = decode(raw, (pixels.shape[0], pixels.shape[1]))[0].cpu().numpy()
        scores = (raw[0, :, 5:].sigmoid() * raw[0, :, 4:5].sigmoid()).cpu().numpy()
        found = findings(boxes, scores, view, self.settings.output)
        names = self.tuning.labels.names
        self._found.append(
            Cells.of(
                self.tuning.labels,
                image_id=[image_id] * len(found.boxes),
                boxes=found.boxes,
                label=[names[i] for i in found.classes],
                score=found.scores,
                source="training",
            )
        )
        self.describe(found, view, maps, image_id)

    def describe(self, found: Findings, view: View, maps: tuple[Tensor, Tensor], image_id: str) -> None:
        """Look at what was found in one image of the tuning part, with the maps that it was found in."""

    def on_validation_epoch_end(self) -> None:
        """Score what was found."""
        found = join(self._found, self.tuning.labels)
        self._found = []
        quick = EvaluateSettings(intervals=False)
        figures = evaluate(
            self.tuning, found, found_images=self.tuning.images, task="detection", settings=quick
        ).figures
        values = {"map50": figures["map50"] or 0.0, "map50_95": figures["map50_95"] or 0.0}
        for name, scores in figures["per_label"].items():
            values[f"ap50 {name}"] = scores["ap50"] or 0.0
        self.log_dict(values)
        # Both count: .50 is what users read, .50:.95 keeps boxes tight and is less coarse on few images.
        self.log("score", self.score((values["map50"] + values["map50_95"]) / 2), prog_bar=True)

    def score(self, of_boxes: float) -> float:
        """What the best epoch is chosen by."""
        return of_boxes


def tuning_batches(tuning: Dataset, settings: DetectTraining, problems: Problems) -> list[tuple[Any, View, str]]:
    """The inputs of the tuning part, made as in prediction: one per image."""
    rows = tuning.images.rows()
    made = readable([row["path"] for row in rows], problems)
    return [(*picture(pixels, settings.input), rows[position]["image_id"]) for position, pixels in made]


def only_readable(dataset: Dataset, image_ids: list[str]) -> Dataset:
    """The dataset restricted to images that could be read."""
    return dataset.of_images(type(dataset.images)(dataset.images.frame.filter(pl.col("image_id").is_in(image_ids))))
