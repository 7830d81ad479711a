"""What reading names from attributes costs a trained model: the last layer of a concept bottleneck, out of fold.

    python recipes/concept-layer.py TRUTH FOUND

TRUTH is a dataset with WBCAtt's attributes, FOUND what a describing model said there (`recipes/wbcatt.sh` leaves both
as val and found-val). In five folds a multinomial logistic regression learns the five kinds from the probabilities of
the attributes that the model gives, and names the cells of the fifth fold; that is a sequential bottleneck. It is
compared with the model's own names, its leaves added up to the same five kinds, on the same cells.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate import read_found
from cytolens.evaluate.comparison import compare
from cytolens.evaluate.scores import EvaluateSettings
from cytolens.images import Images
from cytolens.labels import LabelSet

KINDS = ("neutrophil", "eosinophil", "basophil", "lymphocyte", "monocyte")
FOLDS = 5
_DECAY = 1e-3


def layer(table: NDArray[np.float64], kinds: NDArray[np.intp], rounds: int = 3000) -> NDArray[np.float64]:
    """Weights (V + 1, K), the last row for the bias, of a multinomial logistic regression with a little decay."""
    inputs = np.c_[table, np.ones(len(table))]
    truth = np.eye(len(KINDS))[kinds]
    weights, momentum = np.zeros((inputs.shape[1], len(KINDS))), np.zeros((inputs.shape[1], len(KINDS)))
    for _ in range(rounds):
        gradient = inputs.T @ (shares(inputs @ weights) - truth) / len(inputs) + _DECAY * weights
        momentum = 0.9 * momentum - 0.3 * gradient
        weights = weights + momentum
    return weights


def shares(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The softmax of logits (N, K)."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def main() -> None:
    """Read, learn out of fold, compare, print."""
    parser = argparse.ArgumentParser(description="What reading names from attributes costs a trained model.")
    parser.add_argument("truth", type=Path)
    parser.add_argument("found", type=Path)
    given = parser.parse_args()
    labels = LabelSet.of(KINDS)
    truth = Dataset.read(given.truth)
    described = truth.labels.attributes[0].column
    known = truth.cells.filter(truth.cells.frame[described].is_not_null().to_numpy())
    images = Images(truth.images.frame.filter(pl.col("image_id").is_in(known.frame["image_id"].to_list())))
    truth = Dataset(images, known, truth.name).relabel(labels)
    cells, looked_at = read_found(given.found)
    assert looked_at is not None
    columns = [f"{attribute.column}_probabilities" for attribute in cells.labels.attributes]
    table = cells.probabilities()
    leaves = cells.labels.leaves
    sums = np.array([[cells.labels.is_a(leaf, kind) for kind in KINDS] for leaf in leaves], np.float64)
    five = np.nan_to_num(table).astype(np.float64) @ sums
    told = cells.frame["counted"].to_numpy() & np.logical_and.reduce([cells.frame[c].is_not_null() for c in columns])
    cells = cells.filter(told & (five.sum(axis=1) > 0))
    five = five[told & (five.sum(axis=1) > 0)]
    concepts = np.concatenate([cells.frame[column].to_numpy() for column in columns], axis=1).astype(np.float64)
    plain = _named(cells, five / five.sum(axis=1, keepdims=True), labels)
    print(f"{len(truth.cells)} annotated cells, {len(cells)} described findings")
    by_image = dict(truth.cells.frame.select("image_id", pl.col("label").cast(pl.String)).iter_rows())
    ids = cells.frame["image_id"].to_list()
    rows = np.array([row for row, one in enumerate(ids) if one in by_image])
    kinds = np.array([KINDS.index(by_image[ids[row]]) for row in rows])
    fold = np.array([sorted(set(ids)).index(ids[row]) % FOLDS for row in rows])
    said = np.full((len(cells), len(KINDS)), 1 / len(KINDS))
    for one in range(FOLDS):
        weights = layer(concepts[rows[fold != one]], kinds[fold != one])
        tested = rows[fold == one]
        said[tested] = shares(np.c_[concepts[tested], np.ones(len(tested))] @ weights)
    answers = {"plain": (plain, looked_at), "bottleneck": (_named(cells, said, labels), looked_at)}
    compared = compare(truth, answers, "plain", EvaluateSettings(missing="ok"))
    print(f"{compared.cells} cells; intervals over {compared.unit}s")
    with pl.Config(tbl_cols=20, tbl_width_chars=200):
        print(compared.frame)


def _named(cells: Cells, table: NDArray[np.float64], labels: LabelSet) -> Cells:
    """The same cells with these probabilities (N, K) and the likeliest kind as name."""
    frame = cells.frame
    return Cells.of(
        labels,
        image_id=frame["image_id"].to_list(),
        boxes=cells.boxes(),
        label=[KINDS[int(kind)] for kind in table.argmax(axis=1)],
        source="bundle:concept-layer@0",
        score=frame["score"].to_list(),
        probabilities=table.astype(np.float32),
        counted=frame["counted"].to_list(),
    )


if __name__ == "__main__":
    main()
