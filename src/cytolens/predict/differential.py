"""The differential: how many cells of each kind, in each image and in all, with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cytolens.cells import Cells
from cytolens.evaluate.uncertainty import percentile_interval, resampling, wilson
from cytolens.images import Images
from cytolens.labels import LabelSet

ALL = "(all images)"
SCHEMA = {
    "image_id": pl.String,  # or `ALL`
    "label": pl.String,
    "part": pl.String,  # leukocytes, erythroblasts, red cells, platelets, lysed cells, artefacts, other, referred
    "depth": pl.Int32,  # 0: counted on its own; 1 …: a kind of the nearest row above of smaller depth
    "count": pl.Int64,
    "percent": pl.Float64,  # of the named leukocytes
    "low": pl.Float64,
    "high": pl.Float64,
    "interval": pl.String,  # how the interval was made: wilson, bootstrap over images, bootstrap over groups
    "per_100_leukocytes": pl.Float64,  # erythroblasts
}
_PARTS = {
    "leukocyte": "leukocytes",
    "erythroblast": "erythroblasts",
    "erythrocyte": "red cells",
    "platelet": "platelets",
    "lysed": "lysed cells",
    "artefact": "artefacts",
    None: "other",
}
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class _Tally:
    """Counts per image: named cells by label, shape (images, labels), and referred ones, shape (images,)."""

    image_ids: list[str]
    named: NDArray[np.int64]
    referred: NDArray[np.int64]


def differential(cells: Cells, images: Images, seed: int = 0) -> pl.DataFrame:
    """The table of `SCHEMA`: first all images together, then each.

    Counted cells only. Percentages are of the named leukocytes; a referred cell has no name yet, so it
    stands in a row of its own. An image's interval is Wilson's; that of the total comes from a
    bootstrap over groups (an image without one is a group of its own), or over images where no group is
    known, and reaches at least as far as Wilson's. Intervals cover counting error, not a model's
    misnaming.
    """
    labels = cells.labels
    tally = _tally(cells, images)
    rows = list(_rows(labels, ALL, tally.named.sum(axis=0), int(tally.referred.sum())))
    rows = _with_bootstrap(rows, labels, tally, images, seed)
    for position, image_id in enumerate(tally.image_ids):
        rows += _rows(labels, image_id, tally.named[position], int(tally.referred[position]))
    return pl.DataFrame(rows, schema=SCHEMA)


def without_parts(cells: Cells) -> Cells:
    """The cells without their nuclei and other parts, which stand in the table for their outlines.

    Where the labels are parts only, as those of a network of nuclei, these are the cells.
    """
    parts = [name for name in cells.labels.names if cells.labels.role(name) == "part"]
    return (
        cells.filter(~pl.col("label").cast(pl.String).is_in(parts).fill_null(False))
        if 0 < len(parts) < len(cells.labels)
        else cells
    )


def _tally(cells: Cells, images: Images) -> _Tally:
    ids = images.ids
    place = pl.DataFrame({"image_id": ids, "row": range(len(ids))}, schema={"image_id": pl.String, "row": pl.Int64})
    counted = without_parts(cells).frame.filter(pl.col("counted") & ~pl.col("ignore")).join(place, on="image_id")
    referred = np.bincount(counted.filter("refer")["row"].to_numpy(), minlength=len(ids))
    named = np.zeros((len(ids), len(cells.labels)), np.int64)
    good = counted.filter(~pl.col("refer") & pl.col("label").is_not_null())
    np.add.at(named, (good["row"].to_numpy(), good["label"].to_physical().to_numpy().astype(np.intp)), 1)
    return _Tally(ids, named, referred)


def _line_up(labels: LabelSet) -> Iterator[tuple[str, int]]:
    """The labels, every parent before its kinds, with their depth below the widest label of their part."""

    def under(parent: str | None, depth: int) -> Iterator[tuple[str, int]]:
        for name in labels.names:
            if labels.parents.get(name) == parent:
                own = depth if parent is not None and labels.role(name) == labels.role(parent) else 0
                yield name, own
                yield from under(name, own + 1)

    return under(None, 0)


def _cover(labels: LabelSet) -> NDArray[np.bool_]:
    """Which labels' cells count for which label: its own kinds of the same part, shape (labels, labels)."""
    return np.array(
        [
            [labels.is_a(n, wider) and labels.role(n) == labels.role(wider) for n in labels.names]
            for wider in labels.names
        ],
        bool,
    ).reshape(len(labels), len(labels))


def _leukocytes(labels: LabelSet) -> NDArray[np.bool_]:
    """Which labels are leukocytes, shape (labels,)."""
    return np.array([labels.role(name) == "leukocyte" for name in labels.names], bool)


def _rows(labels: LabelSet, image_id: str, counts: NDArray[np.int64], referred: int) -> Iterator[dict[str, object]]:
    """The rows of one image (or all): leukocytes first, then the rest, then the referred cells."""
    sums = dict(zip(labels.names, (_cover(labels) @ counts).tolist(), strict=True))
    leukocytes = int(counts[_leukocytes(labels)].sum())
    entries = [entry for entry in _line_up(labels) if labels.role(entry[0]) != "part"]
    order = sorted(entries, key=lambda entry: list(_PARTS).index(labels.role(entry[0])))
    for name, depth in order:
        role = labels.role(name)
        row: dict[str, object] = {"image_id": image_id, "label": name, "part": _PARTS[role], "depth": depth}
        row["count"] = sums[name]
        if role == "leukocyte" and leukocytes:
            low, high = wilson(sums[name], leukocytes)
            row |= {
                "percent": 100 * sums[name] / leukocytes,
                "low": 100 * low,
                "high": 100 * high,
                "interval": "wilson",
            }
        if role == "erythroblast" and leukocytes:
            row["per_100_leukocytes"] = 100 * sums[name] / leukocytes
        yield {key: row.get(key) for key in SCHEMA}
    yield dict.fromkeys(SCHEMA) | {
        "image_id": image_id, "label": "referred", "part": "referred", "depth": 0, "count": referred,
    }  # fmt: skip


def _with_bootstrap(
    rows: list[dict[str, object]], labels: LabelSet, tally: _Tally, images: Images, seed: int
) -> list[dict[str, object]]:
    """The rows of the total with bootstrap intervals, where there is more than one group.

    A bootstrap of few groups that happen to agree, or of a kind that none of them shows, has no width. So the
    interval reaches at least as far as Wilson's, which stands in the rows as they come.
    """
    drawn = resampling(images, _RESAMPLES, seed)
    if drawn.weights is None:
        return rows
    sums = drawn.weights @ (tally.named @ _cover(labels).T)
    leukocytes = drawn.weights @ tally.named[:, _leukocytes(labels)].sum(axis=1)
    result = []
    for row in rows:
        if row["percent"] is not None:
            share = np.divide(
                sums[:, labels.index(str(row["label"]))],
                leukocytes,
                out=np.full(len(sums), np.nan),
                where=leukocytes > 0,
            )
            if (interval := percentile_interval(100 * share)) is not None:
                low, high = (float(str(row[end])) for end in ("low", "high"))
                ends = {"low": min(low, interval[0]), "high": max(high, interval[1])}
                row = row | ends | {"interval": f"bootstrap over {drawn.unit}s"}
        result.append(row)
    return result
