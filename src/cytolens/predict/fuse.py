"""One answer from several: the cells that several models, folds or people found in the same images, fused.

Boxes are fused by `box_fusion`; what the members say of one cell is put together here: name,
probabilities, attributes, whether it counts, whether a person should look.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens import match
from cytolens.cells import Cells
from cytolens.images import Images
from cytolens.predict.box_fusion import Array, Decay, Fused, Lists, checked_weights, nms, soft_nms, wbf
from cytolens.predict.consensus import Rows, attributes, blended, disagreeing, named, weight_of
from cytolens.problems import SettingError, did_you_mean, listing

__all__ = ["METHODS", "FuseSettings", "fuse", "nms", "soft_nms", "wbf"]

Method = Literal["wbf", "nms", "soft-nms", "blend"]
METHODS: tuple[str, ...] = get_args(Method)


class FuseSettings(BaseModel):
    """How members become one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    iou: float = Field(default=0.55, ge=0, lt=1, description="overlap above which two boxes are the same cell")
    weights: tuple[float, ...] | None = Field(default=None, description="of the members; none: all the same")
    lists: Lists = Field(
        default="per-model",
        description="wbf: per-model: a member that lacks a cell speaks against it; one: it does not",
    )
    by: Literal["cell", "label"] | None = Field(
        default=None,
        description="what may be fused: any boxes (cell), or those of one label (label); "
        "none: cell where members give probabilities",
    )
    score_floor: float = Field(default=0.001, ge=0, le=1, description="what is less sure is left out")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="fused score from which a cell counts; none: the members' own say"
    )
    sure: float = Field(default=0.5, ge=0, le=1, description="a blended name is given when it is this probable")
    decay: Decay = Field(default="gaussian", description="soft-nms: how scores are lowered, gaussian or linear")
    sigma: float = Field(default=0.5, gt=0, description="soft-nms, gaussian: how far overlap lowers a score")


def fuse(
    members: Sequence[Cells],
    *,
    method: str = "wbf",
    settings: FuseSettings | None = None,
    images: Images | None = None,
) -> Cells:
    """The cells of several members as one table.

    "wbf", "nms" and "soft-nms" are of `box_fusion`, with `settings.by` in the place of the class. "blend" keeps
    the cells of the first member as they are; of each other member the one-to-one partner (greatest total
    overlap, at least `iou`) only adds its probabilities and score, weighted by member.

    The probabilities of a fused cell are the mean of its rows', weighted by score (and member), where known.
    Its name is decided from them; where most of the force lies with rows without probabilities, it is the name
    of the greatest force. A cell that one row alone makes up keeps its name. A cell is referred when a counted row
    is, when counted rows disagree in name (a parent and its kind agree), or when its name is not sure. A fused box
    has no mask; a box that is kept keeps its mask.

    Without a threshold, cells count as their members count them: what nms, soft-nms and blend keep, as it did;
    with wbf where members of half the weight (lists="one": of those that found it) count it.

    Args:
        members: of one label set and the same images.
        method: one of `METHODS`.
        settings: None: the defaults.
        images: gives the order of the result, and the keys of the cell ids; None: images as they appear.

    Raises:
        SettingError: there is no member or no such method, or the weights do not fit.
        LabelError: the label sets differ.
        DatasetError: a member has a cell in an image that is not in `images`.
    """
    settings = settings or FuseSettings()
    if method not in METHODS:
        hint = did_you_mean(method, METHODS)
        raise SettingError(f'no way to fuse "{method}". {hint + " " if hint else ""}Allowed: {listing(METHODS)}')
    if not members:
        raise SettingError("there is nothing to fuse: give the cells of at least one member")
    cells = members[0].concat(*members[1:])
    list_of = np.repeat(np.arange(len(members)), [len(member) for member in members]).astype(np.intp)
    weights = checked_weights(settings.weights, len(members))
    ids, place = _places(cells, images)
    if method == "blend":
        force = weights[list_of]
        fused = _partnered(cells, list_of, weights, place, settings)
    else:
        force = weights[list_of] * np.maximum(cells.scores().astype(np.float64), 1e-12)
        fused = _boxes_fused(cells, list_of, weights, place, method, settings)
    rows = Rows(cells, list_of, weights, fused, force)
    order = np.lexsort((-fused.scores, place[fused.lead]))
    return _assembled(rows, ids, place, order, method, settings, images)


def _places(cells: Cells, images: Images | None) -> tuple[list[str], NDArray[np.intp]]:
    """The image ids, and the place of each cell's image among them, shape (N,).

    Raises:
        DatasetError: an image is not in `images`.
    """
    present = cells.frame["image_id"].unique(maintain_order=True).to_list()
    ids = present if images is None else images.ids
    index = {image_id: place for place, image_id in enumerate(ids)}
    if images is not None:
        for image_id in present:
            if image_id not in index:
                images.row(image_id)  # says what is wrong
    return ids, np.array([index[i] for i in cells.frame["image_id"].to_list()], np.intp)


# -- boxes ----------------------------------------------------------------------------------------


def _boxes_fused(
    cells: Cells,
    list_of: NDArray[np.intp],
    weights: Array,
    place: NDArray[np.intp],
    method: str,
    settings: FuseSettings,
) -> Fused:
    """All images at once: image and label together are the class."""
    labels = cells.labels
    by = settings.by or ("cell" if cells.frame["probabilities"].null_count() < len(cells) else "label")
    kind = place
    if by == "label":
        own = np.array([-1 if name is None else labels.index(name) for name in cells.label_names()], np.intp)
        kind = place * (len(labels) + 1) + own + 1
    ends = np.searchsorted(list_of, np.arange(1, len(weights)))
    boxes, kinds = np.split(cells.boxes(), ends), np.split(kind, ends)
    scores = np.split(cells.scores().astype(np.float64), ends)
    floor = settings.score_floor
    if method == "wbf":
        return wbf(
            boxes, scores, kinds, iou=settings.iou, weights=list(weights), score_floor=floor, lists=settings.lists
        )
    # The heaviest member's scores stay as they are, so that a threshold keeps its meaning.
    scores = [score * weight / weights.max() for score, weight in zip(scores, weights, strict=True)]
    if method == "nms":
        return nms(boxes, scores, kinds, iou=settings.iou, score_floor=floor)
    return soft_nms(
        boxes, scores, kinds, iou=settings.iou, score_floor=floor, decay=settings.decay, sigma=settings.sigma
    )


def _partnered(
    cells: Cells, list_of: NDArray[np.intp], weights: Array, place: NDArray[np.intp], settings: FuseSettings
) -> Fused:
    """The first member's cells, each with its partner in every other member."""
    boxes, scores = cells.boxes().astype(np.float64), cells.scores().astype(np.float64)
    lead = np.flatnonzero((list_of == 0) & (scores >= settings.score_floor))
    member_of = np.full(len(boxes), -1, np.intp)
    member_of[lead] = np.arange(len(lead))
    ours = _split_by(place, lead)
    for member in range(1, len(weights)):
        theirs = _split_by(place, np.flatnonzero((list_of == member) & (scores >= settings.score_floor)))
        for image in ours.keys() & theirs.keys():
            table = match.box.iou(boxes[theirs[image]], boxes[ours[image]])
            pairs = match.pair(table, np.zeros(table.shape[1], bool), max(settings.iou, 1e-9))
            member_of[theirs[image][pairs.found]] = member_of[ours[image][pairs.truth]]
    used = member_of >= 0
    own = weights[list_of[used]]
    total = np.bincount(member_of[used], own * scores[used], len(lead))
    mean = total / np.bincount(member_of[used], own, len(lead))
    return Fused(boxes[lead], mean, np.zeros(len(lead), np.intp), lead, member_of)


def _split_by(place: NDArray[np.intp], rows: NDArray[np.intp]) -> dict[int, NDArray[np.intp]]:
    """Rows by their image."""
    rows = rows[np.argsort(place[rows], kind="stable")]
    edges = [0, *(np.flatnonzero(np.diff(place[rows])) + 1).tolist(), len(rows)]
    return {int(place[rows[a]]): rows[a:b] for a, b in pairwise(edges) if a < b}


# -- what is said of a cell -----------------------------------------------------------------------


def _assembled(
    rows: Rows,
    ids: list[str],
    place: NDArray[np.intp],
    order: NDArray[np.intp],
    method: str,
    settings: FuseSettings,
    images: Images | None,
) -> Cells:
    cells, fused = rows.cells, rows.fused
    table, known = blended(rows, cells.probabilities())
    names, known, unsure = named(rows, table, known, settings.sure)
    flags = {name: cells.frame[name].to_numpy() for name in ("counted", "refer")}
    counted = _counted(rows, flags["counted"], method, settings)
    referred = rows.sums((flags["refer"] & flags["counted"]).astype(np.float64), flags["counted"]) > 0
    refer = unsure | referred | disagreeing(rows, flags["counted"])
    lead = fused.lead[order]
    keys = None if images is None else images.frame["sha256"].to_list()
    masks = cells.masks()
    return Cells.of(
        cells.labels,
        image_id=[ids[i] for i in place[lead]],
        image_key=None if keys is None else [keys[i] for i in place[lead]],
        boxes=fused.boxes[order],
        label=[names[i] for i in order],
        source=_source(cells, rows.list_of, method),
        score=np.minimum(fused.scores[order], 1),
        probabilities=np.nan_to_num(table[order]),
        known=known[order],
        mask=None if method == "wbf" else [masks[i] for i in lead],
        counted=counted[order],
        refer=refer[order],
    ).with_columns(**attributes(rows, order))


def _source(cells: Cells, list_of: NDArray[np.intp], method: str) -> str:
    """Who was fused; in an order of their own, unless the order matters."""
    of_member = cells.frame.select(pl.col("source"), member=pl.Series(list_of)).unique().sort("member", "source")
    names = [str(name) for name in of_member["source"].drop_nulls()]
    return f"fused:{method}({', '.join(names if method == 'blend' else sorted(names))})"


def _counted(rows: Rows, counted: NDArray[np.bool_], method: str, settings: FuseSettings) -> NDArray[np.bool_]:
    """Which fused cells are part of the answer, shape (F,)."""
    if settings.threshold is not None:
        return np.asarray(rows.fused.scores >= settings.threshold, bool)
    if method != "wbf":
        return counted[rows.fused.lead]
    for_it, found = weight_of(rows, counted), weight_of(rows, np.ones(len(counted), bool))
    whole = found if settings.lists == "one" else rows.weights.sum()
    return np.asarray(2 * for_it >= whole - 1e-9, bool)
