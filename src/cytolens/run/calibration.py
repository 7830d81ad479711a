"""What an exported classifier learns about itself on the tuning part: how sure it may be, and what is strange."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.labels import LabelSet
from cytolens.predict.calibrate import (
    binary_temperature,
    distance_limit,
    sure_threshold,
    temperature,
    value_threshold,
)
from cytolens.predict.concepts import Concepts
from cytolens.predict.familiarity import Familiarity, learn
from cytolens.predict.session import Classifier, Detector
from cytolens.tasks import attributes, classify
from cytolens.tasks.attributes import AttributeOutput
from cytolens.tasks.cell_scale import box_scale_features, red_index, ruler_px
from cytolens.tasks.classify import ClassifyOutput
from cytolens.tasks.detect import DetectOutput, findings
from cytolens.views import View


@dataclass(frozen=True, slots=True)
class Answers:
    """What a classifier says of pictures seen as in prediction, beside what is known of them.

    Attributes:
        logits: shape (N, K).
        embeddings: shape (N, D).
        known: allowed leaves (N, K) bool, or presence (N, K) int8, as the training was given them.

    With attributes both tables are wider, until `of_names` and `of_values` part them; concepts stand last among logits.
    """

    logits: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    known: NDArray[Any]


def answers(classifier: Classifier, batches: Iterable[Any], views: int) -> Answers:
    """The answers to batches of (images (B, 3, S, S), what is known (B, K))."""
    logits, embeddings, known = [], [], []
    for images, told in batches:
        shown = np.ascontiguousarray(images.numpy().transpose(0, 2, 3, 1))
        one, other = classify.answers(classifier, shown, views)
        logits.append(one)
        embeddings.append(other)
        known.append(told.numpy())
    return Answers(np.concatenate(logits), np.concatenate(embeddings), np.concatenate(known))


def region_answers(
    detector: Detector, batches: Iterable[tuple[NDArray[np.uint8], View, str]], truth: Dataset, output: DetectOutput
) -> Answers:
    """What a detector says of the attributes of the cells that it finds where the truth knows some.

    Args:
        detector: that describes.
        batches: picture, view and image id of each image.
        truth: those images with their cells.
        output: what is kept of what is found.

    Returns:
        Logits (N, ΣV) and the values' indices or −1 (N, A); embeddings have no columns.
    """
    cells_of = dict(truth.cells.by_image())
    um_per_px = {row["image_id"]: row["um_per_px"] for row in truth.images.rows()}
    attributes_of = truth.labels.attributes
    logits = [np.zeros((0, sum(attributes.widths(attributes_of))), np.float32)]
    known = [np.zeros((0, len(attributes_of)), np.int8)]
    for picture, view, image_id in batches:
        if image_id not in cells_of:
            continue
        boxes, scores, maps = detector.look(picture[None])
        seen = findings(boxes[0], scores[0], view, output)
        found = seen.boxes
        rows, values = attributes.known_partners(cells_of[image_id], found)
        if len(rows):
            ruler = ruler_px(seen, red_index(truth.labels), um_per_px[image_id]) if detector.scaled else None
            scales = box_scale_features(found[rows], ruler)
            logits.append(detector.describe(maps, view.forward_boxes(found[rows]), scales))
            known.append(values)
    table = np.concatenate(logits)
    return Answers(table, np.zeros((len(table), 0), np.float32), np.concatenate(known))


def of_names(given: Answers, labels: LabelSet) -> Answers:
    """The part of the answers that is about names, of the cells that have one."""
    leaves = len(labels.leaves)
    if given.known.shape[1] == leaves:
        return given
    allowed = given.known[:, :leaves] == 1
    named = allowed.any(axis=1)
    return Answers(given.logits[named, :leaves], given.embeddings[named], allowed[named])


def of_values(given: Answers, labels: LabelSet) -> Answers:
    """The part of the answers that is about attributes: logits (N, ΣV), and the values' indices or −1 (N, A)."""
    leaves, values = len(labels.leaves), sum(attributes.widths(labels.attributes))
    return replace(given, logits=given.logits[:, leaves : leaves + values], known=given.known[:, leaves:])


def concepts_learnt(weights: NDArray[np.floating], bias: NDArray[np.floating], learnt: Answers) -> Concepts:
    """The layer (K, ΣV) that names are read by, with what it reads of the average cell: answers hold that last."""
    mean = learnt.logits[:, -weights.shape[1] :].mean(axis=0, dtype=np.float64)
    return Concepts(np.asarray(weights, np.float32), np.asarray(bias, np.float32), mean.astype(np.float32))


def uncalibrated(loss: str, learnt: Cells) -> AttributeOutput:
    """How attributes are read of a network that was trained with this loss on these cells, as it is."""
    outputs = "sigmoid" if loss == "asymmetric" else "softmax"
    return AttributeOutput(outputs=outputs, kinds=attributes.shares_by_kind(learnt))


def calibrated_values(
    output: AttributeOutput, tuned: Answers, labels: LabelSet, most_wrong: float | None
) -> AttributeOutput:
    """The output with the temperature of each attribute, and from when on a value is sure.

    Args:
        output: with `outputs` set.
        tuned: the tuning part's answers, as of `of_values`.
        labels: with the attributes.
        most_wrong: largest share of wrong values among those given; None: a value is always given.
    """
    warmth, sure = {}, {}
    parts = attributes.parted(tuned.logits, labels.attributes)
    for (column, part), truth in zip(parts.items(), tuned.known.T, strict=True):
        there = truth != attributes.UNKNOWN
        if not there.any():
            continue
        right = np.eye(part.shape[1], dtype=bool)[truth[there]]
        learn = temperature if output.outputs == "softmax" else binary_temperature
        warmth[column] = round(learn(part[there], right), 4)
        if most_wrong is not None:
            table = attributes.shares(part[there], column, output.model_copy(update={"temperature": warmth}))
            sure[column] = value_threshold(table, truth[there], most_wrong)
    return output.model_copy(update={"temperature": warmth, "sure": sure})


def calibrated(output: ClassifyOutput, tuned: Answers, labels: LabelSet) -> ClassifyOutput:
    """The output with temperature and threshold learnt from the tuning part's answers.

    Where no cell there has a name that is given, `sure` stays as it is; where none has a name, so does all.
    """
    if not len(tuned.known):
        return output
    if output.outputs == "sigmoid":
        warmth, truth = binary_temperature(tuned.logits, tuned.known), _one_name_each(tuned.known, labels)
    else:
        warmth, truth = temperature(tuned.logits, tuned.known), _names(tuned.known, labels)
    output = output.model_copy(update={"temperature": round(warmth, 4)})
    left = {labels.require(name) for name in output.leave_out}
    rows = [row for row, (told, name) in enumerate(truth) if told and name not in left]
    if not any(truth[row][1] is not None for row in rows):
        return output
    table = classify.shares(tuned.logits[rows], output, labels)
    weighted = classify.with_evidence(table, classify.prior_weights(output.prior, labels))
    sure = sure_threshold(weighted, [truth[row][1] for row in rows], labels)
    return output.model_copy(update={"sure": sure})


def familiarity(output: ClassifyOutput, learnt: Answers, tuned: Answers, labels: LabelSet) -> Familiarity | None:
    """What pictures of one single kind look like; a kind that is left out is to stay strange. None: there are none."""
    kept = classify.kept_leaves(labels, output)
    rows = np.flatnonzero(_of_one_kind(learnt.known) & (learnt.known == 1)[:, kept].any(axis=1))
    tuning = (tuned.known == 1)[:, kept].any(axis=1)
    if not len(rows) or not tuning.any():
        return None
    mean, projection, centres = learn(learnt.embeddings[rows], (learnt.known[rows] == 1).argmax(axis=1))
    draft = Familiarity(mean, projection, centres, np.inf)
    return Familiarity(mean, projection, centres, distance_limit(draft.distances(tuned.embeddings[tuning])))


def _of_one_kind(known: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows say one leaf for certain, and exclude all others."""
    return (known != 0).sum(axis=1) == 1


def _names(allowed: NDArray[np.bool_], labels: LabelSet) -> list[tuple[bool, str | None]]:
    """Of each cell, that its name is known, and the name."""
    matrix = labels.leaf_matrix
    return [(True, labels.names[int((matrix == row).all(axis=1).argmax())]) for row in allowed]


def _one_name_each(presence: NDArray[np.integer], labels: LabelSet) -> list[tuple[bool, str | None]]:
    """Of each image, whether it is known to hold one kind or nothing, and that kind or None."""
    some = _of_one_kind(presence) & (presence == 1).any(axis=1)
    nothing = (presence == 0).all(axis=1)
    kinds = [labels.leaves[leaf] for leaf in presence.argmax(axis=1)]
    return [(bool(s or n), kind if s else None) for s, n, kind in zip(some, nothing, kinds, strict=True)]
