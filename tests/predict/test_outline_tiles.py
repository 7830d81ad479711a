"""Fields larger than a tile by region networks: every cell once, none cut at a seam, as in a single look.

The double of a network finds what a picture holds, by its grey levels: all pixels of one level are one cell. What a
tile's border cuts, it finds as far as it sees it, and is surer of it than of whole cells.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens import masks
from cytolens.labels import LabelSet
from cytolens.predict import outliners
from cytolens.predict.outline_tiles import depths, joined
from cytolens.predict.outliners import RegionOutliner
from cytolens.predict.tiles import Window, windows
from cytolens.tasks.mask_cleaning import cleaned
from cytolens.tasks.region_proposals import anchors
from cytolens.tasks.segment import MaskCleaning, Outlines, SegmentOutput, SoftOutlines
from tests.predict.region_doubles import KINDS, LAYOUT, connect, outlining

TILE_PX = 256  # tiles overlap by 64 px at least
Array = NDArray[Any]
Place = tuple[float, float, float, float]  # x, y and half axes of an ellipse


class Finder:
    """The three pieces of a network that finds cells by their grey level; level 0 is no cell.

    Args:
        kind_of: level → class; 0 where not named.
        sees_parts: whether cells that end at a border of its picture are found, too.
    """

    def __init__(self, kind_of: Mapping[int, int] | None = None, sees_parts: bool = True) -> None:
        self.kind_of, self.sees_parts = dict(kind_of or {}), sees_parts
        self.sides: set[tuple[int, ...]] = set()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """As the session of the piece that these outputs are of."""
        if "images" in feeds:
            return self._trunk(feeds["images"][0, :, :, 0])
        levels, regions = feeds["map_0"][0, 0].astype(np.uint8), feeds["regions"][:, 1:]
        cells = self._cells(levels)
        bounds = np.array([corners for _, corners in cells]).reshape(-1, 4)
        found = [int(np.abs(bounds - corners).sum(axis=1).argmin()) for corners in regions]
        if outputs[-1] == "boxes":
            scores = np.full((len(regions), len(KINDS)), 0.01, np.float32)
            for row, (level, corners) in enumerate(cells[number] for number in found):
                scores[row, self.kind_of.get(level, 0)] = 0.6 + level / 1000 + 0.1 * _cut(corners, levels.shape)
            return [scores, bounds[found].astype(np.float32)]
        patches = [_patch(levels, *cells[number]) for number in found]
        return [np.array(patches, np.float32).reshape(-1, 28, 28)]

    def _cells(self, levels: Array) -> list[tuple[int, Array]]:
        """Each level in a picture, with its bounds."""
        cells = []
        for level in (np.flatnonzero(np.bincount(levels.ravel())[1:]) + 1).tolist():
            own = levels == level
            rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
            bounds = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)
            if self.sees_parts or not _cut(bounds, levels.shape):
                cells.append((level, bounds))
        return cells

    def _trunk(self, levels: Array) -> list[Array]:
        self.sides.add(levels.shape)
        levels = np.where(levels == 114, 0, levels)  # padding
        placed = anchors(LAYOUT, levels.shape[::-1])
        objectness, deltas = np.full(len(placed), -20, np.float32), np.zeros((len(placed), 4), np.float32)
        middles, sizes = box.centres(placed), box.sizes_wh(placed)
        for _, bounds in self._cells(levels):
            middle, size = box.centres(bounds)[0], box.sizes_wh(bounds)[0]
            off = np.abs(middles - middle).sum(axis=1) + np.abs(sizes - size).sum(axis=1) + 1e9 * (objectness > 0)
            best = int(off.argmin())
            deltas[best] = [*((middle - middles[best]) / sizes[best]), *np.log(size / sizes[best])]
            objectness[best] = 20
        maps = [levels[None, None].astype(np.float32), *[np.zeros((1, 1, 1, 1), np.float32)] * 3]
        return [*maps, objectness[None], deltas[None]]


def _cut(bounds: Array, shape: tuple[int, ...]) -> bool:
    """Whether bounds end at a border of a tile; what ends at a border of the field is not told apart."""
    return bool((bounds[:2] <= 0).any() or bounds[2] >= shape[1] or bounds[3] >= shape[0])


def _patch(levels: Array, level: int, corners: Array) -> Array:
    """How much of each bin of a box is of a level."""
    x_min, y_min, x_max, y_max = corners.astype(int)
    own = levels[y_min:y_max, x_min:x_max] == level
    return _shares(y_max - y_min) @ own @ _shares(x_max - x_min).T


def _shares(pixels: int) -> Array:
    """What share of each of 28 bins lies in each pixel of a side, shape (28, pixels)."""
    edges, steps = np.arange(29)[:, None] * pixels / 28, np.arange(pixels)
    until = np.clip(edges - steps, 0, 1)
    return (until[1:] - until[:-1]) * 28 / pixels


def field(size_wh: tuple[int, int], places: Sequence[Place]) -> Array:
    """A picture of ellipses with levels from 1 on, the later in front; 114, the grey of padding, is left out."""
    assert len(places) < 250
    levels = np.zeros(size_wh[::-1], np.uint8)
    for number, (x, y, a, b) in enumerate(places, 1):
        down = np.arange(max(0, int(y - b)), min(size_wh[1], int(y + b) + 2))
        rows, columns = np.meshgrid(down, np.arange(max(0, int(x - a)), min(size_wh[0], int(x + a) + 2)))
        inside = ((columns + 0.5 - x) / a) ** 2 + ((rows + 0.5 - y) / b) ** 2 <= 1
        levels[rows[inside], columns[inside]] = number if number < 114 else number + 1
    return np.repeat(levels[:, :, None], 3, axis=2)


def outliner(patch: pytest.MonkeyPatch, finder: Finder, **output: Any) -> RegionOutliner:
    """An outliner by the double, with tiles of `TILE_PX`."""
    patch.setattr(outliners, "_TILE_PX", TILE_PX)
    connect(patch, finder=finder)  # type: ignore[arg-type]
    bundle = outlining("finder")
    given = {"proposal_floor": 0.5, "proposal_nms_iou": 0.99, "box_nms_iou": 0.99, **output}
    info = bundle.info.model_copy(update={"segment_output": SegmentOutput(**given)})
    object.__setattr__(bundle, "info", info)
    return RegionOutliner(bundle, [bundle], "bundle", "cpu")


def looked_at_once(one: RegionOutliner, pixels: Array) -> Outlines:
    return cleaned(one.soft(pixels), one.labels, one.output)


def truth_of(pixels: Array) -> list[bytes]:
    return [masks.encode(pixels[:, :, 0] == level) for level in np.unique(pixels)[1:].tolist()]


def by_place(found: Outlines) -> list[tuple[bytes, int]]:
    """Masks and classes, whatever their order."""
    return sorted(zip(found.masks, found.classes.tolist(), strict=True))


def assert_each_once(found: Outlines, pixels: Array, least: float) -> None:
    """As many cells as there are, one for each, and no pixel held twice."""
    truth, size_hw = truth_of(pixels), (pixels.shape[0], pixels.shape[1])
    assert len(found.masks) == len(truth)
    table = masks.iou(truth, found.masks, size_hw)
    assert table.max(axis=1).min() > least
    assert sorted(table.argmax(axis=1).tolist()) == list(range(len(truth)))
    assert np.sum([masks.decode(code, size_hw) for code in found.masks], axis=0).max() == 1
    np.testing.assert_array_equal(found.boxes, [masks.bounds(code, size_hw) for code in found.masks])
    assert (np.diff(found.scores) <= 0).all()


def test_a_field_of_many_tiles_is_read_as_in_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    cells = [
        (x + random.uniform(-6, 6), y + random.uniform(-6, 6), *random.uniform(4, 24, 2))
        for x in range(20, 820, 55)
        for y in range(20, 560, 55)
    ]
    pixels = field((830, 570), cells)  # some reach beyond the field, many touch a neighbour
    finder = Finder({level: level % 3 for level in range(255)})
    one = outliner(monkeypatch, finder)
    found = one.look(pixels)
    assert finder.sides == {(256, 256)}
    assert len(windows((830, 570), TILE_PX)) == 12
    assert_each_once(found, pixels, 0.8)
    assert by_place(found) == by_place(looked_at_once(one, pixels))


def test_no_cell_on_a_seam_is_doubled_or_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells on, and beside, each border of the tiles of a field, and on their corners."""
    one = outliner(monkeypatch, Finder())
    size_wh = (600, 448)
    borders_x = {edge for tile in windows(size_wh, TILE_PX) for edge in (tile.x, tile.x + tile.width)} - {0, 600}
    borders_y = {edge for tile in windows(size_wh, TILE_PX) for edge in (tile.y, tile.y + tile.height)} - {0, 448}
    for off in (-20, -9.5, 0, 3, 19):
        cells = [(x + off, y + off, 22.0, 15.0) for x in sorted(borders_x) for y in sorted(borders_y)]
        cells += [(x + off, 40.0, 13.0, 20.0) for x in sorted(borders_x)]
        pixels = field(size_wh, cells)
        found = one.look(pixels)
        assert_each_once(found, pixels, 0.9)
        assert by_place(found) == by_place(looked_at_once(one, pixels))


def test_cells_whose_boxes_nearly_agree_stay_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thin cells that cross: their boxes are nearly the same, their masks are not."""
    pixels = np.zeros((300, 600, 3), np.uint8)
    for x in (100, 232, 400):
        steps = np.arange(48)
        for width in range(5):
            pixels[100 + steps, x + steps + width] = 2 * x // 10
            pixels[100 + steps[:42], x + 51 - steps[:42] - width] = 2 * x // 10 + 1
    one = outliner(monkeypatch, Finder(), cleaning=MaskCleaning(parts="all"))
    found = one.look(pixels)
    assert len(found.masks) == 6
    assert by_place(found) == by_place(looked_at_once(one, pixels))


@pytest.mark.parametrize(
    "cell", [(300, 200, 75, 40), (330, 230, 110, 110), (300, 200, 40, 150), (420, 330, 260, 240), (300, 224, 299, 30)]
)
def test_a_cell_larger_than_the_overlap_is_made_of_its_pieces(monkeypatch: pytest.MonkeyPatch, cell: Place) -> None:
    pixels = field((840, 660), [cell, (30, 630, 20, 20), (800, 20, 15, 10)])
    found = outliner(monkeypatch, Finder()).look(pixels)
    assert_each_once(found, pixels, 0.85)


def test_pieces_of_two_cells_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side, both longer than the overlap, so that no tile has either whole."""
    pixels = field((600, 250), [(300, 80, 140, 30), (300, 145, 140, 30)])
    assert_each_once(outliner(monkeypatch, Finder()).look(pixels), pixels, 0.9)


def test_the_type_of_a_field_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the left tiles most cells are of one kind, in the whole of another; each cell speaks once."""
    cells = [(float(x), float(y), 12.0, 12.0) for x in range(30, 600, 60) for y in (40, 90, 140, 190)]
    left = {level: 1 if level <= 16 else 2 for level in range(255)}
    limits = {KINDS[1]: MaskCleaning(mask_threshold=0.9), KINDS[2]: MaskCleaning(mask_threshold=0.2)}
    one = outliner(monkeypatch, Finder(left), one_label=True, per_label=limits)
    pixels = field((620, 230), cells)
    found = one.look(pixels)
    assert set(found.classes.tolist()) == {2}
    assert by_place(found) == by_place(looked_at_once(one, pixels))


def test_a_cell_that_only_its_piece_shows_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that finds nothing at borders loses what no tile has whole, and nothing else."""
    pixels = field((600, 250), [(300, 80, 140, 30), (208, 200, 20, 20)])
    found = outliner(monkeypatch, Finder(sees_parts=False)).look(pixels)
    assert len(found.masks) == 1
    assert found.boxes[0].tolist() == [188, 180, 228, 220]


def test_a_field_of_no_cells_and_one_of_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    one = outliner(monkeypatch, Finder())
    for size_wh in ((300, 40), (700, 700), (1, 600)):
        found = one.look(np.zeros((size_wh[1], size_wh[0], 3), np.uint8))
        assert found.boxes.shape == (0, 4)
        assert (found.masks, len(found.scores), len(found.counted), len(found.classes)) == ([], 0, 0, 0)
    pixels = np.zeros((300, 500, 3), np.uint8)
    pixels[255, 200], pixels[0, 0], pixels[299, 255], pixels[100, 256] = 7, 8, 9, 10
    found = one.look(pixels)
    assert sorted(found.boxes[:, :2].astype(int).tolist()) == [[0, 0], [200, 255], [255, 299], [256, 100]]
    assert {masks.area(code) for code in found.masks} == {1}


def test_a_count_that_stops_at_the_limit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [(30.0 + 45 * n, 30.0, 9.0, 9.0) for n in range(5)]
    alone, many = field((250, 60), cells), field((600, 60), cells)
    one = outliner(monkeypatch, Finder(), most=3)
    (note,) = one.look(alone).notes
    assert note == "3 cells found, which is as many as are kept (output.most): some may be missing"
    (note,) = one.look(many).notes
    assert note.startswith("3 cells found in 1 of 3 tiles, ")
    assert outliner(monkeypatch, Finder(), most=6).look(alone).notes == ()


def test_depths_are_counted_from_inner_borders_only() -> None:
    boxes = np.array([[10, 20, 30, 40]], np.float32)
    assert depths(boxes, Window(0, 0, 100, 100), (100, 100)).tolist() == [np.inf]
    assert depths(boxes, Window(0, 0, 50, 100), (100, 100)).tolist() == [20]
    assert depths(boxes, Window(0, 15, 50, 85), (100, 100)).tolist() == [5]
    assert depths(np.zeros((0, 4), np.float32), Window(0, 0, 50, 100), (100, 100)).shape == (0,)


def test_a_field_takes_no_array_of_its_size_per_cell() -> None:
    wide, high, step = 6000, 4000, 200
    middles = np.array([(x, y) for x in range(130, wide, step) for y in range(130, high, step)], np.float32)
    boxes = np.concatenate([middles - 20, middles + 20], axis=1)
    parts = []
    for window in windows((wide, high), 1024):
        inside = boxes[depths(boxes, window, (wide, high)) >= 0]
        patches = np.full((len(inside), 28, 28), 255, np.uint8)
        scores = np.full(len(inside), 0.9, np.float32)
        told = np.tile(np.array([0.9, 0, 0], np.float32), (len(inside), 1))
        said = SoftOutlines((1024, 1024), inside - window.shift, np.zeros(len(inside), np.intp), scores, told, patches)
        parts.append((window, said))
    tracemalloc.start()
    found = joined(parts, (wide, high), LabelSet.of(KINDS), SegmentOutput())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(said.boxes) for _, said in parts) > 1.3 * len(boxes)
    assert len(found.masks) == len(boxes)
    assert peak < 2 * wide * high  # one array of float32 takes twice as much
