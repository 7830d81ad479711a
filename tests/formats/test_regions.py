"""Regions of tiled TIFF files against the pixels they were written from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens.formats import regions
from cytolens.formats.regions import open_regions
from cytolens.images import load_image
from cytolens.problems import ImageError

Pixels = NDArray[np.uint8]


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def smooth(height: int, width: int) -> Pixels:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=2).astype(np.uint8)


def tiled(path: Path, pixels: NDArray[Any], tile: tuple[int, int] = (32, 48), **options: Any) -> Path:
    given: dict[str, Any] = {"photometric": "rgb"} | options
    tifffile.imwrite(path, pixels, tile=tile, **given)
    return path


def opened(path: Path) -> regions.TiledTiff:
    file = open_regions(path, least_pixels=0)
    assert file is not None
    return file


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pixels]:
    pixels = noise(131, 203)
    return tiled(tmp_path_factory.mktemp("tiff") / "field.tif", pixels), pixels


# -- reading ----------------------------------------------------------------------------------------


@given(data=st.data())
def test_any_region_is_that_part_of_the_picture(field: tuple[Path, Pixels], data: st.DataObject) -> None:
    path, pixels = field
    height, width = pixels.shape[:2]
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    with opened(path) as file:
        part = file.read(x, y, w, h)
    assert part.dtype == np.uint8
    np.testing.assert_array_equal(part, pixels[y : y + h, x : x + w])


@pytest.mark.parametrize("options", [{"compression": "zlib"}, {"compression": "zlib", "predictor": True}])
def test_compressed_tiles_are_decoded(tmp_path: Path, options: dict[str, Any]) -> None:
    pixels = noise(90, 70)
    with opened(tiled(tmp_path / "a.tiff", pixels, (16, 32), **options)) as file:
        assert file.size_wh == (70, 90)
        np.testing.assert_array_equal(file.read(0, 0, 70, 90), pixels)


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = noise(60, 50, 1)[:, :, 0]
    with opened(tiled(tmp_path / "grey.tif", grey, (16, 16), photometric="minisblack")) as file:
        np.testing.assert_array_equal(file.read(5, 7, 40, 50), np.repeat(grey[7:57, 5:45, None], 3, axis=2))


def test_bigtiff_of_the_other_byte_order_reads_the_same(tmp_path: Path) -> None:
    pixels = noise(60, 50)
    with opened(tiled(tmp_path / "big.TIF", pixels, (16, 16), bigtiff=True, byteorder=">")) as file:
        np.testing.assert_array_equal(file.read(0, 0, 50, 60), pixels)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_transparency_is_laid_over_white_as_in_a_plain_image(tmp_path: Path, kind: str) -> None:
    pixels = noise(48, 48, 4)
    if kind == "assocalpha":  # colours are multiplied by their share already
        pixels[:, :, :3] = (pixels[:, :, :3] * (pixels[:, :, 3:] / 255)).astype(np.uint8)
    path = tiled(tmp_path / "a.tif", pixels, (16, 16), extrasamples=[kind])
    share = pixels[:, :, 3:].astype(np.float64) / 255
    light = pixels[:, :, :3] * (share if kind == "unassalpha" else 1.0) + 255 * (1 - share)
    with opened(path) as file:
        part = file.read(0, 0, 48, 48).astype(int)
    assert np.abs(part - light).max() <= 0.51
    assert np.abs(part - load_image(path).pixels.astype(int)).max() <= 1  # region or whole: the same picture


def test_a_fourth_channel_that_is_no_transparency_is_left_out(tmp_path: Path) -> None:
    pixels = noise(32, 32, 4)
    with opened(tiled(tmp_path / "a.tif", pixels, (16, 16), extrasamples=["unspecified"])) as file:
        np.testing.assert_array_equal(file.read(0, 0, 32, 32), pixels[:, :, :3])


def test_only_the_tiles_touched_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    decode = regions.TiledTiff._tile
    monkeypatch.setattr(regions.TiledTiff, "_tile", lambda self, index: (asked.append(index), decode(self, index))[1])
    with opened(tiled(tmp_path / "a.tif", noise(64, 96), (16, 16))) as file:  # 6 tiles across
        file.read(16, 16, 16, 16)
        assert asked == [7]
        asked.clear()
        file.read(15, 31, 2, 2)
        assert asked == [6, 7, 12, 13]


def test_a_tile_without_data_is_background(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    tifffile.imwrite(
        path,
        iter([np.zeros((16, 16, 3), np.uint8), None]),
        shape=(16, 32, 3),
        dtype=np.uint8,
        tile=(16, 16),
        photometric="rgb",
        compression="zlib",
    )
    with opened(path) as file:
        part = file.read(0, 0, 32, 16)
    assert (part[:, :16] == 0).all()
    assert (part[:, 16:] == 255).all()


def test_damaged_tiles_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tiled(tmp_path / "a.tif", smooth(64, 64), (32, 32), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages.first.dataoffsets[3]
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    with opened(path) as file:
        np.testing.assert_array_equal(file.read(0, 0, 64, 32), smooth(64, 64)[:32])  # the other tiles are whole
        with pytest.raises(ImageError, match=r"a\.tif.*a tile cannot be decoded") as caught:
            file.read(0, 0, 64, 64)
    assert caught.value.problem.kind == "image-damaged"
    assert caught.value.problem.severity == "error"


def test_a_truncated_file_is_an_error_when_its_end_is_read(tmp_path: Path) -> None:
    path = tiled(tmp_path / "a.tif", noise(64, 64), (32, 32))
    path.write_bytes(path.read_bytes()[:-1000])
    with opened(path) as file, pytest.raises(ImageError, match=r"a\.tif"):
        file.read(32, 32, 32, 32)


def test_a_missing_codec_says_which_extra_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_codec(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.JPEG: 7> requires the 'imagecodecs' package")

    with opened(tiled(tmp_path / "a.tif", noise(32, 32), (16, 16))) as file:
        monkeypatch.setattr(file._page, "decode", without_codec)
        with pytest.raises(ImageError, match=r"cytolens\[slides\]") as caught:
            file.read(0, 0, 8, 8)
    assert caught.value.problem.kind == "image-codec"


# -- overview ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest_px", [50, 77, 400, 1000])
def test_the_overview_is_the_picture_made_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, longest_px: int
) -> None:
    monkeypatch.setattr(regions, "_OVERVIEW_BLOCK_PX", 128)  # several blocks
    pixels = smooth(300, 401)
    with opened(tiled(tmp_path / "a.tif", pixels, (64, 64))) as file:
        small = file.overview(longest_px)
    scale = min(1.0, longest_px / 401)
    assert small.shape == (round(300 * scale), round(401 * scale), 3)
    y = ((np.arange(small.shape[0]) + 0.5) / scale - 0.5).clip(0, 299).round().astype(int)
    x = ((np.arange(small.shape[1]) + 0.5) / scale - 0.5).clip(0, 400).round().astype(int)
    steepest = 2 * 255 / 300 / scale  # grey levels per pixel of the overview, with its neighbour
    assert np.abs(small.astype(int) - pixels[y][:, x]).max() <= steepest + 1


def test_a_thin_picture_keeps_at_least_one_pixel(tmp_path: Path) -> None:
    with opened(tiled(tmp_path / "a.tif", smooth(16, 900), (16, 64))) as file:
        assert file.overview(20).shape == (1, 20, 3)


# -- which files ------------------------------------------------------------------------------------


def test_only_large_files_are_read_by_regions(tmp_path: Path) -> None:
    path = tiled(tmp_path / "a.tif", noise(40, 50), (16, 16))
    assert open_regions(path) is None
    assert open_regions(path, least_pixels=2000) is None  # as many pixels, not more
    file = open_regions(path, least_pixels=1999)
    assert file is not None
    file.close()


_Writer = Callable[[Path], object]
_REFUSED: dict[str, tuple[str, _Writer]] = {
    "strips": ("a.tif", lambda p: tifffile.imwrite(p, noise(64, 64), photometric="rgb")),
    "16 bits": ("a.tif", lambda p: tiled(p, noise(64, 64).astype(np.uint16), (16, 16))),
    "planes apart": (
        "a.tif",
        lambda p: tiled(p, noise(64, 64).transpose(2, 0, 1).copy(), (16, 16), planarconfig="separate"),
    ),
    "black is high": ("a.tif", lambda p: tiled(p, noise(64, 64)[:, :, 0], (16, 16), photometric="miniswhite")),
    "turned": ("a.tif", lambda p: tiled(p, noise(64, 64), (16, 16), extratags=[(274, "H", 1, 6, True)])),
    "five channels": ("a.tif", lambda p: tiled(p, noise(64, 64, 5), (16, 16))),
    "another suffix": ("a.png", lambda p: tiled(p, noise(64, 64), (16, 16))),
    "not a TIFF": ("a.tif", lambda p: p.write_bytes(b"II*\0 nothing of the kind")),
    "empty": ("a.tif", lambda p: p.write_bytes(b"")),
}


@pytest.mark.parametrize("case", list(_REFUSED))
def test_other_files_are_left_to_plain_reading(tmp_path: Path, case: str) -> None:
    name, write = _REFUSED[case]
    write(tmp_path / name)
    assert open_regions(tmp_path / name, least_pixels=0) is None
    (tmp_path / name).unlink()  # and nothing holds them open


def test_a_missing_file_is_left_to_plain_reading(tmp_path: Path) -> None:
    assert open_regions(tmp_path / "none.tif", least_pixels=0) is None


def test_the_fingerprint_is_the_sha256_of_the_file(field: tuple[Path, Pixels]) -> None:
    path, _ = field
    with opened(path) as file:
        assert file.fingerprint() == hashlib.sha256(path.read_bytes()).hexdigest()
