"""Training a classifier of cells: its samples, its loss, and the module that Lightning drives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from cytolens import boxes as box
from cytolens.dataset import Dataset
from cytolens.labels import LabelSet
from cytolens.models import catalog
from cytolens.prepare import stain
from cytolens.prepare.balance import repeats
from cytolens.prepare.crops import region
from cytolens.problems import LabelError, Problems
from cytolens.tasks import attributes
from cytolens.tasks.classify import pictures
from cytolens.train.augment_crop import varied
from cytolens.train.background_squares import STORE, BackgroundSquares
from cytolens.train.batches import Samples, readable
from cytolens.train.classify_settings import ClassifyTraining
from cytolens.train.optimiser import optimiser_and_schedule
from cytolens.views import crop

Make = Callable[[int, Generator, int], tuple[NDArray[np.uint8], NDArray[Any]]]


class StoredCells:
    """The cells of a dataset in memory, each in the middle of its normalised surroundings.

    Attributes:
        pixels: uint8 RGB, shape (N, side, side, 3).
        names: the label of each cell (N), "" where it has none.
        known: what is known of each cell, as of `attributes.known`, shape (N, K + A).
        allowed: which leaves each cell's label allows, shape (N, K).
        whole_zoom: zoom, relative to the crop's, at which the whole image is seen, shape (N,).
        side_px: side of the stored pictures.
    """

    def __init__(self, dataset: Dataset, settings: ClassifyTraining, problems: Problems) -> None:
        self.side_px = round(settings.input.side_px * STORE / 32) * 32
        rows = dataset.images.rows()
        by_image = dict(dataset.cells.filter(attributes.told(dataset.cells)).by_image())
        rows = [row for row in rows if row["image_id"] in by_image]
        stored, names, known, zooms = [], [], [], []
        for position, pixels in readable([row["path"] for row in rows], problems):
            cells = by_image[rows[position]["image_id"]]
            size_wh = (pixels.shape[1], pixels.shape[0])
            change = stain.change(stain.measure(pixels), settings.input.stain)
            told = zip(cells.boxes(), cells.label_names(), attributes.known(cells), strict=True)
            for cell, name, row in told:
                if not box.valid(cell, *size_wh)[0]:
                    continue
                cut = region(cell, size_wh, settings.input)
                around = box.from_centre_size(box.to_centre_size(cut) * [1, 1, STORE, STORE])[0]
                stored.append(stain.normalise(crop(size_wh, around, self.side_px).pixels(pixels), change))
                names.append(name or "")
                known.append(row)
                zooms.append(box.sizes_wh(cut).max() / max(size_wh))
        if not stored:
            raise LabelError("no cell of the dataset has both a name and a box; there is nothing to learn from")
        self.pixels = np.stack(stored)
        self.names = names
        self.known = np.stack(known)
        self.allowed = self.known[:, : len(dataset.labels.leaves)] == 1
        self.whole_zoom = np.array(zooms, np.float32)


def sample_maker(store: StoredCells, settings: ClassifyTraining) -> Make:
    """The function that makes the training sample of one ticket: a crop and what is known of it (K + A)."""
    side_px = settings.input.side_px
    plain_zoom = side_px * STORE / store.side_px

    def make(index: int, random: Generator, _: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        zoom = plain_zoom
        if random.random() < settings.whole_share:
            zoom *= max(float(store.whole_zoom[index]), 1 / STORE)
        return varied(store.pixels[index], side_px, zoom, settings.augment, random), store.known[index]

    return make


def training_samples(
    store: StoredCells, settings: ClassifyTraining, squares: BackgroundSquares | None = None
) -> tuple[Samples, NDArray[np.float64] | None]:
    """The samples of an epoch, and how often each is drawn: cells, and squares of background where there are any."""
    make, names = sample_maker(store, settings), store.names
    if squares is None:
        return drawn(make, names, settings)
    cells, known = len(names), _known_of(squares, store.known.shape[1])[0]

    def make_either(index: int, random: Generator, epoch: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        return make(index, random, epoch) if index < cells else (squares.varied(random), known)

    more = max(1, round(settings.background_share * cells))
    return drawn(make_either, [*names, *[squares.name] * more], settings)


def _known_of(squares: BackgroundSquares, width: int) -> NDArray[Any]:
    """What is known of a square of background, shape (1, width): its label, and no attribute."""
    allowed = squares.allowed[None]
    return attributes.with_values(allowed, np.full((1, width - allowed.shape[1]), attributes.UNKNOWN, np.int8))


def drawn(make: Make, names: list[str], settings: ClassifyTraining) -> tuple[Samples, NDArray[np.float64] | None]:
    """The samples of an epoch by the label that each stands for, and how often each is drawn.

    With a `floor` each sample comes once per epoch, and those of rare labels are several samples: each has a
    ticket, and so a chance, of its own. Nothing is copied in memory. Otherwise they are drawn by weight.
    """
    if not settings.floor:
        return Samples(make, len(names), settings.seed), sampling_weights(names, settings.balance)
    shown = repeats(names, settings.floor, settings.seed)

    def make_shown(index: int, random: Generator, epoch: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        return make(int(shown[index]), random, epoch)

    return Samples(make_shown, len(shown), settings.seed), None


def sampling_weights(names: list[str], balance: float) -> NDArray[np.float64]:
    """How often each cell is drawn: its label's frequency to the power −balance."""
    _, inverse, counts = np.unique(np.array(names), return_inverse=True, return_counts=True)
    return (1.0 / counts[inverse]) ** balance


def collate(samples: list[tuple[NDArray[np.uint8], NDArray[Any]]]) -> tuple[Tensor, Tensor]:
    """Images (B, 3, S, S) uint8 RGB and what is known of each.

    That is allowed leaves (B, K) bool, these and values of attributes (B, K + A) int8, or presence (B, K) int8.
    """
    images = torch.from_numpy(np.stack([pixels.transpose(2, 0, 1) for pixels, _ in samples]))
    return images, torch.from_numpy(np.stack([known for _, known in samples]))


def hierarchy_loss(logits: Tensor, allowed: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy against the summed probability of the allowed leaves, shape (B,).

    A cell known only as "neutrophil" teaches that its probability lies among the neutrophils, and
    nothing about which. With one allowed leaf it is the ordinary loss with label smoothing.
    """
    logarithms = F.log_softmax(logits.float(), dim=1)
    inside = torch.logsumexp(logarithms.masked_fill(~allowed, float("-inf")), dim=1)
    return -(1 - smoothing) * inside - smoothing * logarithms.mean(dim=1)


class ClassifyModule(LightningModule):
    """A classifier in training: losses on batches, macro-F1 on the tuning part."""

    def __init__(self, settings: ClassifyTraining, labels: LabelSet) -> None:
        super().__init__()
        self.settings = settings
        self.labels = labels
        self.network = catalog.classifier(
            settings.model,
            classes=len(labels.leaves),
            side_px=settings.input.side_px,
            norm=settings.norm,
            dropout=settings.dropout,
            drop_path=settings.drop_path,
            attributes=attributes.widths(labels.attributes),
            concepts=settings.concepts,
            exclusive=settings.attribute_loss != "asymmetric",
        )
        if settings.frozen is not None:
            from cytolens.models.classifier import Classifier, freeze  # timm takes its time

            assert isinstance(self.network, Classifier)
            freeze(self.network, settings.frozen)
        self._logits: list[Tensor] = []
        self._allowed: list[Tensor] = []

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, stepped per batch."""
        return optimiser_and_schedule(self, self.settings.optimise)

    def loss(self, logits: Tensor, allowed: Tensor) -> Tensor:
        """The mean loss of a batch: logits (B, K) against allowed leaves (B, K)."""
        return hierarchy_loss(logits, allowed, self.settings.smoothing).mean()

    def said(self, images: Tensor) -> Tensor:
        """What the loss compares with what is known: the logits (B, K) of images (B, 3, S, S)."""
        return self.network(images)[0]

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss of one batch."""
        images, allowed = batch
        images, other, share = self._mixed(images.float())
        if self.settings.hardware.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits = self.said(images)
        loss = self.loss(logits, allowed)
        if other is not None:
            loss = share * loss + (1 - share) * self.loss(logits, allowed[other])
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        self.log("loss_now", loss, prog_bar=True, logger=False)
        return loss

    def _mixed(self, images: Tensor) -> tuple[Tensor, Tensor | None, float]:
        """MixUp or CutMix of the batch with itself in another order: images, the order, the first one's share."""
        kinds = [kind for kind in ("mixup", "cutmix") if getattr(self.settings, kind) > 0]
        random = np.random.default_rng([self.settings.seed, self.global_step, 3])
        if not kinds or random.random() >= self.settings.mix_share:
            return images, None, 1.0
        kind = kinds[int(random.integers(len(kinds)))]
        alpha = getattr(self.settings, kind)
        share = float(random.beta(alpha, alpha))
        other = torch.from_numpy(random.permutation(len(images))).to(images.device)
        if kind == "mixup":
            return images * share + images[other] * (1 - share), other, share
        side = images.shape[2]
        size = round(side * (1 - share) ** 0.5)
        top, left = (int(v) for v in random.integers(-size // 2, side - size // 2, 2))
        rows, columns = slice(max(top, 0), max(top + size, 0)), slice(max(left, 0), max(left + size, 0))
        images = images.clone()
        images[:, :, rows, columns] = images[other][:, :, rows, columns]
        covered = images[0, 0, rows, columns].numel() / side**2
        return images, other, 1 - covered

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Collect the logits of one batch of the tuning part."""
        images, allowed = batch
        self._logits.append(self.said(images.to(self.device).float()).float().cpu())
        self._allowed.append(allowed)

    def collected(self) -> tuple[Tensor, Tensor]:
        """Logits (N, K) of the tuning part and what is known of it (N, K), and forget them."""
        logits, allowed = torch.cat(self._logits), torch.cat(self._allowed)
        self._logits, self._allowed = [], []
        return logits, allowed

    def on_validation_epoch_end(self) -> None:
        """Score the tuning part: cells whose label is a leaf."""
        logits, allowed = self.collected()
        single = allowed.sum(dim=1) == 1
        truth, best = allowed[single].float().argmax(dim=1).numpy(), logits[single].argmax(dim=1).numpy()
        self.log("loss_tuning", hierarchy_loss(logits, allowed, 0.0).mean())
        self.log("accuracy", float((truth == best).mean()))
        self.log("score", macro_f1(truth, best, len(self.labels.leaves)), prog_bar=True)


def macro_f1(truth: NDArray[np.integer], found: NDArray[np.integer], classes: int) -> float:
    """Mean over the classes that occur in the truth of 2·hits / (truth + found)."""
    hits = np.bincount(truth[truth == found], minlength=classes)
    support = np.bincount(truth, minlength=classes)
    total = support + np.bincount(found, minlength=classes)
    present = support > 0
    return float((2 * hits[present] / total[present]).mean()) if present.any() else 0.0


def tuning_batches(tuning: Dataset, settings: ClassifyTraining, problems: Problems, batch: int = 64) -> list[Any]:
    """The inputs of the tuning part, made as in prediction, in batches of (images, what is known of each).

    Images without cells give a square of background each, where the settings name it.
    """
    by_image = dict(tuning.cells.filter(attributes.told(tuning.cells)).by_image())
    rows = [row for row in tuning.images.rows() if row["image_id"] in by_image]
    cut, known = [], []
    for position, pixels in readable([row["path"] for row in rows], problems):
        cells = by_image[rows[position]["image_id"]]
        cells = cells.filter(box.valid(cells.boxes(), pixels.shape[1], pixels.shape[0]))
        cut.append(pictures(pixels, cells.boxes(), settings.input))
        known.append(attributes.known(cells))
    if not sum(map(len, cut)):
        raise LabelError("no cell of the images kept for tuning has both a name and a box; use a larger tuning_share")
    squares = BackgroundSquares.of(tuning, settings, problems)
    if squares is not None:
        cut.append(squares.middle())
        known.append(np.tile(_known_of(squares, known[0].shape[1]), (len(cut[-1]), 1)))
    images = torch.from_numpy(np.concatenate(cut).transpose(0, 3, 1, 2).copy())
    return list(zip(images.split(batch), torch.from_numpy(np.concatenate(known)).split(batch), strict=True))
