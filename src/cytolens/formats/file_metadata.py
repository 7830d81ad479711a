"""What an image file says of itself beside its pixels: how many µm a pixel measures, how many pages there are.

Only TIFF files are asked: the resolution of other formats is one for printing. Sources, the surest
first: the description of Aperio scanners, OME-XML, ImageJ's unit, the resolution tags.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A resolution outside says something else than the scale of a microscope; 72 dpi are 353 µm.
LEAST_UM_PER_PX = 0.01
MOST_UM_PER_PX = 10.0
_SQUARE = 0.02  # share by which the sides of a pixel may differ

_UM_OF: dict[str, float] = {
    "nm": 1e-3, "nanometer": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "\\u00b5m": 1.0, "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4, "inch": 25_400.0, "in": 25_400.0,
    "m": 1e6,
}  # fmt: skip
_RESOLUTION_UNITS = {2: "inch", 3: "cm"}


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a file says of itself.

    Attributes:
        um_per_px: side of a pixel in µm; None where the file does not say or what it says is no microscope's.
        pages: pictures in the file; the levels of a pyramid are one.
    """

    um_per_px: float | None = None
    pages: int = 1


def metadata_of(path: Path) -> Metadata:
    """The metadata of an image file; of one that is no readable TIFF nothing is known."""
    import tifffile

    try:
        with Path(path).open("rb") as stream:
            if stream.read(4) not in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
                return Metadata()
        with tifffile.TiffFile(path) as file:
            return of_tiff(file)
    except Exception:  # the reader raises whatever it likes on damaged data; reading the pixels says what is wrong
        return Metadata()


def of_tiff(file: Any) -> Metadata:
    """The metadata of an open `tifffile.TiffFile`."""
    page = file.pages.first
    sides = next((pair for look in (_aperio, _ome, _imagej, _tags) if (pair := look(file, page)) is not None), None)
    pages = sum(not other.is_reduced for other in file.pages) if len(file.pages) > 1 else 1
    return Metadata(None if sides is None else side_um(*sides), max(pages, 1))


def side_um(x_um: float, y_um: float) -> float | None:
    """One side for both; None where pixels are not square or no microscope's."""
    if not (math.isfinite(x_um) and math.isfinite(y_um) and x_um > 0 and y_um > 0):
        return None
    if abs(x_um - y_um) > _SQUARE * max(x_um, y_um):
        return None
    mean = math.sqrt(x_um * y_um)
    return mean if LEAST_UM_PER_PX <= mean <= MOST_UM_PER_PX else None


def _aperio(file: Any, page: Any) -> tuple[float, float] | None:
    """Aperio's description: ``Aperio Image Library …|AppMag = 40|MPP = 0.2499``."""
    found = re.search(r"\|\s*MPP\s*=\s*([0-9.]+)", page.description or "")
    if found is None or not page.description.startswith("Aperio"):
        return None
    um = _number(found[1])
    return um, um


def _ome(file: Any, page: Any) -> tuple[float, float] | None:
    """OME-XML: PhysicalSizeX and PhysicalSizeY of the first image, in µm unless a unit is named."""
    if not file.is_ome:
        return None
    from defusedxml.ElementTree import fromstring

    pixels = next((part for part in fromstring(file.ome_metadata).iter() if part.tag.endswith("}Pixels")), None)
    if pixels is None or pixels.get("PhysicalSizeX") is None:
        return None
    x, x_unit = pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit", "µm")
    y, y_unit = pixels.get("PhysicalSizeY", x), pixels.get("PhysicalSizeYUnit", x_unit)
    return _number(x) * _um_of(x_unit), _number(y) * _um_of(y_unit)


def _imagej(file: Any, page: Any) -> tuple[float, float] | None:
    """ImageJ: pixels per unit in the resolution tags, the unit in its description."""
    unit = (file.imagej_metadata or {}).get("unit") if file.is_imagej else None
    return _per_unit(page, _um_of(unit)) if isinstance(unit, str) and math.isfinite(_um_of(unit)) else None


def _tags(file: Any, page: Any) -> tuple[float, float] | None:
    unit = _RESOLUTION_UNITS.get(page.tags.valueof(296, 2))
    return None if unit is None else _per_unit(page, _um_of(unit))


def _per_unit(page: Any, unit_um: float) -> tuple[float, float] | None:
    """Sides of a pixel from XResolution and YResolution, which count pixels per unit."""
    x = page.tags.valueof(282)
    y = page.tags.valueof(283, x)
    if not (isinstance(x, tuple) and isinstance(y, tuple) and all(x) and all(y)):
        return None
    return unit_um * x[1] / x[0], unit_um * y[1] / y[0]


def _um_of(unit: str | None) -> float:
    return _UM_OF.get((unit or "").strip().casefold(), float("nan"))


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
