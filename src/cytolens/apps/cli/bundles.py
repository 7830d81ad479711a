"""`cytolens bundles …`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from cytolens.apps.cli.console import BAD, DONE, Debug, Json, answer, command, names, notify, problem_lines
from cytolens.problems import SettingError

app = typer.Typer(help="The models: what is here, what they are, whether they are whole.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A shipped bundle by name, or the folder of one.")]


@app.command("list")
@command
def list_bundles(json_output: Json = False, debug: Debug = False) -> int:
    """The bundles that come with the package.

    Example: cytolens bundles list
    """
    from cytolens.bundle import Bundle, shipped

    rows: list[dict[str, Any]] = []
    for name in shipped():
        bundle = Bundle.load(name)
        size = sum(file.stat().st_size for file in bundle.folder.rglob("*") if file.is_file())
        about = {"name": name, "task": bundle.info.task, "hash": bundle.hash, "megabytes": round(size / 1e6, 2)}
        rows.append(about | {"description": bundle.info.description})
    lines = [
        f"{row['name']:16} {row['task']:9} {row['hash']}  {row['megabytes']:6.2f} MB  {row['description']}"
        for row in rows
    ]
    answer({"bundles": rows}, lines or ["no bundles are shipped"], json_output)
    return DONE


@app.command()
@command
def show(bundle: Name, json_output: Json = False, debug: Debug = False) -> int:
    """What a bundle is, what it was trained on and how it scored.

    Example: cytolens bundles show smear
    """
    from cytolens.bundle import Bundle

    loaded = Bundle.load(bundle)
    card = loaded.file("card.md")
    lines = [card.read_text(encoding="utf-8")] if card is not None else []
    lines += [f"name: {loaded.name}", f"task: {loaded.info.task}", f"hash: {loaded.hash}", f"folder: {loaded.folder}"]
    lines += [f"labels: {', '.join(loaded.labels.names)}", f"licence: {loaded.info.licence or 'not stated'}"]
    lines += [f"member: {member} ({one.hash})" for member, one in loaded.members.items()]
    for one in (loaded, *loaded.members.values()):
        if (how := one.info.architecture.get("concepts", "none")) != "none":
            lines.append(f"{one.name} reads names from attributes alone (concept bottleneck, {how})")
    data = loaded.info.model_dump(mode="json") | {"hash": loaded.hash, "folder": str(loaded.folder)}
    answer(data, lines, json_output)
    return DONE


@app.command()
@command
def verify(
    bundles: Annotated[list[str] | None, typer.Argument(help="Names or folders; none: all shipped bundles.")] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Check every file's sha256, then let the bundle sit its exam.

    Example: cytolens bundles verify smear
    """
    from cytolens.bundle import Bundle, shipped

    results, lines = [], []
    for name in bundles or shipped():
        result = Bundle.load(name).self_test()
        entry = {"name": name, "passed": result.passed, "pictures": result.pictures, "cells": result.cells}
        results.append(entry | {"mistakes": list(result.mistakes)})
        lines.append(
            f"{name}: {'passed' if result.passed else 'FAILED'} ({result.pictures} pictures, {result.cells} cells)"
        )
        lines += [f"  {mistake}" for mistake in result.mistakes]
    answer({"bundles": results, "passed": all(r["passed"] for r in results)}, lines, json_output)
    return DONE if all(r["passed"] for r in results) else BAD


@app.command()
@command
def export(
    bundle: Name,
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Write a bundle's ONNX networks and their descriptions, for use in other programs.

    Each network takes uint8 RGB pictures; its JSON says how they are made, what comes out, and in
    which order the labels are.

    Example: cytolens bundles export smear --out onnx/
    """
    from cytolens.bundle import Bundle

    loaded = Bundle.load(bundle)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for one in (loaded, *loaded.members.values()):
        network = one.file("model.onnx")
        if network is None:
            continue
        shutil.copyfile(network, out / f"{one.name}.onnx")
        if (reader := one.file("attributes.onnx")) is not None:  # takes the maps that the network gives, and regions
            shutil.copyfile(reader, out / f"{one.name}.attributes.onnx")
            files.append(f"{one.name}.attributes.onnx")
        leaves = one.labels.leaves if one.info.task == "classify" else one.labels.names
        about = one.info.model_dump(mode="json", exclude_none=True) | {
            "output_labels": list(leaves),
            "bundle_hash": one.hash,
        }
        (out / f"{one.name}.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        files += [f"{one.name}.onnx", f"{one.name}.json"]
    answer({"out": str(out), "files": files}, [f"wrote {out / name}" for name in files], json_output)
    return DONE


@app.command()
@command
def pack(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="One run or bundle; or, for a pipeline, a detector, a classifier, and those that give attributes."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the packed bundle; members stand beside it.")],
    name: Annotated[str | None, typer.Option(help="The bundle's name. Default: that of the folder.")] = None,
    description: Annotated[str, typer.Option(help="One sentence: what it is for.")] = "",
    name_these: Annotated[
        str, typer.Option(help="Pipeline: labels of the detector that the classifier names.")
    ] = "leukocyte",
    scores: Annotated[
        list[str] | None,
        typer.Option(help="DOMAIN=FILE: what evaluate --json wrote; goes into the card. May be repeated."),
    ] = None,
    card: Annotated[Path | None, typer.Option(help="Markdown with purpose and limits; figures are put in.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="Terms of the weights. Default: those of the training data.")
    ] = None,
    without_weights: Annotated[
        bool, typer.Option(help="Leave out weights.safetensors: smaller, but not for further training.")
    ] = False,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Make a bundle to give away: from a run, or a pipeline from a detector and a classifier.

    Example: cytolens bundles pack bundles/smear-detector bundles/wbc-classifier --out bundles/smear
    """
    from cytolens.run.packing import pack_pipeline, pack_single

    figures = {domain: _figures(file) for domain, _, file in (text.partition("=") for text in scores or ())}
    text = card.read_text(encoding="utf-8") if card else ""
    shared = {
        "name": name or out.resolve().name,
        "description": description,
        "scores": figures,
        "card": text,
        "licence": licence,
    }
    if len(runs) == 1:
        bundle = pack_single(runs[0], out, keep_weights=not without_weights, **shared)
    else:
        bundle = pack_pipeline(runs, out, name_these=names(name_these), **shared)
    size = sum(file.stat().st_size for file in bundle.folder.rglob("*") if file.is_file())
    lines = [f"{bundle.folder}: {bundle.name} ({bundle.hash}), {size / 1e6:.2f} MB"]
    answer({"bundle": str(bundle.folder), "hash": bundle.hash, "bytes": size}, lines, json_output)
    return DONE


@app.command("import")
@command
def import_bundle(
    file: Annotated[Path, typer.Argument(help="Weights: .pth, .ckpt, .safetensors …, or a zip or tar file of them.")],
    out: Annotated[
        Path,
        typer.Option(
            help="The bundle's folder; for an archive, the folder for its bundles; for dinobloom, a .safetensors."
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(help="yolox, cytologia-detector, cytologia-classifier, dinobloom, or auto: told by the tensors."),
    ] = "auto",
    model: Annotated[
        str | None, typer.Option(help="The network, such as yolox-s or timm's name. Default: told by the tensors.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Names of the outputs, in their order: coco, cytologia …, or a file (a name per line, or TOML)."
        ),
    ] = None,
    side_px: Annotated[int | None, typer.Option(min=32, help="Side of the input. Default: as published.")] = None,
    licence: Annotated[str | None, typer.Option(help="Terms of the weights. Default: as far as known.")] = None,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Make bundles of weights that others have published. Nothing that stands in the file is run.

    Example: cytolens bundles import yolox_s.pth --kind yolox --out yolox-s
    """
    from cytolens.problems import Problems, require

    require("torch", "train", "importing weights")
    from cytolens.run.importing import LIST, import_archive, import_weights, is_archive
    from cytolens.run.published_networks import ImportSettings

    if not file.is_file():
        raise SettingError(f"{file}: there is no such file")
    settings = ImportSettings(kind=kind, model=model, labels=labels, side_px=side_px, licence=licence)
    problems = Problems()
    archive = is_archive(file)
    if archive:
        made, problems = import_archive(file, out, settings, notify(json_output))
    else:
        made = [import_weights(file, out, settings)]
    lines: list[str] = []
    for one in made:
        what = f"{one.bundle.name} ({one.bundle.hash})" if one.bundle else "starting weights"
        lines += [f"{one.path}: {what}, {one.kind} from {one.source}", *(f"  {note}" for note in one.notes)]
    lines += problem_lines(problems)
    lines += [f"list of them: {out / LIST}"] if archive and made else []
    answer({"made": [one.to_dict() for one in made], "problems": problems.to_dicts()}, lines, json_output)
    return BAD if len(problems) else DONE


def _figures(file: str) -> dict[str, Any]:
    try:
        figures = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(
            f'--scores takes DOMAIN=FILE; "{file}" is not what evaluate --json wrote ({error})'
        ) from error
    known = ("detection", "classification", "attributes", "segmentation", "sartorius")
    if not isinstance(figures, dict) or figures.get("task") not in known:
        raise SettingError(f'--scores: "{file}" holds no scores by evaluate --json of one of: {", ".join(known)}')
    return figures
