"""Small pictures for reports: crops of cells, and fields with boxes drawn in, as JPEG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cytolens import boxes as box
from cytolens import views
from cytolens.evaluate.outline_overlaps import cut_out
from cytolens.formats.contours import polygons_of
from cytolens.images import Images, Pixels, load_image
from cytolens.problems import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

_QUALITY = 88


@dataclass(frozen=True, slots=True)
class Outline:
    """A box to draw: (x_min, y_min, x_max, y_max) in px of the image, its colour, and how.

    Attributes:
        corners: shape (4,).
        colour: such as "#c2410c".
        text: written above the box; empty: nothing.
        width_px: of the line.
        dashed: whether the line is broken.
    """

    corners: ArrayLike
    colour: str
    text: str = ""
    width_px: int = 2
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Contour:
    """A mask whose edge is to be drawn.

    Attributes:
        code: COCO's run-length code, of the image's size.
        colour: such as "#c2410c".
        width_px: of the line.
    """

    code: bytes
    colour: str
    width_px: int = 2


class ImageFiles:
    """Reads the image files of a table, remembering the last one, or why it could not be read."""

    def __init__(self, images: Images) -> None:
        self._paths = dict(images.frame.select("image_id", "path").iter_rows())
        self._last: tuple[str, Pixels | str] | None = None

    def read(self, image_id: str) -> Pixels | str:
        """The pixels, or the reason why there are none."""
        if self._last is None or self._last[0] != image_id:
            self._last = (image_id, self._load(self._paths.get(image_id)))
        return self._last[1]

    @staticmethod
    def _load(path: str | None) -> Pixels | str:
        if path is None:
            return "no file is known for this image"
        try:
            return load_image(path).pixels
        except ImageError as error:
            return error.problem.what


def jpeg(pixels: Pixels) -> bytes:
    """An image (H, W, 3) as JPEG."""
    from PIL import Image

    return _encoded(Image.fromarray(pixels))


def crop(pixels: Pixels, corners: ArrayLike, side_px: int = 192, factor: float = 1.25) -> bytes:
    """A square JPEG of `side_px` around a box, with some of its surroundings.

    Args:
        pixels: the image, shape (H, W, 3).
        corners: the box, shape (4,).
        side_px: of the picture.
        factor: how much longer the square is than the box's longer side.
    """
    region = box.squares(box.as_boxes(corners).astype(np.float64), factor)[0]
    if region[2] - region[0] < 1:  # a box of no size still has a place
        region = box.grow(region, (1 - (region[2] - region[0])) / 2)[0]
    view = views.crop((pixels.shape[1], pixels.shape[0]), region, side_px)
    return jpeg(view.pixels(pixels, border=255))


def outlined(pixels: Pixels, outlines: Sequence[Outline], longest_px: int = 900) -> bytes:
    """An image as JPEG with boxes drawn in; its longer side becomes `longest_px`.

    Args:
        pixels: the image, shape (H, W, 3).
        outlines: drawn in order, later ones on top.
        longest_px: of the picture.
    """
    from PIL import Image, ImageFont
    from PIL.ImageDraw import Draw

    scale = longest_px / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    draw = Draw(image)
    font = ImageFont.load_default(15)
    for outline in outlines:
        corners = box.clip(np.asarray(outline.corners, np.float64) * scale, size[0] - 1, size[1] - 1)[0]
        _draw_box(draw, corners.tolist(), outline)
        if outline.text:
            left, top, right, bottom = draw.textbbox((0, 0), outline.text, font=font)
            x = min(corners[0], size[0] - (right - left) - 5)
            y = corners[1] - (bottom - top) - 6
            y = y if y >= 0 else min(corners[3], size[1] - (bottom - top) - 6)
            draw.rectangle((x, y, x + right - left + 5, y + bottom - top + 5), fill=outline.colour)
            draw.text((x + 3 - left, y + 2 - top), outline.text, fill="white", font=font)
    return _encoded(image)


def contoured(pixels: Pixels, contours: Sequence[Contour], longest_px: int = 900) -> bytes:
    """An image as JPEG with the edges of masks drawn in; its longer side becomes `longest_px`.

    Args:
        pixels: the image, shape (H, W, 3).
        contours: drawn in order, later ones on top.
        longest_px: of the picture.

    Raises:
        ValueError: a mask is not of the image's size.
    """
    from PIL import Image
    from PIL.ImageDraw import Draw

    scale = longest_px / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    draw = Draw(image)
    for contour in contours:
        mask, left, top = cut_out(contour.code, (pixels.shape[0], pixels.shape[1]))
        for polygon in polygons_of(mask, left, top) if mask.size else ():
            for ring in polygon:
                closed = np.concatenate([ring, ring[:1]]) * scale
                draw.line([(x, y) for x, y in closed.tolist()], fill=contour.colour, width=contour.width_px)
    return _encoded(image)


def _draw_box(draw: ImageDraw, corners: Sequence[float], outline: Outline, dash_px: float = 7.0) -> None:
    x_min, y_min, x_max, y_max = corners
    if not outline.dashed:
        draw.rectangle((x_min, y_min, x_max, y_max), outline=outline.colour, width=outline.width_px)
        return
    for (ax, ay), (bx, by) in (
        ((x_min, y_min), (x_max, y_min)),
        ((x_max, y_min), (x_max, y_max)),
        ((x_max, y_max), (x_min, y_max)),
        ((x_min, y_max), (x_min, y_min)),
    ):
        length = abs(bx - ax) + abs(by - ay)
        starts = np.arange(0, length, 2 * dash_px) / max(length, 1)
        for start in starts:
            end = min(1.0, start + dash_px / max(length, 1))
            line = (ax + (bx - ax) * start, ay + (by - ay) * start, ax + (bx - ax) * end, ay + (by - ay) * end)
            draw.line(line, fill=outline.colour, width=outline.width_px)


def _encoded(image: Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY, subsampling=0)  # thin lines keep their colour
    return stream.getvalue()
