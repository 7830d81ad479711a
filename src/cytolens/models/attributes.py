"""Attributes of cells: one head for all of them, and its losses.

The head reads features (B, D) of a cell, whether they are the embedding of its crop or what was pooled from a
detector's maps at its box, and gives the logits of all attributes side by side, (B, ΣV). What is known is
the index of each attribute's value, (B, A) integers, −1 where it is not known; an unknown value of one attribute
takes nothing from the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNKNOWN = -1


class AttributeHeads(nn.Module):
    """One linear layer per attribute, kept as one for speed.

    Args:
        width: number of features D.
        values: number of values V of each attribute, in order.
    """

    def __init__(self, width: int, values: Sequence[int]) -> None:
        super().__init__()
        self.values = tuple(values)
        self.linear = nn.Linear(width, sum(self.values))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) → logits (B, ΣV)."""
        return self.linear(features)


def cross_entropy_terms(logits: Tensor, truth: Tensor, values: Sequence[int], smoothing: float = 0.0) -> Tensor:
    """The cross-entropy of each attribute of each cell, shape (B, A); 0 where its value is not known.

    Args:
        logits: shape (B, ΣV).
        truth: index of each value or −1, shape (B, A).
        values: number of values of each attribute.
        smoothing: of the labels.
    """
    parts = logits.float().split(list(values), dim=1)
    terms = [
        F.cross_entropy(part, index.long(), ignore_index=UNKNOWN, label_smoothing=smoothing, reduction="none")
        for part, index in zip(parts, truth.unbind(dim=1), strict=True)
    ]
    return torch.stack(terms, dim=1)


def asymmetric_terms(
    logits: Tensor,
    truth: Tensor,
    values: Sequence[int],
    gamma_wrong: float = 4.0,
    gamma_right: float = 1.0,
    shift: float = 0.08,
) -> Tensor:
    """The asymmetric loss of each attribute of each cell, shape (B, A); 0 where its value is not known.

    Each value is an answer of its own, s = sigmoid(x). The right one costs −(1 − s)^γ+ · ln s; a wrong one, with
    s̄ = min(1 − s + shift, 1), costs −(1 − s̄)^γ− · ln s̄. A prediction from such a network uses the same sigmoids.

    Source: Ridnik et al., "Asymmetric Loss for Multi-Label Classification", ICCV 2021, with AttriDet's γ and shift.

    Args:
        logits: shape (B, ΣV).
        truth: index of each value or −1, shape (B, A).
        values: number of values of each attribute.
        gamma_wrong: γ−.
        gamma_right: γ+.
        shift: of the probability of wrong values.
    """
    terms = []
    for part, index in zip(logits.float().split(list(values), dim=1), truth.unbind(dim=1), strict=True):
        right = F.one_hot(index.long().clamp(min=0), part.shape[1]).bool()
        there = torch.sigmoid(part)
        absent = (1 - there + shift).clamp(max=1)
        cost = torch.where(
            right,
            -((1 - there) ** gamma_right) * F.logsigmoid(part),
            -((1 - absent) ** gamma_wrong) * absent.clamp(min=1e-8).log(),
        )
        terms.append(torch.where(index == UNKNOWN, 0.0, cost.sum(dim=1)))
    return torch.stack(terms, dim=1)


def weights_of(truth: Tensor, values: Sequence[int], balance: float) -> Tensor:
    """A weight for each value, shape (ΣV,): its frequency to the power −balance, 1 on average over the cells.

    Args:
        truth: what is known of the training's cells, shape (N, A).
        values: number of values of each attribute.
        balance: 0: all weigh 1; 1: all values of an attribute weigh the same together. Values that do not occur
            weigh 1.
    """
    weights = []
    for index, count in zip(truth.unbind(dim=1), values, strict=True):
        seen = torch.bincount(index[index != UNKNOWN].long(), minlength=count).double()
        raw = torch.where(seen > 0, seen.clamp(min=1) ** -balance, 0.0)
        mean = (raw * seen).sum() / seen.sum().clamp(min=1)
        weights.append(torch.where(seen > 0, raw / mean.clamp(min=1e-12), 1.0))
    return torch.cat(weights).float()


def mean_of_known(terms: Tensor, truth: Tensor, values: Sequence[int], weights: Tensor | None = None) -> Tensor:
    """The mean of the terms (B, A) over all values that are known, each times the weight of its value (ΣV,)."""
    there = truth != UNKNOWN
    if weights is not None:
        first = torch.tensor([0, *values[:-1]], device=truth.device).cumsum(0)
        terms = terms * weights[(truth.long().clamp(min=0) + first)]
    return torch.where(there, terms, 0.0).sum() / there.sum().clamp(min=1)
