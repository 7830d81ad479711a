from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytolens.cells import BOX_COLUMNS, Cells
from cytolens.edits import FIELDS, SCHEMA, Edits, undo
from cytolens.labels import LabelSet
from cytolens.problems import DatasetError, LabelError
from tests.strategies import cell_tables, label_sets

BLOOD = LabelSet.of(["WBC", "LY", "MO", "RBC"])
NOON = datetime(2025, 3, 1, 13, 0, 0, tzinfo=timezone(timedelta(hours=1)))


def three() -> Cells:
    return Cells.of(
        BLOOD,
        image_id=["a", "a", "b"],
        boxes=[[0, 0, 4, 4], [1, 1, 3, 2.5], [0.1, 0, 5, 5]],
        label=["LY", "WBC", None],
        source="human:ab",
        ignore=[False, True, False],
    )


def ids(cells: Cells) -> list[str]:
    return cells.frame["cell_id"].to_list()


# -- noting ---------------------------------------------------------------------------------------


def test_a_note_says_who_what_when_and_why() -> None:
    cells = three()
    log = Edits.empty().note(cells, ids(cells)[0], "label", "MO", who="ab", why="folded nucleus", when=NOON)
    assert log.frame.to_dicts() == [
        {
            "cell_id": ids(cells)[0],
            "field": "label",
            "old": "LY",
            "new": "MO",
            "who": "ab",
            "when": "2025-03-01T12:00:00+00:00",
            "why": "folded nucleus",
        }
    ]
    assert dict(log.frame.schema) == SCHEMA
    assert len(Edits.empty()) == 0


def test_the_time_of_a_note_is_now() -> None:
    cells = three()
    log = Edits.empty().note(cells, ids(cells)[0], "refer", True, who="ab")
    assert abs(datetime.fromisoformat(log.frame["when"][0]) - datetime.now(UTC)) < timedelta(minutes=5)


def test_old_values_are_looked_up() -> None:
    cells, log = three(), Edits.empty()
    for field, new in [("label", None), ("ignore", True), ("x_min", 0.5), ("deleted", True)]:
        log = log.note(cells, ids(cells)[2], field, new, who="ab")
    assert log.frame["old"].to_list() == [None, "false", str(float(np.float32(0.1))), "false"]
    assert log.frame["new"].to_list() == [None, "true", "0.5", "true"]


@pytest.mark.parametrize(
    ("field", "new", "error", "message"),
    [
        ("labels", "LY", DatasetError, 'the field "labels" cannot be edited. Did you mean "label"?'),
        ("score", 0.5, DatasetError, 'the field "score" cannot be edited'),
        ("label", "LYM", LabelError, 'an edit names the label "LYM"; labels here: WBC, LY, MO, RBC'),
        ("ignore", "yes", DatasetError, 'an edit sets "ignore" to "yes"; allowed: true, false'),
        ("ignore", None, DatasetError, 'an edit sets "ignore" to "None"'),
        ("deleted", 1, DatasetError, 'an edit sets "deleted" to "1"'),
        ("x_min", None, DatasetError, 'an edit sets "x_min" to "None"; allowed: a number of pixels'),
        ("x_min", "left", DatasetError, 'an edit sets "x_min" to "left"'),
        ("y_max", float("nan"), DatasetError, 'an edit sets "y_max" to "nan"'),
    ],
)
def test_what_could_never_be_applied_is_not_noted(field: str, new: Any, error: type[Exception], message: str) -> None:
    cells = three()
    with pytest.raises(error) as caught:
        Edits.empty().note(cells, ids(cells)[0], field, new, who="ab")
    assert message in str(caught.value)


def test_a_note_is_of_a_cell_that_is_there() -> None:
    with pytest.raises(DatasetError, match='no cell "nobody" among 3 cells'):
        Edits.empty().note(three(), "nobody", "label", "LY", who="ab")


# -- applying -------------------------------------------------------------------------------------


def test_no_edits_change_nothing() -> None:
    assert Edits.empty().applied_to(three()).frame.equals(three().frame)
    assert len(Edits.empty().applied_to(Cells.empty(BLOOD))) == 0


def test_edits_change_their_cells_and_no_other() -> None:
    cells, log = three(), Edits.empty()
    first, second, third = ids(cells)
    for cell, field, new in [
        (first, "label", None),
        (second, "ignore", np.bool_(False)),
        (second, "refer", True),
        (second, "x_max", 3.75),
        (third, "label", "RBC"),
        (third, "counted", False),
    ]:
        log = log.note(cells, cell, field, new, who="ab")
    after = log.applied_to(cells)
    assert after.label_names() == [None, "WBC", "RBC"]
    assert after.frame["ignore"].to_list() == [False, False, False]
    assert after.frame["refer"].to_list() == [False, True, False]
    assert after.frame["counted"].to_list() == [True, True, False]
    assert after.boxes()[1].tolist() == [1, 1, 3.75, 2.5]
    untouched = ["cell_id", "image_id", "source", "x_min", "y_min", "y_max", "score", "mask"]
    assert after.frame.select(untouched).equals(cells.frame.select(untouched))
    assert cells.frame.equals(three().frame), "the cells themselves stay"


def test_a_new_name_takes_the_models_opinion_away_until_it_is_undone() -> None:
    shares = np.array([[0.75, 0.25, 0], [0.5, 0.25, 0.25]], np.float32)
    cells = Cells.of(
        BLOOD,
        image_id=["a", "a"],
        boxes=np.zeros((2, 4)),
        label=["LY", "LY"],
        source="bundle:x@1",
        score=[0.9, 0.8],
        probabilities=shares,
    )
    log = Edits.empty().note(cells, ids(cells)[0], "label", "MO", who="ab")
    log = log.note(cells, ids(cells)[1], "label", "LY", who="ab", why="confirmed")
    after = log.applied_to(cells)
    assert after.frame["probabilities"].is_null().to_list() == [True, False]
    np.testing.assert_array_equal(after.probabilities()[1], shares[1])
    assert log.applied_to(after).frame.equals(after.frame)
    np.testing.assert_array_equal(undo(log, [0]).applied_to(cells).probabilities(), shares)


def test_the_last_edit_of_a_field_wins() -> None:
    cells = three()
    log = Edits.empty().note(cells, ids(cells)[0], "label", "MO", who="ab")
    log = log.concat(Edits.empty().note(cells, ids(cells)[0], "label", "RBC", who="cd"))
    assert log.applied_to(cells).label_names()[0] == "RBC"
    assert len(log) == 2


def test_a_deleted_cell_is_gone_and_may_come_back() -> None:
    cells = three()
    log = Edits.empty().note(cells, ids(cells)[1], "deleted", True, who="ab")
    assert ids(log.applied_to(cells)) == [ids(cells)[0], ids(cells)[2]]
    assert ids(log.note(cells, ids(cells)[1], "deleted", False, who="ab").applied_to(cells)) == ids(cells)


def test_lost_cells_are_named() -> None:
    cells = three()
    log = Edits.empty().note(cells, ids(cells)[1], "label", "LY", who="ab")
    with pytest.raises(DatasetError, match=f"1 edited cells are not here: {ids(cells)[1]}"):
        log.applied_to(cells.of_image("b"))


def test_an_edit_of_an_id_that_two_cells_share_is_unclear() -> None:
    cells = three()
    log = Edits.empty().note(cells, ids(cells)[1], "label", "LY", who="ab")
    with pytest.raises(DatasetError, match=f"several cells have the same cell_id.*: {ids(cells)[1]}"):
        log.applied_to(cells.concat(cells))


def test_a_log_made_elsewhere_is_checked_when_applied() -> None:
    cells = three()
    log = Edits.empty().note(cells, ids(cells)[0], "label", "MO", who="ab")
    with pytest.raises(LabelError, match='an edit names the label "MO"'):
        log.applied_to(cells.relabel(LabelSet.of(["WBC", "RBC"])))
    spoilt = Edits(log.frame.with_columns(field=pl.lit("ignore"), new=pl.lit("maybe")))
    with pytest.raises(DatasetError, match='an edit sets "ignore" to "maybe"'):
        spoilt.applied_to(cells)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"cell_id": ["a"]}), r"not a log of edits: columns \['cell_id'\]"),
        (
            Edits.empty()
            .note(three(), ids(three())[0], "label", "LY", who="x")
            .frame.with_columns(field=pl.lit("colour")),
            "unknown fields colour; fields that can be edited: label, ignore",
        ),
    ],
)
def test_another_frame_is_no_log(frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Edits(frame)


@st.composite
def reviews(draw: st.DrawFn) -> tuple[Cells, list[Edits]]:
    """Cells and the growing log of a review; every note is of the cells as they then are."""
    labels = draw(label_sets())
    cells = draw(cell_tables(labels, least=1, with_masks=False))
    values = {
        "label": st.none() | st.sampled_from(labels.names),
        "deleted": st.booleans(),
        **dict.fromkeys(("ignore", "refer", "counted"), st.booleans()),
        **dict.fromkeys(BOX_COLUMNS, st.floats(-5, 70, width=32)),
    }
    logs = [Edits.empty()]
    for _ in range(draw(st.integers(1, 6))):
        there = logs[-1].applied_to(cells)
        if not len(there):
            break
        field = draw(st.sampled_from(FIELDS))
        cell_id, why = draw(st.sampled_from(ids(there))), draw(st.text('aü"\n,', max_size=3))
        logs.append(logs[-1].note(there, cell_id, field, draw(values[field]), who="ab", why=why))
    return cells, logs


@given(reviews())
@settings(max_examples=60)
def test_undoing_the_last_edits_goes_back_step_by_step(review: tuple[Cells, list[Edits]]) -> None:
    cells, logs = review
    last = logs[-1]
    for kept in range(len(logs)):
        back = undo(last, range(kept, len(last)))
        assert back.applied_to(cells).frame.equals(logs[kept].applied_to(cells).frame)
        assert back.frame.head(len(last)).equals(last.frame), "a log only grows"
        assert len(back) == 2 * len(last) - kept


@given(reviews())
@settings(max_examples=40)
def test_applying_twice_is_applying_once(review: tuple[Cells, list[Edits]]) -> None:
    cells, logs = review
    kept = logs[-1].frame.filter(pl.col("field") != "deleted")
    once = Edits(kept).applied_to(cells)
    assert Edits(kept).applied_to(once).frame.equals(once.frame)


# -- on disk --------------------------------------------------------------------------------------


@given(review=reviews())
@settings(max_examples=40)
def test_a_log_comes_back_from_disk(
    tmp_path_factory: pytest.TempPathFactory, review: tuple[Cells, list[Edits]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "review [1] ü" / "edits.csv"
    review[1][-1].write_csv(path)
    assert Edits.read_csv(path).frame.equals(review[1][-1].frame)


def test_labels_that_look_like_numbers_or_nothing_come_back(tmp_path: Path) -> None:
    labels = LabelSet(("1", "2.0", "null", "true"))
    cells = Cells.of(labels, image_id=["a"], boxes=[[0, 0, 1, 1]], label=[None], source="x")
    log = Edits.empty()
    for name in (*labels.names, None):
        log = log.note(cells, ids(cells)[0], "label", name, who="")
    log.write_csv(tmp_path / "edits.csv")
    assert Edits.read_csv(tmp_path / "edits.csv").frame.equals(log.frame)


def test_columns_that_a_spreadsheet_moved_are_found_by_name(tmp_path: Path) -> None:
    cells = three()
    log = Edits.empty().note(cells, ids(cells)[0], "label", "MO", who="ab")
    log.frame.select(log.frame.columns[::-1]).with_columns(comment=pl.lit("x")).write_csv(tmp_path / "edits.csv")
    assert Edits.read_csv(tmp_path / "edits.csv").frame.equals(log.frame)


def no_file(path: Path) -> None:
    del path


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def other_table(path: Path) -> None:
    path.write_text("cell_id,field\na,label\n")


@pytest.mark.parametrize("spoil", [no_file, empty_file, other_table, Path.mkdir])
def test_a_file_that_is_no_log_is_a_dataset_error(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    spoil(tmp_path / "edits.csv")
    with pytest.raises(DatasetError, match=r"edits\.csv: cannot be read as a log of edits"):
        Edits.read_csv(tmp_path / "edits.csv")
