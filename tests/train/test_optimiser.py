"""The schedule and the running average, by the figures of the published recipe."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cytolens.train.optimiser import (
    RunningAverage,
    learning_rate_share,
    optimiser_and_schedule,
    parameter_groups,
)
from cytolens.train.settings import Optimise

pytestmark = pytest.mark.torch

# Batch 16, 150 epochs of 2,261 steps, 5 of warm-up and 15 at the end; 0.01 / 64 per image.
PUBLISHED = Optimise(
    epochs=150, closing_epochs=15, warmup_epochs=5, learning_rate=0.01 / 64 * 16, final_share=0.05, batch=16
)
STEPS = 2261


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 0.0), (1, 0.0001), (5, 0.0025), (70, 0.0013125), (135, 0.000125), (150, 0.000125)]
)
def test_the_learning_rates_of_the_published_recipe(epoch: int, rate: float) -> None:
    share = learning_rate_share(epoch * STEPS, STEPS, PUBLISHED)
    assert share * PUBLISHED.learning_rate == pytest.approx(rate, rel=1e-6, abs=3e-9)


@given(
    epochs=st.integers(1, 40),
    closing=st.integers(0, 60),
    warm=st.floats(0, 50),
    steps=st.integers(1, 30),
    final=st.floats(0.01, 1),
)
def test_the_schedule_rises_then_falls_and_stays_in_bounds(epochs, closing, warm, steps, final) -> None:
    settings = Optimise(epochs=epochs, closing_epochs=closing, warmup_epochs=warm, final_share=final)
    shares = [learning_rate_share(step, steps, settings) for step in range(epochs * steps + 1)]
    assert all(0 < share <= 1 for share in shares)
    top = shares.index(max(shares))
    assert all(a <= b for a, b in pairwise(shares[: top + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(shares[top:]))
    if warm + 1 < epochs - closing:
        assert shares[math.ceil((epochs - closing) * steps)] == final


def test_without_warm_up_it_starts_at_the_top() -> None:
    assert learning_rate_share(0, 10, Optimise(epochs=10, warmup_epochs=0, closing_epochs=2)) == 1.0


# -- parameters -----------------------------------------------------------------------------------


def test_only_weights_of_convolutions_and_linear_layers_decay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    network.register_parameter("frozen", frozen)
    decayed, plain = parameter_groups(network, 5e-4)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (5e-4, 0.0)
    assert [tuple(p.shape) for p in plain["params"]] == [(4,), (4,), (4,), (2,)]
    ids = [id(p) for group in (decayed, plain) for p in group["params"]]
    assert len(set(ids)) == len(ids) == sum(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(("kind", "momentum"), [("sgd", 0.9), ("sgd", 0.0), ("adamw", 0.9)])
def test_the_optimiser_follows_the_schedule(kind: str, momentum: float) -> None:
    settings = Optimise.model_validate(
        {"optimiser": kind, "momentum": momentum, "epochs": 4, "closing_epochs": 1, "warmup_epochs": 1}
    )
    module = cast(Any, nn.Linear(2, 2))
    module.trainer = SimpleNamespace(estimated_stepping_batches=20)  # five steps per epoch
    made = optimiser_and_schedule(module, settings)
    optimiser, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert made["lr_scheduler"]["interval"] == "step"
    assert isinstance(optimiser, torch.optim.SGD if kind == "sgd" else torch.optim.AdamW)
    if kind == "sgd":
        assert optimiser.defaults["nesterov"] == (momentum > 0)
    for step in range(20):
        expected = settings.learning_rate * learning_rate_share(step, 5, settings)
        assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([expected] * 2)
        optimiser.step()
        schedule.step()


# -- the running average ----------------------------------------------------------------------------


def test_the_decay_of_the_average_is_the_published_one() -> None:
    mean = RunningAverage(0.9998, 2000)._kwargs["avg_fn"]
    # From 0 towards 1 the share that stays is what is missing to 1.
    assert 1 - mean(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), 1000).item() == (
        pytest.approx(0.393391, abs=5e-7)
    )
    late = 1 - mean(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), 10**6).item()
    assert late == pytest.approx(0.9998, abs=1e-9)


def test_counters_are_copied_and_not_averaged() -> None:
    mean = RunningAverage(0.99, 10)._kwargs["avg_fn"]
    assert mean(torch.tensor(3), torch.tensor(8), 100).item() == 8
    assert RunningAverage(0.99, 10)._use_buffers


def test_the_average_of_a_run_of_weights_is_that_of_the_formula() -> None:
    from torch.optim.swa_utils import AveragedModel

    network = nn.Linear(1, 1, bias=False).double()
    average = AveragedModel(network, **RunningAverage(0.9, 3.0)._kwargs)
    values = [1.0, 4.0, 2.0, 8.0, 5.0]
    slow = values[0]
    for count, value in enumerate(values):
        with torch.no_grad():
            network.weight.fill_(value)
        average.update_parameters(network)
        if count:
            keep = 0.9 * (1 - math.exp(-count / 3.0))
            slow = keep * slow + (1 - keep) * value
    assert average.module.state_dict()["weight"].item() == pytest.approx(slow)
