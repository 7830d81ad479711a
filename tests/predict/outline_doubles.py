"""Doubles of map networks whose answer stands in the picture itself, pixel by pixel: it is the same in any tile.

A *charted* field holds in its red channel how near a pixel is to the middle of its cell (0: no cell), in green and blue
the way to that middle, down and right, in half px off 128. `Reader` says what is written there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cytolens.bundle import Bundle, BundleInfo
from cytolens.labels import LabelSet
from cytolens.predict import outlining
from cytolens.tasks.outlines import STEP_PX, OutlineInput, OutlineOutput
from tests.predict.doubles import Pixels

Marks = NDArray[np.int32]
Ellipse = tuple[float, float, float, float, float]  # x, y, half axes, angle


def marked(size_wh: tuple[int, int], ellipses: Sequence[Ellipse]) -> Marks:
    """Each pixel's ellipse from 1, the later in front, int32 (H, W)."""
    y, x = np.mgrid[: size_wh[1], : size_wh[0]]
    marks = np.zeros(size_wh[::-1], np.int32)
    for number, (left, top, a, b, angle) in enumerate(ellipses, 1):
        dx, dy = x + 0.5 - left, y + 0.5 - top
        along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        marks[(along / a) ** 2 + (across / b) ** 2 <= 1] = number
    return marks


def charted(marks: Marks, noise: np.random.Generator | None = None) -> Pixels:
    """The field of some marks, uint8 (H, W, 3); with noise the ways and heights are off by a little."""
    field = np.zeros((*marks.shape, 3), np.uint8)
    field[..., 1:] = 128
    for number in range(1, int(marks.max(initial=0)) + 1):
        rows, columns = np.nonzero(marks == number)
        if not len(rows):
            continue
        down, right = rows.mean() - rows, columns.mean() - columns
        height = np.exp(-(down**2 + right**2) / (2 * max(1.5, 0.16 * len(rows) ** 0.5) ** 2))
        if noise is not None:
            down, right = (way + noise.normal(0, 2, len(rows)) for way in (down, right))
            height = height * noise.uniform(0.7, 1, len(rows))
        field[rows, columns, 0] = np.clip(1 + height * 254, 1, 255).round()
        field[rows, columns, 1:] = np.clip(128 + 2 * np.stack([down, right], axis=1), 0, 255).round()
    return field


def told(pixels: Pixels) -> NDArray[np.float32]:
    """The maps (4, H, W) that a charted picture (H, W, 3) holds."""
    height, down, right = np.moveaxis(pixels.astype(np.float32), 2, 0)
    ways = [(way - 128) / 2 / STEP_PX * (height > 0) for way in (down, right)]
    return np.stack([np.where(height > 0, 0.95, 0.02), height / 255, *ways]).astype(np.float32)


class _Output:
    def __init__(self, name: str) -> None:
        self.name = name


class Reader:
    """A session that reads charted pictures; types, where there are any, by the mean of the red channel."""

    def __init__(self, types: int = 0) -> None:
        self.types = types
        self.shapes: list[tuple[int, ...]] = []

    def get_outputs(self) -> list[_Output]:
        """What it gives."""
        return [_Output(name) for name in (("maps", "types") if self.types else ("maps",))]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Pixels]) -> list[NDArray[np.float32]]:
        """Maps (1, 4, H, W), and where they are asked for logits of types (1, T): the more is red, the later."""
        (pixels,) = feeds["images"]
        self.shapes.append(pixels.shape)
        assert not any(side % 32 for side in pixels.shape[:2])
        share = np.float32((pixels[..., 0] > 0).mean())
        types = -np.abs(np.arange(self.types, dtype=np.float32) - self.types * share)
        return [told(pixels)[None], types[None]][: len(outputs)]


class Painter:
    """A session that finds a cell in a crop by its dark red, and its nucleus by its dark blue channel."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Pixels]) -> list[NDArray[np.float32]]:
        """Maps (B, 2, S, S): the more the channel is below white, the surer; half way lies at 180."""
        assert list(outputs) == ["maps"]
        pictures = feeds["images"].astype(np.float32)
        return [np.clip((240 - pictures[..., [0, 2]]) / 120, 0, 1).transpose(0, 3, 1, 2)]


def field_bundle(folder: Path, names: Sequence[str] = ("nucleus",), views: int = 1, **given: Any) -> Bundle:
    """The bundle of a map network of fields; `given` are settings of its input."""
    info = BundleInfo(
        name="chart",
        task="segment",
        labels=LabelSet.of(names).to_dict(),
        architecture={"kind": "maps"},
        outline_input=OutlineInput.model_validate({"levels": False, **given}),
        outline_output=OutlineOutput(views=views),
    )
    return Bundle(folder, info, "0123456789ab", {})


def cell_bundle(folder: Path, views: int = 1, side_px: int = 128, whole: str = "WBC") -> Bundle:
    """The bundle of a map network of cells and their nuclei."""
    cell = {"side_px": side_px, "context": 1.5, "stain": {"background": False}}
    info = BundleInfo(
        name="paint",
        task="segment",
        labels=LabelSet.of([whole, "nucleus"]).to_dict(),
        architecture={"kind": "maps"},
        outline_input=OutlineInput.model_validate({"shows": "cell", "cell": cell}),
        outline_output=OutlineOutput(views=views, parts={whole: 0.5, "nucleus": 0.5}, of=whole),
    )
    return Bundle(folder, info, "ba9876543210", {})


def connect(patch: pytest.MonkeyPatch, **sessions: Any) -> None:
    """Let outliners find these sessions, by the name of the bundle, in place of ONNX Runtime's."""
    patch.setattr(outlining, "session", lambda bundle, device="cpu", threads=1: sessions[bundle.name])
