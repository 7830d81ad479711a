"""The differential of each patient against the patient's images counted alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytolens.cells import Cells
from cytolens.evaluate.page import Page
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.predict.blasts import BlastSettings
from cytolens.predict.group_differential import (
    GROUP_SCHEMA,
    blasts_by_group,
    differential_by_group,
    folders_as_groups,
    groups_of,
)
from cytolens.predict.report_groups import group_section
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from tests.apps.speaking import say

ATTRI = LabelSet.shipped("leukemia_attri")


def images_of(groups: dict[str, str | None]) -> Images:
    return Images.of([{"image_id": image, "group": group} for image, group in groups.items()])


def cells_of(rows: list[tuple[str, str]]) -> Cells:
    return Cells.of(
        ATTRI,
        image_id=[image for image, _ in rows],
        boxes=[[0, 0, 9, 9]] * len(rows),
        label=[name for _, name in rows],
        source="bundle:test@0123",
        score=[0.9] * len(rows),
    )


@given(
    groups=st.lists(st.sampled_from(["p1", "p2", "p3", None]), min_size=1, max_size=7),
    found=st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["Myeloblast", "Neutrophil", "Lymphocyte"]))),
)
@settings(max_examples=40)
def test_each_group_counts_its_own_images(groups: list[str | None], found: list[tuple[int, str]]) -> None:
    images = images_of({f"{n}.png": group for n, group in enumerate(groups)})
    rows = [(f"{n}.png", name) for n, name in found if n < len(groups)]
    table = differential_by_group(cells_of(rows), images)
    assert dict(table.schema) == GROUP_SCHEMA
    sizes = Counter(group for group in groups if group is not None)
    listed = list(sizes) if any(size > 1 for size in sizes.values()) else []
    assert table["group"].unique(maintain_order=True).to_list() == listed == groups_of(images)
    for group in listed:
        own = table.filter(pl.col("group") == group)
        assert set(own["images"]) == {sizes[group]}
        said = [name for image, name in rows if groups[int(image.removesuffix(".png"))] == group]
        for name, number in Counter(said).items():
            (row,) = own.filter(pl.col("label") == name).rows(named=True)
            assert row["count"] == number
            assert row["percent"] == pytest.approx(100 * number / len(said))
            assert row["low"] <= row["percent"] <= row["high"]


def test_an_interval_within_a_patient_is_over_the_patients_images() -> None:
    images = images_of({"a": "p", "b": "p", "c": "q"})
    rows = [("a", "Neutrophil")] * 30 + [("b", "Lymphocyte")] * 30 + [("c", "Neutrophil")] * 30
    table = differential_by_group(cells_of(rows), images)
    (wide,) = table.filter((pl.col("group") == "p") & (pl.col("label") == "Neutrophil")).rows(named=True)
    (alone,) = table.filter((pl.col("group") == "q") & (pl.col("label") == "Neutrophil")).rows(named=True)
    assert (wide["interval"], wide["low"], wide["high"]) == ("bootstrap over images", 0, 100)
    assert alone["interval"] == "wilson"


def test_blasts_stand_beside_each_patient() -> None:
    images = images_of({"a": "ill", "b": "ill", "c": "well", "d": "well"})
    rows = [("a", "Myeloblast")] * 15 + [("b", "Neutrophil")] * 5 + [("c", "Neutrophil")] * 20
    cells = cells_of(rows)
    found = blasts_by_group(cells, images, BlastSettings())
    assert {group: one.percent for group, one in found.items()} == {"ill": 75, "well": 0}
    page = group_section(Page("", ""), differential_by_group(cells, images), found).render()
    assert "ill: 15 blasts of 20 named white cells, at or above the line of 20 %" in page
    assert "well: " not in page
    assert "75.0 (" in page


def test_folders_become_groups() -> None:
    rows: list[dict[str, Any]] = [
        {"image_id": "one/1.png", "path": "/x/smears/one/1.png"},
        {"image_id": "one/deep/1.png", "path": "/x/smears/one/deep/1.png"},
        {"image_id": "2.png", "path": "/x/smears/2.png"},
        {"image_id": "3.png", "path": "/x/smears/3.png", "group": "known"},
        {"image_id": "4.png", "path": None},
    ]
    assert [row["group"] for row in folders_as_groups(rows)] == ["one", "one/deep", "smears", "known", None]


def test_the_command(tmp_path: Path) -> None:
    smears, out = tmp_path / "smears", tmp_path / "found"
    for patient, seed in (("ada", 1), ("bea", 2)):
        write_synthetic(smears / patient, 2, seed, SyntheticSettings(width_px=240, height_px=200))
        (smears / patient / "dataset.json").unlink()
    words = ("predict", smears, "--out", out, "--format", "csv,report", "--json")
    told = say(*words, "--group-by", "folder")
    assert told.code == 0, told.err
    table = pl.read_csv(out / "differential_by_group.csv")
    patients = {Path(str(group)).parts[0] for group in table["group"]}
    assert patients == {"ada", "bea"}
    total = pl.read_csv(out / "differential.csv").filter(pl.col("image_id") == "(all images)")
    for label in ("erythrocyte", "leukocyte"):
        (count,) = total.filter(pl.col("label") == label)["count"]
        assert table.filter(pl.col("label") == label)["count"].sum() == count
    assert "Group by group" in (out / "report.html").read_text("utf-8")

    assert say(*words).code == 0
    assert not (out / "differential_by_group.csv").exists()
    assert "Group by group" not in (out / "report.html").read_text("utf-8")

    refused = say("predict", smears, "--out", tmp_path / "no", "--group-by", "patient")
    assert refused.code == 2
    assert 'no grouping "patient"; allowed: folder' in refused.err
    assert not (tmp_path / "no").exists()
