"""One region network in prediction: its three pieces, and the pictures and coordinates that it is asked in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolens.bundle import Bundle
from cytolens.predict.session import session
from cytolens.problems import BundleError, SettingError
from cytolens.tasks.region_proposals import layout_of
from cytolens.tasks.segment import BOXES_FILE, MASKS_FILE, TRUNK_FILE, SegmentInput, picture
from cytolens.views import View

MAPS = ("map_0", "map_1", "map_2", "map_3")  # that the second and third piece read
_REGIONS = 128  # regions asked about at a time

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a member's trunk says of one picture.

    Attributes:
        maps: those that regions are read from, finest first, shape (1, C, H / stride, W / stride).
        objectness: logits of the anchors, shape (A,).
        deltas: shape (A, 4).
    """

    maps: list[Floats]
    objectness: Floats
    deltas: Floats

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return sum(one.nbytes for one in (*self.maps, self.objectness, self.deltas))


class RegionMember:
    """One region network: the sessions of its three pieces, opened when they are needed.

    Args:
        bundle: of task "segment" and kind "regions".
        device, threads: as of `session`.

    Raises:
        BundleError: the bundle is another one, or lacks a piece, or does not say where its anchors stand.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu", threads: int = 1) -> None:
        described = bundle.info.architecture
        if bundle.info.task != "segment" or described.get("kind") != "regions":
            raise BundleError(
                f'{bundle.folder}: "{bundle.name}" does the task "{bundle.info.task}", kind '
                f'"{described.get("kind", "none")}"; a region network has task "segment" and kind "regions"'
            )
        try:
            self.layout = layout_of(described.get("anchors", {}))
            self.shift_px = _shift(described.get("mirror_shift_px", (0.0, 0.0)))
        except SettingError as error:
            raise BundleError(f"{bundle.folder}: architecture: {error}") from None
        self.bundle = bundle
        self.input = bundle.info.segment_input or SegmentInput()
        self._device, self._threads = device, threads
        self._sessions: dict[str, Any] = {}

    @property
    def size_bytes(self) -> int:
        """Size of its files, which is about what it takes in memory once it is open."""
        files = (self.bundle.file(name) for name in (TRUNK_FILE, BOXES_FILE, MASKS_FILE))
        return sum(file.stat().st_size for file in files if file is not None)

    def close(self) -> None:
        """Give the memory of the sessions back; they open again when they are needed."""
        self._sessions.clear()

    def trunk(self, canvas: Pixels) -> Seen:
        """What the network sees in one picture (H, W, 3) whose sides are multiples of 32."""
        *maps, objectness, deltas = self._piece(TRUNK_FILE).run(
            [*MAPS, "objectness", "deltas"], {"images": np.ascontiguousarray(canvas[None])}
        )
        return Seen(maps, objectness[0], deltas[0])

    def boxes(self, maps: Sequence[Floats], regions: Floats) -> tuple[Floats, Floats]:
        """Class scores (N, K) and boxes (N, 4) for regions (N, 4) of the picture; all in px of it."""
        given = dict(zip(MAPS, maps, strict=True))
        parts = [
            self._piece(BOXES_FILE).run(["scores", "boxes"], {**given, "regions": _numbered(regions[part])})
            for part in _parts(len(regions))
        ]
        scores, boxes = (np.concatenate(one) for one in zip(*parts, strict=True))
        return scores, boxes

    def masks(self, maps: Sequence[Floats], regions: Floats, classes: NDArray[np.intp]) -> Floats:
        """Soft masks 0 … 1 of the classes (N) inside regions (N, 4) of the picture, shape (N, 28, 28)."""
        given = dict(zip(MAPS, maps, strict=True))
        parts = [
            self._piece(MASKS_FILE).run(
                ["masks"],
                {**given, "regions": _numbered(regions[part]), "classes": classes[part].astype(np.int64)},
            )[0]
            for part in _parts(len(regions))
        ]
        return np.concatenate(parts)

    def _piece(self, file: str) -> Any:
        opened = self._sessions.get(file)
        if opened is None:
            opened = self._sessions[file] = session(self.bundle, self._device, self._threads, file=file)
        return opened  # another thread may have closed the member by now; what is being asked stays open


def _shift(given: Any) -> tuple[float, float]:
    try:
        x, y = map(float, given)
    except (TypeError, ValueError):
        x = y = np.nan
    if not (np.isfinite(x) and np.isfinite(y)):
        raise SettingError(f"mirror_shift_px is two numbers, along x and y; got {given}")
    return x, y


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + _REGIONS) for start in range(0, max(count, 1), _REGIONS))


def _numbered(regions: Floats) -> Floats:
    """Regions (N, 4) with the number of their picture, 0, in front."""
    return np.concatenate([np.zeros((len(regions), 1)), regions], axis=1).astype(np.float32)


def shown(pixels: Pixels, turn: View, settings: SegmentInput, shift_px: tuple[float, float]) -> tuple[Pixels, View]:
    """The picture of an image (H, W, 3) after a flip or turn, and the view from the image to the network's coordinates.

    These are px of the picture moved by `shift_px`: a network that sees things a little beside where they are is
    asked there, and what it answers is moved back.
    """
    canvas, placed = picture(turn.pixels(pixels), settings)
    moved = View(placed.wh, placed.wh, np.array([[1, 0, shift_px[0]], [0, 1, shift_px[1]]], np.float64))
    return canvas, turn.then(placed).then(moved)


def turned_back(patches: Floats, view: View) -> Floats:
    """Patches (N, P, P) of a view's picture as they stand in its source."""
    linear = view.matrix[:, :2]
    if linear[0, 0] == 0:  # rows and columns have changed places; the picture's x is the source's y
        patches = patches.swapaxes(1, 2)
        linear = linear[::-1]
    if linear[0, 0] < 0:
        patches = patches[:, :, ::-1]
    if linear[1, 1] < 0:
        patches = patches[:, ::-1]
    return patches
