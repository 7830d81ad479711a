"""Repair: what it mends, that it says so, that it does so once and never in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from polars.testing import assert_frame_equal

from cytolens import formats, masks
from cytolens.cells import BOX_COLUMNS
from cytolens.dataset import Dataset
from cytolens.prepare.check import MENDED, CheckSettings, check
from cytolens.prepare.repair import CHANGES, RepairSettings, repair, write_changes
from tests.prepare.faulty import dataset_of, faulty_datasets
from tests.prepare.test_check_boxes import twin

TABLES = CheckSettings(images=False)
_BOX = (10.0, 10.0, 40.0, 40.0)


# -- properties -------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(faulty_datasets())
def test_a_second_repair_changes_nothing(dataset: Dataset) -> None:
    once, changes = repair(dataset)
    twice, none = repair(once)
    assert len(none) == 0
    assert dict(none.schema) == dict(changes.schema) == CHANGES
    assert twice.fingerprint == once.fingerprint
    assert_frame_equal(twice.cells.frame, once.cells.frame)


@settings(max_examples=50)
@given(faulty_datasets(), st.fixed_dictionaries({name: st.booleans() for name in ("clip", "drop", "merge", "sizes")}))
def test_also_where_only_some_of_it_is_wanted(dataset: Dataset, wanted: dict[str, bool]) -> None:
    some = RepairSettings(**wanted)
    once, changes = repair(dataset, some)
    assert len(repair(once, some)[1]) == 0
    allowed = {"box-outside-image", "box-rounding"} if wanted["clip"] else set()
    allowed |= {"box-outside-image", "box-no-area", "box-not-a-number"} if wanted["drop"] else set()
    allowed |= {"box-repeated", "box-nearly-repeated"} if wanted["merge"] else set()
    assert set(changes["kind"]) <= allowed


@settings(max_examples=50)
@given(faulty_datasets())
def test_nothing_that_repair_mends_is_left(dataset: Dataset) -> None:
    repaired, _ = repair(dataset)
    assert not set(check(repaired, TABLES).counts()) & MENDED
    size = {i: (w or np.inf, h) for i, w, h in repaired.images.frame.select(_SIZE).iter_rows()}
    for image_id, *box in repaired.cells.frame.select("image_id", *BOX_COLUMNS).iter_rows():
        width, height = size[image_id]
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height


_SIZE = ("image_id", "width_px", "height_px")


@settings(max_examples=50)
@given(faulty_datasets())
def test_every_change_is_recorded_and_nothing_else_happens(dataset: Dataset) -> None:
    before = dataset.cells.frame.clone()
    repaired, changes = repair(dataset)
    assert_frame_equal(dataset.cells.frame, before)  # the argument is not touched
    slow = twin(dataset)
    ids = before["cell_id"].to_list()
    gone = {ids[row] for row in slow.dropped | set(slow.exact) | set(slow.near)}
    dropped = changes.filter(pl.col("after").is_null())
    assert sorted(dropped["cell_id"]) == sorted(gone)
    assert set(repaired.cells.frame["cell_id"]) == set(ids) - gone
    moved = dict(changes.filter(field="box").select("cell_id", "after").iter_rows())
    old = dict(changes.filter(field="box").select("cell_id", "before").iter_rows())
    for was in before.filter(~pl.col("cell_id").is_in(list(gone))).iter_rows(named=True):
        now = repaired.cells.frame.filter(cell_id=was["cell_id"]).row(0, named=True)
        box, earlier = [now[name] for name in BOX_COLUMNS], [was[name] for name in BOX_COLUMNS]
        assert (box != earlier) == (was["cell_id"] in moved)
        if box != earlier:  # the texts give the very numbers back
            assert np.float32(moved[was["cell_id"]].split()).tolist() == box
            assert np.float32(old[was["cell_id"]].split()).tolist() == earlier
        assert {k: v for k, v in was.items() if k not in BOX_COLUMNS} == {
            k: v for k, v in now.items() if k not in BOX_COLUMNS
        }
    step = repaired.provenance[-1]
    assert step["step"] == "repair"
    assert step["of"] == dataset.fingerprint
    assert sum(step["changes"].values()) == len(changes)
    assert repaired.provenance[:-1] == dataset.provenance


# -- one by one -------------------------------------------------------------------------------------


def changes_of(dataset: Dataset) -> list[dict[str, Any]]:
    return repair(dataset)[1].to_dicts()


def test_a_clipped_box_says_what_it_was() -> None:
    dataset = dataset_of([("a.png", (-4, 10.5, 20, 30), "RBC")])
    (change,) = changes_of(dataset)
    assert change == {
        "kind": "box-outside-image",
        "image_id": "a.png",
        "cell_id": dataset.cells.frame["cell_id"][0],
        "field": "box",
        "before": "-4.0 10.5 20.0 30.0",
        "after": "0.0 10.5 20.0 30.0",
        "why": "clipped by 4 px",
    }


def test_rounding_is_clipped_under_its_own_name() -> None:
    (change,) = changes_of(dataset_of([("a.png", (60, 10, 100.00005, 30), "RBC")]))
    assert change["kind"] == "box-rounding"


def test_the_cell_that_knows_more_stays() -> None:
    code = masks.encode(np.pad(np.ones((30, 30), bool), ((10, 40), (10, 60))))
    dataset = dataset_of([("a.png", _BOX, "RBC")] * 3, mask=[None, None, code])
    dataset = Dataset(dataset.images, dataset.cells.with_columns(score=[0.5, None, None]))
    repaired, changes = repair(dataset)
    ids = dataset.cells.frame["cell_id"].to_list()
    assert repaired.cells.frame["cell_id"].to_list() == [ids[2]]
    assert changes["kind"].to_list() == ["box-repeated"] * 2
    without = dataset.cells.with_masks([None] * 3)
    repaired, changes = repair(Dataset(dataset.images, without))
    assert repaired.cells.frame["cell_id"].to_list() == [ids[1]]  # a person, and the first
    assert changes["why"].to_list() == [f"repeats the cell {ids[1]}"] * 2


def test_two_labels_on_one_box_are_nobodys_to_choose() -> None:
    dataset = dataset_of([("a.png", _BOX, "RBC"), ("a.png", _BOX, "WBC")])
    assert changes_of(dataset) == []


def test_a_cell_without_area_takes_the_box_of_its_mask() -> None:
    code = masks.encode(np.pad(np.ones((20, 30), bool), ((10, 50), (10, 60))))
    nowhere = masks.encode(np.zeros((80, 100), bool))
    dataset = dataset_of([("a.png", (0, 0, 0, 0), "RBC"), ("a.png", (0, 0, 0, 0), "WBC")], mask=[code, nowhere])
    repaired, changes = repair(dataset)
    assert repaired.cells.boxes().tolist() == [[10, 10, 40, 30]]
    assert changes["why"].to_list() == ["taken from the mask", "the box has no area"]
    assert changes["kind"].to_list() == ["box-no-area"] * 2


# -- sizes ------------------------------------------------------------------------------------------


def with_file(
    folder: Path, table_wh: tuple[int | None, int | None], box: tuple[float, float, float, float], **row: Any
) -> Dataset:
    """A dataset of one image that is 100 × 80 px, whatever its table says."""
    path = folder / "a.png"
    Image.new("RGB", (100, 80), "white").save(path)
    image = {"image_id": "a.png", "path": str(path), "width_px": table_wh[0], "height_px": table_wh[1]}
    return dataset_of([("a.png", box, "RBC")], [image | row])


@pytest.mark.parametrize("table_wh", [(90, 80), (None, None), (200, 160)])
def test_a_wrong_size_becomes_that_of_the_file(tmp_path: Path, table_wh: tuple[int | None, int | None]) -> None:
    repaired, changes = repair(with_file(tmp_path, table_wh, (10, 10, 80, 40)))
    assert repaired.images.row("a.png")["width_px"] == 100
    assert repaired.images.row("a.png")["height_px"] == 80
    (change,) = changes.to_dicts()
    assert (change["kind"], change["cell_id"], change["after"]) == ("size-mismatch", None, "100 80")
    assert check(repaired).of("size-mismatch") == []


def test_boxes_are_clipped_to_the_size_of_the_file(tmp_path: Path) -> None:
    for table_wh in ((None, None), (90, 80)):
        repaired, changes = repair(with_file(tmp_path, table_wh, (10, 10, 120, 40)))
        assert repaired.cells.boxes().tolist() == [[10, 10, 100, 40]]
        assert changes["kind"].to_list() == ["size-mismatch", "box-outside-image"]


@pytest.mark.parametrize(
    ("table_wh", "box"), [((200, 160), (10.0, 10.0, 180.0, 40.0)), ((80, 100), (10.0, 10.0, 40.0, 40.0))]
)
def test_boxes_of_another_version_are_left_to_a_person(
    tmp_path: Path, table_wh: tuple[int, int], box: tuple[float, float, float, float]
) -> None:
    dataset = with_file(tmp_path, table_wh, box)
    repaired, changes = repair(dataset)
    assert len(changes) == 0
    assert repaired.images.row("a.png")["width_px"] == table_wh[0]
    assert [one.severity for one in check(repaired).of("size-other-version")] == ["error"]


def test_the_size_of_a_file_that_changed_is_not_taken(tmp_path: Path) -> None:
    dataset = with_file(tmp_path, (90, 80), (10, 10, 40, 40), sha256="0" * 64)
    repaired, changes = repair(dataset)
    assert len(changes) == 0
    (told,) = check(repaired).of("image-changed")
    assert "is now 100 × 80 px" in told.what
    assert check(repaired).of("size-mismatch") == []


def test_files_that_cannot_be_read_are_left(tmp_path: Path) -> None:
    dataset = with_file(tmp_path, (90, 80), (10, 10, 40, 40))
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert len(repair(dataset)[1]) == 0
    (tmp_path / "a.png").unlink()
    assert len(repair(dataset)[1]) == 0


def test_what_one_pass_brings_to_light_is_mended_too(tmp_path: Path) -> None:
    # The second box fits no 100 px image, but repeats the first, and without it the size can be corrected.
    path = tmp_path / "a.png"
    Image.new("RGB", (100, 80), "white").save(path)
    image = {"image_id": "a.png", "path": str(path), "width_px": 120, "height_px": 80}
    rows = [("a.png", (10.0, 10.0, 100.0, 40.0), "RBC"), ("a.png", (10.0, 10.0, 101.0, 40.0), "RBC")]
    repaired, changes = repair(dataset_of(rows, [image]))
    assert changes["kind"].to_list() == ["box-nearly-repeated", "size-mismatch"]
    assert len(repair(repaired)[1]) == 0


# -- on disk, and real data -------------------------------------------------------------------------


def test_changes_are_written_for_machines_and_people(tmp_path: Path) -> None:
    _, changes = repair(dataset_of([("a, b.png", (-4, 10, 20, 30), "RBC"), ("a, b.png", (5, 5, 5, 9), "RBC")]))
    write_changes(changes, tmp_path / "new")
    assert_frame_equal(pl.read_parquet(tmp_path / "new" / "changes.parquet"), changes)
    assert_frame_equal(pl.read_csv(tmp_path / "new" / "changes.csv", schema=CHANGES), changes)


@pytest.mark.data
def test_txl_pbc_is_mended(data_root: Path) -> None:
    dataset = formats.read(data_root / "txl_pbc", "yolo", formats.ReadOptions()).dataset
    repaired, changes = repair(dataset)
    assert changes.filter(kind="box-repeated").height == 38
    lost = changes.filter(pl.col("after").is_null()).height
    assert len(repaired.cells) == len(dataset.cells) - lost == 12_832 - 38 - 1
    assert not set(check(repaired, TABLES).counts()) & MENDED
    assert len(repair(repaired)[1]) == 0
