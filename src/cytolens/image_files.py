"""The one way to read an image file safely.

Pixels inside the program are uint8 RGB of shape (height, width, 3) with the EXIF orientation
applied. Whatever a file holds (grey, palette, alpha, CMYK, 16 bits) is converted here, explicitly.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from cytolens.problems import ImageError, Problem

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile
    from tifffile import TiffPage

Pixels = NDArray[np.uint8]

MAX_PIXELS = 250_000_000


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image in memory.

    Attributes:
        pixels: uint8 RGB, shape (height, width, 3).
        sha256: of the file's bytes, in hexadecimal.
        notes: what had to be converted, such as "16 bits scaled to 8".
    """

    pixels: Pixels
    sha256: str
    notes: tuple[str, ...] = ()


def _refuse(kind: str, path: str, what: str, fix: str) -> NoReturn:
    raise ImageError(Problem(kind, path, what, fix, "error"))


def load_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Read one image file.

    Raises:
        ImageError: the file is missing, empty, no image, damaged, or larger than `max_pixels`.
    """
    where = os.fspath(path)
    return decode_image(_bytes_of(where), where, max_pixels)


def load_grey(path: str | os.PathLike[str], least_px: int, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Read one image file in grey, possibly smaller than it is: shape (height, width), no side below `least_px`.

    A JPEG is decoded at a half, quarter or eighth of its size straight away, which takes a fraction of the
    time. Its orientation is not applied.

    Raises:
        ImageError: as `load_image`.
    """
    import cv2

    where = os.fspath(path)
    data = _bytes_of(where)
    if data.startswith(b"\xff\xd8"):
        with _decoding(where):
            image = _plugin(data)(io.BytesIO(data))
            _too_large(image.size, where, max_pixels)
            share = max(least_px / min(image.size), 1 / 8)
            image.draft("L", (int(image.width * share), int(image.height * share)))
            if image.mode == "L":
                return LoadedImage(np.asarray(image, np.uint8), hashlib.sha256(data).hexdigest())
    loaded = decode_image(data, where, max_pixels)
    grey = np.asarray(cv2.cvtColor(loaded.pixels, cv2.COLOR_RGB2GRAY), np.uint8)
    return LoadedImage(grey, loaded.sha256, loaded.notes)


def _bytes_of(where: str) -> bytes:
    """A file's bytes, or the reason why there are none."""
    try:
        return Path(where).read_bytes()
    except FileNotFoundError:
        _refuse("image-missing", where, "there is no such file.", "Check the path.")
    except IsADirectoryError:
        _refuse("image-unreadable", where, "is a folder, not an image.", "Name a file.")
    except OSError as error:
        _refuse("image-unreadable", where, f"cannot be opened ({error.strerror}).", "Check the permissions.")
    except ValueError as error:  # a name with a zero byte
        _refuse("image-missing", where, f"is not a file name ({error}).", "Check the path.")


def decode_image(data: bytes, where: str, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Decode the bytes of one image file; `where` names it in errors.

    Raises:
        ImageError: as `load_image`.
    """
    opener = _opener(data, where)
    with _decoding(where):
        pixels, notes = opener(data, where, max_pixels)
    return LoadedImage(np.ascontiguousarray(pixels), hashlib.sha256(data).hexdigest(), tuple(notes))


def image_size_wh(data: bytes, where: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height (orientation applied) from the header alone.

    Raises:
        ImageError: as `load_image`, except for damage behind the header.
    """
    opener = _opener(data, where)
    with _decoding(where):
        if opener is _open_tiff:
            import tifffile

            with tifffile.TiffFile(io.BytesIO(data)) as file:
                page = file.pages.first
                size, orientation = (page.imagewidth, page.imagelength), _turn(page.tags.valueof(274, 1))
        else:
            image = _plugin(data)(io.BytesIO(data))
            _too_large(image.size, where, max_pixels)
            if data.startswith(_PNG_MAGIC) and any(mark in data for mark in _LATE_ORIENTATION):
                image.load()
            size, orientation = image.size, _orientation(image)
    _too_large(size, where, max_pixels)
    width, height = size
    return (height, width) if orientation >= 5 else (width, height)


@contextmanager
def _decoding(where: str) -> Iterator[None]:
    """Whatever a decoder raises, as an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        _refuse("image-too-large", where, "does not fit into memory.", "Cut it into tiles.")
    except Exception as error:  # decoders raise whatever they like on damaged data
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        if isinstance(error, LookupError):  # its text is the bare key
            reason = f"{type(error).__name__} {reason}"
        _refuse("image-damaged", where, f"cannot be decoded: {reason}.", "Copy it again from its source.")


def _too_large(size_wh: tuple[int, int], where: str, max_pixels: int) -> None:
    width, height = size_wh
    if width * height > max_pixels:
        _refuse(
            "image-too-large",
            where,
            f"{width} × {height} px are {width * height:,} pixels; allowed are {max_pixels:,}.",
            "If the file is trusted, raise --max-pixels; a tiled TIFF is read by regions.",
        )


_TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_Opener = Callable[[bytes, str, int], tuple[np.ndarray, list[str]]]


# In a PNG, what says how the picture is turned may stand behind the pixels.
_LATE_ORIENTATION = (b"eXIf", b"tiff:Orientation")


def _opener(data: bytes, where: str) -> _Opener:
    if not data:
        _refuse("image-empty", where, "the file is empty (0 bytes).", "Copy it again from its source.")
    if data[:4] in _TIFF_MAGIC:
        return _open_tiff
    if not any(data.startswith(start) for start in (b"\xff\xd8\xff", _PNG_MAGIC, b"BM")) and not _is_webp(data):
        _refuse(
            "image-not-an-image",
            where,
            f"is not an image of a known format (first bytes {data[:8]!r}).",
            "Allowed: JPEG, PNG, TIFF, BMP, WebP.",
        )
    return _open_plain


_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _plugin(data: bytes) -> Callable[[io.BytesIO], ImageFile]:
    """Pillow's reader for these bytes.

    The reader is called directly, not through `Image.open`: only these formats are ever tried, and
    Pillow's own pixel limit (a global) stays what the host program made it; ours is checked instead.
    """
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    if data.startswith(_PNG_MAGIC):
        return PngImagePlugin.PngImageFile
    if data.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    return WebPImagePlugin.WebPImageFile if _is_webp(data) else JpegImagePlugin.JpegImageFile


def _open_plain(data: bytes, where: str, max_pixels: int) -> tuple[np.ndarray, list[str]]:
    image = _plugin(data)(io.BytesIO(data))
    _too_large(image.size, where, max_pixels)
    notes: list[str] = []
    image.load()
    if data.startswith(_PNG_MAGIC) and data[24] == 16 and image.mode in ("RGB", "RGBA", "LA"):
        pixels = _deep_png(data, notes)
    else:
        pixels = _to_rgb(image, notes)
    return _oriented(pixels, _orientation(image), notes), notes


def _deep_png(data: bytes, notes: list[str]) -> np.ndarray:
    """A PNG of 16 bits with colours or transparency, of which Pillow would keep the upper 8 bits only."""
    import cv2

    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError("the pixels are damaged")
    has_alpha = array.shape[2] == 4
    return _array_to_rgb(array[:, :, [2, 1, 0, 3] if has_alpha else [2, 1, 0]], notes, has_alpha)


def _orientation(image: Image) -> int:
    """Orientation 1 … 8 as the loaded parts of a file say it; 1 where its EXIF data are damaged."""
    from PIL import Image as PillowImage

    try:
        # The base class's method: that of PNG files would decode the pixels first.
        return _turn(PillowImage.Image.getexif(image).get(0x0112, 1))
    except Exception:  # the decoder raises whatever it likes; the picture itself may be whole
        return 1


def _turn(orientation: object) -> int:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _to_rgb(image: Image, notes: list[str]) -> np.ndarray:
    from PIL import Image as PillowImage

    if image.mode == "RGB" and "transparency" not in image.info:
        return np.array(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        return _array_to_rgb(np.asarray(image)[:, :, None], notes)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = PillowImage.new("RGBA", image.size, (255, 255, 255, 255))
        notes.append("transparency laid over white")
        return np.array(PillowImage.alpha_composite(white, rgba).convert("RGB"))
    notes.append(f"converted from mode {image.mode} to RGB")
    return np.array(image.convert("RGB"))


def _array_to_rgb(
    array: np.ndarray, notes: list[str], has_alpha: bool = False, premultiplied: bool = False
) -> np.ndarray:
    """Grey or colour of any number type, shape (H, W, 1 or 3, and 1 more with alpha), to uint8 RGB."""
    alpha = array[:, :, -1:] if has_alpha else None
    colour = array[:, :, :-1] if has_alpha else array
    pixels = colour if colour.dtype == np.uint8 else _scale_to_8_bits(colour, notes)
    if alpha is not None:
        top = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1.0
        share = np.clip(alpha.astype(np.float32) / top, 0, 1)
        light = pixels.astype(np.float32) * (1 if premultiplied else share)
        pixels = np.rint(np.clip(light + 255 * (1 - share), 0, 255)).astype(np.uint8)
        notes.append("transparency laid over white")
    if pixels.shape[2] == 1:
        notes.append("converted from grey to RGB")
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels)


def _scale_to_8_bits(array: np.ndarray, notes: list[str]) -> np.ndarray:
    """16 bits, 32 bits or floats to uint8, by a rule that depends on the type and range only."""
    # Cameras of 10, 12 or 14 bits store their counts in 16-bit files, so the full scale is the next
    # such depth. Floats are shares of 1 where none is larger.
    depths = (1, 8, 10, 12, 14, 16, 32) if array.dtype.kind == "f" else (8, 10, 12, 14, 16, 32)
    array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise ValueError("the image holds values that are not numbers")
    top = float(array.max(initial=0.0))
    full = next((2.0**bits - 1 for bits in depths if top <= 2.0**bits - 1), 2.0**32 - 1)
    notes.append(f"values up to {full:.10g} scaled to 8 bits")
    return np.rint(np.clip(array / full, 0, 1) * 255).astype(np.uint8)


def _open_tiff(data: bytes, where: str, max_pixels: int) -> tuple[np.ndarray, list[str]]:
    import tifffile

    notes: list[str] = []
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        if len(file.pages) > 1:
            notes.append(f"first of {len(file.pages)} pages")
        _too_large((page.imagewidth, page.imagelength), where, max_pixels)
        orientation = _turn(page.tags.valueof(274, 1))
        kinds = tifffile.PHOTOMETRIC
        deep = page.dtype not in (np.dtype(np.uint8), np.dtype(bool))
        array = None
        if deep or (page.dtype == np.uint8 and page.photometric in (kinds.RGB, kinds.MINISBLACK)):
            try:
                array = page.asarray()
            except ValueError as error:  # a codec that only the extra brings
                if deep and "imagecodecs" in str(error):
                    _refuse(
                        "image-codec",
                        where,
                        f"is compressed with {_name(page.compression)}, which needs imagecodecs.",
                        'Install the extra: pip install "cytolens[slides]".',
                    )
        if array is not None:
            return _oriented(_tiff_to_rgb(array, page, where, notes), orientation, notes), notes
    # Palette, CMYK, YCbCr, one bit, LZW: Pillow knows these for 8 bits, and turns the picture itself.
    from PIL import TiffImagePlugin

    image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    image.load()
    if orientation != 1:
        notes.append(_TURNED)
    return _to_rgb(image, notes), notes


def _tiff_to_rgb(array: np.ndarray, page: TiffPage, where: str, notes: list[str]) -> np.ndarray:
    import tifffile

    kinds = tifffile.PHOTOMETRIC
    if page.axes == "SYX":  # planes first
        array = np.moveaxis(array, 0, -1)
    elif page.axes == "YX":
        array = array[:, :, None]
    colours = 3 if page.photometric == kinds.RGB else 1
    known = page.photometric in (kinds.RGB, kinds.MINISBLACK, kinds.MINISWHITE) and array.dtype.kind in "iuf"
    if not known or array.ndim != 3 or array.shape[2] not in (colours, colours + 1):
        _refuse(
            "image-channels",
            where,
            f"holds {'×'.join(map(str, array.shape))} values ({array.dtype}, {_name(page.photometric)}), no picture.",
            "Allowed: grey or RGB, with or without transparency. Export the channels you need as such.",
        )
    if page.photometric == kinds.MINISWHITE:
        array = np.iinfo(array.dtype).max - array if array.dtype.kind in "iu" else array.max(initial=0) - array
    extra = page.extrasamples[0] if array.shape[2] > colours and page.extrasamples else 0
    if extra == 0 and array.shape[2] > colours:
        notes.append("the last channel is not transparency and was left out")
        array = array[:, :, :colours]
    return _array_to_rgb(array, notes, has_alpha=extra != 0, premultiplied=extra == tifffile.EXTRASAMPLE.ASSOCALPHA)


def _name(constant: int) -> str:
    """A TIFF constant's name, or its number where the format does not know it."""
    return getattr(constant, "name", str(constant))


_TURNED = "turned by its EXIF orientation"


def _oriented(pixels: np.ndarray, orientation: int, notes: list[str]) -> np.ndarray:
    """Undo TIFF / EXIF orientation 2 … 8 (1 is upright)."""
    if orientation == 1:
        return pixels
    notes.append(_TURNED)
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
