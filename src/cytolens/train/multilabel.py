"""Training a classifier of whole images: for each leaf by itself, whether an image holds such a cell.

An image without cells is an example like any other: all of its answers are "no". So it needs no output of its
own, as the background class of a classifier of cells does, and no name can be sure in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import load_image
from cytolens.labels import LabelSet
from cytolens.prepare import stain
from cytolens.prepare.stain import FieldStain
from cytolens.problems import LabelError, Problems
from cytolens.tasks.classify import pictures
from cytolens.train.augment_crop import varied
from cytolens.train.batches import Samples, readable
from cytolens.train.classification import ClassifyModule, Make, collate, drawn
from cytolens.train.classify_settings import ClassifyTraining

UNKNOWN = -1


# -- what is known of an image ----------------------------------------------------------------------


def presence(dataset: Dataset) -> NDArray[np.int8]:
    """Which leaves occur in each image: 1 yes, 0 no, −1 not known; shape (images, K).

    A cell known only as "neutrophil" makes its kinds unknown, one without a label, or to be ignored, makes all
    that it may be unknown; where another cell says a kind for certain, that holds. No is said only of labels that
    are annotated completely in the image.
    """
    cells = dict(dataset.cells.by_image())
    none = Cells.empty(dataset.labels)
    rows = dataset.images.frame.select("image_id", "complete_for").iter_rows()
    table = [_presence(cells.get(image_id, none), complete, dataset.labels) for image_id, complete in rows]
    return np.array(table, np.int8).reshape(len(table), len(dataset.labels.leaves))


def _presence(cells: Cells, complete: list[str] | None, labels: LabelSet) -> NDArray[np.int8]:
    leaves = len(labels.leaves)
    certain, possible = np.zeros(leaves, bool), np.zeros(leaves, bool)
    for name, ignored in zip(cells.label_names(), cells.frame["ignore"], strict=True):
        covered = np.ones(leaves, bool) if name is None else labels.leaf_matrix[labels.index(str(name))]
        if name in labels.leaves and not ignored:
            certain |= covered
        else:
            possible |= covered
    looked_for = np.ones(leaves, bool)
    if complete is not None:
        looked_for = np.any([labels.leaf_matrix[labels.index(name)] for name in complete] or [~looked_for], axis=0)
    return np.where(certain, 1, np.where(possible | ~looked_for, UNKNOWN, 0)).astype(np.int8)


def rarest(table: NDArray[np.int8], labels: LabelSet) -> list[str]:
    """The leaf of each image that the fewest images hold, or "" where none is known to be there.

    It says how often an image is drawn, so that a rare label is not lost among the common ones beside it.
    """
    there = table == 1
    rank = np.where(there, there.sum(axis=0), len(table) + 1)
    best = rank.argmin(axis=1) if len(table) else np.zeros(0, np.intp)
    return [labels.leaves[leaf] if there[row, leaf] else "" for row, leaf in enumerate(best)]


# -- samples ----------------------------------------------------------------------------------------


class WholeImages:
    """The images of a dataset, read from their files when they are shown: they would not fit in memory.

    Attributes:
        presence: which leaves occur, as of `presence`, shape (N, K).
        names: the rarest leaf of each image, or "", shape (N).
    """

    def __init__(self, dataset: Dataset, settings: ClassifyTraining, problems: Problems) -> None:
        table = presence(dataset)
        there = dataset.images.frame["path"].is_not_null().to_numpy()
        told = np.flatnonzero((table != UNKNOWN).any(axis=1) & there)
        paths = dataset.images.frame["path"][told.tolist()].to_list()
        self._input = settings.input
        self._paths: list[Path] = []
        self._fields: list[FieldStain] = []
        rows = []
        for position, pixels in readable(paths, problems) if paths else ():
            self._paths.append(Path(paths[position]))
            self._fields.append(stain.measure(pixels))
            rows.append(int(told[position]))
        self.presence = table[rows]
        if not (self.presence == 1).any():
            raise LabelError(
                "no image of the dataset holds a cell whose label is a single kind; there is nothing to learn from, "
                "or, with a small tuning_share, to choose by"
            )
        self.names = rarest(self.presence, dataset.labels)

    def __len__(self) -> int:
        return len(self._paths)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """An image as it is shown in prediction, uint8 RGB, shape (side, side, 3)."""
        pixels = load_image(self._paths[index]).pixels
        whole = [0, 0, pixels.shape[1], pixels.shape[0]]
        return pictures(pixels, whole, self._input, self._fields[index])[0]


def sample_maker(images: WholeImages, settings: ClassifyTraining) -> Make:
    """The function that makes the training sample of one ticket: an image, varied, and what occurs in it."""

    def make(index: int, random: Generator, _: int) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
        shown = varied(images.picture(index), settings.input.side_px, 1.0, settings.augment, random)
        return shown, images.presence[index]

    return make


def training_samples(images: WholeImages, settings: ClassifyTraining) -> tuple[Samples, NDArray[np.float64] | None]:
    """The samples of an epoch, and how often each is drawn, by the rarest label in it."""
    return drawn(sample_maker(images, settings), images.names, settings)


class ImageBatches(Sequence[tuple[Tensor, Tensor]]):
    """Whole images as in prediction, in batches of (images (B, 3, S, S) uint8 RGB, presence (B, K) int8).

    Made when they are asked for, so a large tuning part does not fill the memory.
    """

    def __init__(self, images: WholeImages, batch: int) -> None:
        self._images, self._batch = images, batch

    def __len__(self) -> int:
        return -(-len(self._images) // self._batch)

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Tensor, Tensor]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Tensor, Tensor] | list[tuple[Tensor, Tensor]]:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        at = range(len(self))[index]  # an index beyond the end ends an iteration
        rows = range(at * self._batch, min((at + 1) * self._batch, len(self._images)))
        return collate([(self._images.picture(row), self._images.presence[row]) for row in rows])


def tuning_batches(tuning: Dataset, settings: ClassifyTraining, problems: Problems, batch: int = 64) -> ImageBatches:
    """The inputs of the tuning part, made as in prediction.

    Raises:
        LabelError: no image there holds a cell whose label is a single kind.
    """
    return ImageBatches(WholeImages(tuning, settings, problems), batch)


# -- loss and score ---------------------------------------------------------------------------------


def focal_loss(logits: Tensor, known: Tensor, alpha: float = 1.0, gamma: float = 2.0) -> Tensor:
    """α · (1 − p)^γ · b with the binary cross-entropy b and p = exp(−b); 0 where the answer is not known.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, with the α and γ of the CytologIA
    challenge's winning entry.

    Args:
        logits: shape (B, K).
        known: 1, 0 or −1 as of `presence`, shape (B, K).
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), (known == 1).float(), reduction="none")
    return torch.where(known == UNKNOWN, 0.0, alpha * (1 - torch.exp(-loss)) ** gamma * loss)


class MultiLabelModule(ClassifyModule):
    """A classifier of whole images in training: focal losses on batches, macro-F1 on the tuning part."""

    def loss(self, logits: Tensor, allowed: Tensor) -> Tensor:
        """The mean loss over all answers of a batch that are known: logits (B, K), presence (B, K)."""
        return focal_loss(logits, allowed).sum() / (allowed != UNKNOWN).sum().clamp(min=1)

    def on_validation_epoch_end(self) -> None:
        """Score the tuning part: a leaf is found where its probability is above one half."""
        logits, known = self.collected()
        table, found = known.numpy(), (logits > 0).numpy()
        wrong = ((table == 1) != found) & (table != UNKNOWN)
        self.log("loss_tuning", self.loss(logits, known))
        self.log("all_right", float((~wrong.any(axis=1)).mean()))
        self.log("score", label_macro_f1(table, found), prog_bar=True)


def label_macro_f1(known: NDArray[np.integer], found: NDArray[np.bool_]) -> float:
    """Mean over the leaves that occur of 2·hits / (truth + found), over the answers that are known.

    Args:
        known: 1, 0 or −1 as of `presence`, shape (N, K).
        found: shape (N, K).
    """
    truth, said = known == 1, found & (known != UNKNOWN)
    total = truth.sum(axis=0) + said.sum(axis=0)
    present = truth.any(axis=0)
    hits = (truth & said).sum(axis=0)
    return float((2 * hits[present] / total[present]).mean()) if present.any() else 0.0
