"""Blasts: what counts, the share with its interval, and the line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cytolens.bundle import Bundle
from cytolens.cells import Cells
from cytolens.evaluate.page import Page
from cytolens.evaluate.uncertainty import wilson
from cytolens.labels import LabelSet
from cytolens.predict.blasts import BlastSettings, blast_labels, blasts
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.predict.report_attributes import blast_section
from cytolens.problems import LabelError
from tests.predict.doubles import FixedNames, connect, naming

ATTRI = LabelSet.shipped("leukemia_attri")
SMEAR = LabelSet.of(["leukocyte", "neutrophil", "lymphocyte", "erythrocyte"])


def cells(labels: LabelSet, names: Sequence[str | None], refer: list[bool] | None = None) -> Cells:
    return Cells.of(
        labels, image_id=["a"] * len(names), boxes=[[0, 0, 1, 1]] * len(names), label=names, source="x",
        refer=refer or False,
    )  # fmt: skip


def test_the_labels_of_leukemia_attri_have_five() -> None:
    wanted = ["Myeloblast", "Lymphoblast", "Promonocyte", "Monoblast", "Abnormal promyelocyte"]
    assert blast_labels(ATTRI, BlastSettings()) == wanted


def test_what_counts_can_be_chosen_and_a_strange_name_is_refused() -> None:
    assert blast_labels(ATTRI, BlastSettings(names=("monoblast",))) == ["Monoblast"]
    assert blast_labels(SMEAR, BlastSettings()) == []
    with pytest.raises(LabelError, match=r'blasts\.names: "blastoid"'):
        blast_labels(ATTRI, BlastSettings(names=("blastoid",)))


def test_a_wrong_name_is_an_error_before_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle: Bundle = naming(tmp_path)
    connect(monkeypatch, names=FixedNames([0.25] * 4))
    with pytest.raises(LabelError, match="blastoid"):
        Predictor(bundle, PredictSettings(blasts=BlastSettings(names=("blastoid",))))


def test_the_share_is_of_the_named_white_cells() -> None:
    names: list[str | None] = ["Myeloblast"] * 3 + ["Neutrophil"] * 6 + ["Abnormal promyelocyte", "Myeloblast", None]
    found = blasts(cells(ATTRI, names, [False] * 10 + [True, False]), BlastSettings(percent=30))
    assert found is not None
    assert (found.count, found.total, found.flagged) == (4, 10, 1)
    assert found.by_label == {"Myeloblast": 3, "Abnormal promyelocyte": 1}
    assert found.percent == pytest.approx(40)
    low, high = wilson(4, 10)
    assert found.interval == (100 * low, 100 * high)
    assert found.verdict == "at or above the line of 30 %, but its interval holds the line: count more cells"


def test_the_verdict_is_sure_where_the_interval_leaves_out_the_line() -> None:
    many = blasts(cells(ATTRI, ["Myeloblast"] * 90 + ["Neutrophil"] * 10), BlastSettings())
    none = blasts(cells(ATTRI, ["Neutrophil"] * 100), BlastSettings())
    empty = blasts(cells(ATTRI, []), BlastSettings())
    assert many is not None
    assert many.verdict == "at or above the line of 20 %"
    assert none is not None
    assert none.verdict == "below the line of 20 %"
    assert empty is not None
    assert (empty.percent, empty.verdict) == (None, "no white cell has a name")


def test_the_report_says_so_and_flags_abnormal_promyelocytes_at_any_count() -> None:
    some = cells(ATTRI, ["Abnormal promyelocyte"] + ["Neutrophil"] * 99)
    text = blast_section(Page("x"), some, BlastSettings()).render()
    assert "Blasts are 1.0 % of 100 white cells: below the line of 20 %." in text
    assert "1 abnormal promyelocytes" in text
    plain = Page("x")
    assert blast_section(plain, cells(SMEAR, ["neutrophil"]), BlastSettings()) is plain
    assert "no white cell has a name" in blast_section(Page("x"), cells(ATTRI, []), BlastSettings()).render()
