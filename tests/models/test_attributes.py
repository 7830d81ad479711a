"""The head of attributes and its losses, each against the worked example or a slow twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cytolens.models import catalog
from cytolens.models.attributes import (
    UNKNOWN,
    AttributeHeads,
    asymmetric_terms,
    cross_entropy_terms,
    mean_of_known,
    weights_of,
)

pytestmark = pytest.mark.torch

VALUES = (2, 3, 4)
logit_tables = hnp.arrays(np.float32, (5, sum(VALUES)), elements=st.floats(-12, 12, width=32))
truths = st.lists(st.tuples(*[st.integers(-1, count - 1) for count in VALUES]), min_size=5, max_size=5)


def split(row: list[float]) -> list[list[float]]:
    return [row[:2], row[2:5], row[5:]]


def test_the_head_gives_the_right_number_of_values() -> None:
    heads = AttributeHeads(7, VALUES)
    assert heads(torch.zeros(3, 7)).shape == (3, 9)


@given(logits=logit_tables, truth=truths, smoothing=st.floats(0, 0.5))
def test_cross_entropy_is_that_of_each_attribute(logits: np.ndarray, truth: list, smoothing: float) -> None:
    got = cross_entropy_terms(torch.from_numpy(logits), torch.tensor(truth), VALUES, smoothing).tolist()
    for row, right, terms in zip(logits.astype(float).tolist(), truth, got, strict=True):
        for part, index, term in zip(split(row), right, terms, strict=True):
            if index == UNKNOWN:
                assert term == 0
                continue
            total = math.log(sum(math.exp(x - max(part)) for x in part)) + max(part)
            costs = [total - x for x in part]
            wanted = (1 - smoothing) * costs[index] + smoothing * sum(costs) / len(costs)
            assert term == pytest.approx(wanted, abs=2e-4)


def test_the_asymmetric_loss_of_the_worked_example() -> None:
    """leukemia_attri.md, section 5: one cell, two attributes of two values."""
    logits = torch.tensor([[0.5, -0.5, 2.0, -1.0]])
    terms = asymmetric_terms(logits, torch.tensor([[1, 0]]), (2, 2))
    assert terms[0].tolist() == pytest.approx([0.067704 + 0.606323, 0.015130 + 0.000267], abs=2e-6)
    assert terms.sum().item() == pytest.approx(0.689424, abs=2e-6)
    pairs = [logits[0, :2].softmax(0), logits[0, 2:].softmax(0)]
    assert pairs[0].tolist() == pytest.approx([0.731059, 0.268941], abs=1e-6)
    assert pairs[1].tolist() == pytest.approx([0.952574, 0.047426], abs=1e-6)


@given(logits=logit_tables, truth=truths)
def test_the_asymmetric_loss_is_the_formula_value_by_value(logits: np.ndarray, truth: list) -> None:
    got = asymmetric_terms(torch.from_numpy(logits), torch.tensor(truth), VALUES).tolist()
    for row, right, terms in zip(logits.astype(float).tolist(), truth, got, strict=True):
        for part, index, term in zip(split(row), right, terms, strict=True):
            wanted = 0.0
            for value, x in enumerate(part):
                s = 1 / (1 + math.exp(-x))
                kept = min(1 - s + 0.08, 1)
                wanted -= (1 - s) * math.log(s) if value == index else (1 - kept) ** 4 * math.log(kept)
            assert term == pytest.approx(0 if index == UNKNOWN else wanted, abs=1e-4)


@pytest.mark.parametrize("terms", [cross_entropy_terms, asymmetric_terms])
def test_an_unknown_value_teaches_nothing_and_takes_nothing_from_the_others(terms) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 9, requires_grad=True)
    truth = torch.tensor([[0, -1, 3], [-1, -1, -1]])
    mean_of_known(terms(logits, truth, VALUES), truth, VALUES).backward()
    assert logits.grad is not None
    learnt = logits.grad.abs() > 0
    assert learnt[0].tolist() == [True] * 2 + [False] * 3 + [True] * 4
    assert not learnt[1].any()


@pytest.mark.parametrize("terms", [cross_entropy_terms, asymmetric_terms])
def test_losses_stay_finite_at_both_ends_and_in_half_precision(terms) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = terms(logits, torch.tensor([[0], [0]]), (2,)).sum()
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_with_nothing_known_the_loss_is_zero() -> None:
    truth = torch.full((2, 3), UNKNOWN)
    assert mean_of_known(torch.zeros(2, 3), truth, VALUES).item() == 0


@given(truth=truths, balance=st.floats(0, 1))
def test_weights_are_one_on_average_and_even_out_values(truth: list, balance: float) -> None:
    table = torch.tensor(truth)
    parts = weights_of(table, VALUES, balance).split(list(VALUES))
    for index, weights in zip(table.unbind(dim=1), parts, strict=True):
        known = index[index != UNKNOWN]
        if len(known):
            assert weights[known].mean().item() == pytest.approx(1, abs=1e-5)
        seen = torch.bincount(known, minlength=len(weights))
        for a in range(len(weights)):
            for b in range(len(weights)):
                if seen[a] and seen[b]:
                    ratio = (seen[b].item() / seen[a].item()) ** balance
                    assert (weights[a] / weights[b]).item() == pytest.approx(ratio, rel=1e-4)


def test_each_term_has_the_weight_of_its_own_value() -> None:
    truth = torch.tensor([[1, 2], [0, -1]])
    weights = torch.tensor([1.0, 2.0, 10.0, 20.0, 40.0])
    terms = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert mean_of_known(terms, truth, (2, 3), weights).item() == pytest.approx((2 + 40 + 1) / 3)


def test_gradients_of_attributes_reach_the_backbone() -> None:
    torch.manual_seed(0)
    network = catalog.classifier(
        "test_efficientnet", classes=2, side_px=32, norm="batch", dropout=0, drop_path=0, attributes=VALUES
    )
    logits, embedding, described = network(torch.rand(2, 3, 32, 32) * 255)
    assert (logits.shape, described.shape) == ((2, 2), (2, 9))
    assert embedding.shape[0] == 2
    cross_entropy_terms(described, torch.tensor([[0, 1, 2], [1, 0, -1]]), VALUES).sum().backward()
    backbone = [p.grad for name, p in network.named_parameters() if name.startswith("backbone")]
    assert sum(grad is not None and bool(grad.abs().sum() > 0) for grad in backbone) > len(backbone) / 2
    assert network.get_parameter("head.weight").grad is None
