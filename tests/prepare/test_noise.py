"""Doubtful annotations: each kind of doubt is found where it was planted, ranked, explained and undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.edits import Edits
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.prepare.noise import Noise, NoiseSettings, cleaned, find_noise, label_quality
from cytolens.problems import DatasetError, LabelError, SettingError

_LABELS = LabelSet.of(["band neutrophil", "segmented neutrophil", "lymphocyte", "neutrophil"])
_LEAVES = _LABELS.leaves
_SURE = 0.97


def table(names: list[str | None], sure: float = _SURE) -> np.ndarray:
    """Probabilities that are sure of one leaf each; even ones where there is no name."""
    rows = np.full((len(names), len(_LEAVES)), (1 - sure) / (len(_LEAVES) - 1))
    for row, name in zip(rows, names, strict=True):
        row[_LEAVES.index(name) if name is not None else slice(None)] = sure if name else 1 / len(_LEAVES)
    return rows


def cells(rows: list[tuple[str, tuple[float, ...], str | None]], **more: Any) -> Cells:
    return Cells.of(
        _LABELS,
        image_id=[image for image, _, _ in rows],
        boxes=np.array([corners for _, corners, _ in rows], np.float32).reshape(-1, 4),
        label=[name for _, _, name in rows],
        **{"source": "test", **more},
    )


def dataset(truth: Cells, **image: Any) -> Dataset:
    ids = sorted({*truth.frame["image_id"].to_list(), "empty"})
    return Dataset(
        Images.of([{"image_id": i, "width_px": 200, "height_px": 100, "sha256": i, **image} for i in ids]), truth, "d"
    )


def found(
    rows: list[tuple[str, tuple[float, ...], str | None]], scores: list[float], named: list[str | None] | None = None
) -> Cells:
    shares = {} if named is None else {"probabilities": table(named)}
    return cells(rows, source="model", score=scores, counted=np.array(scores) >= 0.3, **shares)


A, B, C, D = (10, 10, 40, 40), (60, 10, 90, 40), (110, 10, 140, 40), (150, 10, 190, 50)


def test_each_planted_fault_is_found_and_nothing_else() -> None:
    truth = cells([("a", A, "lymphocyte"), ("a", B, "lymphocyte"), ("a", C, "lymphocyte"), ("b", A, "band neutrophil")])
    beside = (120, 20, 150, 50)  # C moved by a third: IoU 400 / 1400
    seen = found(
        [("a", A, None), ("a", beside, None), ("a", D, None), ("b", A, None)],
        [0.9, 0.8, 0.7, 0.95],
        ["lymphocyte", "lymphocyte", "lymphocyte", "segmented neutrophil"],
    )
    doubts = find_noise(dataset(truth), seen)
    assert doubts.annotations == 4
    ids = truth.frame["cell_id"].to_list()
    rows = {row["kind"]: row for row in doubts.frame.iter_rows(named=True)}
    assert doubts.counts == {"label": 1, "box": 1, "not found": 1, "not annotated": 1}
    assert (rows["label"]["cell_id"], rows["label"]["suggested"]) == (ids[3], "segmented neutrophil")
    assert rows["label"]["siblings"]
    assert rows["label"]["suspicion"] == pytest.approx(1 - 0.015, abs=1e-6)
    assert rows["box"]["cell_id"] == ids[2]
    assert rows["box"]["iou"] == pytest.approx(400 / 1400, abs=1e-6)
    assert rows["box"]["suspicion"] == pytest.approx(0.8 * (1 - 400 / 1400), abs=1e-6)
    assert (rows["not found"]["cell_id"], rows["not found"]["suspicion"]) == (ids[1], 1.0)
    assert rows["not annotated"]["cell_id"] == seen.frame["cell_id"][2]
    assert rows["not annotated"]["label"] is None


def test_a_weak_finding_makes_a_missed_annotation_less_doubtful() -> None:
    truth = cells([("a", A, "lymphocyte"), ("a", B, "lymphocyte")])
    doubts = find_noise(dataset(truth), found([("a", B, "lymphocyte")], [0.2])).of("not found")
    assert dict(doubts.select("cell_id", "suspicion").iter_rows()) == pytest.approx(
        dict(zip(truth.frame["cell_id"], [1.0, 0.8], strict=True))
    )
    assert doubts["rank"].to_list() == [1, 2]


def test_without_probabilities_the_score_of_another_name_counts() -> None:
    truth = cells([("a", A, "lymphocyte"), ("a", B, "neutrophil"), ("a", C, None)])
    seen = found([("a", A, "neutrophil"), ("a", B, "band neutrophil"), ("a", C, "lymphocyte")], [0.6, 0.9, 0.9])
    (row,) = find_noise(dataset(truth), seen).frame.iter_rows(named=True)  # a finer name and any name do not disagree
    assert (row["kind"], row["suggested"], row["suspicion"]) == ("label", "neutrophil", pytest.approx(0.6))


def test_a_parent_is_right_where_one_of_its_kinds_is() -> None:
    truth = cells([("a", A, "neutrophil"), ("a", B, "neutrophil")])
    seen = found([("a", A, None), ("a", B, None)], [0.9, 0.9], ["band neutrophil", "lymphocyte"])
    (row,) = find_noise(dataset(truth), seen).frame.iter_rows(named=True)
    assert (row["cell_id"], row["suggested"], row["siblings"]) == (truth.frame["cell_id"][1], "lymphocyte", False)
    assert row["suspicion"] == pytest.approx(1 - 0.03, abs=1e-6)  # what both of its kinds have together


def test_a_whole_image_label_has_no_box_to_doubt() -> None:
    truth = cells([("a", (0, 0, 200, 100), "lymphocyte")])
    seen = found([("a", (80, 30, 120, 70), None), ("a", A, None)], [0.9, 0.9], ["lymphocyte", "lymphocyte"])
    assert len(find_noise(dataset(truth), seen).frame) == 0


@pytest.mark.parametrize(("complete", "doubted"), [(None, 1), (["lymphocyte"], 1), (["neutrophil"], 0), ([], 0)])
def test_only_what_an_image_claims_to_be_complete_for_can_be_missing(complete: list[str] | None, doubted: int) -> None:
    seen = found([("empty", A, "lymphocyte")], [0.9])
    doubts = find_noise(dataset(cells([("a", A, "lymphocyte")]), complete_for=complete), seen)
    assert len(doubts.of("not annotated")) == doubted


def test_ignored_regions_and_unsure_findings_want_no_annotation() -> None:
    truth = cells([("a", (0, 0, 100, 100), "lymphocyte")], ignore=True)
    seen = found([("a", A, "lymphocyte"), ("a", D, "lymphocyte")], [0.9, 0.4])
    doubts = find_noise(dataset(truth), seen)
    assert (doubts.annotations, len(doubts.frame)) == (0, 0)
    assert find_noise(dataset(truth), seen, NoiseSettings(confident=0.4)).counts["not annotated"] == 1


def test_images_that_nobody_looked_at_are_not_judged() -> None:
    truth = cells([("a", A, "lymphocyte"), ("b", A, "lymphocyte")])
    seen = found([("b", A, "lymphocyte")], [0.9])
    assert len(find_noise(dataset(truth), seen).frame) == 0
    assert find_noise(dataset(truth), seen, looked_at=["a", "b"]).of("not found")["image_id"].to_list() == ["a"]
    with pytest.raises(DatasetError, match="other images"):
        find_noise(dataset(truth), found([("c", A, "lymphocyte")], [0.9]))


def test_findings_with_labels_that_the_dataset_lacks_are_refused() -> None:
    other = Cells.of(
        LabelSet.of(["platelet"]), image_id=["a"], boxes=np.array([A]), label=["platelet"], source="m", score=[0.9]
    )
    with pytest.raises(LabelError, match="platelet"):
        find_noise(dataset(cells([("a", A, "lymphocyte")])), other)


@given(st.integers(2, 6), st.integers(1, 40), st.integers(0, 10_000))
def test_label_quality_is_the_probability_of_the_given_label(classes: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.ones(classes), count)
    given_labels = np.arange(count) % classes
    quality = label_quality(shares, given_labels)
    for row, own, one in zip(shares, given_labels, quality, strict=True):
        assert one == pytest.approx(row[own], abs=1e-6)
    assert label_quality(np.ones((count, 1)), np.zeros(count, int)).tolist() == [1.0] * count


def test_the_share_that_may_be_doubted_is_counted_per_kind() -> None:
    truth = cells([("a", (10 * i, 0, 10 * i + 8, 8), "lymphocyte") for i in range(10)])
    doubts = find_noise(dataset(truth), found([("empty", A, "lymphocyte")], [0.9]), NoiseSettings(most=0.3), ["a"])
    assert doubts.counts == {"label": 0, "box": 0, "not found": 3, "not annotated": 0}


# -- what is made of the doubts ---------------------------------------------------------------------


@pytest.fixture
def planted() -> tuple[Dataset, Cells, Noise]:
    truth = cells([("a", A, "lymphocyte"), ("a", B, "lymphocyte"), ("b", C, "band neutrophil"), ("c", A, "lymphocyte")])
    seen = found(
        [("a", A, None), ("b", (120, 20, 150, 50), None), ("c", A, None), ("c", D, None)],
        [0.9] * 4,
        ["segmented neutrophil", "band neutrophil", "lymphocyte", "lymphocyte"],
    )
    data = dataset(truth)
    return data, seen, find_noise(data, seen)


def test_edits_carry_out_what_is_suggested(planted: tuple[Dataset, Cells, Noise], tmp_path: Path) -> None:
    data, _, doubts = planted
    edits = doubts.edits(data)
    edits.write_csv(tmp_path / "edits.csv")
    after = data.apply(Edits.read_csv(tmp_path / "edits.csv")).cells
    assert after.label_names() == ["segmented neutrophil", "lymphocyte", "band neutrophil", "lymphocyte"]
    assert after.frame["ignore"].to_list() == [False, True, False, False]
    assert after.boxes()[2].tolist() == [120, 20, 150, 50]
    assert set(edits.frame["who"]) == {"cytolens noise"}
    assert edits.frame.filter(pl.col("field") == "label")["old"].to_list() == ["lymphocyte"]


def test_doubts_are_ignored_or_left_out(planted: tuple[Dataset, Cells, Noise]) -> None:
    data, _, doubts = planted
    masked = cleaned(data, doubts)
    assert masked.cells.frame["ignore"].to_list() == [True, True, True, False, True]
    assert masked.cells.boxes()[4].tolist() == list(D)
    assert masked.provenance[-1]["doubts"] == {"box": 1, "label": 1, "not annotated": 1, "not found": 1}
    assert cleaned(data, doubts, "leave out").images.ids == ["empty"]
    assert cleaned(data, doubts, "leave out", ["box"]).images.ids == ["a", "c", "empty"]
    assert cleaned(data, doubts, kinds=["not found"]).cells.frame["ignore"].to_list() == [False, True, False, False]
    with pytest.raises(SettingError, match="ignore, leave out"):
        cleaned(data, doubts, "drop")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="not annotated"):
        cleaned(data, doubts, kinds=["nonsense"])


def test_the_command_writes_ranking_edits_page_and_datasets(
    planted: tuple[Dataset, Cells, Noise], tmp_path: Path
) -> None:
    from tests.apps.speaking import say

    data, seen, doubts = planted
    paths = []
    for image_id in data.images.ids:
        paths.append(str(tmp_path / f"{image_id}.png"))
        Image.fromarray(np.full((100, 200, 3), 200, np.uint8)).save(paths[-1])
    shown = Dataset(data.images.with_columns(path=paths), data.cells, "d")
    shown.write(tmp_path / "data")
    (tmp_path / "found").mkdir()
    seen.write_parquet(tmp_path / "found" / "cells.parquet")
    words = ["noise", str(tmp_path / "data"), "--found", str(tmp_path / "found"), "--out", str(tmp_path / "out")]
    answer = say(*words, "--ignore", str(tmp_path / "masked"), "--leave-out", str(tmp_path / "fewer"), "--json")
    assert answer.code == 1
    assert answer.json["doubts"] == doubts.counts
    assert len(pl.read_csv(tmp_path / "out" / "doubts.csv")) == len(doubts.frame)
    assert len(Edits.read_csv(tmp_path / "out" / "edits.csv")) == answer.json["edits"] == 6
    page = (tmp_path / "out" / "doubts.html").read_text()
    assert page.count("<img") == 4
    assert "lymphocyte → segmented neutrophil" in page
    assert Dataset.read(tmp_path / "masked").cells.frame["ignore"].sum() == 4
    assert Dataset.read(tmp_path / "fewer").images.ids == ["empty"]
