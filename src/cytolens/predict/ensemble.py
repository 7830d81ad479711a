"""Members of one task as one: detectors whose findings are fused, classifiers whose probabilities are blended.

With one member and one view nothing is added to what the member says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cytolens.bundle import Bundle
from cytolens.labels import LabelSet
from cytolens.predict import tta
from cytolens.predict.box_fusion import wbf
from cytolens.predict.describe import asked, described_by, read_by
from cytolens.predict.session import ATTRIBUTES_FILE, Classifier, Detector, session
from cytolens.prepare.stain import FieldStain
from cytolens.problems import BundleError, listing
from cytolens.tasks import classify, detect
from cytolens.tasks.attributes import describable, widths
from cytolens.tasks.cell_scale import box_scale_features, red_cell_size, red_index
from cytolens.tasks.detect import DetectOutput, Findings, Fusion
from cytolens.views import View


def given_labels(bundle: Bundle) -> LabelSet:
    """The labels that a bundle's cells have: a classifier's without those that it leaves out.

    Raises:
        LabelError: it leaves out names that it does not have.
    """
    if bundle.info.task != "classify":
        return bundle.labels
    return classify.spoken(bundle.labels, bundle.info.classify_output or classify.ClassifyOutput())


class Finders:
    """The detectors of a bundle.

    Raises:
        BundleError: they find other labels, or one has no network.
        SettingError: the device is not here.
    """

    def __init__(self, bundle: Bundle, choice: tta.Tta, device: str) -> None:
        self.bundles = bundle.members_of("detect")
        first = self.bundles[0]
        if strange := [one.name for one in self.bundles if set(one.labels.names) != set(first.labels.names)]:
            raise BundleError(f"detectors of one ensemble find the same labels; {listing(strange)} finds others")
        self.names = first.labels.names
        self._red = red_index(first.labels)
        self._order = [np.array([self.names.index(n) for n in one.labels.names]) for one in self.bundles]
        self._detectors = [detector_of(one, device) for one in self.bundles]
        self._weights = _weights(bundle, self.bundles)
        self._fusion = bundle.info.fusion or Fusion()
        self._choice = choice
        self.output = bundle.info.detect_output or first.info.detect_output or DetectOutput()
        self.side_px = (first.info.detect_input or detect.DetectInput()).side_px

    @property
    def scaled(self) -> bool:
        """Whether any of them is told the size of cells in red cells of the field."""
        return any(detector.scaled for detector in self._detectors)

    def look(self, pixels: NDArray[np.uint8], field: FieldStain, red_cell_px: float | None = None) -> Findings:
        """What they find in one picture, and what those that describe say of what counts.

        Args:
            pixels: uint8 RGB, shape (H, W, 3).
            field: its stain.
            red_cell_px: diameter of a red cell in it, where it is known; None: the median of those that are found.
        """
        size_wh = (pixels.shape[1], pixels.shape[0])
        lists: list[Findings] = []
        weights: list[float] = []
        seen: list[_Seen] = []
        for one, detector, order, weight in zip(self.bundles, self._detectors, self._order, self._weights, strict=True):
            given = one.info.detect_input or detect.DetectInput()
            output = one.info.detect_output or DetectOutput()
            views = tta.symmetries(size_wh, tta.count(self._choice, output.views))
            for view in views:
                turned = pixels if view is views[0] else view.pixels(pixels)
                shown, fitted = detect.picture(turned, given, field)
                boxes, scores, maps = detector.look(shown[None])
                found = detect.findings(boxes[0], scores[0], fitted, output)
                lists.append(Findings(view.back_boxes(found.boxes), order[found.classes], found.scores))
                weights.append(weight / len(views))
                if maps:
                    seen.append(_Seen(one, detector, view.then(fitted), maps, weight / len(views)))
        found = lists[0] if len(lists) == 1 else self._fused(lists, weights)
        return self._described(found, seen, red_cell_px) if seen else found

    def _described(self, found: Findings, seen: Sequence[_Seen], red_cell_px: float | None) -> Findings:
        """The findings with attributes: of those that count, the weighted mean over the members' views.

        What does not count, or is of a kind that a member never saw described, gets none from it.
        """
        names = [self.names[i] for i in found.classes]
        counted = found.scores >= np.array([self.output.threshold(name) for name in names], np.float32)
        ruler = red_cell_px or red_cell_size(found, self._red)
        told: dict[str, NDArray[np.float32]] = {}
        total: dict[str, NDArray[np.float32]] = {}
        for one, detector, view, maps, weight in seen:
            output, labels = one.info.attribute_output, one.labels
            assert output is not None
            for attribute in labels.attributes:
                told.setdefault(attribute.column, np.zeros((len(names), len(attribute.values)), np.float32))
                total.setdefault(attribute.column, np.zeros((len(names), 1), np.float32))
            rows = np.flatnonzero(counted & describable(names, labels, output))
            if not len(rows):
                continue
            scales = box_scale_features(found.boxes[rows], ruler) if detector.scaled else None
            said = detector.describe(maps, view.forward_boxes(found.boxes[rows]), scales)
            for column, part in read_by(one, said).items():
                told[column][rows] += weight * part
                total[column][rows] += weight
        means = {
            column: np.where(total[column] > 0, table / np.maximum(total[column], 1e-12), np.nan).astype(np.float32)
            for column, table in told.items()
        }
        return replace(found, attributes=means)

    def _fused(self, lists: Sequence[Findings], weights: Sequence[float]) -> Findings:
        fused = wbf(
            [one.boxes for one in lists],
            [one.scores for one in lists],
            [one.classes for one in lists],
            iou=self._fusion.iou,
            weights=weights,
            lists=self._fusion.lists,
        )
        keep = np.flatnonzero(fused.scores >= self.output.score_floor)[: self.output.most]
        return Findings(
            fused.boxes[keep].astype(np.float32),
            fused.classes[keep].astype(np.intp),
            np.minimum(fused.scores[keep], 1).astype(np.float32),
        )


class _Seen(NamedTuple):
    """One look at a picture: who looked, through which view, and the maps that came of it."""

    bundle: Bundle
    detector: Detector
    view: View
    maps: list[NDArray[np.float32]]
    weight: float


def detector_of(bundle: Bundle, device: str = "cpu") -> Detector:
    """A detector, with what describes its cells where it has attributes.

    Raises:
        BundleError: the bundle has not the networks that it needs.
        SettingError: the device is not here.
    """
    describes = bundle.info.attribute_output is not None
    head = session(bundle, device, file=ATTRIBUTES_FILE) if describes else None
    return Detector(session(bundle, device), head, bundle.info.architecture.get("attribute_scale") == "red-cell")


def namers_of(bundle: Bundle) -> list[Bundle]:
    """The members that name cells: classifiers, but for those that are only asked for attributes."""
    return [one for one in bundle.members_of("classify") if one.name not in bundle.info.describers]


@dataclass(frozen=True, slots=True)
class Said:
    """What classifiers say of N cells.

    Attributes:
        table: probabilities over the leaves, shape (N, K).
        embedding: the first member's, shape (N, D).
        attributes: column → probabilities over its values, shape (N, V).
        concepts: what the names were read from, shape (N, ΣV); None: not attributes, or several members.
    """

    table: NDArray[np.float32]
    embedding: NDArray[np.float32]
    attributes: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    concepts: NDArray[np.float32] | None = None


class Namers:
    """The classifiers of a bundle.

    Raises:
        BundleError: one names what is no single kind in the labels, names whole images beside a detector, or
            has no network.
        LabelError: one leaves out names that it does not have.
        SettingError: the device is not here.
    """

    def __init__(self, bundle: Bundle, labels: LabelSet, choice: tta.Tta, device: str) -> None:
        everyone = namers_of(bundle)
        whole = [one for one in everyone if bundle.info.task == "pipeline" and _of_images(one)]
        self.bundles = [one for one in everyone if one not in whole]
        if not self.bundles:
            raise BundleError(
                f'the classifier "{whole[0].name}" names whole images, and so none of the cells that are found in one; '
                f'pack "{bundle.name}" with a classifier of cells, too'
            )
        self._whole = [(one, Classifier(session(one, device))) for one in whole]
        self._cell_share = bundle.info.cell_share
        self._outputs = [one.info.classify_output or classify.ClassifyOutput() for one in self.bundles]
        pairs = list(zip(self.bundles, self._outputs, strict=True))
        given = [classify.spoken(one.labels, output).leaves for one, output in pairs]
        for one, leaves in zip(self.bundles, given, strict=True):
            if strange := [leaf for leaf in leaves if leaf not in labels.leaves]:
                raise BundleError(
                    f'the classifier "{one.name}" names {listing(strange)}, which are no single kinds in the labels '
                    f'of "{bundle.name}"; pack the pipeline again'
                )
        self._labels = labels
        self._leaves = len(labels.leaves)
        self._columns = [np.array([labels.leaves.index(leaf) for leaf in leaves], np.intp) for leaves in given]
        self._kept = [classify.kept_leaves(one.labels, output) for one, output in pairs]
        self._classifiers = [asked(one, device) for one in self.bundles]
        self._weights = _weights(bundle, self.bundles)
        self._choice: tta.Tta = choice
        own = bundle.info.classify_output
        self._temperature = own.temperature if own is not None and bundle.info.task == "pipeline" else 1.0
        self.output = own or self.bundles[0].info.classify_output or classify.ClassifyOutput()

    def shares(
        self, pixels: NDArray[np.uint8], boxes: NDArray[np.float32], field: FieldStain
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probabilities over the leaves (N, K) of the cells at some boxes (N, 4), and the first member's embeddings;
        as of `look`."""
        said = self.look(pixels, boxes, field)
        return said.table, said.embedding

    def look(self, pixels: NDArray[np.uint8], boxes: NDArray[np.float32], field: FieldStain) -> Said:
        """What is said of the cells at some boxes (N, 4) in a field.

        Members are blended by the weighted mean of their log-probabilities: with equal temperatures that is
        the softmax of the mean of their logits. Attributes that several give are their weighted mean.

        Raises:
            BundleError: a classifier of whole images is asked about parts of one.
        """
        tables, first, concepts = [], None, None
        described: dict[str, list[tuple[NDArray[np.float32], float]]] = {}
        members = zip(
            self.bundles, self._outputs, self._classifiers, self._columns, self._kept, self._weights, strict=True
        )
        for one, output, classifier, columns, kept, weight in members:
            if output.outputs == "sigmoid" and not _are_whole(boxes, pixels):
                raise BundleError(f'the classifier "{one.name}" names whole images; give it no boxes inside them')
            shown = classify.pictures(pixels, boxes, one.info.classify_input or classify.ClassifyInput(), field)
            logits, embedding = classify.answers(classifier, shown, tta.count(self._choice, output.views))
            first = embedding if first is None else first
            table = np.zeros((len(boxes), self._leaves), np.float32)
            leaves = len(one.labels.leaves)
            table[:, columns] = classify.shares(logits[:, :leaves], output, one.labels)[:, kept]
            tables.append(table)
            for column, part in described_by(one, logits).items():
                described.setdefault(column, []).append((part, weight))
            if classifier.concepts and len(self.bundles) == 1:
                concepts = logits[:, leaves + sum(widths(one.labels.attributes)) :]
        assert first is not None
        means = {column: _mean(parts) for column, parts in described.items()}
        if len(tables) == 1 and self._temperature == 1:
            return Said(tables[0], first, means, concepts)
        return Said(classify.blended(tables, self._weights, self._temperature), first, means, concepts)

    def with_image(self, table: NDArray[np.float32], pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The probabilities (1, K) of an image's only cell, after the classifiers of whole images had their say."""
        if not self._whole or self._cell_share == 1:
            return table
        said = np.zeros((len(self._whole), self._leaves))
        for row, (one, classifier) in enumerate(self._whole):
            columns = [self._labels.leaves.index(self._labels.require(leaf)) for leaf in one.labels.leaves]
            said[row, columns] = image_shares(one, pixels, classifier=classifier, choice=self._choice)
        return classify.with_image(table, said.mean(axis=0, keepdims=True), self._cell_share)


def _mean(parts: Sequence[tuple[NDArray[np.float32], float]]) -> NDArray[np.float32]:
    tables, weights = zip(*parts, strict=True)
    return np.average(np.stack(tables), axis=0, weights=weights).astype(np.float32)


def _of_images(bundle: Bundle) -> bool:
    """Whether a classifier names whole images."""
    return bundle.info.classify_output is not None and bundle.info.classify_output.outputs == "sigmoid"


def image_logits(
    bundle: Bundle,
    pixels: NDArray[np.uint8],
    *,
    classifier: Classifier | None = None,
    choice: tta.Tta = "bundle",
    device: str = "cpu",
) -> NDArray[np.float32]:
    """What a classifier of whole images says of one, as logits (K,) over the leaves of its bundle's labels.

    They are as the network gives them, the mean over the views: neither calibrated, nor is a name left out.

    Args:
        bundle: the classifier.
        pixels: uint8 RGB, shape (H, W, 3).
        classifier: its session, for one who asks about many images; None: opened here.
        choice: the views of the image.
        device: where the session is opened.

    Raises:
        BundleError: the bundle is no classifier of whole images, or has no network.
        SettingError: the device is not here.
    """
    output = bundle.info.classify_output or classify.ClassifyOutput()
    if bundle.info.task != "classify" or output.outputs != "sigmoid":
        raise BundleError(
            f'"{bundle.name}" is no classifier of whole images; train one with: cytolens train classify '
            "--set target=image --set loss=focal"
        )
    whole = np.array([[0, 0, pixels.shape[1], pixels.shape[0]]], np.float32)
    shown = classify.pictures(pixels, whole, bundle.info.classify_input or classify.ClassifyInput())
    classifier = classifier or Classifier(session(bundle, device))
    return classify.answers(classifier, shown, tta.count(choice, output.views))[0][0]


def image_shares(
    bundle: Bundle,
    pixels: NDArray[np.uint8],
    *,
    classifier: Classifier | None = None,
    choice: tta.Tta = "bundle",
    device: str = "cpu",
) -> NDArray[np.float32]:
    """The calibrated probability (K,) that each leaf's cells are in an image; each stands for itself, and they do not
    sum to 1. Arguments and errors as of `image_logits`.
    """
    logits = image_logits(bundle, pixels, classifier=classifier, choice=choice, device=device)
    output = bundle.info.classify_output or classify.ClassifyOutput()
    return classify.sigmoids(logits, output.temperature)


def _are_whole(boxes: NDArray[np.float32], pixels: NDArray[np.uint8]) -> bool:
    """Whether every box (N, 4) is the image."""
    corner = np.array([pixels.shape[1], pixels.shape[0]])
    return bool((boxes[:, :2] <= 0).all() and (boxes[:, 2:] >= corner).all())


def _weights(bundle: Bundle, members: Sequence[Bundle]) -> list[float]:
    return [float(bundle.info.weights.get(one.name, 1.0)) for one in members]
