"""How far a cell, or a field, lies from everything seen in training.

Cells: Mahalanobis distance of the classifier's embedding to the nearest class, after a projection to
the directions in which training cells vary. Source: Lee et al., "A Simple Unified Framework for
Detecting Out-of-Distribution Samples and Adversarial Attacks", NeurIPS 2018. Fields: a few plain
measures of colour and light, each with the range it had in training.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolens.prepare.stain import FieldStain

FILE = "familiarity.npz"  # inside a bundle


@dataclass(frozen=True, slots=True)
class Familiarity:
    """What training cells look like to the network.

    Attributes:
        mean: of the embeddings, shape (D,).
        projection: whitening onto the leading directions, shape (D, P).
        centres: projected class means, shape (classes, P).
        limit: the distance from which a cell is a stranger.
    """

    mean: NDArray[np.float32]
    projection: NDArray[np.float32]
    centres: NDArray[np.float32]
    limit: float

    def distances(self, embedding: NDArray[np.floating]) -> NDArray[np.float64]:
        """Distance of each embedding (N, D) to the nearest class, shape (N,); 1 is typical of training."""
        points = (np.asarray(embedding, np.float64) - self.mean) @ self.projection
        square = ((points[:, None] - self.centres[None]) ** 2).sum(axis=2)
        return np.sqrt(square.min(axis=1, initial=np.inf) / self.projection.shape[1])

    def strangers(self, embedding: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which embeddings (N, D) lie beyond the limit, shape (N,)."""
        return self.distances(embedding) > self.limit

    def to_bytes(self) -> bytes:
        """The arrays as an ``.npz`` file."""
        buffer = io.BytesIO()
        np.savez(buffer, mean=self.mean, projection=self.projection, centres=self.centres, limit=np.float64(self.limit))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Familiarity:
        """The reverse of `to_bytes`."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return cls(arrays["mean"], arrays["projection"], arrays["centres"], float(arrays["limit"]))


def learn(
    embedding: NDArray[np.floating], classes: NDArray[np.integer], kept: int = 64
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Mean, projection and class centres from training embeddings (N, D) and their classes (N,).

    The projection keeps the directions of largest variance within the classes' union and whitens by
    the covariance within the classes, so that distances count in training cells' own spread.
    """
    points = np.asarray(embedding, np.float64)
    mean = points.mean(axis=0)
    present = np.unique(classes)
    _, _, directions = np.linalg.svd(points - mean, full_matrices=False)
    basis = directions[: min(kept, len(directions))].T
    inside = (points - mean) @ basis
    centres = np.stack([inside[classes == c].mean(axis=0) for c in present])
    spread = inside - centres[np.searchsorted(present, classes)]
    covariance = spread.T @ spread / max(len(spread) - len(present), 1)
    values, vectors = np.linalg.eigh(covariance)
    # Where no class has two cells there is no spread to measure; the floor keeps distances finite.
    whiten = vectors / np.sqrt(np.maximum(values, max(values.max() * 1e-4, 1e-12)))
    return mean.astype(np.float32), (basis @ whiten).astype(np.float32), (centres @ whiten).astype(np.float32)


def field_measures(pixels: NDArray[np.uint8], stain: FieldStain) -> dict[str, float]:
    """Plain measures of a field (H, W, 3): what a stranger among fields differs in.

    ``background`` is the brightness of the empty background, ``empty`` its share of the field,
    ``density`` how dark the darkest hundredth is, ``green`` and ``blue`` how much of the stain's
    optical density lies in those channels (the dyes' colour).
    """
    step = max(1, int((pixels.shape[0] * pixels.shape[1] / 20_000) ** 0.5))
    sample = pixels[::step, ::step].reshape(-1, 3).astype(np.float64)
    depth = -np.log(np.clip(sample / stain.background, 1 / 255, 1.0))
    stained = depth[depth[:, 1] > 0.15]
    share = stained.sum(axis=0) if len(stained) else np.ones(3)
    share = share / max(float(share.sum()), 1e-9)
    return {
        "background": float(stain.background.mean()),
        "empty": stain.spread,
        "density": stain.density,
        "green": float(share[1]),
        "blue": float(share[2]),
    }


def outside(measures: dict[str, float], ranges: dict[str, tuple[float, float]]) -> list[str]:
    """The measures that lie outside their range, as sentences."""
    said = []
    for name, (low, high) in ranges.items():
        value = measures.get(name)
        if value is not None and not low <= value <= high:
            said.append(f"{name} {value:.2f} (training: {low:.2f} to {high:.2f})")
    return said
