"""Many images: what is found on disk, what cannot be read, and that neither order nor threads matter."""

from __future__ import annotations

import hashlib
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tifffile
from PIL import Image

import cytolens
from cytolens import boxes as box
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats import regions
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.predict import fields
from cytolens.predict.field_blocks import joined_blocks
from cytolens.predict.field_cells import FieldCells
from cytolens.predict.fields import Prediction, image_rows, predict_images
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.predict.tiles import Window
from cytolens.problems import DatasetError, ImageError, SettingError
from tests.predict.doubles import FOUND, ColourEyes, Pixels, connect, detecting, painted, scattered

Disc = tuple[str, float, float, float]
DISCS: list[Disc] = [("leukocyte", 60, 50, 20), ("erythrocyte", 150, 40, 14), ("platelet", 100, 110, 6)]
SIZE_WH = (208, 160)


@pytest.fixture
def eyes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Predictor]:
    """A predictor that finds painted discs."""

    def make(session: Any = None, settings: PredictSettings | None = None, **bundle: Any) -> Predictor:
        connect(monkeypatch, eyes=session or ColourEyes())
        return Predictor(detecting(tmp_path, **bundle), settings or PredictSettings(jobs=2))

    return make


def save(path: Path, pixels: Pixels | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(painted(SIZE_WH, DISCS) if pixels is None else pixels).save(path, **options)
    return path


def ids(sources: Sequence[str | Path]) -> list[str]:
    return [row["image_id"] for row in image_rows(sources)]


# -- which images ---------------------------------------------------------------------------------


def test_a_folder_names_its_images_by_their_place_in_it(tmp_path: Path) -> None:
    for name in ("b/2.png", "a.png", "b/ü 細胞.png", ".hidden/x.png", "b/notes.txt"):
        save(tmp_path / "in" / name, format="png")
    (tmp_path / "in" / "folder.png").mkdir()
    assert ids([tmp_path / "in"]) == ["a.png", "b/2.png", "b/ü 細胞.png"]
    rows = image_rows([tmp_path / "in"])
    assert [Path(row["path"]).is_absolute() and Path(row["path"]).is_file() for row in rows] == [True] * 3


def test_patterns_and_files_are_named_by_the_file(tmp_path: Path) -> None:
    for name in ("s1/1.png", "s1/2.png", "s2/3.jpg"):
        save(tmp_path / name)
    assert ids([str(tmp_path / "**" / "*.png")]) == ["1.png", "2.png"]
    assert ids([tmp_path / "s2" / "3.jpg", tmp_path / "s1" / "1.png"]) == ["3.jpg", "1.png"]


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("monday/1.png", "tuesday/1.png", "tuesday/2.png", "old/monday/1.png"):
        save(tmp_path / name)
    got = ids([tmp_path / "monday", tmp_path / "tuesday"])
    assert got == ["monday/1.png", "tuesday/1.png", "2.png"]
    twice = ids([tmp_path / "monday", tmp_path / "old" / "monday"])
    assert twice == ["monday/1.png", "monday/1.png#2"]


def test_a_file_that_is_named_twice_is_looked_at_once(tmp_path: Path) -> None:
    path = save(tmp_path / "in" / "1.png")
    assert ids([tmp_path / "in", path, str(tmp_path / "in" / "*.png")]) == ["1.png"]


def test_a_source_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for source in (tmp_path / "in", tmp_path / "nothing.png", str(tmp_path / "*.jpg")):
        with pytest.raises(DatasetError, match="names no image"):
            image_rows([source])


def dataset(folder: Path, rows: list[dict[str, Any]]) -> Path:
    labels = LabelSet.of(FOUND)
    Dataset(Images.of(rows), Cells.empty(labels), "smears").write(folder)
    return folder


def test_a_dataset_brings_what_it_knows_of_its_images(tmp_path: Path, eyes: Callable[..., Predictor]) -> None:
    path = save(tmp_path / "images" / "a.png")
    rows = [
        {"image_id": "slide 1/a", "path": str(path), "group": "patient 1", "um_per_px": 0.25, "split": "test"},
        {"image_id": "slide 1/b", "path": None, "group": "patient 1"},
    ]
    prediction = predict_images(eyes(), image_rows([dataset(tmp_path / "data", rows)]))
    (row,) = prediction.images.rows()
    assert (row["image_id"], row["group"], row["um_per_px"], row["split"]) == ("slide 1/a", "patient 1", 0.25, "test")
    assert (row["width_px"], row["height_px"]) == SIZE_WH
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [(p.kind, p.where) for p in prediction.failed] == [("image-missing", "slide 1/b")]


def test_the_scale_of_a_dataset_reaches_the_tiles(tmp_path: Path, eyes: Callable[..., Predictor]) -> None:
    large = save(tmp_path / "images" / "a.png", painted((1500, 200), []))
    row = {"image_id": "a", "path": str(large), "um_per_px": 7.5 / 30}
    session = ColourEyes()
    predict_images(eyes(session, red_cell_px=60), image_rows([dataset(tmp_path / "data", [row])]))
    assert len(session.shown) == 1 + -(-(1500 - 208) // 156)  # red cells of 30 px of 60: tiles of 208


def test_the_scale_that_a_file_states_reaches_the_tiles(tmp_path: Path, eyes: Callable[..., Predictor]) -> None:
    path = tmp_path / "a.tif"
    scale: dict[str, Any] = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}  # 0.25 µm
    tifffile.imwrite(path, painted((1500, 200), []), photometric="rgb", **scale)
    session = ColourEyes()
    prediction = predict_images(eyes(session, red_cell_px=60), image_rows([path]))
    assert len(session.shown) == 1 + -(-(1500 - 208) // 156)  # red cells of 30 px of 60: tiles of 208
    assert prediction.images.frame["um_per_px"].to_list() == [0.25]
    assert [problem.what for problem in prediction.problems] == ["a pixel measures 0.25 µm, as the file says."]
    row = {"image_id": "a", "path": str(path), "um_per_px": 0.125}  # what a dataset knows comes first
    known = predict_images(eyes(red_cell_px=60), image_rows([dataset(tmp_path / "data", [row])]))
    assert known.images.frame["um_per_px"].to_list() == [0.125]
    assert not known.problems


# -- what is found --------------------------------------------------------------------------------


def test_cells_know_their_image_and_bundle(tmp_path: Path, eyes: Callable[..., Predictor]) -> None:
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.png", painted(SIZE_WH, []))
    save(tmp_path / "in" / "c.png", painted(SIZE_WH, DISCS[:1]))
    told: list[tuple[int, int]] = []
    prediction = predict_images(eyes(), image_rows([tmp_path / "in"]), lambda done, total: told.append((done, total)))
    assert prediction.images.ids == ["a.png", "b.png", "c.png"]
    assert prediction.cells.frame["image_id"].to_list() == ["a.png"] * 3 + ["c.png"]
    assert sorted(str(n) for n in prediction.cells.of_image("a.png").label_names()) == sorted(FOUND)
    assert set(prediction.cells.frame["source"]) == {"bundle:eyes@0123456789ab"}
    assert prediction.cells.labels.names == FOUND
    assert prediction.cells.frame["probabilities"].is_null().all()
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert set(prediction.timings) == {"predict_s", "assemble_s"}
    assert (len(prediction.problems), prediction.remarks, prediction.reasons) == (0, {}, {})


def test_equal_files_have_cells_of_different_ids(tmp_path: Path, eyes: Callable[..., Predictor]) -> None:
    one = save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "copy.png").write_bytes(one.read_bytes())
    cells = predict_images(eyes(), image_rows([tmp_path / "in"])).cells
    assert len(cells) == 6
    assert cells.frame["cell_id"].n_unique() == 6
    again = predict_images(eyes(), image_rows([tmp_path / "in"])).cells
    assert again.frame["cell_id"].to_list() == cells.frame["cell_id"].to_list()
    alone = predict_images(eyes(), image_rows([one])).cells
    assert alone.frame["cell_id"].to_list() == cells.of_image("a.png").frame["cell_id"].to_list()


class UnevenEyes(ColourEyes):
    """Takes longest for the first pictures."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Pixels]) -> Any:
        time.sleep(max(0.0, 0.05 - 0.01 * len(self.shown)))
        return super().run(outputs, feeds)


def test_neither_threads_nor_speed_change_the_result(tmp_path: Path, eyes: Callable[..., Predictor]) -> None:
    for number in range(11):
        kinds = {"leukocyte": (1 + number % 3, 14.0), "erythrocyte": (number % 5, 10.0)}
        save(tmp_path / "in" / f"{number:02}.png", painted(SIZE_WH, scattered(SIZE_WH, kinds, number)))
    (tmp_path / "in" / "05.png").write_bytes(b"")
    rows = image_rows([tmp_path / "in"])
    one, four, many = (
        predict_images(eyes(UnevenEyes(), PredictSettings(jobs=jobs)), [dict(row) for row in rows])
        for jobs in (1, 4, 32)
    )
    assert len(one.cells) == sum(1 + n % 3 + n % 5 for n in range(11) if n != 5)
    for other in (four, many):
        assert other.cells.frame.equals(one.cells.frame)
        assert other.images.frame.equals(one.images.frame)
        assert list(other.problems) == list(one.problems)


def test_images_wait_on_disk_and_not_in_memory(tmp_path: Path, eyes: Callable[..., Predictor]) -> None:
    """However slowly results are taken, only a few images are ahead of them."""
    path = save(tmp_path / "a.png", painted((64, 64), []))
    session, ahead = ColourEyes(), []

    def slow(done: int, total: int) -> None:
        time.sleep(0.02)
        ahead.append(len(session.shown) - done)

    predict_images(eyes(session), [{"image_id": str(number), "path": str(path)} for number in range(30)], slow)
    assert len(ahead) == 30
    assert max(ahead) <= 4


def test_nothing_at_all_is_an_empty_prediction(eyes: Callable[..., Predictor]) -> None:
    prediction = predict_images(eyes(), [])
    assert (len(prediction.images), len(prediction.cells), len(prediction.problems)) == (0, 0, 0)


def test_an_interruption_stops_the_line(tmp_path: Path, eyes: Callable[..., Predictor]) -> None:
    for number in range(40):
        save(tmp_path / "in" / f"{number:02}.png", painted((64, 64), []))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    session = UnevenEyes()
    with pytest.raises(KeyboardInterrupt):
        predict_images(eyes(session), image_rows([tmp_path / "in"]), stop)
    assert len(session.shown) <= 8


# -- what cannot be read --------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG of a few bytes whose header promises 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.fixture
def mixed_bag(tmp_path: Path) -> Path:
    """A folder as they are found in the world."""
    folder = tmp_path / "bag"
    good = painted(SIZE_WH, DISCS)
    save(folder / "00 good.png")
    save(folder / "01 truncated.jpg", quality=95)
    whole = (folder / "01 truncated.jpg").read_bytes()
    (folder / "01 truncated.jpg").write_bytes(whole[: len(whole) // 3])
    (folder / "02 empty.png").write_bytes(b"")
    (folder / "03 text.png").write_text("not a picture")
    tifffile.imwrite(folder / "04 deep.tif", good.astype(np.uint16) * 257, photometric="rgb")
    Image.fromarray(good).convert("RGBA").save(folder / "05 alpha.png")
    Image.fromarray(good).convert("CMYK").save(folder / "06 print.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(good)).save(folder / "07 turned.jpg", quality=95, exif=exif)
    (folder / "08 bomb.png").write_bytes(bomb())
    save(folder / "09 Färbung" / "細胞.png")
    (folder / "10 folder.png").mkdir()
    save(folder / "11 locked.png")
    save(folder / "12 last.png")
    return folder


def lock(patch: pytest.MonkeyPatch, name: str) -> None:
    """A file that may not be read, also where tests run as a user who may read everything."""
    plain = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    patch.setattr(Path, "read_bytes", read_bytes)


def test_bad_images_are_collected_and_the_rest_goes_on(
    mixed_bag: Path, eyes: Callable[..., Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock(monkeypatch, "11 locked.png")
    prediction = predict_images(eyes(), image_rows([mixed_bag]))
    failed = {Path(problem.where).name: problem.kind for problem in prediction.failed}
    assert failed == {
        "01 truncated.jpg": "image-damaged",
        "02 empty.png": "image-empty",
        "03 text.png": "image-not-an-image",
        "08 bomb.png": "image-too-large",
        "11 locked.png": "image-unreadable",
    }
    good = ["00 good.png", "04 deep.tif", "05 alpha.png", "06 print.jpg", "07 turned.jpg"]
    assert prediction.images.ids == [*good, "09 Färbung/細胞.png", "12 last.png"]
    expected = np.array([[x - r, y - r, x + r, y + r] for _, x, y, r in DISCS])
    for image_id in prediction.images.ids:
        row = prediction.images.row(image_id)
        assert (row["width_px"], row["height_px"]) == SIZE_WH
        cells = prediction.cells.of_image(image_id)
        if image_id == "06 print.jpg":  # through another colour space its colours differ
            continue
        table = box.iou(expected, cells.boxes())
        assert table.max(axis=1).min() > 0.75, image_id
        assert [cells.label_names()[i] for i in table.argmax(axis=1)] == [name for name, *_ in DISCS]
    notes = {problem.where for problem in prediction.problems if problem.severity == "note"}
    assert notes == {"04 deep.tif", "05 alpha.png", "06 print.jpg", "07 turned.jpg"}
    for problem in prediction.failed:
        assert problem.what
        assert problem.fix


def test_a_folder_in_place_of_an_image_is_a_problem_of_its_own(tmp_path: Path, eyes: Callable[..., Predictor]) -> None:
    (tmp_path / "x.png").mkdir()
    rows = [{"image_id": "x", "path": str(tmp_path / "x.png")}, {"image_id": "y", "path": str(tmp_path / "y.tif")}]
    prediction = predict_images(eyes(), rows)
    assert [problem.kind for problem in prediction.failed] == ["image-unreadable", "image-missing"]
    assert len(prediction.images) == 0


def test_the_limit_of_pixels_is_the_caller_s(tmp_path: Path, eyes: Callable[..., Predictor]) -> None:
    save(tmp_path / "a.png")
    just = PredictSettings(max_pixels=208 * 160, jobs=1)
    assert not predict_images(eyes(settings=just), image_rows([tmp_path / "a.png"])).failed
    less = PredictSettings(max_pixels=208 * 160 - 1, jobs=1)
    (problem,) = predict_images(eyes(settings=less), image_rows([tmp_path / "a.png"])).failed
    assert problem.kind == "image-too-large"
    assert "33,280 pixels; allowed are 33,279" in problem.what


# -- large files by regions -----------------------------------------------------------------------

SLIDE_WH = (1400, 1000)
SLIDE = scattered(SLIDE_WH, {"leukocyte": (14, 20.0), "erythrocyte": (60, 12.0), "platelet": (16, 5.0)}, seed=8)


def by_regions(patch: pytest.MonkeyPatch, block_px: int) -> None:
    patch.setattr(fields, "_BLOCK_PX", block_px)
    patch.setattr(fields, "open_regions", lambda path: regions.open_regions(path, least_pixels=1_000_000))


def matched(a: Cells, b: Cells, within_px: float) -> bool:
    """Whether two tables hold the same counted cells."""
    a, b = (one.filter(pl.col("counted")) for one in (a, b))
    table = box.iou(a.boxes(), b.boxes())
    partner = table.argmax(axis=1)
    return (
        len(a) == len(b) == len(set(partner.tolist()))
        and np.abs(a.boxes() - b.boxes()[partner]).max() <= within_px
        and a.label_names() == [b.label_names()[i] for i in partner]
    )


@pytest.mark.parametrize("block_px", [500, 720])
def test_a_slide_by_regions_is_the_slide_read_whole(
    tmp_path: Path, eyes: Callable[..., Predictor], monkeypatch: pytest.MonkeyPatch, block_px: int
) -> None:
    pixels = painted(SLIDE_WH, SLIDE)
    tifffile.imwrite(tmp_path / "slide.tif", pixels, tile=(128, 256), photometric="rgb")
    settings = PredictSettings(tile_px=416, jobs=1)
    whole = predict_images(eyes(settings=settings), image_rows([tmp_path / "slide.tif"]))
    by_regions(monkeypatch, block_px)
    parts = predict_images(eyes(settings=settings), image_rows([tmp_path / "slide.tif"]))
    assert len(whole.cells) == len(SLIDE)
    assert matched(whole.cells, parts.cells, within_px=1.5)
    (row,) = parts.images.rows()
    assert row == whole.images.rows()[0]
    assert not whole.problems
    (note,) = parts.problems
    count = [-(-(side - block_px) // (0.75 * block_px)) + 1 for side in SLIDE_WH]
    assert (note.severity, note.what) == ("note", f"read in {count[0] * count[1]:.0f} regions.")


def test_a_damaged_slide_is_a_problem(
    tmp_path: Path, eyes: Callable[..., Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, painted(SLIDE_WH, SLIDE), tile=(256, 256), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as file:
        at = file.pages.first.dataoffsets[9]
    data = bytearray(path.read_bytes())
    data[at : at + 20] = b"\0" * 20
    path.write_bytes(data)
    by_regions(monkeypatch, 700)
    (problem,) = predict_images(eyes(), image_rows([path])).failed
    assert (problem.kind, problem.severity) == ("image-damaged", "error")


def test_a_scanner_s_slide_is_looked_at_by_regions(tmp_path: Path, eyes: Callable[..., Predictor]) -> None:
    pytest.importorskip("openslide", reason='needs the extra "slides"')
    description = "Aperio Image Library v11.2.1\n1400x1000|AppMag = 40|MPP = 0.3125"
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "description": description, "metadata": None}
    tifffile.imwrite(tmp_path / "slide.svs", painted(SLIDE_WH, SLIDE), **options)
    prediction = predict_images(eyes(red_cell_px=24), image_rows([tmp_path]))
    (row,) = prediction.images.rows()
    assert (row["image_id"], row["um_per_px"]) == ("slide.svs", 0.3125)
    assert len(prediction.cells.filter(pl.col("counted"))) == len(SLIDE)
    assert [problem.what for problem in prediction.problems] == [
        "read in 1 regions.", "a pixel measures 0.312 µm, as the file says."
    ]  # fmt: skip


def test_the_first_of_several_pages_is_read_and_the_rest_is_named(
    tmp_path: Path, eyes: Callable[..., Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = np.stack([painted(SLIDE_WH, SLIDE), painted(SLIDE_WH, [])])
    tifffile.imwrite(tmp_path / "slide.tif", pages, tile=(256, 256), photometric="rgb")
    by_regions(monkeypatch, 4096)
    prediction = predict_images(
        eyes(settings=PredictSettings(tile_px=416, jobs=1)), image_rows([tmp_path / "slide.tif"])
    )
    assert len(prediction.cells) == len(SLIDE)
    assert [problem.what for problem in prediction.problems] == ["read in 1 regions.", "first of 2 pages."]


def test_memory_stays_flat_on_a_large_slide(tmp_path: Path, eyes: Callable[..., Predictor]) -> None:
    """71 million pixels are 214 MB; a block is 50 MB."""
    height, width, side = 4096, 17_408, 512
    tile = painted((side, side), [("leukocyte", 256.0, 256.0, 100.0)])
    count = (height // side) * (width // side)
    tifffile.imwrite(
        tmp_path / "slide.tif",
        (tile for _ in range(count)),
        shape=(height, width, 3),
        dtype=np.uint8,
        tile=(side, side),
        photometric="rgb",
        compression="zlib",
    )
    predictor = eyes(settings=PredictSettings(jobs=1))
    tracemalloc.start()
    prediction = predict_images(predictor, image_rows([tmp_path / "slide.tif"]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not prediction.failed
    assert len(prediction.cells) == count
    assert peak < 150e6


def field_cells(rows: list[tuple[list[float], str, float, bool]]) -> FieldCells:
    """Cells of a block: box, label, score, counted."""
    count = len(rows)
    return FieldCells(
        np.array([corners for corners, *_ in rows], np.float32).reshape(-1, 4),
        [label for _, label, _, _ in rows],
        np.array([score for *_, score, _ in rows], np.float32),
        np.full((count, 3), np.nan, np.float32),
        np.array([counted for *_, counted in rows], bool),
        np.ones(count, bool),
        ("dim",),
        {"unsure name": np.ones(count, bool)},
    )


def test_blocks_join_whatever_they_called_the_cell() -> None:
    left, right = Window(0, 0, 100, 100), Window(60, 0, 100, 100)
    parts = [
        (left, field_cells([([70, 10, 90, 30], "monocyte", 0.8, True), ([80, 50, 100, 80], "platelet", 0.9, True)])),
        (right, field_cells([([10, 10, 30, 31], "lymphocyte", 0.9, True), ([20, 50, 50, 80], "monocyte", 0.7, True)])),
    ]
    got = joined_blocks(parts, (160, 100))
    assert [(label, corners) for label, corners in zip(got.labels, got.boxes.tolist(), strict=True)] == [
        ("lymphocyte", [70, 10, 90, 31]),
        ("monocyte", [80, 50, 110, 80]),  # whole here, cut there
    ]
    assert got.remarks == ("dim",)
    assert {reason: which.tolist() for reason, which in got.reasons.items()} == {"unsure name": [True, True]}


def test_a_counted_cell_is_not_lost_to_one_below_its_threshold() -> None:
    """Thresholds differ by label, so the finding of the higher score may be the one that does not count."""
    size_wh, window = (160, 100), Window(0, 0, 100, 100)
    same_place = field_cells(
        [([10, 10, 30, 30], "erythrocyte", 0.4, True), ([10, 10, 30, 31], "platelet", 0.45, False)]
    )
    got = joined_blocks([(window, same_place)], size_wh)
    assert [label for label, counted in zip(got.labels, got.counted, strict=True) if counted] == ["erythrocyte"]
    cut = field_cells([([80, 10, 100, 40], "erythrocyte", 0.9, True)])
    faint = field_cells([([15, 5, 45, 45], "platelet", 0.02, False)])
    got = joined_blocks([(window, cut), (Window(60, 0, 100, 100), faint)], size_wh)
    assert [label for label, counted in zip(got.labels, got.counted, strict=True) if counted] == ["erythrocyte"]


# -- one call -------------------------------------------------------------------------------------


def test_the_one_call_takes_files_and_pixels(tmp_path: Path, eyes: Callable[..., Predictor]) -> None:
    bundle = eyes().bundle
    path = save(tmp_path / "a.png")
    cells = cytolens.predict(path, bundle=bundle)
    assert cells.frame["image_id"].unique().to_list() == ["a.png"]
    pixels = painted(SIZE_WH, DISCS)
    direct = cytolens.predict(pixels, bundle=bundle)
    assert direct.frame["image_id"].unique().to_list() == ["image"]
    assert np.array_equal(direct.boxes(), cells.boxes())
    assert direct.frame["cell_id"].n_unique() == 3
    both = cytolens.predict([path, save(tmp_path / "b.png")], bundle=bundle, jobs=1)
    assert both.frame["image_id"].unique(maintain_order=True).to_list() == ["a.png", "b.png"]
    assert np.array_equal(cytolens.predict(pixels[:, ::-1][:, ::-1], bundle=bundle).boxes(), cells.boxes())


def test_the_one_call_says_what_is_wrong(tmp_path: Path, eyes: Callable[..., Predictor]) -> None:
    bundle = eyes().bundle
    with pytest.raises(SettingError, match=r'unknown setting "tile"\. Did you mean "tile_px"'):
        cytolens.predict(tmp_path, bundle=bundle, tile=3)
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(SettingError, match="pixels are uint8 RGB"):
            cytolens.predict(wrong, bundle=bundle)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"a\.png: the file is empty"):
        cytolens.predict(tmp_path / "in", bundle=bundle)


def test_a_prediction_says_which_images_failed() -> None:
    assert Prediction(Images.empty(), Cells.empty(LabelSet.of(FOUND)), fields.Problems()).failed == []


def test_overlays_of_an_earlier_run_are_no_smears(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a.png", "found/overlays/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    drawn = tmp_path / "found" / "overlays"
    assert [row["image_id"] for row in image_rows([tmp_path], leave_out=drawn)] == ["a.png"]
    assert [row["image_id"] for row in image_rows([drawn], leave_out=drawn)] == ["a.png"]
    assert len(image_rows([tmp_path])) == 2
