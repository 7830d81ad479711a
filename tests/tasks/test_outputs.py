"""From logits to probabilities: one name of many, each name by itself, and names that are left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cytolens.labels import LabelSet
from cytolens.problems import LabelError
from cytolens.tasks.classify import ClassifyOutput, kept_leaves, probabilities, shares, sigmoids, spoken

LABELS = LabelSet.of(["neutrophil", "band neutrophil", "segmented neutrophil", "lymphocyte", "Background"])
logits_of_all = hnp.arrays(np.float32, (3, 4), elements=st.floats(-40, 40, width=32))


def output(**values: Any) -> ClassifyOutput:
    return ClassifyOutput(**values)


@given(logits=logits_of_all, temperature=st.floats(0.2, 5))
def test_without_a_name_left_out_softmax_is_as_before(logits: np.ndarray, temperature: float) -> None:
    got = shares(logits, output(temperature=temperature), LABELS)
    assert np.array_equal(got, probabilities(logits, temperature))


@given(logits=logits_of_all)
def test_softmax_without_a_name_is_that_of_the_others(logits: np.ndarray) -> None:
    got = shares(logits, output(leave_out=("Background",)), LABELS)
    assert (got[:, 3] == 0).all()
    assert np.allclose(got[:, :3], probabilities(logits[:, :3]), atol=1e-7)


@given(logits=logits_of_all, temperature=st.floats(0.2, 5))
def test_sigmoids_are_the_logistic_function(logits: np.ndarray, temperature: float) -> None:
    got = sigmoids(logits, temperature)
    for value, logit in zip(got.ravel().tolist(), logits.ravel().tolist(), strict=True):
        assert value == pytest.approx(1 / (1 + math.exp(-logit / temperature)), abs=1e-6)
    assert sigmoids(np.array([[-1e4, 1e4]])).tolist() == [[0.0, 1.0]]


@given(logits=logits_of_all, left=st.sampled_from([(), ("Background",), ("Background", "lymphocyte")]))
def test_shares_of_sigmoids_sum_to_one_and_keep_the_order(logits: np.ndarray, left: tuple[str, ...]) -> None:
    got = shares(logits, output(outputs="sigmoid", leave_out=left), LABELS)
    kept = kept_leaves(LABELS, output(leave_out=left))
    assert got.sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert (got >= 0).all()
    assert (got[:, ~kept] == 0).all()
    raw = sigmoids(logits)[:, kept]
    chosen = got[:, kept].argmax(axis=1)
    assert np.allclose(raw[np.arange(3), chosen], raw.max(axis=1), atol=1e-6)


def test_sigmoids_above_one_are_divided_and_what_is_missing_is_spread() -> None:
    sigmoid = output(outputs="sigmoid", leave_out=("Background",))
    logit = {share: math.log(share / (1 - share)) for share in (0.9, 0.6, 0.3, 0.1)}
    two = np.array([[logit[0.9], logit[0.6], logit[0.3], 9.0]])
    assert shares(two, sigmoid, LABELS)[0].tolist() == pytest.approx([0.9 / 1.8, 0.6 / 1.8, 0.3 / 1.8, 0], abs=1e-6)
    one = np.array([[logit[0.3], logit[0.1], logit[0.1], 9.0]])
    rest = 0.5 / 3
    assert shares(one, sigmoid, LABELS)[0].tolist() == pytest.approx([0.3 + rest, 0.1 + rest, 0.1 + rest, 0], abs=1e-6)
    nothing = shares(np.full((1, 4), -30.0), sigmoid, LABELS)
    assert nothing[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=1e-6)  # sure of nothing


def test_what_is_left_out_is_not_spoken() -> None:
    given = spoken(LABELS, output(leave_out=("background",)))  # spelled as a person would
    assert given.names == ("neutrophil", "band neutrophil", "segmented neutrophil", "lymphocyte")
    assert given.leaves == LABELS.leaves[:3]
    assert given.ancestors("band neutrophil") == LABELS.ancestors("band neutrophil")
    assert given.reportable == LABELS.reportable - {"Background"}
    assert given == LabelSet.of(given.names)
    assert spoken(LABELS, output()) is LABELS


@pytest.mark.parametrize(
    ("left", "complaint"),
    [
        (("nobody",), "nobody"),
        (("neutrophil",), "which have kinds of their own; name the kinds"),
        (LABELS.leaves, "none would be left to give"),
    ],
)
def test_what_cannot_be_left_out(left: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(LabelError, match=complaint):
        spoken(LABELS, output(leave_out=left))
