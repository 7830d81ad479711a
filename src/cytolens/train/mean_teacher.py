"""Self-training by a mean teacher: what its running average says of calm pictures, a network learns of varied ones.

Source: Tarvainen, Valpola, "Mean teachers are better role models", NeurIPS 2017. Only what the teacher is sure of is
taught, as in Sohn et al., "FixMatch", NeurIPS 2020. The data that the network was trained on are not needed.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn

from cytolens import boxes as box
from cytolens.dataset import Dataset
from cytolens.labels import LabelSet
from cytolens.models.attributes import UNKNOWN, asymmetric_terms
from cytolens.models.yolox import decode
from cytolens.problems import Problems
from cytolens.tasks.attributes import widths
from cytolens.tasks.detect import DetectOutput
from cytolens.train.adapt_settings import AdaptSettings
from cytolens.train.augment_colour import ColourAugment, vary_colour
from cytolens.train.augment_crop import CropAugment, varied
from cytolens.train.augment_field import FieldAugment, augmented
from cytolens.train.background_squares import STORE
from cytolens.train.batches import EpochSampler, Samples, loader
from cytolens.train.classification import StoredCells
from cytolens.train.classify_settings import ClassifyTraining
from cytolens.train.detection import DetectTraining, fields
from cytolens.train.detection_loss import Truth, detection_losses
from cytolens.train.fit import precision
from cytolens.train.optimiser import optimiser_and_schedule
from cytolens.train.settings import Optimise

AsTaught = DetectTraining | ClassifyTraining
_LEAST_SURE = 0.01  # a threshold of 0 counts everything; a share of it says nothing
_STILL = ColourAugment(stain=0, weak=0, gamma=0, white_balance=0, blur=0, resample=0, sharpen=0, noise=0, jpeg=0)
_CALM_FIELD = FieldAugment(mosaic=0, scale=(1, 1), rotate_deg=0, shear_deg=0, translate=0, colour=_STILL)
_CALM_CROP = CropAugment(rotate=False, scale=(1, 1), aspect=0, translate=0, colour=_STILL)


@dataclass(frozen=True, slots=True)
class _Counted:
    """How many examples the teacher was shown, and how many things it was sure of."""

    shown: int = 0
    sure: int = 0


class MeanTeacher(LightningModule, ABC):
    """A network that learns from a running average of itself; `teacher` is what comes out.

    A batch is (calm, varied): the same pictures twice, uint8 (B, 3, H, W), cells at the same places for a detector.
    """

    def __init__(self, network: nn.Module, how: AdaptSettings) -> None:
        super().__init__()
        self.how = how
        # In evaluation, as the teacher: the statistics of its norms stay those of the training (method batch-norm
        # changes them), and nothing is dropped. Lightning leaves the mode of modules as it is.
        self.student = copy.deepcopy(network).eval()
        self.teacher = copy.deepcopy(network).eval().requires_grad_(False)
        self.counted = _Counted()

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, stepped per batch."""
        how = self.how
        return optimiser_and_schedule(
            self, Optimise(epochs=how.epochs, closing_epochs=0, learning_rate=how.learning_rate, warmup_epochs=0)
        )

    @abstractmethod
    def disagreement(self, calm: Tensor, varied: Tensor) -> tuple[Tensor, int]:
        """The student's loss against what the teacher is sure of, and of how much that is."""

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss of one batch."""
        calm, strong = (images.float() for images in batch)
        self.teacher.eval()
        loss, sure = self.disagreement(calm, strong)
        self.counted = _Counted(self.counted.shown + len(calm), self.counted.sure + sure)
        total = float(self.trainer.estimated_stepping_batches)
        return loss * self.how.consistency * ramped(self.global_step / total, self.how.ramp)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The teacher follows the student."""
        follow(self.teacher, self.student, self.how.decay)


def ramped(done: float, ramp: float) -> float:
    """The weight of the agreement after a share of the steps: exp(−5 (1 − done / ramp)²), then 1."""
    return math.exp(-5 * (1 - done / ramp) ** 2) if done < ramp else 1.0


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Move the teacher's weights and statistics towards the student's by 1 − decay; counters are copied."""
    own = teacher.state_dict()
    for name, value in student.state_dict().items():
        if value.is_floating_point():
            own[name].lerp_(value, 1 - decay)
        else:
            own[name].copy_(value)


class DetectTeacher(MeanTeacher):
    """A detector: sure findings are truths, doubtful ones cost nothing, the rest is background."""

    def __init__(
        self, network: nn.Module, how: AdaptSettings, settings: DetectTraining, output: DetectOutput, labels: LabelSet
    ) -> None:
        super().__init__(network, how)
        self.settings, self.nms_iou = settings, output.nms_iou
        sure = [how.confidence or max(output.threshold(name), _LEAST_SURE) for name in labels.names]
        self.sure = np.array(sure, np.float32)

    def disagreement(self, calm: Tensor, varied: Tensor) -> tuple[Tensor, int]:
        """The detection losses against the teacher's sure findings."""
        size_hw = (calm.shape[2], calm.shape[3])
        with torch.no_grad():
            raw = self.teacher(calm).float()
            boxes = decode(raw, size_hw).cpu().numpy()
            scores = (raw[..., 5:].sigmoid() * raw[..., 4:5].sigmoid()).cpu().numpy()
        truths = [self.believed(*one, size_hw, varied.device) for one in zip(boxes, scores, strict=True)]
        losses = detection_losses(
            self.student(varied),
            [
                Truth(*(part.to(varied.device) for part in (t.boxes, t.classes, t.ignored, t.incomplete)))
                for t in truths
            ],
            size_hw,
            box=self.settings.box_loss,
        )
        return losses.total, sum(len(truth.boxes) for truth in truths)

    def believed(
        self,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        size_hw: tuple[int, int],
        device: torch.device | None = None,
    ) -> Truth:
        """What the teacher's answer for one picture, boxes (L, 4) and scores (L, C), teaches."""
        label = scores.argmax(axis=1)
        relative = scores.max(axis=1) / self.sure[label]
        placed = box.clip(boxes, size_hw[1], size_hw[0])
        good = np.flatnonzero((relative >= max(self.how.doubt, 1e-3)) & box.valid(placed, size_hw[1], size_hw[0]))
        order = good[np.argsort(-relative[good], kind="stable")]
        kept = order[box.non_maximum_suppression(placed[order], relative[order], self.nms_iou, label[order])]
        sure = relative[kept] >= 1
        return Truth(
            torch.from_numpy(placed[kept[sure]]).to(device),
            torch.from_numpy(label[kept[sure]].astype(np.int64)).to(device),
            torch.from_numpy(placed[kept[~sure]]).to(device),
            torch.zeros(scores.shape[1], dtype=torch.bool, device=device),
        )


class ClassifyTeacher(MeanTeacher):
    """A classifier: the teacher's surest name, and value of each attribute, is the student's truth.

    Args:
        network: as trained.
        how: to adapt.
        parts: number of leaves, then of each attribute's values.
        exclusive: whether an attribute's values exclude each other; else each was learnt by itself (asymmetric loss).
    """

    def __init__(self, network: nn.Module, how: AdaptSettings, parts: Sequence[int], *, exclusive: bool = True) -> None:
        super().__init__(network, how)
        self.parts, self.sure, self.exclusive = list(parts), how.confidence or 0.8, exclusive

    def disagreement(self, calm: Tensor, varied: Tensor) -> tuple[Tensor, int]:
        """The training's loss where the teacher is sure, over all cells, averaged over names and attributes."""
        with torch.no_grad():
            told = _said(self.teacher, calm).split(self.parts, dim=1)
        losses, sure = [], 0
        for part, (teacher, student) in enumerate(
            zip(told, _said(self.student, varied).split(self.parts, dim=1), strict=True)
        ):
            single = part > 0 and not self.exclusive
            # Values that were learnt each by itself are read as prediction reads them: sigmoids, divided by their sum.
            shares = F.normalize(teacher.sigmoid(), p=1, dim=1) if single else teacher.softmax(dim=1)
            most, best = shares.max(dim=1)
            believed = most >= self.sure
            sure += int(believed.sum())
            if single:
                known = torch.where(believed, best, UNKNOWN)[:, None]
                losses.append(asymmetric_terms(student, known, (student.shape[1],)).mean())
            else:
                losses.append((F.cross_entropy(student, best, reduction="none") * believed).mean())
        return torch.stack(losses).mean(), sure


def _said(network: nn.Module, images: Tensor) -> Tensor:
    """Logits of names and attributes side by side, (B, K + ΣV)."""
    logits, _embedding, *described = network(images)
    return torch.cat([logits, *described[:1]], dim=1).float()  # concepts say nothing that the attributes do not


Make = Callable[[int, Generator, int], tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def _two_views(settings: AsTaught, dataset: Dataset, problems: Problems) -> tuple[Make, int]:
    """The function that makes a picture twice, calm and varied, and how many pictures there are."""
    if isinstance(settings, DetectTraining):
        shown = fields(dataset, settings.input, problems)

        def field(index: int, random: Generator, _: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
            side_px = settings.input.side_px
            calm = augmented(index, len(shown), shown.__getitem__, side_px, _CALM_FIELD, random, closing=True).pixels
            strong = vary_colour(calm, settings.augment.colour, random)
            return calm[:, :, ::-1], strong[:, :, ::-1]

        return field, len(shown)
    store = StoredCells(dataset, settings, problems)
    side_px = settings.input.side_px
    zoom = side_px * STORE / store.side_px

    def cell(index: int, random: Generator, _: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        calm = varied(store.pixels[index], side_px, zoom, _CALM_CROP, random)
        return calm, varied(store.pixels[index], side_px, zoom, settings.augment, random)

    return cell, len(store.pixels)


def _collated(pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> tuple[Tensor, ...]:
    sides = zip(*pairs, strict=True)
    return tuple(torch.from_numpy(np.stack([one.transpose(2, 0, 1) for one in side])) for side in sides)


def taught(
    network: nn.Module,
    settings: AsTaught,
    output: DetectOutput | None,
    dataset: Dataset,
    how: AdaptSettings,
    problems: Problems,
    notify: Callable[[str], None],
) -> tuple[nn.Module, dict[str, Any]]:
    """The teacher after `how.epochs`, and what it was sure of; arguments and errors as of `adaptation.adapted`."""
    seed_everything(how.seed, verbose=False)
    labels = dataset.labels
    module: MeanTeacher
    if isinstance(settings, DetectTraining):
        module = DetectTeacher(network, how, settings, output or settings.output, labels)
    else:
        parts = [len(labels.leaves), *widths(labels.attributes)]
        module = ClassifyTeacher(network, how, parts, exclusive=settings.attribute_loss != "asymmetric")
    make, count = _two_views(settings, dataset, problems)
    batches = loader(
        Samples(make, count, how.seed), EpochSampler(count, how.seed), how.batch, how.hardware.workers, _collated
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for words in ("does not have many workers", "number of training batches", "GPU available but not used",
                      "treespec, LeafSpec", "in eval mode at the start"):  # fmt: skip
            warnings.filterwarnings("ignore", message=f".*{words}.*")
        Trainer(
            accelerator=how.hardware.accelerator, devices=1, precision=precision(how.hardware),  # type: ignore[arg-type]
            max_epochs=how.epochs, gradient_clip_val=5.0, logger=False, enable_checkpointing=False,
            enable_model_summary=False, enable_progress_bar=False, use_distributed_sampler=False,
        ).fit(module, batches)  # fmt: skip
    seen = module.counted
    notify(f"the teacher was sure {seen.sure} times in {seen.shown} pictures")
    return module.teacher.cpu().eval(), {"pictures": count, "shown": seen.shown, "sure": seen.sure}
