"""Cells in words."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from cytolens.cells import Cells
from cytolens.labels import AttributeSchema, LabelSet, attribute_schema
from cytolens.predict.sentences import PARTS, sentence, sentences

WBCATT = attribute_schema("wbcatt")
EOSINOPHIL: dict[str, str | None] = {
    "cell_size": "big", "cell_shape": "round", "nucleus_shape": "segmented-bilobed", "nuclear_cytoplasmic_ratio": "low",
    "chromatin_density": "densely", "cytoplasm_vacuole": "no", "cytoplasm_texture": "clear",
    "cytoplasm_colour": "light blue", "granule_type": "round", "granule_colour": "red", "granularity": "yes",
}  # fmt: skip


def said(values: Mapping[str, str | None]) -> str:
    return sentence({f"wbcatt.{name}": value for name, value in values.items()}, WBCATT)


def test_an_eosinophil_and_a_lymphocyte() -> None:
    assert said(dict(EOSINOPHIL)) == (
        "large round cell, segmented-bilobed nucleus with dense chromatin, low nucleus-to-cytoplasm ratio, "
        "clear light blue cytoplasm, round red granules"
    )
    none = {"granule_type": "nil", "granule_colour": "nil", "granularity": "no"}
    assert said(EOSINOPHIL | none | {"cytoplasm_vacuole": "yes"}).endswith("cytoplasm with vacuoles, no granules")


def test_what_is_not_known_is_not_said() -> None:
    assert said({}) == ""
    assert said({"granule_colour": "pink"}) == "pink granules"
    assert said({"chromatin_density": "loosely"}) == "nucleus with loose chromatin"


def test_a_schema_without_words_is_said_as_it_is() -> None:
    own = (AttributeSchema("mine", "auer_rods", ("yes", "no")),)
    assert sentence({"mine.auer_rods": "yes"}, own) == "auer rods: yes"


def test_leukemia_attri() -> None:
    values = {
        "cell_size": "medium", "nuclear_chromatin": "open", "nuclear_shape": "irregular", "nucleolus": "prominent",
        "cytoplasm": "scanty", "cytoplasmic_basophilia": "moderate", "cytoplasmic_vacuoles": "absent",
    }  # fmt: skip
    own = {f"leukemia_attri.{name}": value for name, value in values.items()}
    assert sentence(own, attribute_schema("leukemia_attri")) == (
        "medium-sized cell, irregular nucleus with open chromatin, prominent nucleolus, scanty cytoplasm with moderate "
        "basophilia, no vacuoles"
    )


def test_every_attribute_of_the_shipped_schemas_has_its_place() -> None:
    for schema, parts in PARTS.items():
        attributes = {a.name: set(a.values) for a in attribute_schema(schema)}
        spoken = {name: words for part in parts for name, words in [*part.before.items(), *part.after.items()]}
        assert set(spoken) == set(attributes)
        assert all(set(words) <= attributes[name] for name, words in spoken.items())


@given(st.fixed_dictionaries({a.name: st.sampled_from([None, *a.values]) for a in WBCATT}))
def test_sentences_are_words_in_one_line(values: dict[str, str | None]) -> None:
    text = said(values)
    assert "  " not in text
    assert "nil" not in text
    assert text.strip(" ,") == text


def test_one_sentence_per_cell() -> None:
    labels = LabelSet(("a",), attributes=WBCATT)
    shapes = {"wbcatt.cell_shape": ["round", None]}
    both = Cells.of(
        labels, image_id=["x"] * 2, boxes=[[0, 0, 1, 1]] * 2, label=["a"] * 2, source="y", attributes=shapes
    )
    assert sentences(both) == ["round cell", ""]
    assert sentences(Cells.empty(labels)) == []
    assert sentences(both.relabel(LabelSet(("a",)))) == ["", ""]
