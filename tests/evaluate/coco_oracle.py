"""The two public COCO evaluations as outside oracles."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from cytolens.boxes import to_corner_size
from cytolens.cells import Cells
from cytolens.dataset import Dataset


def coco_average_precision(truth: Dataset, found: Cells, which: str) -> dict[str, tuple[float, float]]:
    """Label → (AP at IoU .50, AP at .50–.95), 1,000 findings per image; only labels that have truth.

    Args:
        truth: the truth.
        found: the findings, in the truth's label set.
        which: "pycocotools" or "faster_coco_eval".
    """
    if which == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval

    images = {image_id: number for number, image_id in enumerate(truth.images.ids, 1)}
    categories = {name: number for number, name in enumerate(truth.labels.names, 1)}
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = {
            "info": {},
            "images": [{"id": n, "width": 10_000, "height": 10_000} for n in images.values()],
            "categories": [{"id": n, "name": name} for name, n in categories.items()],
            "annotations": _annotations(truth.cells, images, categories),
        }
        gt.createIndex()
        rows = _results(found, images, categories)
        dt = gt.loadRes(rows) if rows else COCO()
        if not rows:
            dt.dataset = {**gt.dataset, "annotations": []}
            dt.createIndex()
        judge = COCOeval(gt, dt, "bbox")
        judge.params.maxDets = [1, 10, 1000]
        judge.evaluate()
        judge.accumulate()
    precision: Any = judge.eval["precision"]  # (limits, recalls, labels, areas, maxDets)
    table = np.asarray(precision)[:, :, :, 0, -1].mean(axis=1)
    return {
        name: (float(table[0, k]), float(table[:, k].mean())) for k, name in enumerate(categories) if table[0, k] > -1
    }


def _annotations(cells: Cells, images: dict[str, int], categories: dict[str, int]) -> list[dict[str, Any]]:
    corner_size = to_corner_size(cells.boxes().astype(np.float64))
    return [
        {
            "id": n,
            "image_id": images[row["image_id"]],
            "category_id": categories[row["label"]],
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": int(row["ignore"]),
        }
        for n, (row, box) in enumerate(zip(cells.frame.iter_rows(named=True), corner_size, strict=True), 1)
    ]


def _results(cells: Cells, images: dict[str, int], categories: dict[str, int]) -> list[dict[str, Any]]:
    corner_size = to_corner_size(cells.boxes().astype(np.float64))
    return [
        {
            "image_id": images[row["image_id"]],
            "category_id": categories[row["label"]],
            "bbox": box.tolist(),
            "score": row["score"],
        }
        for row, box in zip(cells.frame.iter_rows(named=True), corner_size, strict=True)
    ]
