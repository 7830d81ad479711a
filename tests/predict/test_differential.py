"""The differential against counting by hand, and its intervals against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytolens.cells import Cells
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.predict.differential import ALL, SCHEMA, differential
from tests import reference_scores
from tests.strategies import cell_tables, label_sets, published_sets

BLOOD = LabelSet.of(
    [
        "erythrocyte",
        "leukocyte",
        "neutrophil",
        "band neutrophil",
        "segmented neutrophil",
        "lymphocyte",
        "erythroblast",
        "platelet",
        "lysed cell",
    ]
)


def images_of(*image_ids: str, **columns: list[Any]) -> Images:
    rows = [{"image_id": i} | {name: values[n] for name, values in columns.items()} for n, i in enumerate(image_ids)]
    return Images.of(rows)


def cells_of(rows: list[tuple[str, str | None]], labels: LabelSet = BLOOD, **flags: Any) -> Cells:
    return Cells.of(
        labels,
        image_id=[image for image, _ in rows],
        boxes=np.tile([0.0, 0, 9, 9], (len(rows), 1)),
        label=[label for _, label in rows],
        source="bundle:test@0123",
        score=np.full(len(rows), 0.9),
        **flags,
    )


def at(table: pl.DataFrame, image_id: str, label: str) -> dict[str, Any]:
    (row,) = table.filter((pl.col("image_id") == image_id) & (pl.col("label") == label)).rows(named=True)
    return row


def repeated(image_id: str, **counts: int) -> list[tuple[str, str | None]]:
    return [(image_id, name.replace("_", " ")) for name, count in counts.items() for _ in range(count)]


# -- a worked case --------------------------------------------------------------------------------


def test_a_field_counted_by_hand() -> None:
    rows = repeated("a", erythrocyte=40, segmented_neutrophil=5, band_neutrophil=1, neutrophil=2, lymphocyte=2)
    rows += repeated("a", erythroblast=3, platelet=7, lysed_cell=1)
    table = differential(cells_of(rows), images_of("a"))
    assert dict(table.schema) == SCHEMA
    for image in (ALL, "a"):
        counts = {r["label"]: r["count"] for r in table.filter(pl.col("image_id") == image).iter_rows(named=True)}
        assert counts == {
            "leukocyte": 10,
            "neutrophil": 8,
            "band neutrophil": 1,
            "segmented neutrophil": 5,
            "lymphocyte": 2,
            "erythroblast": 3,
            "erythrocyte": 40,
            "platelet": 7,
            "lysed cell": 1,
            "referred": 0,
        }
    shares = {r["label"]: r["percent"] for r in table.filter(pl.col("image_id") == "a").iter_rows(named=True)}
    assert shares["leukocyte"] == 100
    assert shares["neutrophil"] == 80
    assert shares["band neutrophil"] == 10
    assert shares["segmented neutrophil"] == 50
    assert shares["lymphocyte"] == 20
    assert [shares[name] for name in ("erythroblast", "erythrocyte", "platelet", "lysed cell", "referred")] == [
        None
    ] * 5


def test_rows_stand_in_the_order_a_person_reads() -> None:
    table = differential(cells_of([]), images_of("a")).filter(pl.col("image_id") == "a")
    assert table.select("label", "part", "depth").rows() == [
        ("leukocyte", "leukocytes", 0),
        ("neutrophil", "leukocytes", 1),
        ("band neutrophil", "leukocytes", 2),
        ("segmented neutrophil", "leukocytes", 2),
        ("lymphocyte", "leukocytes", 1),
        ("erythroblast", "erythroblasts", 0),
        ("erythrocyte", "red cells", 0),
        ("platelet", "platelets", 0),
        ("lysed cell", "lysed cells", 0),
        ("referred", "referred", 0),
    ]


def test_an_interval_of_a_field_is_wilson_s() -> None:
    table = differential(cells_of(repeated("a", lymphocyte=3, neutrophil=9)), images_of("a"))
    row = at(table, "a", "lymphocyte")
    low, high = reference_scores.wilson(3, 12)
    assert (row["low"], row["high"]) == (pytest.approx(100 * low), pytest.approx(100 * high))
    assert (row["low"], row["high"]) == (pytest.approx(8.894, abs=1e-3), pytest.approx(53.231, abs=1e-3))
    assert row["interval"] == "wilson"
    assert at(table, ALL, "lymphocyte")["interval"] == "wilson"  # one image cannot be resampled
    never = at(table, "a", "band neutrophil")
    assert (never["low"], never["percent"]) == (0, 0)
    assert never["high"] == pytest.approx(100 * reference_scores.wilson(0, 12)[1])


def test_erythroblasts_are_counted_per_hundred_leukocytes() -> None:
    table = differential(cells_of(repeated("a", lymphocyte=40, erythroblast=6)), images_of("a", "b"))
    assert at(table, "a", "erythroblast")["per_100_leukocytes"] == 15
    assert at(table, "a", "erythroblast")["count"] == 6
    assert at(table, "a", "lymphocyte")["percent"] == 100  # they are no leukocytes
    assert at(table, "b", "erythroblast")["per_100_leukocytes"] is None
    assert table.filter(pl.col("label") != "erythroblast")["per_100_leukocytes"].is_null().all()


def test_a_kind_of_another_part_is_not_counted_twice() -> None:
    """Where a label set has erythroblasts under its nucleated cells, they are still no leukocytes."""
    labels = LabelSet(
        names=("nucleated", "lymphocyte", "erythroblast"),
        parents={"lymphocyte": "nucleated", "erythroblast": "nucleated"},
        roles={"nucleated": "leukocyte", "erythroblast": "erythroblast"},
    )
    table = differential(cells_of(repeated("a", lymphocyte=3, erythroblast=2), labels), images_of("a"))
    rows = table.filter(pl.col("image_id") == "a").select("label", "part", "depth", "count", "percent").rows()
    assert rows == [
        ("nucleated", "leukocytes", 0, 3, 100),
        ("lymphocyte", "leukocytes", 1, 3, 100),
        ("erythroblast", "erythroblasts", 0, 2, None),
        ("referred", "referred", 0, 0, None),
    ]


def test_referred_cells_stand_apart() -> None:
    rows = repeated("a", lymphocyte=3, neutrophil=1) + repeated("a", leukocyte=2)
    cells = cells_of(rows, refer=[False, False, True, False, True, True])
    table = differential(cells, images_of("a"))
    assert at(table, "a", "referred")["count"] == 3
    assert at(table, "a", "lymphocyte")["count"] == 2
    assert at(table, "a", "leukocyte")["count"] == 3
    assert at(table, "a", "lymphocyte")["percent"] == pytest.approx(100 * 2 / 3)


def test_only_counted_cells_count() -> None:
    cells = cells_of(repeated("a", lymphocyte=4), counted=[True, False, True, True], ignore=[False, False, True, False])
    table = differential(cells, images_of("a"))
    assert at(table, "a", "lymphocyte")["count"] == 2
    assert at(differential(cells.with_columns(refer=True), images_of("a")), "a", "referred")["count"] == 2


def test_without_leukocytes_there_are_no_percentages() -> None:
    table = differential(cells_of(repeated("a", erythrocyte=5)), images_of("a", "b"))
    for column in ("percent", "low", "high", "interval", "per_100_leukocytes"):
        assert table[column].is_null().all()
    assert at(table, ALL, "erythrocyte")["count"] == 5


def test_without_images_there_is_the_total_of_nothing() -> None:
    table = differential(Cells.empty(BLOOD), Images.empty())
    assert table["image_id"].unique().to_list() == [ALL]
    assert table["count"].sum() == 0


# -- the total over images ------------------------------------------------------------------------


def three_fields(**columns: list[Any]) -> pl.DataFrame:
    rows = repeated("a", lymphocyte=8, neutrophil=2) + repeated("b", lymphocyte=1, neutrophil=9)
    rows += repeated("c", lymphocyte=5, neutrophil=5)
    return differential(cells_of(rows), images_of("a", "b", "c", **columns))


def test_the_unit_of_the_bootstrap_is_named() -> None:
    by_image = three_fields()
    assert at(by_image, ALL, "lymphocyte")["interval"] == "bootstrap over images"
    assert at(by_image, "a", "lymphocyte")["interval"] == "wilson"
    assert at(three_fields(group=["p", "p", "q"]), ALL, "lymphocyte")["interval"] == "bootstrap over groups"
    assert at(three_fields(group=["p", "p", "p"]), ALL, "lymphocyte")["interval"] == "wilson"  # one patient
    # Where one image's patient is unknown, those of one patient are still drawn together.
    assert at(three_fields(group=["p", "p", None]), ALL, "lymphocyte")["interval"] == "bootstrap over groups"


def test_the_bootstrap_interval_is_that_of_all_resamples() -> None:
    """Three images give 27 equally likely resamples, few enough to list."""
    row = at(three_fields(), ALL, "lymphocyte")
    found = [8, 1, 5]
    every = sorted(100 * (found[i] + found[j] + found[k]) / 30 for i in range(3) for j in range(3) for k in range(3))
    assert row["percent"] == pytest.approx(100 * 14 / 30)
    # The middle 95 % reach from the lowest resample (1 of 27 is more than 2.5 %) to the highest.
    assert (row["low"], row["high"]) == (pytest.approx(every[0]), pytest.approx(every[-1]))
    other = at(three_fields(group=["p", "q", "p"]), ALL, "lymphocyte")
    assert (other["low"], other["high"]) == (pytest.approx(10), pytest.approx(100 * 13 / 20))


def test_the_interval_reaches_at_least_as_far_as_wilsons() -> None:
    """A kind that no image shows, and images that happen to agree, leave a bootstrap without width."""
    same = differential(
        cells_of([(i, name) for i in "abc" for name in ("lymphocyte", "neutrophil")]), images_of("a", "b", "c")
    )
    for name, count in (("lymphocyte", 3), ("band neutrophil", 0)):
        row = at(same, ALL, name)
        low, high = reference_scores.wilson(count, 6)
        assert (row["low"], row["high"]) == (pytest.approx(100 * low), pytest.approx(100 * high))


def test_the_same_seed_gives_the_same_table() -> None:
    assert three_fields().equals(three_fields())


# -- the slow twin --------------------------------------------------------------------------------


def slow_counts(cells: Cells, image_id: str | None) -> dict[str, int]:
    """Cell by cell: each counts for its label and the wider ones of the same role."""
    labels = cells.labels
    counts = dict.fromkeys([*labels.names, "(referred)", "(white)"], 0)
    for row in cells.frame.iter_rows(named=True):
        if not row["counted"] or row["ignore"] or image_id not in (None, row["image_id"]):
            continue
        if row["refer"]:
            counts["(referred)"] += 1
        elif row["label"] is not None:
            counts["(white)"] += labels.role(row["label"]) == "leukocyte"
            for name in (row["label"], *labels.ancestors(row["label"])):
                counts[name] += labels.role(name) == labels.role(row["label"])
    return counts


@settings(max_examples=40)
@given(data=st.data(), labels=published_sets() | label_sets(most=5))
def test_counts_are_those_of_the_slow_twin(data: st.DataObject, labels: LabelSet) -> None:
    cells = data.draw(cell_tables(labels, image_ids=("a", "b"), most=12, found=True, with_masks=False))
    table = differential(cells, images_of("a", "b", "c"))
    assert table["image_id"].unique(maintain_order=True).to_list() == [ALL, "a", "b", "c"]
    for image_id in ("a", "b", "c", ALL):
        part = table.filter(pl.col("image_id") == image_id)
        expected = slow_counts(cells, None if image_id == ALL else image_id)
        assert part["label"].to_list()[-1] == "referred"
        assert part["count"].to_list()[-1] == expected.pop("(referred)")
        white = expected.pop("(white)")
        got = part.head(-1)
        assert dict(got.select("label", "count").iter_rows()) == expected
        for row in got.iter_rows(named=True):
            if labels.role(row["label"]) == "leukocyte" and white:
                assert row["percent"] == pytest.approx(100 * row["count"] / white)
                assert 0 <= row["low"] <= row["high"] <= 100
                if image_id != ALL:
                    assert row["low"] <= row["percent"] + 1e-9
                    assert row["percent"] <= row["high"] + 1e-9
            else:
                assert row["percent"] is row["low"] is row["high"] is row["interval"] is None


@settings(max_examples=40)
@given(data=st.data(), labels=published_sets())
def test_the_total_is_the_sum_of_its_images(data: st.DataObject, labels: LabelSet) -> None:
    cells = data.draw(cell_tables(labels, image_ids=("a", "b"), most=12, found=True, with_masks=False))
    table = differential(cells, images_of("a", "b"))
    summed = table.filter(pl.col("image_id") != ALL).group_by("label", maintain_order=True).agg(pl.col("count").sum())
    total = table.filter(pl.col("image_id") == ALL).select("label", "count")
    assert summed.equals(total)


@settings(max_examples=40)
@given(data=st.data(), labels=published_sets())
def test_every_kind_stands_under_its_parent(data: st.DataObject, labels: LabelSet) -> None:
    cells = data.draw(cell_tables(labels, image_ids=("a",), most=8, found=True, with_masks=False))
    rows = differential(cells, images_of("a")).filter(pl.col("image_id") == "a").rows(named=True)[:-1]
    assert sorted(row["label"] for row in rows) == sorted(labels.names)
    trail: list[str] = []
    for row in rows:
        trail = [*trail[: row["depth"]], row["label"]]
        assert len(trail) == row["depth"] + 1
        if row["depth"]:
            assert labels.parents[row["label"]] == trail[-2]
