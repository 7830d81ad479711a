"""Slides of scanners (.svs, .ndpi, .mrxs …) read by regions through OpenSlide; needs the extra "slides"."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cytolens.formats.file_metadata import side_um
from cytolens.problems import ImageError, Problem, require


@dataclass(frozen=True, eq=False)
class Slide:
    """A slide, open for reading regions of its largest level; the counterpart of `regions.TiledTiff`.

    Attributes:
        path: the file.
        size_wh: width and height in px.
        um_per_px: side of a pixel in µm, where the scanner says it.
        pages: 1; a slide is one picture.
    """

    path: Path
    size_wh: tuple[int, int]
    um_per_px: float | None
    _file: Any
    pages: int = 1

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """The region (height, width, 3), uint8 RGB; what the scanner left out is white.

        Raises:
            ImageError: the slide is damaged there.
        """
        try:
            picture = self._file.read_region((x, y), 0, (width, height))
        except Exception as error:  # the library's own errors, and whatever its bindings raise
            raise ImageError(_damaged(self.path, error)) from error
        return _over_white(np.asarray(picture))

    def overview(self, longest_px: int) -> NDArray[np.uint8]:
        """The whole slide, uint8 RGB, shrunk so that its longer side is at most `longest_px`.

        Raises:
            ImageError: the slide is damaged.
        """
        try:
            return np.array(self._file.get_thumbnail((longest_px, longest_px)).convert("RGB"))
        except Exception as error:
            raise ImageError(_damaged(self.path, error)) from error

    def fingerprint(self) -> str:
        """The sha256 of the file's bytes, in hexadecimal (of a slide in several files: of the one that names it)."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def close(self) -> None:
        """Close the slide."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_slide(path: Path) -> Slide:
    """A slide, open for reading.

    Raises:
        MissingExtraError: OpenSlide is not installed.
        ImageError: the file is missing, or is no slide that OpenSlide reads.
    """
    openslide = require("openslide", "slides", f'Reading slides such as "{path.name}"')
    if not path.is_file():
        raise ImageError(Problem("image-missing", str(path), "there is no such file.", "Check the path.", "error"))
    try:
        file = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        reason = str(error) or "OpenSlide knows no format that fits"
        problem = Problem("image-damaged", str(path), f"cannot be read as a slide: {reason}.", _COPY, "error")
        raise ImageError(problem) from error
    sides = (file.properties.get(f"openslide.mpp-{axis}") for axis in ("x", "y"))
    try:
        um_per_px = side_um(*(float(text or "nan") for text in sides))
    except ValueError:
        um_per_px = None
    return Slide(path, file.dimensions, um_per_px, file)


_COPY = "Copy it again from its source, with the files that belong to it."


def _damaged(path: Path, error: Exception) -> Problem:
    return Problem("image-damaged", str(path), f"a region cannot be read: {error}.", _COPY, "error")


def _over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGBA (H, W, 4) laid over white, as RGB."""
    if (rgba[:, :, 3] == 255).all():
        return np.ascontiguousarray(rgba[:, :, :3])
    share = rgba[:, :, 3:].astype(np.float32) / 255
    return np.rint(rgba[:, :, :3] * share + 255 * (1 - share)).astype(np.uint8)
