"""All pairs of 64-bit hashes within a Hamming distance, without comparing each with each.

Source of the method: Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Index = NDArray[np.intp]

_SPARED = 10  # a pair from blocks costs about ten times one that is merely compared
_TILE = (64, 2048)  # hashes compared at once: what is in between stays in the processor's cache


def near_pairs(hashes: Hashes, distance: int) -> tuple[Index, Index]:
    """Pairs i < j of hashes (N,) that differ in at most `distance` bits.

    Two hashes that differ in d bits agree in at least one of d + 1 blocks of bits, so only those that agree
    in a block are compared; where the blocks are so small that this would spare little, all are.
    """
    _check(distance)
    count = len(hashes)
    if _comparing_all_is_quicker(distance):
        return _compared(hashes, hashes, distance, ahead=True)
    found: list[NDArray[np.int64]] = []
    for shift, mask in _blocks(distance + 1):
        block = _narrow((hashes >> shift) & mask)
        order = np.argsort(block, kind="stable")
        found.append(_in_runs(hashes[order], block[order], order, distance, count))
    return _parted(found, count)


def near_across(left: Hashes, right: Hashes, distance: int, *, ahead: bool = False) -> tuple[Index, Index]:
    """Pairs of a hash on the left (N,) and one on the right (M,) that differ in at most `distance` bits.

    With `ahead` only pairs of left[i] and right[j] with i < j.
    """
    _check(distance)
    if _comparing_all_is_quicker(distance):
        return _compared(left, right, distance, ahead)
    found: list[NDArray[np.int64]] = []
    count = len(right)
    for shift, mask in _blocks(distance + 1):
        block = _narrow((right >> shift) & mask)
        order = np.argsort(block, kind="stable")
        sorted_right, block = right[order], block[order]
        wanted = _narrow((left >> shift) & mask)
        low, high = np.searchsorted(block, wanted, "left"), np.searchsorted(block, wanted, "right")
        alive = np.flatnonzero(low < high)
        step = 0
        while len(alive):
            at = low[alive] + step
            near = np.bitwise_count(left[alive] ^ sorted_right[at]) <= distance
            first, second = alive[near], order[at[near]]
            kept = first < second if ahead else slice(None)
            found.append(first[kept].astype(np.int64) * count + second[kept])
            step += 1
            alive = alive[low[alive] + step < high[alive]]
    return _parted(found, count)


def _check(distance: int) -> None:
    if distance < 0 or distance > 63:
        raise ValueError(f"a distance of 64-bit hashes lies between 0 and 63; got {distance}")


def _comparing_all_is_quicker(distance: int) -> bool:
    """Whether blocks of bits would still propose more than one in `_SPARED` of all pairs, if bits were chance."""
    return sum(1 / (int(mask) + 1) for _, mask in _blocks(distance + 1)) > 1 / _SPARED


def _compared(left: Hashes, right: Hashes, distance: int, ahead: bool) -> tuple[Index, Index]:
    """Pairs within the distance, each compared with each, a tile at a time."""
    firsts, seconds = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)]
    for top in range(0, len(left), _TILE[0]):
        rows = left[top : top + _TILE[0], None]
        for start in range(top if ahead else 0, len(right), _TILE[1]):
            near = np.bitwise_count(rows ^ right[start : start + _TILE[1]]) <= distance
            first, second = np.divmod(np.flatnonzero(near), near.shape[1])
            firsts.append(first + top)
            seconds.append(second + start)
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    if ahead:
        first, second = first[first < second], second[first < second]
    order = np.lexsort((second, first))
    return first[order], second[order]


def _blocks(count: int) -> list[tuple[np.uint64, np.uint64]]:
    """The 64 bits in `count` blocks of nearly equal size, as shift and mask."""
    edges = [64 * i // count for i in range(count + 1)]
    return [(np.uint64(a), np.uint64((1 << (b - a)) - 1)) for a, b in pairwise(edges)]


def _narrow(block: Hashes) -> NDArray[np.unsignedinteger]:
    """Blocks of up to 16 bits as such: NumPy sorts those by radix."""
    return block.astype(np.uint16) if len(block) and int(block.max()) < 1 << 16 else block


def _in_runs(
    hashes: Hashes, block: NDArray[np.unsignedinteger], order: Index, distance: int, count: int
) -> NDArray[np.int64]:
    """Codes of the near pairs inside runs of equal blocks; all three arrays are sorted by block."""
    found: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    alive = np.arange(count - 1)
    step = 1
    while len(alive):
        alive = alive[block[alive] == block[alive + step]]
        near = alive[np.bitwise_count(hashes[alive] ^ hashes[alive + step]) <= distance]
        first, second = order[near], order[near + step]
        found.append(np.minimum(first, second).astype(np.int64) * count + np.maximum(first, second))
        step += 1
        alive = alive[alive + step < count]
    return np.concatenate(found)


def _parted(codes: list[NDArray[np.int64]], count: int) -> tuple[Index, Index]:
    """Unique pairs from their codes."""
    unique = np.unique(np.concatenate(codes)) if codes else np.zeros(0, np.int64)
    return (unique // max(count, 1)).astype(np.intp), (unique % max(count, 1)).astype(np.intp)
