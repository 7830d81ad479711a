"""A trained bundle fitted to another microscope's pictures: a new bundle that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from cytolens.bundle import Bundle, BundleInfo
from cytolens.bundle import write as write_bundle
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.models.checkpoint import read_state_dict
from cytolens.predict.calibrate import field_ranges
from cytolens.predict.concepts import FILE as CONCEPTS
from cytolens.predict.concepts import Concepts
from cytolens.predict.exam import make_exam
from cytolens.predict.familiarity import field_measures
from cytolens.predict.session import ATTRIBUTES_FILE
from cytolens.prepare import stain
from cytolens.problems import BundleError, DatasetError, Problems, SettingError, written
from cytolens.run.training import TASKS, TrainingResult
from cytolens.settings import checked
from cytolens.train.adapt_settings import AdaptSettings
from cytolens.train.adaptation import adapted, network_of, unnamed
from cytolens.train.batches import readable
from cytolens.train.export import export_classifier, export_detector, export_regions

# What was worked out with the training's own data and would not hold for other weights.
_DOES_NOT_HOLD = "familiarity.npz"
_WRITTEN = ("model.onnx", ATTRIBUTES_FILE, "weights.safetensors")


def adapt(
    bundle: Bundle,
    dataset: Dataset,
    run: Path,
    how: AdaptSettings,
    boxes: Cells | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> TrainingResult:
    """Adapt a trained network to a dataset's pictures, and write the bundle to ``run/bundle``.

    Names, attributes and a detector's boxes in the dataset are thrown away before anything is looked at. Thresholds
    and temperatures stay those of the source: without a truth there is nothing to choose them by. What tells
    strangers among cells (familiarity) and the scores are left out, since they are of other weights. Where names are
    read from attributes, the layer that reads them (concepts) is the adapted network's.

    Args:
        bundle: with weights for further training.
        dataset: pictures of the target.
        run: a folder that holds no run yet.
        how: to adapt.
        boxes: classifiers: where cells were found in these pictures; None: where the dataset has boxes.
        notify: is told, in a sentence, what a user should know.

    Raises:
        BundleError: the bundle has no weights, or does not say how it was trained.
        SettingError: the bundle is a pipeline, the folder is taken, or the method does not fit the network.
        DatasetError: there is nothing to look at.
    """
    task = bundle.info.task
    if task not in TASKS:
        raise SettingError(
            f'"{bundle.name}" is a pipeline; adapt its members one by one and put them together again with '
            "cytolens bundles pack"
        )
    if task == "segment":
        raise SettingError(f'"{bundle.name}" outlines cells; adapt fits detectors and classifiers only')
    if (run / "bundle").exists() or (run / "settings.json").exists():
        raise SettingError(f"{run} already holds a run. Choose another --out.")
    weights = bundle.file("weights.safetensors")
    if weights is None:
        raise BundleError(
            f"{bundle.folder}: has no weights.safetensors, so it can be used and not changed. Shipped bundles leave "
            "them out; train one with its recipe, and adapt that run"
        )
    settings = checked(TASKS[task], bundle.info.training.get("settings", {}), f"{bundle.folder}: training.settings")
    network = network_of(settings, bundle.labels, read_state_dict(weights))
    target = unnamed(dataset if boxes is None else _at(dataset, boxes, bundle), task, bundle.labels)
    notify(f"{len(target.images)} images to adapt to, by {how.method}; their labels are not looked at")
    problems = Problems()
    changed, seen = adapted(network, settings, bundle.info.detect_output, target, how, problems, notify)
    run.mkdir(parents=True, exist_ok=True)
    _save(changed, settings, run)
    info = _info(bundle, dataset, target, how, seen)
    kept: dict[str, Path | bytes] = {name: run / name for name in _WRITTEN if (run / name).exists()}
    if (layer := _concepts_after(bundle, changed)) is not None:
        kept[CONCEPTS] = layer
    if bundle.file(_DOES_NOT_HOLD) is not None:
        notify("the new bundle cannot tell strangers among cells: that was learnt with the training's own cells")
    made = make_exam(write_bundle(run / "bundle", info, kept))
    with written(run / "adapted.json") as part:
        part.write_text(json.dumps(info.training["adapted"], indent=2) + "\n", encoding="utf-8")
    return TrainingResult(run, made, problems)


def _at(dataset: Dataset, boxes: Cells, bundle: Bundle) -> Dataset:
    """The dataset's images with the counted findings there that the classifier has a word for."""
    frame = boxes.frame.filter(pl.col("counted") & pl.col("image_id").is_in(dataset.images.ids))
    known = [name for name in boxes.labels.names if name in bundle.labels]
    frame = frame.filter(pl.col("label").is_null() | pl.col("label").cast(pl.String).is_in(known))
    if not len(frame):
        raise DatasetError(
            f'the boxes are none of cells that "{bundle.name}" names, in images of "{dataset.name}"; '
            "predict that dataset"
        )
    return replace(dataset, cells=Cells(frame, boxes.labels))


def _save(network: Any, settings: Any, run: Path) -> None:
    from safetensors.torch import save_file

    with written(run / "weights.safetensors") as part:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, part)
    export = export_detector if settings.task == "detect" else export_classifier
    export(network, run / "model.onnx", settings.input.side_px)
    if settings.task == "detect" and settings.attributes:
        export_regions(network, run / ATTRIBUTES_FILE)


def _concepts_after(bundle: Bundle, network: Any) -> bytes | None:
    """The layer that the adapted network reads names by, as a file; None: the bundle has none.

    Its weights are the network's own, which a teacher changes. The average cell stays that of the training: what its
    attributes say is told against the same cell before and after.
    """
    file = bundle.file(CONCEPTS)
    if file is None:
        return None
    weights, bias = (one.detach().cpu().numpy() for one in (network.head.weight, network.head.linear.bias))
    before = Concepts.from_bytes(file.read_bytes())
    return Concepts(weights.astype("float32"), bias.astype("float32"), before.mean).to_bytes()


def _info(bundle: Bundle, dataset: Dataset, target: Dataset, how: AdaptSettings, seen: dict[str, Any]) -> BundleInfo:
    """The source's description, with what was done to it."""
    before = bundle.info
    said = {
        "method": how.method,
        "settings": how.model_dump(mode="json"),
        "from": f"{bundle.name}@{bundle.hash}",
        "dataset": dataset.name,
        "dataset_images": len(dataset.images),
        "seen": seen,
    }
    ranges = dict(before.field_ranges)
    if ranges:
        paths = target.images.frame["path"].to_list()
        here = field_ranges([field_measures(p, stain.measure(p)) for _, p in readable(paths, Problems())])
        ranges = {k: (min(low, here[k][0]), max(high, here[k][1])) for k, (low, high) in ranges.items() if k in here}
    words = f'{bundle.name}, adapted to the pictures of "{dataset.name}" without labels ({how.method}).'
    return before.model_copy(
        update={
            "name": f"{bundle.name}-{how.method}",
            "description": f"{before.description} {words}".strip(),
            "field_ranges": ranges,
            "scores": {},
            "training": {**before.training, "adapted": said},
            "licence": "; ".join(dict.fromkeys(one for one in (before.licence, dataset.licence) if one)),
            "files": {},
        }
    )
