"""Splits: no group is parted, every label is balanced, given folds stay."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.prepare.split import folds, fractions, parts
from cytolens.problems import DatasetError, SettingError
from tests.apps.speaking import say

LABELS = LabelSet.of(["neutrophil", "lymphocyte", "monocyte"])


def dataset(images: list[tuple[str | None, list[str]]], given: list[int | None] | None = None) -> Dataset:
    """Images of a group and the labels of their cells."""
    rows = [
        {
            "image_id": f"{i}",
            "group": group,
            "width_px": 100 + i % 7,
            "height_px": 90,
            "fold": given[i] if given else None,
        }
        for i, (group, _) in enumerate(images)
    ]
    where = [f"{i}" for i, (_, labels) in enumerate(images) for _ in labels]
    names = [label for _, labels in images for label in labels]
    boxes = np.tile(np.array([[10, 10, 30, 30]], np.float32), (len(names), 1))
    return Dataset(Images.of(rows), Cells.of(LABELS, image_id=where, boxes=boxes, label=names, source="human:a"), "x")


def drawn(count: int, seed: int, grouped: bool = True) -> Dataset:
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        group = f"p{random.integers(count // 4)}" if grouped else None
        images.append((group, random.choice(LABELS.names, random.integers(0, 4), p=[0.7, 0.25, 0.05]).tolist()))
    return dataset(images)


def parts_of_groups(images: Images, column: str) -> pl.DataFrame:
    return images.frame.filter(pl.col("group").is_not_null()).group_by("group").agg(pl.col(column).n_unique())


@settings(max_examples=40)
@given(
    images=st.lists(
        st.tuples(st.none() | st.sampled_from("abcdefgh"), st.lists(st.sampled_from(LABELS.names), max_size=3)),
        min_size=16,
        max_size=40,
    ),
    count=st.integers(2, 4),
    seed=st.integers(0, 5),
)
def test_no_group_is_parted_and_every_image_has_a_fold(
    images: list[tuple[str | None, list[str]]], count: int, seed: int
) -> None:
    data = dataset(images)
    result = folds(data, count, seed)
    assert result.dataset.images.ids == data.images.ids
    assert set(result.dataset.images.frame["fold"]) <= set(range(count))
    assert (parts_of_groups(result.dataset.images, "fold")["fold"] == 1).all()
    tally = result.balance.filter(pl.col("label") == "images")
    assert tally["count"].sum() == len(images)
    assert folds(data, count, seed).dataset.images.frame.equals(result.dataset.images.frame)  # the seed decides
    assert data.images.frame["fold"].is_null().all()


@pytest.mark.parametrize("grouped", [False, True])
def test_labels_are_balanced(grouped: bool) -> None:
    result = folds(drawn(2000, 1, grouped), 4)
    assert result.worst(100) < (0.02 if grouped else 0.006)
    assert result.grouped > 1900 if grouped else result.grouped == 0


def test_shares_are_met() -> None:
    result = parts(drawn(1000, 2), {"train": 0.7, "val": 0.2, "test": 0.1})
    assert result.worst(100) < 0.02
    assert result.dataset.provenance[-1]["shares"] == {"train": 0.7, "val": 0.2, "test": 0.1}
    assert (parts_of_groups(result.dataset.images, "split")["split"] == 1).all()


def test_given_folds_stay_when_images_are_added() -> None:
    whole = drawn(800, 3)
    first = Images(whole.images.frame.head(500))
    before = folds(whole.of_images(first), 4, 7).dataset.images.frame["fold"].to_list()
    grown = dataset([(row["group"], []) for row in whole.images.rows()], given=[*before, *[None] * 300])
    after = folds(grown, 4, 7, keep=True)
    assert after.dataset.images.frame["fold"].to_list()[:500] == before
    assert (parts_of_groups(after.dataset.images, "fold")["fold"] == 1).all()
    assert after.worst(100) < 0.02


def test_a_group_that_is_parted_already_is_said() -> None:
    torn = dataset([("p", []), ("p", []), ("q", [])], given=[0, 1, None])
    with pytest.raises(DatasetError, match='"group p" stands in several parts'):
        folds(torn, 2, keep=True)
    with pytest.raises(DatasetError, match=r"folds \[5\] are given"):
        folds(dataset([("p", []), ("q", []), ("r", [])], given=[0, 5, None]), 2, keep=True)


def test_fractions_are_nested_and_of_their_size() -> None:
    data = drawn(1000, 4)
    nested = fractions(data, [1.0, 0.05, 0.2])
    assert list(nested) == [0.05, 0.2, 1.0]
    ids = [set(part.images.ids) for part in nested.values()]
    assert ids[0] < ids[1] < ids[2] == set(data.images.ids)
    assert [len(some) / 1000 for some in ids[:2]] == [pytest.approx(0.05, abs=0.01), pytest.approx(0.2, abs=0.01)]
    shares = [len(part.cells.where(label="lymphocyte")) / len(part.cells) for part in nested.values()]
    assert max(shares) - min(shares) < 0.02


@pytest.mark.parametrize("wrong", [{"train": 1.0}, {"a": 0.5, "b": 0.6}, {"a": 1.2, "b": -0.2}])
def test_shares_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="add up to 1"):
        parts(drawn(20, 0), wrong)


@pytest.mark.parametrize("wrong", [[], [0.0, 1.0], [0.5, 1.1], [0.2, 0.2]])
def test_fractions_that_are_none_are_refused(wrong: list[float]) -> None:
    with pytest.raises(SettingError, match="fractions lie above 0"):
        fractions(drawn(20, 0), wrong)


def test_more_parts_than_groups_are_refused() -> None:
    with pytest.raises(SettingError, match="1 groups cannot be put into 2 parts"):
        folds(dataset([("p", []), ("p", [])]), 2)
    with pytest.raises(SettingError, match="2 or more"):
        folds(drawn(20, 0), 1)


def test_the_command(tmp_path: Path) -> None:
    drawn(200, 5).write(tmp_path / "data")
    spoken = say("split", tmp_path / "data", "--folds", "4", "--out", tmp_path / "folds", "--json")
    assert spoken.code == 0
    assert json.loads(spoken.out)["column"] == "fold"
    assert set(Dataset.read(tmp_path / "folds").images.frame["fold"]) == {0, 1, 2, 3}
    assert say("split", tmp_path / "data", "--shares", "train=0.8,val=0.2", "--out", tmp_path / "parts").code == 0
    assert set(Dataset.read(tmp_path / "parts").images.frame["split"]) == {"train", "val"}
    assert say("split", tmp_path / "data", "--fractions", "0.1,1", "--out", tmp_path / "nested").code == 0
    assert 10 <= len(Dataset.read(tmp_path / "nested" / "0.1").images) <= 30
    for wrong in (["--folds", "2", "--shares", "a=1"], ["--shares", "a=x,b=1"], [], ["--fractions", "0.1", "--keep"]):
        assert say("split", tmp_path / "data", *wrong, "--out", tmp_path / "no").code == 2
    assert not (tmp_path / "no").exists()


@pytest.mark.data
def test_cytologia_splits_into_four_folds(data_root: Path, tmp_path: Path) -> None:
    source = data_root / "cytologia" / "train.csv"
    options = ["--format", "csv_boxes", "--labels", "cytologia", "--allow-missing-images"]
    assert say("import", source, *options, "--out", tmp_path / "data").code in (0, 1)
    started = time.perf_counter()
    result = folds(Dataset.read(tmp_path / "data"), 4, 42)
    assert time.perf_counter() - started < 60
    assert len(result.dataset.cells) == 52_748
    assert result.worst(500) < 0.02


def test_the_public_function() -> None:
    import cytolens
    import cytolens.prepare.split as module

    data = drawn(200, 6)
    assert cytolens.split is module.split
    assert "split" in cytolens.__all__
    result = cytolens.split(data, seed=3)
    assert set(result.dataset.images.frame["fold"]) == {0, 1, 2, 3}
    assert result.dataset.fingerprint == folds(data, 4, 3).dataset.fingerprint
    assert data.images.frame["fold"].is_null().all()
    assert set(cytolens.split(data, 5).dataset.images.frame["fold"]) == {0, 1, 2, 3, 4}
    shares = {"train": 0.8, "val": 0.2}
    by_shares = cytolens.split(data, shares=shares, seed=3)
    assert by_shares.column == "split"
    assert by_shares.dataset.fingerprint == parts(data, shares, 3).dataset.fingerprint
    assert cytolens.split(result.dataset, 4, 9, keep=True).dataset.images.frame.equals(result.dataset.images.frame)
    with pytest.raises(SettingError, match=r"folds \(4\) or shares \(train, val\), not both"):
        cytolens.split(data, 4, shares=shares)
