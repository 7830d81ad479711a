"""Splits: folds and parts that are balanced in every label and never part a group.

Each group of images goes, the rarest first, to the part where it disturbs the balance least: the sum over labels and
parts of the squared filling (what is there over what is wanted). It is the greedy form of the objective that iterative
stratification pursues (Sechidis, Tsoumakas, Vlahavas, "On the Stratification of Multi-Label Data", ECML 2011), for
groups, counts and several properties at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens.cells import BOX_COLUMNS
from cytolens.dataset import Dataset
from cytolens.formats.leukemia_names import published_part
from cytolens.images import Images
from cytolens.problems import DatasetError, SettingError, did_you_mean, listing

Column = Literal["fold", "split"]
_PROPERTY_WEIGHT = 0.25  # of a property of the image, against 1 for a label
_BINS = 5


@dataclass(frozen=True, eq=False)
class Split:
    """A split and how balanced it is.

    Attributes:
        dataset: with the column filled in.
        column: "fold" or "split".
        balance: one row per label and part: label, part, count, share (of the label), wanted.
        grouped: images that stand in a group of several; where none do, patients may stand on both sides.
    """

    dataset: Dataset
    column: Column
    balance: pl.DataFrame
    grouped: int

    def worst(self, least: int = 1) -> float:
        """The largest deviation of a label's share from what is wanted, among labels with at least so many cells."""
        totals = self.balance.filter(pl.col("count").sum().over("label") >= least)
        return float((totals["share"] - totals["wanted"]).abs().max() or 0.0)  # type: ignore[arg-type]


def folds(dataset: Dataset, count: int, seed: int = 0, *, keep: bool = False) -> Split:
    """K folds of equal size; `keep`: folds that are given stay, and only new groups are assigned.

    Raises:
        SettingError: fewer than two folds, or more than there are groups.
        DatasetError: with `keep`, a group stands in two folds, or a fold is not below `count`.
    """
    if count < 2:
        raise SettingError(f"--folds takes 2 or more; got {count}")
    given = dataset.images.frame["fold"].to_list() if keep else [None] * len(dataset.images)
    if wrong := sorted({fold for fold in given if fold is not None and not 0 <= fold < count}):
        raise DatasetError(f"folds {wrong} are given, but {count} are asked for (0 to {count - 1})")
    placed = _assigned(dataset, np.full(count, 1 / count), given, seed)
    images = dataset.images.with_columns(fold=placed.tolist())
    step = {"step": "split", "folds": count, "seed": seed, "kept": sum(fold is not None for fold in given)}
    return _split(dataset, images, "fold", dict.fromkeys(range(count), 1 / count), step)


def parts(dataset: Dataset, shares: Mapping[str, float], seed: int = 0, *, keep: bool = False) -> Split:
    """Parts of given shares, such as train, val and test; `keep` as in `folds`.

    Raises:
        SettingError: the shares are not positive or do not add up to 1.
        DatasetError: with `keep`, a group stands in two parts, or a part is not among the shares.
    """
    if len(shares) < 2 or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        told = ", ".join(f"{name}={share:g}" for name, share in shares.items())
        raise SettingError(f"shares are positive and add up to 1, such as train=0.8,val=0.2; got {told}")
    names = list(shares)
    given = dataset.images.frame["split"].to_list() if keep else [None] * len(dataset.images)
    if wrong := sorted({part for part in given if part is not None and part not in shares}):
        raise DatasetError(f"the parts {listing(wrong)} are given, but the shares name {listing(names)}")
    numbers = [None if part is None else names.index(part) for part in given]
    placed = _assigned(dataset, np.array(list(shares.values())), numbers, seed)
    images = dataset.images.with_columns(split=[names[i] for i in placed])
    step = {"step": "split", "shares": dict(shares), "seed": seed, "kept": sum(part is not None for part in given)}
    return _split(dataset, images, "split", shares, step)


def published(dataset: Dataset, name: str) -> Split:
    """The division that a data set was published with, by patient; all its subsets (microscopes) go the same way.

    "leukemia_attri": 30 patients for training and 18 for testing, by the images' names, else by their groups.

    Raises:
        SettingError: no such division is known.
        DatasetError: the patient of an image is not known, or not one of that data set.
    """
    if name != "leukemia_attri":
        hint = did_you_mean(name, ["leukemia_attri"])
        raise SettingError(f'no published split "{name}". {hint + " " if hint else ""}Known: leukemia_attri')
    rows = dataset.images.frame.select("image_id", "group").rows()
    placed = [published_part(image_id, group) for image_id, group in rows]
    if lost := [image_id for (image_id, _), part in zip(rows, placed, strict=True) if part is None]:
        raise DatasetError(
            f"{len(lost)} of {len(rows)} images are of no known patient: {listing(lost, 5)}. Names are "
            "<patient>_<field>_<1000 or 400>_<diagnosis>; else the group is the patient's number (--group-pattern)"
        )
    images = dataset.images.with_columns(split=placed)
    shares = {part: placed.count(part) / max(1, len(placed)) for part in ("train", "test")}
    return _split(dataset, images, "split", shares, {"step": "split", "published": name})


_into_folds = folds  # `split` has an argument of that name


def split(
    dataset: Dataset,
    folds: int | None = None,
    seed: int = 0,
    *,
    shares: Mapping[str, float] | None = None,
    keep: bool = False,
) -> Split:
    """Split a dataset: balanced in every label, and never through a group (patient, slide, duplicates).

    Args:
        dataset: what to split; it stays as it is.
        folds: cross-validation folds of equal size, written to the column `fold`; 4 where neither they nor
            `shares` are given.
        seed: of the order in which equals are placed.
        shares: parts instead of folds, such as {"train": 0.8, "val": 0.2}, written to the column `split`.
        keep: folds or parts that are given stay, and only new groups get one.

    Returns:
        The dataset with its folds or parts, and how balanced they are.

    Raises:
        SettingError: both folds and shares are given, there are fewer than two folds or more than groups, or
            shares are not positive or do not add up to 1.
        DatasetError: with `keep`, a group stands in two parts, or a given part is none of those asked for.
    """
    if shares is None:
        return _into_folds(dataset, 4 if folds is None else folds, seed, keep=keep)
    if folds is not None:
        raise SettingError(f"say folds ({folds}) or shares ({listing(shares)}), not both")
    return parts(dataset, shares, seed, keep=keep)


def fractions(dataset: Dataset, shares: Sequence[float], seed: int = 0) -> dict[float, Dataset]:
    """Nested parts for learning curves: each smaller one lies in the next larger one.

    Raises:
        SettingError: a share is not above 0 and at most 1, or repeats.
    """
    wanted = sorted(shares)
    if not wanted or wanted[0] <= 0 or wanted[-1] > 1 or len(set(wanted)) < len(wanted):
        raise SettingError(f"fractions lie above 0 and up to 1, each once; got {list(shares)}")
    steps = np.diff([0.0, *wanted, 1.0])
    used = steps > 0
    ring = np.flatnonzero(used)[_assigned(dataset, steps[used], [None] * len(dataset.images), seed)]
    return {
        share: dataset.of_images(Images(dataset.images.frame.filter(pl.Series(ring <= place))))
        for place, share in enumerate(wanted)
    }


# -- the assignment -------------------------------------------------------------------------------


def _assigned(
    dataset: Dataset, shares: NDArray[np.float64], given: Sequence[int | None], seed: int
) -> NDArray[np.intp]:
    """The part of each image, shape (N,)."""
    group_of, names = _groups(dataset.images)
    if len(names) < len(shares):
        raise SettingError(f"{len(names)} groups cannot be put into {len(shares)} parts")
    table, weights = _properties(dataset)
    of_group = np.zeros((len(names), table.shape[1]))
    np.add.at(of_group, group_of, table)
    place = np.full(len(names), -1, np.intp)
    for image, part in enumerate(given):
        if part is None:
            continue
        if place[group_of[image]] not in (-1, part):
            raise DatasetError(f'the group "{names[group_of[image]]}" stands in several parts already; drop --keep')
        place[group_of[image]] = part
    totals = of_group.sum(axis=0)
    wanted = shares[:, None] * np.maximum(totals, 1e-9)[None, :]
    filled = np.zeros_like(wanted)
    for part in range(len(shares)):
        filled[part] = of_group[place == part].sum(axis=0)
    cost = weights[None, :] / wanted**2
    # A part that wants twice as much may deviate twice as much: each is weighed by its share.
    cost *= shares[:, None]
    for group in _order(of_group, totals, weights, seed):
        if place[group] >= 0:
            continue
        some = np.flatnonzero(of_group[group])
        own = of_group[group, some]
        disturbed = (cost[:, some] * (2 * filled[:, some] * own + own**2)).sum(axis=1)
        disturbed -= 2 * (cost[:, some] * wanted[:, some] * own).sum(axis=1)
        part = int(np.argmin(disturbed))
        place[group] = part
        filled[part, some] += own
    return place[group_of]


def _order(
    of_group: NDArray[np.float64], totals: NDArray[np.float64], weights: NDArray[np.float64], seed: int
) -> NDArray[np.intp]:
    """The groups that are hardest to place first: those that hold most of some label; equal ones by chance."""
    rarity = (of_group / np.maximum(totals, 1e-9) * weights).max(axis=1)
    chance = np.random.default_rng(seed).permutation(len(of_group))
    return np.lexsort((chance, -np.round(rarity, 12)))


def _groups(images: Images) -> tuple[NDArray[np.intp], list[str]]:
    """The group's number of each image, and the groups' names; an image without one is a group of its own."""
    frame = images.frame.select(
        name=pl.when(pl.col("group").is_null())
        .then(pl.lit("image ") + pl.col("image_id"))
        .otherwise(pl.lit("group ") + pl.col("group"))
    )
    names = frame["name"].unique(maintain_order=True)
    number = pl.DataFrame({"name": names, "number": np.arange(len(names))})
    numbers = frame.join(number, on="name", how="left", maintain_order="left")["number"]
    return numbers.to_numpy().astype(np.intp), names.to_list()


def _properties(dataset: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What is balanced, one row per image: one column for the image, one per label, and bins of its properties.

    Returns:
        the table (N, C), and the weights of its columns (C,).
    """
    images, labels = dataset.images, dataset.labels
    place = {image_id: row for row, image_id in enumerate(images.ids)}
    cells = dataset.cells.frame.filter(~pl.col("ignore"))
    rows = np.array([place[image_id] for image_id in cells["image_id"]], np.intp)
    index = {name: column for column, name in enumerate(labels.names)}
    named = np.array([index.get(name, -1) for name in cells["label"].cast(pl.String)], np.intp)
    counts = np.zeros((len(images), len(labels.names)))
    np.add.at(counts, (rows[named >= 0], named[named >= 0]), 1.0)
    width, height = (
        images.frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in ("width_px", "height_px")
    )
    corners = cells.select(BOX_COLUMNS).to_numpy().astype(np.float64).reshape(-1, 4)
    covered = np.zeros(len(images))
    np.add.at(covered, rows, ((corners[:, 2:] - corners[:, :2]).clip(0)).prod(axis=1))
    cells_each = np.bincount(rows, minlength=len(images)).astype(np.float64)
    binned = [_binned(values) for values in (width * height, covered / (width * height), cells_each)]
    table = np.concatenate([np.ones((len(images), 1)), counts, *binned], axis=1)
    weights = np.ones(table.shape[1])
    weights[1 + counts.shape[1] :] = _PROPERTY_WEIGHT
    return table, weights


def _binned(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """One column per quantile bin, shape (N, ≤ 5); unknown values fall in none."""
    known = np.isfinite(values)
    if not known.any():
        return np.zeros((len(values), 0))
    edges = np.unique(np.quantile(values[known], np.linspace(0, 1, _BINS + 1)[1:-1]))
    number = np.searchsorted(edges, values, "right")
    table = np.zeros((len(values), len(edges) + 1))
    table[np.flatnonzero(known), number[known]] = 1
    return table


def _split(
    dataset: Dataset, images: Images, column: Column, shares: Mapping[Any, float], step: dict[str, Any]
) -> Split:
    """The result with its table of balance."""
    result = replace(dataset, images=images, provenance=(*dataset.provenance, step))
    part_of = images.frame.select("image_id", part=pl.col(column).cast(pl.String))
    cells = dataset.cells.frame.filter(~pl.col("ignore")).select("image_id", label=pl.col("label").cast(pl.String))
    both = pl.concat([cells, part_of.select("image_id", label=pl.lit("images"))]).join(part_of, on="image_id")
    tally = both.group_by("label", "part").len()
    found = {(label, part): count for label, part, count in tally.iter_rows()}
    rows = []
    for label in ("images", *dataset.labels.names):
        total = sum(found.get((label, str(part)), 0) for part in shares)
        for part, wanted in shares.items():
            here = found.get((label, str(part)), 0)
            rows.append((label, str(part), here, here / total if total else wanted, wanted))
    balance = pl.DataFrame(rows, schema=["label", "part", "count", "share", "wanted"], orient="row")
    grouped = int(images.frame.filter(pl.col("group").is_not_null() & pl.col("group").is_duplicated()).height)
    return Split(result, column, balance, grouped)
