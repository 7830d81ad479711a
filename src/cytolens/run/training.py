"""Training from end to end: dataset → network → calibrated bundle with its exam."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch

from cytolens.bundle import Bundle, rewrite
from cytolens.bundle import write as write_bundle
from cytolens.cells import Cells
from cytolens.dataset import Dataset, merge
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.models.checkpoint import load_matching
from cytolens.models.public_weights import starting_weights
from cytolens.predict.calibrate import detection_thresholds, field_ranges
from cytolens.predict.concepts import FILE as CONCEPTS
from cytolens.predict.ensemble import detector_of
from cytolens.predict.exam import make_exam
from cytolens.predict.familiarity import FILE, field_measures
from cytolens.predict.fields import predict_images
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.predict.session import ATTRIBUTES_FILE, Classifier, session
from cytolens.prepare import stain
from cytolens.prepare.crops import relocated
from cytolens.problems import BundleError, DatasetError, Problems, SettingError, listing
from cytolens.run import segment_training
from cytolens.run.bundle_record import info_of
from cytolens.run.calibration import (
    answers,
    calibrated,
    calibrated_values,
    concepts_learnt,
    familiarity,
    of_names,
    of_values,
    region_answers,
    uncalibrated,
)
from cytolens.run.outline_training import outline_bundle, outline_plan
from cytolens.settings import checked, overlaid, read_recipe, with_overrides
from cytolens.tasks import attributes, classify
from cytolens.train import classification, description, detection, multilabel, region_description
from cytolens.train.background_squares import BackgroundSquares
from cytolens.train.batches import Samples, readable, tuning_part
from cytolens.train.export import export_classifier, export_detector, export_regions
from cytolens.train.fit import Plan, check_run, fit
from cytolens.train.outline_settings import OutlineTraining
from cytolens.train.segment_settings import SegmentTraining

TASKS = {
    "detect": detection.DetectTraining,
    "classify": classification.ClassifyTraining,
    "outline": OutlineTraining,
    "segment": SegmentTraining,
}
Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training leaves: the run folder, its bundle, and what was wrong in the data."""

    run: Path
    bundle: Bundle
    problems: Problems


def training_settings(
    task: str,
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
    model: str | None = None,
    tables: Mapping[str, Any] | None = None,
) -> Any:
    """The settings of a training from a recipe, the command line and defaults.

    Args:
        task: one of `TASKS`.
        recipe: TOML file with settings.
        overrides: KEY=VALUE each.
        model: another network than the recipe's; of a region network the backbone.
        tables: settings that go over the recipe's, key by key.

    Raises:
        SettingError: the task, a key or a value is not allowed.
    """
    if task not in TASKS:
        raise SettingError(f'no training task "{task}"; allowed: {", ".join(TASKS)}')
    data = read_recipe(recipe) if recipe else {}
    if data.get("task", task) != task:
        raise SettingError(f'{recipe} is a recipe for "{data["task"]}", not for "{task}"')
    data = with_overrides(overlaid(data, tables or {}), overrides)
    if model is not None:
        data["backbone" if task == "segment" else "model"] = model
    return checked(TASKS[task], data, str(recipe or "settings"))


def prepared(datasets: Sequence[Dataset], settings: Any, boxes: Cells | None, notify: Notify) -> Dataset:
    """One dataset to learn from, in the labels of the settings (or of the first dataset).

    A classifier leaves out cells that its labels have no word for, and says so; one of whole images leaves out the
    images with such cells, which may be of any kind. A detector cannot: they would be taught as background.

    Args:
        datasets: what to learn from.
        settings: of the training.
        boxes: what a detector found; the datasets whose images it is about are cut there.
        notify: is told what is left out.

    Raises:
        LabelError: a detector's labels have no counterpart for a label present; or there are no labels.
        DatasetError: two datasets have the same name, or `boxes` is about none of them.
    """
    labels = labels_to_learn(datasets, settings)
    if boxes is not None:
        looked_at = set(boxes.frame["image_id"])
        about = [bool(looked_at & set(dataset.images.ids)) for dataset in datasets]
        if not any(about):
            raise DatasetError("the boxes are of other images than the data; predict the dataset itself")
        datasets = [relocated(d, boxes) if here else d for d, here in zip(datasets, about, strict=True)]
    spoken = []
    for dataset in datasets:
        one = dataset.relabel(labels, missing="drop" if settings.task == "classify" else "error")
        if (lost := len(dataset.cells) - len(one.cells)) > 0:
            notify(f"{dataset.name}: {lost} cells are left out; the labels have no word for them")
            if getattr(settings, "target", "cell") == "image":
                gone = dataset.cells.frame.join(one.cells.frame, on="cell_id", how="anti")["image_id"].unique()
                one = one.of_images(Images(one.images.frame.filter(~pl.col("image_id").is_in(gone.to_list()))))
                notify(f"{dataset.name}: so are {len(gone)} whole images that hold them")
        spoken.append(one)
    return spoken[0] if len(spoken) == 1 else merge(spoken, "+".join(d.name for d in spoken), labels)


def labels_to_learn(datasets: Sequence[Dataset], settings: Any) -> LabelSet:
    """The labels of the settings, or else of the first dataset, with the attributes to learn.

    Raises:
        LabelError: there are no labels, or no dataset has an attribute that is named.
    """
    labels = detection.label_set(datasets[0], settings.labels)
    there = {a.column: a for dataset in datasets for a in dataset.labels.attributes}
    wanted = getattr(settings, "attributes", ())  # a network of outlines learns none
    return replace(labels, attributes=attributes.chosen(there.values(), wanted))


def train(
    settings: Any,
    dataset: Dataset,
    run: Path,
    *,
    resume: bool = False,
    progress: bool | None = None,
    notify: Notify = lambda _: None,
) -> TrainingResult:
    """Train, calibrate, and write the bundle to ``run/bundle``.

    Args:
        settings: one of `TASKS`.
        dataset: where the images have parts, only `settings.split` is learnt from; the rest is not touched.
        run: the run folder.
        resume: go on where an earlier call was stopped; a finished run is left as it is.
        progress: show a progress bar; None: where standard error is a terminal.
        notify: is told, in a sentence, what a user should know.

    Raises:
        SettingError, DatasetError, LabelError, DownloadError: the request cannot be carried out.
    """
    problems = Problems()
    check_run(run, settings, resume)  # before the data are loaded, which takes its time
    if getattr(settings, "frozen", None) is not None and settings.weights is None:
        raise SettingError(f"frozen = {settings.frozen} keeps blocks as they start, so it needs weights to start from")
    if resume and (done := _finished_bundle(run)) is not None:
        notify(f"{run} is finished; its bundle stays as it is")
        return TrainingResult(run, done, problems)
    if settings.split and not dataset.images.frame["split"].is_null().all():
        part = segment_training.of_split if settings.task == "segment" else Dataset.part
        dataset = part(dataset, settings.split)
    if settings.fold is not None:
        dataset = without_fold(dataset, settings.fold)
    dataset = dataset.relabel(labels_to_learn([dataset], settings))
    if settings.task == "segment":
        learning, tuning = segment_training.segment_parts(dataset, settings, notify)
    else:
        kept = tuning_part(dataset.images.frame, settings.tuning_share, settings.seed)
        learning = dataset.of_images(Images(dataset.images.frame.filter(~kept)))
        tuning = dataset.of_images(Images(dataset.images.frame.filter(kept)))
    notify(f"{len(learning.images)} images to learn from, {len(tuning.images)} kept for selection and calibration")
    if not len(learning.images) or not len(tuning.images):
        raise SettingError(f"{len(dataset.images)} images are too few to learn from and to keep some for tuning")
    torch.manual_seed(settings.seed)  # weights that are freshly drawn belong to the run's chance, too
    plan = _PLANNERS[settings.task](settings, learning, tuning, problems)
    _start(plan.module.network, settings, notify)
    network = fit(plan, settings, run, resume=resume, progress=progress, notify=notify)
    notify("exporting and calibrating")
    bundle = _EXPORTERS[settings.task](settings, network, learning, tuning, run)
    # Region networks have no exam: what they find at the thresholds of the settings says little before these are tuned.
    return TrainingResult(run, bundle if settings.task == "segment" else make_exam(bundle), problems)


def without_fold(dataset: Dataset, fold: int) -> Dataset:
    """The images outside a cross-validation fold; images that stand in no fold are among them.

    Raises:
        DatasetError: no image stands in that fold.
    """
    folds = dataset.images.frame["fold"]
    have = sorted(folds.drop_nulls().unique().to_list())
    if fold not in have:
        hint = (
            f"its folds: {listing(map(str, have))}" if have else "make them: cytolens split DATASET --folds 4 --out …"
        )
        raise DatasetError(f"the dataset has no fold {fold}; {hint}")
    return dataset.of_images(Images(dataset.images.frame.filter((folds != fold) | folds.is_null())))


def _finished_bundle(run: Path) -> Bundle | None:
    """The bundle of a run that has nothing left to do, or None; its exam is written last."""
    try:
        bundle = Bundle.load(run / "bundle")
    except BundleError:
        return None
    done = bundle.file("exam/expected.parquet") is not None or segment_training.is_finished(bundle)
    return bundle if done else None


def _start(network: Any, settings: Any, notify: Notify) -> None:
    """Put the starting weights into a fresh network."""
    if settings.weights is None:
        notify("starting from random weights")
        return
    state = starting_weights(settings.weights)
    if settings.task == "classify":
        from cytolens.models.classifier import for_this_size  # timm takes its time

        state = for_this_size(network, state)
    fresh, unused = load_matching(network, state)
    if len(fresh) == len(network.state_dict()):
        raise SettingError(f'weights = "{settings.weights}" fits not one tensor of {settings.model}')
    frozen = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    if random := sorted(frozen & set(fresh)):
        raise SettingError(
            f"frozen = {settings.frozen} would keep tensors that {settings.weights} does not fill, at random values: "
            f"{listing(random, 5)}; start from weights of {settings.model}, or train more blocks"
        )
    heads = ", ".join(sorted({name.rsplit(".", 1)[0] for name in fresh})) or "none"
    notify(f"starting from {settings.weights}; freshly drawn: {heads}; unused there: {len(unused)} tensors")


def _detect_plan(settings: Any, learning: Dataset, tuning: Dataset, problems: Problems) -> Plan:
    samples = detection.fields(learning, settings.input, problems)
    batches = detection.tuning_batches(tuning, settings, problems)
    readable_tuning = detection.only_readable(tuning, [batch[2] for batch in batches])
    return Plan(
        module=region_description.DescribingDetectModule(settings, readable_tuning, samples)
        if settings.attributes
        else detection.DetectModule(settings, readable_tuning),
        samples=Samples(detection.sample_maker(samples, settings), len(samples), settings.seed),
        weights=None,
        collate=detection.collate,
        tuning=batches,
    )


def _classify_plan(settings: Any, learning: Dataset, tuning: Dataset, problems: Problems) -> Plan:
    classify.spoken(learning.labels, settings.output)  # names that cannot be left out are an error now, not at the end
    if settings.target == "image":
        return _whole_image_plan(settings, learning, tuning, problems)
    store = classification.StoredCells(learning, settings, problems)
    squares = BackgroundSquares.of(learning, settings, problems)
    if settings.background and squares is None:
        raise DatasetError(
            f'background = "{settings.background}": no image to learn from is known to be without cells; give a '
            "dataset of such images as a further --data, or leave the setting out"
        )
    samples, weights = classification.training_samples(store, settings, squares)
    return Plan(
        module=description.DescribeModule(settings, learning.labels, store.known)
        if settings.attributes
        else classification.ClassifyModule(settings, learning.labels),
        samples=samples,
        weights=weights,
        collate=classification.collate,
        tuning=classification.tuning_batches(tuning, settings, problems),
    )


def _whole_image_plan(settings: Any, learning: Dataset, tuning: Dataset, problems: Problems) -> Plan:
    samples, weights = multilabel.training_samples(multilabel.WholeImages(learning, settings, problems), settings)
    return Plan(
        module=multilabel.MultiLabelModule(settings, learning.labels),
        samples=samples,
        weights=weights,
        collate=classification.collate,
        tuning=multilabel.tuning_batches(tuning, settings, problems),
    )


_PLANNERS: dict[str, Callable[[Any, Dataset, Dataset, Problems], Plan]] = {
    "detect": _detect_plan,
    "classify": _classify_plan,
    "outline": outline_plan,
    "segment": segment_training.segment_plan,
}


def _detect_bundle(settings: Any, network: Any, learning: Dataset, tuning: Dataset, run: Path) -> Bundle:
    """Export, then choose each label's threshold on the tuning part, and learn how sure attributes are."""
    export_detector(network, run / "model.onnx", settings.input.side_px)
    if settings.attributes:
        export_regions(network, run / ATTRIBUTES_FILE)
    roles = {learning.labels.role(name): name for name in learning.labels.names}
    ruler = _red_cell_px(learning, roles.get("erythrocyte"), settings.input.side_px)
    info = info_of(settings, learning, run, detect_input=settings.input, detect_output=settings.output)
    scaled = bool(settings.attributes) and settings.attribute_scale != "px"
    scale = {"attribute_scale": settings.attribute_scale} if scaled else {}
    info = info.model_copy(update={"architecture": {"model": settings.model, "red_cell_px": ruler, **scale}})
    info = info.model_copy(update={"field_ranges": _ranges(learning)})
    if settings.attributes:
        info = info.model_copy(update={"attribute_output": uncalibrated(settings.attribute_loss, learning.cells)})
    bundle = write_bundle(run / "bundle", info, _files(run))
    if info.attribute_output is not None:
        batches = detection.tuning_batches(tuning, settings, Problems())
        tuned = region_answers(detector_of(bundle), batches, tuning, settings.output)
        told = calibrated_values(info.attribute_output, tuned, learning.labels, settings.attribute_wrong)
        info = info.model_copy(update={"attribute_output": told})
    found = predict_images(Predictor(bundle, PredictSettings(whole_px=10**9)), tuning.images.rows())
    thresholds = detection_thresholds(tuning.cells, found.cells.relabel(tuning.labels), found.images.ids)
    output = settings.output.model_copy(update={"thresholds": thresholds})
    return rewrite(bundle, info.model_copy(update={"detect_output": output}))


def _files(run: Path) -> dict[str, Path | bytes]:
    names = ("model.onnx", ATTRIBUTES_FILE, "weights.safetensors")
    return {name: run / name for name in names if name != ATTRIBUTES_FILE or (run / name).exists()}


def _red_cell_px(dataset: Dataset, red: str | None, side_px: int) -> float:
    """Median diameter of the training's red cells in px of the network's input; 0 where there are none."""
    if red is None:
        return 0.0
    sizes = dataset.images.frame.select("image_id", pl.max_horizontal("width_px", "height_px").alias("side"))
    cells = dataset.cells.filter(pl.col("label") == red).frame.join(sizes, on="image_id")
    diameter = ((pl.col("x_max") - pl.col("x_min")) * (pl.col("y_max") - pl.col("y_min"))).sqrt() / pl.col("side")
    median = cells.select(diameter.median()).item()
    return round(float(median) * side_px, 1) if median is not None else 0.0


def _ranges(dataset: Dataset) -> dict[str, tuple[float, float]]:
    paths = dataset.images.frame["path"].to_list()
    measures = [field_measures(pixels, stain.measure(pixels)) for _, pixels in readable(paths, Problems())]
    return field_ranges(measures)


def _classify_bundle(settings: Any, network: Any, learning: Dataset, tuning: Dataset, run: Path) -> Bundle:
    """Export, then learn temperature, threshold and familiarity on the tuning part."""
    export_classifier(network, run / "model.onnx", settings.input.side_px)
    output = settings.output.model_copy(update={"outputs": "sigmoid" if settings.loss == "focal" else "softmax"})
    info = info_of(settings, learning, run, classify_input=settings.input, classify_output=output)
    bottleneck = {} if settings.concepts == "none" else {"concepts": settings.concepts}
    info = info.model_copy(update={"architecture": {"model": settings.model, "norm": settings.norm, **bottleneck}})
    bundle = write_bundle(run / "bundle", info, _files(run))
    running = session(bundle, threads=torch.get_num_threads())
    classifier = Classifier(running, bool(settings.attributes), settings.concepts != "none")
    batches = multilabel.tuning_batches if settings.target == "image" else classification.tuning_batches
    learnt, tuned = (
        answers(classifier, batches(part, settings, Problems()), output.views) for part in (learning, tuning)
    )
    more: dict[str, Path | bytes] = {}
    if settings.attributes:
        spoken = uncalibrated(settings.attribute_loss, learning.cells)
        told = calibrated_values(spoken, of_values(tuned, learning.labels), learning.labels, settings.attribute_wrong)
        info = info.model_copy(update={"attribute_output": told})
        if bottleneck:
            weights, bias = (one.detach().cpu().numpy() for one in (network.head.weight, network.head.linear.bias))
            more[CONCEPTS] = concepts_learnt(weights, bias, learnt).to_bytes()
        learnt, tuned = of_names(learnt, learning.labels), of_names(tuned, learning.labels)
    info = info.model_copy(update={"classify_output": calibrated(output, tuned, learning.labels)})
    familiar = familiarity(output, learnt, tuned, learning.labels)
    return rewrite(bundle, info, more if familiar is None else {**more, FILE: familiar.to_bytes()})


_EXPORTERS: dict[str, Callable[[Any, Any, Dataset, Dataset, Path], Bundle]] = {
    "detect": _detect_bundle,
    "classify": _classify_bundle,
    "outline": outline_bundle,
    "segment": segment_training.segment_bundle,
}
