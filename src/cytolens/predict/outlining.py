"""Map networks at work: fields of any size read window by window, and cells outlined in their boxes.

A field is covered by a grid of tiles. Each tile is shown to the network with a margin of its surroundings, of which the
maps are dropped, and is kept until no window needs it any more; so the maps are one and the same for all windows that
read them, and a cell at the border of two windows is found by exactly one of them (see `tasks.outlines`). Memory grows
with the width of the field and not with its area.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolens.bundle import Bundle
from cytolens.formats.run_lengths import code_of_positions, positions_of_part
from cytolens.labels import LabelSet
from cytolens.predict import tta
from cytolens.predict.session import session
from cytolens.prepare.stain import FieldStain
from cytolens.problems import BundleError
from cytolens.tasks import classify, outlines
from cytolens.tasks.outlines import REACH_PX, Levels, OutlineInput, OutlineOutput
from cytolens.tasks.segment import Outlines
from cytolens.views import View

Pixels = NDArray[np.uint8]
Maps = NDArray[np.float16]
Read = Callable[[int, int, int, int], Pixels]  # x, y, width, height → that part of the image

_WINDOW_TILES = 2  # tiles per side of a window that is read at once
_SQUARES, _SQUARE_PX = 8, 128  # what is looked at of a large field to know its brightness: so many squares per side


def shows(bundle: Bundle) -> str | None:
    """What a bundle's map network is shown: "field" or "cell"; None: it has none."""
    given = bundle.info.outline_input
    return None if bundle.info.task != "segment" or given is None else given.shows


class FieldMaps:
    """A map network of fields.

    Raises:
        BundleError: the bundle has none.
        SettingError: the device is not here.
    """

    def __init__(self, bundle: Bundle, choice: tta.Tta = "bundle", device: str = "cpu", threads: int = 1) -> None:
        if shows(bundle) != "field":
            raise BundleError(f'"{bundle.name}" has no network that outlines the cells of fields')
        self.labels = bundle.labels
        self.given = bundle.info.outline_input or OutlineInput()
        self.output = bundle.info.outline_output or OutlineOutput()
        self._session: Any = session(bundle, device, threads)
        self._tells_types = "types" in [one.name for one in self._session.get_outputs()]
        self._views = tta.count(choice, self.output.views)

    def of_picture(self, pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The maps (M, H, W) of a picture with sides of whole strides, mean over views; logits of types (T,)."""
        views = tta.symmetries((pixels.shape[1], pixels.shape[0]), self._views)
        total, told = np.zeros((len(outlines.FIELD_MAPS), *pixels.shape[:2]), np.float32), np.zeros(1, np.float32)
        for view in views:
            shown = pixels if view is views[0] else view.pixels(pixels)
            outputs = ["maps", "types"] if self._tells_types else ["maps"]
            maps, *types = self._session.run(outputs, {"images": np.ascontiguousarray(shown)[None]})
            total += turned_back(maps[0], view)
            told = told + types[0][0] if types else told
        return (total / len(views)).astype(np.float32), (told / len(views)).astype(np.float32)


def turned_back(maps: NDArray[np.float32], view: View) -> NDArray[np.float32]:
    """The maps of a view's picture as maps of its source: turned, and the ways to the middle with them.

    Args:
        maps: `outlines.FIELD_MAPS`, shape (4, h, w).
        view: a flip or quarter turn.
    """
    linear = view.matrix[:, :2]
    placed = maps
    if linear[0, 0] == 0:  # a picture turned by quarters: rows were columns
        placed = placed.transpose(0, 2, 1)
    # What is left is a flip of either axis of the source: along x where x of the source falls in the picture.
    along_x, along_y = linear.sum(axis=0)
    placed = placed[:, :: int(along_y), :: int(along_x)]
    ways = np.stack([placed[3], placed[2]], axis=-1) @ linear  # the inverse of such a matrix is its transpose
    return np.stack([placed[0], placed[1], ways[..., 1], ways[..., 0]]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Tile:
    maps: Maps
    types: NDArray[np.float32]


class _Grid:
    """The tiles of one field, made when they are asked for."""

    def __init__(self, network: FieldMaps, read: Read, size_wh: tuple[int, int], between: Levels | None) -> None:
        self.network, self.read, self.size_wh, self.between = network, read, size_wh, between
        given = network.given
        whole = max(size_wh) <= given.whole_px
        self.side = max(size_wh) if whole else given.tile_px
        self.margin = given.margin_px
        self._tiles: dict[tuple[int, int], _Tile] = {}

    @property
    def counts(self) -> tuple[int, int]:
        """Tiles across and down."""
        return -(-self.size_wh[0] // self.side), -(-self.size_wh[1] // self.side)

    def tile(self, across: int, down: int) -> _Tile:
        """One tile."""
        if (across, down) not in self._tiles:
            self._tiles[across, down] = self._make(across, down)
        return self._tiles[across, down]

    def _make(self, across: int, down: int) -> _Tile:
        import cv2

        x, y = across * self.side, down * self.side
        width, height = min(self.side, self.size_wh[0] - x), min(self.side, self.size_wh[1] - y)
        left, top = min(self.margin, x), min(self.margin, y)
        right = min(self.margin, self.size_wh[0] - x - width)
        bottom = min(self.margin, self.size_wh[1] - y - height)
        pixels = self.read(x - left, y - top, left + width + right, top + height + bottom)
        if self.between is not None:
            pixels = outlines.levelled(pixels, self.between)
        # A border of the field goes on as its mirror image, as in training.
        below, beside = (-side % outlines.MULTIPLE for side in pixels.shape[:2])
        shown = cv2.copyMakeBorder(pixels, 0, below, 0, beside, cv2.BORDER_REFLECT_101)
        maps, types = self.network.of_picture(np.asarray(shown, np.uint8))
        return _Tile(maps[:, top : top + height, left : left + width].astype(np.float16), types)

    def part(self, x: int, y: int, width: int, height: int) -> NDArray[np.float32]:
        """The maps of a rectangle of the field, shape (M, height, width)."""
        maps = np.zeros((len(outlines.FIELD_MAPS), height, width), np.float32)
        for down in range(y // self.side, (y + height - 1) // self.side + 1):
            for across in range(x // self.side, (x + width - 1) // self.side + 1):
                tile = self.tile(across, down).maps
                left, top = across * self.side, down * self.side
                x0, y0 = max(x, left), max(y, top)
                x1, y1 = min(x + width, left + tile.shape[2]), min(y + height, top + tile.shape[1])
                maps[:, y0 - y : y1 - y, x0 - x : x1 - x] = tile[:, y0 - top : y1 - top, x0 - left : x1 - left]
        return maps

    def forget_above(self, y: int) -> None:
        """Drop the tiles that end above a row of the field."""
        self._tiles = {place: tile for place, tile in self._tiles.items() if (place[1] + 1) * self.side > y}


class FieldOutliner:
    """Outlines the cells of fields; safe to call from several threads.

    Raises:
        BundleError, SettingError: as `FieldMaps`.
    """

    def __init__(self, bundle: Bundle, choice: tta.Tta = "bundle", device: str = "cpu", threads: int = 1) -> None:
        self.network = FieldMaps(bundle, choice, device, threads)
        self.labels: LabelSet = self.network.labels

    def look(self, pixels: Pixels) -> Outlines:
        """The cells of a field in memory, uint8 RGB (H, W, 3)."""
        size_wh = (pixels.shape[1], pixels.shape[0])
        return self.look_through(lambda x, y, w, h: pixels[y : y + h, x : x + w], size_wh, pixels)

    def look_through(self, read: Read, size_wh: tuple[int, int], sample: Pixels) -> Outlines:
        """The cells of a field of any size, of which parts are read as they are needed.

        Args:
            read: gives a part of the field.
            size_wh: of the field.
            sample: pixels of the field as they are, (h, w, 3); its levels are measured there.
        """
        between = outlines.levels(sample) if self.network.given.levels else None
        grid = _Grid(self.network, read, size_wh, between)
        kind = self._type(grid)
        limits = self.network.output.reading_of(self.labels.leaves[kind] if len(self.labels.leaves) else None)
        found, places = [], []
        for x, y, width, height in _windows(size_wh, _WINDOW_TILES * grid.side):
            left, top = max(0, x - REACH_PX), max(0, y - REACH_PX)
            right, bottom = min(size_wh[0], x + width + REACH_PX), min(size_wh[1], y + height + REACH_PX)
            if x == 0:
                grid.forget_above(top)
            for cell in outlines.read(grid.part(left, top, right - left, bottom - top), limits):
                middle_x, middle_y = cell.middle[0] + left, cell.middle[1] + top
                if _within(middle_x, x, width, size_wh[0]) and _within(middle_y, y, height, size_wh[1]):
                    found.append(
                        (
                            cell.score,
                            code_of_positions(
                                positions_of_part(cell.mask, cell.x + left, cell.y + top, size_wh), size_wh
                            ),
                        )
                    )
                    places.append((cell.x + left, cell.y + top, *cell.mask.shape[::-1]))
        order = np.argsort([-score for score, _ in found], kind="stable")
        corners = np.array(places, np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        scores = np.array([score for score, _ in found], np.float32)
        return Outlines(
            boxes=corners[order],
            classes=np.full(len(found), kind, np.intp),
            scores=scores[order],
            masks=[found[row][1] for row in order],
            counted=scores[order] >= limits.score_min,
        )

    def _type(self, grid: _Grid) -> int:
        """The type of a field, as index among the leaves: what up to five of its tiles say together."""
        across, down = grid.counts
        at = {(across // 2, down // 2), (0, 0), (across - 1, 0), (0, down - 1), (across - 1, down - 1)}
        # The lowest rows would be made again when their turn comes, so a tall field is told by what stays in memory.
        told = [grid.tile(*place).types for place in sorted(at) if place[1] <= 1 or down <= 2 * _WINDOW_TILES]
        summed = np.sum(told, axis=0)
        return int(summed.argmax()) if summed.size else 0


def sampled_squares(read: Read, size_wh: tuple[int, int]) -> Pixels:
    """Squares from all over a field side by side, uint8 RGB (h, w, 3), in which its levels can be measured.

    An overview would not do: where a field is shrunk, small bright cells are mixed with the dark between them.
    """
    width, height = (min(_SQUARE_PX, side) for side in size_wh)
    columns = np.linspace(0, size_wh[0] - width, _SQUARES).astype(int).tolist()
    rows = np.linspace(0, size_wh[1] - height, _SQUARES).astype(int).tolist()
    return np.concatenate([np.concatenate([read(x, y, width, height) for x in columns], axis=1) for y in rows])


def _windows(size_wh: tuple[int, int], side: int) -> Iterator[tuple[int, int, int, int]]:
    """x, y, width, height of windows that cover a field without overlap, row by row."""
    for y in range(0, size_wh[1], side):
        for x in range(0, size_wh[0], side):
            yield x, y, min(side, size_wh[0] - x), min(side, size_wh[1] - y)


def _within(place: float, start: int, length: int, whole: int) -> bool:
    """Whether a middle lies in a window along one axis; those beyond the field's border belong to the last window."""
    after_start = place >= start or start == 0
    return after_start and (place < start + length or start + length >= whole)


class CellOutliner:
    """Outlines the cells of some kind, and their parts, in the boxes where they were found.

    Raises:
        BundleError: the bundle has no such network.
        SettingError: the device is not here.
    """

    def __init__(self, bundle: Bundle, choice: tta.Tta = "bundle", device: str = "cpu") -> None:
        if shows(bundle) != "cell":
            raise BundleError(f'"{bundle.name}" has no network that outlines single cells')
        self.labels = bundle.labels
        self.given = (bundle.info.outline_input or OutlineInput()).cell
        self.output = bundle.info.outline_output or OutlineOutput()
        self._session: Any = session(bundle, device)
        self._views = tta.count(choice, self.output.views)

    @property
    def whole(self) -> str:
        """The label of the cells that it outlines."""
        return self.output.of

    @property
    def parts(self) -> tuple[str, ...]:
        """The labels of their parts."""
        return tuple(name for name in self.output.parts if name != self.whole)

    def look(
        self, pixels: Pixels, boxes: NDArray[np.float32], field: FieldStain | None = None
    ) -> list[dict[str, bytes]]:
        """The masks of each cell: label → COCO's run-length code of the field; what is empty is left out.

        Args:
            pixels: uint8 RGB, shape (H, W, 3).
            boxes: of the cells, shape (N, 4).
            field: the stain of the field; None: measured here.
        """
        shown = classify.pictures(pixels, boxes, self.given, field)
        said = self._maps(shown)
        size_wh = (pixels.shape[1], pixels.shape[0])
        return [self._cell(maps, corners, size_wh) for maps, corners in zip(said, boxes, strict=True)]

    def _maps(self, shown: Pixels) -> NDArray[np.float32]:
        total = np.zeros((len(shown), len(self.output.parts), *shown.shape[1:3]), np.float32)
        side = shown.shape[1]
        views = tta.symmetries((side, side), self._views)
        for view in views:
            turned = shown if view is views[0] else np.stack([view.pixels(one) for one in shown])
            for start in range(0, len(shown), 16):
                maps = self._session.run(["maps"], {"images": turned[start : start + 16]})[0]
                total[start : start + 16] += np.stack([_straight(one, view) for one in maps])
        return (total / len(views)).astype(np.float32)

    def _cell(
        self, maps: NDArray[np.float32], corners: NDArray[np.float32], size_wh: tuple[int, int]
    ) -> dict[str, bytes]:
        import cv2

        view = classify.crop_view(corners, size_wh, self.given)
        # Only the part of the field that the crop shows is touched: cells of large fields stay cheap.
        shown = view.back_boxes([0, 0, *map(float, view.wh)])[0]
        left, top = np.clip(np.floor(shown[:2]), 0, np.array(size_wh) - 1).astype(int).tolist()
        right, bottom = np.clip(np.ceil(shown[2:]), [left + 1, top + 1], size_wh).astype(int).tolist()
        back = view.inverse_matrix.copy()
        back[:, 2] += back[:, :2] @ [0.5, 0.5] - 0.5 - [left, top]
        said: dict[str, NDArray[np.bool_]] = {}
        for map_, (name, limit) in zip(maps, self.output.parts.items(), strict=True):
            placed = cv2.warpAffine(map_, back, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
            said[name] = np.asarray(placed >= limit)
        whole = said[self.whole] = _central(said[self.whole], corners - np.array([left, top, left, top], np.float32))
        inner = {name: mask & whole for name, mask in said.items()}
        return {
            name: code_of_positions(positions_of_part(mask, left, top, size_wh), size_wh)
            for name, mask in inner.items()
            if mask.any()
        }


def _straight(maps: NDArray[np.float32], view: View) -> NDArray[np.float32]:
    """The maps (M, h, w) of a flipped or turned picture as maps of what it was made from."""
    linear = view.matrix[:, :2]
    placed = maps.transpose(0, 2, 1) if linear[0, 0] == 0 else maps
    along_x, along_y = linear.sum(axis=0)
    return placed[:, :: int(along_y), :: int(along_x)]


def _central(mask: NDArray[np.bool_], corners: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Of the parts of a mask (H, W) that with the most pixels inside the box, its holes filled; none: nothing."""
    import cv2
    from scipy import ndimage

    count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    if count < 2:
        return mask
    left, top = np.maximum(np.floor(corners[:2]), 0).astype(int)
    right, bottom = np.ceil(corners[2:]).astype(int)
    inside = np.bincount(parts[top:bottom, left:right].ravel(), minlength=count)[1:]
    if not inside.any():
        return np.zeros_like(mask)
    filled = ndimage.binary_fill_holes(parts == 1 + int(inside.argmax()))
    return np.asarray(filled, bool)
