"""The schedules of a training of outlines, with the figures that the specification works out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cytolens.train.optimiser import epochs_behind, steps_of
from cytolens.train.segment_settings import SegmentOptimise, SegmentTraining, extra_images, loss_weights
from cytolens.train.settings import Optimise

pytestmark = pytest.mark.torch

_DECAYING = ("class", "box", "rpn_class", "rpn_box", "mask")


def share_of_mask(weights: dict[str, float]) -> float:
    return weights["mask"] / sum(weights[name] for name in _DECAYING)


def test_the_loss_decay_has_the_figures_of_the_specification() -> None:
    first, middle, last = (loss_weights(epoch, 40) for epoch in (1, 20, 40))
    assert set(first.values()) == {1.0}
    assert middle["class"] == pytest.approx(0.5476, abs=5e-5)
    assert middle["box"] == middle["rpn_class"] == middle["rpn_box"] == pytest.approx(0.7619, abs=5e-5)
    assert share_of_mask(middle) == pytest.approx(0.2609, abs=5e-5)
    assert last["class"] == pytest.approx(0.0714, abs=5e-5)
    assert last["box"] == pytest.approx(0.5238, abs=5e-5)
    assert share_of_mask(last) == pytest.approx(0.3784, abs=5e-5)
    assert middle["mask"] == last["mask"] == last["semantic"] == 1


@given(epochs=st.integers(1, 200))
def test_the_share_of_the_mask_never_falls(epochs: int) -> None:
    shares = [share_of_mask(loss_weights(epoch, epochs)) for epoch in range(1, epochs + 1)]
    assert (np.diff(shares) >= 0).all()
    assert shares[0] == pytest.approx(0.2)


@pytest.mark.parametrize("epoch", [0, 11])
def test_epochs_are_counted_from_one(epoch: int) -> None:
    with pytest.raises(ValueError, match=f"counted from 1 to 10; got {epoch}"):
        loss_weights(epoch, 10)


def test_extra_images_have_the_figures_of_the_specification() -> None:
    assert extra_images(16, 2000) == [800] * 8 + [750, 550, 350, 200, 100, 0, 0, 0]
    assert extra_images(16, 300) == [300] * 11 + [200, 100, 0, 0, 0]
    assert extra_images(16, 2000, most=400) == [400] * 10 + [350, 200, 100, 0, 0, 0]


@given(epochs=st.integers(1, 100), available=st.integers(0, 2000), most=st.integers(0, 1000))
def test_extra_images_fall_to_none(epochs: int, available: int, most: int) -> None:
    counts = extra_images(epochs, available, most)
    assert len(counts) == epochs
    assert counts[-1] == 0
    assert (np.diff(counts) <= 0).all()
    assert max(counts) <= min(available, most)


@given(steps=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_epochs_of_unequal_length_are_counted(steps: list[int]) -> None:
    """The slow twin walks through every step of every epoch."""
    walked = [epoch + part / count for epoch, count in enumerate(steps) for part in range(count)]
    assert [epochs_behind(step, steps) for step in range(sum(steps))] == pytest.approx(walked)
    assert epochs_behind(sum(steps), steps) == len(steps)


def test_steps_leave_out_a_last_partial_batch_but_not_the_only_one() -> None:
    four = Optimise(batch=4)
    assert [steps_of(length, 1, four) for length in (1, 4, 7, 8, 805)] == [1, 1, 1, 2, 201]
    assert steps_of(16, 2, four) == 4  # two processes with two samples of each batch


def test_a_part_of_the_optimiser_keeps_the_rest() -> None:
    settings = SegmentTraining.model_validate({"optimise": {"epochs": 3}, "network": {"channels": 64}})
    assert settings.optimise == SegmentOptimise(epochs=3)
    assert (settings.optimise.optimiser, settings.optimise.batch) == ("adamw", 4)
    assert (settings.network.channels, settings.network.region_samples) == (64, 128)
    assert settings.model == "mask-rcnn on resnet18"


@pytest.mark.parametrize("wrong", [{"crop_px": 100}, {"family": "yolact"}, {"extra": {"many": 3}}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SegmentTraining.model_validate(wrong)
