"""Test doubles for the one seam of prediction: what stands in for an ONNX Runtime session.

A `Painted` smear is flat coloured discs on white; `ColourEyes` finds them by their colour at whatever
scale and in whatever part they are shown, so tiling, regions and geometry can be tested exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cytolens.bundle import Bundle, BundleInfo
from cytolens.labels import AttributeSchema, LabelSet
from cytolens.predict import describe, ensemble
from cytolens.prepare.synthetic import SyntheticField, SyntheticSettings, render_field
from cytolens.tasks.attributes import AttributeOutput
from cytolens.tasks.classify import ClassifyInput, ClassifyOutput
from cytolens.tasks.detect import DetectInput, DetectOutput

FOUND = ("leukocyte", "erythrocyte", "platelet")
NAMES = ("leukocyte", "neutrophil", "band neutrophil", "segmented neutrophil", "lymphocyte", "monocyte")
BACKGROUND = 240
# The channels of a cell differ by 120; half of that is where the scaled picture's edges lie.
_COLOURS = {"leukocyte": (120, 120, 240), "erythrocyte": (240, 120, 120), "platelet": (120, 240, 120)}

Pixels = NDArray[np.uint8]
Disc = tuple[str, float, float, float]  # label, x, y, radius in px


def painted(size_wh: tuple[int, int], discs: Sequence[Disc], background: int = BACKGROUND) -> Pixels:
    """A smear of flat discs, uint8 RGB."""
    pixels = np.full((size_wh[1], size_wh[0], 3), background, np.uint8)
    for label, centre_x, centre_y, radius in discs:
        left, top = max(int(centre_x - radius) - 1, 0), max(int(centre_y - radius) - 1, 0)
        around = pixels[top : int(centre_y + radius) + 2, left : int(centre_x + radius) + 2]
        y, x = np.mgrid[: around.shape[0], : around.shape[1]] + 0.5
        around[(x + left - centre_x) ** 2 + (y + top - centre_y) ** 2 <= radius**2] = _COLOURS[label]
    return pixels


def scattered(size_wh: tuple[int, int], kinds: Mapping[str, tuple[int, float]], seed: int = 0) -> list[Disc]:
    """Discs that do not touch: label → (how many, radius)."""
    random = np.random.default_rng(seed)
    discs: list[Disc] = []
    for label, (count, radius) in kinds.items():
        for _ in range(count):
            for _ in range(10_000):
                x, y = (float(random.uniform(radius + 1, side - radius - 1)) for side in size_wh)
                if all((x - a) ** 2 + (y - b) ** 2 > (radius + r + 4) ** 2 for _, a, b, r in discs):
                    discs.append((label, x, y, radius))
                    break
            else:
                raise AssertionError("there is no room for so many discs")
    return discs


class ColourEyes:
    """A detector's session that finds painted discs by their colour."""

    def __init__(self, score: float = 0.9, names: Sequence[str] = FOUND) -> None:
        self.score, self.names = score, list(names)
        self.shown: list[tuple[int, ...]] = []

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Pixels]) -> list[NDArray[np.float32]]:
        """The boxes and scores of the discs in one picture."""
        assert list(outputs) == ["boxes", "scores"]
        pictures = feeds["images"]
        self.shown.append(pictures.shape)
        assert pictures.dtype == np.uint8
        assert all(side % 32 == 0 for side in pictures.shape[1:3])
        boxes, scores = [], []
        for label, (x, y, width, height) in self._discs(pictures[0]):
            boxes.append([x, y, x + width, y + height])
            scores.append([self.score if name == label else 0.001 for name in self.names])
        return [
            np.array(boxes, np.float32).reshape(1, -1, 4),
            np.array(scores, np.float32).reshape(1, -1, len(self.names)),
        ]

    @staticmethod
    def _discs(picture: Pixels) -> list[tuple[str, tuple[int, int, int, int]]]:
        signed = picture.astype(np.int16)
        coloured = (signed.max(axis=2) - signed.min(axis=2) >= 60).astype(np.uint8)
        _, owner, boxes, _ = cv2.connectedComponentsWithStats(coloured)
        found = []
        for index in range(1, len(boxes)):
            x, y, width, height, area = (int(v) for v in boxes[index])
            if area < 3:
                continue
            inside = picture[y : y + height, x : x + width][owner[y : y + height, x : x + width] == index]
            brightest = int(inside.astype(int).sum(axis=0).argmax())
            label = {2: "leukocyte", 0: "erythrocyte", 1: "platelet"}[brightest]
            found.append((label, (x, y, width, height)))
        return found


class FixedFindings:
    """A detector's session that always gives the same boxes and scores."""

    def __init__(self, boxes: Any, scores: Any) -> None:
        self.boxes, self.scores = np.array(boxes, np.float32), np.array(scores, np.float32)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Pixels]) -> list[NDArray[np.float32]]:
        """The same for every picture."""
        assert list(outputs) == ["boxes", "scores"]
        return [self.boxes.reshape(1, -1, 4), self.scores.reshape(1, len(self.boxes), -1)]


class FixedNames:
    """A classifier's session: probabilities over its leaves from a function of the number of pictures."""

    def __init__(self, shares: Sequence[float] | Callable[[Pixels], Any], embedding: Sequence[float] = (0.0, 0.0)):
        self.shares, self.embedding = shares, embedding
        self.shown: list[Pixels] = []

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Pixels]) -> list[NDArray[np.float32]]:
        """Logits whose softmax are the shares, and the embedding."""
        assert list(outputs) == ["logits", "embedding"]
        pictures = feeds["images"]
        self.shown.append(pictures)
        shares = self.shares(pictures) if callable(self.shares) else [self.shares] * len(pictures)
        logits = np.log(np.maximum(np.array(shares, np.float32), 1e-9))
        return [logits, np.tile(np.array(self.embedding, np.float32), (len(pictures), 1))]


class FixedLooks(FixedNames):
    """A classifier's session that also gives attributes: the same logits (ΣV) for every picture."""

    def __init__(self, shares: Sequence[float], looks: Sequence[float]) -> None:
        super().__init__(shares)
        self.looks = looks

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Pixels]) -> list[NDArray[np.float32]]:
        """Logits, embedding, and the logits of the attributes."""
        assert list(outputs) == ["logits", "embedding", "attributes"]
        logits, embedding = super().run(outputs[:2], feeds)
        return [logits, embedding, np.tile(np.array(self.looks, np.float32), (len(logits), 1))]


class ConceptLooks(FixedNames):
    """A classifier's session with a concept bottleneck: the same concepts (ΣV) for every picture."""

    def __init__(self, shares: Sequence[float] | Callable[[Pixels], Any], concepts: Sequence[float] | Any) -> None:
        super().__init__(shares)
        self.concepts = np.array(concepts, np.float32)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Pixels]) -> list[NDArray[np.float32]]:
        """Logits, embedding, logits whose softmax are the concepts, and the concepts."""
        assert list(outputs) == ["logits", "embedding", "attributes", "concepts"]
        logits, embedding = super().run(outputs[:2], feeds)
        concepts = np.tile(self.concepts, (len(logits), 1))
        return [logits, embedding, np.log(concepts), concepts]


# -- bundles without files ------------------------------------------------------------------------


def detecting(
    folder: Path, *, names: Sequence[str] = FOUND, side_px: int = 416, red_cell_px: float = 0.0, **output: Any
) -> Bundle:
    """A detector's bundle."""
    info = BundleInfo(
        name="eyes",
        task="detect",
        labels=LabelSet.of(names).to_dict(),
        architecture={"red_cell_px": red_cell_px},
        detect_input=DetectInput(side_px=side_px),
        detect_output=DetectOutput(**output),
    )
    return Bundle(folder, info, "0123456789ab", {})


def naming(folder: Path, *, names: Sequence[str] = NAMES, context: float = 1.25, **output: Any) -> Bundle:
    """A classifier's bundle."""
    info = BundleInfo(
        name="names",
        task="classify",
        labels=LabelSet.of(names).to_dict(),
        classify_input=ClassifyInput(side_px=64, context=context),
        classify_output=ClassifyOutput(**output),
    )
    return Bundle(folder, info, "ba9876543210", {})


def describing(
    folder: Path,
    attributes: tuple[AttributeSchema, ...],
    *,
    names: Sequence[str] = NAMES,
    bundle: str = "looks",
    **output: Any,
) -> Bundle:
    """The bundle of a classifier that gives attributes, too."""
    plain = naming(folder, names=names)
    labels = LabelSet.of(names, attributes)
    update = {"name": bundle, "labels": labels.to_dict(), "attribute_output": AttributeOutput(**output)}
    return Bundle(folder, plain.info.model_copy(update=update), "cafe00000000", {})


def both(folder: Path, detector: Bundle, classifier: Bundle, **info: Any) -> Bundle:
    """A pipeline of the two; the classifier names the leukocytes."""
    own = [name for name in detector.labels.names if classifier.labels.resolve(name) is None]
    labels = LabelSet.of([*classifier.labels.names, *own])
    given: dict[str, Any] = {"name_these": ["leukocyte"]} | info
    described = BundleInfo(name="both", task="pipeline", labels=labels.to_dict(), **given)
    return Bundle(folder, described, "abcdef012345", {"eyes": detector, "names": classifier})


def connect(patch: pytest.MonkeyPatch, **sessions: Any) -> None:
    """Let predictors find these sessions, by the name of the bundle, in place of ONNX Runtime's."""
    for module in (ensemble, describe):
        patch.setattr(module, "session", lambda bundle, device="cpu", threads=1: sessions[bundle.name])


# -- rendered fields ------------------------------------------------------------------------------

SMALL = SyntheticSettings(width_px=448, height_px=336, red_cells=(6, 14), white_cells=(1, 2), platelets=(0, 3))


def rendered(seed: int, settings: SyntheticSettings = SMALL) -> SyntheticField:
    """A rendered field, drawn once for all tests."""
    return _drawn(seed, settings.model_dump_json())


@cache
def _drawn(seed: int, settings: str) -> SyntheticField:
    return render_field(seed, SyntheticSettings.model_validate_json(settings), f"{seed}.png")
