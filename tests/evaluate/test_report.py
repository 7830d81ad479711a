from __future__ import annotations

import io

import numpy as np
import polars as pl
import pytest
from PIL import Image

from cytolens.evaluate import EvaluateSettings, Scores, evaluate
from cytolens.evaluate.page import Picture
from cytolens.evaluate.pictures import ImageFiles, Outline, crop, outlined
from cytolens.evaluate.report import report_page, write_report
from cytolens.labels import LabelSet
from tests.evaluate import cases
from tests.evaluate.test_page import Outline as Html

BCCD = LabelSet.shipped("bccd")
PBC = LabelSet.shipped("pbc")


@pytest.fixture
def world(tmp_path):
    """Twelve images on disk; the first misses a cell, the second has one too many, the third is not on disk."""
    images = {}
    for i in range(12):
        path = tmp_path / f"{i:02d}.png"
        if i != 2:
            Image.new("RGB", cases.SIZE_WH, (200, 180 + i, 190)).save(path)
        images[path.name] = {"path": str(path)}
    boxes = {name: [("WBC", (10, 10, 60, 60)), ("RBC", (100, 10, 150, 60))] for name in images}
    truth = cases.dataset(BCCD, boxes, images=images)
    said = {name: [("WBC", (10, 10, 60, 60), 0.9), ("RBC", (100, 10, 150, 60), 0.8)] for name in images}
    said["00.png"] = said["00.png"][:1]
    said["01.png"] = [*said["01.png"], ("Platelets", (160, 60, 190, 90), 0.7)]
    said["02.png"] = []
    return truth, cases.findings(BCCD, said)


def captions(page):
    return {p.caption: p for block in page.blocks for p in block.get("pictures", ()) if isinstance(p, Picture)}


def test_detection_report(world, tmp_path):
    truth, found = world
    scores = evaluate(truth, found, found_images=truth.images, settings=EvaluateSettings(bootstrap=50))
    write_report(scores, truth, found, tmp_path / "report.html")
    words = Html((tmp_path / "report.html").read_text(encoding="utf-8")).words
    for needed in (
        "mAP at IoU .50",
        f"{scores.figures['map50']:.3f}",
        f"{scores.figures['recall']:.3f}",
        "detection · truth · 12 images · found by bundle:test@0",
    ):
        assert needed in words
    reading = " ".join(words)
    assert "cover counting error, not a model's misnaming" in reading
    assert "bootstrap over 12 images" in reading
    assert "12 by image_id" in reading
    shown = captions(report_page(scores, truth, found))
    worst = [name for name in shown if name.endswith(".png")]
    assert worst == ["02.png", "00.png", "01.png"]
    assert shown["02.png"].data is None
    assert "2 cells: 2 missed, 0 surplus. Cannot be shown: there is no such file." in shown["02.png"].detail
    assert "1 missed, 0 surplus" in shown["00.png"].detail
    assert shown["00.png"].data is not None


def test_worst_images_show_what_is_missed_and_what_is_too_much(world):
    truth, found = world
    scores = evaluate(truth, found, found_images=truth.images, settings=EvaluateSettings(intervals=False))
    shown = captions(report_page(scores, truth, found))

    def colours(name):
        data = shown[name].data
        assert data is not None
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)
        near = {key: np.abs(pixels - colour).sum(axis=2) < 60 for key, colour in COLOURS.items()}
        return {key for key, mask in near.items() if mask.sum() > 100}

    assert colours("00.png") == {"hit", "missed"}
    assert colours("01.png") == {"hit", "surplus"}


COLOURS = {"hit": (15, 118, 110), "missed": (194, 65, 12), "surplus": (162, 28, 175)}


def test_a_perfect_result_says_that_there_are_no_mistakes(world):
    truth, _ = world
    for task, settings in (
        ("detection", EvaluateSettings(bootstrap=20)),
        ("classification", EvaluateSettings(bootstrap=20)),
    ):
        page = report_page(evaluate(truth, truth, task=task, settings=settings), truth, truth)
        assert "There are none." in Html(page.render()).words


def test_classification_report(tmp_path):
    images = {}
    rng = np.random.default_rng(0)
    names = ["SNE", "BNE", "LY", "NEUTROPHIL"] * 5
    for i in range(20):
        path = tmp_path / f"{i:05d}.png"
        Image.fromarray(rng.integers(0, 255, (100, 200, 3), np.uint8)).save(path)
        images[path.name] = str(path)
    truth = cases.whole_images(names, PBC)
    paths = pl.Series("path", [images[i] for i in truth.images.ids])
    truth = cases.Dataset(truth.images.with_columns(path=paths), truth.cells, "pbc")
    p = rng.dirichlet(np.ones(len(PBC.leaves)) * 0.2, 20)
    found = cases.named(truth, PBC, p, refer=p.max(axis=1) < 0.5)
    scores = evaluate(
        truth, found, found_images=truth.images, task="classification", settings=EvaluateSettings(bootstrap=50)
    )
    page = report_page(scores, truth, found)
    headings = [block["heading"] for block in page.blocks if block["kind"] == "section"]
    assert headings == [
        "Labels",
        "Commonest confusions",
        "Truths named by a parent only",
        "How far confidence can be trusted",
        "Surest mistakes",
        "How to read this",
    ]
    grid = next(block["pictures"] for block in page.blocks if block["kind"] == "grid")
    cells = scores.tables["cells"].filter(~pl.col("correct") & ~pl.col("parent")).sort("confidence", descending=True)
    assert len(grid) == len(cells) > 3
    assert grid[0].caption == f"{cells['truth'][0]} → {cells['predicted'][0]}"
    assert cells["image_id"][0] in grid[0].detail
    assert all(picture.data is not None for picture in grid)
    Html(page.render())


def test_problems_are_listed_and_cut(world):
    truth, _ = world
    found = cases.findings(BCCD, {"00.png": [("WBC", (10, 10, 60, 60), 0.9)]})
    settings = EvaluateSettings(missing="ok", intervals=False)
    scores = evaluate(truth, found, found_images=truth.images.where(image_id="00.png"), settings=settings)
    warnings = next(b["notes"] for b in report_page(scores, truth, found).blocks if b.get("tone") == "warning")
    assert len(warnings) == 11
    assert warnings[0].startswith("01.png: there is no found image")


def test_a_task_without_its_own_part_still_has_a_report(world):
    truth, found = world
    figures = {
        "images": 12,
        "score": 0.5,
        "score_interval": [0.4, 0.6],
        "joined_by": {},
        "interval_unit": "image",
        "groups": 12,
    }
    words = Html(
        report_page(Scores("other", {**figures, "per_label": {"WBC": {"iou": 0.25}}}), truth, found).render()
    ).words
    assert {"score", "0.500", "0.400 – 0.600", "iou", "0.250"} <= set(words)


# -- pictures -------------------------------------------------------------------------------------


def test_crop_shows_the_box_in_the_middle():
    pixels = np.full((100, 200, 3), 255, np.uint8)
    pixels[20:60, 120:160] = (200, 0, 0)
    image = np.asarray(Image.open(io.BytesIO(crop(pixels, (120, 20, 160, 60), side_px=80, factor=2))), int)
    assert image.shape == (80, 80, 3)
    red = (np.abs(image - (200, 0, 0)).sum(axis=2) < 60).nonzero()
    assert [red[0].min(), red[0].max(), red[1].min(), red[1].max()] == pytest.approx([20, 59, 20, 59], abs=1)


def test_crop_of_a_box_without_area():
    pixels = np.zeros((10, 10, 3), np.uint8)
    assert Image.open(io.BytesIO(crop(pixels, (5, 5, 5, 5), side_px=16))).size == (16, 16)


def test_outlined_scales_boxes_with_the_picture():
    pixels = np.full((100, 200, 3), 255, np.uint8)
    outline = Outline((50, 20, 150, 80), "#0000ff", width_px=3)
    image = np.asarray(Image.open(io.BytesIO(outlined(pixels, [outline], longest_px=400))), int)
    assert image.shape == (200, 400, 3)
    blue = (np.abs(image - (0, 0, 255)).sum(axis=2) < 90).nonzero()
    assert [blue[1].min(), blue[0].min(), blue[1].max(), blue[0].max()] == pytest.approx([100, 40, 300, 160], abs=2)
    assert pixels.min() == 255  # the argument is not drawn on


def test_outlined_keeps_boxes_and_text_inside():
    pixels = np.full((50, 50, 3), 128, np.uint8)
    outlines = [
        Outline((-20, -20, 90, 90), "#ff0000", "a long name", dashed=True),
        Outline((45, 45, 50, 50), "#00ff00", "x"),
    ]
    assert Image.open(io.BytesIO(outlined(pixels, outlines, 200))).size == (200, 200)


def test_image_files_say_why_there_is_nothing(world):
    truth, _ = world
    files = ImageFiles(truth.images)
    assert isinstance(files.read("00.png"), np.ndarray)
    assert files.read("02.png") == "there is no such file."
    assert files.read("nowhere.png") == "no file is known for this image"
