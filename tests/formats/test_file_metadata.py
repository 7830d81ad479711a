"""Scales that files state, against the numbers they were written with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from cytolens import formats
from cytolens.formats import ReadOptions
from cytolens.formats.file_metadata import Metadata, metadata_of
from tests.contracts import save_picture

PIXELS = np.zeros((32, 48, 3), np.uint8)


def tiff(path: Path, pixels: Any = PIXELS, **options: Any) -> Path:
    tifffile.imwrite(path, pixels, **({"photometric": "rgb"} | options))
    return path


@pytest.mark.parametrize(
    ("options", "um"),
    [
        ({"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}, 0.25),
        ({"resolution": (101_600, 101_600), "resolutionunit": "INCH"}, 0.25),
        ({"resolution": (40_000, 40_000), "resolutionunit": "NONE"}, None),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),  # 353 µm: for printing
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}, None),  # not square
        ({"resolution": (40_000, 40_100), "resolutionunit": "CENTIMETER"}, 0.2497),
        ({}, None),
        ({"description": "Aperio Image Library v11.2.1\n48x32 (256x256)|AppMag = 40|MPP = 0.2498|x"}, 0.2498),
        ({"description": "Aperio Image Library|MPP = unknown"}, None),
        ({"description": "somebody's notes|MPP = 0.2498"}, None),
        ({"description": "Aperio|MPP = 0.2", "resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}, 0.2),
    ],
)
def test_the_scale_of_a_tiff(tmp_path: Path, options: dict[str, Any], um: float | None) -> None:
    options = {"metadata": None} | options
    assert metadata_of(tiff(tmp_path / "a.tif", **options)) == Metadata(um and pytest.approx(um, abs=1e-4))


@pytest.mark.parametrize(
    ("sizes", "um"),
    [
        ({"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}, 0.25),
        ({"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 250, "PhysicalSizeYUnit": "nm"}, 0.25),
        ({"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"}, 0.25),
        ({"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "pixel"}, None),
        ({}, None),
    ],
)
def test_the_scale_of_ome_xml(tmp_path: Path, sizes: dict[str, Any], um: float | None) -> None:
    path = tiff(tmp_path / "a.ome.tif", metadata={"axes": "YXS", **sizes})
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
    assert metadata_of(path).um_per_px == (um and pytest.approx(um))


@pytest.mark.parametrize("unit", ["micron", "um", "\\u00B5m"])
def test_the_scale_of_imagej(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, imagej=True, resolution=(4, 4), metadata={"unit": unit})
    assert metadata_of(path).um_per_px == pytest.approx(0.25)


def test_pages_are_counted_and_levels_are_not(tmp_path: Path) -> None:
    assert metadata_of(tiff(tmp_path / "stack.tif", np.zeros((5, 32, 48, 3), np.uint8))).pages == 5
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:
        for step in (1, 2, 4):
            writer.write(PIXELS[::step, ::step], photometric="rgb", subfiletype=int(step > 1), tile=(16, 16))
    assert metadata_of(tmp_path / "pyramid.tif").pages == 1


def test_files_that_say_nothing(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png", dpi=(101_600, 101_600))
    (tmp_path / "cut.tif").write_bytes(tiff(tmp_path / "a.tif").read_bytes()[:60])
    (tmp_path / "empty.tif").write_bytes(b"")
    for name in ("a.png", "cut.tif", "empty.tif", "none.tif"):
        assert metadata_of(tmp_path / name) == Metadata()


def test_a_damaged_description_is_no_obstacle(tmp_path: Path) -> None:
    xml = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image>'
    assert metadata_of(tiff(tmp_path / "a.ome.tif", description=xml + "</OME>", metadata=None)) == Metadata()


def test_an_import_knows_the_scale_and_says_how_many_pages(tmp_path: Path) -> None:
    tiff(
        tmp_path / "a.tif", np.zeros((3, 32, 48, 3), np.uint8), resolution=(40_000, 40_000), resolutionunit="CENTIMETER"
    )
    save_picture(tmp_path / "b.png")
    (tmp_path / "t.csv").write_text("NAME,x1,y1,x2,y2\na.tif,1,2,3,4\nb.png,1,2,3,4\n")
    back = formats.read(tmp_path, "csv_boxes", ReadOptions())
    assert back.dataset.images.frame["um_per_px"].to_list() == [pytest.approx(0.25), None]
    (note,) = back.problems
    assert (note.kind, note.severity, note.where) == ("image-pages", "note", "a.tif")
    assert "1 files hold several pictures (a.tif: 3)" in note.what
