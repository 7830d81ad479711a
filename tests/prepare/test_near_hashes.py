"""Pairs of hashes within a distance: all of them, none twice, against comparing each with each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens.prepare.near_hashes import near_across, near_pairs

words = st.integers(0, 2**64 - 1)
# Hashes near one another, so that there are pairs at every distance.
families = st.tuples(words, st.lists(st.sets(st.integers(0, 63), max_size=5), max_size=12)).map(
    lambda drawn: [drawn[0] ^ sum(1 << bit for bit in bits) for bits in drawn[1]]
)


@given(
    hashes=st.lists(words, max_size=6).flatmap(lambda some: families.map(lambda kin: some + kin)),
    distance=st.integers(0, 12),
)
def test_all_pairs_and_no_others(hashes: list[int], distance: int) -> None:
    first, second = near_pairs(np.array(hashes, np.uint64), distance)
    slow = {
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if bin(hashes[i] ^ hashes[j]).count("1") <= distance
    }
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == sorted(slow)


@given(left=families, right=families, distance=st.integers(0, 12))
def test_all_pairs_across(left: list[int], right: list[int], distance: int) -> None:
    right = right + left[:2]
    first, second = near_across(np.array(left, np.uint64), np.array(right, np.uint64), distance)
    slow = {(i, j) for i, a in enumerate(left) for j, b in enumerate(right) if bin(a ^ b).count("1") <= distance}
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == sorted(slow)


@pytest.mark.parametrize("distance", [2, 8, 9, 14])
def test_pairs_ahead_in_many_tiles(distance: int) -> None:
    """More hashes than are compared at once, on both sides of the distance from which all are compared."""
    random = np.random.default_rng(1)
    left = random.integers(0, 2**64, 5_000, dtype=np.uint64)
    flips = [random.choice(64, random.integers(0, distance + 2), replace=False) for _ in left]
    right = random.permutation(left ^ np.array([sum(1 << int(bit) for bit in some) for some in flips], np.uint64))
    near = np.array([np.bitwise_count(one ^ right) <= distance for one in left])
    for ahead, wanted in ((False, near), (True, np.triu(near, 1))):
        first, second = near_across(left, right, distance, ahead=ahead)
        assert np.array_equal(np.stack([first, second]), np.stack(np.nonzero(wanted)))
    first, second = near_pairs(right, distance)
    slow = np.triu(np.array([np.bitwise_count(one ^ right) <= distance for one in right]), 1)
    assert np.array_equal(np.stack([first, second]), np.stack(np.nonzero(slow)))


def test_planted_pairs_among_two_hundred_thousand() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, 200_000, dtype=np.uint64)
    planted = set()
    for i in range(300):
        flips = random.choice(64, int(random.integers(0, 4)), replace=False)
        hashes[100_000 + i] = hashes[i] ^ np.uint64(sum(1 << int(bit) for bit in flips))
        planted.add((i, 100_000 + i))
    first, second = near_pairs(hashes, 3)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == planted


@pytest.mark.parametrize("distance", [-1, 64])
def test_a_distance_beyond_the_bits_is_refused(distance: int) -> None:
    with pytest.raises(ValueError, match="between 0 and 63"):
        near_pairs(np.zeros(2, np.uint64), distance)
