"""Foreign file formats: the only home of other people's conventions.

`read` makes a `Dataset` of any of `FORMATS` and collects what is wrong in the data; `write` makes
the files of a format and says what the format cannot keep.
"""

from __future__ import annotations

import importlib
from os import PathLike
from pathlib import Path
from types import ModuleType

import numpy as np

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats.assembly import Imported
from cytolens.formats.options import ReadOptions, WriteOptions
from cytolens.images import Images
from cytolens.problems import FormatError, Problems, SettingError, did_you_mean, listing

__all__ = ["FORMATS", "Imported", "ReadOptions", "WriteOptions", "cannot_keep", "read", "write"]

_MODULES = {
    "voc": "cytolens.formats.voc",
    "yolo": "cytolens.formats.yolo",
    "coco": "cytolens.formats.coco",
    "csv_boxes": "cytolens.formats.csv_boxes",
    "image_folder": "cytolens.formats.image_folder",
    "rle_csv": "cytolens.formats.rle_csv",
    "label_images": "cytolens.formats.label_images",
    "geojson": "cytolens.formats.geojson",
    "wbcatt": "cytolens.formats.wbcatt",
}
FORMATS: tuple[str, ...] = tuple(_MODULES)


def read(source: str | PathLike[str], format: str = "auto", options: ReadOptions | None = None) -> Imported:
    """Read a data set.

    Args:
        source: a folder or file, as the format expects it.
        format: one of `FORMATS`, or "auto": decided by looking at the source.
        options: how to read; None for the defaults.

    Raises:
        FormatError: the source is missing, is not of that format, or (auto) of none or several.
        SettingError: there is no such format, or an option is wrong.
        LabelError: an option names an unknown label.
    """
    path, options = Path(source), options or ReadOptions()
    if not path.exists():
        raise FormatError(f'"{path}": there is no such file or folder. Check the path.')
    if format != "auto":
        return _module(format).read(path, options)
    from cytolens.formats.recognition import recognise

    seen = recognise(path)
    imported: Imported = _module(seen.format).read(path, options)
    if seen.others:
        what = f"read as {seen.format} ({seen.why}); there is also {listing(seen.others)}."
        imported.problems.add("format-chosen", path.name, what, "Name the format to read that.", "note")
    return imported


def write(
    data: Dataset | Cells, path: str | PathLike[str], format: str, options: WriteOptions | None = None
) -> Problems:
    """Write a dataset, or cells alone (then without image sizes), in a foreign format.

    Cells below the threshold (`counted` is False) are left out, except from COCO results, which are
    for scoring.

    Args:
        data: what to write.
        path: a file or folder, as the format has it; a folder of annotations must be new or empty.
        format: one of `FORMATS`.
        options: how to write; None for the defaults.

    Returns:
        What the format could not keep, and what could not be written.

    Raises:
        FormatError: the data cannot be written so, such as fractions of images of unknown size.
        SettingError: there is no such format, or an option does not go with it.
    """
    from cytolens.formats.losses import losses

    module, options = _module(format), options or WriteOptions()
    if options.results and format != "coco":
        raise SettingError(f'results: only the format "coco" has results lists, not "{format}".')
    if options.order and format != "rle_csv":
        raise SettingError(f'order: only the format "rle_csv" has an order of pixels, not "{format}".')
    if isinstance(data, Cells):
        data = Dataset(Images.of({"image_id": i} for i in data.frame["image_id"].unique().sort()), data)
    problems = losses(data, cannot_keep(format, results=options.results))
    problems.extend(module.write(_writable(data, options, problems), Path(path), options))
    return problems


def cannot_keep(format: str, *, results: bool = False) -> tuple[str, ...]:
    """What of a dataset a format has no place for, as short phrases (the keys of `losses.ASPECTS`).

    Args:
        format: one of `FORMATS`.
        results: of COCO's results lists instead of its instances files.
    """
    module = _module(format)
    return module.RESULTS_CANNOT_KEEP if results else module.CANNOT_KEEP


def _module(format: str) -> ModuleType:
    if format not in _MODULES:
        hint = did_you_mean(format, FORMATS)
        raise SettingError(f'unknown format "{format}". {hint + " " if hint else ""}Formats: {listing(FORMATS, 20)}')
    return importlib.import_module(_MODULES[format])


def _writable(data: Dataset, options: WriteOptions, problems: Problems) -> Dataset:
    """The dataset without uncounted cells and without boxes that are not numbers."""
    finite = np.asarray(np.isfinite(data.cells.boxes()).all(axis=1))
    for cell_id in data.cells.filter(~finite).frame["cell_id"]:
        problems.add("box-not-a-number", cell_id, "the box is not four numbers; the cell is not written.", "", "error")
    counted = data.cells.frame["counted"].to_numpy() | options.results
    return Dataset(data.images, data.cells.filter(finite & counted), data.name, data.provenance, data.licence)
