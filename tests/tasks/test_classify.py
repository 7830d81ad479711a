"""Classification: what is cut, and how probabilities become a name."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens.bundle import Bundle
from cytolens.labels import LabelSet
from cytolens.prepare.stain import StainSettings, change, measure, normalise
from cytolens.problems import LabelError
from cytolens.tasks.classify import (
    ClassifyInput,
    answers,
    crop_view,
    decide,
    pictures,
    prior_weights,
    probabilities,
    region,
    targets,
    with_evidence,
)
from cytolens.views import crop
from tests import reference
from tests.strategies import box_arrays, label_sets, published_sets

_AS_IS = StainSettings(background=False)
BLOOD = LabelSet.of(
    [
        "leukocyte",
        "neutrophil",
        "band neutrophil",
        "segmented neutrophil",
        "lymphocyte",
        "monocyte",
        "erythrocyte",
    ]
)


def shares_of(**given: float) -> NDArray[np.float64]:
    """One row of probabilities over the leaves of BLOOD."""
    named = {name.replace("_", " "): value for name, value in given.items()}
    assert set(named) <= set(BLOOD.leaves)
    return np.array([[named.get(leaf, 0.0) for leaf in BLOOD.leaves]])


# -- what is cut ----------------------------------------------------------------------------------


@given(boxes=box_arrays(least=1, most=1, side_px=60), context=st.floats(0.5, 3))
def test_the_region_is_a_square_about_the_box(boxes: NDArray[np.float64], context: float) -> None:
    settings = ClassifyInput(context=context)
    x_min, y_min, x_max, y_max = region(boxes[0], (80, 70), settings)
    assert x_max - x_min == pytest.approx(y_max - y_min)
    assert x_max - x_min == pytest.approx(context * max(boxes[0, 2] - boxes[0, 0], boxes[0, 3] - boxes[0, 1]))
    assert (x_min + x_max) / 2 == pytest.approx((boxes[0, 0] + boxes[0, 2]) / 2)
    assert (y_min + y_max) / 2 == pytest.approx((boxes[0, 1] + boxes[0, 3]) / 2)


@pytest.mark.parametrize("cell", [(0, 0, 80, 60), (-3, -1, 81, 60)])
def test_a_whole_image_is_not_grown(cell: tuple[int, ...]) -> None:
    x_min, y_min, x_max, y_max = region(cell, (80, 60), ClassifyInput(context=1.25))
    assert x_max - x_min == y_max - y_min == cell[2] - cell[0]


def test_a_box_a_pixel_smaller_than_the_image_is_grown() -> None:
    x_min, _, x_max, _ = region((0, 0, 79, 60), (80, 60), ClassifyInput(context=1.25))
    assert x_max - x_min == 1.25 * 79


def test_crops_show_the_field_in_its_own_proportions() -> None:
    """A disc stays a disc, in the middle, and covers the share of the crop that the context leaves it."""
    y, x = np.mgrid[:200, :300] + 0.5
    field = np.where(((x - 120) ** 2 + (y - 90) ** 2 <= 40**2)[..., None], 60, 220).astype(np.uint8).repeat(3, axis=2)
    shown = pictures(field, [[80, 50, 160, 130]], ClassifyInput(side_px=64, context=1.25, stain=_AS_IS))
    dark = shown[0, :, :, 0] < 140
    assert shown.shape == (1, 64, 64, 3)
    assert dark.any(axis=0).sum() == dark.any(axis=1).sum() == pytest.approx(64 / 1.25, abs=1)
    assert dark.mean() == pytest.approx(np.pi / 4 / 1.25**2, abs=0.01)
    assert np.argwhere(dark).mean(axis=0) == pytest.approx([31.5, 31.5], abs=0.5)


def test_an_upright_box_is_not_squeezed() -> None:
    field = np.full((100, 100, 3), 220, np.uint8)
    field[20:80, 40:60] = 60  # 20 wide, 60 high
    shown = pictures(field, [[40, 20, 60, 80]], ClassifyInput(side_px=60, context=1.0, stain=_AS_IS))[0, :, :, 0]
    assert (shown < 140).any(axis=0).sum() == pytest.approx(20, abs=1)
    assert (shown < 140).any(axis=1).sum() == 60


def test_what_reaches_beyond_the_field_repeats_its_edge() -> None:
    field = np.full((40, 40, 3), 200, np.uint8)
    field[:, :10] = (250, 10, 20)
    shown = pictures(field, [[0, 10, 10, 20]], ClassifyInput(side_px=64, context=3.0, stain=_AS_IS))
    assert (shown[0, :, :20] == (250, 10, 20)).all()
    assert (shown[0, :, -10:] == 200).all()


def test_crops_are_normalised_by_the_stain_of_the_whole_field() -> None:
    random = np.random.default_rng(3)
    field = np.full((120, 120, 3), (210, 200, 180), np.uint8)
    field[40:80, 40:80] = random.integers(60, 120, (40, 40, 3))
    settings = ClassifyInput(side_px=40, context=1.0)
    shown = pictures(field, [[40, 40, 80, 80]], settings)
    how = change(measure(field), settings.stain)
    assert (shown[0] == normalise(field[40:80, 40:80], how)).all()
    other = measure(np.full((9, 9, 3), 120, np.uint8))
    assert (pictures(field, [[40, 40, 80, 80]], settings, other) != shown).any()


def test_no_box_is_no_crop_and_many_are_in_order() -> None:
    field = np.full((50, 50, 3), 230, np.uint8)
    field[:25] = (90, 20, 20)
    settings = ClassifyInput(side_px=32, context=1.0, stain=_AS_IS)
    assert pictures(field, np.zeros((0, 4)), settings).shape == (0, 32, 32, 3)
    upper, lower = pictures(field, [[5, 5, 20, 20], [5, 30, 20, 45]], settings)
    assert (upper == (90, 20, 20)).all()
    assert (lower == 230).all()


@given(boxes=box_arrays(least=1, most=1, side_px=60))
def test_the_view_of_a_crop_takes_the_box_to_the_middle(boxes: NDArray[np.float64]) -> None:
    settings = ClassifyInput(side_px=96, context=1.25)
    there = crop_view(boxes[0], (90, 90), settings).forward_boxes(boxes)[0]
    assert (there[0] + there[2]) / 2 == pytest.approx(48, abs=1e-6)
    assert max(there[2] - there[0], there[3] - there[1]) == pytest.approx(96 / 1.25, abs=1e-6)


@cache
def shipped_input() -> ClassifyInput:
    settings = Bundle.load("wbc-classifier").info.classify_input
    assert settings is not None
    return settings


@given(boxes=box_arrays(least=1, most=4, side_px=60))
def test_the_shipped_classifier_sees_what_it_has_always_seen(boxes: NDArray[np.float64]) -> None:
    """It was learnt before there were margin and fit; the picture is the square of `context`, by its definition."""
    settings = shipped_input()
    assert settings == ClassifyInput.model_validate({"side_px": 160, "context": 1.25, "stain": {"background": True}})
    field = np.random.default_rng(5).integers(0, 256, (60, 60, 3)).astype(np.uint8)
    how = change(measure(field), settings.stain)
    for shown, (x_min, y_min, x_max, y_max) in zip(pictures(field, boxes, settings), boxes, strict=True):
        whole = x_min <= 0 and y_min <= 0 and x_max >= 60 and y_max >= 60
        half = max(x_max - x_min, y_max - y_min) * (1.0 if whole else settings.context) / 2
        x, y = (x_min + x_max) / 2, (y_min + y_max) / 2
        square = crop((60, 60), (x - half, y - half, x + half, y + half), settings.side_px).pixels(field)
        assert np.abs(shown.astype(int) - normalise(square, how)).max() <= 1  # half may differ by an ulp


def test_a_stretched_crop_fills_the_picture_with_the_box() -> None:
    field = np.full((100, 100, 3), 220, np.uint8)
    field[20:80, 40:60] = 60  # 20 wide, 60 high
    settings = ClassifyInput(side_px=60, margin_px=0, fit="stretch", stain=_AS_IS)
    assert (pictures(field, [[40, 20, 60, 80]], settings)[0, 1:-1, 1:-1] == 60).all()  # the rim shows its neighbours
    with_margin = settings.model_copy(update={"margin_px": 10})
    dark = pictures(field, [[40, 20, 60, 80]], with_margin)[0, :, :, 0] < 140  # 40 × 80 px are cut
    assert dark.any(axis=0).sum() == pytest.approx(60 * 20 / 40, abs=1)
    assert dark.any(axis=1).sum() == pytest.approx(60 * 60 / 80, abs=1)


# -- probabilities --------------------------------------------------------------------------------


@given(
    logits=st.lists(st.lists(st.floats(-60, 60), min_size=3, max_size=3), min_size=1, max_size=5),
    temperature=st.floats(0.1, 10),
)
def test_the_softmax_is_that_of_scipy(logits: list[list[float]], temperature: float) -> None:
    from scipy.special import softmax

    got = probabilities(np.array(logits), temperature)
    assert got == pytest.approx(softmax(np.array(logits) / temperature, axis=1), abs=1e-6)
    assert got.dtype == np.float32


def test_large_logits_do_not_overflow() -> None:
    assert probabilities(np.array([[1e4, 0.0]]), 0.1).tolist() == [[1.0, 0.0]]


@given(
    shares=st.lists(st.floats(0.01, 1), min_size=4, max_size=4),
    weights=st.lists(st.floats(0.01, 1), min_size=4, max_size=4),
)
def test_evidence_is_bayes_rule(shares: list[float], weights: list[float]) -> None:
    prior = np.array([shares]) / sum(shares)
    got = with_evidence(prior, np.array(weights))
    assert got.sum() == pytest.approx(1, abs=1e-5)
    for i in range(4):
        for j in range(4):  # the odds change by the ratio of the weights
            assert got[0, i] / got[0, j] == pytest.approx(shares[i] * weights[i] / (shares[j] * weights[j]), rel=1e-3)


def test_evidence_of_ones_changes_nothing() -> None:
    table_ = np.array([[0.2, 0.3, 0.5]])
    assert with_evidence(table_, np.ones(3)) == pytest.approx(table_)


# -- targets --------------------------------------------------------------------------------------


def test_a_parent_allows_all_of_its_kinds() -> None:
    allowed = targets(["neutrophil", "lymphocyte", "leukocyte"], BLOOD)
    named = [[leaf for leaf, yes in zip(BLOOD.leaves, row, strict=True) if yes] for row in allowed]
    assert named == [
        ["band neutrophil", "segmented neutrophil"],
        ["lymphocyte"],
        ["band neutrophil", "segmented neutrophil", "lymphocyte", "monocyte"],
    ]


@given(label_sets() | published_sets())
def test_every_name_allows_itself_or_its_kinds(labels: LabelSet) -> None:
    allowed = targets(list(labels.names), labels)
    for name, row in zip(labels.names, allowed, strict=True):
        assert [leaf for leaf, yes in zip(labels.leaves, row, strict=True) if yes] == list(labels.leaves_of(name))
        assert row.any()
    assert targets([], labels).shape == (0, len(labels.leaves))


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "name", "refer"),
    [
        ({"lymphocyte": 0.9, "monocyte": 0.1}, "lymphocyte", False),
        ({"band_neutrophil": 0.45, "segmented_neutrophil": 0.4, "monocyte": 0.15}, "neutrophil", False),
        ({"lymphocyte": 0.45, "monocyte": 0.4, "erythrocyte": 0.15}, "leukocyte", True),  # sure, but no answer
        ({"lymphocyte": 0.4, "erythrocyte": 0.35, "monocyte": 0.25}, "leukocyte", True),
        ({"erythrocyte": 0.55, "lymphocyte": 0.45}, "erythrocyte", False),
    ],
)
def test_the_deepest_name_that_is_sure(shares: dict[str, float], name: str, refer: bool) -> None:
    assert decide(shares_of(**shares), BLOOD, 0.5)[0] == [name]
    assert decide(shares_of(**shares), BLOOD, 0.5)[1].tolist() == [refer]


def test_an_unsure_cell_keeps_what_was_known_of_it() -> None:
    row = shares_of(erythrocyte=0.4, lymphocyte=0.3, monocyte=0.3)
    assert decide(row, BLOOD, 0.7)[0] == [None]
    assert decide(row, BLOOD, 0.7)[1].tolist() == [True]
    assert decide(row, BLOOD, 0.7, ["leukocyte"])[0] == ["leukocyte"]
    assert decide(row, BLOOD, 0.7, [None])[0] == [None]
    row = shares_of(lymphocyte=0.4, monocyte=0.3, erythrocyte=0.3)
    assert decide(row, BLOOD, 0.8)[0] == ["leukocyte"]  # nothing was known: the widest of its line
    assert decide(row, BLOOD, 0.8, ["monocyte"])[0] == ["monocyte"]


def test_no_cells_have_no_names() -> None:
    names, refer = decide(np.zeros((0, len(BLOOD.leaves))), BLOOD, 0.5)
    assert names == []
    assert refer.shape == (0,)


@st.composite
def decisions(draw: st.DrawFn) -> tuple[NDArray[np.float64], LabelSet, float, Any]:
    """Probabilities of a few cells over the leaves of any label set, a threshold, and what is known."""
    labels = draw(label_sets() | published_sets())
    width = len(labels.leaves)
    raw = draw(st.lists(st.lists(st.integers(1, 20), min_size=width, max_size=width), min_size=1, max_size=3))
    rows = np.array(raw, np.float64)
    names = st.none() | st.sampled_from(labels.names)
    known = draw(st.none() | st.lists(names, min_size=len(rows), max_size=len(rows)))
    return rows / rows.sum(axis=1, keepdims=True), labels, draw(st.floats(0.05, 0.999)), known


@given(decisions())
def test_names_are_those_of_the_slow_twin(drawn) -> None:
    rows, labels, sure, known = drawn
    sums = rows @ labels.leaf_matrix.T
    assume(np.abs(sums - sure).min() > 1e-9)  # else rounding decides
    names, refer = decide(rows, labels, sure, known)
    for i, row in enumerate(rows):
        shares = dict(zip(labels.leaves, row.tolist(), strict=True))
        before = None if known is None else known[i]
        assert (names[i], bool(refer[i])) == reference.decided(shares, labels.parents, labels.reportable, sure, before)


@given(decisions())
def test_a_given_name_is_sure_or_a_person_looks(drawn) -> None:
    rows, labels, sure, known = drawn
    names, refer = decide(rows, labels, sure, known)
    for i, name in enumerate(names):
        leaf = labels.leaves[int(rows[i].argmax())]
        line = {leaf, *labels.ancestors(leaf)}
        assert name in line or (refer[i] and name == (None if known is None else known[i]))
        if not refer[i]:
            assert name in labels.reportable
            assert rows[i] @ labels.leaf_matrix[labels.index(name)] >= sure


@given(decisions(), st.floats(0.05, 0.999))
def test_a_higher_demand_never_gives_a_deeper_name(drawn, other: float) -> None:
    rows, labels, sure, _ = drawn
    low, high = sorted((sure, other))
    for deep, wide in zip(decide(rows, labels, low)[0], decide(rows, labels, high)[0], strict=True):
        assert wide is None or deep is None or labels.is_a(deep, wide)


@pytest.mark.parametrize("views", [1, 2, 3, 4])
def test_logits_are_averaged_over_the_flips(views: int) -> None:
    def corner(shown: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        first = shown[:, 0, 0].astype(np.float32)
        return first, first * 10

    shown = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    logits, embedding = answers(corner, shown, views)
    corners = [shown[:, 0, 0], shown[:, 0, -1], shown[:, -1, 0], shown[:, -1, -1]][:views]
    assert logits == pytest.approx(np.mean(corners, axis=0))
    assert embedding == pytest.approx(shown[:, 0, 0].astype(float) * 10)


def test_a_prior_weighs_every_kind_by_the_nearest_name_that_has_one() -> None:
    labels = LabelSet.of(["leukocyte", "immature granulocyte", "promyelocyte", "myelocyte", "lymphocyte", "platelet"])
    weights = prior_weights({"immature granulocyte": 0.2, "MY": 0.5, "leukocyte": 2.0}, labels)
    assert dict(zip(labels.leaves, weights.tolist(), strict=True)) == {
        "promyelocyte": 0.2, "myelocyte": 0.5, "lymphocyte": 2.0, "platelet": 1.0
    }  # fmt: skip
    assert prior_weights({}, labels).tolist() == [1.0] * 4
    shares = np.full((1, 4), 0.25, np.float64)
    assert with_evidence(shares, weights).sum() == pytest.approx(1)
    with pytest.raises(LabelError, match="eosinophil"):
        prior_weights({"eosinophil": 0.5}, labels)
