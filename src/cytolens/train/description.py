"""Training a classifier that also describes: names and attributes from one backbone.

A cell teaches what is known of it: a name without attributes, attributes without a name, or both.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytolens.labels import LabelSet
from cytolens.models.attributes import (
    UNKNOWN,
    asymmetric_terms,
    cross_entropy_terms,
    mean_of_known,
    weights_of,
)
from cytolens.tasks.attributes import parted, widths
from cytolens.train.classification import ClassifyModule, hierarchy_loss, macro_f1
from cytolens.train.classify_settings import ClassifyTraining


class DescribeModule(ClassifyModule):
    """A classifier with attributes in training.

    What it says of a batch is one table (B, K + ΣV): the logits of the leaves, then those of the attributes; what is
    known is another (B, K + A), as of `tasks.attributes.known`.

    Args:
        settings: of the training.
        labels: with the attributes to learn.
        known: of the training's cells, shape (N, K + A); the weights of values follow from it.
    """

    def __init__(self, settings: ClassifyTraining, labels: LabelSet, known: NDArray[np.int8]) -> None:
        super().__init__(settings, labels)
        self.values = widths(labels.attributes)
        truth = torch.from_numpy(known[:, len(labels.leaves) :])
        self.value_weights: Tensor
        self.register_buffer("value_weights", weights_of(truth, self.values, settings.attribute_balance))

    def said(self, images: Tensor) -> Tensor:
        """The logits of leaves and attributes (B, K + ΣV) of images (B, 3, S, S)."""
        logits, _embedding, described, *_concepts = self.network(images)
        return torch.cat([logits, described], dim=1)

    def loss(self, logits: Tensor, allowed: Tensor) -> Tensor:
        """The weighted sum of the mean losses of names and attributes: what is said (B, K + ΣV), known (B, K + A)."""
        leaves, share = len(self.labels.leaves), self.settings.attribute_share
        names, values = allowed[:, :leaves] == 1, allowed[:, leaves:]
        named = names.any(dim=1)
        of_names = hierarchy_loss(logits[named][:, :leaves], names[named], self.settings.smoothing).sum()
        terms = self._terms(logits[:, leaves:], values)
        of_values = mean_of_known(terms, values, self.values, self.value_weights)
        return (1 - share) * of_names / named.sum().clamp(min=1) + share * of_values

    def _terms(self, logits: Tensor, values: Tensor) -> Tensor:
        if self.settings.attribute_loss == "asymmetric":
            return asymmetric_terms(logits, values, self.values)
        return cross_entropy_terms(logits, values, self.values, self.settings.smoothing)

    def on_validation_epoch_end(self) -> None:
        """Score the tuning part: the mean of the macro-F1 of names and that of attributes, where there are several."""
        said, known = self.collected()
        leaves = len(self.labels.leaves)
        self.log("loss_tuning", self.loss(said.to(self.device), known.to(self.device)))
        single = (known[:, :leaves] == 1).sum(dim=1) == 1
        truth = known[single, :leaves].argmax(dim=1).numpy()
        best = said[single, :leaves].argmax(dim=1).numpy()
        of_values = value_macro_f1(said[:, leaves:].numpy(), known[:, leaves:].numpy(), self.labels)
        described = float(np.mean(list(of_values.values()))) if of_values else 0.0
        named = macro_f1(truth, best, leaves)
        self.log("accuracy", float((truth == best).mean()) if len(truth) else 0.0)
        self.log("f1_names", named)
        self.log("f1_attributes", described, prog_bar=True)
        self.log_dict({f"f1 {column}": score for column, score in of_values.items()})
        # With a single name there is nothing to tell apart, and its F1 of 1 would say nothing.
        told_apart = leaves > 1 and bool(single.any())
        self.log("score", (named + described) / 2 if told_apart else described, prog_bar=True)


def value_macro_f1(logits: NDArray[np.floating], truth: NDArray[np.integer], labels: LabelSet) -> dict[str, float]:
    """Column → macro-F1 over the values that occur, for attributes of which any is known.

    Args:
        logits: shape (N, ΣV).
        truth: index of each value or −1, shape (N, A).
        labels: with the attributes.
    """
    scores = {}
    for (column, part), index in zip(parted(logits, labels.attributes).items(), truth.T, strict=True):
        there = index != UNKNOWN
        if there.any():
            scores[column] = macro_f1(index[there], part[there].argmax(axis=1), part.shape[1])
    return scores
