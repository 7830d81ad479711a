"""A cell in words, from its attributes: "segmented-bilobed nucleus with dense chromatin, round red granules"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cytolens.cells import Cells
from cytolens.labels import AttributeSchema

Words = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a cell, and the words that values put before or after its name.

    Attributes:
        noun: its name.
        before, after: attribute → value → words; "" says nothing.
        absent: attribute and the value of it with which there is no such part.
    """

    noun: str
    before: Mapping[str, Words] = field(default_factory=dict)
    after: Mapping[str, Words] = field(default_factory=dict)
    absent: tuple[str, str] | None = None


_SAME: Words = {}  # the values' own words
PARTS: Mapping[str, tuple[Part, ...]] = {
    "wbcatt": (
        Part("cell", {"cell_size": {"big": "large"}, "cell_shape": _SAME}),
        Part(
            "nucleus",
            {
                "nucleus_shape": {
                    "unsegmented-band": "band-shaped",
                    "unsegmented-indented": "indented",
                    "unsegmented-round": "round",
                }
            },
            {"chromatin_density": {"densely": "with dense chromatin", "loosely": "with loose chromatin"}},
        ),
        Part("nucleus-to-cytoplasm ratio", {"nuclear_cytoplasmic_ratio": _SAME}),
        Part(
            "cytoplasm",
            {"cytoplasm_texture": _SAME, "cytoplasm_colour": {"purple blue": "purple-blue"}},
            {"cytoplasm_vacuole": {"yes": "with vacuoles", "no": ""}},
        ),
        Part(
            "granules",
            {"granule_type": {"nil": ""}, "granule_colour": {"nil": ""}, "granularity": {"yes": "", "no": ""}},
            absent=("granularity", "no"),
        ),
    ),
    "leukemia_attri": (
        Part("cell", {"cell_size": {"medium": "medium-sized"}}),
        Part(
            "nucleus",
            {"nuclear_shape": _SAME},
            {"nuclear_chromatin": {"open": "with open chromatin", "coarse": "with coarse chromatin"}},
        ),
        Part("nucleolus", {"nucleolus": _SAME}),
        Part(
            "cytoplasm",
            {"cytoplasm": _SAME},
            {"cytoplasmic_basophilia": {"slight": "with slight basophilia", "moderate": "with moderate basophilia"}},
        ),
        Part("vacuoles", {"cytoplasmic_vacuoles": _SAME}, absent=("cytoplasmic_vacuoles", "absent")),
    ),
}


def sentence(values: Mapping[str, str | None], attributes: tuple[AttributeSchema, ...]) -> str:
    """One cell in words; "" where nothing is known.

    Args:
        values: column → value, None where not known.
        attributes: of the label set. Those of schemas that `PARTS` has no words for are said as "name: value".
    """
    said: list[str] = []
    for schema in dict.fromkeys(attribute.schema for attribute in attributes):
        known = {
            a.name: value for a in attributes if a.schema == schema and (value := values.get(a.column)) is not None
        }
        parts = PARTS.get(schema, ())
        said += [words for part in parts if (words := _said(part, known))]
        spoken = {name for part in parts for name in (*part.before, *part.after)}
        said += [f"{name.replace('_', ' ')}: {value}" for name, value in known.items() if name not in spoken]
    return ", ".join(said)


def sentences(cells: Cells) -> list[str]:
    """Each cell in words (N)."""
    attributes = cells.labels.attributes
    columns = [attribute.column for attribute in attributes]
    values = [cells.attribute_values(column) for column in columns]
    rows = zip(*values, strict=True) if columns else iter([()] * len(cells))
    return [sentence(dict(zip(columns, row, strict=True)), attributes) for row in rows]


def _said(part: Part, known: Mapping[str, str]) -> str:
    if part.absent is not None and known.get(part.absent[0]) == part.absent[1]:
        return f"no {part.noun}"
    if not any(name in known for name in (*part.before, *part.after)):
        return ""
    before = [table.get(known[name], known[name]) for name, table in part.before.items() if name in known]
    after = [table.get(known[name], known[name]) for name, table in part.after.items() if name in known]
    return " ".join(word for word in (*before, part.noun, *after) if word)
