"""Attributes between tables and tensors: what is known, and how it is read back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cytolens.cells import Cells
from cytolens.labels import AttributeSchema, LabelSet, attribute_schema
from cytolens.problems import LabelError
from cytolens.tasks import attributes
from cytolens.tasks.attributes import UNKNOWN, AttributeOutput

SIZE = AttributeSchema("s", "size", ("small", "medium", "large"), ordered=True)
TINT = AttributeSchema("s", "tint", ("blue", "red"))
OTHER = AttributeSchema("t", "tint", ("a", "b"))
LABELS = LabelSet.of(["leukocyte", "neutrophil", "band neutrophil", "lymphocyte"], (SIZE, TINT))
NAMES = [None, *LABELS.names]


def cells(rows: list[tuple]) -> Cells:
    return Cells.of(
        LABELS,
        image_id=["a.png"] * len(rows),
        boxes=[[i, 0, i + 5, 5] for i in range(len(rows))],
        label=[row[0] for row in rows],
        source="import:x",
        attributes={"s.size": [row[1] for row in rows], "s.tint": [row[2] for row in rows]},
    )


rows_of_cells = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from([None, *SIZE.values]), st.sampled_from([None, *TINT.values])),
    max_size=6,
)


def test_attributes_are_chosen_by_schema_or_column_in_the_order_of_the_data() -> None:
    there = (SIZE, OTHER, TINT)
    assert attributes.chosen(there, ["s"]) == (SIZE, TINT)
    assert attributes.chosen(there, ["t.tint", "s.size"]) == (SIZE, OTHER)
    assert attributes.chosen(there, []) == ()
    with pytest.raises(LabelError, match=r'attributes = "s\.sice": .*Did you mean "s\.size"'):
        attributes.chosen(there, ["s.sice"])
    with pytest.raises(LabelError, match="There are: none"):
        attributes.chosen((), ["wbcatt"])


@given(rows=rows_of_cells)
def test_what_is_known_can_be_read_back(rows: list[tuple]) -> None:
    table = cells(rows)
    known = attributes.known(table)
    leaves = len(LABELS.leaves)
    assert known.shape == (len(rows), leaves + 2)
    assert known.dtype == np.int8
    for (name, size, tint), row in zip(rows, known.tolist(), strict=True):
        allowed = [name is not None and LABELS.is_a(leaf, name) for leaf in LABELS.leaves]
        assert [bool(one) for one in row[:leaves]] == allowed
        assert row[leaves:] == [
            UNKNOWN if value is None else a.values.index(value) for a, value in ((SIZE, size), (TINT, tint))
        ]
    assert attributes.told(table).tolist() == [any(one is not None for one in row) for row in rows]


def test_without_attributes_only_leaves_are_known() -> None:
    plain = cells([("neutrophil", None, None)]).relabel(LabelSet.of(LABELS.names))
    assert attributes.known(plain).dtype == bool
    assert attributes.known(plain).tolist() == [[True, False]]


@given(
    logits=hnp.arrays(np.float32, (4, 3), elements=st.floats(-30, 30, width=32)),
    kind=st.sampled_from(["softmax", "sigmoid"]),
)
def test_probabilities_sum_to_one_and_keep_the_order(logits: np.ndarray, kind) -> None:
    table = attributes.shares(logits, "s.size", AttributeOutput(outputs=kind, temperature={"s.size": 2.0}))
    assert table.sum(axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    for row, shares in zip(logits, table, strict=True):
        assert shares[row.argmax()] == shares.max()


def test_sigmoids_are_those_of_the_loss() -> None:
    table = attributes.shares(np.array([[0.5, -0.5]], np.float32), "x", AttributeOutput(outputs="sigmoid"))
    each = 1 / (1 + np.exp([-0.5, 0.5]))
    assert table[0] == pytest.approx(each / each.sum(), abs=1e-6)


def test_a_table_is_parted_as_it_was_joined() -> None:
    table = np.arange(10.0).reshape(2, 5)
    parts = attributes.parted(table, (SIZE, TINT))
    assert {column: part.tolist() for column, part in parts.items()} == {
        "s.size": [[0, 1, 2], [5, 6, 7]],
        "s.tint": [[3, 4], [8, 9]],
    }
    assert attributes.parted(np.zeros((2, 0)), ()) == {}


def test_a_value_is_given_where_it_is_sure() -> None:
    table = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [np.nan] * 3], np.float32)
    assert attributes.values_given(table, SIZE, AttributeOutput()) == ["small", "large", None]
    assert attributes.values_given(table, SIZE, AttributeOutput(sure={"s.size": 0.6})) == [None, "large", None]
    assert attributes.values_given(table[:0], SIZE, AttributeOutput()) == []


def test_shares_of_a_kind_count_its_kinds_and_leave_nothing_impossible() -> None:
    table = cells(
        [
            ("band neutrophil", "large", "red"),
            ("neutrophil", "large", None),
            ("lymphocyte", None, None),
            (None, "small", None),
        ]
    )
    kinds = attributes.shares_by_kind(table)
    assert set(kinds) == {"leukocyte", "neutrophil", "band neutrophil"}
    assert kinds["neutrophil"]["s.size"] == pytest.approx([1 / 9, 1 / 9, 7 / 9], abs=1e-5)
    assert kinds["band neutrophil"]["s.tint"] == pytest.approx([0.25, 0.75])


def test_only_kinds_that_were_learnt_from_are_described() -> None:
    names = ["leukocyte", "neutrophil", "band neutrophil", "lymphocyte", "reactive lymphocyte", "monocyte", "platelet"]
    labels = LabelSet.of(names)
    table = {"s.size": (0.2, 0.3, 0.5)}
    output = AttributeOutput(kinds=dict.fromkeys(("leukocyte", "neutrophil", "Lymphocyte"), table))
    told = attributes.describable([*names, None], labels, output)
    # "band neutrophil" refines a kind that was learnt from; a monocyte is a sibling, and nobody said how it looks
    assert told.tolist() == [True, True, True, True, True, False, False, True]
    assert attributes.describable(["platelet"], labels, AttributeOutput()).all()
    kinds = [attributes.kind_of(name, labels, output) for name in [*names, None]]
    assert kinds == ["leukocyte", "neutrophil", "neutrophil", "Lymphocyte", "Lymphocyte", "leukocyte", None, None]


def test_wbcatt_has_31_values() -> None:
    wbcatt = attribute_schema("wbcatt")
    assert len(wbcatt) == 11
    assert sum(attributes.widths(wbcatt)) == 7 * 2 + 6 + 3 + 4 + 4
