"""White cells of BCCD with the outlines of the whole cell and of its nucleus, as a dataset.

    python recipes/bccd-outlines.py DATA OUT

DATA/bccd holds the published fields with their boxes, and a hand-made mask of the white cells of each: dark is
background, grey cytoplasm, white nucleus. A part of a mask belongs to the box of a white cell whose middle is nearest;
parts that no box covers are cells of their own, which the boxes lack. Masks whose bounds overlap a box by less than
half do not fit their image: they are left out, and OUT/left-out.csv names them.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cytolens import boxes as box
from cytolens import formats, masks
from cytolens.cells import Cells, join
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet

CYTOPLASM, NUCLEUS = 78, 205  # grey values from which a pixel is one; some masks were stored with losses
LABELS = LabelSet.of(["WBC", "nucleus"])
LEAST_PX = 800  # smaller parts of a mask are crumbs


def white_cells(mask: np.ndarray, boxes: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The whole cells in a mask (H, W): the number of the box that each fills, more for parts outside; its pixels."""
    import cv2

    count, parts = cv2.connectedComponents((mask >= CYTOPLASM).astype(np.uint8))
    rows, columns = np.indices(mask.shape) + 0.5
    owner = np.full(mask.shape, -1)
    for part in range(1, count):
        here = parts == part
        bounds = masks.bounds(masks.encode(here), mask.shape)
        if not len(boxes) or (box.overlap_share(bounds[None], boxes) < 0.3).all():
            if here.sum() >= LEAST_PX:
                owner[here] = max(owner.max(), len(boxes)) + 1
            continue
        # Cells that touch are one part of the mask: a pixel belongs to the box whose middle is nearest, in box sides.
        middles, sides = box.centres(boxes), box.sizes_wh(boxes)
        away = np.stack(
            [np.hypot((columns - m[0]) / s[0], (rows - m[1]) / s[1]) for m, s in zip(middles, sides, strict=True)]
        )
        owner[here] = away.argmin(axis=0)[here]
    numbers = [int(one) for one in np.unique(owner[owner >= 0]) if (owner == one).sum() >= LEAST_PX]
    return [(number, owner == number) for number in numbers]


def main(data: Path, out: Path) -> None:
    """Make the dataset."""
    bccd = formats.read(data / "bccd", "voc").dataset
    tables, left_out = [], []
    rows = []
    for row in bccd.images.rows():
        file = data / "bccd" / "masks" / f"{Path(row['image_id']).stem}.png"
        if not file.exists():
            left_out.append([row["image_id"], "has no mask"])
            continue
        mask = np.asarray(Image.open(file).convert("L"))
        boxes = bccd.cells.of_image(row["image_id"]).where(label="WBC").boxes()
        boxes = boxes[(box.sizes_wh(boxes) > 1).all(axis=1)]
        cells = white_cells(mask, boxes)
        bounds = np.array([masks.bounds(masks.encode(cell), mask.shape) for _, cell in cells]).reshape(-1, 4)
        if len(boxes) and (not len(cells) or (np.asarray(box.iou(boxes, bounds)).max(axis=1) < 0.5).any()):
            left_out.append([row["image_id"], "its mask does not fit its boxes"])
            continue
        names, codes, corners = [], [], []
        for (number, cell), around in zip(cells, bounds, strict=True):
            names.append("WBC")
            codes.append(masks.encode(cell))
            corners.append(boxes[number] if number < len(boxes) else around)
            nucleus = cell & (mask >= NUCLEUS)
            if nucleus.any():
                names.append("nucleus")
                codes.append(masks.encode(nucleus))
                corners.append(masks.bounds(codes[-1], mask.shape))
        rows.append(row)
        if names:
            known = {"image_id": [row["image_id"]] * len(names), "image_key": [row["sha256"]] * len(names)}
            cells = Cells.of(
                LABELS, **known, boxes=np.array(corners), label=names, source="import:bccd-masks", mask=codes
            )
            tables.append(cells)
    images = Images.of(rows)
    dataset = Dataset(images, join(tables, LABELS), "bccd-outlines", licence=bccd.licence)
    dataset.write(out)
    with (out / "left-out.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["image", "why"], *left_out])
    print(
        f"{len(dataset.images)} images, {len(dataset.cells.where(label='WBC'))} white cells; {len(left_out)} left out"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
