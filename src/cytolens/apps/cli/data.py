"""`cytolens import` and `cytolens export`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cytolens.apps.cli.console import BAD, DONE, Debug, Json, Where, answer, command, names, problem_lines
from cytolens.problems import LabelError, SettingError

_FORMATS = (
    "voc, yolo, coco, csv_boxes, image_folder, rle_csv, label_images, geojson, wbcatt, leukemia_attri, "
    "leukemia_attri_11, lld, leukemia_attri_coco"
)
# Tables that are written only: format → whether in the columns of the original LeukemiaAttri program.
_PREDICTIONS = {"leukemia_attri_predictions": True, "attributes_csv": False}
_VALIDATIONS = {"leukemia_attri_validation": True, "attributes_validation": False}
_EXPORTS = (
    "cytologia (with --test); attributes_csv, leukemia_attri_predictions (findings with their attributes, in our "
    "columns or those of LeukemiaAttri's program); attributes_validation, leukemia_attri_validation (beside --truth); "
    "sartorius_submission (id,predicted, of findings without overlaps); morphometry (size, form, colour of outlines)."
)
_OUTLINED = ("sartorius_submission", "morphometry")
_Order = Annotated[
    Literal["row", "column"] | None,
    typer.Option(help="rle_csv: how pixels are numbered. Default at import: as the column is called; at export: row."),
]


@command
def import_data(
    source: Annotated[Path, typer.Argument(help="Folder or file with the annotations.")],
    out: Annotated[Path, typer.Option(help="Folder for the dataset.")],
    format: Annotated[str, typer.Option(help=_FORMATS + ", or auto.")] = "auto",
    images: Annotated[Path | None, typer.Option(help="Folder with the images, when they lie elsewhere.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Labels to speak: a shipped set (pbc, cytologia …) or a TOML file.")
    ] = None,
    group_pattern: Annotated[
        str | None, typer.Option(help="Regular expression: what it finds in an image's path is its patient or slide.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Keep this part only; if the source has no parts, call all of it so.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="Columns of a CSV, OURS=THEIRS: image, x_min, y_min, x_max, y_max, label …")
    ] = None,
    order: _Order = None,
    size_two: Annotated[
        Literal["large", "ignore"],
        typer.Option(help="leukemia_attri, lld: what the code 2 of the cell size says: large, or that it is missing."),
    ] = "large",
    unsqueeze: Annotated[
        str | None,
        typer.Option(
            help="W:H, the proportion that squeezed images had: they are stretched back along x with their boxes, and "
            "written as PNG into OUT/images."
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="label_images: the label of all cells that no CSV names.")] = None,
    sample_group: Annotated[
        Literal["well", "vessel"],
        typer.Option(help="rle_csv with Sartorius' sample_id: images of one well, or of one vessel, are a group."),
    ] = "well",
    complete_for: Annotated[
        str | None, typer.Option(help="Labels that are annotated without gaps, such as WBC,Platelets. Default: all.")
    ] = None,
    scanner: Annotated[
        str | None, typer.Option(help="Microscope, with its camera, of all images, such as 'H C1'.")
    ] = None,
    magnification: Annotated[str | None, typer.Option(help="Of all images, such as 100x.")] = None,
    stain: Annotated[str | None, typer.Option(help="Of all images, such as may-gruenwald-giemsa.")] = None,
    where: Where = None,
    allow_missing_images: Annotated[bool, typer.Option(help="Keep annotations whose image is not there.")] = False,
    name: Annotated[str | None, typer.Option(help="Name of the dataset.")] = None,
    licence: Annotated[str, typer.Option(help="Under what terms the data may be used.")] = "",
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Read annotations and images of a foreign format into a dataset.

    Images stay where they are; the dataset refers to them.

    Example: cytolens import BCCD --format voc --out data/bccd
    """
    from cytolens import formats
    from cytolens.formats.unsqueeze import parsed_proportion, unsqueezed

    proportion = None if unsqueeze is None else parsed_proportion(unsqueeze)
    options = formats.ReadOptions(
        name=name,
        labels=_label_set(labels),
        images=images,
        group_pattern=group_pattern,
        split=split,
        allow_missing_images=allow_missing_images,
        columns=_columns(columns),
        order=order,
        size_two=size_two,
        label=label,
        sample_group=sample_group,
        complete_for=names(complete_for) or None,
        licence=licence,
    )
    imported = formats.read(source, format, options)
    dataset, problems = imported.dataset, imported.problems
    dataset = dataset.taken_with(stain=stain, scanner=scanner, magnification=magnification)
    dataset = dataset if where is None else dataset.select(where)
    if proportion is not None:
        dataset = unsqueezed(dataset, proportion, out / "images")
    dataset.write(out)
    counts = dict(dataset.cells.frame["label"].cast(str).value_counts(sort=True).iter_rows())
    splits = dict(dataset.images.frame["split"].value_counts(sort=True).iter_rows())
    data = {
        "dataset": str(out),
        "images": len(dataset.images),
        "cells": len(dataset.cells),
        "labels": {str(label): count for label, count in counts.items()},
        "splits": {str(part): count for part, count in splits.items() if part is not None},
        "fingerprint": dataset.fingerprint,
        "problems": problems.to_dicts(),
    }
    lines = [f"{out}: {len(dataset.images)} images, {len(dataset.cells)} cells"]
    lines += [f"  {label or '(no label)'}: {count}" for label, count in counts.items()]
    lines += [f"  part {part}: {count} images" for part, count in splits.items() if part is not None]
    answer(data, lines + problem_lines(problems), json_output)
    return BAD if problems.worst == "error" else DONE


def _columns(pairs: list[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    table = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not equals:
            raise SettingError(f'--columns takes OURS=THEIRS, such as x_min=left; got "{pair}"')
        table[ours.strip()] = theirs.strip()
    return table


def _label_set(text: str | None) -> Any:
    """A shipped label set by name, or one from a TOML file: ``names = […]``, or ``[[label]]`` tables."""
    from cytolens.labels import LabelSet

    if text is None:
        return None
    path = Path(text)
    if not path.is_file():  # a folder may well be called like a shipped set
        return LabelSet.shipped(text)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LabelError(f"{path}: not valid TOML ({error})") from error
    given, rows = data.get("names"), data.get("label")
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        return LabelSet.of(given)
    if rows and isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
        return LabelSet.from_rows(rows)
    raise LabelError(f'{path}: has neither names = ["…"] nor [[label]] tables')


@command
def export_data(
    source: Annotated[Path, typer.Argument(help="A dataset, a cells.parquet, or a folder that predict wrote.")],
    out: Annotated[Path, typer.Option(help="File or folder to write.")],
    format: Annotated[str, typer.Option(help=_FORMATS + "; or " + _EXPORTS)],
    copy_images: Annotated[bool, typer.Option(help="Put a copy of the images where the format expects them.")] = False,
    results: Annotated[
        bool, typer.Option(help="coco: a results list (findings) instead of an instances file.")
    ] = False,
    reference: Annotated[Path | None, typer.Option(help="coco results: the instances file whose ids to use.")] = None,
    order: _Order = None,
    test: Annotated[
        Path | None, typer.Option(help="cytologia: the challenge's test.csv, whose rows are to be filled.")
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="attributes_validation, leukemia_attri_validation: the dataset with the annotations."),
    ] = None,
    expected_counts: Annotated[
        bool,
        typer.Option(
            "--expected-counts",
            help="cytologia, an oracle: take as many findings as test.csv has rows, counted or not.",
        ),
    ] = False,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Write a dataset, or what was found, in a foreign format; says what the format cannot keep.

    Example: cytolens export data/bccd --format yolo --out bccd-yolo --copy-images
    """
    from cytolens import formats
    from cytolens.dataset import Dataset

    if (truth is not None) != (format in _VALIDATIONS):
        raise SettingError(f"--truth goes with --format {' or '.join(_VALIDATIONS)}, and they need it")
    if (source / "dataset.json").exists():
        data = Dataset.read(source)
    else:
        from cytolens.evaluate import read_found

        cells, images = read_found(source)
        data = cells if images is None else Dataset(images, cells, source.stem)
    options = formats.WriteOptions(copy_images=copy_images, results=results, reference=reference, order=order)
    if format == "cytologia":
        problems = _write_cytologia(data, options, test, out, expected_counts)
    elif test is not None or expected_counts:
        raise SettingError(f"--test and --expected-counts go with --format cytologia, not with {format}")
    elif format in _OUTLINED:
        problems = _write_outlined(data, options, format, out)
    elif format in _PREDICTIONS or truth is not None:
        problems = _write_attributes(data, options, format, truth, out)
    else:
        problems = formats.write(data, out, format, options)
    answer({"out": str(out), "problems": problems.to_dicts()}, [f"wrote {out}", *problem_lines(problems)], json_output)
    return BAD if problems.worst == "error" else DONE


def _write_cytologia(data: Any, options: Any, test: Path | None, out: Path, oracle: bool) -> Any:
    """The challenge's answer. It needs the rows that are asked for, and the sizes of the images."""
    from cytolens.cells import Cells
    from cytolens.formats.cytologia_submission import write_submission

    if test is None:
        raise SettingError("--format cytologia needs --test, the challenge's test.csv, whose rows are to be filled")
    if options != type(options)():
        raise SettingError("--copy-images, --results, --reference and --order do not go with --format cytologia")
    if isinstance(data, Cells):
        raise SettingError("the sizes of the images are not known: name the folder that predict wrote, or a dataset")
    return write_submission(data.cells, data.images, test, out, use_expected_counts=oracle)


def _write_outlined(data: Any, options: Any, format: str, out: Path) -> Any:
    """A CSV file of outlined cells: the answer to Sartorius, or their measures. Both need the sizes of the images."""
    from cytolens.cells import Cells

    if options != type(options)():
        raise SettingError(f"--copy-images, --results, --reference and --order do not go with --format {format}")
    if isinstance(data, Cells):
        raise SettingError("the images are not known: name the folder that predict wrote, or a dataset")
    if format == "morphometry":
        from cytolens.predict.morphometry import write_morphometry

        return write_morphometry(data.cells, data.images, out)
    from cytolens.formats.sartorius_submission import write_submission

    return write_submission(data.cells, data.images, out)


def _write_attributes(data: Any, options: Any, format: str, truth: Path | None, out: Path) -> Any:
    """Findings with their attributes as one CSV file, alone or beside the truth's."""
    from cytolens.cells import Cells
    from cytolens.dataset import Dataset
    from cytolens.evaluate.attribute_csv import write_validation
    from cytolens.formats.attribute_csv import write_predictions

    if options != type(options)():
        raise SettingError(f"--copy-images, --results, --reference and --order do not go with --format {format}")
    cells, images = (data, None) if isinstance(data, Cells) else (data.cells, data.images)
    if truth is None:
        return write_predictions(cells, out, original=_PREDICTIONS[format])
    return write_validation(Dataset.read(truth), cells, images, out, original=_VALIDATIONS[format])
