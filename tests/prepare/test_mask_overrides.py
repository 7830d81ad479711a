"""Corrected outlines: they replace all cells of the images that both datasets have, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cytolens import masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.prepare.mask_overrides import with_masks_of
from cytolens.problems import DatasetError
from tests.apps.speaking import say

LABELS = LabelSet.of(["neuron"])
SIDE_PX = 20


def outlined(name: str, corners: dict[str, list[tuple[int, int, int]]], split: str | None = None) -> Dataset:
    """Square cells (x, y, side in px) in grey images without files."""
    rows = [{"image_id": image_id, "width_px": SIDE_PX, "height_px": SIDE_PX, "split": split} for image_id in corners]
    ids, codes = [], []
    for image_id, squares in corners.items():
        for x, y, side in squares:
            mask = np.zeros((SIDE_PX, SIDE_PX), bool)
            mask[y : y + side, x : x + side] = True
            ids.append(image_id)
            codes.append(masks.encode(mask))
    boxes = np.array([masks.bounds(code, (SIDE_PX, SIDE_PX)) for code in codes], np.float32).reshape(-1, 4)
    cells = Cells.of(
        LABELS, image_id=ids, boxes=boxes, label=["neuron"] * len(ids), mask=codes, source=f"import:{name}"
    )
    return Dataset(Images.of(rows), cells, name, licence=f"terms of {name}")


FIRST = outlined("distributed", {"a": [(1, 1, 4), (9, 9, 4)], "b": [(2, 2, 3)], "c": [(3, 3, 3)]}, "train")
SECOND = outlined("corrected", {"a": [(1, 1, 6)], "b": [], "z": [(0, 0, 2)]})


def test_images_of_both_have_the_corrected_cells_and_the_others_their_own() -> None:
    changed, rows = with_masks_of(FIRST, SECOND)
    table = changed.cells.frame
    assert dict(table["image_id"].value_counts().iter_rows()) == {"a": 1, "c": 1}
    assert masks.area(table.filter(pl.col("image_id") == "a")["mask"][0]) == 36
    assert table.filter(pl.col("image_id") == "c").equals(FIRST.cells.of_image("c").frame)
    assert changed.images is FIRST.images
    assert rows.select("kind", "image_id", "before", "after").rows() == [
        ("masks-replaced", "a", "2 cells", "1 cells"),
        ("masks-replaced", "b", "1 cells", "0 cells"),
    ]
    assert changed.provenance[-1]["of"] == SECOND.fingerprint
    assert changed.licence == "terms of distributed; terms of corrected"
    assert len(FIRST.cells) == 4


def test_doing_it_twice_changes_nothing_more() -> None:
    once, _ = with_masks_of(FIRST, SECOND)
    twice, _ = with_masks_of(once, SECOND)
    assert twice.cells.frame.sort("cell_id").equals(once.cells.frame.sort("cell_id"))


def test_a_condition_keeps_the_other_parts_as_distributed() -> None:
    images = FIRST.images.with_columns(split=pl.Series(["test", "train", "train"]))
    parted = replace(FIRST, images=images)
    changed, rows = with_masks_of(parted, SECOND, "split = 'train'")
    assert rows["image_id"].to_list() == ["b"]
    assert len(changed.cells.of_image("a")) == 2


def test_what_corrects_nothing_is_an_error() -> None:
    with pytest.raises(DatasetError, match='no image of "distributed" is in "elsewhere"'):
        with_masks_of(FIRST, outlined("elsewhere", {"q": []}))
    bare = replace(SECOND, cells=SECOND.cells.with_masks([None] * len(SECOND.cells)))
    with pytest.raises(DatasetError, match='1 cells of "corrected" have no mask'):
        with_masks_of(FIRST, bare)
    larger = replace(SECOND, images=SECOND.images.with_columns(width_px=99))
    with pytest.raises(DatasetError, match=r"2 images have another size .* a, 20 × 20 px here and 99 × 20 px there"):
        with_masks_of(FIRST, larger)


def test_repair_takes_masks_of_another_dataset(tmp_path: Path) -> None:
    FIRST.write(tmp_path / "first")
    SECOND.write(tmp_path / "second")
    answer = say(
        "repair", tmp_path / "first", "--masks-of", tmp_path / "second", "--out", tmp_path / "out",
        "--set", "sizes=false", "--json",
    )  # fmt: skip
    assert answer.code == 0
    assert answer.json["changes"] == {"masks-replaced": 2}
    assert (answer.json["cells_before"], answer.json["cells"]) == (4, 2)
    assert pl.read_csv(tmp_path / "out" / "changes.csv")["why"].to_list() == ["corrected in corrected"] * 2
    assert [step["step"] for step in Dataset.read(tmp_path / "out").provenance] == ["masks-of", "repair"]
    lonely = say("repair", tmp_path / "first", "--masks-where", "split = 'train'", "--out", tmp_path / "out2")
    assert "give --masks-of, too" in lonely.complaint
