"""What several classifiers say, out of fold, of the same boxes, and how much to trust each of them.

A recipe's blend and `cytolens tune` ask the same questions; they are answered here once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.predict.blend import Nested, TuneSettings, macro_f1, nested
from cytolens.problems import DatasetError
from cytolens.tasks.classify import blended, decide, probabilities

Method = Literal["grid", "optuna", "equal"]
_LEAST = 1e-12  # probabilities below it are taken for it, so that they have a logarithm


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What classifiers say of the same boxes, each of images that it has not learnt from.

    Attributes:
        cells: the first member's (N): the boxes that all of them named.
        images: those that were looked at.
        tables: member → probabilities over the leaves, shape (N, K); NaN where nothing was asked.
        fold: of each cell, shape (N,).
        rows: cells that are a named cell of the truth, shape (P,).
        right: the names of those, shape (P,).
    """

    cells: Cells
    images: Images
    tables: Mapping[str, NDArray[np.float32]]
    fold: NDArray[np.int64]
    rows: NDArray[np.intp]
    right: NDArray[np.object_]

    @property
    def asked(self) -> NDArray[np.bool_]:
        """Which cells were named at all, shape (N,)."""
        return np.asarray(np.isfinite(next(iter(self.tables.values()))).all(axis=1), bool)

    @property
    def single(self) -> NDArray[np.bool_]:
        """Which of `rows` have a name without kinds of its own, on which members are judged, shape (P,)."""
        return np.array([name in self.cells.labels.leaves for name in self.right], bool)


@dataclass(frozen=True, eq=False)
class Answer:
    """Blended cells, and what was learnt to name them."""

    cells: Cells
    temperature: float
    sure: float


def read_out_of_fold(truth: Path, members: Mapping[str, Sequence[Path]]) -> OutOfFold:
    """The predictions of members, brought together with the truth.

    Args:
        truth: a dataset with folds.
        members: name → its predictions, one per fold.

    Raises:
        DatasetError: the members named other boxes, none of them is a cell of the truth, or an image has no fold.
        SettingError: two predictions of a member are of the same image.
    """
    dataset = Dataset.read(truth)
    parts = {name: together(places, dataset) for name, places in members.items()}
    cells, images = next(iter(parts.values()))
    tables = {name: same_boxes(name, one, cells).probabilities() for name, (one, _) in parts.items()}
    rows, right = partners(dataset, cells, images)
    folds = dict(dataset.images.frame.select("image_id", "fold").iter_rows())
    of_cell = [folds[i] for i in cells.frame["image_id"].to_list()]
    if None in of_cell:
        raise DatasetError(f"{truth}: there are images without a fold; make folds with: cytolens split")
    return OutOfFold(cells, images, tables, np.array(of_cell, np.int64), rows, right)


def judge(given: OutOfFold, members: Sequence[str], method: Method, settings: TuneSettings) -> Nested:
    """The weights of some members, and what they are worth on cells that they were not tuned on.

    What is weighted are log-probabilities: their weighted mean is what `classify.blended` names cells by.

    Args:
        given: what the members say.
        members: names in `given.tables`.
        method: "equal" tunes nothing.
        settings: of the tuning.

    Raises:
        SettingError: there are not two folds, or no cell to judge on.
    """
    rows = given.rows[given.single]
    leaves = given.cells.labels.leaves
    answer = np.array([leaves.index(name) for name in given.right[given.single]], np.intp)
    logs = np.log(np.maximum(np.stack([given.tables[name][rows] for name in members]), _LEAST))
    if method != "equal":
        return nested(logs, answer, given.fold[rows], settings=settings)
    equal = np.full(len(members), 1 / len(members))
    score = macro_f1(np.tensordot(equal, logs, axes=1).argmax(axis=1), answer, len(leaves))
    return Nested(score, score, equal, dict.fromkeys(np.unique(given.fold).tolist(), equal))


def answer_with(given: OutOfFold, members: Sequence[str], judged: Nested) -> Answer:
    """The cells named by some members together, with a temperature and a sure probability of their own."""
    from cytolens.predict.calibrate import sure_threshold, temperature

    tables = [given.tables[name] for name in members]
    # Each fold's cells are blended with weights that were tuned without it: what is judged was not tuned on.
    table = np.empty_like(tables[0])
    for name in np.unique(given.fold):
        here = given.fold == name
        own = judged.of_fold.get(name.item(), judged.weights)
        table[here] = blended([one[here] for one in tables], own.tolist())
    # Members are calibrated one by one; their blend is surer or less sure than it should be, and learns its own.
    labels = given.cells.labels
    allowed = labels.leaf_matrix[[labels.index(name) for name in given.right]]
    warmth = temperature(np.log(np.maximum(table[given.rows], _LEAST)), allowed)
    table = probabilities(np.log(np.maximum(table, _LEAST)), warmth)
    sure = sure_threshold(table[given.rows], given.right.tolist(), labels)
    source = f"blend({', '.join(members)})"
    return Answer(_named(given, table, sure).with_columns(source=source), warmth, sure)


def _named(given: OutOfFold, table: NDArray[np.float32], sure: float) -> Cells:
    """The cells with these probabilities (N, K); those that no member was asked about stay as they are."""
    cells, asked = given.cells, np.flatnonzero(given.asked)
    names, refer = cells.label_names(), cells.frame["refer"].to_numpy().copy()
    decided, refer[asked] = decide(table[asked], cells.labels, sure, [names[row] for row in asked])
    for row, name in zip(asked, decided, strict=True):
        names[row] = name
    shares = pl.Series(table, dtype=cells.frame.schema["probabilities"])
    return cells.with_columns(
        probabilities=pl.select(pl.when(pl.Series(given.asked)).then(shares)).to_series(),
        label=pl.Series("label", names, cells.frame.schema["label"]),
        refer=refer.tolist(),
    )


# -- bringing together ----------------------------------------------------------------------------


def together(places: Sequence[Path], truth: Dataset) -> tuple[Cells, Images]:
    """The predictions of all folds as one, and the images they are of."""
    from cytolens.run.steps import findings

    cells, seen = findings(tuple(places), truth, relabel=False)
    if not len(cells):
        return Cells.empty(truth.labels), truth.images.where(image_id=seen)
    return cells, truth.images.where(image_id=seen)


def same_boxes(name: str, one: Cells, first: Cells) -> Cells:
    """A member's cells, if they are the first member's boxes in their order.

    Raises:
        DatasetError: they are others.
    """
    same = one.frame["image_id"].equals(first.frame["image_id"]) and np.array_equal(one.boxes(), first.boxes())
    if not same or one.labels != first.labels:
        raise DatasetError(f'the member "{name}" named other boxes, or in other labels, than the first; name the same')
    return one


def partners(truth: Dataset, cells: Cells, images: Images) -> tuple[NDArray[np.intp], NDArray[np.object_]]:
    """Rows of the cells with probabilities that are a named truth cell (P,), and that cell's name (P,).

    Raises:
        DatasetError: there is none.
    """
    from cytolens.evaluate.cell_partners import find_partners
    from cytolens.evaluate.joining import join
    from cytolens.evaluate.scores import EvaluateSettings

    joined = join(truth, cells, images, EvaluateSettings(missing="ok"))
    pairs = find_partners(joined, 0.5)
    names = np.array(joined.truth.label_names(), object)[pairs.truth]
    good = ~np.isnan(joined.found.probabilities()[pairs.found]).any(axis=1)
    good &= np.array([name in cells.labels for name in names], bool)
    if not good.any():
        raise DatasetError("none of the named boxes is a named cell of the truth; there is nothing to learn from")
    order = np.argsort(pairs.found[good], kind="stable")
    rows_of = {cell_id: row for row, cell_id in enumerate(cells.frame["cell_id"].to_list())}
    ids = joined.found.frame["cell_id"].to_list()
    rows = np.array([rows_of[ids[row]] for row in pairs.found[good][order]], np.intp)
    return rows, names[good][order]
