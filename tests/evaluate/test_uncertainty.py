from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens.evaluate.uncertainty import percentile_interval, resample_groups, resampling, wilson
from cytolens.images import Images
from tests import reference_scores as slow


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # Newcombe 1998, table I, and Brown, Cai & DasGupta 2001
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_textbook_values(successes, total, low, high):
    assert wilson(successes, total) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_equals_scipy_and_the_quadratic(case, level):
    from scipy.stats import binomtest

    successes, total = case
    low, high = wilson(successes, total, level)
    other = binomtest(successes, total).proportion_ci(level, method="wilson")
    assert (low, high) == pytest.approx((other.low, other.high), abs=1e-9)
    assert 0 <= low <= successes / total <= high <= 1
    assert wilson(successes, total) == pytest.approx(slow.wilson(successes, total), abs=1e-9)


def test_wilson_without_trials_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "total", "level"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 0.0)])
def test_wilson_refuses_nonsense(successes, total, level):
    with pytest.raises(ValueError, match="between 0 and"):
        wilson(successes, total, level)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 100))
def test_resamples_draw_whole_groups(groups, seed):
    weights = resample_groups(groups, 20, seed)
    assert weights.shape == (20, len(groups))
    names = sorted(set(groups))
    for row in weights:
        drawn = {g: {w for w, own in zip(row, groups, strict=True) if own == g} for g in names}
        assert all(len(values) == 1 for values in drawn.values())  # a group stays together
        assert sum(values.pop() for values in drawn.values()) == len(names)  # as many groups as there are
    assert (weights == resample_groups(groups, 20, seed)).all()


def test_resamples_follow_the_multinomial():
    weights = resample_groups(range(40), 4000, 7)
    # Each count is Binomial(40, 1/40): mean 1, variance 39/40.
    assert weights.mean() == 1
    assert weights.var() == pytest.approx(39 / 40, abs=0.02)
    assert (weights == 0).mean() == pytest.approx((39 / 40) ** 40, abs=0.01)
    assert not (weights == resample_groups(range(40), 4000, 8)).all()


def test_percentile_interval():
    assert percentile_interval(np.arange(1001)) == pytest.approx([25, 975])
    assert percentile_interval(np.append(np.arange(1001), [np.nan] * 50)) == pytest.approx([25, 975])
    assert percentile_interval([np.nan, np.nan]) is None
    assert percentile_interval([]) is None


def test_bootstrap_of_a_mean_has_the_known_width():
    values = np.random.default_rng(0).normal(size=400)
    weights = resample_groups(range(400), 2000, 1)
    low, high = percentile_interval((weights @ values) / weights.sum(axis=1)) or (0, 0)
    half = 1.96 * values.std() / 20
    assert high - low == pytest.approx(2 * half, rel=0.08)
    assert low == pytest.approx(values.mean() - half, abs=0.02)


def _images(groups):
    return Images.of([{"image_id": str(i), "group": g} for i, g in enumerate(groups)])


def test_resampling_by_group_where_known():
    made = resampling(_images(["a", "a", "b"]), 50, 0)
    assert (made.unit, made.groups) == ("group", 2)
    assert made.weights is not None
    assert (made.weights[:, 0] == made.weights[:, 1]).all()
    assert made.notes == ("The intervals are rough: they come from 2 groups only.",)


def test_resampling_by_image_where_no_group_is_known():
    made = resampling(_images([None] * 12), 50, 0)
    assert (made.unit, made.groups, made.notes) == ("image", 12, ())


def test_images_without_a_group_stand_alone():
    made = resampling(_images(["a"] * 3 + [None] * 12), 50, 0)
    assert (made.unit, made.groups) == ("group", 13)
    assert "12 images without a group" in made.notes[0]


def test_one_group_gives_no_interval_and_says_so():
    made = resampling(_images(["a", "a"]), 50, 0)
    assert made.weights is None
    assert "no intervals" in made.notes[0]
    assert resampling(_images(["a", "b"]), 0, 0).weights is None
