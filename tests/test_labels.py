from __future__ import annotations

import csv
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens.labels import AttributeSchema, LabelSet, attribute_schema, folded, taxonomy
from cytolens.problems import LabelError
from tests.strategies import PUBLISHED_SETS, label_names, label_sets, published_sets

# Label sets of published data, index order, as their own documentation gives them.
PUBLISHED = {
    "pbc": ["SNE", "BNE", "NEUTROPHIL", "EO", "BA", "LY", "MO", "PMY", "MY", "MMY", "IG", "ERB", "PLATELET"],
    "txl_pbc": ["WBC", "RBC", "Platelet"],
    "bccd": ["WBC", "RBC", "Platelets"],
    "cytologia": [
        "PNN", "LY", "MO", "EO", "BA", "Er", "PM", "Thromb", "LAM3", "Lysee", "LyB", "LLC", "MBL", "LGL", "B", "M",
        "MM", "LF", "MoB", "LH_lyAct", "LM", "LZMG", "SS",
    ],
    "celluscan": [
        "Band Neutrophil", "Basophil", "Eosinophil", "Erythroblast", "Immature Granulocyte", "Lymphocyte",
        "Metamyelocytes", "Monocyte", "Myeloblast", "Myelocytes", "Neutrophil", "Platelets", "Promyelocytes",
        "Segmented Neutrophil",
    ],
    "leukemia_attri": [
        "None", "Myeloblast", "Lymphoblast", "Neutrophil", "Atypical lymphocyte", "Promonocyte", "Monoblast",
        "Lymphocyte", "Myelocyte", "Abnormal promyelocyte", "Monocyte", "Metamyelocyte", "Eosinophil", "Basophil",
    ],
}  # fmt: skip

CYTOLOGIA_MEANINGS = {
    "PNN": "neutrophil",
    "LY": "lymphocyte",
    "MO": "monocyte",
    "EO": "eosinophil",
    "BA": "basophil",
    "Er": "erythroblast",
    "PM": "promyelocyte",
    "Thromb": "giant platelet",
    "LAM3": "abnormal promyelocyte",
    "Lysee": "lysed cell",
    "LyB": "lymphoblast",
    "LLC": "chronic lymphocytic leukaemia cell",
    "MBL": "myeloblast",
    "LGL": "large granular lymphocyte",
    "B": "blast",
    "M": "myelocyte",
    "MM": "metamyelocyte",
    "LF": "follicular lymphoma cell",
    "MoB": "monoblast",
    "LH_lyAct": "reactive lymphocyte",
    "LM": "mantle cell lymphoma cell",
    "LZMG": "nodal marginal zone lymphoma cell",
    "SS": "Sézary cell",
}
PBC_MEANINGS = {
    "SNE": "segmented neutrophil",
    "BNE": "band neutrophil",
    "NEUTROPHIL": "neutrophil",
    "EO": "eosinophil",
    "BA": "basophil",
    "LY": "lymphocyte",
    "MO": "monocyte",
    "PMY": "promyelocyte",
    "MY": "myelocyte",
    "MMY": "metamyelocyte",
    "IG": "immature granulocyte",
    "ERB": "erythroblast",
    "PLATELET": "platelet",
}
WBCATT = {
    "cell_size": ["big", "small"],
    "cell_shape": ["irregular", "round"],
    "nucleus_shape": [
        "irregular", "segmented-bilobed", "segmented-multilobed", "unsegmented-band", "unsegmented-indented",
        "unsegmented-round",
    ],
    "nuclear_cytoplasmic_ratio": ["high", "low"],
    "chromatin_density": ["densely", "loosely"],
    "cytoplasm_vacuole": ["no", "yes"],
    "cytoplasm_texture": ["clear", "frosted"],
    "cytoplasm_colour": ["blue", "light blue", "purple blue"],
    "granule_type": ["coarse", "nil", "round", "small"],
    "granule_colour": ["nil", "pink", "purple", "red"],
    "granularity": ["no", "yes"],
}  # fmt: skip

BLOOD = taxonomy()


def spellings(labels: LabelSet) -> Iterator[tuple[str, str]]:
    """Every name and alias with the label it means."""
    yield from ((name, name) for name in labels.names)
    yield from labels.aliases.items()


# -- comparing names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling", ["Segmented Neutrophil", "segmented_neutrophil", "  SEGMENTED-NEUTROPHIL ", "segmented _ neutrophil_"]
)
def test_case_and_separators_do_not_matter(spelling: str) -> None:
    assert folded(spelling) == "segmented neutrophil"
    assert BLOOD.resolve(spelling) == "segmented neutrophil"


def test_how_accents_are_stored_does_not_matter() -> None:
    decomposed = unicodedata.normalize("NFD", "Sézary cell")
    assert decomposed != "Sézary cell"
    assert BLOOD.resolve(decomposed) == "Sézary cell"
    assert BLOOD.resolve("LYSÉE") == "lysed cell"


@given(st.text(max_size=12))
def test_folding_twice_changes_nothing(text: str) -> None:
    assert folded(folded(text)) == folded(text)
    assert folded(text) == folded(f" {text}_") == folded(unicodedata.normalize("NFD", text))


# -- the shipped taxonomy -------------------------------------------------------------------------


def test_no_spelling_of_the_taxonomy_means_two_things() -> None:
    meanings: dict[str, set[str]] = {}
    for spelling, name in spellings(BLOOD):
        meanings.setdefault(folded(spelling), set()).add(name)
    assert {spelling: names for spelling, names in meanings.items() if len(names) > 1} == {}
    for spelling, name in spellings(BLOOD):  # a plural is no other label's spelling either
        assert meanings.get(folded(spelling) + "s", {name}) == {name}


def test_every_spelling_of_the_taxonomy_resolves() -> None:
    for spelling, name in spellings(BLOOD):
        assert BLOOD.resolve(spelling) == BLOOD.require(spelling.upper()) == name


@pytest.mark.parametrize(
    ("same", "name"),
    [
        ("NGS SNE Segmented_Neutrophil segmented", "segmented neutrophil"),
        ("PNN NEUTROPHIL neut Neutrophils", "neutrophil"),
        ("BNE NGB band Band_Neutrophil", "band neutrophil"),
        ("Platelet Platelets PC PLT PLATELET thrombocytes", "platelet"),
        ("WBC Leukocytes leucocyte White_Blood_Cells", "leukocyte"),
        ("RBC red-blood-cell erythrocytes", "erythrocyte"),
        ("MMY MM Metamyelocytes", "metamyelocyte"),
        ("MY M Myelocytes", "myelocyte"),
        ("PMY PM Promyelocytes", "promyelocyte"),
        ("MYO MBL Myeloblast", "myeloblast"),
        ("ERB Er NRBC", "erythroblast"),
        ("SS Sezary_cell Sézary_cells", "Sézary cell"),
    ],
)
def test_spellings_of_one_concept(same: str, name: str) -> None:
    assert {BLOOD.resolve(spelling) for spelling in same.split()} == {name}


def test_a_plural_of_a_code_is_not_made_up() -> None:
    assert BLOOD.resolve("EOs") == "eosinophil"  # an alias of its own
    for code in ("MMs", "PCs", "MYs"):
        assert BLOOD.resolve(code) is None


def test_the_tree() -> None:
    assert BLOOD.ancestors("band neutrophil") == ("neutrophil", "granulocyte", "leukocyte")
    assert BLOOD.ancestors("segmented neutrophil") == ("neutrophil", "granulocyte", "leukocyte")
    assert BLOOD.ancestors("leukocyte") == ()
    for child in ("promyelocyte", "myelocyte", "metamyelocyte"):
        assert BLOOD.parents[child] == "immature granulocyte"
    for child in ("myeloblast", "lymphoblast", "monoblast"):
        assert BLOOD.parents[child] == "blast"
    assert BLOOD.ancestors("abnormal promyelocyte")[0] == "blast equivalent"
    assert not BLOOD.is_a("abnormal promyelocyte", "promyelocyte")
    for other in ("erythroblast", "platelet", "lysed cell", "artefact", "background"):
        assert not BLOOD.is_a(other, "leukocyte")


def test_roles_decide_what_a_differential_counts() -> None:
    for name in BLOOD.names:
        assert (BLOOD.role(name) == "leukocyte") == BLOOD.is_a(name, "leukocyte")
        assert BLOOD.role(name) is not None
    expected = {"Er": "erythroblast", "RBC": "erythrocyte", "Thromb": "platelet", "Lysee": "lysed", "None": "artefact"}
    assert {spelling: BLOOD.role(BLOOD.require(spelling)) for spelling in expected} == expected


def test_only_names_deep_enough_are_answers() -> None:
    assert not BLOOD.reportable & {"leukocyte", "granulocyte"}
    assert set(BLOOD.leaves) <= BLOOD.reportable


# -- published label sets -------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_set_has_its_names_in_its_order(name: str) -> None:
    labels = LabelSet.shipped(name)
    assert list(labels.names) == PUBLISHED[name]
    assert [labels.index(label) for label in PUBLISHED[name]] == list(range(len(labels)))


def test_every_published_set_is_known() -> None:
    assert set(PUBLISHED) == set(PUBLISHED_SETS)
    assert {name: len(names) for name, names in PUBLISHED.items()} == {
        "pbc": 13, "txl_pbc": 3, "bccd": 3, "cytologia": 23, "celluscan": 14, "leukemia_attri": 14,
    }  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_set_resolves_completely_and_to_different_concepts(name: str) -> None:
    concepts = [BLOOD.resolve(label) for label in PUBLISHED[name]]
    assert None not in concepts
    assert [concept for concept, times in Counter(concepts).items() if times > 1] == []


@pytest.mark.parametrize(("name", "meanings"), [("cytologia", CYTOLOGIA_MEANINGS), ("pbc", PBC_MEANINGS)])
def test_codes_mean_what_their_documentation_says(name: str, meanings: dict[str, str]) -> None:
    assert LabelSet.shipped(name).mapping_to(BLOOD) == meanings


def test_celluscan_has_parents_among_its_classes() -> None:
    assert LabelSet.shipped("celluscan").parents == {
        "Band Neutrophil": "Neutrophil",
        "Segmented Neutrophil": "Neutrophil",
        "Promyelocytes": "Immature Granulocyte",
        "Myelocytes": "Immature Granulocyte",
        "Metamyelocytes": "Immature Granulocyte",
    }


def test_an_unknown_set_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(LabelError, match=r'no shipped label set "pcb"; there are: blood, pbc, txl_pbc'):
        LabelSet.shipped("pcb")
    assert LabelSet.shipped() is BLOOD


@pytest.mark.data
def test_published_sets_cover_the_real_tables(data_root: Path) -> None:
    def column(path: str, name: str) -> set[str]:
        with (data_root / path).open(encoding="utf-8", newline="") as stream:
            return {row[name] for row in csv.DictReader(stream)}

    assert column("cytologia/train.csv", "class") == set(PUBLISHED["cytologia"])
    assert column("pbc/labels.csv", "label") == set(PUBLISHED["pbc"])
    assert column("txl_pbc/wbc_subtypes.csv", "label") <= set(PUBLISHED["pbc"])
    assert (data_root / "txl_pbc/classes.txt").read_text().split() == PUBLISHED["txl_pbc"]
    assert all(BLOOD.resolve(name) for name in column("bccd/wbc_subtypes.csv", "subtype"))


# -- making label sets ----------------------------------------------------------------------------


@given(label_names(least=0))
def test_of_keeps_order_and_names(names: list[str]) -> None:
    labels = LabelSet.of(names)
    assert list(labels.names) == names
    assert len(labels) == len(names)
    assert [labels.resolve(name) for name in names] == names


@given(st.lists(st.sampled_from([s for s, _ in spellings(BLOOD)]), max_size=8, unique_by=folded))
def test_of_takes_the_tree_from_the_taxonomy(names: list[str]) -> None:
    labels = LabelSet.of(names)
    concepts = {name: BLOOD.require(name) for name in names}
    for name in names:
        assert labels.role(name) == BLOOD.role(concepts[name])
        for other in names:
            if concepts[name] != concepts[other]:
                expected = BLOOD.is_a(concepts[name], concepts[other]) and other == first_of(concepts[other], concepts)
                assert labels.is_a(name, other) == expected


def first_of(concept: str, concepts: dict[str, str]) -> str:
    return next(name for name, meaning in concepts.items() if meaning == concept)


def test_of_knows_the_aliases_of_the_taxonomy() -> None:
    labels = LabelSet.of(["WBC", "Segmented Neutrophil", "organoid"])
    assert labels.resolve("NGS") == labels.resolve("SNE") == "Segmented Neutrophil"
    assert labels.resolve("leukocyte") == "WBC"
    assert labels.parents == {"Segmented Neutrophil": "WBC"}
    assert (labels.role("organoid"), labels.ancestors("organoid")) == (None, ())
    assert "organoid" in labels.reportable


def test_two_names_of_one_concept_stay_apart_under_one_parent() -> None:
    labels = LabelSet.of(["WBC", "neutrophil", "PNN", "band"])
    assert labels.parents == {"neutrophil": "WBC", "PNN": "WBC", "band": "neutrophil"}
    assert (labels.resolve("PNN"), labels.resolve("neut")) == ("PNN", "neutrophil")


@pytest.mark.parametrize("twice", [("A", "A"), ("A b", "a_B"), ("Sézary", unicodedata.normalize("NFD", "sézary"))])
def test_a_name_is_there_once(twice: tuple[str, str]) -> None:
    for make in (LabelSet, LabelSet.of):
        with pytest.raises(LabelError, match=r"are the same name; keep one"):
            make(twice)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"names": ("A", " ")}, "empty name"),
        ({"names": ("A", "B"), "parents": {"A": "C"}}, 'parent of "A" is "C", but both must be among: A, B'),
        ({"names": ("A", "B"), "parents": {"C": "A"}}, 'parent of "C" is "A"'),
        ({"names": ("A",), "parents": {"A": "A"}}, "their own ancestors: A → A"),
        ({"names": ("A", "B", "C"), "parents": {"A": "B", "B": "C", "C": "A"}}, "A → B → C → A"),
        ({"names": ("A",), "aliases": {"x": "B"}}, 'the alias "x" stands for "B", which is not a label'),
        ({"names": ("A", "B"), "aliases": {"b": "A"}}, 'the alias "b" of "A" is also another label or alias'),
        ({"names": ("A", "B"), "aliases": {"x y": "A", "X_Y": "B"}}, "is also another label or alias"),
        ({"names": ("A",), "roles": {"a": "platelet"}}, "not labels: a"),
        ({"names": ("A",), "reportable": frozenset("AB")}, "not labels: B"),
        (
            {"names": ("A",), "roles": {"A": "leucocyte"}},
            'role of "A" is "leucocyte"; allowed: leukocyte, erythroblast',
        ),
        ({"names": ("A",), "attributes": (AttributeSchema("s", "x", ("1",)),) * 2}, 'attribute "s.x"'),
        ({"names": ("A",), "attributes": (AttributeSchema("s", "x", ("1", "1")),)}, 'attribute "s.x"'),
    ],
)
def test_a_contradictory_set_is_an_error_that_names_it(parts: dict[str, object], message: str) -> None:
    with pytest.raises(LabelError) as caught:
        LabelSet(**parts)  # pyright: ignore[reportArgumentType]
    assert message in str(caught.value)


def test_a_label_set_from_tables() -> None:
    labels = LabelSet.from_rows(
        [
            {"name": "parasite", "role": "artefact", "report": True},
            {"name": "ring form", "parent": "parasite", "aliases": ["ring", "Ring_Form", "early"]},
        ]
    )
    assert labels == LabelSet(
        ("parasite", "ring form"),
        parents={"ring form": "parasite"},
        aliases={"ring": "ring form", "early": "ring form"},
        roles={"parasite": "artefact"},
        reportable=frozenset({"parasite"}),
    )
    assert LabelSet.from_rows([]) == LabelSet(())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"nam": "A"}], "every [[label]] table needs a name; got {'nam': 'A'}"),
        ([{"name": "A", "parrent": "B"}], 'table "A" has the unknown key "parrent". Did you mean "parent"?'),
        ([{"name": "A", "aliases": "PNN"}], "aliases is 'PNN'; wanted: list"),
        ([{"name": 1}], "name is 1; wanted: str"),
        ([{"name": "A", "aliases": ["x"]}, {"name": "B", "aliases": ["x"]}], 'alias "x" stands for "A" and for "B"'),
        ([{"name": "A", "aliases": ["x"]}, {"name": "B", "aliases": ["X"]}], "is also another label or alias"),
        ([{"name": "A", "parent": "B"}], "both must be among: A"),
    ],
)
def test_tables_that_are_none_are_errors(rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(LabelError) as caught:
        LabelSet.from_rows(rows)
    assert message in str(caught.value)


# -- identity -------------------------------------------------------------------------------------


@given(label_sets(least=0))
def test_to_dict_and_back(labels: LabelSet) -> None:
    again = LabelSet.from_dict(labels.to_dict())
    assert again == labels
    assert hash(again) == hash(labels)
    assert again.to_dict() == labels.to_dict()


@given(label_sets(), label_sets())
def test_equal_sets_say_equal_things(one: LabelSet, other: LabelSet) -> None:
    assert (one == other) == (one.to_dict() == other.to_dict())
    assert one != "not a label set"


@given(label_sets(least=2))
def test_order_belongs_to_the_identity(labels: LabelSet) -> None:
    turned = LabelSet.from_dict(labels.to_dict() | {"names": list(labels.names[::-1])})
    assert turned != labels
    assert len(labels.hash) == 12


# -- looking up -----------------------------------------------------------------------------------


@given(label_sets())
def test_indices_names_and_aliases_agree(labels: LabelSet) -> None:
    for position, name in enumerate(labels.names):
        assert labels.index(name) == position
        assert name in labels
        assert labels.resolve(name.upper()) == labels.resolve(f" {name}_") == name
    for alias, name in labels.aliases.items():
        assert labels.require(alias) == name
        assert alias not in labels


def test_an_unknown_label_is_an_error_that_helps() -> None:
    labels = LabelSet.shipped("bccd")
    with pytest.raises(
        LabelError, match=r'unknown label "Platlets"\. Did you mean "Platelets"\? Labels here: WBC, RBC'
    ):
        labels.require("Platlets")
    with pytest.raises(LabelError, match=r'unknown label "leukocyte"'):
        labels.index("leukocyte")
    assert labels.require("leukocyte") == "WBC"
    assert labels.resolve("") is None
    with pytest.raises(LabelError):
        labels.ancestors("nothing")


@given(label_sets())
def test_leaves_are_the_labels_without_kinds(labels: LabelSet) -> None:
    assert set(labels.leaves) == set(labels.names) - set(labels.parents.values())
    assert [labels.index(leaf) for leaf in labels.leaves] == sorted(labels.index(leaf) for leaf in labels.leaves)
    assert labels.leaf_matrix.shape == (len(labels), len(labels.leaves))
    for name in labels.names:
        covered = [leaf for leaf in labels.leaves if name == leaf or name in labels.ancestors(leaf)]
        assert list(labels.leaves_of(name)) == covered
        assert covered, "every label covers a leaf"


@given(label_sets())
def test_kinds_of_kinds_are_kinds(labels: LabelSet) -> None:
    for name in labels.names:
        assert labels.is_a(name, name)
        for ancestor in labels.ancestors(name):
            assert labels.is_a(name, ancestor)
            assert not labels.is_a(ancestor, name)
            assert set(labels.leaves_of(name)) <= set(labels.leaves_of(ancestor))


def test_a_set_without_labels() -> None:
    labels = LabelSet(())
    assert (len(labels), labels.leaves, labels.leaf_matrix.shape) == (0, (), (0, 0))
    assert labels.mapping_to(BLOOD) == {}
    assert BLOOD.mapping_to(labels) == dict.fromkeys(BLOOD.names)


# -- other label sets -----------------------------------------------------------------------------


@given(published_sets() | label_sets())
def test_a_set_maps_onto_itself_without_change(labels: LabelSet) -> None:
    assert labels.mapping_to(labels) == {name: name for name in labels.names}


@given(label_sets() | published_sets(), label_sets() | published_sets())
def test_a_mapping_names_labels_of_the_other_set(labels: LabelSet, other: LabelSet) -> None:
    mapping = labels.mapping_to(other)
    assert list(mapping) == list(labels.names)
    assert {name for name in mapping.values() if name is not None} <= set(other.names)


@given(published_sets(), published_sets())
def test_a_mapping_widens_and_goes_through_the_taxonomy_alike(labels: LabelSet, other: LabelSet) -> None:
    direct, through = labels.mapping_to(other), labels.mapping_to(BLOOD)
    onwards = BLOOD.mapping_to(other)
    for name, target in direct.items():
        concept = through[name]
        assert concept is not None
        assert target == onwards[concept]
        words = [wider for wider in (concept, *BLOOD.ancestors(concept)) if other.resolve(wider)]
        assert target == (other.resolve(words[0]) if words else None)


def test_finer_labels_roll_up_and_coarser_ones_have_no_word() -> None:
    pbc, txl, cytologia = LabelSet.shipped("pbc"), LabelSet.shipped("txl_pbc"), LabelSet.shipped("cytologia")
    to_txl = pbc.mapping_to(txl)
    assert {name for name, target in to_txl.items() if target == "WBC"} == set(pbc.names) - {"ERB", "PLATELET"}
    assert (to_txl["ERB"], to_txl["PLATELET"]) == (None, "Platelet")
    assert txl.mapping_to(pbc) == {"WBC": None, "RBC": None, "Platelet": "PLATELET"}
    assert pbc.mapping_to(cytologia)["BNE"] == "PNN"
    assert cytologia.mapping_to(pbc)["PNN"] == "NEUTROPHIL"
    assert cytologia.mapping_to(LabelSet.shipped("celluscan"))["Thromb"] == "Platelets"
    assert LabelSet.shipped("bccd").mapping_to(txl) == {"WBC": "WBC", "RBC": "RBC", "Platelets": "Platelet"}


def test_own_parents_are_followed_where_the_taxonomy_knows_nothing() -> None:
    labels = LabelSet(("WBC", "atypical thing"), parents={"atypical thing": "WBC"})
    assert labels.mapping_to(LabelSet.shipped("txl_pbc")) == {"WBC": "WBC", "atypical thing": "WBC"}


def test_own_aliases_are_followed() -> None:
    labels = LabelSet(("seg3", "unknown"), aliases={"SNE": "seg3", "mystery": "unknown"})
    other = LabelSet(("WBC", "Mystery"))
    assert labels.mapping_to(LabelSet.shipped("pbc")) == {"seg3": "SNE", "unknown": None}
    assert labels.mapping_to(other) == {"seg3": "WBC", "unknown": "Mystery"}
    assert BLOOD.mapping_to(labels)["band neutrophil"] is None
    assert BLOOD.mapping_to(labels)["segmented neutrophil"] == "seg3"


# -- attributes -----------------------------------------------------------------------------------


def test_the_wbcatt_schema_is_the_published_one() -> None:
    schema = attribute_schema("wbcatt")
    assert {attribute.name: list(attribute.values) for attribute in schema} == WBCATT
    assert [attribute.column for attribute in schema] == [f"wbcatt.{name}" for name in WBCATT]
    assert not any(attribute.ordered for attribute in schema)


def test_the_leukemia_attri_schema_is_in_the_order_of_its_codes() -> None:
    schema = attribute_schema("leukemia_attri")
    assert {attribute.name: attribute.values for attribute in schema} == {
        "cell_size": ("small", "medium", "large"),
        "nuclear_chromatin": ("open", "coarse"),
        "nuclear_shape": ("regular", "irregular"),
        "nucleolus": ("inconspicuous", "prominent"),
        "cytoplasm": ("scanty", "abundant"),
        "cytoplasmic_basophilia": ("slight", "moderate"),
        "cytoplasmic_vacuoles": ("absent", "prominent"),
    }
    assert [attribute.name for attribute in schema if attribute.ordered] == ["cell_size"]


def test_an_unknown_schema_is_an_error() -> None:
    with pytest.raises(LabelError, match=r'no attribute schema "wbc"; there are: wbcatt'):
        attribute_schema("wbc")


@pytest.mark.data
def test_the_wbcatt_schema_has_exactly_the_values_of_the_real_tables(data_root: Path) -> None:
    seen: dict[str, set[str]] = {name: set() for name in WBCATT}
    for path in sorted((data_root / "wbcatt").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                for name in WBCATT:
                    seen[name].add(row[name])
    assert seen == {name: set(values) for name, values in WBCATT.items()}


def test_leaf_matrix_of_the_taxonomy_counts_each_leaf_once_per_ancestor() -> None:
    depth = [len(BLOOD.ancestors(leaf)) + 1 for leaf in BLOOD.leaves]
    np.testing.assert_array_equal(BLOOD.leaf_matrix.sum(axis=0), depth)


# -- data whose labels exclude each other, and label sets put together ------------------------------


def test_flat_cytologia_has_a_leaf_for_every_class() -> None:
    deep, flat = LabelSet.shipped("cytologia"), LabelSet.shipped("cytologia").flat()
    assert "LY" not in deep.leaves
    assert flat.leaves == flat.names == deep.names
    assert deep.is_a("LLC", "LY")
    assert not flat.is_a("LLC", "LY")
    assert flat.role("LLC") == deep.role("LLC") == "leukocyte"
    assert flat.resolve("lymphocyte") == "LY"


@given(label_sets())
def test_flat_keeps_all_but_the_lines(labels: LabelSet) -> None:
    flat = labels.flat()
    assert (flat.names, dict(flat.aliases), flat.attributes) == (labels.names, dict(labels.aliases), labels.attributes)
    assert dict(flat.parents) == {}
    assert flat.leaves == labels.names
    assert [flat.role(name) for name in labels.names] == [labels.role(name) for name in labels.names]
    assert flat.reportable == frozenset(labels.names)
    assert flat.flat() == flat


@given(label_sets(), label_sets())
def test_joined_has_a_word_for_all_of_both(one: LabelSet, other: LabelSet) -> None:
    both = one.joined(other)
    assert both.names[: len(one)] == one.names
    added = both.names[len(one) :]
    assert list(added) == [name for name in other.names if one.resolve(name) is None]
    assert all(both.resolve(name) is not None for name in (*one.names, *other.names))
    for name in one.names:
        assert (both.ancestors(name), both.role(name)) == (one.ancestors(name), one.role(name))
    for name in added:
        assert (both.ancestors(name), both.role(name)) == ((), other.role(name))
    assert both.reportable == one.reportable | set(added)
    assert both.joined(other) == both
    assert one.joined(one) == one


def test_joined_knows_a_label_by_its_alias() -> None:
    both = LabelSet.shipped("cytologia").joined(LabelSet.of(["lymphocyte", "erythrocyte", "Background"]))
    assert both.names == (*LabelSet.shipped("cytologia").names, "erythrocyte", "Background")
    assert both.role("erythrocyte") == "erythrocyte"
