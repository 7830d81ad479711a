"""How long the members of an ensemble take on this machine, on one thread, as they take it in prediction."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.bundle import Bundle
from cytolens.images import MAX_PIXELS, find_images, load_image
from cytolens.predict.ensemble import Namers, given_labels
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.prepare import stain
from cytolens.problems import DatasetError, ImageError
from cytolens.run.out_of_fold import OutOfFold
from cytolens.run.tunable import Tunable

Pixels = NDArray[np.uint8]
_PICTURES, _ROUNDS = 4, 3  # a median of rounds, so that a hiccup of the machine does not count
_FIRST_SEED = 101


@dataclass(frozen=True)
class Timing:
    """What members take on this machine, on one thread.

    Attributes:
        detectors: family → ms for an image, of all its models.
        classifiers: family → ms for a cell, of all its models.
        cells_per_image: cells that classifiers are asked about, the mean over the run's images.
        pictures: what was measured with.
    """

    detectors: Mapping[str, float]
    classifiers: Mapping[str, float]
    cells_per_image: float
    pictures: str

    def ms(self, families: Sequence[str]) -> float:
        """For an image, with these classifiers."""
        return sum(self.detectors.values()) + sum(self.classifiers[f] for f in families) * self.cells_per_image


def measure(
    given: Tunable, said: OutOfFold, images: Path | None, one_fold: bool, notify: Callable[[str], None]
) -> Timing:
    """Time the members. The folds of a family are one network with other weights, so its first is timed for all."""
    pictures = rendered_pictures() if images is None else pictures_of(images)
    detectors, classifiers = given.kept(one_fold)
    asked = said.asked
    cells_per_image = float(asked.sum()) / max(len(said.images), 1)
    side_px = float(np.median(box.sizes_wh(said.cells.boxes()[asked]).max(axis=1)))
    at_once = max(1, round(cells_per_image))
    found, named = {}, {}
    for family, places in detectors.items():
        notify(f"timing {family}")
        found[family] = len(places) * detector_ms(Bundle.load(places[0]), pictures)
    for family, places in classifiers.items():
        notify(f"timing {family}")
        named[family] = len(places) * classifier_ms(Bundle.load(places[0]), pictures, at_once, side_px)
    sizes = sorted({f"{one.shape[1]} × {one.shape[0]} px" for one in pictures})
    what = "rendered fields" if images is None else f"images of {images}"
    return Timing(found, named, cells_per_image, f"{len(pictures)} {what} ({', '.join(sizes)})")


# -- one member ---------------------------------------------------------------------------------


def rendered_pictures(count: int = _PICTURES) -> list[Pixels]:
    """Rendered fields to measure with, uint8 RGB (H, W, 3) each; always the same ones."""
    from cytolens.prepare.synthetic import render_field

    return [render_field(_FIRST_SEED + number).pixels for number in range(count)]


def pictures_of(place: Path, count: int = _PICTURES) -> list[Pixels]:
    """Images of a folder to measure with, evenly chosen; those that cannot be read are passed over.

    Raises:
        DatasetError: none can be read.
    """
    paths = find_images([place])
    # Evenly over the folder, because its first images are often of one slide.
    order = [paths[index] for index in np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)]
    pictures: list[Pixels] = []
    for path in [*order, *(path for path in paths if path not in order)]:
        try:
            pictures.append(load_image(path, MAX_PIXELS).pixels)
        except ImageError:
            continue
        if len(pictures) == count:
            break
    if not pictures:
        raise DatasetError(
            f"{place}: none of its {len(paths)} images can be read, so nothing can be measured with them"
        )
    return pictures


def detector_ms(bundle: Bundle, pictures: Sequence[Pixels]) -> float:
    """Milliseconds that a detector takes for an image, the mean over the pictures; tiles and views included.

    Raises:
        BundleError: it has no network.
    """
    predictor = Predictor(bundle, PredictSettings(jobs=1))
    return float(np.mean([_median_ms(lambda shown=shown: predictor.field(shown)) for shown in pictures]))


def classifier_ms(bundle: Bundle, pictures: Sequence[Pixels], cells: int, side_px: float) -> float:
    """Milliseconds that a classifier takes for a cell, crops and views included.

    Args:
        bundle: the classifier.
        pictures: fields, uint8 RGB (H, W, 3).
        cells: of each field that are named in one go, as in prediction.
        side_px: of a cell; what is in the box does not matter for the time that it takes.

    Raises:
        BundleError: it has no network, or names whole images.
    """
    namers = Namers(bundle, given_labels(bundle), "bundle", "cpu")
    random = np.random.default_rng(0)
    spent = []
    for shown in pictures:
        boxes, field = _anywhere(shown, cells, side_px, random), stain.measure(shown)
        spent.append(_median_ms(lambda s=shown, b=boxes, f=field: namers.shares(s, b, f)))
    return float(np.mean(spent)) / cells


def _median_ms(work: Callable[[], object], rounds: int = _ROUNDS) -> float:
    work()  # the first time, memory is found and files are read
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1000


def _anywhere(shown: Pixels, cells: int, side_px: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Square boxes (cells, 4) inside a picture."""
    size = np.array([shown.shape[1], shown.shape[0]], np.float64)
    side = np.minimum(side_px, size)
    corner = random.uniform(size=(cells, 2)) * (size - side)
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)
