"""`cytolens predict --overlay-attributes`: values of attributes beside the cells, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytolens import boxes as box
from cytolens.cells import Cells
from cytolens.prepare.synthetic import SyntheticSettings, render_field
from tests.apps.speaking import say

SMALL = SyntheticSettings(
    width_px=360,
    height_px=300,
    white_cells=(1, 1),
    red_cells=(4, 6),
    platelets=(0, 0),
    mix={"segmented neutrophil": 1.0},
)


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rendered field."""
    file = tmp_path_factory.mktemp("smear") / "smear.png"
    Image.fromarray(render_field(4, SMALL).pixels).save(file)
    return file


def drawn(smear: Path, out: Path, *words: str) -> np.ndarray:
    answer = say("predict", smear, "--bundle", "smear-attributes", "--out", out, "--format", "overlay", *words)
    assert answer.code == 0, answer.err
    return np.asarray(Image.open(out / "overlays" / "smear.png.png")).astype(int)


def test_values_stand_beside_the_cells_that_have_any(smear: Path, tmp_path: Path) -> None:
    plain = drawn(smear, tmp_path / "plain")
    noted = drawn(smear, tmp_path / "noted", "--overlay-attributes", "cell_size,wbcatt.granularity")
    rows, columns = np.nonzero((plain != noted).any(axis=2))
    assert len(rows) > 500
    cells = Cells.read_parquet(tmp_path / "noted" / "cells.parquet")
    described = cells.filter(
        cells.frame["counted"].to_numpy() & cells.frame["wbcatt.cell_size"].is_not_null().to_numpy()
    )
    assert len(described) > 0
    changed = np.stack([columns, rows, columns + 1, rows + 1], axis=1)
    near = box.grow(described.boxes(), 130)
    assert (box.intersections(changed, near).max(axis=1) > 0).all()
    inside = box.grow(described.boxes(), -3)
    assert (box.intersections(changed, inside).max(axis=1) == 0).all()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ("--overlay-attributes", "cellsize"),
            'no attribute "cellsize" to write beside cells. Did you mean "cell_size"?',
        ),
        (("--overlay-attributes", "cell_size", "--bundle", "smear"), "nothing here describes cells"),
        (("--overlay-attributes", "cell_size", "--format", "csv"), "it goes with the format overlay"),
    ],
)
def test_what_cannot_be_written_is_said(words: tuple[str, ...], complaint: str, smear: Path, tmp_path: Path) -> None:
    answer = say("predict", smear, "--bundle", "smear-attributes", "--out", tmp_path / "out", *words)
    assert complaint in answer.complaint
    assert not (tmp_path / "out").exists()
