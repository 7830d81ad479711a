"""Squares of images without cells: what a classifier learns a background class from.

Source of the method: the winning entry of the CytologIA challenge (MPWARE-TEAM/Cytologia, MIT), which cuts
squares of 88 to 224 px at random places to learn from, and of 146 px to choose by.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.dataset import Dataset
from cytolens.images import load_image
from cytolens.prepare import stain
from cytolens.problems import Problems
from cytolens.tasks.classify import targets
from cytolens.train.augment_crop import varied
from cytolens.train.batches import readable
from cytolens.train.classify_settings import ClassifyTraining
from cytolens.views import crop

STORE = 1.6  # side of the surroundings that a crop is varied from, in its own sides: turning and zooming need room


class BackgroundSquares:
    """The images of a dataset that are known to hold no cell, read from their files when they are shown.

    Attributes:
        name: the label of their squares.
        allowed: the leaves that it allows, shape (K,).
        count: number of images.
    """

    def __init__(self, dataset: Dataset, settings: ClassifyTraining, problems: Problems) -> None:
        self.name = dataset.labels.require(settings.background)
        self.allowed = targets([self.name], dataset.labels)[0]
        self._settings = settings
        paths = _empty(dataset)
        self._paths: list[Path] = []
        self._changes: list[stain.Change] = []
        for position, pixels in readable(paths, problems) if paths else ():
            self._paths.append(Path(paths[position]))
            self._changes.append(stain.change(stain.measure(pixels), settings.input.stain))
        self.count = len(self._paths)

    @classmethod
    def of(cls, dataset: Dataset, settings: ClassifyTraining, problems: Problems) -> BackgroundSquares | None:
        """The squares of a dataset, or None: none are asked for, or it has no image without cells.

        Raises:
            LabelError: the label of the background is not one of the dataset's.
        """
        if not settings.background:
            return None
        squares = cls(dataset, settings, problems)
        return squares if squares.count else None

    def varied(self, random: Generator) -> NDArray[np.uint8]:
        """A square of random size and place in a random image, varied as cells are: (side, side, 3)."""
        settings, side_px = self._settings, self._settings.input.side_px
        index = int(random.integers(self.count))
        pixels = load_image(self._paths[index]).pixels
        size = np.array(pixels.shape[1::-1])
        side = min(float(random.uniform(*settings.background_px)), float(size.min()))
        low = random.uniform(0, np.maximum(size - side, 0))
        store_px = round(side_px * STORE / 32) * 32
        around = _grown([*low, *(low + side)], STORE)
        stored = self._cut(index, pixels, around, store_px)
        return varied(
            stored, settings.input.side_px, settings.input.side_px * STORE / store_px, settings.augment, random
        )

    def middle(self) -> NDArray[np.uint8]:
        """The square in the middle of each image, as it is: (count, side, side, 3)."""
        return np.stack([self._middle(index) for index in range(self.count)])

    def _middle(self, index: int) -> NDArray[np.uint8]:
        pixels = load_image(self._paths[index]).pixels
        size = np.array(pixels.shape[1::-1])
        side = min(self._settings.background_tuning_px, int(size.min()))
        low = (size - side) / 2
        return self._cut(index, pixels, np.array([*low, *(low + side)]), self._settings.input.side_px)

    def _cut(
        self, index: int, pixels: NDArray[np.uint8], square: NDArray[np.float64], side_px: int
    ) -> NDArray[np.uint8]:
        view = crop((pixels.shape[1], pixels.shape[0]), square, side_px)
        return stain.normalise(view.pixels(pixels), self._changes[index])


def _empty(dataset: Dataset) -> list[str]:
    """The files of images that are annotated completely and have no cell."""
    occupied = set(dataset.cells.frame["image_id"])
    rows = dataset.images.frame.select("image_id", "path", "complete_for").iter_rows()
    return [path for name, path, complete in rows if path is not None and name not in occupied and complete is None]


def _grown(square: list[float], factor: float) -> NDArray[np.float64]:
    return box.from_centre_size(box.to_centre_size(square) * [1, 1, factor, factor])[0]
