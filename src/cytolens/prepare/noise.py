"""Annotations that models do not believe, ranked for a person to look at.

The models must not have learnt from what they judge: their findings are out-of-fold. Four things can be wrong with an
annotation, and each kind is ranked by itself, from 1 (hardly right) to 0:

- ``label``: the cell is found, and named otherwise. Where there are probabilities, confident learning ranks
  (Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70 (2021), as
  the library cleanlab has it); otherwise the score of the finding that disagrees.
- ``box``: the cell is found beside its box; ranked by the finding's score and by how far off the box is.
- ``not found``: no model sees a cell there; ranked by how sure they are.
- ``not annotated``: a confident finding without an annotation, in images that claim to be complete for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens import boxes as box
from cytolens import match
from cytolens.cells import BOX_COLUMNS, Cells
from cytolens.dataset import Dataset
from cytolens.edits import Edits
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import DatasetError, SettingError, require

KINDS = ("label", "box", "not found", "not annotated")
SCHEMA: dict[str, Any] = {
    "kind": pl.String,
    "rank": pl.Int64,  # within the kind, from 1
    "suspicion": pl.Float64,
    "cell_id": pl.String,  # of the annotation; of the finding where there is none
    "image_id": pl.String,
    "label": pl.String,  # annotated
    "suggested": pl.String,  # by the models
    "siblings": pl.Boolean,  # the two are kinds of one name, such as band and segmented neutrophils
    "iou": pl.Float64,  # of annotation and finding
    **dict.fromkeys(BOX_COLUMNS, pl.Float32),
    **{f"found_{name}": pl.Float32 for name in BOX_COLUMNS},
}
_NEAR_IOU = 0.1  # from which an annotation and a finding can be about one cell
_SAME_IOU = 0.5  # from which they are
_WHO = "cytolens noise"
How = Literal["ignore", "leave out"]


class NoiseSettings(BaseModel):
    """What counts as a doubt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    box_iou: float = Field(default=0.6, gt=_NEAR_IOU, lt=1, description="below it a box is not where its cell is found")
    confident: float = Field(default=0.5, ge=0, le=1, description="score from which a finding wants an annotation")
    most: float = Field(default=1.0, gt=0, le=1, description="share of the annotations that each kind may doubt")


@dataclass(frozen=True, eq=False)
class Noise:
    """Doubtful annotations.

    Attributes:
        frame: columns of `SCHEMA`, by kind and rank.
        annotations: how many annotations were judged.
    """

    frame: pl.DataFrame
    annotations: int

    def of(self, kind: str) -> pl.DataFrame:
        """The rows of one kind, the most doubtful first."""
        return self.frame.filter(pl.col("kind") == kind)

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        return {kind: len(self.of(kind)) for kind in KINDS}

    def edits(self, dataset: Dataset) -> Edits:
        """What the models suggest, as edits to be accepted or not: new names, new boxes, `ignore` for what none finds.

        What is not annotated has no cell that an edit could change; `cleaned` can put an ignored region there.
        """
        log = []
        for row in self.frame.iter_rows(named=True):
            why = f"{row['kind']}, suspicion {row['suspicion']:.3f}"
            if row["kind"] == "label" and row["suggested"] is not None:
                log.append((row["cell_id"], "label", row["suggested"], why))
            elif row["kind"] == "box":
                log += [(row["cell_id"], name, f"{row[f'found_{name}']:.2f}", why) for name in BOX_COLUMNS]
            elif row["kind"] == "not found":
                log.append((row["cell_id"], "ignore", "true", why))
        return Edits.empty().note_all(dataset.cells, log, who=_WHO)


def find_noise(
    dataset: Dataset, found: Cells, settings: NoiseSettings | None = None, looked_at: Collection[str] | None = None
) -> Noise:
    """Rank the annotations of a dataset by how little out-of-fold findings support them.

    Args:
        dataset: the annotations.
        found: what models that did not learn from an image found in it.
        settings: what counts as a doubt.
        looked_at: ids of the images that the models saw; None: those with a finding. Others are not judged.

    Raises:
        DatasetError: `found` is about other images.
        LabelError: `found` has labels that the dataset has no word for.
        MissingExtraError: the findings have probabilities, and cleanlab is not installed.
    """
    seen = set(found.frame["image_id"] if looked_at is None else looked_at)
    rows = [row for row in dataset.images.rows() if row["image_id"] in seen]
    if not rows:
        raise DatasetError("the findings are of other images than the dataset; predict the dataset, fold by fold")
    doubts = _Doubts(dataset.labels, settings or NoiseSettings())
    findings, truths = dict(found.relabel(dataset.labels).by_image()), dict(dataset.cells.by_image())
    none = Cells.empty(dataset.labels)
    for row in rows:
        doubts.judge(_Image(truths.get(row["image_id"], none), findings.get(row["image_id"], none), row))
    return doubts.ranked()


class _Image:
    """One image's annotations and counted findings, and which belong together."""

    def __init__(self, truth: Cells, found: Cells, image: dict[str, Any]) -> None:
        self.truth, self.found = truth, found.filter(found.frame["counted"].to_numpy())
        self.image_id, self.complete_for = image["image_id"], image["complete_for"]
        sizes = (image["width_px"], image["height_px"])
        self.whole = match.is_whole_image(truth.boxes(), sizes)  # an image-level label, which has no box of its own
        self.scored = ~truth.frame["ignore"].to_numpy()
        self.table = match.overlaps(truth, self.found)
        ours, theirs = match.partners(
            truth.boxes(), self.found.boxes(), self.found.scores(), self.table, ~self.scored, sizes, _NEAR_IOU
        )
        self.pairs = list(zip(ours.tolist(), theirs.tolist(), strict=True))
        self.missed = np.setdiff1d(np.flatnonzero(self.scored), ours).tolist()
        self.surplus = np.setdiff1d(np.arange(len(self.found)), theirs).tolist()
        everything = np.asarray(box.iou(truth.boxes().astype(np.float64), found.boxes().astype(np.float64)))
        # The surest finding, counted or not, that could be each annotation.
        self.support = np.where(everything >= _SAME_IOU, found.scores()[None], 0.0).max(axis=1, initial=0.0)
        self.labels, self.names = truth.label_names(), self.found.label_names()
        self.scores, self.shares = self.found.scores(), self.found.probabilities()

    def row(self, kind: str, one: int | None, other: int | None, **more: Any) -> dict[str, Any]:
        """A doubt about annotation `one` and finding `other`."""
        row: dict[str, Any] = {"kind": kind, "image_id": self.image_id, **more}
        if other is not None:
            row["cell_id"] = self.found.frame["cell_id"][other]
            row |= {f"found_{n}": v for n, v in zip(BOX_COLUMNS, self.found.boxes()[other].tolist(), strict=True)}
            row.setdefault("suggested", self.names[other])
        if one is not None:
            row |= {"cell_id": self.truth.frame["cell_id"][one], "label": self.labels[one]}
            row |= dict(zip(BOX_COLUMNS, self.truth.boxes()[one].tolist(), strict=True))
        if one is not None and other is not None:
            row["iou"] = float(self.table[other, one])
        return row

    def excused(self, other: int) -> bool:
        """Whether a finding lies in a region that is not scored."""
        return bool((self.table[other, ~self.scored] >= _SAME_IOU).any())


class _Doubts:
    """Collects the doubts image by image; ranks come at the end."""

    def __init__(self, labels: LabelSet, settings: NoiseSettings) -> None:
        self.labels, self.settings = labels, settings
        self.rows: list[dict[str, Any]] = []
        self.named: list[tuple[dict[str, Any], NDArray[np.float32]]] = []  # pairs whose finding has probabilities
        self.annotations = 0

    def judge(self, image: _Image) -> None:
        """Note the doubts of one image."""
        self.annotations += int(image.scored.sum())
        for one, other in image.pairs:
            if image.labels[one] is not None and image.shares.shape[1] and not np.isnan(image.shares[other]).any():
                self.named.append((image.row("label", one, other), image.shares[other]))
            elif not self._agree(image.labels[one], image.names[other]):
                self.rows.append(image.row("label", one, other, suspicion=float(image.scores[other])))
                continue
            off = 1 - float(image.table[other, one])
            if off > 1 - self.settings.box_iou and not image.whole[one]:
                self.rows.append(image.row("box", one, other, suspicion=float(image.scores[other]) * off))
        for one in image.missed:
            self.rows.append(image.row("not found", one, None, suspicion=1 - float(image.support[one])))
        if image.whole.any():
            return  # an image-level label says nothing about other cells of the image
        for other in image.surplus:
            sure = float(image.scores[other])
            if sure >= self.settings.confident and self._claimed(image, other) and not image.excused(other):
                self.rows.append(image.row("not annotated", None, other, suspicion=sure))

    def _agree(self, annotated: str | None, named: str | None) -> bool:
        if annotated is None or named is None:
            return True
        return self.labels.is_a(named, annotated) or self.labels.is_a(annotated, named)

    def _claimed(self, image: _Image, other: int) -> bool:
        """Whether the image is annotated exhaustively for what was found."""
        complete, name = image.complete_for, image.names[other]
        return complete is None or (name is not None and any(self.labels.is_a(name, wide) for wide in complete))

    def ranked(self) -> Noise:
        """All doubts, by kind and rank."""
        rows = [*self.rows, *self._confident_learning()]
        for row in rows:
            row["siblings"] = self._siblings(row.get("label"), row.get("suggested"))
        columns = {name: [row.get(name) for row in rows] for name in SCHEMA if name != "rank"}
        frame = pl.DataFrame(columns, schema={n: t for n, t in SCHEMA.items() if n != "rank"})
        order = pl.col("kind").replace_strict({kind: i for i, kind in enumerate(KINDS)}, return_dtype=pl.Int8)
        frame = frame.sort(order, -pl.col("suspicion"), "cell_id")
        frame = frame.with_columns(rank=pl.int_range(1, pl.len() + 1).over("kind").cast(pl.Int64)).select(list(SCHEMA))
        most = max(1, round(self.settings.most * self.annotations))
        return Noise(frame.filter(pl.col("rank") <= most), self.annotations)

    def _confident_learning(self) -> Iterator[dict[str, Any]]:
        """The pairs whose finding is named otherwise, with what cleanlab's label quality lacks to 1 as suspicion."""
        if not self.named:
            return
        table = np.stack([shares for _, shares in self.named]).astype(np.float64)
        table /= table.sum(axis=1, keepdims=True)
        leaves = self.labels.leaves
        allowed = self.labels.leaf_matrix[[self.labels.index(row["label"]) for row, _ in self.named]]
        # A label that is only a parent is right where one of its kinds is: its quality is their sum.
        inside = np.where(allowed, table, 0.0).sum(axis=1)
        single = allowed.sum(axis=1) == 1
        quality = inside
        quality[single] = label_quality(table[single], allowed[single].argmax(axis=1))
        best = table.argmax(axis=1)
        for (row, _), leaf, right, good in zip(
            self.named, best, allowed[np.arange(len(best)), best], quality, strict=True
        ):
            if not right:
                yield {**row, "suggested": leaves[int(leaf)], "suspicion": 1 - float(good)}

    def _siblings(self, one: str | None, other: str | None) -> bool:
        if one is None or other is None or one == other:
            return False
        above = [next(iter(self.labels.ancestors(name)), None) for name in (one, other)]
        return above[0] is not None and above[0] == above[1] and above[0] in self.labels.reportable


def label_quality(table: NDArray[np.float64], given: NDArray[np.integer]) -> NDArray[np.float64]:
    """cleanlab's label quality of each row, from 0 (surely wrong) to 1: its self-confidence, the probability of the
    given label. Margins rank kinds that are often confused with each other before surer mistakes.

    Args:
        table: out-of-fold probabilities, shape (N, K).
        given: the annotated class of each row, shape (N,).

    Raises:
        MissingExtraError: cleanlab is not installed.
    """
    require("cleanlab", "train", "finding wrong labels")
    from cleanlab.rank import get_label_quality_scores

    if not len(table) or table.shape[1] < 2:  # no other class that a label could be mistaken for
        return np.ones(len(table))
    return np.asarray(get_label_quality_scores(given, table, method="self_confidence"), np.float64)


def cleaned(dataset: Dataset, noise: Noise, how: How = "ignore", kinds: Sequence[str] = KINDS) -> Dataset:
    """The dataset without its doubts, as training may prefer it; what was done stands in its provenance.

    Args:
        dataset: the annotations that were judged.
        noise: the doubts that count; filter them first if some do not.
        how: "ignore" marks doubtful annotations as not scored, and covers what is not annotated with an ignored cell;
            "leave out" drops the images that have a doubt.
        kinds: the kinds that count.

    Raises:
        SettingError: `how` or a kind is unknown.
    """
    if how not in ("ignore", "leave out"):
        raise SettingError(f'how="{how}" is unknown; allowed: ignore, leave out')
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise SettingError(f"kinds {wrong} are unknown; allowed: {', '.join(KINDS)}")
    doubts = noise.frame.filter(pl.col("kind").is_in(list(kinds)))
    step = {"step": "noise", "how": how, "doubts": dict(doubts.group_by("kind").len().sort("kind").iter_rows())}
    provenance = (*dataset.provenance, step)
    if how == "leave out":
        doubtful = doubts["image_id"].unique()
        kept = dataset.of_images(Images(dataset.images.frame.filter(~pl.col("image_id").is_in(doubtful.implode()))))
        return replace(kept, provenance=provenance)
    own = doubts.filter(pl.col("kind") != "not annotated")["cell_id"]
    frame = dataset.cells.frame.with_columns(ignore=pl.col("ignore") | pl.col("cell_id").is_in(own.implode()))
    cells = Cells(frame, dataset.labels)
    covered = doubts.filter(pl.col("kind") == "not annotated")
    if len(covered):
        hashes = dict(dataset.images.frame.select("image_id", "sha256").iter_rows())
        cells = cells.concat(
            Cells.of(
                dataset.labels,
                image_id=covered["image_id"].to_list(),
                image_key=[f"noise {hashes[i] or i}" for i in covered["image_id"].to_list()],
                boxes=covered.select([f"found_{name}" for name in BOX_COLUMNS]).to_numpy(),
                label=covered["suggested"].to_list(),
                source="noise:out-of-fold",
                ignore=np.ones(len(covered), bool),
            )
        )
    return replace(dataset, cells=cells, provenance=provenance)
