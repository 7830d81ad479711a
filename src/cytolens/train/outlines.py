"""Training a map network: its samples, its loss, and the module that Lightning drives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from cytolens import masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.models.outlines import MapNetwork
from cytolens.prepare import stain
from cytolens.prepare.crops import region
from cytolens.problems import LabelError, Problems
from cytolens.tasks.outlines import FIELD_MAPS, MULTIPLE, STEP_PX, Found, levelled, levels, read
from cytolens.train.augment_colour import vary_colour
from cytolens.train.batches import Samples, readable
from cytolens.train.optimiser import optimiser_and_schedule
from cytolens.train.outline_settings import OutlineAugment, OutlineTraining
from cytolens.views import crop

_STORE = 1.5  # a stored crop of a cell is so much wider than what is shown
_MIDDLE_SHARE = 0.16  # how wide the hill of a middle is, of the root of the cell's area
_LEAST_HILL_PX = 1.5

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture to learn from.

    Attributes:
        pixels: as the network is to see it before it is varied, uint8 RGB (H, W, 3).
        marks: shows = field: number of the cell that a pixel belongs to, 0 for none, int32 (H, W);
            shows = cell: bit i where the pixel belongs to part i.
        type: index of the image's type; -1: it has none.
        zoom: px of the training picture per px of `pixels`.
    """

    pixels: Pixels
    marks: NDArray[np.int32]
    type: int
    zoom: float = 1.0


def stored(dataset: Dataset, settings: OutlineTraining, problems: Problems) -> list[StoredPicture]:
    """The images with masks, or the crops of their cells, in memory.

    Raises:
        LabelError: no cell has a mask, or shows = cell and there are no parts to learn.
    """
    make = _fields if settings.input.shows == "field" else _cells
    pictures = make(dataset, settings, problems)
    if not pictures:
        raise LabelError("no cell of the dataset has a mask; there is nothing to learn from")
    return pictures


def _fields(dataset: Dataset, settings: OutlineTraining, problems: Problems) -> list[StoredPicture]:
    by_image = {image: cells for image, cells in dataset.cells.by_image() if any(code for code in cells.masks())}
    rows = [row for row in dataset.images.rows() if row["image_id"] in by_image]
    pictures = []
    for position, pixels in readable([row["path"] for row in rows], problems) if rows else ():
        cells = by_image[rows[position]["image_id"]]
        if settings.input.levels:
            pixels = levelled(pixels, levels(pixels))
        pictures.append(StoredPicture(pixels, numbered(cells, pixels.shape[:2]), image_type(cells)))
    return pictures


def numbered(cells: Cells, size_hw: tuple[int, int]) -> NDArray[np.int32]:
    """Each pixel's cell, from 1 in the order of rows, shape (H, W); where masks overlap the smaller is in front."""
    marks = np.zeros(size_hw, np.int32)
    codes = [(number, code) for number, code in enumerate(cells.masks(), 1) if code is not None]
    for number, code in sorted(codes, key=lambda one: -masks.area(one[1])):
        marks[masks.decode(code, size_hw)] = number
    return marks


def image_type(cells: Cells) -> int:
    """The label that most cells of an image have, as its index among the leaves; -1: none has one."""
    indices = [cells.labels.leaves.index(name) for name in cells.label_names() if name in cells.labels.leaves]
    return int(np.bincount(indices).argmax()) if indices else -1


def _cells(dataset: Dataset, settings: OutlineTraining, problems: Problems) -> list[StoredPicture]:
    whole, *parts = part_names(settings)
    by_image = dict(dataset.cells.by_image())
    rows = [row for row in dataset.images.rows() if row["image_id"] in by_image]
    side_px = round(settings.input.cell.side_px * _STORE)
    pictures = []
    for position, pixels in readable([row["path"] for row in rows], problems) if rows else ():
        cells = by_image[rows[position]["image_id"]]
        size_hw, size_wh = pixels.shape[:2], (pixels.shape[1], pixels.shape[0])
        change = stain.change(stain.measure(pixels), settings.input.cell.stain)
        inner = [_union(cells.where(label=name), size_hw) for name in parts]
        outlined = cells.where(label=whole)
        for corners, code in zip(outlined.boxes(), outlined.masks(), strict=True):
            if code is None:
                continue
            own = masks.decode(code, size_hw)  # a neighbour is background, even where both touch
            marks = own.astype(np.uint8)
            for bit, part in enumerate(inner, 1):
                marks[own & part] |= 1 << bit
            cut = region(corners, size_wh, settings.input.cell)
            middle, half = (cut[:2] + cut[2:]) / 2, (cut[2:] - cut[:2]) / 2 * _STORE
            view = crop(size_wh, [*(middle - half), *(middle + half)], side_px)
            cell = stain.normalise(view.pixels(pixels), change)
            pictures.append(StoredPicture(cell, _seen(marks, view.matrix, side_px), -1))
    return pictures


def _union(cells: Cells, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of any of the cells."""
    union = np.zeros(size_hw, bool)
    for code in cells.masks():
        if code is not None:
            union |= masks.decode(code, size_hw)
    return union


def _seen(marks: NDArray[np.uint8], matrix: NDArray[np.float64], side_px: int) -> NDArray[np.int32]:
    """Marks of pixels (H, W) as a view shows them: nothing is mixed."""
    import cv2

    centres = matrix.copy()
    centres[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    return np.asarray(cv2.warpAffine(marks, centres, (side_px, side_px), flags=cv2.INTER_NEAREST), np.int32)


def part_names(settings: OutlineTraining) -> tuple[str, ...]:
    """shows = cell: the label of the cells and those of their parts.

    Raises:
        LabelError: none are named.
    """
    if len(settings.labels) < 1:
        raise LabelError('shows = cell: name the cells and their parts, such as labels = ["leukocyte", "nucleus"]')
    return settings.labels


# -- samples --------------------------------------------------------------------------------------


def varied(
    picture: StoredPicture, side_px: int, anywhere: bool, settings: OutlineAugment, random: Generator
) -> tuple[Pixels, NDArray[np.int32]]:
    """A training picture, `side_px` square, and its marks; these are −1 beyond the border of a field.

    Args:
        picture: what it is made from.
        side_px: side of the result.
        anywhere: look at a place drawn from the whole picture; otherwise at its middle.
        settings: what to vary.
        random: the source of all chance.
    """
    import cv2

    height, width = picture.marks.shape
    scale = picture.zoom * np.exp(random.uniform(*np.log(settings.scale)))
    stretch = np.exp(random.uniform(-1, 1) * settings.aspect / 2)
    mirror = -1.0 if random.random() < settings.flip else 1.0
    angle = random.uniform(0, 2 * np.pi) if settings.rotate else 0.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([mirror * stretch * scale, scale / stretch])
    middle = (np.array([width, height]) - 1) / 2
    if anywhere:
        spare = np.maximum(0, np.array([width, height]) - side_px / scale) / 2
        middle = middle + random.uniform(-1, 1, 2) * spare
        shift = np.zeros(2)
    else:
        shift = random.uniform(-1, 1, 2) * settings.translate * side_px
    matrix = np.column_stack([linear, (side_px - 1) / 2 + shift - linear @ middle])
    soft = cv2.GaussianBlur(picture.pixels, (0, 0), 0.35 / scale) if scale < 0.6 else picture.pixels
    size = (side_px, side_px)
    # Beyond its border a field goes on as its mirror image, as in prediction; nothing is to be learnt of that.
    border = cv2.BORDER_REFLECT_101 if anywhere else cv2.BORDER_REPLICATE
    pixels = np.asarray(cv2.warpAffine(soft, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border), np.uint8)
    # OpenCV maps floats, which hold numbers up to 16 million exactly.
    marks = cv2.warpAffine(
        picture.marks.astype(np.float32), matrix, size, flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT, borderValue=-1.0 if anywhere else 0.0,
    )  # fmt: skip
    if random.random() < settings.invert:
        pixels = 255 - pixels
    return vary_colour(pixels, settings.colour, random), marks.astype(np.int32)


def field_targets(marks: NDArray[np.int32]) -> NDArray[np.float32]:
    """What the maps of a field should be, `FIELD_MAPS`, and where: shape (5, H, W), from each pixel's cell (H, W).

    The middle of a cell is the mean of its pixels that are seen; the way to it is in units of `STEP_PX`. The last map
    is 0 where nothing is known, which is where `marks` are −1.
    """
    rows, columns = np.nonzero(marks > 0)
    targets = np.zeros((5, *marks.shape), np.float32)
    targets[4] = marks >= 0
    if not len(rows):
        return targets
    _, owner, areas = np.unique(marks[rows, columns], return_inverse=True, return_counts=True)
    down = (np.bincount(owner, rows) / areas)[owner] - rows
    right = (np.bincount(owner, columns) / areas)[owner] - columns
    hill = np.maximum(_LEAST_HILL_PX, _MIDDLE_SHARE * np.sqrt(areas))[owner]
    targets[0, rows, columns] = 1
    targets[1, rows, columns] = np.exp(-(down**2 + right**2) / (2 * hill**2))
    targets[2, rows, columns] = down / STEP_PX
    targets[3, rows, columns] = right / STEP_PX
    return targets


def part_targets(marks: NDArray[np.int32], parts: int) -> NDArray[np.float32]:
    """What the maps of a cell's crop should be, (parts, H, W), from the bits of each pixel (H, W)."""
    return np.stack([(marks >> bit & 1).astype(np.float32) for bit in range(parts)])


def training_samples(pictures: Sequence[StoredPicture], settings: OutlineTraining) -> tuple[Samples, Any]:
    """The samples of an epoch, and how often each is drawn."""
    field = settings.input.shows == "field"
    side_px = settings.crop_px if field else settings.input.cell.side_px
    tickets = [number for number, one in enumerate(pictures) for _ in range(_repeats(one, settings))]
    parts = 0 if field else len(part_names(settings))

    def make(index: int, random: Generator, _: int) -> tuple[Pixels, NDArray[np.float32], int]:
        picture = pictures[tickets[index]]
        pixels, marks = varied(picture, side_px, field, settings.augment, random)
        return pixels, field_targets(marks) if field else part_targets(marks, parts), picture.type

    types = np.array([pictures[ticket].type for ticket in tickets])
    weights = None
    if field and settings.balance and len(set(types)) > 1:
        _, inverse, counts = np.unique(types, return_inverse=True, return_counts=True)
        weights = (1.0 / counts[inverse]) ** settings.balance
    return Samples(make, len(tickets), settings.seed), weights


def _repeats(picture: StoredPicture, settings: OutlineTraining) -> int:
    if settings.input.shows == "cell":
        return settings.crops_per_image
    area = picture.marks.size / settings.crop_px**2
    return settings.crops_per_image * int(np.clip(round(area), 1, settings.most_crops))


def collate(samples: list[tuple[Pixels, NDArray[np.float32], int]]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Images (B, 3, S, S) uint8 RGB, and targets: maps (B, M, S, S), types (B,)."""
    images = torch.from_numpy(np.stack([pixels.transpose(2, 0, 1) for pixels, _, _ in samples]))
    maps = torch.from_numpy(np.stack([target for _, target, _ in samples]))
    return images, (maps, torch.tensor([kind for _, _, kind in samples]))


def tuning_batches(pictures: Sequence[StoredPicture], settings: OutlineTraining) -> list[Any]:
    """The inputs of the tuning part, as in prediction: images (1, 3, H, W) and marks (H, W), a picture each."""
    batches = []
    for picture in pictures:
        pixels, marks = picture.pixels, picture.marks
        if settings.input.shows == "cell":
            edge = (marks.shape[0] - settings.input.cell.side_px) // 2
            inner = slice(edge, edge + settings.input.cell.side_px)
            pixels, marks = pixels[inner, inner], marks[inner, inner]
        padded = mirrored(pixels)
        batches.append((torch.from_numpy(padded.transpose(2, 0, 1)[None].copy()), marks))
    return batches


def mirrored(pixels: Pixels) -> Pixels:
    """A picture with its mirror image at the right and below, so that its sides are multiples of the largest stride."""
    import cv2

    below, right = (-side % MULTIPLE for side in pixels.shape[:2])
    return np.asarray(cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_REFLECT_101), np.uint8)


# -- the module -----------------------------------------------------------------------------------


class OutlineModule(LightningModule):
    """A map network in training: losses on batches, the agreement of masks on the tuning part."""

    def __init__(self, settings: OutlineTraining, types: int) -> None:
        super().__init__()
        self.settings = settings
        field = settings.input.shows == "field"
        maps = len(FIELD_MAPS) if field else len(part_names(settings))
        self.network = MapNetwork(settings.model, maps, types if field and types > 1 else 0, settings.width)
        self._scores: list[float] = []

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, stepped per batch."""
        return optimiser_and_schedule(self, self.settings.optimise)

    def training_step(self, batch: tuple[Tensor, tuple[Tensor, Tensor]], _: int) -> Tensor:
        """The loss of one batch."""
        images, (targets, types) = batch
        images, targets, types = images.float(), targets.to(images.device), types.to(images.device)
        if self.settings.hardware.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        said, *told = self.network(images)
        field = self.settings.input.shows == "field"
        loss = field_loss(said.float(), targets) if field else overlap_loss(said.float(), targets)
        if told and bool((types >= 0).any()):
            loss = loss + 0.1 * F.cross_entropy(told[0].float(), types, ignore_index=-1)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        self.log("loss_now", loss, prog_bar=True, logger=False)
        return loss

    def validation_step(self, batch: tuple[Tensor, NDArray[np.int32]], _: int) -> None:
        """Score one picture of the tuning part."""
        images, marks = batch
        height, width = marks.shape
        maps = as_maps(self.network(images.to(self.device).float())[0].float(), self.settings.input.shows == "field")
        said = maps[0, :, :height, :width].cpu().numpy()
        if self.settings.input.shows == "field":
            limits = self.settings.output.reading
            cells = [cell for cell in read(said, limits) if cell.score >= limits.score_min]
            self._scores.append(mean_precision(cells, marks))
        else:
            truth = part_targets(marks, len(said)) > 0
            self._scores += [_iou(one >= 0.5, other) for one, other in zip(said, truth, strict=True)]

    def on_validation_epoch_end(self) -> None:
        """The mean over the pictures."""
        self.log("score", float(np.mean(self._scores)), prog_bar=True)
        self._scores = []


def as_maps(logits: Tensor, field: bool) -> Tensor:
    """Maps from what a network says, (B, M, H, W): probabilities; a field's ways to the middle stay as they are."""
    return torch.cat((logits[:, :2].sigmoid(), logits[:, 2:]), dim=1) if field else logits.sigmoid()


def overlap_loss(logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
    """Cross-entropy of every pixel and 1 − Dice of every map, (B, M, H, W) both; `known` (B, 1, H, W) is 0 or 1."""
    crossed = F.binary_cross_entropy_with_logits(logits, targets, known)
    said = logits.sigmoid() if known is None else logits.sigmoid() * known
    shared = 2 * (said * targets).sum(dim=(2, 3)) + 1
    return crossed + (1 - shared / ((said + targets).sum(dim=(2, 3)) + 1)).mean()


def field_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of the maps of fields (B, 4, H, W) against targets (B, 5, H, W), over the pixels that are known.

    Inside: cross-entropy and Dice. Middle: cross-entropy, which a soft target allows. Ways: absolute error over the
    pixels of cells.
    """
    inside, known = targets[:, 0], targets[:, 4:]
    loss = overlap_loss(logits[:, :1], targets[:, :1], known)
    loss = loss + 5 * F.binary_cross_entropy_with_logits(logits[:, 1:2], targets[:, 1:2], known)
    off = F.smooth_l1_loss(logits[:, 2:], targets[:, 2:4], reduction="none", beta=0.1).sum(dim=1)
    return loss + 2 * (off * inside).sum() / inside.sum().clamp(min=1)


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0


def mean_precision(cells: Sequence[Found], marks: NDArray[np.int32]) -> float:
    """Mean over IoU .50 … .95 of TP / (TP + FP + FN) of cells read from maps against each pixel's cell (H, W)."""
    found = np.zeros(marks.shape, np.int32)
    for number, cell in enumerate(cells, 1):
        window = found[cell.y : cell.y + cell.mask.shape[0], cell.x : cell.x + cell.mask.shape[1]]
        window[cell.mask] = number
    truths = np.unique(marks[marks > 0])
    if not len(truths) or not cells:
        return float(len(truths) == len(cells))
    table = np.zeros((len(cells) + 1, int(marks.max()) + 1))
    np.add.at(table, (found.ravel(), marks.ravel()), 1)
    shared = table[1:, truths]
    union = table[1:].sum(axis=1)[:, None] + table[:, truths].sum(axis=0)[None] - shared
    iou = shared / np.maximum(union, 1)
    # Masks of one image do not overlap here, so from .5 on every pair is the only one of both.
    hits = np.array([(iou > limit).sum() for limit in np.arange(0.5, 1, 0.05)])
    return float((hits / (len(cells) + len(truths) - hits)).mean())
