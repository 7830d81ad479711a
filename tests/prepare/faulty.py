"""Datasets with faults: drawn ones for properties, and one small one where each fault is planted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import AttributeSchema, LabelSet

LABELS = LabelSet(("RBC", "WBC"), attributes=(AttributeSchema("look", "size", ("small", "big")),))


def dataset_of(
    rows: Sequence[tuple[str, tuple[float, float, float, float], str | None]],
    images: list[dict[str, Any]] | None = None,
    labels: LabelSet = LABELS,
    **columns: Any,
) -> Dataset:
    """A dataset from (image, box, label); images that are not given are 100 × 80 px and have no file."""
    ids = list(dict.fromkeys(image_id for image_id, _, _ in rows))
    table = images or [{"image_id": i, "width_px": 100, "height_px": 80} for i in ids]
    cells = Cells.of(
        labels,
        image_id=[image_id for image_id, _, _ in rows],
        boxes=np.array([corners for _, corners, _ in rows], np.float32).reshape(-1, 4),
        label=[label for _, _, label in rows],
        source="import:test",
        **columns,
    )
    return Dataset(Images.of(table), cells, "faulty")


_EDGES = st.integers(-3, 13).map(lambda step: step * 8.0)  # images are 100 × 80: both sides lie between two steps
# Sixteenths of a px: what lies within rounding of an image's border has a test of its own.
_LOOSE = st.integers(-32 * 16, 128 * 16).map(lambda step: step / 16)
_BROKEN = st.sampled_from([float("nan"), float("inf"), -float("inf")])


@st.composite
def faulty_datasets(draw: st.DrawFn, *, most: int = 14) -> Dataset:
    """Datasets whose boxes are anything: outside, inside out, repeated, not numbers; some image sizes are unknown."""
    count = draw(st.integers(0, most))
    names = ["a.png", "b.png", "c.png"]
    images = [
        {"image_id": name, "width_px": draw(st.sampled_from([100, None])), "height_px": 80, "split": "train"}
        for name in names
    ]
    edge = st.one_of(_EDGES, _EDGES, _LOOSE)
    boxes: list[tuple[float, float, float, float]] = []
    for _ in range(count):
        how = draw(st.sampled_from(["new", "again", "near", "broken"]))
        if how in ("again", "near") and boxes:
            nudge = 0.0 if how == "again" else draw(st.sampled_from([0.25, 1.0, 4.0]))
            old = draw(st.sampled_from(boxes))
            boxes.append((old[0] + nudge, old[1], old[2], old[3] + nudge))
        elif how == "broken" and draw(st.booleans()):
            boxes.append((draw(_BROKEN), 0.0, draw(edge), draw(edge)))
        else:
            boxes.append((draw(edge), draw(edge), draw(edge), draw(edge)))
    column = lambda values: [draw(st.sampled_from(values)) for _ in range(count)]  # noqa: E731
    scores = [draw(st.sampled_from([None, 0.5])) for _ in range(count)]
    made = dataset_of(
        list(zip(column(names), boxes, column(["RBC", "WBC", None]), strict=True)),
        images,
        ignore=column([False, False, True]) if count else False,
        attributes={"look.size": column(["small", None])},
    )
    return Dataset(made.images, made.cells.with_columns(score=scores), "drawn", ({"step": "drawn"},))
