"""Attributes in prediction: who gives them, and which cells are unlike others of their kind."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cytolens.bundle import Bundle
from cytolens.cells import Cells
from cytolens.labels import LabelSet
from cytolens.predict import tta
from cytolens.predict.session import Classifier, session
from cytolens.prepare.stain import FieldStain
from cytolens.problems import BundleError, listing
from cytolens.tasks import attributes, classify
from cytolens.tasks.attributes import AttributeOutput, kind_of

_STEP = 0.01  # nats; the grid on which distributions of surprise are added up


class Describers:
    """The members of a bundle that give attributes of cells and no names.

    Raises:
        BundleError: one has no attributes, or no network.
        SettingError: the device is not here.
    """

    def __init__(self, bundle: Bundle, choice: tta.Tta, device: str) -> None:
        self.bundles = [one for one in bundle.members_of("classify") if one.name in bundle.info.describers]
        if plain := [one.name for one in self.bundles if one.info.attribute_output is None]:
            raise BundleError(f'"{bundle.name}" asks {listing(plain)} for attributes, and they give none')
        self._classifiers = [asked(one, device) for one in self.bundles]
        self._choice: tta.Tta = choice

    def look(
        self, pixels: NDArray[np.uint8], boxes: NDArray[np.float32], field: FieldStain
    ) -> dict[str, NDArray[np.float32]]:
        """Column → probabilities over its values, shape (N, V), of the cells at some boxes (N, 4)."""
        said: dict[str, NDArray[np.float32]] = {}
        for one, classifier in zip(self.bundles, self._classifiers, strict=True):
            output = one.info.classify_output or classify.ClassifyOutput()
            shown = classify.pictures(pixels, boxes, one.info.classify_input or classify.ClassifyInput(), field)
            logits, _ = classify.answers(classifier, shown, tta.count(self._choice, output.views))
            said |= described_by(one, logits)
        return said


def attribute_outputs(bundle: Bundle) -> dict[str, AttributeOutput]:
    """Column → how the attribute is read, for all attributes that members of a bundle give."""
    members = [one for task in ("detect", "classify") for one in bundle.members_of(task)]
    members = [one for one in members if one.info.attribute_output is not None]
    ordered = sorted(members, key=lambda one: one.name in bundle.info.describers)
    outputs = [(a.column, one.info.attribute_output) for one in ordered for a in one.labels.attributes]
    return {column: output for column, output in outputs if output is not None}


def asked(bundle: Bundle, device: str) -> Classifier:
    """The session of a classifier, asked for its attributes and concepts where it has any."""
    concepts = bundle.info.architecture.get("concepts", "none") != "none"
    return Classifier(session(bundle, device), bundle.info.attribute_output is not None, concepts)


def described_by(bundle: Bundle, logits: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Column → probabilities (N, V) from the logits (N, K + ΣV) of a classifier; none where it has no attributes.

    What stands behind those logits is not looked at.
    """
    leaves, values = len(bundle.labels.leaves), sum(attributes.widths(bundle.labels.attributes))
    return read_by(bundle, logits[:, leaves : leaves + values])


def read_by(bundle: Bundle, logits: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Column → probabilities (N, V) from the logits (N, ΣV) of a member; none where it has no attributes.

    An attribute of which no training cell had a value is not among them: nothing was learnt of it.
    """
    output, labels = bundle.info.attribute_output, bundle.labels
    if output is None:
        return {}
    parts = attributes.parted(logits, labels.attributes)
    learnt = {column for kind in output.kinds.values() for column in kind} if output.kinds else set(parts)
    return {column: attributes.shares(part, column, output) for column, part in parts.items() if column in learnt}


# -- cells unlike their kind --------------------------------------------------------------------------


def surprise(cells: Cells, outputs: dict[str, AttributeOutput]) -> NDArray[np.float64]:
    """How improbable the values of each cell are among the training's cells of its label, shape (N,).

    It is the sum of −ln p over the attributes that have a value; NaN where there is none, or the label was not
    learnt from. Attributes are taken as independent of each other within a label.

    Args:
        cells: found, with attributes.
        outputs: column → how the attribute is read, as of `attribute_outputs`.
    """
    total, told = np.zeros(len(cells)), np.zeros(len(cells), bool)
    names = cells.label_names()
    for attribute in cells.labels.attributes:
        if (output := outputs.get(attribute.column)) is None:
            continue
        place = {value: index for index, value in enumerate(attribute.values)}
        tables = {name: _shares_of(name, cells.labels, attribute.column, output) for name in set(names)}
        for row, (name, value) in enumerate(zip(names, cells.attribute_values(attribute.column), strict=True)):
            table = tables[name]
            if value is not None and table is not None:
                total[row] -= np.log(table[place[value]])
                told[row] = True
    return np.where(told, total, np.nan)


def surprise_limit(tables: list[tuple[float, ...]], share: float = 0.99) -> float:
    """What the surprise of this share of cells stays within, if their values are drawn from these tables.

    Args:
        tables: the share of each value, one table per attribute.
        share: between 0 and 1.
    """
    chance = np.ones(1)
    for table in tables:
        places = [round(-float(np.log(p)) / _STEP) for p in table]
        own = np.zeros(max(places) + 1)
        np.add.at(own, places, np.array(table) / sum(table))
        chance = np.convolve(chance, own)
    return float(np.searchsorted(np.cumsum(chance), share - 1e-9) * _STEP)


def unlike_their_kind(
    cells: Cells, outputs: dict[str, AttributeOutput], share: float = 0.99
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which cells have values more improbable for their label than this share of the training's, and their surprise."""
    found, limits = surprise(cells, outputs), np.full(len(cells), np.inf)
    names = cells.label_names()
    for name in set(names):
        tables = [_shares_of(name, cells.labels, column, output) for column, output in outputs.items()]
        # Half a step per attribute: limits come from a grid, surprises do not.
        limit = surprise_limit([t for t in tables if t is not None], share) + _STEP * len(tables)
        limits[[row for row, one in enumerate(names) if one == name]] = limit
    return np.nan_to_num(found, nan=-1.0) > limits, found


def least_likely(row: dict[str, object], labels: LabelSet, outputs: dict[str, AttributeOutput]) -> str:
    """The value of a cell (a row of `Cells`) that is rarest in its label, as "cell_shape irregular (2 %)"; or "".

    Only values that the training's cells of the label seldom had, in one of ten or fewer.
    """
    rare: list[tuple[float, str]] = []
    for attribute in labels.attributes:
        value, output = row[attribute.column], outputs.get(attribute.column)
        name = row["label"]
        if value is None or output is None or name is None:
            continue
        if (table := _shares_of(str(name), labels, attribute.column, output)) is not None:
            part = table[attribute.values.index(str(value))]
            rare.append((part, f"{attribute.name} {value} ({100 * part:.1f} %)"))
    return min(rare)[1] if rare and min(rare)[0] <= 0.1 else ""


def _shares_of(name: str | None, labels: LabelSet, column: str, output: AttributeOutput) -> tuple[float, ...] | None:
    """The share of each value of an attribute among the training's cells of a label, or of the nearest wider one."""
    kind = kind_of(name, labels, output)
    return None if kind is None else output.kinds[kind].get(column)
