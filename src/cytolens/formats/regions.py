"""Large pictures read by regions, without ever holding the whole in memory: tiled TIFF files, and slides."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cytolens.formats.file_metadata import Metadata, of_tiff
from cytolens.formats.slides import Slide, open_slide
from cytolens.images import SLIDE_SUFFIXES
from cytolens.problems import ImageError, Problem

LARGE_PIXELS = 64_000_000  # from here on a tiled file is read by regions
_OVERVIEW_BLOCK_PX = 2048


@dataclass(frozen=True, eq=False)
class TiledTiff:
    """A tiled TIFF, open for reading regions of its first page.

    Attributes:
        path: the file.
        size_wh: width and height in px.
        um_per_px: side of a pixel in µm, where the file says it.
        pages: pictures in the file, of which the first is read.
    """

    path: Path
    size_wh: tuple[int, int]
    um_per_px: float | None
    pages: int
    _file: Any
    _page: Any

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """The region (height, width, 3), uint8 RGB; only the tiles it touches are decoded.

        Raises:
            ImageError: a tile is damaged, or its compression needs the extra "slides".
        """
        page = self._page
        tile_h, tile_w = page.tilelength, page.tilewidth
        across = -(-page.imagewidth // tile_w)
        region = np.zeros((height, width, 3), np.uint8)
        for row in range(y // tile_h, (y + height - 1) // tile_h + 1):
            for column in range(x // tile_w, (x + width - 1) // tile_w + 1):
                tile = self._tile(row * across + column)
                top, left = row * tile_h, column * tile_w
                y0, x0 = max(y, top), max(x, left)
                y1, x1 = min(y + height, top + tile.shape[0]), min(x + width, left + tile.shape[1])
                region[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return region

    def _tile(self, index: int) -> NDArray[np.uint8]:
        page = self._page
        handle = page.parent.filehandle
        try:
            count = page.databytecounts[index]
            handle.seek(page.dataoffsets[index])
            data = handle.read(count) if count else None
            decoded, _, _ = page.decode(data, index, jpegtables=page.jpegtables)
        except Exception as error:  # the decoder raises whatever it likes on damaged data
            raise ImageError(_problem(self.path, error)) from error
        if decoded is None:  # a tile without data is background
            return np.full((page.tilelength, page.tilewidth, 3), 255, np.uint8)
        tile = decoded[0]
        if tile.shape[2] == 1:
            return np.repeat(tile, 3, axis=2)
        return tile if tile.shape[2] == 3 else _over_white(tile, page.extrasamples)

    def overview(self, longest_px: int) -> NDArray[np.uint8]:
        """The whole picture, uint8 RGB, shrunk so that its longer side is at most `longest_px`.

        It is read block by block, so that memory stays flat.
        """
        import cv2

        scale = min(1.0, longest_px / max(self.size_wh))
        block = max(1, round(_OVERVIEW_BLOCK_PX * scale))
        width, height = (max(1, round(side * scale)) for side in self.size_wh)
        picture = np.empty((height, width, 3), np.uint8)
        columns = np.linspace(0, self.size_wh[0], width + 1).round().astype(int).tolist()
        rows = np.linspace(0, self.size_wh[1], height + 1).round().astype(int).tolist()
        for top in range(0, height, block):
            for left in range(0, width, block):
                bottom, right = min(top + block, height), min(left + block, width)
                x, y = columns[left], rows[top]
                part = self.read(x, y, columns[right] - x, rows[bottom] - y)
                shrunk = cv2.resize(part, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
                picture[top:bottom, left:right] = shrunk
        return picture

    def fingerprint(self) -> str:
        """The sha256 of the file's bytes, in hexadecimal."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _over_white(tile: NDArray[np.uint8], extra: Any) -> NDArray[np.uint8]:
    """RGB and a fourth channel (H, W, 4) as RGB; where the fourth is transparency, it is laid over white."""
    import tifffile

    kinds = tifffile.EXTRASAMPLE
    colour = tile[:, :, :3]
    if not extra or extra[0] not in (kinds.ASSOCALPHA, kinds.UNASSALPHA):
        return colour
    share = tile[:, :, 3:].astype(np.float32) / 255
    light = colour * (share if extra[0] == kinds.UNASSALPHA else 1)
    return np.rint(np.clip(light + 255 * (1 - share), 0, 255)).astype(np.uint8)


def _problem(path: Path, error: Exception) -> Problem:
    if "imagecodecs" in str(error):
        what = "its compression needs imagecodecs."
        return Problem("image-codec", str(path), what, 'Install the extra: pip install "cytolens[slides]".', "error")
    return Problem(
        "image-damaged", str(path), f"a tile cannot be decoded: {error}.", "Copy it again from its source.", "error"
    )


Regions = TiledTiff | Slide


def open_regions(path: Path, least_pixels: int = LARGE_PIXELS) -> Regions | None:
    """The file, open for region reading, if it is a slide or a tiled 8-bit TIFF of more than `least_pixels`.

    Returns:
        The open file; None for any other, which is to be read as a whole.

    Raises:
        MissingExtraError: it is a slide, and OpenSlide is not installed.
        ImageError: it is called like a slide, but is missing or none that OpenSlide reads.
    """
    path = Path(path)
    if path.suffix.lower() in SLIDE_SUFFIXES:
        return open_slide(path)
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    import tifffile

    file = None
    try:
        file = tifffile.TiffFile(path)
        page = file.pages.first
        if page.imagewidth * page.imagelength > least_pixels and _plain(page):
            said = _metadata(file)
            return TiledTiff(path, (page.imagewidth, page.imagelength), said.um_per_px, said.pages, file, page)
    except Exception:  # the reader raises whatever it likes; reading it as a plain image says what is wrong
        pass
    if file is not None:
        file.close()
    return None


def _metadata(file: Any) -> Metadata:
    try:
        return of_tiff(file)
    except Exception:  # whatever stands in a damaged description, the pixels may be whole
        return Metadata()


def _plain(page: Any) -> bool:
    """Whether the page's tiles are pictures as they stand: 8 bits, grey or RGB, upright."""
    import tifffile

    kinds = tifffile.PHOTOMETRIC
    samples = {kinds.RGB: (3, 4), kinds.YCBCR: (3,), kinds.MINISBLACK: (1,)}.get(page.photometric, ())
    upright = page.tags.valueof(274, 1) == 1
    return (
        page.is_tiled
        and page.dtype == np.uint8
        and page.bitspersample == 8
        and page.samplesperpixel in samples
        and page.planarconfig == 1
        and page.imagedepth == page.tiledepth == 1
        and upright
    )
