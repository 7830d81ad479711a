"""The score of the CytologIA challenge, exactly as its organisers compute it, and a strict one beside it.

The challenge's score S = 0.2 · mean((GIoU + 1) / 2) + 0.8 · macro-F1 gives every truth the finding with the
largest GIoU: one finding may serve several truths, and a surplus finding costs nothing. The strict
macro-F1 pairs them one to one from IoU .5 on and counts every finding.

Both say how well the cells are found and named together. A figure is the challenge's own only for its
23 names; for other names it is computed in the same way.

Tables of the scores: those of "detection" (a cell with another name is there a miss and a surplus).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cytolens.cells import Cells
from cytolens.evaluate.challenge_tallies import (
    Array,
    Indices,
    Side,
    Tallies,
    figures_of,
    shared_f1,
    strict_f1,
    tally,
)
from cytolens.evaluate.classification import masses
from cytolens.evaluate.detection import score_detection
from cytolens.evaluate.joining import Joined
from cytolens.evaluate.scores import EvaluateSettings, Scores, figure
from cytolens.evaluate.uncertainty import resampling
from cytolens.formats.cytologia_submission import expected_counts
from cytolens.labels import LabelSet
from cytolens.problems import DatasetError, listing

NONE = "None"  # what the challenge calls a truth in an image without any finding


def cytologia_score(truth: pl.DataFrame, found: pl.DataFrame) -> dict[str, float]:
    """The challenge's score and the strict macro-F1 of two tables in the challenge's own layout.

    Edge rules of the score: a finding belongs to the image whose truths have its id; later repeats of an id
    are dropped, then repeats of box and class within the image; of equal GIoU the first finding is taken; a
    truth in an image without a finding has GIoU −1 and the name "None", and the macro-F1 is the mean over all
    names that occur in the truth or among the names taken, "None" too. The strict figure uses every finding of
    the image, and is the mean over the names of the truth.

    Args:
        truth, found: columns trustii_id, NAME, x1, y1, x2, y2, class.

    Returns:
        score, giou_term, macro_f1, strict_macro_f1, mean_giou, missed_per_image, surplus_per_image.

    Raises:
        DatasetError: there is no truth.
    """
    if not len(truth):
        raise DatasetError("there is no truth to score against")
    image = {name: index for index, name in enumerate(truth["NAME"].unique(maintain_order=True).to_list())}
    names = [*sorted({*truth["class"], *found["class"]} - {NONE}), NONE]
    own = dict(zip(truth["trustii_id"].to_list(), truth["NAME"].to_list(), strict=True))
    belonging = found.filter(pl.col("trustii_id").is_in(list(own)))

    def side(frame: pl.DataFrame) -> Side:
        return Side(
            image=np.array([image[own[i]] for i in frame["trustii_id"].to_list()], np.intp),
            boxes=frame.select("x1", "y1", "x2", "y2").to_numpy().astype(np.float64).reshape(-1, 4),
            name=np.array([names.index(name) for name in frame["class"].to_list()], np.intp),
            ignored=np.zeros(len(frame), bool),
        )

    everything = side(belonging)
    handed_in = side(belonging.unique("trustii_id", keep="first", maintain_order=True))
    sums = tally(side(truth), handed_in, everything, len(image), len(names) - 1).summed(np.ones((1, len(image))))
    return {name: float(value[0]) for name, value in figures_of(sums, len(image)).items()}


def score_challenge(joined: Joined, settings: EvaluateSettings) -> Scores:
    """The figures of the task "cytologia", under the names that `evaluate --json` gives them.

    Counted findings are the answer. With `settings.expected_counts` it is, in each image, the surest of all
    findings, as many as are said to be there, filled with the whole image.

    Raises:
        FormatError: the table of expected counts is not the challenge's.
        DatasetError: it lacks an image, or an image to be filled has no known size.
    """
    labels, images = joined.labels, len(joined.images)
    answer, notes = _answer(joined, settings.expected_counts)
    ours = Side(
        image=_image_index(joined, joined.truth),
        boxes=joined.truth.boxes().astype(np.float64),
        name=joined.truth_label,
        ignored=joined.truth.frame["ignore"].to_numpy(),
    )
    # The last column but one is for names that the truth has no word for.
    tallies = tally(ours, answer, answer, images, len(labels) + 1)
    resamples = resampling(joined.images, settings.bootstrap if settings.intervals else 0, settings.seed)
    once = tallies.summed(np.ones((1, images)))
    drawn = None if resamples.weights is None else tallies.summed(resamples.weights)
    found = score_detection(joined, settings)
    entry: dict[str, Any] = {}
    samples = None if drawn is None or resamples.weights is None else figures_of(drawn, resamples.weights.sum(axis=1))
    for name, value in figures_of(once, images).items():
        entry |= figure(name, value[0], None if samples is None else samples[name])
    shared = ("map50", "map50_95", "images", "iou_min", "interval_unit", "groups", "joined_by")
    entry |= {k: v for k, v in found.figures.items() if k.removesuffix("_interval") in shared}
    entry |= {"truth": int(once.truths[0]), "found": len(answer.image)}
    entry["expected_counts"] = None if settings.expected_counts is None else str(settings.expected_counts)
    entry["per_label"] = _per_label(once, drawn, labels)
    return Scores(
        task="cytologia",
        figures=entry,
        notes=(*found.notes, *notes, *_notes(labels)),
        problems=joined.problems,
        tables=found.tables,
    )


def _per_label(once: Tallies, drawn: Tallies | None, labels: LabelSet) -> dict[str, Any]:
    """F1 of each name that occurs, both ways, with how often it occurs and is found."""
    rows: dict[str, Any] = {}
    for k, name in enumerate(labels.names):
        if not once.truth[0, k] + once.named[0, k] + once.strict_found[0, k]:
            continue
        rows[name] = {"truth": int(once.truth[0, k]), "found": int(once.strict_found[0, k])}
        for key, f1 in (("f1", shared_f1), ("strict_f1", strict_f1)):
            rows[name] |= figure(key, f1(once)[0, k], None if drawn is None else f1(drawn)[:, k])
    return rows


# -- what is handed in ----------------------------------------------------------------------------


def _answer(joined: Joined, counts: str | Path | None) -> tuple[Side, list[str]]:
    """The findings that are scored, the surest first, and what the reader has to know about them."""
    rows = np.arange(len(joined.found)) if counts is not None else np.flatnonzero(joined.found.frame["counted"])
    rows = rows[np.argsort(-joined.found.scores()[rows], kind="stable")]
    side = Side(
        image=_image_index(joined, joined.found)[rows],
        boxes=joined.found.boxes()[rows].astype(np.float64),
        name=_names(joined)[rows],
        ignored=np.zeros(len(rows), bool),
    )
    if counts is None:
        return side, []
    expected = _expected(joined, counts)
    parts = [_fitted(side, own, image, expected, joined) for image, own in enumerate(side.by_image(len(expected)))]
    image, boxes, name = (np.concatenate(part) for part in zip(*parts, strict=True))
    side = Side(image.astype(np.intp), boxes, name.astype(np.intp), np.zeros(len(image), bool))
    where = "the truth" if counts == "truth" else str(counts)
    return side, [
        f"The number of cells of each image was given away by {where} (expected counts, an oracle): the figures of "
        "the challenge are not those of a use without it. AP and the tables below are of what was found."
    ]


def _fitted(
    side: Side, own: Indices, image: int, expected: Sequence[int], joined: Joined
) -> tuple[Indices, Array, Indices]:
    """The surest findings of one image, filled with the whole image, named as the surest finding is."""
    kept = own[: expected[image]]
    short = expected[image] - len(kept)
    if not short:
        return side.image[kept], side.boxes[kept], side.name[kept]
    row = joined.images.row(joined.images.ids[image])
    if row["width_px"] is None or row["height_px"] is None:
        raise DatasetError(f"{row['image_id']}: its size is not known, so it cannot be filled up to the expected count")
    whole = np.array([[0, 0, row["width_px"], row["height_px"]]], np.float64)
    first = side.name[kept[0]] if len(kept) else len(joined.labels)
    return (
        np.full(expected[image], image, np.intp),
        np.concatenate([side.boxes[kept], np.repeat(whole, short, axis=0)]),
        np.concatenate([side.name[kept], np.full(short, first, np.intp)]),
    )


def _expected(joined: Joined, counts: str | Path) -> list[int]:
    """How many cells each image is said to have.

    Raises:
        DatasetError: an image is not in the table.
    """
    if counts == "truth":
        scored = ~joined.truth.frame["ignore"].to_numpy()
        return np.bincount(_image_index(joined, joined.truth)[scored], minlength=len(joined.images)).tolist()
    table = expected_counts(Path(counts))
    found = [table.get(i, table.get(i.rsplit("/", 1)[-1])) for i in joined.images.ids]
    if lost := [i for i, count in zip(joined.images.ids, found, strict=True) if count is None]:
        raise DatasetError(f"{counts}: says nothing of {len(lost)} images: {listing(lost, 5)}")
    return [count or 0 for count in found]


def _image_index(joined: Joined, cells: Cells) -> Indices:
    place = {image_id: index for index, image_id in enumerate(joined.images.ids)}
    return np.array([place[i] for i in cells.frame["image_id"].to_list()], np.intp)


def _names(joined: Joined) -> Indices:
    """The index of each finding's name; len(labels): none that the truth has a word for.

    A finding that is not named, or too widely for the truth, is called by its largest probability.
    """
    likeliest = masses(joined.found, joined.mapping, joined.labels).argmax(axis=1)
    return np.where(joined.found_label >= 0, joined.found_label, likeliest).astype(np.intp)


def _notes(labels: LabelSet) -> Iterator[str]:
    challenge = LabelSet.shipped("cytologia").names
    if strange := [name for name in labels.names if name not in challenge]:
        yield (
            f"The truth's labels are not the challenge's 23 (it has {listing(strange, 5)}): the figures are computed "
            "in the challenge's way, but cannot be compared with its results."
        )
