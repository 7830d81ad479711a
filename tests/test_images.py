from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
import time
import tracemalloc
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cytolens.images import SCHEMA, Images, decode_image, find_images, image_size_wh, load_image
from cytolens.problems import DatasetError, ImageError
from tests.strategies import image_tables, pictures

RNG = np.random.default_rng(7)
GREY: NDArray[np.uint8] = RNG.integers(0, 256, (7, 5), np.uint8)
COLOUR: NDArray[np.uint8] = RNG.integers(0, 256, (7, 5, 3), np.uint8)
ALPHA: NDArray[np.uint8] = RNG.integers(0, 256, (7, 5), np.uint8)
DEEP = GREY.astype(np.uint16) * 257  # the full range of 16 bits
CAMERA_12_BITS = COLOUR.astype(np.uint16) * 16  # counts below 4096 in a 16-bit file


def by_pillow(image: Image.Image | NDArray[Any], kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, kind, **options)
    return stream.getvalue()


def by_tifffile(array: NDArray[Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def by_opencv(array: NDArray[Any]) -> bytes:
    """A PNG; OpenCV writes 16 bits with colours, which Pillow cannot. Channels are given as RGB(A)."""
    order = [2, 1, 0, 3][: array.shape[2]]
    return cv2.imencode(".png", array[:, :, order])[1].tobytes()


def decoded(data: bytes) -> NDArray[np.uint8]:
    """Pixels, after checking what must hold for every image."""
    image = decode_image(data, "x")
    assert image.pixels.dtype == np.uint8
    assert image.pixels.ndim == 3
    assert image.pixels.shape[2] == 3
    assert image.pixels.flags.c_contiguous
    assert image.pixels.flags.writeable
    assert image.sha256 == hashlib.sha256(data).hexdigest()
    assert image_size_wh(data, "x") == image.pixels.shape[1::-1]
    return image.pixels


def grey_rgb(grey: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def over_white(colour: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    share = alpha[:, :, None] / 255
    return colour * share + 255 * (1 - share)


# -- what a file may hold -------------------------------------------------------------------------


@given(pictures())
def test_lossless_rgb_comes_back_exactly(pixels: NDArray[np.uint8]) -> None:
    for data in (
        by_pillow(pixels, "PNG"),
        by_pillow(pixels, "BMP"),
        by_pillow(pixels, "WEBP", lossless=True),
        by_pillow(pixels, "TIFF", compression="tiff_lzw"),
        by_tifffile(pixels, photometric="rgb"),
        by_tifffile(pixels, photometric="rgb", compression="zlib", bigtiff=True, byteorder=">"),
        by_tifffile(np.moveaxis(pixels, 2, 0), photometric="rgb", planarconfig="separate"),
        by_tifffile(pixels, photometric="rgb", tile=(16, 16)),
    ):
        np.testing.assert_array_equal(decoded(data), pixels)


def test_jpeg_is_read_as_pillow_reads_it() -> None:
    data = by_pillow(COLOUR, "JPEG")
    np.testing.assert_array_equal(decoded(data), np.asarray(Image.open(io.BytesIO(data))))
    assert decode_image(data, "x").notes == ()


def test_a_cmyk_jpeg_has_the_colours_that_opencv_sees() -> None:
    smooth = cv2.resize(COLOUR, (64, 48), interpolation=cv2.INTER_CUBIC)
    data = by_pillow(Image.fromarray(smooth).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decoded(data).astype(int) - smooth).mean() < 6
    assert "CMYK" in decode_image(data, "x").notes[0]


def test_grey_one_bit_and_palette() -> None:
    one_bit = Image.fromarray(GREY > 100)
    palette = Image.fromarray(COLOUR).quantize(8)
    expected = {
        "L": grey_rgb(GREY),
        "1": grey_rgb((GREY > 100) * np.uint8(255)),
        "P": np.asarray(palette.convert("RGB")),
    }
    for image in (Image.fromarray(GREY), one_bit, palette):
        for kind in ("PNG", "TIFF", "BMP"):
            data = by_pillow(image, kind)
            np.testing.assert_array_equal(decoded(data), expected[image.mode])
            assert decode_image(data, "x").notes, "a conversion is said"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_laid_over_white(kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = by_pillow(np.dstack([COLOUR, ALPHA]), kind, **options)
    assert np.abs(decoded(data) - over_white(COLOUR, ALPHA)).max() <= 1
    assert "transparency laid over white" in decode_image(data, "x").notes


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_with_transparency_is_laid_over_white(kind: str) -> None:
    data = by_pillow(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), kind)
    assert np.abs(decoded(data) - over_white(grey_rgb(GREY), ALPHA)).max() <= 1


def test_a_transparent_palette_colour_is_white() -> None:
    palette = Image.fromarray(COLOUR).quantize(8)
    indices = np.asarray(palette)
    expected = np.where((indices == 3)[:, :, None], 255, np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(decoded(by_pillow(palette, "PNG", transparency=3)), expected)
    shares = np.array([0, 128, 255, 255, 255, 255, 255, 255], np.uint8)
    shown = decoded(by_pillow(palette, "PNG", transparency=shares.tobytes()))
    assert np.abs(shown - over_white(np.asarray(palette.convert("RGB")), shares[indices])).max() <= 1


def test_a_fourth_channel_that_is_no_transparency_is_left_out() -> None:
    data = by_tifffile(np.dstack([COLOUR, ALPHA]), photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(decoded(data), COLOUR)


def test_premultiplied_transparency() -> None:
    multiplied = np.rint(COLOUR * (ALPHA[:, :, None] / 255)).astype(np.uint8)
    data = by_tifffile(np.dstack([multiplied, ALPHA]), photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(decoded(data) - over_white(COLOUR, ALPHA)).max() <= 1


# -- more than 8 bits -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        by_tifffile(DEEP),
        by_tifffile(DEEP, byteorder=">"),
        by_tifffile(DEEP, tile=(16, 16), compression="zlib"),
        by_pillow(Image.fromarray(DEEP), "PNG"),
        by_tifffile(65535 - DEEP, photometric="miniswhite"),
        by_tifffile(GREY.astype(np.float32) / 255),
        by_tifffile(GREY.astype(np.float64)),
    ],
    ids=["tiff", "big-endian", "tiled", "png", "white is zero", "shares of one", "floats up to 255"],
)
def test_16_bits_and_floats_of_full_range_become_the_same_grey(data: bytes) -> None:
    np.testing.assert_array_equal(decoded(data), grey_rgb(GREY))
    assert any("scaled to 8 bits" in note for note in decode_image(data, "x").notes)


@pytest.mark.parametrize(
    "data",
    [
        by_tifffile(CAMERA_12_BITS, photometric="rgb"),
        by_tifffile(np.moveaxis(CAMERA_12_BITS, 2, 0), photometric="rgb", planarconfig="separate"),
        by_opencv(CAMERA_12_BITS),
        by_tifffile(np.dstack([CAMERA_12_BITS, np.full((7, 5), 65535, np.uint16)]), photometric="rgb"),
        by_opencv(np.dstack([CAMERA_12_BITS, np.full((7, 5), 65535, np.uint16)])),
    ],
    ids=["tiff", "planes", "png", "tiff opaque", "png opaque"],
)
def test_16_bit_colour_is_scaled_by_the_depth_of_the_camera(data: bytes) -> None:
    np.testing.assert_array_equal(decoded(data), np.rint(CAMERA_12_BITS / 4095 * 255))
    assert "values up to 4095 scaled to 8 bits" in decode_image(data, "x").notes


@pytest.mark.parametrize(
    "array", [np.zeros((4, 6), np.uint16), np.zeros((4, 6), np.float32), np.zeros((4, 6), np.int16)]
)
def test_an_all_black_deep_image_is_black(array: NDArray[Any]) -> None:
    assert decoded(by_tifffile(array)).max() == 0


def test_the_noise_of_a_dark_deep_image_stays_dark() -> None:
    assert decoded(by_tifffile(GREY.astype(np.uint16) % 2)).max() == 1


@given(st.sampled_from([255, 1023, 4095, 16383, 65535]), st.integers(0, 2**16))
def test_scaling_is_linear_and_keeps_the_order(top: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, top + 1, (6, 6)).astype(np.uint16)
    values[0, :2] = 0, top
    shown = decoded(by_tifffile(values))[:, :, 0]
    np.testing.assert_allclose(shown, values * (255 / top), atol=0.51)
    assert (shown[0, 0], shown[0, 1]) == (0, 255)


def test_values_that_are_not_numbers_are_refused() -> None:
    broken = np.ones((4, 4), np.float32)
    broken[2, 2] = np.nan
    with pytest.raises(ImageError, match="values that are not numbers"):
        decode_image(by_tifffile(broken), "x")


# -- shapes, pages, orientation -------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 9, 3), (9, 1, 3), (1, 1, 3), (3, 9, 3), (9, 3, 3), (4, 5, 3)])
def test_thin_images_keep_their_shape(shape: tuple[int, int, int]) -> None:
    pixels = RNG.integers(0, 256, shape, np.uint8)
    planes = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    np.testing.assert_array_equal(decoded(by_pillow(pixels, "PNG")), pixels)
    np.testing.assert_array_equal(decoded(by_tifffile(pixels, photometric="rgb")), pixels)
    np.testing.assert_array_equal(decoded(by_tifffile(planes, photometric="rgb", planarconfig="separate")), pixels)
    np.testing.assert_array_equal(decoded(by_tifffile(pixels[:, :, 0])), grey_rgb(pixels[:, :, 0]))


def test_of_several_pages_the_first_is_read_and_that_is_said() -> None:
    data = by_tifffile(np.stack([GREY, 255 - GREY]), photometric="minisblack")
    np.testing.assert_array_equal(decoded(data), grey_rgb(GREY))
    assert "first of 2 pages" in decode_image(data, "x").notes


@pytest.mark.parametrize("channels", [2, 5, 7])
def test_channels_that_are_no_picture_are_refused_with_their_number(channels: int) -> None:
    array = RNG.integers(0, 256, (9, 8, channels), np.uint8)
    data = by_tifffile(
        array, photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"] * (channels - 1)
    )
    if channels == 2:  # grey and a channel that is no transparency
        np.testing.assert_array_equal(decoded(data), grey_rgb(array[:, :, 0]))
    else:
        with pytest.raises(ImageError, match=f"holds 9×8×{channels} values") as caught:
            decode_image(data, "x")
        assert caught.value.problem.kind == "image-channels"


def turned(orientation: int) -> NDArray[np.uint8]:
    picture = Image.fromarray(COLOUR)
    picture.getexif()[274] = orientation
    return np.asarray(ImageOps.exif_transpose(picture))


def with_exif(kind: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return by_pillow(COLOUR, kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_applies_it(orientation: int) -> None:
    for data in (
        with_exif("PNG", orientation),
        with_exif("WEBP", orientation, lossless=True),
        by_tifffile(COLOUR, photometric="rgb", extratags=[(274, "H", 1, orientation, True)]),
        by_pillow(COLOUR, "TIFF", tiffinfo={274: orientation}),
        by_pillow(COLOUR, "TIFF", tiffinfo={274: orientation}, compression="tiff_lzw"),
    ):
        np.testing.assert_array_equal(decoded(data), turned(orientation))
        assert ("turned by its EXIF orientation" in decode_image(data, "x").notes) == (orientation > 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_as_pillow_turns_it(orientation: int) -> None:
    data = with_exif("JPEG", orientation)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decoded(data), np.asarray(expected))
    assert ("turned by its EXIF orientation" in decode_image(data, "x").notes) == (orientation > 1)


def test_a_png_may_say_its_orientation_behind_its_pixels() -> None:
    data = by_pillow(COLOUR, "PNG")
    exif = Image.Exif()
    exif[274] = 6
    late = data[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + data[-12:]
    np.testing.assert_array_equal(decoded(late), turned(6))


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_is_none_is_passed_over(orientation: int) -> None:
    np.testing.assert_array_equal(decoded(with_exif("PNG", orientation)), COLOUR)
    assert decode_image(with_exif("PNG", orientation), "x").notes == ()


@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00MM\x00*\x00\x00"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated")
def test_damaged_exif_data_do_not_cost_the_picture(exif: bytes) -> None:
    plain, data = by_pillow(COLOUR, "JPEG"), by_pillow(COLOUR, "JPEG", exif=exif)
    np.testing.assert_array_equal(decoded(data), decoded(plain))


# -- what is refused ------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bomb(side: int, *extra: bytes) -> bytes:
    """A PNG of side × side px whose every row is really there, in a few hundred kilobytes at most."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(side * (1 + (side + 7) // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("read", [decode_image, image_size_wh])
def test_a_png_bomb_is_refused_before_it_is_unpacked(read: Callable[..., Any]) -> None:
    data = png_bomb(30_000, chunk(b"tEXt", b"Comment\x00eXIf tiff:Orientation"))
    tracemalloc.start()
    begun = time.perf_counter()
    with pytest.raises(ImageError, match="30000 × 30000 px are 900,000,000 pixels; allowed are 250,000,000") as caught:
        read(data, "bomb.png")
    seconds, (_, peak) = time.perf_counter() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.problem.kind == "image-too-large"
    assert "--max-pixels" in caught.value.problem.fix
    assert peak < 5_000_000
    assert seconds < 1


@pytest.mark.parametrize(
    "data",
    [
        by_pillow(COLOUR, "PNG"),
        by_pillow(COLOUR, "JPEG"),
        by_tifffile(COLOUR, photometric="rgb"),
        by_pillow(COLOUR, "BMP"),
    ],
    ids=["png", "jpeg", "tiff", "bmp"],
)
def test_the_limit_of_pixels_can_be_moved(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(data)
    assert load_image(path, max_pixels=35).pixels.shape == (7, 5, 3)
    assert image_size_wh(data, "x", max_pixels=35) == (5, 7)
    with pytest.raises(ImageError, match="5 × 7 px are 35 pixels; allowed are 34"):
        load_image(path, max_pixels=34)
    with pytest.raises(ImageError, match="5 × 7 px"):
        image_size_wh(data, "x", max_pixels=34)


def test_a_raised_limit_lets_a_large_image_in() -> None:
    data = png_bomb(16_000)  # 256 Mpx of one bit each
    assert image_size_wh(data, "x", max_pixels=16_000**2) == (16_000, 16_000)
    with pytest.raises(ImageError, match="256,000,000 pixels; allowed are 250,000,000"):
        decode_image(data, "x")


def test_pillows_own_limit_is_neither_used_nor_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Image.MAX_IMAGE_PIXELS
    decoded(by_pillow(COLOUR, "PNG"))
    assert before == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    for kind in ("PNG", "JPEG", "TIFF", "BMP"):  # Pillow's WebP reader insists on it; no WebP can reach the default
        assert decoded(by_pillow(COLOUR, kind)).shape == (7, 5, 3)
    assert Image.MAX_IMAGE_PIXELS == 3


LARGE = cv2.resize(COLOUR, (200, 150), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    "whole",
    [
        by_pillow(LARGE, "JPEG"),
        by_pillow(LARGE, "PNG"),
        by_pillow(LARGE, "BMP"),
        by_pillow(LARGE, "WEBP"),
        by_tifffile(LARGE, photometric="rgb"),
        by_pillow(LARGE, "TIFF", compression="tiff_lzw"),
        by_opencv(LARGE.astype(np.uint16) * 257),
    ],
    ids=["jpeg", "png", "bmp", "webp", "tiff", "tiff-lzw", "png-16-bit"],
)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_truncated_file_is_refused_and_says_so(whole: bytes, share: float) -> None:
    with pytest.raises(ImageError, match=r"x: cannot be decoded: .+\. Copy it again from its source\.") as caught:
        decode_image(whole[: int(len(whole) * share)], "x")
    assert (caught.value.problem.kind, caught.value.problem.severity) == ("image-damaged", "error")


@given(st.sampled_from(["JPEG", "PNG", "TIFF", "BMP", "WEBP"]), st.data())
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_an_image_error_or_an_image(kind: str, data: st.DataObject) -> None:
    whole = by_pillow(COLOUR, kind)
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + data.draw(st.binary(max_size=4)) + whole[at + data.draw(st.integers(0, 4)) :]
    for read in (decode_image, image_size_wh):
        with contextlib.suppress(ImageError):  # anything else fails
            read(damaged, "x", 10_000)


@pytest.mark.parametrize(
    ("data", "kind", "what"),
    [
        (b"", "image-empty", "0 bytes"),
        (b"name,x,y\na,1,2\n", "image-not-an-image", "first bytes b'name,x,y'"),
        (b"GIF89a....", "image-not-an-image", "Allowed: JPEG, PNG, TIFF, BMP, WebP"),
        (b"RIFF\x00\x00\x00\x00WAVE", "image-not-an-image", "is not an image"),
        (b"\x89PNG\r\n\x1a\n", "image-damaged", "cannot be decoded"),
        (b"\xff\xd8\xff", "image-damaged", "cannot be decoded"),
        (b"II*\x00", "image-damaged", "cannot be decoded"),
        (b"BM", "image-damaged", "cannot be decoded"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, kind: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert caught.value.problem.kind == kind
    assert caught.value.problem.where == str(path)
    assert what in str(caught.value)
    with pytest.raises(ImageError) as caught:
        image_size_wh(data, "b.png")
    assert (caught.value.problem.kind, caught.value.problem.where) == (kind, "b.png")


def test_a_missing_file_a_folder_and_a_wrong_name(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no such file") as caught:
        load_image(tmp_path / "absent.png")
    assert caught.value.problem.kind == "image-missing"
    with pytest.raises(ImageError, match="is a folder, not an image"):
        load_image(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image(tmp_path / "file" / "a.png")
    with pytest.raises(ImageError, match="is not a file name"):
        load_image("a\x00.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(by_pillow(COLOUR, "PNG"))
    path.chmod(0)
    with pytest.raises(ImageError, match=r"cannot be opened \(Permission denied\)"):
        load_image(path)


@pytest.mark.parametrize("name", ["färbung ü.png", "細胞.png", unicodedata.normalize("NFD", "é.png"), "a [1] *.png"])
def test_any_name_can_be_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(by_pillow(COLOUR, "PNG"))
    np.testing.assert_array_equal(load_image(path).pixels, COLOUR)
    np.testing.assert_array_equal(load_image(str(path)).pixels, COLOUR)
    assert find_images([path]) == [path]
    assert find_images([tmp_path]) == [path]


@pytest.mark.data
def test_real_images_are_read_as_pillow_reads_them(data_root: Path) -> None:
    folders = {"pbc/images": "*.jpg", "bccd/JPEGImages": "*.jpg", "txl_pbc": "**/*.*g", "dsb2018/images": "*.png"}
    for folder, pattern in folders.items():
        for path in sorted((data_root / folder).glob(pattern))[:3]:
            data = path.read_bytes()
            np.testing.assert_array_equal(decoded(data), np.asarray(Image.open(path).convert("RGB")))


# -- finding --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.png",
        "a.JPG",
        "deep/er/c.tiff",
        "deep/ü.webp",
        "notes.txt",
        ".hidden.png",
        ".cache/d.png",
        "deep/.x/e.png",
    ):
        path = tmp_path / "smears" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "smears" / "folder.png").mkdir()
    return tmp_path / "smears"


def test_a_folder_is_searched_whole_without_what_is_hidden(folder: Path) -> None:
    found = [path.relative_to(folder).as_posix() for path in find_images([folder])]
    assert found == ["a.JPG", "b.png", "deep/er/c.tiff", "deep/ü.webp"]


def test_a_folder_inside_a_hidden_one_is_searched_when_asked_for(folder: Path) -> None:
    assert [path.name for path in find_images([folder / ".cache"])] == ["d.png"]


def test_files_and_patterns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_images([folder / "notes.txt"]) == [folder / "notes.txt"], "a named file is taken at its word"
    assert [path.name for path in find_images([f"{folder}/*.[pJ]*"])] == ["a.JPG", "b.png"]
    assert [path.name for path in find_images([f"{folder}/**/*.tiff"])] == ["c.tiff"]
    monkeypatch.chdir(folder)
    assert find_images(["*.png"]) == [Path("b.png")]


def test_what_is_named_twice_is_found_once(folder: Path) -> None:
    assert find_images([folder / "b.png", f"{folder}/*.png"]) == [folder / "b.png"]
    assert find_images([]) == []


@pytest.mark.parametrize("source", ["absent.png", "*.absent", "empty"])
def test_a_source_without_images_is_an_error_that_names_it(source: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"names no image\. Give an image, a folder") as caught:
        find_images([folder, folder / source])
    assert source in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(folder: Path) -> None:
    (folder / "deep").chmod(0)
    try:
        assert [path.name for path in find_images([folder])] == ["a.JPG", "b.png"]
    finally:
        (folder / "deep").chmod(0o755)


# -- the table ------------------------------------------------------------------------------------


@given(image_tables())
def test_a_table_always_has_every_column(images: Images) -> None:
    assert dict(images.frame.schema) == SCHEMA
    assert Images.of(images.rows()).frame.equals(images.frame)
    assert len(images) == len(images.ids) == len(set(images.ids))
    for image_id in images.ids:
        assert images.row(image_id)["image_id"] == image_id


def test_an_empty_table() -> None:
    assert len(Images.empty()) == len(Images.of([])) == 0
    assert Images.empty().concat(Images.of([{"image_id": "a"}])).ids == ["a"]
    assert Images.empty().where(split="train").ids == []


THREE = Images.of(
    [
        {"image_id": "a", "split": "train", "fold": 0, "group": "p1"},
        {"image_id": "b", "split": "val", "fold": 1},
        {"image_id": "ü", "split": "train", "fold": 2, "complete_for": ["WBC"]},
    ]
)


def test_where_takes_a_value_several_or_nothing_known() -> None:
    assert THREE.where(split="train").ids == ["a", "ü"]
    assert THREE.where(split="train", fold=[1, 2]).ids == ["ü"]
    assert THREE.where(group=None).ids == ["b", "ü"]
    assert THREE.where(group=["p1", None]).ids == ["a", "b", "ü"]
    assert THREE.where(fold=None).ids == []


def test_with_columns_replaces_all_rows_or_each() -> None:
    assert THREE.with_columns(stain="Giemsa").frame["stain"].to_list() == ["Giemsa"] * 3
    assert THREE.with_columns(split=["x", "y", None]).frame["split"].to_list() == ["x", "y", None]
    assert THREE.with_columns(fold=pl.Series([2, 1, 0])).frame["fold"].to_list() == [2, 1, 0]
    assert THREE.with_columns(fold=pl.col("fold") + 1).frame["fold"].to_list() == [1, 2, 3]
    assert THREE.with_columns(um_per_px=None).frame.equals(THREE.frame)
    assert THREE.with_columns(complete_for=["RBC"]).frame["complete_for"].to_list() == [["RBC"]] * 3
    assert THREE.frame["split"].to_list() == ["train", "val", "train"], "the table itself stays"


def test_columns_come_in_one_order() -> None:
    turned_frame = THREE.frame.select(list(SCHEMA)[::-1])
    assert Images(turned_frame).concat(Images.of([{"image_id": "d"}])).ids == ["a", "b", "ü", "d"]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Images.of([{"image_id": "a"}, {"image_id": "a"}]), r"image_id must be unique; repeated: \['a'\]"),
        (lambda: THREE.concat(THREE), "image_id must be unique"),
        (lambda: Images.of([{"path": "a.png"}]), "1 images have no image_id"),
        (lambda: Images.of([{"image_id": "a", "width": 3}]), 'no column "width". Did you mean "width_px"?'),
        (lambda: Images(pl.DataFrame({"image_id": ["a"]})), r"path \(missing, wanted String\)"),
        (lambda: Images(THREE.frame.cast({"fold": pl.String})), r"wrong \[fold \(String, wanted Int32\)\]"),
        (lambda: Images(THREE.frame.with_columns(note=pl.lit("x"))), r"unknown \['note'\]"),
        (lambda: THREE.row("c"), 'no image "c" among 3 images'),
        (lambda: THREE.where(splitt="train"), 'no column "splitt". Did you mean "split"?'),
        (lambda: THREE.with_columns(patient="x"), 'no column "patient"'),
    ],
)
def test_what_is_wrong_with_a_table_is_said(act: Callable[[], object], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        act()
