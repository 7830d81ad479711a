"""Attributes of truth and findings side by side, one row per cell, as a CSV file.

In the columns of the original LeukemiaAttri program: ``filename``, six codes of the truth, six ``pred_…``; pairs are
those of the compatible score (`attribute_compatible`). In ours: the ids and labels of both cells, their IoU, and the
names of all values; pairs are one to one, and truths that were missed stand below with nothing found.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate.attribute_compatible import most_overlapping
from cytolens.evaluate.attribute_sides import attribute_names, shared_attributes
from cytolens.evaluate.cell_partners import find_partners
from cytolens.evaluate.joining import Joined, join, overlaps_by_image
from cytolens.evaluate.scores import EvaluateSettings
from cytolens.formats.attribute_csv import ORIGINAL, code, require_original
from cytolens.formats.leukemia_codes import is_artefact
from cytolens.images import Images
from cytolens.labels import AttributeSchema
from cytolens.problems import Problems, written


def write_validation(
    truth: Dataset, found: Cells | Dataset, found_images: Images | None, path: Path, *, original: bool
) -> Problems:
    """Write truth and findings of the same images side by side.

    Args:
        truth: the annotated images.
        found: what was found in them.
        found_images: as of `evaluate`.
        path: of the CSV file.
        original: whether in the original's columns.

    Returns:
        Truth images that have no found image.

    Raises:
        DatasetError: an image has no partner, or there is no attribute in common.
        FormatError: (original) one side has not LeukemiaAttri's attributes.
    """
    settings = EvaluateSettings(intervals=False)
    joined = join(truth, found, found_images, settings)
    if original:
        require_original(joined.truth, "the truths")
        require_original(joined.found, "the findings")
        names = [attribute.name for attribute in ORIGINAL]
        header = ["filename", *names, *(f"pred_{name}" for name in names)]
        rows = _original_rows(joined)
    else:
        schemas = [one.schema for one in shared_attributes(joined)[0]]
        names = attribute_names(schemas)
        sides = ["truth_cell_id", "found_cell_id", "iou", "truth_label", "found_label"]
        header = ["filename", *sides, *names, *(f"pred_{name}" for name in names)]
        rows = _own_rows(joined, schemas, settings.iou_min)
    with written(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return joined.problems


def _original_rows(joined: Joined) -> Iterator[list[str]]:
    truth, found, *_ = most_overlapping(joined, overlaps_by_image(joined))
    ids, labels = joined.truth.frame["image_id"].to_list(), joined.found.label_names()
    true = [joined.truth.attribute_values(attribute.column) for attribute in ORIGINAL]
    said = [joined.found.attribute_values(attribute.column) for attribute in ORIGINAL]
    for ours, theirs in zip(truth.tolist(), found.tolist(), strict=True):
        told = [code(attribute, column[ours]) for attribute, column in zip(ORIGINAL, true, strict=True)]
        if not any(told):
            continue  # of type None, or nothing of it is visible
        pairs = zip(ORIGINAL, said, strict=True)
        answers = ["0" if is_artefact(labels[theirs]) else code(a, column[theirs]) for a, column in pairs]
        yield [_file(ids[ours]), *told, *answers]


def _own_rows(joined: Joined, schemas: list[AttributeSchema], iou_min: float) -> Iterator[list[str]]:
    partners = find_partners(joined, iou_min)
    ids, keys = joined.truth.frame["image_id"].to_list(), joined.truth.frame["cell_id"].to_list()
    found_keys, labels = joined.found.frame["cell_id"].to_list(), joined.truth.label_names()
    found_labels = joined.found.label_names()
    true = [joined.truth.attribute_values(schema.column) for schema in schemas]
    said = [joined.found.attribute_values(schema.column) for schema in schemas]
    pairs = zip(partners.truth.tolist(), partners.found.tolist(), partners.iou.tolist(), strict=True)
    for ours, theirs, iou in pairs:
        values = [column[ours] or "" for column in true] + [column[theirs] or "" for column in said]
        sides = [keys[ours], found_keys[theirs], f"{iou:.4f}", labels[ours] or "", found_labels[theirs] or ""]
        yield [_file(ids[ours]), *sides, *values]
    for ours in partners.missed.tolist():
        values = [column[ours] or "" for column in true] + [""] * len(said)
        yield [_file(ids[ours]), keys[ours], "", "", labels[ours] or "", "", *values]


def _file(image_id: str) -> str:
    return image_id.rsplit("/", 1)[-1]
