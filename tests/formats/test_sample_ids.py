"""Sample ids of Sartorius: taken apart, as groups of a split, and what folds share of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens import formats
from cytolens.formats import ReadOptions
from cytolens.formats.sample_ids import SampleId, parsed
from cytolens.problems import FormatError
from tests.contracts import save_picture

SPEC = "shsy5y[diff]_E10-4_Vessel-714_Ph_3"


def test_the_specs_example() -> None:
    sample = parsed(SPEC)
    assert sample == SampleId("shsy5y", "diff", 714, "E10", 4, 3)
    assert (sample.group(), sample.group("vessel"), sample.condition) == (
        *("vessel 714 well E10", "vessel 714", "shsy5y[diff]"),
    )


@given(
    kind=st.sampled_from(["shsy5y", "astro", "astros", "cort"]),
    state=st.sampled_from(["", "diff", "pre-treat", "6-OHDA", "oka_low"]),
    numbers=st.tuples(*[st.integers(0, 9999)] * 4),
    row=st.sampled_from("ABH"),
    between=st.sampled_from(["", "_x", "_2019-06-16", "_a_b"]),
)
def test_every_part_comes_back(
    kind: str, state: str, numbers: tuple[int, int, int, int], row: str, between: str
) -> None:
    column, site, vessel, position = numbers
    sample = parsed(f"{kind}[{state}]_{row}{column}-{site}_Vessel-{vessel}{between}_Ph_{position}")
    wanted = "astro" if kind == "astros" else kind
    assert sample == SampleId(wanted, state, vessel, f"{row}{column}", site, position)


@pytest.mark.parametrize(
    "text",
    [
        "", "odd", SPEC.replace("[diff]", ""), SPEC.replace("-4", ""), SPEC.replace("Vessel-714", "Vessel-"),
        SPEC.removesuffix("_Ph_3"), SPEC + "x", SPEC.replace("E10", "10"), SPEC.replace("714", "७१४"),
    ],
)  # fmt: skip
def test_other_forms_are_refused_with_the_form_that_is_wanted(text: str) -> None:
    with pytest.raises(FormatError, match=r"is no sample id\. Wanted: <type>\[<state>\]_<well>"):
        parsed(text)


def table(folder: Path, *rows: tuple[str, str]) -> Path:
    lines = [f"{image},1 2,20,10,astro,{sample}\n" for image, sample in rows]
    for number, image in enumerate(dict.fromkeys(image for image, _ in rows)):
        save_picture(folder / f"{image}.png", (20, 10), number)
    (folder / "train.csv").write_text("id,annotation,width,height,cell_type,sample_id\n" + "".join(lines))
    return folder / "train.csv"


def test_an_import_groups_by_well_or_by_vessel(tmp_path: Path) -> None:
    other = SPEC.replace("E10-4", "E11-1")
    path = table(tmp_path, ("a", SPEC), ("b", SPEC.replace("E10-4", "E10-2")), ("c", other))
    data = formats.read(path, "rle_csv").dataset
    assert data.images.frame["group"].to_list() == ["vessel 714 well E10"] * 2 + ["vessel 714 well E11"]
    assert data.provenance[0]["sample_ids"]["c.png"] == other
    whole = formats.read(path, "rle_csv", ReadOptions(sample_group="vessel")).dataset
    assert whole.images.frame["group"].to_list() == ["vessel 714"] * 3


def test_wrong_sample_ids_are_errors_with_their_line(tmp_path: Path) -> None:
    path = table(tmp_path, ("a", SPEC), ("b", "odd name"), ("a", SPEC.replace("Ph_3", "Ph_4")))
    back = formats.read(path, "rle_csv")
    assert back.problems.worst == "error"
    told = {problem.where: problem.what for problem in back.problems.of("sample-id-wrong")}
    assert set(told) == {"train.csv:3", "train.csv:4"}
    assert '"odd name" is no sample id' in told["train.csv:3"]
    assert "in another row" in told["train.csv:4"]
    assert back.dataset.images.frame["group"].to_list() == ["vessel 714 well E10", None]
