"""The floor of rare labels: exact counts, fair shares, no surprises when the data grow."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens.prepare.balance import repeats

names_of_cells = st.lists(st.sampled_from(["neutrophil", "band neutrophil", "細胞", "b"]), max_size=30)


@given(names=names_of_cells, floor=st.integers(0, 40), seed=st.integers(0, 5))
def test_every_label_reaches_the_floor_and_none_is_raised_further(names: list[str], floor: int, seed: int) -> None:
    shown = repeats(names, floor, seed)
    before, after = Counter(names), Counter(names[i] for i in shown)
    assert after == {name: max(count, floor) for name, count in before.items()}


@given(names=names_of_cells, floor=st.integers(0, 40), seed=st.integers(0, 5))
def test_cells_of_a_label_are_shown_equally_often_or_once_more(names: list[str], floor: int, seed: int) -> None:
    times = np.bincount(repeats(names, floor, seed), minlength=len(names))
    for name, count in Counter(names).items():
        own = times[[i for i, other in enumerate(names) if other == name]].tolist()
        if count >= floor:
            assert own == [1] * count
        else:
            least, more = divmod(floor, count)
            assert sorted(own) == [least] * (count - more) + [least + 1] * more


@given(names=names_of_cells, floor=st.integers(0, 40), seed=st.integers(0, 5))
def test_all_cells_come_first_and_in_order(names: list[str], floor: int, seed: int) -> None:
    assert repeats(names, floor, seed)[: len(names)].tolist() == list(range(len(names)))


@given(names=names_of_cells, floor=st.integers(2, 40))
def test_other_labels_do_not_change_which_cells_of_a_label_are_repeated(names: list[str], floor: int) -> None:
    alone = [i for i, name in enumerate(names) if name == "b"]
    among = [i for i in repeats(names, floor, 7)[len(names) :].tolist() if names[i] == "b"]
    assert among == [alone[i] for i in repeats(["b"] * len(alone), floor, 7)[len(alone) :].tolist()]


def test_chance_follows_from_the_seed() -> None:
    names = ["a"] * 20
    assert repeats(names, 30, 1).tolist() == repeats(names, 30, 1).tolist()
    assert repeats(names, 30, 1).tolist() != repeats(names, 30, 2).tolist()


@pytest.mark.parametrize("floor", [0, 1])
def test_without_a_floor_every_cell_is_shown_once(floor: int) -> None:
    assert repeats(["a", "b", "a"], floor).tolist() == [0, 1, 2]


def test_celluscans_copies_are_a_floor_of_4500() -> None:
    """Originals and totals as its notebook and README state them; together 72,651."""
    originals = {
        "Band Neutrophil": 1634, "Basophil": 1653, "Eosinophil": 7141, "Erythroblast": 1551,
        "Immature Granulocyte": 151, "Lymphocyte": 8685, "Metamyelocytes": 1015, "Monocyte": 5046, "Myeloblast": 1000,
        "Myelocytes": 1137, "Neutrophil": 6779, "Platelets": 2348, "Promyelocytes": 592, "Segmented Neutrophil": 2646,
    }  # fmt: skip
    names = [name for name, count in originals.items() for _ in range(count)]
    shown = repeats(names, 4500)
    assert len(names) == 41_378
    assert len(shown) == 72_651
    assert np.bincount(shown)[names.index("Immature Granulocyte")] in (29, 30)  # 4500 = 29 · 151 + 121
