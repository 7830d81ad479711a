"""Rare labels shown more often: an order of cells in which every label reaches a floor, and no file is copied.

Source of the wish: CelluScan wrote augmented copies of rare classes into the data until each had 4,500, and
split afterwards, so that copies of one cell stood on both sides. Here the floor holds for the cells that are
learnt from, after the split, and each repetition is augmented anew when it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def repeats(names: Sequence[str], floor: int, seed: int = 0) -> NDArray[np.intp]:
    """Which cell each sample of an epoch shows, so that every label is shown at least `floor` times.

    A label with fewer cells is gone through round and round, so that its cells are shown equally often, or
    some once more than others; chance only says which those are. A label that has enough is shown as it is.

    Args:
        names: the label of each cell (N); wide ones, such as "neutrophil", are labels like any other.
        floor: 0 or 1: every cell once.
        seed: the same one gives the same result.

    Returns:
        indices into `names`: first all N in order, then the repetitions, label by label in order of first
        appearance.
    """
    first = list(dict.fromkeys(names))
    number = {name: at for at, name in enumerate(first)}
    label = np.array([number[name] for name in names], np.intp)
    order = [np.arange(len(names), dtype=np.intp)]
    for at, name in enumerate(first):
        own = np.flatnonzero(label == at)
        # The chance of a label is its own: other labels, and how many cells they have, do not change it.
        chance = np.random.default_rng([seed, *name.encode()])
        order.append(np.resize(chance.permutation(own), max(floor - len(own), 0)))
    return np.concatenate(order)
