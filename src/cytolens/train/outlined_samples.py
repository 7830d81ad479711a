"""The samples that a region network learns from: outlined cells of a dataset, by ticket and in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from cytolens import masks as mask_arithmetic
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.problems import DatasetError, Problems, SettingError, listing
from cytolens.tasks.detect import BORDER, MULTIPLE
from cytolens.tasks.segment import picture
from cytolens.train.augment_instances import OutlinedField, OutlinedSample, Part, augmented
from cytolens.train.batches import EpochSampler, readable
from cytolens.train.segment_settings import SegmentTraining
from cytolens.views import View

Target = dict[str, Tensor]


def is_extra(dataset: Dataset) -> NDArray[np.bool_]:
    """Which images are pseudo-labelled, shape (N,): those with a cell that has a score, which people do not give."""
    guessed = dataset.cells.frame.filter(pl.col("score").is_not_null())["image_id"].unique()
    return dataset.images.frame["image_id"].is_in(guessed.implode()).to_numpy()


def checked_data(dataset: Dataset, settings: SegmentTraining, notify: Callable[[str], None]) -> Dataset:
    """The dataset without what cannot be learnt from: unsure pseudo-labelled cells, incompletely annotated images.

    Raises:
        DatasetError: a cell to learn from has only a box; it would be taught as background.
        SettingError: a pseudo-labelled cell is of another teacher than the settings name.
    """
    table = dataset.cells.frame
    sources = table.filter(pl.col("score").is_not_null())["source"].unique().sort().to_list()
    teacher = settings.extra.teacher
    if teacher is not None and (others := [source for source in sources if source != teacher]):
        raise SettingError(f'extra.teacher = "{teacher}", but there are cells of {listing(others, 3)}')
    if sources:
        notify(f"pseudo-labelled cells come from {listing(sources, 3)}")
    incomplete = dataset.images.frame["complete_for"].to_list()
    part = [names is not None and not set(dataset.labels.names) <= set(names) for names in incomplete]
    if any(part):
        notify(f"{sum(part)} images are left out; not all of the labels to learn are annotated in them")
        dataset = dataset.of_images(type(dataset.images)(dataset.images.frame.filter(~np.array(part, bool))))
        table = dataset.cells.frame
    sure = pl.col("score").is_null() | (pl.col("score") >= settings.extra.score_min)
    bare = table.filter(pl.col("mask").is_null() & pl.col("label").is_not_null() & ~pl.col("ignore") & sure)
    if len(bare):
        raise DatasetError(
            f"{len(bare)} cells have a box and no outline (the first: {bare['cell_id'][0]} in {bare['image_id'][0]}); "
            "they would be taught as background. Learn from a dataset with masks, or leave such images out"
        )
    return dataset


def fields(dataset: Dataset, settings: SegmentTraining, problems: Problems) -> list[OutlinedField]:
    """The dataset's images in memory as a network is shown them, with their outlined cells; extra ones come last.

    A cell that is not scored (ignored), has no name, or is pseudo-labelled without being sure is no truth, and no
    background either: it is painted over with the mean of its image.
    """
    by_image = dict(dataset.cells.by_image())
    rows = dataset.images.rows()
    extra = is_extra(dataset)
    made = [
        _field(pixels, by_image.get(rows[at]["image_id"], Cells.empty(dataset.labels)), settings, bool(extra[at]))
        for at, pixels in readable([row["path"] for row in rows], problems)
    ]
    return sorted(made, key=lambda field: field.extra)


def _field(pixels: NDArray[np.uint8], cells: Cells, settings: SegmentTraining, extra: bool) -> OutlinedField:
    cells = cells.filter(pl.col("mask").is_not_null())
    canvas, view = picture(pixels, settings.input)
    codes = [code for code in _moved(cells, view).masks() if code is not None]
    unsure = pl.col("score") < settings.extra.score_min
    truth = cells.frame.select(
        (~pl.col("ignore") & pl.col("label").is_not_null() & ~unsure.fill_null(False)).alias("truth")
    )["truth"].to_numpy()
    parts = [mask_arithmetic.crop(code, (canvas.shape[0], canvas.shape[1])) for code in codes]
    canvas = _painted_over(canvas, parts, truth)
    kept = [at for at, (mask, _, _) in enumerate(parts) if truth[at] and mask.any()]
    classes = cells.frame["label"].to_physical().to_numpy()[kept].astype(np.int64)
    return OutlinedField.of_parts(canvas, [parts[at] for at in kept], classes, extra)


def _moved(cells: Cells, view: View) -> Cells:
    """The cells in the frame of a view's picture."""
    return cells if view.wh == view.source_wh and np.array_equal(view.matrix, np.eye(2, 3)) else view.forward(cells)


def _painted_over(canvas: NDArray[np.uint8], parts: Sequence[Part], truth: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture with the mean of its pixels where there are only cells that are not truths."""
    if truth.all():
        return canvas
    hidden, shown = np.zeros(canvas.shape[:2], bool), np.zeros(canvas.shape[:2], bool)
    for (mask, x, y), true in zip(parts, truth, strict=True):
        (shown if true else hidden)[y : y + mask.shape[0], x : x + mask.shape[1]] |= mask
    result = canvas.copy()
    result[hidden & ~shown] = canvas.mean(axis=(0, 1)).astype(np.uint8)
    return result


def sample_maker(
    samples: Sequence[OutlinedField], settings: SegmentTraining, labels: Sequence[str]
) -> Callable[[int, Generator, int], OutlinedSample]:
    """The function that makes the training sample of one ticket.

    Raises:
        SettingError: a setting names a label that is not learnt.
    """
    named = {*settings.crop_px_per_label, *settings.augment.flip_paste_labels}
    if strangers := sorted(named - set(labels)):
        raise SettingError(f"labels that are not learnt: {listing(strangers)}; learnt are {listing(labels, 30)}")
    uneven = [f"{name} = {px}" for name, px in settings.crop_px_per_label.items() if px < MULTIPLE or px % MULTIPLE]
    if uneven:
        raise SettingError(f"crop_px_per_label: {listing(uneven)}: sides of crops are multiples of {MULTIPLE} px")
    sides = [settings.crop_px_per_label.get(name, settings.crop_px) for name in labels]
    pasted = {labels.index(name) for name in settings.augment.flip_paste_labels} or {*range(len(labels))}
    alike: dict[int, list[int]] = {}
    for at, field in enumerate(samples):
        if not field.extra:
            alike.setdefault(field.kind, []).append(at)

    def make(index: int, random: Generator, epoch: int) -> OutlinedSample:
        field = samples[index % len(samples)]
        side_px = sides[field.kind] if field.kind >= 0 else settings.crop_px

        def donor() -> OutlinedField | None:
            others = alike.get(field.kind, [])
            return samples[others[int(random.integers(len(others)))]] if others and field.kind >= 0 else None

        return augmented(
            field, side_px, settings.augment, random, pasted=field.kind in pasted, donor=donor
        )  # fmt: skip

    return make


def collate(samples: Sequence[OutlinedSample]) -> tuple[Tensor, list[Target]]:
    """Images (B, 3, H, W) uint8 RGB, smaller ones with grey below and to the right, and their targets."""
    height, width = (max(sample.pixels.shape[axis] for sample in samples) for axis in (0, 1))
    images = np.full((len(samples), 3, height, width), BORDER, np.uint8)
    targets = []
    for image, sample in zip(images, samples, strict=True):
        h, w = sample.pixels.shape[:2]
        image[:, :h, :w] = sample.pixels.transpose(2, 0, 1)
        masks = np.zeros((len(sample.masks), height, width), np.uint8)
        masks[:, :h, :w] = sample.masks
        targets.append(
            {
                "boxes": torch.from_numpy(sample.boxes()),
                "labels": torch.from_numpy(np.ascontiguousarray(sample.classes)),
                "masks": torch.from_numpy(masks),
            }
        )
    return torch.from_numpy(images), targets


class ExtraSampler(EpochSampler):
    """Tickets of one epoch: every annotated image (`repeats` times), and as many extra ones as the schedule has.

    Args:
        annotated: number of annotated images; theirs are the first indices.
        extra: number of extra images; theirs are the indices that follow.
        repeats: how often each annotated image is shown in an epoch.
        schedule: extra images of each epoch.
        seed, rank, world: as in `EpochSampler`.
    """

    def __init__(
        self,
        annotated: int,
        extra: int,
        repeats: int,
        schedule: Sequence[int],
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(annotated + extra, seed, rank=rank, world=world)
        self.annotated, self.extra, self.repeats, self.schedule = annotated, extra, repeats, tuple(schedule)

    def size(self, epoch: int) -> int:
        """Samples of an epoch, from 0, in all processes together."""
        return self.repeats * self.annotated + (self.schedule[epoch] if epoch < len(self.schedule) else 0)

    def __len__(self) -> int:
        return -(-self.size(self.epoch) // self.world)

    def order(self) -> NDArray[np.intp]:
        """The indices of this epoch, in their order."""
        random = np.random.default_rng([self.seed, self.epoch])
        # Copies of an image have indices of their own beyond all images, so that each is varied by another chance.
        copies = np.arange(self.repeats)[:, None] * self.count + np.arange(self.annotated)
        guessed = self.annotated + random.permutation(self.extra)[: self.size(self.epoch) - copies.size]
        return random.permutation(np.concatenate([copies.ravel(), guessed]))
