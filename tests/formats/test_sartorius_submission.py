"""The answer to Sartorius: a row per counted cell, read back pixel by pixel; nothing overlaps."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytolens import masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.formats.sartorius_submission import write_submission
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import FormatError
from tests import reference
from tests.apps.speaking import say
from tests.contracts import temporary_folder

EXAMPLE = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
REST = ~EXAMPLE


def cells_of(shapes: dict[str, list[NDArray[np.bool_] | None]], counted: bool = True) -> tuple[Cells, Images]:
    """Images of 5 × 4 px with such cells."""
    images = Images.of({"image_id": name, "width_px": 5, "height_px": 4} for name in shapes)
    each = [(name, shape) for name, own in shapes.items() for shape in own]
    cells = Cells.of(
        LabelSet.of(["astro"]),
        image_id=[name for name, _ in each],
        boxes=np.tile([[0, 0, 5, 4]], (len(each), 1)),
        label=["astro"] * len(each),
        source="bundle:x",
        score=[0.9] * len(each),
        mask=[None if shape is None else masks.encode(shape) for _, shape in each],
        counted=counted,
    )
    return cells, images


def read_back(path: Path, size_wh: tuple[int, int]) -> dict[str, list[list[list[bool]]]]:
    """Image → its masks, by the slow twin."""
    found: dict[str, list[list[list[bool]]]] = {}
    with path.open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["id", "predicted"]
    for name, code in rows[1:]:
        own = found.setdefault(name, [])
        if code:
            own.append(reference.painted([int(word) for word in code.split()], *size_wh, True))
    return found


def test_the_file_line_by_line(tmp_path: Path) -> None:
    cells, images = cells_of({"t/a.png": [EXAMPLE, REST], "t/b.png": [], "t/c.png": [None, EXAMPLE & False]})
    problems = write_submission(cells, images, tmp_path / "submission.csv")
    assert (tmp_path / "submission.csv").read_text().splitlines() == [
        *("id,predicted", "a,7 3 13 1", "a,1 6 10 3 14 7", "b,", "c,")
    ]
    (problem,) = problems
    assert (problem.where, "2 of 2 counted cells have no outline" in problem.what) == ("t/c.png", True)


@given(owners=st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=4, max_size=4))
def test_what_is_written_is_read_back(owners: list[list[int]]) -> None:
    shapes = [np.array(owners) == number for number in (1, 2, 3)]
    cells, images = cells_of({"a.png": [shape for shape in shapes if shape.any()], "b.png": []})
    with temporary_folder() as folder:
        write_submission(cells, images, folder / "s.csv")
        back = read_back(folder / "s.csv", (5, 4))
    assert back == {"a": [shape.tolist() for shape in shapes if shape.any()], "b": []}


def test_what_does_not_count_is_left_out(tmp_path: Path) -> None:
    cells, images = cells_of({"a.png": [EXAMPLE]}, counted=False)
    write_submission(cells, images, tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == "id,predicted\na,\n"


def test_overlaps_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    cells, images = cells_of({"a.png": [REST, EXAMPLE, EXAMPLE]})
    first, second = cells.frame["cell_id"].to_list()[1:]
    with pytest.raises(FormatError, match=rf'cells {first} and {second} of "a\.png" overlap in 4 px'):
        write_submission(cells, images, tmp_path / "s.csv")
    assert not list(tmp_path.iterdir())


def test_unknown_sizes_other_images_and_equal_names_are_refused(tmp_path: Path) -> None:
    cells, images = cells_of({"a.png": [EXAMPLE]})
    with pytest.raises(FormatError, match="its size is not known"):
        write_submission(cells, images.with_columns(width_px=None), tmp_path / "s.csv")
    with pytest.raises(FormatError, match="not among the images"):
        write_submission(cells, Images(images.frame.filter(pl.lit(False))), tmp_path / "s.csv")
    cells, images = cells_of({"p/a.png": [EXAMPLE], "q/a.png": []})
    with pytest.raises(FormatError, match='would both have the id "a"'):
        write_submission(cells, images, tmp_path / "s.csv")


def test_the_command_writes_it(tmp_path: Path) -> None:
    cells, images = cells_of({"a.png": [EXAMPLE], "b.png": []})
    Dataset(images, cells, "found").write(tmp_path / "found")
    out = tmp_path / "submission.csv"
    assert say("export", tmp_path / "found", "--format", "sartorius_submission", "--out", out).code == 0
    assert out.read_text().splitlines() == ["id,predicted", "a,7 3 13 1", "b,"]
    (tmp_path / "found" / "images.parquet").unlink()
    (tmp_path / "found" / "dataset.json").unlink()
    refused = say("export", tmp_path / "found", "--format", "sartorius_submission", "--out", out)
    assert "the images are not known" in refused.complaint
    refused = say("export", tmp_path / "found", "--format", "sartorius_submission", "--out", out, "--copy-images")
    assert "do not go with" in refused.complaint
