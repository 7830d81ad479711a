"""Why cells of an image have their names: the likeliest kinds, the attributes, and what of the picture mattered."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from cytolens.cells import Cells
from cytolens.images import Pixels, load_image
from cytolens.labels import LabelSet
from cytolens.predict.concepts import Voice, concepts_of
from cytolens.predict.fields import Prediction, image_rows, predict_images
from cytolens.predict.occlusion import Occlusion, OcclusionSettings, occlusion
from cytolens.predict.pipeline import Predictor
from cytolens.predict.sentences import sentence
from cytolens.prepare import stain
from cytolens.problems import BundleError, DatasetError, ImageError

_TOP = 3


class ExplainSettings(BaseModel):
    """How cells are explained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    most: int = Field(default=12, ge=1, description="cells that are explained, those with the highest score first")
    occlusion: OcclusionSettings = OcclusionSettings()


@dataclass(frozen=True, slots=True)
class Why:
    """Why one cell has its name.

    Attributes:
        row: the cell, a row of `Cells`.
        top: the likeliest kinds with their probabilities, at most three.
        attributes: column → probability of each value, by the value's name.
        voices: what each attribute said for the likeliest kind; empty where names are not read from attributes.
        looks: the cell in words, from its attributes.
        map: what covering its parts does to the probability of the likeliest kind.
    """

    row: dict[str, Any]
    top: list[tuple[str, float]]
    map: Occlusion
    attributes: dict[str, dict[str, float]] = field(default_factory=dict)
    voices: list[Voice] = field(default_factory=list)
    looks: str = ""

    @property
    def box(self) -> list[float]:
        """The cell's x_min, y_min, x_max, y_max in px of the image."""
        return [self.row[edge] for edge in ("x_min", "y_min", "x_max", "y_max")]

    def to_dict(self) -> dict[str, Any]:
        """All but the map's pixels, for JSON."""
        return {
            "cell_id": self.row["cell_id"],
            "box": [round(edge, 2) for edge in self.box],
            "label": self.row["label"],
            "referred": self.row["refer"],
            "top": [{"label": name, "probability": round(share, 4)} for name, share in self.top],
            "description": self.looks,
            "attributes": {
                column: {value: round(share, 4) for value, share in shares.items()}
                for column, shares in self.attributes.items()
            },
            "speaks": [
                {
                    "attribute": voice.attribute.column,
                    "value": voice.value,
                    "probability": round(voice.probability, 4),
                    "weight": round(voice.weight, 3),
                }
                for voice in self.voices
            ],
            "map_of": self.top[0][0],
            "map_window": list(self.map.window),
            "map_before": round(self.map.before, 4),
            "map_largest_fall": round(float(self.map.drop.max(initial=0)), 4),
            "map_largest_rise": round(float(-self.map.drop.min(initial=0)), 4),
            "map_squares": self.map.squares,
        }


@dataclass(frozen=True, eq=False)
class Explanation:
    """An image whose cells are explained.

    Attributes:
        image_id: of the image.
        pixels: uint8 RGB, shape (H, W, 3).
        labels: of the cells.
        source: the bundle that named them, with its hash.
        cells: those that are explained.
        named: how many were named by a classifier.
        counted: how many were found and count.
        reads_attributes: whether names are read from attributes.
    """

    image_id: str
    pixels: Pixels
    labels: LabelSet
    source: str
    cells: list[Why]
    named: int
    counted: int
    reads_attributes: bool


def explain(
    predictor: Predictor,
    image: str | os.PathLike[str],
    settings: ExplainSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Explanation:
    """Predict one image, and say of each cell that a classifier named why it has its name.

    Args:
        predictor: the bundle that looks.
        image: its file.
        settings: how; None: the defaults.
        progress: is told the cells done and in all.

    Raises:
        BundleError: the bundle has no classifier.
        DatasetError: there is no image, or several.
        ImageError: it cannot be read.
    """
    settings = settings or ExplainSettings()
    if not predictor.names_cells:
        raise BundleError(
            f'the bundle "{predictor.bundle.name}" has no classifier, so there are no names to explain; take one that '
            "names cells, such as smear or wbc-attributes"
        )
    rows = image_rows([Path(image)])
    if len(rows) != 1:
        raise DatasetError(f"{image}: {len(rows)} images; explain takes one, so name its file")
    prediction = predict_images(predictor, rows)
    if prediction.failed:
        raise ImageError(prediction.failed[0])
    pixels = load_image(rows[0]["path"], predictor.settings.max_pixels).pixels
    field_stain = stain.measure(pixels)
    frame = prediction.cells.frame
    named = frame.with_row_index("place").filter(pl.col("counted") & pl.col("probabilities").is_not_null())
    chosen = named.sort("score", descending=True, maintain_order=True).head(settings.most)
    size_wh = (pixels.shape[1], pixels.shape[0])
    cells: list[Why] = []
    for row in chosen.iter_rows(named=True):
        why = _told(row, prediction, predictor)
        box = np.array([row[edge] for edge in ("x_min", "y_min", "x_max", "y_max")], np.float32)
        leaf = prediction.cells.labels.leaves.index(why["top"][0][0])
        mattered = occlusion(
            lambda shown, box=box, leaf=leaf: float(predictor.shares(shown, box, field_stain)[leaf]),
            pixels,
            predictor.region(box, size_wh),
            settings.occlusion,
        )
        cells.append(Why(row=row, map=mattered, **why))
        if progress is not None:
            progress(len(cells), len(chosen))
    return Explanation(
        image_id=rows[0]["image_id"],
        pixels=pixels,
        labels=prediction.cells.labels,
        source=predictor.bundle.source,
        cells=cells,
        named=len(named),
        counted=int(frame["counted"].sum()),
        reads_attributes=prediction.concepts is not None and concepts_of(predictor.bundle) is not None,
    )


def _told(row: dict[str, Any], prediction: Prediction, predictor: Predictor) -> dict[str, Any]:
    """What is known of one cell without asking again: a row of its cells, with its `place` there."""
    labels = prediction.cells.labels
    ranked = sorted(zip(row["probabilities"], labels.leaves, strict=True), key=lambda pair: -pair[0])
    top = [(name, float(share)) for share, name in ranked[:_TOP]]
    reader, voices = concepts_of(predictor.bundle), []
    if reader is not None and prediction.concepts is not None:
        voices = reader[0].voices(prediction.concepts[row["place"]], top[0][0], reader[1])
    return {
        "top": top,
        "attributes": _attributes(row, prediction.cells),
        "voices": voices,
        "looks": sentence({a.column: row[a.column] for a in labels.attributes}, labels.attributes),
    }


def _attributes(row: dict[str, Any], cells: Cells) -> dict[str, dict[str, float]]:
    told = {}
    for attribute in cells.labels.attributes:
        shares = row[f"{attribute.column}_probabilities"]
        if shares is not None:
            told[attribute.column] = dict(zip(attribute.values, map(float, shares), strict=True))
    return told
