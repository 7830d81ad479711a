"""What is wrong with boxes: against a slow twin, by planted faults, and on real data."""

from __future__ import annotations

import csv
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from cytolens import formats, masks
from cytolens.cells import BOX_COLUMNS
from cytolens.dataset import Dataset
from cytolens.prepare.box_faults import box_faults
from cytolens.prepare.check import CheckSettings, Finding, check, findings
from tests.prepare.box_twin import Verdicts, has_area, is_beyond, judged
from tests.prepare.faulty import dataset_of, faulty_datasets

TABLES = CheckSettings(images=False)


def of_kind(dataset: Dataset, kind: str, settings: CheckSettings = TABLES) -> list[Finding]:
    return [one for one in findings(dataset, settings) if one.kind == kind]


def twin(dataset: Dataset) -> Verdicts:
    frame = dataset.cells.frame
    sizes = {i: (w, h) for i, w, h in dataset.images.frame.select("image_id", "width_px", "height_px").iter_rows()}
    attributes = [attribute.column for attribute in dataset.labels.attributes]
    return judged(
        frame.select(BOX_COLUMNS).rows(),
        [sizes[image_id] for image_id in frame["image_id"]],
        frame.select("image_id", "ignore", "counted").rows(),
        frame.select("label", *attributes).rows(),
        frame["score"].is_not_null().to_list(),
    )


# -- against the twin -------------------------------------------------------------------------------


@settings(max_examples=60)
@given(faulty_datasets())
def test_faults_are_those_of_the_slow_twin(dataset: Dataset) -> None:
    faults, slow = box_faults(dataset), twin(dataset)
    assert set(np.flatnonzero(~faults.numbers)) == slow.not_a_number
    assert set(np.flatnonzero(faults.numbers & ~faults.has_area)) == slow.no_area
    assert set(np.flatnonzero(faults.outside & faults.has_area)) == slow.outside
    assert set(np.flatnonzero(faults.flat)) == slow.dropped
    repeats = {int(row): int(faults.repeats[row]) for row in np.flatnonzero(faults.repeats >= 0)}
    assert repeats == slow.exact | slow.near
    assert {row for row in repeats if faults.exact[row]} == set(slow.exact)
    assert {tuple(pair) for pair in faults.disputed.tolist()} == slow.disputed


@settings(max_examples=60)
@given(faulty_datasets())
def test_each_fault_is_told_once(dataset: Dataset) -> None:
    slow = twin(dataset)
    told = check(dataset, TABLES).counts()
    assert told["box-outside-image"] == len(slow.outside)
    assert told["box-no-area"] == len(slow.no_area)
    assert told["box-not-a-number"] == len(slow.not_a_number)
    assert told["box-repeated"] == len(slow.exact)
    assert told["box-nearly-repeated"] == len(slow.near)
    assert told["box-several-labels"] == len(slow.disputed)


# -- planted ----------------------------------------------------------------------------------------


def test_a_box_outside_is_told_with_its_values_and_what_to_do() -> None:
    dataset = dataset_of([("a.png", (-4, 10, 20, 30), "RBC"), ("a.png", (90, 60, 112.5, 79), "WBC")])
    far, near = sorted(of_kind(dataset, "box-outside-image"), key=lambda one: -one.weight)
    ids = dataset.cells.frame["cell_id"]
    assert far.image_id == near.image_id == "a.png"
    assert (far.cell_ids, near.cell_ids) == ((ids[1],), (ids[0],))
    assert (far.weight, near.weight) == (12.5, 4)
    assert far.problem.where == f"a.png, cell {ids[1]}"
    assert far.problem.what == "the box (90, 60, 112.5, 79) reaches 12.5 px outside of the 100 × 80 px image."
    assert "cytolens repair" in far.problem.fix
    assert far.problem.severity == "warning"


def test_a_box_wholly_outside_is_one_fault() -> None:
    kinds = check(dataset_of([("a.png", (120, 10, 140, 30), "RBC")]), TABLES)
    assert [one.kind for one in kinds if one.kind.startswith("box")] == ["box-outside-image"]
    assert "wholly outside" in kinds.of("box-outside-image")[0].what


def test_without_a_size_only_what_lies_before_the_origin_is_outside() -> None:
    rows = [("a.png", (-1, 0, 9, 9), "RBC"), ("a.png", (900, 900, 990, 990), "RBC")]
    dataset = dataset_of(rows, [{"image_id": "a.png"}])
    assert [one.cell_ids[0] for one in of_kind(dataset, "box-outside-image")] == [dataset.cells.frame["cell_id"][0]]


@pytest.mark.parametrize(("x_max", "outside"), [(100.00009, False), (100.0005, True)])
def test_the_rounding_of_fractions_is_not_outside(x_max: float, outside: bool) -> None:
    dataset = dataset_of([("a.png", (60, 10, x_max, 30), "RBC")])
    assert bool(of_kind(dataset, "box-outside-image")) is outside


def test_boxes_inside_out_and_of_no_width_have_no_area() -> None:
    rows = [("a.png", (30, 10, 20, 40), "RBC"), ("a.png", (50, 10, 50, 40), "RBC")]
    first, second = of_kind(dataset_of(rows), "box-no-area")
    assert "corners may be swapped" in first.problem.what
    assert "swapped" not in second.problem.what


def test_a_box_that_is_not_a_number_is_an_error() -> None:
    (one,) = of_kind(dataset_of([("a.png", (float("nan"), 1, 2, 3), "RBC")]), "box-not-a-number")
    assert one.problem.severity == "error"


def test_three_equal_boxes_are_two_too_many() -> None:
    box = (10.0, 10.0, 30.0, 30.0)
    dataset = dataset_of([("a.png", box, "RBC")] * 3 + [("b.png", box, "RBC")])
    ids = dataset.cells.frame["cell_id"].to_list()
    assert [one.cell_ids for one in of_kind(dataset, "box-repeated")] == [(ids[1], ids[0]), (ids[2], ids[0])]


def test_how_near_is_a_setting() -> None:
    rows = [("a.png", (0.0, 0.0, 10.0, 10.0), "RBC"), ("a.png", (0.0, 0.0, 10.0, 8.0), "RBC")]  # IoU .8
    assert not of_kind(dataset_of(rows), "box-nearly-repeated")
    settings = CheckSettings(images=False, same_iou=0.8)
    (one,) = of_kind(dataset_of(rows), "box-nearly-repeated", settings)
    assert one.weight == pytest.approx(0.8)


def test_one_box_of_two_labels_is_left_to_a_person() -> None:
    dataset = dataset_of([("a.png", (10, 10, 40, 40), "RBC"), ("a.png", (10, 10, 41, 41), "WBC")])
    (one,) = of_kind(dataset, "box-several-labels")
    assert '"RBC" and "WBC"' in one.problem.what
    assert set(one.cell_ids) == set(dataset.cells.frame["cell_id"])
    assert not of_kind(dataset, "box-nearly-repeated")


def test_one_label_described_in_two_ways_is_left_to_a_person_too() -> None:
    rows = [("a.png", (10.0, 10.0, 40.0, 40.0), "RBC")] * 2
    (one,) = of_kind(dataset_of(rows, attributes={"look.size": ["small", "big"]}), "box-several-labels")
    assert "described in two ways" in one.problem.what
    assert len(of_kind(dataset_of(rows, attributes={"look.size": ["big", "big"]}), "box-repeated")) == 1


def test_ignored_regions_do_not_repeat_cells() -> None:
    rows = [("a.png", (10.0, 10.0, 40.0, 40.0), "RBC")] * 2
    dataset = dataset_of(rows, ignore=[False, True])
    assert not of_kind(dataset, "box-repeated")


def test_equal_boxes_of_other_masks_are_two_cells() -> None:
    rows = [("a.png", (10.0, 10.0, 40.0, 40.0), "RBC")] * 3
    upper, lower = np.zeros((80, 100), bool), np.zeros((80, 100), bool)
    upper[10:25, 10:40] = lower[25:40, 10:40] = True
    codes = [masks.encode(upper), masks.encode(lower), None]
    dataset = dataset_of(rows, mask=codes)
    ids = dataset.cells.frame["cell_id"].to_list()
    (one,) = of_kind(dataset, "box-repeated")
    assert one.cell_ids == (ids[2], ids[0])  # the cell without a mask knows least
    almost = upper.copy()
    almost[10, 10] = False
    same = dataset_of(rows[:2], mask=[masks.encode(upper), masks.encode(almost)])
    assert len(of_kind(same, "box-repeated")) == 1


def test_a_mask_of_another_frame_is_no_proof_of_sameness() -> None:
    rows = [("a.png", (10.0, 10.0, 40.0, 40.0), "RBC")] * 2
    codes = [masks.encode(np.ones((80, 100), bool)), masks.encode(np.ones((5, 5), bool))]
    assert not of_kind(dataset_of(rows, mask=codes), "box-repeated")


def test_boxes_of_one_pixel_are_told() -> None:
    dataset = dataset_of([("a.png", (10, 10, 11, 40), "RBC"), ("a.png", (50, 10, 52, 40), "RBC")])
    (one,) = of_kind(dataset, "box-thin")
    assert "1 × 30 px" in one.problem.what
    assert len(of_kind(dataset, "box-thin", CheckSettings(images=False, thin_px=2))) == 2


def test_crowded_images_are_searched_in_time() -> None:
    generator = np.random.default_rng(5)
    low = generator.uniform(0, 20_000, (40_000, 2))
    boxes = np.concatenate([low, low + generator.uniform(20, 30, (40_000, 2))], axis=1).astype(np.float32)
    boxes[7_000:7_100] = boxes[:100] + np.float32(0.5)
    image = {"image_id": "slide", "width_px": 21_000, "height_px": 21_000}
    dataset = dataset_of([("slide", tuple(row), "RBC") for row in boxes.tolist()], [image])
    start = time.perf_counter()
    faults = box_faults(dataset)
    assert time.perf_counter() - start < 10
    assert set(np.flatnonzero(faults.repeats >= 0)) >= set(range(7_000, 7_100))


# -- real data --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cytologia(data_root: Path) -> Dataset:
    options = formats.ReadOptions(allow_missing_images=True)
    return formats.read(data_root / "cytologia" / "train.csv", "csv_boxes", options).dataset


@pytest.mark.data
def test_the_boxes_of_cytologia_that_lie_outside(cytologia: Dataset, data_root: Path) -> None:
    with (data_root / "cytologia" / "train.csv").open(encoding="utf-8", newline="") as stream:
        rows = [tuple(float(row[name]) for name in ("x1", "y1", "x2", "y2")) for row in csv.DictReader(stream)]
    slow = Counter(is_beyond(row, (np.inf, np.inf)) for row in rows if has_area(row))[True]
    start = time.perf_counter()
    problems = check(cytologia, TABLES)
    took_s = time.perf_counter() - start
    assert len(problems.of("box-outside-image")) == slow == 356  # rows with a negative coordinate
    assert problems.of("box-no-area") == []
    assert len(cytologia.cells) == 52_748
    assert took_s < 15  # about a second where nothing else runs


@pytest.mark.data
def test_the_repeated_boxes_of_txl_pbc(data_root: Path) -> None:
    dataset = formats.read(data_root / "txl_pbc", "yolo", formats.ReadOptions()).dataset
    of_image = dict(dataset.images.frame.select("image_id", "split").iter_rows())
    repeated = of_kind(dataset, "box-repeated")
    assert Counter(of_image[one.image_id] for one in repeated) == {"train": 38}
    lines = Counter[str]()
    for file in sorted((data_root / "txl_pbc" / "labels").rglob("*.txt")):
        lines.update({f"{file.name} {line}": n for line, n in Counter(file.read_text().split("\n")).items() if line})
    assert sum(count - 1 for count in lines.values()) == 38


@pytest.mark.data
def test_the_boxes_of_no_size_in_bccd(data_root: Path) -> None:
    dataset = formats.read(data_root / "bccd", "voc", formats.ReadOptions()).dataset
    told = check(dataset, TABLES)
    assert sorted(Path(one.where.split(",")[0]).stem for one in told.of("box-no-area")) == [
        "BloodImage_00338",
        "BloodImage_00343",
    ]
    assert told.of("box-outside-image") == []
    odd = [one.where for one in told.of("box-odd-size")]
    assert any("BloodImage_00133" in where for where in odd)  # a white cell that is boxed as platelets
