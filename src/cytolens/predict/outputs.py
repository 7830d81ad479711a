"""What a prediction leaves on disk. Every file takes its name only when it is whole."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
from pydantic import BaseModel

from cytolens.bundle import Bundle
from cytolens.cells import BOX_COLUMNS, Cells
from cytolens.dataset import Dataset
from cytolens.formats.regions import open_regions
from cytolens.images import Images, load_image
from cytolens.labels import AttributeSchema
from cytolens.predict.blasts import BlastSettings, blasts
from cytolens.predict.differential import differential, without_parts
from cytolens.predict.fields import Prediction
from cytolens.predict.group_differential import differential_by_group
from cytolens.predict.sentences import sentences
from cytolens.problems import ImageError, Problem, SettingError, did_you_mean, written

FORMATS = ("cells", "csv", "coco", "geojson", "label_images", "morphometry", "overlay", "report")
DEFAULT_FORMATS = ("cells", "csv", "overlay", "report")
_OVERLAY_PX = 1600
_BY_GROUP = "differential_by_group.csv"
_FILES = {
    "cells": (),  # always written
    "csv": ("cells.csv", "differential.csv", _BY_GROUP),
    "coco": ("cells.coco.json",),
    "morphometry": ("morphometry.csv",),
    "report": ("report.html",),
}
_PER_IMAGE = {"overlay": ("overlays", ".png"), "geojson": ("geojson", ".geojson")}
_LABEL_IMAGES = "label_images"
Progress = Callable[[int, int], None]


def checked_formats(names: Sequence[str]) -> tuple[str, ...]:
    """The formats asked for; "cells" is always among them.

    Raises:
        SettingError: one of them is unknown.
    """
    for name in names:
        if name not in FORMATS:
            hint = did_you_mean(name, FORMATS)
            raise SettingError(f'no output format "{name}". {hint + " " if hint else ""}Allowed: {", ".join(FORMATS)}')
    return tuple(name for name in FORMATS if name in {"cells", *names})


def write_outputs(
    prediction: Prediction,
    bundle: Bundle | None,
    folder: Path,
    formats: Sequence[str],
    settings: BaseModel,
    progress: Progress | None = None,
    more: Mapping[str, Any] | None = None,
    overlay_attributes: Sequence[AttributeSchema] = (),
) -> dict[str, Any]:
    """Write the outputs and return the summary, which also stands in ``run.json`` (written last).

    Args:
        prediction: what was found.
        bundle: what found it; None: no single bundle did. Then there is no report.
        folder: where to.
        formats: of `FORMATS`.
        settings: that the prediction was made with.
        progress: is told the overlays done and in all.
        more: what else the summary says.
        overlay_attributes: whose values stand beside the cells in overlays, as of `overlay_notes.noted_attributes`.

    Raises:
        SettingError: a report is asked for, and there is no bundle to report on.
    """
    if "report" in formats and bundle is None:
        raise SettingError('a report tells of one bundle; leave out the format "report"')
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _outputs_of(folder)
    (folder / "run.json").unlink(missing_ok=True)  # a folder without it is unfinished
    timings = dict(prediction.timings)

    def timed(name: str, action: Callable[[], None]) -> None:
        started = time.perf_counter()
        action()
        timings[f"{name}_s"] = time.perf_counter() - started

    line = getattr(settings, "blasts", None) or BlastSettings()
    table = differential(prediction.cells, prediction.images)
    by_group = differential_by_group(prediction.cells, prediction.images)
    timed("cells", lambda: _write_tables(prediction, folder))
    if "csv" in formats:
        timed("csv", lambda: _write_csv(prediction.cells, table, by_group, folder))
    if "overlay" in formats:
        timed("overlay", lambda: _write_overlays(prediction, folder / "overlays", progress, overlay_attributes))
    if "report" in formats and bundle is not None:
        from cytolens.predict.report import write_report

        timed("report", lambda: write_report(prediction, bundle, table, folder / "report.html", line, by_group))
    lost: dict[str, list[str]] = {"coco": []}
    if "coco" in formats:
        timed("coco", lambda: lost.update(coco=_write_coco(prediction, folder)))
    if _LABEL_IMAGES in formats:
        timed(_LABEL_IMAGES, lambda: lost.update(label_images=_write_label_images(prediction, folder)))
    if "morphometry" in formats:
        timed("morphometry", lambda: lost.update(morphometry=_write_morphometry(prediction, folder)))
    if "geojson" in formats:
        timed("geojson", lambda: _write_geojson(prediction, folder))
    summary = (
        _summary(prediction, bundle, settings, table, formats, timings)
        | {"blasts": _blasts(prediction.cells, line)}
        | {f"{name}_leaves_out": what for name, what in lost.items()}
        | dict(more or {})
    )
    _remove_stale(folder, earlier, formats, prediction)
    with written(folder / "run.json") as part:
        part.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def _outputs_of(folder: Path) -> list[str]:
    """The formats that an earlier prediction left in the folder."""
    try:
        formats = json.loads((folder / "run.json").read_text(encoding="utf-8"))["formats"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in formats if name in FORMATS]


def _remove_stale(folder: Path, earlier: Sequence[str], formats: Sequence[str], prediction: Prediction) -> None:
    """Remove what an earlier prediction wrote and this one did not: beside the new tables it would mislead."""
    for name in earlier:
        for file in _FILES.get(name, ()) if name not in formats else ():
            (folder / file).unlink(missing_ok=True)
        if name == _LABEL_IMAGES and name not in formats:
            for file in _label_images(folder / _LABEL_IMAGES):
                file.unlink()
        if name in _PER_IMAGE:
            place, suffix = _PER_IMAGE[name]
            drawn = prediction.images.ids if name in formats else ()
            current = {file_of_image(folder / place, image_id, suffix) for image_id in drawn}
            for file in (folder / place).rglob(f"*{suffix}"):
                if file not in current:
                    file.unlink()


def _write_tables(prediction: Prediction, folder: Path) -> None:
    prediction.cells.write_parquet(folder / "cells.parquet")
    with written(folder / "images.parquet") as part:
        prediction.images.frame.write_parquet(part)


def flat(cells: Cells) -> pl.DataFrame:
    """The cells as a flat table for spreadsheets: one column per probability, attributes and a sentence
    made of them, masks left out."""
    frame = cells.frame
    leaves = cells.labels.leaves
    probabilities = [pl.col("probabilities").arr.get(i).round(4).alias(f"p({leaf})") for i, leaf in enumerate(leaves)]
    attributes = [a.column for a in cells.labels.attributes]
    described = [pl.Series("description", sentences(cells), pl.String)] if attributes else []
    return frame.select(
        "cell_id",
        "image_id",
        *[pl.col(name).round(2) for name in BOX_COLUMNS],
        "label",
        pl.col("score").round(4),
        "counted",
        "refer",
        *attributes,
        *described,
        *probabilities,
        "source",
    )


def _write_csv(cells: Cells, table: pl.DataFrame, by_group: pl.DataFrame, folder: Path) -> None:
    with written(folder / "cells.csv") as part:
        flat(cells.filter(cells.frame["counted"].to_numpy())).write_csv(part)
    with written(folder / "differential.csv") as part:
        table.with_columns(pl.col(pl.Float64).round(3)).write_csv(part)
    if by_group.is_empty():
        (folder / _BY_GROUP).unlink(missing_ok=True)  # of an earlier run with groups
        return
    with written(folder / _BY_GROUP) as part:
        by_group.with_columns(pl.col(pl.Float64).round(3)).write_csv(part)


def _write_coco(prediction: Prediction, folder: Path) -> list[str]:
    """Write the COCO file; returns what the format has no place for."""
    from cytolens import formats

    dataset = Dataset(prediction.images, prediction.cells, "prediction")
    return _told(formats.write(dataset, folder / "cells.coco.json", "coco"))


def _write_geojson(prediction: Prediction, folder: Path) -> None:
    """One file per image, for QuPath: the counted cells."""
    from cytolens import formats

    counted = prediction.cells.filter(pl.col("counted"))
    for image_id in prediction.images.ids:
        one = Images(prediction.images.frame.filter(pl.col("image_id") == image_id))
        target = file_of_image(folder / "geojson", image_id, ".geojson")
        target.parent.mkdir(parents=True, exist_ok=True)
        formats.write(Dataset(one, counted.of_image(image_id), "prediction"), target, "geojson")


def _write_label_images(prediction: Prediction, folder: Path) -> list[str]:
    """Write the label images of the counted cells; returns what the format has no place for."""
    from cytolens import formats

    target = folder / _LABEL_IMAGES
    dataset = Dataset(prediction.images, prediction.cells, "prediction")
    # Made beside and moved file by file, so that those of an earlier run are replaced when the new ones are whole.
    with tempfile.TemporaryDirectory(prefix=f".{_LABEL_IMAGES}-", dir=folder) as made:
        problems = formats.write(dataset, made, _LABEL_IMAGES)
        new = {file.relative_to(made): file for file in Path(made).rglob("*") if file.is_file()}
        for name, file in new.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            file.replace(target / name)
    for file in _label_images(target):
        if file.relative_to(target) not in new:
            file.unlink()
    return _told(problems)


def _label_images(target: Path) -> list[Path]:
    """The files that `_write_label_images` left."""
    masks = target / "masks"
    return [*masks.rglob("*.png"), *masks.rglob("*.tif"), *masks.glob("cells.csv")]


def _write_morphometry(prediction: Prediction, folder: Path) -> list[str]:
    """Write the measures of outlined cells; returns what could not be measured."""
    from cytolens.predict.morphometry import write_morphometry

    return _told(write_morphometry(prediction.cells, prediction.images, folder / "morphometry.csv"))


def _told(problems: Iterable[Problem]) -> list[str]:
    """Problems as sentences of the summary."""
    return [f"{problem.where}: {problem.what}" for problem in problems]


def _write_overlays(
    prediction: Prediction, folder: Path, progress: Progress | None, attributes: Sequence[AttributeSchema]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = prediction.images.rows()
    by_image = dict(prediction.cells.by_image())
    empty = Cells.empty(prediction.cells.labels)

    def draw(row: dict[str, Any]) -> None:
        _write_overlay(row, by_image.get(row["image_id"], empty), folder, attributes)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, _ in enumerate(pool.map(draw, rows), start=1):
            if progress is not None:
                progress(done, len(rows))


def _write_overlay(row: dict[str, Any], cells: Cells, folder: Path, attributes: Sequence[AttributeSchema]) -> None:
    from PIL import Image

    from cytolens.predict.overlays import overlay

    frame_wh = None
    try:
        if (regions := open_regions(Path(row["path"]))) is not None:
            with regions:
                pixels, frame_wh = regions.overview(_OVERLAY_PX), regions.size_wh
        else:
            pixels = load_image(row["path"], max_pixels=2**40).pixels
    except ImageError:
        return  # read a moment ago; whoever took it away knows
    with written(file_of_image(folder, row["image_id"], ".png")) as part:
        Image.fromarray(overlay(pixels, cells, _OVERLAY_PX, frame_wh, attributes)).save(part, compress_level=1)


def file_of_image(folder: Path, image_id: str, suffix: str) -> Path:
    """Where an image's own file goes: always inside the folder, whatever a dataset calls its images."""
    inside = [part for part in PurePosixPath(image_id).parts if part not in ("/", "//", "..")]
    return folder.joinpath(*inside[:-1], f"{inside[-1] if inside else 'image'}{suffix}")


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("cytolens", "onnxruntime", "numpy", "opencv-python-headless", "pillow", "polars"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _blasts(cells: Cells, settings: BlastSettings) -> dict[str, Any] | None:
    found = blasts(cells, settings)
    if found is None:
        return None
    return {
        "count": found.count,
        "leukocytes": found.total,
        "percent": found.percent,
        "percent_interval": list(found.interval),
        "line_percent": found.line,
        "verdict": found.verdict,
    }


def _summary(
    prediction: Prediction,
    bundle: Bundle | None,
    settings: BaseModel,
    table: pl.DataFrame,
    formats: Sequence[str],
    timings: dict[str, float],
) -> dict[str, Any]:
    images = len(prediction.images)
    total = table.filter(pl.col("image_id") == table["image_id"][0]) if len(table) else table
    counted = without_parts(prediction.cells).frame.filter("counted")
    return {
        "bundle": None if bundle is None else {"name": bundle.name, "hash": bundle.hash},
        "images": images,
        "failed": len(prediction.failed),
        "cells": len(counted),
        "outlined": len(counted) - counted["mask"].null_count(),
        "referred": int(counted["refer"].sum()),
        "referred_because": prediction.reasons,
        "counts": {row["label"]: row["count"] for row in total.iter_rows(named=True) if row["count"]},
        "percent_of_leukocytes": {
            row["label"]: round(row["percent"], 3)
            for row in total.iter_rows(named=True)
            if row["percent"] is not None and row["count"]
        },
        "remarks": {image: list(said) for image, said in prediction.remarks.items()},
        "failures": [problem.to_dict() for problem in prediction.failed],
        "notes": [problem.to_dict() for problem in prediction.problems if problem.severity != "error"],
        "formats": list(formats),
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
        "timings": {name: round(value, 4) for name, value in timings.items()},
        "ms_per_image": round(1000 * timings["predict_s"] / images, 3) if images and "predict_s" in timings else None,
    }
