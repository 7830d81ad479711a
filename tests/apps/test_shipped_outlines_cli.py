"""The shipped bundles that outline, by the real command: what they leave, and what their page says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from cytolens.prepare.synthetic import SyntheticSettings, render_field
from tests.apps.speaking import say


def predict(images: Path, bundle: str, out: Path) -> dict[str, Any]:
    return say("predict", images, "--bundle", bundle, "--out", out, "--format", "csv,report,morphometry", "--json").json


def test_nuclei_of_a_dark_field(tmp_path: Path) -> None:
    rows, columns = np.indices((256, 256))
    middles = [(60 + 70 * i, 60 + 70 * k) for i in range(3) for k in range(3)]
    inside = np.any([(rows - y) ** 2 / 100 + (columns - x) ** 2 / 196 < 1 for y, x in middles], axis=0)
    pixels = np.where(inside, 150, 12).astype(np.uint8)
    Image.fromarray(np.repeat(pixels[..., None], 3, axis=2)).save(tmp_path / "nuclei.png")
    said = predict(tmp_path / "nuclei.png", "nuclei", tmp_path / "out")
    assert (said["cells"], said["counts"]) == (9, {"fluorescence": 9})
    areas = pl.read_csv(tmp_path / "out" / "morphometry.csv")["area_px"].to_numpy()
    assert np.abs(areas / (np.pi * 10 * 14) - 1).max() < 0.15
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Cells found" in page
    assert "Blood smear report" not in page
    assert "white cells" not in page


def test_white_cells_of_a_smear_and_their_nuclei(tmp_path: Path) -> None:
    field = render_field(11, SyntheticSettings(width_px=480, height_px=360, white_cells=(3, 3)))
    Image.fromarray(field.pixels).save(tmp_path / "smear.png")
    said = predict(tmp_path / "smear.png", "smear-outlines", tmp_path / "out")
    plain = predict(tmp_path / "smear.png", "smear", tmp_path / "plain")
    assert said["counts"] == plain["counts"]  # outlines change no count
    table = pl.read_csv(tmp_path / "out" / "morphometry.csv")
    whole = table.filter(pl.col("label") != "nucleus")
    assert len(whole) == 3
    assert whole["nucleus_to_cytoplasm"].is_not_null().all()
