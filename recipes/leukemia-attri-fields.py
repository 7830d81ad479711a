"""Rendered fields as LeukemiaAttri has its own, to try recipes/leukemia_attri.toml without that data set.

    python recipes/leukemia-attri-fields.py OUT [--patients 12] [--fields 4]

OUT receives images named by patient, field, magnification and diagnosis, and label files of twelve columns. Kinds and
attributes are those that were drawn; what the drawing does not know (the nucleolus, and most of immature cells) has
the code of a missing value. Lysed cells stand for artefacts (None). No figure on such fields says anything of patients.
"""

from __future__ import annotations

import argparse
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from cytolens import boxes as box
from cytolens import formats
from cytolens.cells import Cells, join
from cytolens.dataset import Dataset
from cytolens.formats.leukemia_names import PATIENTS
from cytolens.images import Images
from cytolens.labels import LabelSet, attribute_schema
from cytolens.prepare.synthetic import SyntheticField, SyntheticSettings, render_field

LABELS = LabelSet.of(LabelSet.shipped("leukemia_attri").names, attribute_schema("leukemia_attri"))
KINDS = {
    "segmented neutrophil": "Neutrophil",
    "band neutrophil": "Neutrophil",
    "eosinophil": "Eosinophil",
    "basophil": "Basophil",
    "lymphocyte": "Lymphocyte",
    "monocyte": "Monocyte",
    "myelocyte": "Myelocyte",
    "metamyelocyte": "Metamyelocyte",
    "lysed cell": "None",
}
# Attribute of LeukemiaAttri → that of the drawing in WBCAtt's words, and its values.
SAME = {
    "nuclear_chromatin": ("chromatin_density", {"densely": "coarse", "loosely": "open"}),
    "cytoplasm": ("nuclear_cytoplasmic_ratio", {"high": "scanty", "low": "abundant"}),
    "cytoplasmic_basophilia": (
        "cytoplasm_colour",
        {"light blue": "slight", "purple blue": "slight", "blue": "moderate"},
    ),
    "cytoplasmic_vacuoles": ("cytoplasm_vacuole", {"no": "absent", "yes": "prominent"}),
}
LIMITS_UM = (11.0, 14.0)  # a small cell is narrower, a large one wider
SETTINGS = SyntheticSettings(
    width_px=384,
    height_px=288,
    red_cells=(6, 12),
    white_cells=(2, 4),
    platelets=(0, 2),
    red_cell_diameter_px=(48, 56),
    mix={"segmented neutrophil": 3, "eosinophil": 2, "basophil": 2, "lymphocyte": 3, "monocyte": 2, "myelocyte": 1,
         "lysed cell": 1},
)  # fmt: skip


def described(field: SyntheticField) -> Cells:
    """The white cells of a field in LeukemiaAttri's words."""
    cells = field.cells.where(label=list(KINDS))
    cells = cells.filter(~cells.frame["ignore"].to_numpy())
    names = [KINDS[str(name)] for name in cells.label_names()]
    told = {f"leukemia_attri.{name}": values(cells, *rule) for name, rule in SAME.items()}
    shapes = cells.attribute_values("wbcatt.nucleus_shape")
    told["leukemia_attri.nuclear_shape"] = [
        None if shape is None else "regular" if shape == "unsegmented-round" else "irregular" for shape in shapes
    ]
    widths_um = np.sqrt(box.areas(cells.boxes())) * field.um_per_px
    sizes = np.searchsorted(LIMITS_UM, widths_um)
    told["leukemia_attri.cell_size"] = [
        None if name == "None" else ("small", "medium", "large")[size] for name, size in zip(names, sizes, strict=True)
    ]
    return Cells.of(
        LABELS,
        image_id=cells.frame["image_id"].to_list(),
        boxes=cells.boxes(),
        label=names,
        source="synthetic",
        attributes=told,
    )


def values(cells: Cells, name: str, words: dict[str, str]) -> list[str | None]:
    """The values of one of WBCAtt's attributes in other words."""
    return [None if value is None else words[value] for value in cells.attribute_values(f"wbcatt.{name}")]


def patients(count: int) -> list[tuple[int, str]]:
    """The first patients of the published parts with their diagnoses, of every diagnosis and part in turn."""
    lists = [[(n, name) for n in sorted(part)] for name, parts in PATIENTS.items() for part in parts]
    return [one for one in chain.from_iterable(zip_longest(*lists)) if one is not None][:count]


def main() -> None:
    """Render, put into words, write."""
    parser = argparse.ArgumentParser(description="Rendered fields in the files of LeukemiaAttri.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--patients", type=int, default=12)
    parser.add_argument("--fields", type=int, default=4, help="of each patient")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    drawn = given.out / "drawn"
    drawn.mkdir(parents=True)
    rows, tables = [], []
    for patient, diagnosis in patients(given.patients):
        for number in range(given.fields):
            name = f"{patient}_{number + 1}_1000_{diagnosis}.png"
            field = render_field(1000 * given.seed + 50 * number + patient, SETTINGS, name, slide_seed=patient)
            Image.fromarray(field.pixels).save(drawn / name)
            size = {"width_px": field.pixels.shape[1], "height_px": field.pixels.shape[0]}
            rows.append({"image_id": name, "path": str((drawn / name).resolve()), **size})
            tables.append(described(field))
    data = Dataset(Images.of(rows), join(tables, LABELS), "leukemia-attri-fields")
    problems = formats.write(data, given.out / "data", "leukemia_attri", formats.WriteOptions(copy_images=True))
    print(f"{len(rows)} fields, {len(data.cells)} cells in {given.out / 'data'}")
    for problem in problems:
        print(problem)


if __name__ == "__main__":
    main()
