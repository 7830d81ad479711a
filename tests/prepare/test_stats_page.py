"""The page of a dataset: what it shows, at which scale, and that it needs nothing else."""

from __future__ import annotations

import base64
import io
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.prepare.stats import Stats, StatsSettings, stats
from cytolens.prepare.stats_page import stats_page, write_stats_page
from tests.prepare.faulty import dataset_of, faulty_datasets

_GREEN = (0x0F, 0x76, 0x6E)
_SETTINGS = StatsSettings()


@pytest.fixture
def pictured(tmp_path: Path) -> Dataset:
    """Two readable images and a damaged one, with boxes of 20, 40 and 100 px."""
    rows = [
        ("a.png", (100.0, 100.0, 120.0, 120.0), "RBC"),
        ("a.png", (40.0, 40.0, 80.0, 80.0), "RBC"),
        ("b.png", (50.0, 50.0, 150.0, 150.0), "WBC"),
        ("c.png", (10.0, 10.0, 50.0, 50.0), "RBC"),
    ]
    images = []
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (240, 200), (200, 150, 180)).save(tmp_path / name)
        images.append({"image_id": name, "path": str(tmp_path / name), "width_px": 240, "height_px": 200})
    (tmp_path / "c.png").write_bytes(b"no picture")
    return dataset_of(rows, images)


def written(dataset: Dataset, folder: Path, choice: StatsSettings = _SETTINGS) -> str:
    write_stats_page(dataset, stats(dataset, choice), folder / "stats.html", choice)
    return (folder / "stats.html").read_text(encoding="utf-8")


def crops(html: str) -> dict[str, np.ndarray]:
    """Tooltip → pixels of the pictures of cells."""
    pattern = r'data:image/jpeg;base64,([A-Za-z0-9+/=]+)" alt="([^"]*)" title="([^"]*)"'
    found = {}
    for code, alt, title in re.findall(pattern, html):
        assert alt == title
        found[unescape(title)] = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB"), int)
    return found


def outline_px(pixels: np.ndarray) -> int:
    """How wide the outline of the box is drawn."""
    columns = np.flatnonzero((np.abs(pixels - _GREEN).max(axis=2) < 60).any(axis=0))
    return int(columns[-1] - columns[0] + 1)


def test_cells_of_a_label_are_shown_at_one_scale(pictured: Dataset, tmp_path: Path) -> None:
    html = written(pictured, tmp_path)
    shown = crops(html)
    assert set(shown) == {
        "a.png, box 100, 100, 120, 120",
        "a.png, box 40, 40, 80, 80",
        "b.png, box 50, 50, 150, 150",
    }
    small, large = outline_px(shown["a.png, box 100, 100, 120, 120"]), outline_px(shown["a.png, box 40, 40, 80, 80"])
    assert large == pytest.approx(2 * small, abs=3)
    # The 95 % quantile of the sides 20, 40 and 40, times 1.3, is 52 px; pictures are 168 px wide.
    assert large == pytest.approx(40 / 52 * 168, abs=3)
    text = unescape(html)
    assert "RBC: 2 of 3 cells; a picture is 52 px wide. 1 more cannot be read." in text
    assert "WBC: 1 of 1 cells; a picture is 130 px wide." in text


def test_where_the_scale_is_known_pictures_have_one_in_micrometres(pictured: Dataset, tmp_path: Path) -> None:
    scaled = Dataset(pictured.images.with_columns(um_per_px=[0.1, 0.2, 0.1]), pictured.cells)
    html = written(scaled, tmp_path)
    assert "RBC: 2 of 3 cells; a picture is 5.2 µm wide." in html
    assert "Box width, µm:" in html


def test_the_draw_follows_its_seed_and_its_number(pictured: Dataset, tmp_path: Path) -> None:
    drawn = {tuple(crops(written(pictured, tmp_path, StatsSettings(crops=1, seed=seed)))) for seed in range(5)}
    assert len(drawn) > 1
    assert all(len(one) <= 2 for one in drawn)
    once = written(pictured, tmp_path, StatsSettings(seed=3))
    assert once == written(pictured, tmp_path, StatsSettings(seed=3))
    assert "Cells of each label</a>" not in written(pictured, tmp_path, StatsSettings(crops=0))


def test_a_box_that_is_the_whole_image_is_shown_whole(pictured: Dataset, tmp_path: Path) -> None:
    rows = [("a.png", (0.0, 0.0, 240.0, 200.0), "WBC")]
    whole = dataset_of(rows, pictured.images.rows()[:1])
    html = written(whole, tmp_path)
    assert "a picture is 240 px wide" in html
    (pixels,) = crops(html).values()
    # 200 of 240 px are image; above and below is white, and no line is drawn.
    assert pixels[2].min() > 245
    assert np.abs(pixels[84] - (200, 150, 180)).max() < 12
    assert "Box width" not in html


def test_a_dataset_without_files_has_all_tables_and_says_so(tmp_path: Path) -> None:
    rows = [("x", (0, 0, 9, 9), "RBC"), ("x", (0, 0, 19, 9), "WBC"), ("y", (0, 0, 9, 9), "RBC")]
    html = written(dataset_of(rows), tmp_path)
    assert "No image has a file: there are no colours and no pictures." in html
    for heading in ("Labels", "Cells per image", "Sizes", "Labels that occur together"):
        assert f">{heading}</h2>" in html
    for heading in ("Colours", "Cells of each label"):
        assert f">{heading}</h2>" not in html
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    assert html.count("data:image/png") == 3  # labels, cells per image, pairs


def test_warnings_and_domains_are_shown(pictured: Dataset) -> None:
    mixed = Dataset(pictured.images.with_columns(scanner=["X", "Y", "X"]), pictured.cells)
    html = unescape(stats_page(mixed, stats(mixed), _SETTINGS).render())
    assert 'only in scanner "X", while there are 2: RBC.' in html
    assert "Cells of each label by scanner:" in html
    assert ">scanner X</th>" in html


def test_text_from_the_data_is_escaped(tmp_path: Path) -> None:
    name = '"><script>.png'
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    images = [{"image_id": name, "path": str(tmp_path / "a.png"), "width_px": 40, "height_px": 40, "split": name}]
    html = written(dataset_of([(name, (5, 5, 9, 9), "RBC")], images), tmp_path)
    assert "<script>" not in html
    assert [*crops(html)] == [f"{name}, box 5, 5, 9, 9"]


def test_an_empty_dataset_has_a_page() -> None:
    nothing = Dataset(Images.empty(), dataset_of([]).cells)
    html = stats_page(nothing, stats(nothing), _SETTINGS).render()
    assert "There are no cells." in html
    assert "The dataset has no images." in html


@settings(max_examples=4)
@given(faulty_datasets())
def test_odd_boxes_do_not_stop_the_page(dataset: Dataset) -> None:
    found: Stats = stats(dataset)
    assert "What is in the dataset" in stats_page(dataset, found, _SETTINGS).render()
