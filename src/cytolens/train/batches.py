"""From a dataset to batches: which sample comes when, and with what chance.

Everything random about a sample follows from (seed, epoch, index), never from the worker that
happens to make it: a resumed run sees exactly the samples that an uninterrupted one would.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from cytolens.images import load_image
from cytolens.problems import DatasetError, ImageError, Problems

Ticket = tuple[int, int]  # epoch, index


class EpochSampler(Sampler[Ticket]):
    """Tickets (epoch, index) of one epoch: a permutation, or draws with replacement by weight.

    Args:
        count: number of samples there are.
        seed: of the run.
        weights: shape (count,); None: every sample once.
        length: tickets per epoch, with weights; None: `count`.
        rank, world: which of how many processes this is.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        weights: ArrayLike | None = None,
        length: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.count, self.seed, self.length = count, seed, length or count
        self.weights = None if weights is None else np.asarray(weights, np.float64) / np.sum(np.asarray(weights))
        self.rank, self.world = rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.world)

    def order(self) -> NDArray[np.intp]:
        """The indices of this epoch for all processes, in their order."""
        random = np.random.default_rng([self.seed, self.epoch])
        if self.weights is None:
            return random.permutation(self.count)
        return random.choice(self.count, self.length, p=self.weights)

    def __iter__(self) -> Iterator[Ticket]:
        order = np.resize(self.order(), len(self) * self.world)  # every process gets equally many
        for index in order[self.rank :: self.world].tolist():
            yield self.epoch, index


def chance(seed: int, epoch: int, index: int) -> Generator:
    """The generator of one sample in one epoch."""
    return np.random.default_rng([seed, epoch, index])


class Samples(Dataset[Any]):
    """A dataset of tickets, made by a function of (index, generator, epoch)."""

    def __init__(self, make: Callable[[int, Generator, int], Any], count: int, seed: int) -> None:
        self.make, self.count, self.seed = make, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, ticket: Ticket) -> Any:
        epoch, index = ticket
        return self.make(index, chance(self.seed, epoch, index), epoch)


def loader(
    samples: Samples, sampler: EpochSampler, batch: int, workers: int, collate: Callable[[list[Any]], Any]
) -> DataLoader[Any]:
    """Batches of a training epoch; the last partial batch is left out unless it is the only one."""
    import cv2

    # Workers are forked: OpenCV's thread pool does not survive that, so it must not be used from here on.
    cv2.setNumThreads(1)
    return DataLoader(
        samples,
        batch_size=batch,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        drop_last=len(sampler) > batch,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def tuning_part(images: pl.DataFrame, share: float, seed: int) -> NDArray[np.bool_]:
    """Which images are kept for tuning, shape (N,): about `share` of them, whole groups at a time.

    Images belong together when they have the same `group` or the same bytes. Groups are taken in an
    order that depends on their names and the seed only, so added images do not reshuffle the rest.
    """
    owner = _united(images)
    order = sorted(set(owner), key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).hexdigest())
    sizes = Counter(owner)
    wanted, taken, chosen = share * len(owner), 0, set[str]()
    for name in order:
        if taken >= wanted:
            break
        chosen.add(name)
        taken += sizes[name]
    return np.array([name in chosen for name in owner], bool)


def _united(images: pl.DataFrame) -> list[str]:
    """A name for each image's group, after joining groups that share identical files."""
    keys = [
        [f"group:{group}" if group is not None else f"image:{image}", *([f"sha:{sha}"] if sha is not None else [])]
        for group, image, sha in images.select("group", "image_id", "sha256").iter_rows()
    ]
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            key = leader[key]
        return key

    for first, *rest in keys:
        for other in rest:
            a, b = sorted((find(first), find(other)))
            leader[b] = a
    return [find(key[0]) for key in keys]


def readable(paths: list[str], problems: Problems) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The pixels of the files that can be read, with their positions; the others become problems.

    Raises:
        DatasetError: not one of them can be read.
    """
    seen = 0
    for position, path in enumerate(paths):
        try:
            pixels = load_image(Path(path)).pixels
        except ImageError as error:
            problems.extend([error.problem])
            continue
        seen += 1
        yield position, pixels
    if not seen:
        first = problems[0] if len(problems) else "the dataset has no images"
        raise DatasetError(f"no image can be read for training: {first}")
