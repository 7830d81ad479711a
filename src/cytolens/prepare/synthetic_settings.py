"""What a rendered blood smear may look like: the settings and their presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cytolens.problems import SettingError, did_you_mean

RED_CELL_UM = 7.2  # mean diameter of a red cell: the ruler of every smear

Look = Literal["cream", "grey", "violet"]
WhiteCell = Literal[
    "segmented neutrophil",
    "band neutrophil",
    "eosinophil",
    "basophil",
    "lymphocyte",
    "monocyte",
    "promyelocyte",
    "myelocyte",
    "metamyelocyte",
    "erythroblast",
    "lysed cell",
]


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"a range goes from low to high; got {limits[0]} to {limits[1]}")
    return limits


def _shares(shares: Mapping[str, float]) -> Mapping[str, float]:
    if any(share < 0 for share in shares.values()) or not sum(shares.values()) > 0:
        raise ValueError(f"shares are not negative and not all zero; got {dict(shares)}")
    return shares


_Amount = Annotated[float, Field(ge=0, le=1000)]
_Part = Annotated[float, Field(ge=0, le=1)]
_Number = Annotated[int, Field(ge=0, le=1000)]
_Width = Annotated[float, Field(ge=16, le=400)]
_Percent = Annotated[int, Field(ge=1, le=100)]
Range = Annotated[tuple[_Amount, _Amount], AfterValidator(_rising)]
Parts = Annotated[tuple[_Part, _Part], AfterValidator(_rising)]
Count = Annotated[tuple[_Number, _Number], AfterValidator(_rising)]
Quality = Annotated[tuple[_Percent, _Percent], AfterValidator(_rising)]
Diameter = Annotated[tuple[_Width, _Width], AfterValidator(_rising)]

_MIX: dict[WhiteCell, float] = {
    "segmented neutrophil": 0.32,
    "band neutrophil": 0.08,
    "eosinophil": 0.10,
    "basophil": 0.07,
    "lymphocyte": 0.20,
    "monocyte": 0.10,
    "promyelocyte": 0.02,
    "myelocyte": 0.03,
    "metamyelocyte": 0.03,
    "erythroblast": 0.04,
    "lysed cell": 0.01,
}


class SyntheticSettings(BaseModel):
    """What a rendered field may look like.

    A pair is a range (low, high). What belongs to the field is drawn for each field; what belongs to
    the slide (stain, camera, red cells) once for all fields of a slide. A field holds as many cells as the
    ranges say, unless it is so small that they cannot all be seen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width_px: int = Field(default=640, ge=64, le=4096)
    height_px: int = Field(default=480, ge=64, le=4096)

    # the field
    red_cells: Count = Field(default=(14, 32), description="red cells per field")
    white_cells: Count = Field(default=(1, 3), description="nucleated and lysed cells per field")
    platelets: Count = Field(default=(1, 6), description="platelets per field")
    mix: Annotated[Mapping[WhiteCell, float], AfterValidator(_shares)] = Field(
        default=_MIX, description="share of each type among the white cells"
    )
    debris: Count = Field(default=(0, 6), description="specks, stain precipitate, dust and drying rings per field")
    piled: Parts = Field(default=(0.0, 0.35), description="share of red cells that lie on another")
    blur_px: Range = Field(default=(0.5, 1.3), description="defocus: standard deviation of the point spread")

    # the slide: cells
    red_cell_diameter_px: Diameter = Field(default=(72.0, 104.0), description="mean red cell diameter: the scale")
    red_cell_spread: Parts = Field(default=(0.03, 0.08), description="how unequal red cells are (anisocytosis)")
    red_density_spread: Parts = Field(default=(0.04, 0.12), description="how unequally dense red cells are")
    pallor: Parts = Field(default=(0.1, 0.9), description="how pale the middle of red cells is")
    ring: Parts = Field(default=(0.0, 0.35), description="how much darker the rim of red cells is")
    crenated: Parts = Field(default=(0.0, 0.1), description="share of slides whose red cells are thorny")
    white_cell_scale: Range = Field(default=(0.95, 1.12), description="how flat, so how wide, white cells have dried")

    # the slide: stain
    looks: Annotated[Mapping[Look, float], AfterValidator(_shares)] = Field(
        default={"cream": 1.0, "grey": 1.0, "violet": 1.0},
        description="stain and lamp: cream and dark blue, grey and pale, pink and violet; a slide mixes them at random",
    )
    red_density: Range = Field(default=(0.8, 1.2), description="strength of the red cells")
    white_density: Range = Field(default=(0.8, 1.1), description="strength of the stain in white cells and platelets")
    stain_shift: float = Field(
        default=0.05, ge=0, le=0.3, description="how much a slide's stain colours differ, relative"
    )

    # the slide: microscope and camera
    brightness: Range = Field(default=(0.94, 1.06), description="exposure, relative to the look's")
    tint: float = Field(default=0.015, ge=0, le=0.3, description="error of the white balance, relative")
    shading: Parts = Field(default=(0.01, 0.12), description="fall of the light across the field")
    glare: Parts = Field(default=(0.0, 0.06), description="stray light: lifts what is dark")
    fringe_px: Range = Field(default=(0.0, 0.9), description="lateral colour error at the border of the field")
    sharpening: Range = Field(default=(0.1, 0.8), description="the camera's edge enhancement")
    noise: Range = Field(default=(0.6, 2.4), description="sensor noise in grey levels")
    jpeg_quality: Quality | None = Field(default=(84, 97), description="the camera's JPEG; null: none")


_PRESETS: dict[str, dict[str, Any]] = {
    "varied": {},
    # A scanner with a good objective: cream background, crisp and dark cells.
    "cream": {
        "looks": {"cream": 1.0},
        "red_cell_diameter_px": (74.0, 84.0),
        "blur_px": (0.5, 0.7),
        "sharpening": (0.7, 1.2),
        "ring": (0.0, 0.2),
        "white_cell_scale": (0.97, 1.03),
        "shading": (0.0, 0.03),
        "glare": (0.0, 0.01),
        "noise": (0.8, 1.4),
        "fringe_px": (0.0, 0.3),
        "red_density": (0.8, 1.05),
        "crenated": (0.0, 0.06),
        "white_density": (0.95, 1.05),
        "tint": 0.005,
        "stain_shift": 0.03,
        "pallor": (0.45, 1.0),
        "red_cells": (24, 46),
        "debris": (0, 4),
        "platelets": (1, 5),
        "brightness": (0.99, 1.0),
        "jpeg_quality": (92, 97),
    },
    # A school microscope with an eyepiece camera: grey, blurred, low contrast, cells in heaps.
    "grey": {
        "looks": {"grey": 1.0},
        "red_cell_diameter_px": (96.0, 110.0),
        "red_cells": (11, 20),
        "white_cells": (1, 1),
        "platelets": (0, 3),
        "piled": (0.3, 0.55),
        "debris": (2, 9),
        "tint": 0.012,
        "stain_shift": 0.04,
        "pallor": (0.45, 0.95),
        "red_density_spread": (0.12, 0.28),
        "ring": (0.1, 0.4),
        "red_density": (0.7, 1.05),
        "brightness": (0.96, 1.04),
        "blur_px": (1.5, 2.5),
        "sharpening": (0.2, 0.6),
        "noise": (2.0, 4.0),
        "shading": (0.06, 0.16),
        "fringe_px": (0.5, 1.4),
        "white_cell_scale": (1.0, 1.2),
        "jpeg_quality": (70, 85),
    },
}


def preset(name: str) -> SyntheticSettings:
    """Settings by name: "varied" (the defaults), "cream" (crisp, dark cells on cream) or "grey" (pale, blurred).

    Raises:
        SettingError: there is no preset of that name.
    """
    if name not in _PRESETS:
        hint = did_you_mean(name, _PRESETS)
        raise SettingError(f'no preset "{name}" of rendered fields. {hint} There are: {", ".join(_PRESETS)}')
    return SyntheticSettings(**_PRESETS[name])
