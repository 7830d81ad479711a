"""What is in a dataset: every table against figures counted by hand, a slow twin, or published ones."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from PIL import Image

from cytolens import formats
from cytolens.cells import Cells
from cytolens.dataset import Dataset, merge
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.prepare.stain import measure
from cytolens.prepare.stats import (
    ALL,
    NO_LABEL,
    QUANTILE_COLUMNS,
    QUANTILES,
    StatsSettings,
    box_sizes,
    boxes_per_image,
    co_occurrence,
    colours,
    labels,
    labels_by_subset,
    labels_per_image,
    stats,
    subsets,
    usable,
    whole_images,
)
from tests.prepare.faulty import dataset_of, faulty_datasets
from tests.strategies import datasets

_LABELS = LabelSet.of(["neutrophil", "band neutrophil", "monocyte", "platelet", "basophil"])
_SIZE = {"width_px": 100, "height_px": 80}


@pytest.fixture
def small() -> Dataset:
    """Five images of two scanners; a cell without a label, one ignored, one finding that is not counted."""
    images = [
        {"image_id": "a", "split": "train", "scanner": "X", "group": "p1", "um_per_px": 0.5, **_SIZE},
        {"image_id": "b", "split": "train", "scanner": "X", "group": "p1", "um_per_px": 0.5, **_SIZE},
        {"image_id": "c", "split": "train", "scanner": "Y", "group": "p2", **_SIZE},
        {"image_id": "d", "split": "val", "scanner": "Y", "group": None, **_SIZE},
        {"image_id": "e", "split": None, "scanner": None, "complete_for": [], **_SIZE},
    ]
    rows = [
        ("a", (10, 10, 30, 50), "band neutrophil"),
        ("a", (10, 10, 50, 20), "band neutrophil"),
        ("a", (0, 0, 10, 10), "monocyte"),
        ("b", (0, 0, 20, 10), "band neutrophil"),
        ("b", (0, 0, 90, 70), "monocyte"),
        ("c", (0, 0, 100, 80), "monocyte"),
        ("c", (5, 5, 9, 9), None),
        ("d", (0, 0, 8, 8), "monocyte"),
        ("d", (0, 0, 7, 7), "platelet"),
    ]
    return dataset_of(
        rows,
        images,
        _LABELS,
        ignore=[False, False, False, False, True, False, False, False, False],
        counted=[True] * 8 + [False],
    )


def dicts(table: pl.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    return table.select(columns).rows()


def test_labels_are_counted_by_hand(small: Dataset) -> None:
    assert dicts(labels(small), "label", "cells", "ignored", "images", "groups") == [
        ("band neutrophil", 3, 0, 2, 1),
        ("monocyte", 3, 1, 3, 2),
        (NO_LABEL, 1, 0, 1, 1),
    ]
    assert labels(small)["share"].to_list() == pytest.approx([3 / 7, 3 / 7, 1 / 7])


def test_the_whole_is_counted(small: Dataset) -> None:
    found = stats(small)
    assert found.summary == {
        "images": 5,
        "images_without_cells": 1,
        "images_not_annotated": 1,
        "images_without_file": 5,
        "groups": 2,
        "images_without_group": 2,
        "cells": 8,
        "ignored": 1,
        "not_counted": 1,
        "without_label": 1,
        "whole_image_boxes": 1,
        "labels": 2,
        # "neutrophil" is not unused: band neutrophils are neutrophils.
        "labels_that_never_occur": ["platelet", "basophil"],
    }
    assert any("1 cells are ignored" in note for note in found.notes)
    assert any("No image has a file" in note for note in found.notes)


def test_subsets_are_counted_in_the_order_of_showing(small: Dataset) -> None:
    table = subsets(usable(small))
    assert dicts(table, "by", "value", "images", "images_without_cells", "cells", "labels", "groups") == [
        ("split", "train", 3, 0, 6, 2, 2),
        ("split", "val", 1, 0, 1, 1, 0),
        ("split", "(not given)", 1, 1, 0, 0, 0),
        ("scanner", "X", 2, 0, 4, 2, 1),
        ("scanner", "Y", 2, 0, 3, 1, 1),
        ("scanner", "(not given)", 1, 1, 0, 0, 0),
    ]
    by_scanner = labels_by_subset(usable(small)).filter(pl.col("by") == "scanner")
    assert dicts(by_scanner, "value", "label", "cells", "images") == [
        ("X", "band neutrophil", 3, 2),
        ("X", "monocyte", 1, 1),
        ("Y", "monocyte", 2, 2),
        ("Y", NO_LABEL, 1, 1),
    ]
    values, rows = stats(small).spread("scanner")
    assert values == ["X", "Y", "(not given)"]
    assert rows == [["band neutrophil", 3, 0, 0], ["monocyte", 1, 2, 0], [NO_LABEL, 0, 1, 0]]


def test_a_label_of_one_domain_is_a_warning(small: Dataset) -> None:
    first, second = stats(small).warnings
    assert first.startswith('only in scanner "X", while there are 3: band neutrophil.')
    assert second == 'split "val" has no cells of: band neutrophil.'
    one = Dataset(small.images.with_columns(scanner="X", split="train"), small.cells)
    assert stats(one).warnings == ()


def test_folds_stand_in_the_order_of_their_numbers() -> None:
    images = [{"image_id": f"{n:02d}", "fold": n % 11, **_SIZE} for n in range(22)]
    table = subsets(Dataset(Images.of(images), dataset_of([]).cells))
    assert table["value"].to_list() == [str(fold) for fold in range(11)]
    assert table["images"].to_list() == [2] * 11


def test_after_a_merge_the_dataset_is_a_domain() -> None:
    first, second = (dataset_of([(f"deep/{label}", (0, 0, 9, 9), label)]) for label in ("RBC", "WBC"))
    both = merge([Dataset(d.images, d.cells, n) for d, n in ((first, "a"), (second, "a-b"))], "both", first.labels)
    assert dicts(subsets(both), "by", "value", "cells") == [("dataset", "a", 1), ("dataset", "a-b", 1)]
    assert [text.partition(".")[0] for text in stats(both).warnings] == [
        'only in dataset "a", while there are 2: RBC',
        'only in dataset "a-b", while there are 2: WBC',
    ]
    assert not len(subsets(first))  # a folder in an image's name is no dataset


def test_cells_and_labels_per_image(small: Dataset) -> None:
    assert boxes_per_image(usable(small)).rows() == [(0, 1), (1, 2), (2, 1), (3, 1)]
    assert labels_per_image(usable(small)).rows() == [(0, 1), (1, 3), (2, 1)]


def test_sizes_leave_out_boxes_that_are_the_whole_image(small: Dataset) -> None:
    own = usable(small)
    assert np.flatnonzero(whole_images(own)).tolist() == [4]
    table = box_sizes(own)
    pixels = table.filter((pl.col("quantity") == "width") & (pl.col("unit") == "px"))
    assert dicts(pixels, "label", "cells", "q0", "q50", "q100") == [
        (ALL, 6, 4.0, 15.0, 40.0),
        ("band neutrophil", 3, 20.0, 20.0, 40.0),
        ("monocyte", 2, 8.0, 9.0, 10.0),
        (NO_LABEL, 1, 4.0, 4.0, 4.0),
    ]
    scaled = table.filter((pl.col("quantity") == "area") & (pl.col("unit") == "µm²"))
    assert dicts(scaled, "label", "cells", "q100") == [
        (ALL, 4, 200.0),
        ("band neutrophil", 3, 200.0),
        ("monocyte", 1, 25.0),
    ]
    share = table.filter((pl.col("quantity") == "share of image") & (pl.col("label") == ALL))
    assert share["q100"].to_list() == [pytest.approx(100 * 800 / 8000)]


@settings(max_examples=40)
@given(faulty_datasets())
def test_nothing_is_lost_whatever_the_boxes_are(dataset: Dataset) -> None:
    found, own = stats(dataset), usable(dataset)
    table, frame = found.tables, own.cells.frame
    assert table["labels"]["cells"].sum() == len(frame)
    assert sum(cells + ignored for cells, ignored in dicts(table["labels"], "cells", "ignored")) == len(dataset.cells)
    counts = Counter(frame["image_id"])
    expected = Counter(counts[image_id] for image_id in dataset.images.ids)
    assert dict(table["boxes_per_image"].rows()) == expected
    together: Counter[frozenset[str]] = Counter()
    for cells in frame.partition_by("image_id"):
        together.update(map(frozenset, combinations(sorted(set(cells["label"].drop_nulls())), 2)))
    pairs = {frozenset((a, b)): n for a, b, n in co_occurrence(own).rows()}
    assert pairs == together
    width = (frame["x_max"].cast(pl.Float64) - frame["x_min"]).to_numpy()
    finite = frame.select(pl.all_horizontal(pl.col("x_min", "y_min", "x_max", "y_max").is_finite())).to_series()
    width = width[finite.to_numpy() & ~whole_images(own)]
    rows = table["box_sizes"].filter((pl.col("label") == ALL) & (pl.col("quantity") == "width"))
    if len(width):
        assert rows.row(0)[4:] == pytest.approx(np.quantile(width, QUANTILES).tolist(), rel=1e-6, abs=1e-4)
    else:
        assert not len(rows)


def backwards(images: Images) -> Images:
    return Images(images.frame.with_row_index().sort("index", descending=True).drop("index"))


@settings(max_examples=30)
@given(datasets())
def test_any_dataset_becomes_plain_json(dataset: Dataset) -> None:
    found = stats(dataset)
    assert json.loads(json.dumps(found.to_json_dict(), allow_nan=False))["images"] == len(dataset.images)
    turned = Dataset(backwards(dataset.images), Cells(dataset.cells.frame[::-1], dataset.labels), dataset.name)
    assert stats(turned).to_json_dict() == found.to_json_dict()


def test_tables_are_written_as_csv(small: Dataset, tmp_path: Path) -> None:
    found = stats(small)
    files = found.write_csv(tmp_path)
    assert {file.name for file in files} == {"summary.csv", *(f"{name}.csv" for name in found.tables)}
    sizes = pl.read_csv(tmp_path / "box_sizes.csv")
    assert sizes.columns == ["label", "quantity", "unit", "cells", *QUANTILE_COLUMNS]
    summary = dict(pl.read_csv(tmp_path / "summary.csv").rows())
    assert summary["cells"] == "8"
    assert summary["labels_that_never_occur"] == "platelet; basophil"


# -- colours --------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Dataset, dict[str, np.ndarray]]:
    """Four pictures of noise of two stains, one damaged file, one that is gone and one without a path."""
    generator = np.random.default_rng(5)
    rows, pixels = [], {}
    for number in range(4):
        name = f"{number}.png"
        pixels[name] = generator.integers(40 * number, 40 * number + 100, (30, 40, 3), np.uint8)
        Image.fromarray(pixels[name]).save(tmp_path / name)
        rows.append({"image_id": name, "path": str(tmp_path / name), "stain": "AB"[number % 2]})
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    rows += [{"image_id": n, "path": str(tmp_path / n), "stain": "B"} for n in ("damaged.png", "gone.png")]
    rows.append({"image_id": "nowhere", "stain": "A"})
    return Dataset(Images.of(rows), dataset_of([]).cells), pixels


def test_colours_are_those_of_all_pixels(pictures: tuple[Dataset, dict[str, np.ndarray]]) -> None:
    dataset, pixels = pictures
    told: list[tuple[int, int]] = []
    table = colours(dataset, StatsSettings(), lambda done, total: told.append((done, total)))
    assert told == [(n, 6) for n in range(1, 7)]  # each file once, though it counts for its stain and for all
    assert dicts(table, "by", "value", "images", "without_file", "looked_at", "unreadable") == [
        ("all", ALL, 7, 1, 4, 2),
        ("stain", "A", 3, 1, 2, 0),
        ("stain", "B", 4, 0, 2, 2),
    ]
    for value, names in ((ALL, "0123"), ("A", "02"), ("B", "13")):
        own = np.concatenate([pixels[f"{n}.png"].reshape(-1, 3) for n in names]).astype(float)
        row = table.filter(pl.col("value") == value).row(0, named=True)
        mean = [row[f"{channel}_mean"] for channel in ("red", "green", "blue")]
        deviation = [row[f"{channel}_std"] for channel in ("red", "green", "blue")]
        assert mean == pytest.approx(own.mean(axis=0).tolist())
        assert deviation == pytest.approx(own.std(axis=0).tolist())
        fields = [measure(pixels[f"{n}.png"]) for n in names]
        assert row["background_brightness"] == pytest.approx(np.mean([f.background.mean() for f in fields]))
        assert row["stain_strength"] == pytest.approx(np.mean([f.density for f in fields]))
        assert row["stain_spread"] == pytest.approx(np.std([f.density for f in fields]))


def test_a_sample_is_drawn_by_its_seed(pictures: tuple[Dataset, dict[str, np.ndarray]]) -> None:
    dataset, pixels = pictures
    turned = Dataset(backwards(dataset.images), dataset.cells)
    means = {name: float(one[..., 0].mean()) for name, one in pixels.items()}
    drawn = set()
    for seed in range(8):
        table = colours(dataset, StatsSettings(sample=1, seed=seed))
        assert table.equals(colours(turned, StatsSettings(sample=1, seed=seed)))
        one = table.filter(pl.col("value") == "A").row(0, named=True)
        assert one["looked_at"] == 1
        drawn |= {name for name, mean in means.items() if mean == pytest.approx(one["red_mean"])}
    assert drawn == {"0.png", "2.png"}
    none = colours(dataset, StatsSettings(sample=0))
    assert none["looked_at"].to_list() == [0, 0, 0]
    assert none["red_mean"].null_count() == 3


def test_what_could_not_be_looked_at_is_said(pictures: tuple[Dataset, dict[str, np.ndarray]]) -> None:
    notes = stats(pictures[0]).notes
    assert any(note.startswith("2 images of the sample cannot be read") for note in notes)
    assert any(note.startswith("1 images have no file") for note in notes)
    assert any("not measured" in note for note in stats(pictures[0], StatsSettings(sample=0)).notes)


# -- real data ------------------------------------------------------------------------------------


@pytest.mark.data
def test_the_published_figures_of_cytologia(data_root: Path) -> None:
    """Source: the data facts of the challenge's training table, counted independently."""
    options = formats.ReadOptions(allow_missing_images=True)
    dataset = formats.read(data_root / "cytologia" / "train.csv", "csv_boxes", options).dataset
    table = stats(dataset).tables
    per_image = {1: 45283, 2: 2499, 3: 394, 4: 98, 5: 58, 6: 32, 7: 27, 8: 17, 9: 5, 10: 3, 11: 1}
    assert dict(table["boxes_per_image"].rows()) == per_image
    assert table["labels_per_image"].rows() == [(1, 47313), (2, 1080), (3, 24)]
    whole = table["box_sizes"].filter(pl.col("label") == ALL).select("quantity", *QUANTILE_COLUMNS).rows()
    assert whole[0] == ("width", 12, 63, 117, 142, 163, 303, 584)
    assert whole[1] == ("height", 7, 62, 121, 146, 167, 320, 555)
    first, second, images = table["co_occurrence"].row(0)
    assert ({first, second}, images) == ({"LLC", "Lysee"}, 166)
    assert dict(table["labels"].select("label", "cells").rows())["PNN"] == 6827
    assert len(table["labels"]) == 23
