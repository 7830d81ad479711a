"""Rendered blood smears with exact truth.

A field looks like Giemsa- or Wright-stained blood photographed through a 100× objective: red cells
with central pallor, white cells of eleven kinds, platelets, dirt; a lamp, a lens and a camera. Every
cell's mask, box, label and (for the five mature kinds) attributes are known exactly, so fields serve
as a demonstration, as tests and as a share of training data. They do not replace real smears: no
figure measured on them says how a model does in a laboratory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import get_args

import numpy as np

from cytolens import masks
from cytolens.cells import Cells, join
from cytolens.dataset import Dataset
from cytolens.images import Images, Pixels
from cytolens.labels import LabelSet, attribute_schema
from cytolens.prepare.synthetic_cells import Board, debris, film, platelet, red_cell, stacked, visible
from cytolens.prepare.synthetic_layout import Counts, Place, draw_counts, lay_out
from cytolens.prepare.synthetic_leukocytes import KINDS, draw_radius, white_cell
from cytolens.prepare.synthetic_optics import Slide, draw_slide, photograph
from cytolens.prepare.synthetic_settings import RED_CELL_UM, SyntheticSettings, WhiteCell, preset
from cytolens.problems import SettingError, written

__all__ = [
    "SyntheticField",
    "SyntheticSettings",
    "preset",
    "render_cell",
    "render_field",
    "synthetic_labels",
    "write_synthetic",
]

VERSION = 1  # of the drawing: changes whenever the same seed gives other pixels
_IGNORED_BELOW = 0.25  # a cell of which less than this share is visible is not scored


@dataclass(frozen=True, eq=False)
class SyntheticField:
    """One rendered image and the truth about it.

    Attributes:
        pixels: uint8 RGB, shape (height, width, 3).
        cells: boxes that are the bounds of the masks, masks of the visible parts, labels, attributes.
        um_per_px: the scale.
    """

    pixels: Pixels
    cells: Cells
    um_per_px: float


@cache
def synthetic_labels() -> LabelSet:
    """The labels of rendered cells, with the attributes of the "wbcatt" schema."""
    return LabelSet.of(["erythrocyte", "platelet", *get_args(WhiteCell)], attribute_schema("wbcatt"))


def render_field(
    seed: int,
    settings: SyntheticSettings | None = None,
    image_id: str = "field.png",
    *,
    slide_seed: int | None = None,
) -> SyntheticField:
    """Render a field of a blood smear.

    Args:
        seed: the same seed and settings give the same pixels.
        settings: what the field may look like; None: the defaults.
        image_id: of the cells.
        slide_seed: fields with the same one share stain, camera and scale; None: a slide of its own.
    """
    settings = settings or SyntheticSettings()
    slide = draw_slide(_generator(seed if slide_seed is None else slide_seed, 1), settings)
    rng = _generator(seed, 0)
    places = lay_out(rng, slide, settings, draw_counts(rng, settings), (settings.width_px, settings.height_px))
    return _drawn(rng, slide, settings, places, (settings.height_px, settings.width_px), image_id)


def render_cell(
    seed: int,
    label: str,
    side_px: int = 360,
    settings: SyntheticSettings | None = None,
    image_id: str = "cell.png",
) -> SyntheticField:
    """Render one cell in the middle of a square image, with red cells and platelets around it.

    Args:
        seed: the same seed and settings give the same pixels.
        label: one of `synthetic_labels`, or an alias of one.
        side_px: width and height.
        settings: what the image may look like (its size and number of white cells are not used).
        image_id: of the cells. The cell in the middle is the first.

    Raises:
        LabelError: a label that is not drawn.
    """
    settings = settings or SyntheticSettings()
    label = synthetic_labels().require(label)
    slide = draw_slide(_generator(seed, 1), settings)
    rng = _generator(seed, 0)
    radius = {"erythrocyte": RED_CELL_UM / 2, "platelet": rng.uniform(1.2, 2.1)}.get(label)
    middle = side_px / 2 + rng.uniform(-0.02, 0.02, 2) * side_px
    placed = Place(label, *middle, radius_um=radius if radius is not None else draw_radius(rng, slide, label))
    around = draw_counts(rng, settings, side_px**2 / (settings.width_px * settings.height_px))
    counts = Counts(0, around.red, around.platelets)
    places = lay_out(rng, slide, settings, counts, (side_px, side_px), [placed])
    return _drawn(rng, slide, settings, places, (side_px, side_px), image_id)


def _generator(seed: int, purpose: int) -> np.random.Generator:
    if seed < 0:
        raise SettingError(f"a seed is a whole number from 0 up; got {seed}")
    return np.random.default_rng([seed, purpose])


def _drawn(
    rng: np.random.Generator,
    slide: Slide,
    settings: SyntheticSettings,
    places: list[Place],
    size_hw: tuple[int, int],
    image_id: str,
) -> SyntheticField:
    """Paint the cells, photograph them, and write down the truth."""
    boards = [_painted(rng, slide, place) for place in places]
    # White cells lie on top: red cells give way to them. Platelets lie on red cells.
    upward = sorted(range(len(places)), key=lambda i: (places[i].label in KINDS, places[i].label == "platelet"))
    dirt = [debris(rng, slide, size_hw) for _ in range(int(rng.integers(settings.debris[0], settings.debris[1] + 1)))]
    planes = stacked(film(rng, slide, size_hw), [*(boards[i] for i in upward), *dirt])
    pixels = photograph(rng, planes, slide, rng.uniform(*settings.blur_px))
    shown = dict(zip(upward, visible([boards[i] for i in upward], size_hw), strict=True))
    cells = _truth(places, boards, [shown[i] for i in range(len(places))], pixels, image_id)
    return SyntheticField(pixels, cells, RED_CELL_UM / slide.red_cell_px)


def _painted(rng: np.random.Generator, slide: Slide, place: Place) -> Board:
    if place.label == "erythrocyte":
        return red_cell(rng, slide, place.x, place.y, place.radius_um, place.walls)
    if place.label == "platelet":
        return platelet(rng, slide, place.x, place.y, place.radius_um)
    return white_cell(rng, slide, place.label, place.x, place.y, place.radius_um)


def _truth(places: list[Place], boards: list[Board], shown: list[masks.Mask], pixels: Pixels, image_id: str) -> Cells:
    """The table of what is visible; a cell of which nothing is visible is not in it."""
    labels = synthetic_labels()
    kept = [i for i, mask in enumerate(shown) if mask.any()]
    codes = [masks.encode(shown[i]) for i in kept]
    whole = [int((boards[i].body >= 0.5).sum()) for i in kept]
    attributes = {
        attribute.column: [boards[i].attributes.get(attribute.name) for i in kept] for attribute in labels.attributes
    }
    return Cells.of(
        labels,
        image_id=[image_id] * len(kept),
        boxes=np.array([masks.bounds(code, pixels.shape[:2]) for code in codes], np.float32).reshape(-1, 4),
        label=[places[i].label for i in kept],
        source=f"synthetic@{VERSION}",
        image_key=[sha256(pixels.tobytes()).hexdigest()] * len(kept),
        mask=codes,
        attributes=attributes,
        ignore=[shown[i].sum() < _IGNORED_BELOW * area for i, area in zip(kept, whole, strict=True)],
    )


def write_synthetic(
    folder: str | os.PathLike[str],
    count: int,
    seed: int,
    settings: SyntheticSettings | None = None,
    name: str = "synthetic",
    *,
    fields_per_slide: int = 4,
    jpeg_quality: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Render fields into a dataset folder.

    Args:
        folder: gets ``images/`` and the dataset's files.
        count: number of fields.
        seed: the same seed and settings give the same files.
        settings: what fields may look like; None: the defaults.
        name: of the dataset.
        fields_per_slide: fields that share stain and camera; a slide is a group, so no split tears it.
        jpeg_quality: store the images as JPEG of this quality (92 to 100); None: as PNG, without loss.
        progress: called with (fields done, `count`).

    Raises:
        SettingError: a count or quality out of range.
    """
    settings = settings or SyntheticSettings()
    if count < 0 or fields_per_slide < 1:
        raise SettingError(f"count is at least 0 and fields_per_slide at least 1; got {count} and {fields_per_slide}")
    if jpeg_quality is not None and not 92 <= jpeg_quality <= 100:
        raise SettingError(f"jpeg_quality is 92 to 100, so that the truth stays visible; got {jpeg_quality}")
    target = Path(folder)
    rows, tables = [], []
    for number in range(count):
        slide = number // fields_per_slide
        image_id = f"images/{number:05d}.{'png' if jpeg_quality is None else 'jpg'}"
        field = render_field(_derived(seed, 0, number), settings, image_id, slide_seed=_derived(seed, 1, slide))
        data = _stored(field.pixels, target / image_id, jpeg_quality)
        rows.append(_image_row(field, image_id, target / image_id, data, f"{name}-slide-{slide:04d}"))
        tables.append(field.cells)
        if progress is not None:
            progress(number + 1, count)
    step = {"step": "synthetic", "version": VERSION, "seed": seed, "settings": settings.model_dump(mode="json")}
    dataset = Dataset(Images.of(rows), join(tables, synthetic_labels()), name, (step,), "Apache-2.0")
    dataset.write(target)
    return dataset


def _derived(seed: int, purpose: int, number: int) -> int:
    """A seed of its own for each field (purpose 0) and slide (purpose 1)."""
    return int(np.random.SeedSequence([seed, purpose, number]).generate_state(1, np.uint64)[0])


def _stored(pixels: Pixels, path: Path, jpeg_quality: int | None) -> bytes:
    from PIL import Image

    options = {"format": "PNG"} if jpeg_quality is None else {"format": "JPEG", "quality": jpeg_quality}
    with written(path) as part:
        Image.fromarray(pixels).save(part, **options)
    return path.read_bytes()


def _image_row(field: SyntheticField, image_id: str, path: Path, data: bytes, group: str) -> dict[str, object]:
    return {
        "image_id": image_id,
        "path": str(path.resolve()),
        "width_px": field.pixels.shape[1],
        "height_px": field.pixels.shape[0],
        "um_per_px": field.um_per_px,
        "sha256": sha256(data).hexdigest(),
        "group": group,
        "complete_for": list(synthetic_labels().names),
        "stain": "rendered Romanowsky",
        "scanner": f"synthetic@{VERSION}",
        "magnification": "100x",
    }
