"""The concept bottleneck: a cell's name is read from the probabilities of its attributes, and from nothing else.

Source: Koh et al., "Concept Bottleneck Models", ICML 2020; its joint and sequential training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Probabilities move by less than 1 where logits of names move by 5 and more, and an adaptive optimiser's steps have one
# length for all weights: the layer keeps its weights in twentieths, so that it learns as fast as the others.
_GAIN = 20.0


class ConceptHead(nn.Module):
    """A linear layer from the probabilities of all attributes' values to the logits of the names.

    Args:
        values: number of values V of each attribute, in order.
        classes: number of leaves K.
        exclusive: probabilities of an attribute's values are their softmax; otherwise each is a sigmoid.
        detached: what the names teach ends at this layer; otherwise it goes on into the attributes.
    """

    def __init__(self, values: Sequence[int], classes: int, *, exclusive: bool = True, detached: bool = False) -> None:
        super().__init__()
        self.values, self.exclusive, self.detached = tuple(values), exclusive, detached
        self.linear = nn.Linear(sum(self.values), classes)
        nn.init.normal_(self.linear.weight, std=0.1 / _GAIN)
        nn.init.zeros_(self.linear.bias)

    def concepts(self, logits: Tensor) -> Tensor:
        """The probabilities (B, ΣV) of the values, from their logits (B, ΣV)."""
        if not self.exclusive:
            return logits.float().sigmoid()
        return torch.cat([part.softmax(dim=1) for part in logits.float().split(list(self.values), dim=1)], dim=1)

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the values (B, ΣV) → logits of the names (B, K), and the probabilities they are read from."""
        concepts = self.concepts(logits)
        return self.linear((concepts.detach() if self.detached else concepts) * _GAIN), concepts

    @property
    def weight(self) -> Tensor:
        """What a probability of 1 adds to each name's logit, shape (K, ΣV)."""
        return self.linear.weight * _GAIN
