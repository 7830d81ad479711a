"""`cytolens predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytolens.apps.cli.console import BAD, DONE, Debug, Json, answer, command, names, problem_lines, progress
from cytolens.problems import SettingError

_ENGINES = ("local", "ray")
_GROUPS = ("folder",)


@command
def predict(
    images: Annotated[list[str], typer.Argument(help="Images, folders, patterns such as 'smears/*.jpg', or datasets.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    bundle: Annotated[str, typer.Option(help="A shipped bundle by name, or the folder of one.")] = "smear",
    format: Annotated[
        str | None,
        typer.Option(
            help="Comma separated: cells, csv, overlay, report (the default); coco, geojson, label_images, morphometry."
        ),
    ] = None,
    overlay_attributes: Annotated[
        str | None,
        typer.Option(help="Attributes to write beside cells in overlays, such as cell_size,granularity or wbcatt."),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Only images of a dataset that meet a condition, such as 'fold = 0'.")
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(help="Name the cells that were found in the same images (a folder of predict, or a dataset)."),
    ] = None,
    tile_px: Annotated[
        int | None,
        typer.Option(help="Look at the images in tiles of this side. Default: chosen by the size of the red cells."),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Refuse plain images with more pixels. Default: 250 million.")
    ] = None,
    tta: Annotated[
        str, typer.Option(help="Views of each picture that are looked at: none, flip (2), flips (4), all (8).")
    ] = "bundle",
    blast_percent: Annotated[
        float, typer.Option(help="Where the labels have blasts: the line in percent of the named white cells.")
    ] = 20.0,
    blasts: Annotated[
        str | None,
        typer.Option(help="What counts as a blast, with all kinds. Default: blast, blast equivalent."),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(help="folder: images of one folder are one patient or slide, with a differential of its own."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Images at a time; 0: one per core.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or openvino.")] = "cpu",
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="ray: address of a running cluster. Default: one is started here.")
    ] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Find, name and count the cells of images.

    Example: cytolens predict smears/ --out found/
    """
    from cytolens.bundle import Bundle
    from cytolens.evaluate import read_found
    from cytolens.predict.calling import predict_settings
    from cytolens.predict.fields import image_rows, predict_images
    from cytolens.predict.group_differential import folders_as_groups
    from cytolens.predict.outputs import DEFAULT_FORMATS, checked_formats, write_outputs
    from cytolens.predict.overlay_notes import noted_attributes
    from cytolens.predict.pipeline import Predictor

    if engine not in _ENGINES:
        raise SettingError(f'no engine "{engine}"; allowed: {", ".join(_ENGINES)}')
    if address is not None and engine != "ray":
        raise SettingError("--address names a Ray cluster; it goes with --engine ray")
    if group_by not in (None, *_GROUPS):
        raise SettingError(f'--group-by: no grouping "{group_by}"; allowed: {", ".join(_GROUPS)}')
    formats = checked_formats(names(format) or DEFAULT_FORMATS)
    limit = {} if max_pixels is None else {"max_pixels": max_pixels}
    line = {"percent": blast_percent} | ({} if blasts is None else {"names": names(blasts)})
    settings = predict_settings(blasts=line, tta=tta, tile_px=tile_px, jobs=jobs, device=device, **limit)
    if overlay_attributes is not None and "overlay" not in formats:
        raise SettingError("--overlay-attributes writes into overlays; it goes with the format overlay")
    predictor = Predictor(Bundle.load(bundle), settings)
    noted = noted_attributes(predictor.labels, names(overlay_attributes or ""))
    # Overlays of an earlier run are no smears; but whoever names a file there means it.
    rows = image_rows(images, leave_out=out / "overlays", where=where)
    rows = folders_as_groups(rows) if group_by == "folder" else rows
    given = None if boxes is None else read_found(boxes)[0]
    out.mkdir(parents=True, exist_ok=True)  # what cannot be written to is better known before the work than after
    with progress("looking at images", json_output) as tell:
        if engine == "ray":
            from cytolens.predict.on_ray import predict_on_ray

            prediction = predict_on_ray(predictor, rows, tell, given, address=address)
        else:
            prediction = predict_images(predictor, rows, tell, given)
    with progress("drawing overlays", json_output) as tell:
        summary = write_outputs(prediction, predictor.bundle, out, formats, settings, tell, overlay_attributes=noted)
    lines = [
        f"{summary['images']} images, {summary['cells']} cells, {summary['referred']} referred to a person → {out}"
    ]
    lines += [f"  {label}: {count}" for label, count in summary["counts"].items()]
    lines += [f"  {summary['ms_per_image']} ms per image"] if summary["ms_per_image"] else []
    if summary["remarks"]:
        lines.append(f"  {len(summary['remarks'])} images are unlike the training's; their cells are referred")
    if not summary["outlined"] and {"label_images", "morphometry"} & set(formats):
        lines.append("  no counted cell has an outline, so label_images and morphometry are empty: take another bundle")
    if "report" in formats:
        lines.append(f"  open {out / 'report.html'}")
    answer(summary, lines + problem_lines(prediction.problems), json_output)
    return BAD if prediction.failed else DONE
