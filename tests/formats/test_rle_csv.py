from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytolens import formats, masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats import Imported, ReadOptions, WriteOptions
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import FormatError, SettingError
from tests import reference
from tests.contracts import FormatContract, save_picture

SARTORIUS = "id,annotation,width,height,cell_type"
# The competition's worked example: 4 × 5 px, row 2 columns 2 … 4 and row 3 column 3.
EXAMPLE = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)


class TestRleCsv(FormatContract):
    format = "rle_csv"
    annotation_suffixes = (".csv",)


def read(source: Path, **options: object) -> Imported:
    return formats.read(source, "rle_csv", ReadOptions.model_validate(options))


def table(folder: Path, text: str, size_wh: tuple[int, int] = (5, 4), images: tuple[str, ...] = ("a.png",)) -> Path:
    for number, image in enumerate(images):
        save_picture(folder / image, size_wh, number)
    (folder / "t.csv").write_text(text)
    return folder / "t.csv"


def shapes(imported: Imported) -> list[list[list[bool]]]:
    size_hw = {row["image_id"]: (row["height_px"], row["width_px"]) for row in imported.dataset.images.rows()}
    columns = imported.dataset.cells.frame.select("image_id", "mask").iter_rows()
    return [masks.decode(code, size_hw[image_id]).tolist() for image_id, code in columns]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (f"{SARTORIUS}\na,7 3 13 1,5,4,astro\n", {}),
        ("id,predicted\na,7 3 13 1\n", {}),
        ("ImageId,EncodedPixels\na,6 1 10 2 14 1\n", {}),
        (f"{SARTORIUS}\na,6 1 10 2 14 1,5,4,astro\n", {"order": "column"}),
        ("ImageId,EncodedPixels\na,7 3 13 1\n", {"order": "row"}),
        ("img,rle\na.png,7 3 13 1\n", {"order": "row"}),
        ("img,code\na.png,7 3 13 1\n", {"order": "row", "columns": {"runs": "code"}}),
    ],
)
def test_the_worked_example_in_every_form(tmp_path: Path, text: str, options: dict[str, Any]) -> None:
    back = read(table(tmp_path, text), **options)
    assert shapes(back) == [EXAMPLE.tolist()]
    assert back.dataset.cells.boxes().tolist() == [[1, 1, 4, 3]]
    assert back.problems.worst in (None, "note")


def test_a_column_that_does_not_say_its_order_needs_one(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r'in the column "rle".*Give the order: row .*or column'):
        read(table(tmp_path, "img,rle\na.png,7 3 13 1\n"))


def test_what_sartorius_tells_besides(tmp_path: Path) -> None:
    sample = "shsy5y[diff]_E10-4_Vessel-714_Ph_3"
    text = f"{SARTORIUS},plate_time,sample_id\na,7 3,5,4,shsy5y,11h30m00s,{sample}\nb,1 1,5,4,astro,,odd name\n"
    data = read(table(tmp_path, text, images=("a.png", "b.png"))).dataset
    assert data.cells.label_names() == ["shsy5y", "astro"]
    assert data.images.frame["group"].to_list() == ["vessel 714 well E10", None]


def test_an_image_with_an_empty_code_has_no_cell(tmp_path: Path) -> None:
    back = read(table(tmp_path, "id,predicted\na,7 3\nb,\n", images=("a.png", "b.png", "c.png")))
    assert back.dataset.images.ids == ["a.png", "b.png"]  # c.png is not spoken of
    assert back.dataset.cells.frame["image_id"].to_list() == ["a.png"]


def test_what_is_wrong_with_a_row_is_collected_with_its_line(tmp_path: Path) -> None:
    rows = ["7 3 13 1", "7 3 13", "7 three", "19 3", "7 3 9 1", "", "1 1"]
    text = f"{SARTORIUS}\n" + "".join(f"a,{row},5,4,astro\n" for row in rows) + "a,1 1,4,5,astro\n"
    back = read(table(tmp_path, text))
    assert [(p.kind, p.where) for p in back.problems.of("mask-unreadable")] == [
        ("mask-unreadable", f"t.csv:{line}") for line in (3, 4, 5, 6, 9)
    ]
    said = " ".join(problem.what for problem in back.problems)
    for words in ("come in pairs", '"three" is not', "leaves the image", "overlaps", "(4, 5), but the image is (5, 4)"):
        assert words in said
    assert len(back.dataset.cells) == 2
    assert back.problems.worst == "error"


def test_overlapping_cells_are_kept_and_noticed(tmp_path: Path) -> None:
    back = read(table(tmp_path, f"{SARTORIUS}\na,7 3,5,4,astro\na,8 3,5,4,astro\na,20 1,5,4,astro\n"))
    (problem,) = back.problems.of("masks-overlap")
    assert (problem.where, problem.severity) == ("t.csv:2", "warning")
    assert '"a" overlap in 2 px' in problem.what
    assert len(back.dataset.cells) == 3


@pytest.mark.parametrize(("written", "read_as"), [("row", "column"), ("column", "row"), ("row", "row")])
def test_the_wrong_order_is_noticed_where_an_image_is_not_square(tmp_path: Path, written: str, read_as: str) -> None:
    y, x = np.mgrid[:40, :70]
    disc = (x - 30) ** 2 + (y - 20) ** 2 < 15**2
    text = " ".join(map(str, reference.start_lengths(disc.tolist(), written == "row")))
    back = read(table(tmp_path, f"id,annotation\na,{text}\n", (70, 40)), order=read_as)
    doubts = back.problems.of("order-doubtful")
    assert len(doubts) == (written != read_as)
    assert all(f"give the order {written}" in doubt.fix for doubt in doubts)


def test_without_a_size_there_is_no_mask(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ImageId,EncodedPixels\na,7 3\n")
    back = read(tmp_path / "t.csv", allow_missing_images=True)
    assert back.problems.counts()["image-size-unknown"] == 1
    (tmp_path / "t.csv").write_text(f"{SARTORIUS}\na,7 3,5,4,astro\n")
    back = read(tmp_path / "t.csv", allow_missing_images=True)
    assert shapes(back) == [[[False] * 5, [False, True, True, True, False], [False] * 5, [False] * 5]]
    assert back.dataset.images.row("a")["width_px"] == 5


# -- writing ----------------------------------------------------------------------------------------


def dataset(codes: list[bytes | None], size_wh: tuple[int | None, int | None] = (5, 4)) -> Dataset:
    images = Images.of(
        {"image_id": f"p/{name}.png", "width_px": size_wh[0], "height_px": size_wh[1]} for name in ("a", "b")
    )
    cells = Cells.of(
        LabelSet.of(["astro"]),
        image_id=["p/a.png"] * len(codes),
        boxes=[[0, 0, 1, 1]] * len(codes),
        label=["astro"] * len(codes),
        source="human:ab",
        mask=codes,
    )
    return Dataset(images, cells)


@pytest.mark.parametrize(
    ("order", "lines"),
    [
        (None, [SARTORIUS, "a,7 3 13 1,5,4,astro", "b,,5,4,"]),
        ("row", [SARTORIUS, "a,7 3 13 1,5,4,astro", "b,,5,4,"]),
        ("column", ["ImageId,EncodedPixels,Width,Height,cell_type", "a,6 1 10 2 14 1,5,4,astro", "b,,5,4,"]),
    ],
)
def test_the_table_that_is_written(tmp_path: Path, order: Any, lines: list[str]) -> None:
    data = dataset([masks.encode(EXAMPLE), None, masks.encode(np.zeros((4, 5), bool))])
    problems = formats.write(data, tmp_path / "out.csv", "rle_csv", WriteOptions(order=order))
    assert (tmp_path / "out.csv").read_text().splitlines() == lines
    (lost,) = (problem for problem in problems if problem.where == "cells without a mask")
    assert "(2 cells)" in lost.what


def test_masks_of_an_image_of_unknown_or_other_size_are_refused(tmp_path: Path) -> None:
    for size_wh in ((None, None), (4, 4)):
        with pytest.raises(FormatError, match=r'a mask of "p/a\.png" cannot be written'):
            formats.write(dataset([masks.encode(EXAMPLE)], size_wh), tmp_path / "out.csv", "rle_csv")


# -- published data ---------------------------------------------------------------------------------


@pytest.mark.data
def test_dsb_2018(data_root: Path) -> None:
    """Counts and the two images with overlaps are from the description of the data."""
    back = formats.read(data_root / "dsb2018")
    data = back.dataset
    assert back.dataset.provenance[0]["format"] == "rle_csv"
    assert len(data.images) == 293
    assert Counter(data.cells.label_names()) == {"fluorescence": 5606, "histology": 4550, "brightfield": 1340}
    overlaps = [problem.what.split('"')[1] for problem in back.problems.of("masks-overlap")]
    assert [name[:8] for name in overlaps] == ["1609b1b8", "f26f4c2c"]
    assert set(back.problems.counts()) == {"masks-overlap", "label-unfamiliar"}
    # Every 200th row against the slow twin.
    lines = (data_root / "dsb2018" / "train.csv").read_text().splitlines()[1:]
    by_row = {}
    for image_id, code, *box in data.cells.frame.select("image_id", "mask", "x_min", "y_min", "x_max", "y_max").rows():
        by_row.setdefault(image_id.rsplit("/", 1)[-1].removesuffix(".png"), []).append((code, box))
    for line in lines[::200]:
        name, text, width, height, _ = line.split(",")
        wanted = np.array(reference.painted([int(n) for n in text.split()], int(width), int(height), True))
        code = masks.encode(wanted)
        assert code in [one for one, _ in by_row[name]]
        y, x = np.nonzero(wanted)
        assert (code, [x.min(), y.min(), x.max() + 1, y.max() + 1]) in by_row[name]


@pytest.mark.data
def test_dsb_2018_writes_back_its_own_rows(data_root: Path, tmp_path: Path) -> None:
    path = data_root / "dsb2018" / "train.csv"
    data = formats.read(path, "rle_csv", ReadOptions(allow_missing_images=True, images=tmp_path)).dataset
    formats.write(data, tmp_path / "out.csv", "rle_csv")
    assert sorted((tmp_path / "out.csv").read_text().splitlines()) == sorted(path.read_text().splitlines())
    formats.write(data, tmp_path / "columns.csv", "rle_csv", WriteOptions(order="column"))
    options = ReadOptions(allow_missing_images=True, images=tmp_path)
    other = formats.read(tmp_path / "columns.csv", "rle_csv", options)
    assert sorted(other.dataset.cells.frame["mask"].to_list()) == sorted(data.cells.frame["mask"].to_list())
