from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens import formats
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats import Imported, ReadOptions, WriteOptions
from cytolens.formats.intake import Intake
from cytolens.formats.leukemia_attri import PROFILES
from cytolens.formats.leukemia_codes import Coded, codes_of, decoded
from cytolens.formats.leukemia_names import PATIENTS, parsed, published_part, subset_of
from cytolens.images import Images
from cytolens.labels import LabelSet, attribute_schema
from cytolens.problems import FormatError
from tests.contracts import FormatContract, save_picture

SCHEMA = attribute_schema("leukemia_attri")
USUAL = frozenset({"name-unreadable", "attributes-not-visible", "attribute-ambiguous"})
# The published example: a lymphoblast, a lymphocyte, and an artefact that carries no attributes.
LINES = """2 0.412500 0.388281 0.082813 0.128906 1 0 1 0 0 1 0
7 0.701563 0.195313 0.056250 0.093750 0 1 0 0 0 0 0
0 0.150000 0.860156 0.040625 0.060938 2 2 2 2 2 2 2
"""
NAME = "7_31_1000_ALL"


class TestLabelFiles(FormatContract):
    """The other two profiles are the same code with other columns; they are tested by example below."""

    format = "leukemia_attri"
    annotation_suffixes = (".txt", ".yaml")
    box_error = 1e-6
    usual = USUAL

    def test_the_format_is_recognised(self, tmp_path: Path) -> None:
        """A profile is named, never guessed."""
        self.export(self.sample(tmp_path / "images"), tmp_path / "out")
        with pytest.raises(FormatError, match=f"What they mean is not guessed: .*--format {self.format}"):
            formats.read(tmp_path / "out")


class TestJson(FormatContract):
    format = "leukemia_attri_coco"
    annotation_suffixes = (".json",)
    usual = USUAL


def source(folder: Path, lines: str = LINES, name: str = NAME, below: str = "") -> Path:
    save_picture(folder / "images" / below / f"{name}.png", (640, 640))
    file = folder / "labels" / below / f"{name}.txt"
    file.parent.mkdir(parents=True)
    file.write_text(lines)
    return folder


def read(folder: Path, format: str = "leukemia_attri", **options: Any) -> Imported:
    return formats.read(folder, format, ReadOptions(**options))


def values(data: Dataset, row: int) -> list[str | None]:
    return [data.cells.attribute_values(attribute.column)[row] for attribute in SCHEMA]


def test_the_published_example(tmp_path: Path) -> None:
    back = read(source(tmp_path, below="H_100x_C1"))
    data = back.dataset
    assert data.cells.label_names() == ["Lymphoblast", "Lymphocyte", "None"]  # the classes of the data set
    assert values(data, 0) == ["medium", "open", "irregular", "inconspicuous", "scanty", "moderate", "absent"]
    assert values(data, 1) == ["small", "coarse", "regular", "inconspicuous", "scanty", "slight", "absent"]
    assert values(data, 2) == [None] * 7
    assert data.cells.boxes()[0].tolist() == pytest.approx([237.5, 207.25, 290.5, 289.75], abs=1e-3)
    (row,) = data.images.rows()
    assert (row["group"], row["magnification"], row["scanner"]) == ("patient 7", "100x", "H C1")
    (note,) = back.problems
    assert (note.kind, note.severity) == ("attributes-not-applicable", "note")
    assert note.what.startswith("1 cells of type None")


def test_two_is_large_unless_the_import_says_otherwise(tmp_path: Path) -> None:
    lines = "2 0.5 0.5 0.1 0.1 2 0 2 0 0 1 0\n2 0.5 0.5 0.2 0.2 2 2 2 2 2 2 2\n"
    back = read(source(tmp_path, lines))
    assert values(back.dataset, 0)[:3] == ["large", "open", None]
    assert values(back.dataset, 1) == ["large", *[None] * 6]
    assert back.problems.of("attributes-not-visible")[0].what.startswith("7 values")
    (odd,) = back.problems.of("attribute-ambiguous")
    assert odd.where == f"labels/{NAME}.txt:2"
    told = read(tmp_path, size_two="ignore")
    assert values(told.dataset, 1) == [None] * 7
    assert not told.problems.of("attribute-ambiguous")


@pytest.mark.parametrize(
    ("codes", "column", "value", "allowed"),
    [
        ("3 0 0 0 0 0 0", "6 (cell_size)", "3", "0 small, 1 medium, 2 large"),
        ("0 4 0 0 0 0 0", "7 (nuclear_chromatin)", "4", "0 open, 1 coarse, 2 not there"),
        ("0 0 0 0 0 0 -1", "12 (cytoplasmic_vacuoles)", "-1", "0 absent, 1 prominent, 2 not there"),
        ("0 0 0 0.5 0 0 0", "9 (nucleolus)", "0.5", "0 inconspicuous, 1 prominent, 2 not there"),
    ],
)
def test_an_unknown_code_says_where_it_is(tmp_path: Path, codes: str, column: str, value: str, allowed: str) -> None:
    back = read(source(tmp_path, f"{LINES}2 0.5 0.5 0.1 0.1 {codes}\n"))
    (problem,) = back.problems.of("attribute-unknown")
    assert (problem.where, problem.severity) == (f"labels/{NAME}.txt:4", "error")
    assert problem.what == f'column "{column}": unknown value "{value}"; allowed: {allowed}. It is left empty.'


def test_an_artefact_with_attributes_is_told(tmp_path: Path) -> None:
    back = read(source(tmp_path, LINES + "0 0.5 0.5 0.1 0.1 2 1 0 0 0 0 0\n"))
    assert values(back.dataset, 3) == [None] * 7
    (problem,) = back.problems.of("attribute-contradiction")
    assert problem.where == f"labels/{NAME}.txt:4"


def test_the_profile_is_checked_line_by_line(tmp_path: Path) -> None:
    folder = source(tmp_path)
    wanted = r"labels/7_31_1000_ALL\.txt:1: 12 columns, but the profile lld has 16 \(class, box, 4 of a region, "
    with pytest.raises(
        FormatError, match=wanted + r"7 attributes\)\. These are the columns of leukemia_attri: name that format"
    ):
        read(folder, "lld")
    with pytest.raises(FormatError, match="12 columns, but the profile leukemia_attri_11 has 11"):
        read(folder, "leukemia_attri_11")
    (folder / "labels" / f"{NAME}.txt").write_text(LINES + "1 0.5 0.5 0.1 0.1 0 0 0 0 0 0\n")
    with pytest.raises(FormatError, match=r"txt:4: 11 columns.*columns of leukemia_attri_11"):
        read(folder)
    plain = formats.read(folder, "yolo", ReadOptions(labels=LabelSet.shipped("leukemia_attri")))
    assert "profile: leukemia_attri, leukemia_attri_11 or lld" in plain.problems.of("annotation-unreadable")[0].what


def test_regions_are_passed_over(tmp_path: Path) -> None:
    line = "2 0.5 0.5 0.1 0.1 10 20 30 40 1 0 1 0 0 1 0\n"
    assert values(read(source(tmp_path, line), "lld").dataset, 0)[0] == "medium"
    (tmp_path / "labels" / f"{NAME}.txt").write_text(line.replace("30", "x"))
    assert "region are no numbers" in read(tmp_path, "lld").problems.of("annotation-unreadable")[0].what


def labelled(**changes: Any) -> Dataset:
    """An artefact and a myeloblast of which all but one attribute is known."""
    told = {attribute.column: [None, attribute.values[-1]] for attribute in SCHEMA} | changes
    cells = Cells.of(
        LabelSet.of(["None", "Myeloblast"], SCHEMA),
        image_id=[f"{NAME}.png"] * 2,
        boxes=[[0, 0, 32, 32], [64, 64, 128, 96]],
        label=["None", "Myeloblast"],
        source="human:ab",
        attributes=told,
    )
    return Dataset(Images.of([{"image_id": f"{NAME}.png", "width_px": 640, "height_px": 640}]), cells, "made")


@pytest.mark.parametrize("format", [*PROFILES, "leukemia_attri_coco"])
def test_attributes_come_back(format: str, tmp_path: Path) -> None:
    data = labelled(**{"leukemia_attri.cytoplasm": [None, None]})
    save_picture(tmp_path / "pictures" / f"{NAME}.png", (640, 640))
    lost = {problem.where for problem in formats.write(data, tmp_path / "out", format)}
    assert ("cell sizes of LeukemiaAttri" in lost) == (format == "leukemia_attri_11")
    back = read(tmp_path / "out", format, images=tmp_path / "pictures").dataset
    for attribute in SCHEMA:
        if attribute.name != "cell_size" or format != "leukemia_attri_11":
            wanted = data.cells.attribute_values(attribute.column)
            assert back.cells.attribute_values(attribute.column) == wanted, attribute


def test_what_is_written(tmp_path: Path) -> None:
    formats.write(labelled(), tmp_path / "out", "leukemia_attri")
    lines = (tmp_path / "out" / "labels" / f"{NAME}.txt").read_text().splitlines()
    assert lines == [
        "0 0.025000 0.025000 0.050000 0.050000 2 2 2 2 2 2 2",
        "1 0.150000 0.125000 0.100000 0.050000 2 1 1 1 1 1 1",
    ]
    formats.write(labelled(), tmp_path / "lld", "lld")
    lines = (tmp_path / "lld" / "labels" / f"{NAME}.txt").read_text().splitlines()
    assert lines[1].split()[5:9] == ["64", "128", "64", "96"]
    formats.write(labelled(), tmp_path / "out.json", "leukemia_attri_coco")
    artefact, blast = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert [artefact[key] for key in ("cell_size", "nuclear_chromatio")] == [4, 4]
    assert [blast[key] for key in ("cell_size", "nuclear_chromatio")] == [2, 1]


def test_a_size_without_a_code_is_told(tmp_path: Path) -> None:
    problems = formats.write(labelled(**{"leukemia_attri.cell_size": [None, None]}), tmp_path / "out", "leukemia_attri")
    (told,) = problems.of("attribute-no-code")
    assert told.what.startswith("1 cells have no cell size")
    assert "--size-two ignore" in told.fix


@given(st.lists(st.tuples(*(st.sampled_from(attribute.values) for attribute in SCHEMA)), max_size=4), st.booleans())
def test_codes_and_values_are_the_same_thing(rows: list[tuple[str, ...]], with_size: bool) -> None:
    legend = PROFILES["leukemia_attri" if with_size else "leukemia_attri_11"].legend()
    told = {attribute.column: [row[at] for row in rows] for at, attribute in enumerate(SCHEMA)}
    count = len(rows)
    cells = Cells.of(
        LabelSet.of(["Monocyte"], SCHEMA),
        image_id=["a"] * count,
        boxes=np.ones((count, 4)),
        label=["Monocyte"] * count,
        source="human:ab",
        attributes=told,
    )
    coded = [Coded(f"a:{at}", "Monocyte", codes) for at, codes in enumerate(codes_of(cells, legend).tolist())]
    back = decoded(Intake("lld", Path(), ReadOptions()), coded, legend)
    assert back == {attribute.column: told[attribute.column] for attribute in legend.schema}


# -- JSON -------------------------------------------------------------------------------------------


def instances(folder: Path, **fields: Any) -> Path:
    """One annotation with these fields, a lymphocyte."""
    save_picture(folder / f"{NAME}.png", (640, 640))
    image = {"id": 1, "file_name": f"{NAME}.png", "width": 640, "height": 640}
    cell = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], **fields}
    data = {"images": [image], "categories": [{"id": 1, "name": "Lymphocyte"}], "annotations": [cell]}
    (folder / "a.json").write_text(json.dumps(data))
    return folder


FIELDS = ("cell_size", "nuclear_chromatio", *(attribute.name for attribute in SCHEMA[2:]))


def test_the_fields_of_an_annotation(tmp_path: Path) -> None:
    back = formats.read(instances(tmp_path, **dict(zip(FIELDS, (2, 1, 4, 0, 1, 1, 5), strict=True))))
    assert back.dataset.provenance[0]["format"] == "leukemia_attri_coco"
    assert values(back.dataset, 0) == ["large", "coarse", None, "inconspicuous", "abundant", "moderate", None]
    (problem,) = back.problems.of("attribute-unknown")
    assert problem.where == "a.json: annotation 1"
    assert '"cytoplasmic_vacuoles": unknown value "5"; allowed: 0 absent, 1 prominent, 4 not there' in problem.what
    assert back.dataset.images.frame["group"].to_list() == ["patient 7"]


def test_missing_fields_are_told(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no annotation has any of the fields cell_size, nuclear_chromatio"):
        read(instances(tmp_path), "leukemia_attri_coco")
    back = read(instances(tmp_path, cell_size=1, nuclear_chromatin=0), "leukemia_attri_coco")
    assert "no annotation has the fields nuclear_chromatio," in back.problems.of("attribute-missing")[0].what


# -- names ------------------------------------------------------------------------------------------


def test_names() -> None:
    name = parsed("H_40x_C2/images/12_3_400_aml.png")
    assert name is not None
    assert (name.patient, name.field, name.magnification, name.diagnosis) == (12, 3, "40x", "AML")
    assert parsed("12_3_400.png") is None
    assert subset_of("data/L_40x_C2/images/a.png") == ("L C2", "40x")
    assert subset_of("data/L_40x_C22/a.png") is subset_of("L_40x_C2.png") is None


@given(st.text(max_size=20))
def test_any_name_is_parsed_or_not(text: str) -> None:
    assert parsed(text) is None or "_" in text


def test_every_patient_has_one_part_and_diagnosis() -> None:
    parts = [sorted(patient for both in PATIENTS.values() for patient in both[at]) for at in (0, 1)]
    assert [len(part) for part in parts] == [30, 18]
    assert sorted(parts[0] + parts[1]) == list(range(1, 49))
    assert {name: sum(map(len, both)) for name, both in PATIENTS.items()} == {
        "ALL": 18, "AML": 22, "CML": 4, "CLL": 2, "APML": 2,
    }  # fmt: skip
    assert published_part("4_10_1000_ALL.png", None) == "test"
    assert published_part("x.png", "patient 27") == published_part("x.png", "27") == "train"
    assert published_part("x.png", "plate 27") is published_part("x.png", None) is published_part("49_1_400_A", None)


@pytest.mark.parametrize(
    ("name", "below", "said"),
    [
        ("7_31_1000_AML", "", 'it says "AML", but patient 7 has ALL'),
        ("63_1_400_ALL", "", "patient 63 is not among the 48"),
        ("7_31_200_ALL", "", 'the magnification "200" is none of 1000, 400, 100'),
        ("7_31_1000_ALL", "H_40x_C1", "it says 100x, but its folder 40x"),
    ],
)
def test_names_that_contradict(tmp_path: Path, name: str, below: str, said: str) -> None:
    (problem,) = read(source(tmp_path, name=name, below=below)).problems.of("name-contradiction")
    assert said in problem.what


def test_names_that_say_nothing(tmp_path: Path) -> None:
    back = read(source(tmp_path, name="field"), group_pattern="(fi)")
    assert '1 of 1 image names are not "<patient>_<field>' in back.problems.of("name-unreadable")[0].what
    assert back.dataset.images.frame["group"].to_list() == ["fi"]


def test_copied_images_and_splits_come_back(tmp_path: Path) -> None:
    data = read(source(tmp_path / "a"), split="train").dataset
    formats.write(data, tmp_path / "out", "leukemia_attri", WriteOptions(copy_images=True))
    back = read(tmp_path / "out").dataset
    assert back.images.frame["split"].to_list() == ["train"]
    assert back.cells.frame.select("label", "leukemia_attri.cell_size").equals(
        data.cells.frame.select("label", "leukemia_attri.cell_size")
    )
