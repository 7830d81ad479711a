"""Training of a region network from end to end: what it learns from, and the bundle that comes out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cytolens import boxes as box
from cytolens.bundle import Bundle, rewrite
from cytolens.bundle import write as write_bundle
from cytolens.dataset import Dataset
from cytolens.images import Images, load_image
from cytolens.predict.mirror_shift import measure_mirror_shift
from cytolens.predict.region_networks import RegionMember
from cytolens.problems import DatasetError, ImageError, Problems
from cytolens.run.bundle_record import info_of
from cytolens.tasks.segment import BOXES_FILE, MASKS_FILE, TRUNK_FILE
from cytolens.train import outlined_samples as samples
from cytolens.train.batches import Samples, tuning_part
from cytolens.train.export_regions import export_region_network
from cytolens.train.fit import Plan
from cytolens.train.region_answers import described_anchors
from cytolens.train.segment_settings import SegmentTraining, extra_images
from cytolens.train.segmentation import SegmentModule, tuning_batches

_PIECES = (TRUNK_FILE, BOXES_FILE, MASKS_FILE)
_LOOKED_AT = 24  # cells by which a network's shift is measured


def segment_parts(
    dataset: Dataset, settings: SegmentTraining, notify: Callable[[str], None]
) -> tuple[Dataset, Dataset]:
    """What is learnt from and what is kept for tuning; pseudo-labelled images are learnt from only.

    Raises:
        DatasetError: cells have no outline, or all images are pseudo-labelled.
        SettingError: pseudo-labelled cells are of another teacher than the settings name.
    """
    dataset = samples.checked_data(dataset, settings, notify)
    extra = samples.is_extra(dataset)
    if extra.all():
        raise DatasetError("all images are pseudo-labelled (their cells have scores); give annotated ones, too")
    frame = dataset.images.frame
    kept = np.zeros(len(frame), bool)
    kept[~extra] = tuning_part(frame.filter(~extra), settings.tuning_share, settings.seed)
    # A pseudo-labelled image of a group that is kept would show what the network is judged by.
    groups = frame.filter(kept)["group"].drop_nulls().implode()
    shown = ~kept & ~(extra & frame["group"].is_in(groups).fill_null(False).to_numpy())
    return dataset.of_images(Images(frame.filter(shown))), dataset.of_images(Images(frame.filter(kept)))


def of_split(dataset: Dataset, split: str) -> Dataset:
    """The part of the dataset with this `split`, and the pseudo-labelled images that stand in no part.

    Raises:
        DatasetError: there is no such part.
    """
    dataset.part(split)
    names = dataset.images.frame["split"]
    extra = pl.Series(samples.is_extra(dataset))
    return dataset.of_images(Images(dataset.images.frame.filter((names == split) | (names.is_null() & extra))))


def segment_plan(settings: SegmentTraining, learning: Dataset, tuning: Dataset, problems: Problems) -> Plan:
    """What is trained on what."""
    fields = samples.fields(learning, settings, problems)
    batches = tuning_batches(tuning, settings, problems)
    seen = [image_id for _, _, image_id in batches]
    judged = tuning.of_images(Images(tuning.images.frame.filter(pl.col("image_id").is_in(seen))))
    extra = sum(field.extra for field in fields)
    annotated, epochs = len(fields) - extra, settings.optimise.epochs
    schedule = extra_images(epochs, extra, settings.extra.most)
    make = samples.sample_maker(fields, settings, learning.labels.names)
    if not any(schedule):
        fields, extra = fields[:annotated], 0
    lengths = [settings.repeats * annotated + count for count in schedule]

    def sampler(rank: int, world: int) -> samples.ExtraSampler:
        return samples.ExtraSampler(annotated, extra, settings.repeats, schedule, settings.seed, rank, world)

    return Plan(
        module=SegmentModule(settings, judged, lengths if extra else None),
        samples=Samples(make, settings.repeats * annotated, settings.seed),
        weights=None,
        collate=samples.collate,
        tuning=batches,
        sampler=sampler if extra else None,
    )


def segment_bundle(settings: SegmentTraining, network: Any, learning: Dataset, tuning: Dataset, run: Path) -> Bundle:
    """Export the network in three pieces, and measure its shift. Its thresholds are the settings'; none is tuned here.

    Args:
        settings: of the training.
        network: as trained.
        learning, tuning: what was learnt from, and what the shift is measured on.
        run: the run folder, with the network's weights.
    """
    info = info_of(settings, learning, run, segment_input=settings.input, segment_output=settings.output)
    folder = run / "onnx"
    folder.mkdir(exist_ok=True)
    export_region_network(network, folder)
    architecture = {
        "kind": "regions",
        "family": settings.family,
        "backbone": settings.backbone,
        "keep_stride": settings.keep_stride,
        "network": settings.network.model_dump(mode="json"),
        "anchors": described_anchors(network),
    }
    table = learning.cells.frame.filter(pl.col("score").is_not_null())
    record = {
        **info.training,
        "thresholds": "those of the settings; not tuned",
        "pseudo_labels": {
            "images": int(samples.is_extra(learning).sum()),
            "cells": int((table["score"] >= settings.extra.score_min).sum()),
            "sources": table["source"].unique().sort().to_list(),
        },
    }
    info = info.model_copy(update={"architecture": architecture, "training": record})
    files: dict[str, Path | bytes] = {name: folder / name for name in _PIECES}
    bundle = write_bundle(run / "bundle", info, {**files, "weights.safetensors": run / "weights.safetensors"})
    shutil.rmtree(folder)
    shift_px = _mirror_shift(bundle, tuning)
    return rewrite(
        bundle, info.model_copy(update={"architecture": {**architecture, "mirror_shift_px": list(shift_px)}})
    )


def _mirror_shift(bundle: Bundle, tuning: Dataset) -> tuple[float, float]:
    """How far beside its coordinates the network looks, by the cells of that tuning image which has most of them."""
    counts = tuning.cells.frame.filter(pl.col("mask").is_not_null())["image_id"].value_counts(sort=True)
    paths = dict(tuning.images.frame.select("image_id", "path").iter_rows())
    for image_id in counts["image_id"].to_list():
        cells = tuning.cells.of_image(image_id)
        try:
            pixels = load_image(Path(paths[image_id])).pixels
        except ImageError:  # said before, when the tuning part was read
            continue
        boxes = box.clip(cells.boxes(), pixels.shape[1], pixels.shape[0])
        boxes = boxes[box.valid(boxes)][:_LOOKED_AT]
        if len(boxes):
            return measure_mirror_shift(RegionMember(bundle), pixels, boxes.astype(np.float32))
    return measure_mirror_shift(RegionMember(bundle))


def is_finished(bundle: Bundle) -> bool:
    """Whether nothing is left to do for the bundle of a region network."""
    return all(bundle.file(name) is not None for name in _PIECES) and "mirror_shift_px" in bundle.info.architecture
