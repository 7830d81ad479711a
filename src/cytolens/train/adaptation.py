"""A trained network for another microscope, from that one's pictures alone: nobody has to annotate there.

* Statistics of batch normalisation from the pictures of the target. Source: Li et al., "Revisiting Batch Normalization
  For Practical Domain Adaptation", arXiv 1603.04779; the share of the source that is kept: Schneider et al.,
  "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020.
* A mean teacher teaches what it is sure of (`mean_teacher`).

What is known of the target's cells is thrown away at the door (`unnamed`), so that none of it can be learnt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cytolens import boxes as box
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.labels import LabelSet
from cytolens.problems import DatasetError, Problems, SettingError
from cytolens.tasks.classify import pictures
from cytolens.tasks.detect import DetectOutput, picture
from cytolens.train.adapt_settings import AdaptSettings
from cytolens.train.batches import readable
from cytolens.train.classification import ClassifyModule
from cytolens.train.classify_settings import ClassifyTraining
from cytolens.train.detection import DetectModule, DetectTraining
from cytolens.train.mean_teacher import taught

AsTaught = DetectTraining | ClassifyTraining


def unnamed(dataset: Dataset, task: str, labels: LabelSet) -> Dataset:
    """The dataset's images without what is known of their cells.

    A classifier needs to know where cells are: their boxes stay, all under one name, and without attributes.

    Raises:
        DatasetError: a classifier's dataset has no boxes.
    """
    images = dataset.images.with_columns(complete_for=pl.Series([None] * len(dataset.images), dtype=pl.List(pl.String)))
    if task == "detect":
        return replace(dataset, images=images, cells=Cells.empty(labels))
    if not len(dataset.cells):
        raise DatasetError(
            f'"{dataset.name}" has no boxes, and a classifier is shown cells; find them with a detector first '
            "(cytolens predict), and give what it found as --boxes"
        )
    cells = Cells.of(
        labels,
        image_id=dataset.cells.frame["image_id"].to_list(),
        boxes=dataset.cells.boxes(),
        label=[labels.leaves[0]] * len(dataset.cells),
        source="unnamed",
    )
    return replace(dataset, images=images, cells=cells)


def network_of(settings: AsTaught, labels: LabelSet, state: dict[str, Tensor]) -> nn.Module:
    """The network of a training, with its weights.

    Raises:
        SettingError: the weights are not those of the network.
    """
    network = _module_of(settings, labels).network
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise SettingError(f"the weights are not those of {settings.model} with these labels: {error}") from error
    return network.eval()


def adapted(
    network: nn.Module,
    settings: AsTaught,
    output: DetectOutput | None,
    dataset: Dataset,
    how: AdaptSettings,
    problems: Problems,
    notify: Callable[[str], None],
) -> tuple[nn.Module, dict[str, Any]]:
    """The network after adaptation, and what was seen on the way.

    Args:
        network: as of `network_of`; it is not changed.
        settings: of its training.
        output: a detector's, with its thresholds.
        dataset: the target, as of `unnamed`.
        how: to adapt.
        problems: images that cannot be read are added.
        notify: is told, in a sentence, what a user should know.

    Raises:
        SettingError: the network has nothing that the method changes, or classifies whole images.
        DatasetError: there is nothing to look at.
    """
    if how.hardware.threads:
        torch.set_num_threads(how.hardware.threads)
    if isinstance(settings, ClassifyTraining) and settings.target == "image":
        raise SettingError("a classifier of whole images cannot be adapted; allowed: detectors, classifiers of cells")
    if how.method == "batch-norm":
        batches = _as_in_prediction(settings, dataset, how.batch, problems)
        return with_statistics_of(network, batches, how.share)
    return taught(network, settings, output, dataset, how, problems, notify)


# -- batch normalisation --------------------------------------------------------------------------


def with_statistics_of(network: nn.Module, batches: Iterable[Tensor], share: float) -> tuple[nn.Module, dict[str, Any]]:
    """A copy whose batch normalisations know means and variances of other pictures.

    Every picture weighs the same, whatever the size of its batch. The variance is the mean of those within batches,
    so batches of one picture miss what differs between pictures.

    Args:
        network: left as it is.
        batches: inputs of the network, (B, 3, H, W).
        share: weight of the new statistics against those of the training.

    Raises:
        SettingError: the network has no batch normalisation.
        DatasetError: there are no pictures.
    """
    changed = copy.deepcopy(network).eval()
    norms = [m for m in changed.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        raise SettingError("the network has no batch normalisation to adapt; use method = mean-teacher")
    before = [(norm.running_mean.clone(), norm.running_var.clone(), norm.momentum) for norm in norms]  # type: ignore[union-attr]
    for norm in norms:
        norm.train()
    seen = 0
    with torch.no_grad():
        for images in batches:
            seen += len(images)
            for norm in norms:
                norm.momentum = len(images) / seen
            try:
                changed(images.float())
            except ValueError as error:  # PyTorch's, where a map is one pixel of one picture
                raise DatasetError(
                    f"{len(images)} picture of {images.shape[3]} x {images.shape[2]} px is too little for statistics; "
                    "give more pictures, or use method = mean-teacher"
                ) from error
        if not seen:
            raise DatasetError("there is no picture to take statistics from")
        for norm, (mean, variance, momentum) in zip(norms, before, strict=True):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(mean + share * (norm.running_mean - mean))
            norm.running_var.copy_(variance + share * (norm.running_var - variance))
            norm.momentum = momentum
    return changed.eval(), {"pictures": seen, "norms": len(norms)}


def _as_in_prediction(settings: AsTaught, dataset: Dataset, batch: int, problems: Problems) -> Iterator[Tensor]:
    """The network's inputs for the target as prediction makes them; pictures of one size side by side.

    A last picture that would be alone, beside others of its size, is left out: alone it says nothing of a spread.
    """
    waiting: dict[tuple[int, ...], list[NDArray[np.uint8]]] = {}
    given: set[tuple[int, ...]] = set()
    for one in _pictures(settings, dataset, problems):
        same = waiting.setdefault(one.shape, [])
        same.append(one)
        if len(same) == batch:
            yield torch.from_numpy(np.stack(same))
            same.clear()
            given.add(one.shape)
    for shape, same in waiting.items():
        if len(same) > 1 or (same and shape not in given):
            yield torch.from_numpy(np.stack(same))


def _pictures(settings: AsTaught, dataset: Dataset, problems: Problems) -> Iterator[NDArray[np.uint8]]:
    rows, by_image = dataset.images.rows(), dict(dataset.cells.by_image())
    if isinstance(settings, ClassifyTraining):
        rows = [row for row in rows if row["image_id"] in by_image]
    for position, pixels in readable([row["path"] for row in rows], problems):
        if isinstance(settings, DetectTraining):
            shown, _ = picture(pixels, settings.input)
            yield np.ascontiguousarray(shown[:, :, ::-1].transpose(2, 0, 1))
            continue
        boxes = by_image[rows[position]["image_id"]].boxes()
        cut = boxes[box.valid(boxes, pixels.shape[1], pixels.shape[0])]
        yield from pictures(pixels, cut, settings.input).transpose(0, 3, 1, 2)


def _module_of(settings: AsTaught, labels: LabelSet) -> Any:
    from cytolens.images import Images

    if isinstance(settings, DetectTraining):
        return DetectModule(settings, Dataset(Images.empty(), Cells.empty(labels), "none"))
    return ClassifyModule(settings, labels)
