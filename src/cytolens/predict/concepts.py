"""Names that are read from attributes: which of these spoke for a cell's name, and which against it.

A classifier with a concept bottleneck gives each name the logit b + Σ w·p, over the probabilities p of all values. With
m, the mean of p over the cells that were learnt from, w·(p − m) is what a value says beyond what it says of the average
cell. Weights are taken relative to their mean over the names, since what is added to all names alike changes none; and
the values of one attribute are added up, since their probabilities belong together. So the parts of all attributes add
up to how much further the name stands above the mean of all names than it does in the average cell, in nats.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolens.bundle import Bundle
from cytolens.labels import AttributeSchema, LabelSet
from cytolens.predict.ensemble import namers_of
from cytolens.tasks.attributes import parted

FILE = "concepts.npz"  # inside a bundle
_SAID_PER_SIDE = 2
_SILENT = 0.05  # nats; less is not worth a word


@dataclass(frozen=True, slots=True)
class Voice:
    """What one attribute says about a name.

    Attributes:
        attribute: of the label set.
        value: its most probable value, as the name was read from it.
        probability: of that value.
        weight: how far it speaks for the name, in nats; against it where negative.
    """

    attribute: AttributeSchema
    value: str
    probability: float
    weight: float


@dataclass(frozen=True, slots=True)
class Concepts:
    """The linear layer of a concept bottleneck.

    Attributes:
        weights: what a probability of 1 adds to each name's logit, shape (K, ΣV).
        bias: of the names, shape (K,).
        mean: of the probabilities over the cells that were learnt from, shape (ΣV,).
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float32]

    def contributions(self, concepts: NDArray[np.floating], leaves: Sequence[int]) -> NDArray[np.float64]:
        """What each value says for a leaf: relative weight × (probability − mean), shape (N, ΣV).

        Args:
            concepts: the probabilities, shape (N, ΣV).
            leaves: for which leaf, by its index, one per cell (N).
        """
        relative = self.weights.astype(np.float64) - self.weights.mean(axis=0, dtype=np.float64)
        return relative[np.asarray(leaves, np.intp)] * (np.asarray(concepts, np.float64) - self.mean)

    def voices(self, concepts: NDArray[np.floating], leaf: str, labels: LabelSet) -> list[Voice]:
        """What each attribute of one cell says about a leaf, the loudest for it first.

        Args:
            concepts: the cell's probabilities, shape (ΣV,).
            leaf: its name, among `labels`.
            labels: of the classifier.
        """
        told = self.contributions(concepts[None], [labels.leaves.index(leaf)])
        said, parts = parted(concepts[None], labels.attributes), parted(told, labels.attributes)
        voices = []
        for attribute in labels.attributes:
            best = int(said[attribute.column][0].argmax())
            probability, weight = float(said[attribute.column][0, best]), float(parts[attribute.column].sum())
            voices.append(Voice(attribute, attribute.values[best], probability, weight))
        return sorted(voices, key=lambda voice: -voice.weight)

    def to_bytes(self) -> bytes:
        """The arrays as an ``.npz`` file."""
        buffer = io.BytesIO()
        np.savez(buffer, weights=self.weights, bias=self.bias, mean=self.mean)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Concepts:
        """The reverse of `to_bytes`."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return cls(arrays["weights"], arrays["bias"], arrays["mean"])


def concepts_of(bundle: Bundle) -> tuple[Concepts, LabelSet] | None:
    """The layer that a bundle's names are read by, and the labels of its classifier.

    None: they are read from something else, several classifiers name together, or the layer is not known any more.
    """
    namers = namers_of(bundle)
    if len(namers) != 1 or (file := namers[0].file(FILE)) is None:
        return None
    return Concepts.from_bytes(file.read_bytes()), namers[0].labels


def for_and_against(voices: Sequence[Voice]) -> str:
    """The loudest voices in words: "for it: granule colour red +2.1; against it: cell size small −0.4"; or ""."""
    loud = [voice for voice in voices if abs(voice.weight) >= _SILENT]
    sides = (
        ("for it", [voice for voice in loud if voice.weight > 0][:_SAID_PER_SIDE]),
        ("against it", [voice for voice in reversed(loud) if voice.weight < 0][:_SAID_PER_SIDE]),
    )
    return "; ".join(f"{side}: {', '.join(map(_in_words, said))}" for side, said in sides if said)


def _in_words(voice: Voice) -> str:
    sign = "+" if voice.weight > 0 else "−"
    return f"{voice.attribute.name.replace('_', ' ')} {voice.value} {sign}{abs(voice.weight):.1f}"
