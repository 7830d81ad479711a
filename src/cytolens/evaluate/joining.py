"""Truth and findings brought together: of the same images, in the same words.

Labels are mapped through the shipped table of aliases and parents; a finer finding rolls up to the
truth's label, and figures carry the truth's names.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens import match
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate.image_partners import join_images
from cytolens.evaluate.scores import EvaluateSettings
from cytolens.images import Images
from cytolens.labels import LabelSet, taxonomy
from cytolens.problems import DatasetError, Problems, SettingError, did_you_mean, listing


@dataclass(frozen=True, eq=False)
class Joined:
    """Truth and findings of the same images, in the same words.

    Attributes:
        images: the truth's images that are scored (I).
        truth: their cells (T); a cell whose label is unknown, or has no place at the level asked for, is ignored.
        found: the findings in them (F), with the truth's image ids and their own label set.
        labels: the labels that figures carry (K).
        truth_label: index into `labels` of each truth cell, −1: none, shape (T,).
        found_label: the same of each finding, shape (F,).
        mapping: label of the findings → one of `labels`, or None.
        joined_by: how many images were joined by what.
        notes: what the reader of the figures has to know.
        problems: truth images that are not scored.
    """

    images: Images
    truth: Cells
    found: Cells
    labels: LabelSet
    truth_label: NDArray[np.intp]
    found_label: NDArray[np.intp]
    mapping: Mapping[str, str | None]
    joined_by: Mapping[str, int]
    notes: tuple[str, ...]
    problems: Problems


@dataclass(frozen=True, slots=True)
class Overlaps:
    """One joined image.

    Attributes:
        image: its index in `Joined.images`.
        truth: rows of `Joined.truth` in it, shape (t,).
        found: rows of `Joined.found` in it, shape (f,).
        table: `match.overlaps` of them, shape (f, t).
    """

    image: int
    truth: NDArray[np.intp]
    found: NDArray[np.intp]
    table: NDArray[np.float64]


# -- labels ---------------------------------------------------------------------------------------


def _target_labels(truth: LabelSet, level: Sequence[str] | None) -> LabelSet:
    """The labels that figures carry.

    Raises:
        SettingError: a name of the level is known neither to the truth nor to the shipped taxonomy.
    """
    if level is None:
        return truth
    for name in level:
        if truth.resolve(name) is None and taxonomy().resolve(name) is None:
            hint = did_you_mean(name, [*truth.names, *taxonomy().names])
            raise SettingError(
                f'level: unknown label "{name}". {hint} The truth has: {listing(truth.names, 30)}'.strip()
            )
    return LabelSet.of(level)


def _indices(names: Sequence[str | None], mapping: Mapping[str, str | None], labels: LabelSet) -> NDArray[np.intp]:
    to_index = {name: -1 if target is None else labels.index(target) for name, target in mapping.items()}
    return np.array([-1 if name is None else to_index[name] for name in names], np.intp)


def names_without_place(names: Sequence[str | None], index: NDArray[np.intp]) -> str:
    """The labels of the rows whose index is −1, each with its count, for a note."""
    counts = Counter(name or "not named" for name, i in zip(names, index, strict=True) if i < 0)
    return listing([f"{name} ({count})" for name, count in counts.most_common()])


# -- images and labels ----------------------------------------------------------------------------


def join(
    truth: Dataset,
    found: Cells | Dataset,
    found_images: Images | None,
    settings: EvaluateSettings,
    names_matter: bool = True,
) -> Joined:
    """Bring truth and findings together.

    Args:
        truth: the annotated images.
        found: the findings.
        found_images: the images that were looked at. Without it an image without findings cannot be told
            from one that was never looked at: it then counts as looked at, and a note says so.
        settings: uses `missing` and `level`.
        names_matter: whether a truth without a name is ignored; where it is not, it keeps the label −1.

    Raises:
        DatasetError: a truth image has no found image (with missing="error"), or none has.
        SettingError: the level names an unknown label.
    """
    if isinstance(found, Dataset):
        found_images = found.images if found_images is None else found_images
        found = found.cells
    partners = join_images(truth.images, found, found_images, settings.missing == "ok")
    truth = truth.of_images(truth.images.where(image_id=list(partners.found_id)))
    labels = _target_labels(truth.labels, settings.level)
    theirs = _renamed(found, partners.found_id)
    ours = truth.cells
    mapping = found.labels.mapping_to(labels)
    truth_label = _indices(ours.label_names(), truth.labels.mapping_to(labels), labels)
    lost = (truth_label < 0) & ~ours.frame["ignore"].to_numpy()
    if not names_matter and settings.level is None:
        lost[:] = False
    notes = list(partners.notes)
    if lost.any():
        named = names_without_place(ours.label_names(), np.where(lost, -1, 0))
        notes.append(
            f"{int(lost.sum())} truth cells have no label among those scored and are ignored, "
            f"as is what was found in their place: {named}."
        )
    ours = ours.with_columns(ignore=(ours.frame["ignore"].to_numpy() | lost).tolist())
    return Joined(
        images=truth.images,
        truth=ours,
        found=theirs,
        labels=labels,
        truth_label=truth_label,
        found_label=_indices(theirs.label_names(), mapping, labels),
        mapping=mapping,
        joined_by=partners.joined_by,
        notes=tuple(notes),
        problems=partners.problems,
    )


def _renamed(found: Cells, partners: Mapping[str, str | None]) -> Cells:
    """The findings of the joined images, with the truth's image ids; copies of an image each get them."""
    pairs = pl.DataFrame(
        {"ours": list(partners), "image_id": list(partners.values())}, schema={"ours": pl.String, "image_id": pl.String}
    )
    joined = found.frame.join(pairs, on="image_id", how="inner", maintain_order="left")
    return Cells(joined.with_columns(image_id=pl.col("ours")).drop("ours"), found.labels)


def overlaps_by_image(joined: Joined) -> list[Overlaps]:
    """The overlap of findings with truths (boxes), image by image, in the order of `Joined.images`."""
    ours, theirs = rows_by_image(joined.truth), rows_by_image(joined.found)
    none = np.zeros(0, np.intp)
    out = []
    for index, image_id in enumerate(joined.images.ids):
        t, f = ours.get(image_id, none), theirs.get(image_id, none)
        table = np.zeros((len(f), len(t)))
        if len(t) and len(f):
            truth = Cells(joined.truth.frame[t], joined.truth.labels)
            table = match.overlaps(truth, Cells(joined.found.frame[f], joined.found.labels))
        out.append(Overlaps(index, t, f, table))
    return out


def complete_labels(joined: Joined) -> NDArray[np.bool_]:
    """Whether each label is annotated exhaustively in each image, shape (images, labels).

    A label is complete where it, or a wider one, is among the image's `complete_for`.
    """
    table = np.ones((len(joined.images), len(joined.labels)), bool)
    own = joined.truth.labels
    mapping = own.mapping_to(joined.labels)
    for row, names in enumerate(joined.images.frame["complete_for"].to_list()):
        if names is None:
            continue
        wide = {mapping[known] for name in names if (known := own.resolve(name)) is not None}
        table[row] = [bool(wide & {label, *joined.labels.ancestors(label)}) for label in joined.labels.names]
    return table


def rows_by_image(cells: Cells) -> dict[str, NDArray[np.intp]]:
    """Image id → the rows of its cells, rising."""
    rows = cells.frame.select("image_id").with_row_index("row").group_by("image_id").agg(pl.col("row").sort())
    return {image_id: np.asarray(index, np.intp) for image_id, index in rows.iter_rows()}


def read_found(path: str | os.PathLike[str]) -> tuple[Cells, Images | None]:
    """Findings from disk: a dataset's folder, a folder or file that `predict` left, or any cells.parquet.

    Returns:
        The cells, and the table of the images that were looked at where ``images.parquet`` lies beside them.

    Raises:
        DatasetError: there is nothing of the kind, or it is damaged.
    """
    place = Path(path)
    if (place / "dataset.json").exists():
        dataset = Dataset.read(place)
        return dataset.cells, dataset.images
    file = place / "cells.parquet" if place.is_dir() else place
    cells = Cells.read_parquet(file)
    beside = file.with_name("images.parquet")
    if not beside.exists():
        return cells, None
    try:
        return cells, Images(pl.read_parquet(beside))
    except pl.exceptions.PolarsError as error:
        raise DatasetError(f"{beside}: cannot be read ({error})") from error
