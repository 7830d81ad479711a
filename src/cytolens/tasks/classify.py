"""Classification: from a cell's box to a network's input, and from its output to a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens import boxes as box
from cytolens.labels import LabelSet
from cytolens.prepare import stain
from cytolens.prepare.crops import CropSettings, region
from cytolens.prepare.stain import FieldStain, StainSettings
from cytolens.problems import LabelError, listing
from cytolens.views import View, crop


class ClassifyInput(CropSettings):
    """What the classifier is shown of a cell."""

    side_px: int = Field(default=160, ge=32, description="side of the network's square input")
    stain: StainSettings = StainSettings()


class ClassifyOutput(BaseModel):
    """How probabilities become a name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outputs: Literal["softmax", "sigmoid"] = Field(
        default="softmax",
        description="softmax: one name of many for a cell; sigmoid: each name by itself for a whole image (training "
        "with loss = focal sets it)",
    )
    temperature: float = Field(default=1.0, gt=0, description="logits are divided by it first")
    leave_out: tuple[str, ...] = Field(
        default=(),
        description="names that are learnt and never given, such as Background: their probability is set to 0, and the "
        "others sum to 1",
    )
    views: int = Field(
        default=1, ge=1, le=8, description="flips and turns of each cell that are looked at; their logits are averaged"
    )
    elsewhere: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="in a pipeline: weight of names that the detector tells apart itself and has not given",
    )
    prior: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="names that are rarer (below 1) or commoner where the model is used than in what it learnt from, "
        "with the weight of their probability",
    )
    sure: float = Field(default=0.5, ge=0, le=1, description="a name is given when its probability reaches this")


def crop_view(cell: ArrayLike, size_wh: tuple[int, int], settings: ClassifyInput) -> View:
    """The view that cuts the crop of one box (4,) from a field of this size."""
    return crop(size_wh, region(cell, size_wh, settings), settings.side_px)


def pictures(
    pixels: NDArray[np.uint8], cells: ArrayLike, settings: ClassifyInput, field: FieldStain | None = None
) -> NDArray[np.uint8]:
    """The network's inputs for the boxes (N, 4) of one field: uint8 RGB, shape (N, side, side, 3).

    Crops are squares in the field's own proportions, unless the settings stretch them; what reaches beyond the
    field repeats its edge.
    `field` is the stain of the field; None: measured here.
    """
    cells = box.as_boxes(cells)
    side = settings.side_px
    if not len(cells):
        return np.zeros((0, side, side, 3), np.uint8)
    change = stain.change(field or stain.measure(pixels), settings.stain)
    size_wh = (pixels.shape[1], pixels.shape[0])
    cut = [crop_view(cell, size_wh, settings).pixels(pixels) for cell in cells]
    return np.stack([stain.normalise(one, change) for one in cut])


def probabilities(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float32]:
    """Softmax of logits (N, K) at a temperature."""
    scaled = np.asarray(logits, np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    raised = np.exp(scaled)
    return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)


def sigmoids(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float32]:
    """The probability of each name by itself, from logits (N, K) at a temperature."""
    # As a hyperbolic tangent it cannot overflow.
    return ((1 + np.tanh(np.asarray(logits, np.float64) / (2 * temperature))) / 2).astype(np.float32)


def spoken(labels: LabelSet, output: ClassifyOutput) -> LabelSet:
    """The labels that a classifier gives: those of its network without the ones that are left out.

    Raises:
        LabelError: a name to be left out is not one of the leaves, or none would remain.
    """
    if not output.leave_out:
        return labels
    left = {labels.require(name) for name in output.leave_out}
    if wide := sorted(left - set(labels.leaves)):
        raise LabelError(f"leave_out names {listing(wide)}, which have kinds of their own; name the kinds")
    if left == set(labels.leaves):
        raise LabelError(f"leave_out names all of the labels ({listing(labels.leaves)}); none would be left to give")
    return replace(
        labels,
        names=tuple(name for name in labels.names if name not in left),
        parents={child: parent for child, parent in labels.parents.items() if child not in left},
        aliases={alias: name for alias, name in labels.aliases.items() if name not in left},
        roles={name: role for name, role in labels.roles.items() if name not in left},
        reportable=labels.reportable - left,
    )


def kept_leaves(labels: LabelSet, output: ClassifyOutput) -> NDArray[np.bool_]:
    """Which leaves of the network are given as names, shape (K,); errors as of `spoken`."""
    given = spoken(labels, output)
    return np.array([leaf in given for leaf in labels.leaves], bool)


def shares(logits: NDArray[np.floating], output: ClassifyOutput, labels: LabelSet) -> NDArray[np.float32]:
    """Probabilities (N, K) over the leaves from logits (N, K); they sum to 1, and names that are left out have 0.

    Sigmoids need not sum to 1. Where they exceed it they are divided by their sum: several names share the
    image. Where they fall short, what no name claims is spread evenly, so that an image of nothing has no sure
    name. Neither changes which name comes first.

    Args:
        logits: shape (N, K).
        output: of the classifier.
        labels: that it learnt.
    """
    kept = kept_leaves(labels, output)
    if output.outputs == "softmax":
        return probabilities(np.where(kept, np.asarray(logits, np.float64), -np.inf), output.temperature)
    table = np.where(kept, sigmoids(logits, output.temperature).astype(np.float64), 0.0)
    total = table.sum(axis=1, keepdims=True)
    unclaimed = np.where(kept, np.maximum(1 - total, 0) / kept.sum(), 0.0)
    return (table / np.maximum(total, 1) + unclaimed).astype(np.float32)


def answers(
    classifier: Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]],
    shown: NDArray[np.uint8],
    views: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a classifier says of pictures (N, S, S, 3): logits (N, K), and the embeddings (N, D) of them as they are.

    The logits are averaged over the first `views` of: as it is, flipped left to right, upside down, both;
    and these after a quarter turn.
    """
    logits, embedding = classifier(shown)
    turned = shown.transpose(0, 2, 1, 3)[:, ::-1]
    seen = [
        one for first in (shown, turned) for one in (first, first[:, :, ::-1], first[:, ::-1], first[:, ::-1, ::-1])
    ]
    others = [classifier(np.ascontiguousarray(one))[0] for one in seen[1:views]]
    return np.asarray(np.mean([logits, *others], axis=0), np.float32), embedding


def blended(
    tables: Sequence[NDArray[np.floating]], weights: Sequence[float], temperature: float = 1.0
) -> NDArray[np.float32]:
    """Probabilities (N, K) from those of several classifiers: their weighted geometric mean at a temperature."""
    logs = [np.log(np.maximum(np.asarray(table, np.float64), 1e-12)) for table in tables]
    return probabilities(np.average(logs, axis=0, weights=np.asarray(weights, np.float64)), temperature)


def with_image(table: NDArray[np.floating], of_image: NDArray[np.floating], cell_share: float) -> NDArray[np.float32]:
    """Probabilities of cells (N, K) and what classifiers of whole images say of their images (N, K), which need not sum
    to 1, as one: cell_share of the first and the rest of the second, summing to 1 again.
    """
    plain = cell_share * np.asarray(table, np.float64) + (1 - cell_share) * np.asarray(of_image, np.float64)
    return (plain / np.maximum(plain.sum(axis=1, keepdims=True), 1e-12)).astype(np.float32)


def prior_weights(prior: Mapping[str, float], labels: LabelSet) -> NDArray[np.float64]:
    """The weight of each leaf, shape (K,): that of the nearest name in its line that has one, or 1.

    Source: a classifier moved to where kinds are differently common; Saerens, Latinne, Decaestecker, "Adjusting the
    Outputs of a Classifier to New a Priori Probabilities", Neural Computation 14 (2002).

    Raises:
        LabelError: a name is not among the labels.
    """
    known = {labels.require(name): weight for name, weight in prior.items()}
    lines = [(leaf, *labels.ancestors(leaf)) for leaf in labels.leaves]
    return np.array([next((known[name] for name in line if name in known), 1.0) for line in lines])


def with_evidence(table: NDArray[np.floating], weights: NDArray[np.floating]) -> NDArray[np.float32]:
    """Probabilities (N, K) after other evidence: each leaf times its weight (K,), summing to one again."""
    weighted = np.asarray(table, np.float64) * weights
    return (weighted / weighted.sum(axis=1, keepdims=True)).astype(np.float32)


def targets(names: list[str], labels: LabelSet) -> NDArray[np.bool_]:
    """Which leaves each name allows, shape (N, K): a parent allows all of its kinds."""
    return labels.leaf_matrix[[labels.index(name) for name in names]]


def decide(
    table: NDArray[np.floating], labels: LabelSet, sure: float, known: Sequence[str | None] | None = None
) -> tuple[list[str | None], NDArray[np.bool_]]:
    """The deepest name that is sure enough for each cell, and whether a person should look.

    The most probable leaf is named if it is sure; else the nearest of its ancestors whose kinds
    together are. A cell is referred when no name deep enough to be an answer (`LabelSet.reportable`)
    is sure; it keeps the sure ancestor, or else what was known of it before.

    Args:
        table: probabilities over the leaves, shape (N, K).
        labels: the label set of the leaves.
        sure: the probability from which a name is sure.
        known: what each cell is known to be (N), such as the detector's "leukocyte"; None: nothing, and
            then a cell whose whole line is unsure keeps the widest ancestor, if its leaf has one.
    """
    by_name = np.asarray(table, np.float64) @ labels.leaf_matrix.T
    names: list[str | None] = []
    refer = np.zeros(len(by_name), bool)
    for row, leaf_index in enumerate(np.argmax(table, axis=1)):
        leaf = labels.leaves[int(leaf_index)]
        line = (leaf, *labels.ancestors(leaf))
        given = next((name for name in line if by_name[row, labels.index(name)] >= sure), None)
        if given is None:
            before = None if known is None else known[row]
            given = before if before is not None else line[-1] if len(line) > 1 else None
            refer[row] = True
        names.append(given)
        refer[row] |= given not in labels.reportable
    return names, refer
