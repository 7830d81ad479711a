"""Slides through OpenSlide against the pixels they were written from."""

from __future__ import annotations

import builtins
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from cytolens import formats
from cytolens.formats import ReadOptions, regions
from cytolens.formats.regions import open_regions
from cytolens.formats.slides import Slide
from cytolens.images import find_images
from cytolens.problems import ImageError, MissingExtraError

APERIO = "Aperio Image Library v11.2.1\n300x200 (64x64) J2K/YUV16|AppMag = 40|MPP = 0.2498"


def picture(height: int = 200, width: int = 300) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)


def slide(path: Path, description: str = APERIO) -> Path:
    """A small pyramid of two levels, laid out as Aperio's scanners do it."""
    pixels = picture()
    with tifffile.TiffWriter(path) as writer:
        for step in (1, 4):
            writer.write(
                pixels[::step, ::step].copy(),
                photometric="rgb",
                tile=(64, 64),
                description=description,
                metadata=None,
            )
    return path


@pytest.fixture(scope="module")
def aperio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openslide", reason='needs the extra "slides"')
    return slide(tmp_path_factory.mktemp("slides") / "a.svs")


def opened(path: Path) -> regions.Regions:
    file = open_regions(path)
    assert isinstance(file, Slide)
    return file


def test_regions_are_those_of_the_picture(aperio: Path) -> None:
    with opened(aperio) as file:
        assert file.size_wh == (300, 200)
        assert file.um_per_px == pytest.approx(0.2498)
        assert file.pages == 1
        part = file.read(37, 51, 100, 90)
        assert part.dtype == np.uint8
        np.testing.assert_array_equal(part, picture()[51:141, 37:137])
        assert file.fingerprint() == hashlib.sha256(aperio.read_bytes()).hexdigest()


def test_the_overview_is_the_picture_made_smaller(aperio: Path) -> None:
    with opened(aperio) as file:
        small = file.overview(75)
    assert small.shape == (50, 75, 3)
    wanted = picture()[::4, ::4].astype(int)
    assert np.abs(small[:, :, :2].astype(int) - wanted[:, :, :2]).max() <= 8


def test_beyond_the_edge_it_is_white(aperio: Path) -> None:
    with opened(aperio) as file:
        part = file.read(290, 190, 20, 20)
    np.testing.assert_array_equal(part[:10, :10], picture()[190:, 290:])
    assert (part[10:] == 255).all()


def test_slides_are_found_and_imported_with_their_scale(aperio: Path) -> None:
    assert find_images([aperio.parent]) == [aperio]
    table = aperio.parent / "t.csv"
    table.write_text("NAME,x1,y1,x2,y2\na.svs,1,2,3,4\n")
    back = formats.read(table, "csv_boxes", ReadOptions())
    (row,) = back.dataset.images.rows()
    assert (row["width_px"], row["height_px"], row["um_per_px"]) == (300, 200, pytest.approx(0.2498))
    assert row["sha256"] == hashlib.sha256(aperio.read_bytes()).hexdigest()
    assert not list(back.problems)


def test_what_is_no_slide_is_an_image_error(tmp_path: Path) -> None:
    pytest.importorskip("openslide", reason='needs the extra "slides"')
    (tmp_path / "a.svs").write_bytes(b"no slide")
    with pytest.raises(ImageError, match=r"a\.svs.*cannot be read as a slide"):
        open_regions(tmp_path / "a.svs")
    with pytest.raises(ImageError, match="there is no such file"):
        open_regions(tmp_path / "none.ndpi")


def test_a_damaged_slide_is_an_image_error(tmp_path: Path) -> None:
    pytest.importorskip("openslide", reason='needs the extra "slides"')
    path = slide(tmp_path / "a.svs")
    with tifffile.TiffFile(path) as file:
        first = file.pages.first.dataoffsets[0]
    content = path.read_bytes()
    with opened(path) as file:
        path.write_bytes(content[: first + 100])
        with pytest.raises(ImageError, match=r"a\.svs.*a region cannot be read"):
            file.read(0, 0, 300, 200)


def test_without_openslide_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".")[0] == "openslide":
            raise ModuleNotFoundError("No module named 'openslide'", name="openslide")
        return real(name, *rest, **options)

    for name in [name for name in sys.modules if name.split(".")[0] == "openslide"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "openslide", None)
    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "a.svs").write_bytes(b"")
    with pytest.raises(MissingExtraError, match=r'Reading slides such as "a\.svs".*cytolens\[slides\]'):
        open_regions(tmp_path / "a.svs")
