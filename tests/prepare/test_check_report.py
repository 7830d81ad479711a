"""The report of a check: everything is counted, and the worst cases are drawn."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.prepare.check import findings
from cytolens.prepare.check_report import by_kind, check_page, write_check_report
from tests.prepare.faulty import dataset_of

_ORANGE = (0xC2, 0x41, 0x0C)


@pytest.fixture
def faulty(tmp_path: Path) -> Dataset:
    """A dataset of three images: one with faults, one that is fine, one that is damaged."""
    rows = [
        ("a.png", (-40.0, 20.0, 40.0, 60.0), "RBC"),
        ("a.png", (100.0, 100.0, 140.0, 140.0), "RBC"),
        ("a.png", (100.0, 100.0, 141.0, 140.0), "WBC"),
        ("b.png", (10.0, 10.0, 60.0, 60.0), "RBC"),
        ("c.png", (-8.0, 10.0, 60.0, 60.0), "RBC"),
    ]
    images = []
    for name in ("a.png", "b.png", "c.png"):
        path = tmp_path / name
        Image.new("RGB", (200, 160), "white").save(path)
        images.append({"image_id": name, "path": str(path), "width_px": 200, "height_px": 160})
    (tmp_path / "c.png").write_bytes(b"no picture")
    return dataset_of(rows, images)


def pictures(html: str) -> list[Image.Image]:
    codes = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", html)
    return [Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB") for code in codes]


def is_orange(image: Image.Image) -> np.ndarray:
    return np.abs(np.asarray(image, int) - _ORANGE).max(axis=2) < 40


def test_the_gravest_come_first_and_the_worst_of_a_kind(faulty: Dataset) -> None:
    kinds = by_kind(findings(faulty))
    assert next(iter(kinds)) == "image-not-an-image"
    assert [one.image_id for one in kinds["box-outside-image"]] == ["a.png", "c.png"]  # 40 px before 8 px
    severities = [members[0].problem.severity for members in kinds.values()]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_what_is_wrong_is_counted_and_drawn(faulty: Dataset, tmp_path: Path) -> None:
    found = findings(faulty)
    write_check_report(faulty, found, tmp_path / "check.html")
    html = (tmp_path / "check.html").read_text(encoding="utf-8")
    for kind, members in by_kind(found).items():
        assert kind in html
        assert f"({len(members)})" in html
    outside, disputed, *_ = pictures(html)
    # What lies outside stands on a grey margin of 44 px on each side; the picture is scaled to 640 px.
    assert outside.size == (640, round(640 * (160 + 88) / (200 + 88)))
    scale = 640 / 288
    orange = is_orange(outside)
    rows, columns = np.flatnonzero(orange.any(axis=1)), np.flatnonzero(orange.any(axis=0))
    assert columns[0] == pytest.approx((-40 + 44) * scale, abs=3)
    assert columns[-1] == pytest.approx((40 + 44) * scale, abs=3)
    assert rows[-1] == pytest.approx((60 + 44) * scale, abs=3)
    assert disputed.size == (640, 512)
    assert "c.png, cell" in html  # a picture that cannot be read is told in words


def test_a_clean_dataset_has_a_page_that_says_so() -> None:
    nothing = Dataset(Images.empty(), Cells.empty(LabelSet(())))
    html = check_page(nothing, findings(nothing)).render()
    assert "Nothing was found." in html


def test_text_from_the_data_is_escaped() -> None:
    dataset = dataset_of([("<script>.png", (-5, 0, 9, 9), "RBC")])
    html = check_page(dataset, findings(dataset)).render()
    assert "<script>.png" not in html
    assert "&lt;script&gt;.png" in html
