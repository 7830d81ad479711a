"""What a prediction with outlines leaves on disk: label images, COCO, GeoJSON, morphometry, and overlays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from PIL import Image

from cytolens import formats, masks
from cytolens.cells import Cells
from cytolens.formats import ReadOptions
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.predict.fields import Prediction
from cytolens.predict.outputs import write_outputs
from cytolens.predict.overlays import colour, overlay
from cytolens.predict.pipeline import PredictSettings

LABELS = LabelSet.of(["neutrophil", "nucleus", "astro"])
SIZE_WH = (90, 60)
Y, X = np.mgrid[: SIZE_WH[1], : SIZE_WH[0]] + 0.5
DISC = (X - 30) ** 2 + (Y - 30) ** 2 < 20**2
NUCLEUS = (X - 30) ** 2 + (Y - 30) ** 2 < 8**2
FAINT = (X - 75) ** 2 + (Y - 30) ** 2 < 10**2
ALL = ("cells", "coco", "geojson", "label_images", "morphometry", "overlay")


def cells_with(shapes: list[tuple[str | None, NDArray[np.bool_]]], counted: list[bool] | bool = True) -> Cells:
    """Cells of the image a.png; the better the earlier."""
    codes = [masks.encode(shape) for _, shape in shapes]
    return Cells.of(
        LABELS,
        image_id=["a.png"] * len(shapes),
        boxes=np.array([masks.bounds(code, shapes[0][1].shape) for code in codes]).reshape(-1, 4),
        label=[label for label, _ in shapes],
        source="bundle:x",
        score=np.linspace(0.9, 0.5, len(shapes)),
        mask=codes,
        counted=counted,
    )


@pytest.fixture
def prediction(tmp_path: Path) -> Prediction:
    """A cell with its nucleus, which is better, and one that does not count."""
    Image.fromarray(np.full((*SIZE_WH[::-1], 3), 200, np.uint8)).save(tmp_path / "a.png")
    row = {"image_id": "a.png", "path": str(tmp_path / "a.png"), "width_px": SIZE_WH[0], "height_px": SIZE_WH[1]}
    cells = cells_with([("nucleus", NUCLEUS), ("neutrophil", DISC), ("neutrophil", FAINT)], [True, True, False])
    return Prediction(Images.of([row | {"um_per_px": 0.5}]), cells, formats.Problems())


def test_every_format_holds_the_counted_outlines(prediction: Prediction, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = write_outputs(prediction, None, out, ALL, PredictSettings())
    assert (summary["cells"], summary["outlined"]) == (1, 1)  # the nucleus is a part of the neutrophil
    coco = formats.read(out / "cells.coco.json", "coco", ReadOptions(images=tmp_path, labels=LABELS)).dataset
    assert sorted(coco.cells.frame["mask"].to_list()) == sorted([masks.encode(NUCLEUS), masks.encode(DISC)])
    geojson = formats.read(out / "geojson", "geojson", ReadOptions(images=tmp_path, labels=LABELS)).dataset
    assert sorted(geojson.cells.frame["mask"].to_list()) == sorted([masks.encode(NUCLEUS), masks.encode(DISC)])
    numbers = np.asarray(Image.open(out / "label_images" / "masks" / "a.png"))
    assert (numbers == np.where(NUCLEUS, 1, np.where(DISC, 2, 0))).all()
    table = pl.read_csv(out / "morphometry.csv")
    assert table["area_px"].to_list() == [NUCLEUS.sum(), DISC.sum()]
    assert table["area_um2"].to_list() == [NUCLEUS.sum() / 4, DISC.sum() / 4]
    assert table["nucleus_to_cytoplasm"][1] == pytest.approx(NUCLEUS.sum() / (DISC.sum() - NUCLEUS.sum()), abs=1e-4)
    assert [what for what in summary["coco_leaves_out"] if "mask" in what] == []


def test_a_second_run_takes_away_what_it_does_not_write(prediction: Prediction, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_outputs(prediction, None, out, ALL, PredictSettings())
    (out / "label_images" / "masks" / "b.png").write_bytes(b"of an image that is no more")
    (out / "label_images" / "mine.txt").write_text("stays")
    write_outputs(prediction, None, out, ("cells", "label_images"), PredictSettings())
    left = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    tables = {"cells.parquet", "images.parquet", "run.json", "label_images/mine.txt"}
    assert left == tables | {"label_images/masks/a.png", "label_images/masks/cells.csv"}
    write_outputs(prediction, None, out, ("cells",), PredictSettings())
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == tables


# -- overlays ---------------------------------------------------------------------------------------


def marked(cells: Cells, size_wh: tuple[int, int] = SIZE_WH, **options: object) -> NDArray[np.bool_]:
    """The pixels that an overlay changes."""
    plain = np.full((size_wh[1], size_wh[0], 3), 255, np.uint8)
    drawn = overlay(plain, cells, **options)  # type: ignore[arg-type]
    assert (plain == 255).all()
    return (drawn != 255).any(axis=2)


def border_of(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask that have a neighbour outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def test_outlines_are_drawn_where_the_masks_end() -> None:
    ring = DISC & ~NUCLEUS
    changed = marked(cells_with([("astro", ring)]))
    captionless = changed.copy()
    captionless[:30] = False
    assert changed[border_of(DISC)].all()
    # The hole's border is drawn on the ring's pixels around it; between both nothing is.
    assert captionless[30:38, 21:23].any()
    between = (X - 30) ** 2 + (Y - 30) ** 2
    assert not captionless[(between > 11**2) & (between < 17.5**2)].any()
    assert not captionless[between < 6.5**2].any()


def test_only_counted_cells_are_drawn_and_dashed_ones_have_gaps() -> None:
    assert not marked(cells_with([("astro", DISC)], counted=False)).any()
    plain, dashed = (marked(cells_with([("astro", DISC)]).with_columns(refer=refer)) for refer in (False, True))
    border = border_of(DISC) & (Y > 15)
    assert plain[border].all()
    assert 0.5 < dashed[border].mean() < 0.95


def test_outlines_follow_the_scale_of_the_picture() -> None:
    large = np.kron(DISC, np.ones((10, 10), bool))
    changed = marked(cells_with([("astro", large)]), SIZE_WH, frame_wh=(900, 600))
    assert changed[border_of(DISC)].mean() > 0.8
    shrunk = marked(cells_with([("astro", large)]), (900, 600), longest_px=90)
    assert shrunk.shape == SIZE_WH[::-1]
    assert shrunk[border_of(DISC)].mean() > 0.8


def test_names_give_way_to_a_key_where_they_would_hide_the_field() -> None:
    size_wh = (400, 300)
    shapes: list[tuple[str | None, NDArray[np.bool_]]] = []
    for y in range(30, 280, 24):
        for x in range(20, 400, 24):
            mask = np.zeros(size_wh[::-1], bool)
            mask[y - 8 : y + 8, x - 8 : x + 8] = True
            shapes.append(("astro", mask))
    few, many = marked(cells_with(shapes[:2]), size_wh), marked(cells_with(shapes), size_wh)
    assert few[6:20].any()  # names above the cells
    assert not many[6:20].any()
    assert many[-10:, :30].any()  # the key
    hidden = many[:260, 60:].mean()
    assert hidden < 0.25  # outlines alone: 60 of 576 px of each square, and no name


def test_names_that_the_taxonomy_does_not_know_have_colours_of_their_own() -> None:
    labels = LabelSet.of(["fluorescence", "histology", "brightfield", "neutrophil"])
    shades = {colour(labels, name) for name in labels.names}
    assert len(shades) == 4
    assert colour(labels, "neutrophil") == (37, 99, 235)
    assert colour(labels, None) == (71, 85, 105)


def test_a_mask_of_another_image_is_framed_instead() -> None:
    assert marked(cells_with([("astro", DISC)]), (91, 60)).any()


def test_the_summary_says_what_was_left_out(prediction: Prediction, tmp_path: Path) -> None:
    plain = Prediction(prediction.images, prediction.cells.with_masks([None] * 3), formats.Problems())
    write_outputs(plain, None, tmp_path / "out", ALL, PredictSettings())
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    assert told["outlined"] == 0
    assert "2 of 2 counted cells have no outline" in " ".join(told["morphometry_leaves_out"])
    assert "cells without a mask" in " ".join(told["label_images_leaves_out"])
