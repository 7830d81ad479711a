"""Small worlds to score: built cells, the BCCD boxes, and findings made from a truth by spoiling it."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from defusedxml import ElementTree

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet

SIZE_WH = (200, 100)


def dataset(
    labels: LabelSet,
    boxes: dict[str, Sequence[tuple[str | None, Sequence[float]]]],
    *,
    name: str = "truth",
    ignore: Sequence[bool] | bool = False,
    images: dict[str, dict[str, Any]] | None = None,
) -> Dataset:
    """A truth from image id → [(label, corners), …]; images of 200 × 100 px unless told."""
    rows = [
        {"image_id": i, "width_px": SIZE_WH[0], "height_px": SIZE_WH[1], **(images or {}).get(i, {})} for i in boxes
    ]
    flat = [(i, label, corners) for i, cells in boxes.items() for label, corners in cells]
    cells = Cells.of(
        labels,
        image_id=[i for i, _, _ in flat],
        boxes=np.array([corners for _, _, corners in flat], float).reshape(-1, 4),
        label=[label for _, label, _ in flat],
        source="human:test",
        ignore=ignore,
    )
    return Dataset(Images.of(rows), cells, name)


def findings(
    labels: LabelSet,
    boxes: dict[str, Sequence[tuple[str | None, Sequence[float], float]]],
    **more: Any,
) -> Cells:
    """Findings from image id → [(label, corners, score), …]."""
    flat = [(i, *cell) for i, cells in boxes.items() for cell in cells]
    return Cells.of(
        labels,
        image_id=[row[0] for row in flat],
        boxes=np.array([row[2] for row in flat], float).reshape(-1, 4),
        label=[row[1] for row in flat],
        score=[row[3] for row in flat],
        source="bundle:test@0",
        **more,
    )


def spoiled(truth: Dataset, seed: int, *, labels: LabelSet | None = None, threshold: float = 0.5) -> Cells:
    """Findings as an imperfect detector would make them: shifted, missed, doubled, invented, misnamed."""
    rng = np.random.default_rng(seed)
    labels = labels or truth.labels
    names = labels.names
    boxes, label, score, image = [], [], [], []
    sizes = {row["image_id"]: (row["width_px"], row["height_px"]) for row in truth.images.rows()}
    mapping = truth.labels.mapping_to(labels)
    for row in truth.cells.frame.iter_rows(named=True):
        corners = np.array([row["x_min"], row["y_min"], row["x_max"], row["y_max"]])
        side = max(corners[2] - corners[0], corners[3] - corners[1])
        for _ in range(rng.choice([0, 1, 2], p=[0.08, 0.87, 0.05])):
            boxes.append(corners + rng.normal(0, 0.05, 4) * side)
            said = mapping[row["label"]] if row["label"] else None
            label.append(said if said and rng.random() > 0.05 else str(rng.choice(names)))
            score.append(np.round(rng.beta(5, 2), 2))  # rounded, so that scores tie
            image.append(row["image_id"])
    for image_id, (width, height) in sizes.items():
        for _ in range(rng.poisson(4)):
            corner = rng.uniform(0, [width - 5, height - 5])
            boxes.append([*corner, *(corner + rng.uniform(4, 60, 2))])
            label.append(str(rng.choice(names)))
            score.append(np.round(rng.beta(2, 5), 2))
            image.append(image_id)
    order = np.argsort([list(sizes).index(i) for i in image], kind="stable") if len(sizes) < 500 else range(len(image))
    score = np.clip(np.array(score, np.float32), 0.01, 1)
    return Cells.of(
        labels,
        image_id=[image[i] for i in order],
        boxes=np.array([boxes[i] for i in order]).reshape(-1, 4),
        label=[label[i] for i in order],
        score=score[list(order)],
        counted=score[list(order)] >= threshold,
        source="bundle:spoiled@0",
    )


def bccd(data_root: Path, split: str = "val") -> Dataset:
    """The BCCD boxes of one split, read without the package's own readers."""
    root = data_root / "bccd"
    rows, image_id, boxes, label = [], [], [], []
    for stem in (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
        tree = ElementTree.parse(root / "Annotations" / f"{stem}.xml")
        path = root / "JPEGImages" / f"{stem}.jpg"
        size = tree.find("size")
        rows.append(
            {
                "image_id": f"JPEGImages/{stem}.jpg",
                "path": str(path),
                "width_px": int(size.findtext("width")),
                "height_px": int(size.findtext("height")),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "split": split,
            }
        )
        for item in tree.iter("object"):
            corners = item.find("bndbox")
            image_id.append(f"JPEGImages/{stem}.jpg")
            boxes.append([float(corners.findtext(k)) for k in ("xmin", "ymin", "xmax", "ymax")])
            label.append(item.findtext("name"))
    labels = LabelSet.shipped("bccd")
    cells = Cells.of(labels, image_id=image_id, boxes=boxes, label=label, source="import:bccd")
    return Dataset(Images.of(rows), cells, f"bccd {split}")


def pbc(data_root: Path, split: str = "val") -> Dataset:
    """The PBC labels of one split, one cell per image with the box of the whole image."""
    from PIL import Image

    rows, label, boxes = [], [], []
    with (data_root / "pbc" / "labels.csv").open(newline="") as stream:
        for line in csv.DictReader(stream):
            if line["split"] != split:
                continue
            path = data_root / "pbc" / "images" / line["image"]
            with Image.open(path) as image:
                width, height = image.size
            rows.append({"image_id": line["image"], "path": str(path), "width_px": width, "height_px": height})
            label.append(line["label"])
            boxes.append([0, 0, width, height])
    ids = [row["image_id"] for row in rows]
    cells = Cells.of(LabelSet.shipped("pbc"), image_id=ids, boxes=boxes, label=label, source="import:pbc")
    return Dataset(Images.of(rows), cells, f"pbc {split}")


def whole_images(names: Sequence[str], labels: LabelSet, size_wh: tuple[int, int] = SIZE_WH) -> Dataset:
    """One image per name, its label the image's."""
    corners = (0, 0, *size_wh)
    sizes = {"width_px": size_wh[0], "height_px": size_wh[1]}
    boxes = {f"{i:05d}.png": [(name, corners)] for i, name in enumerate(names)}
    return dataset(labels, boxes, images=dict.fromkeys(boxes, sizes))


def named(truth: Dataset, labels: LabelSet, probabilities: np.ndarray | None, **more: Any) -> Cells:
    """One finding in the place of every truth, with these probabilities over the leaves of `labels` (N, K)."""
    label = more.pop("label", None)
    if label is None:
        assert probabilities is not None
        label = [labels.leaves[i] for i in probabilities.argmax(axis=1)]
    score = more.pop("score", None)
    if score is None and probabilities is not None:
        score = probabilities.max(axis=1)
    return Cells.of(
        labels,
        image_id=truth.cells.frame["image_id"].to_list(),
        boxes=truth.cells.boxes(),
        label=label,
        probabilities=probabilities,
        score=score,
        source="bundle:test@0",
        **more,
    )
