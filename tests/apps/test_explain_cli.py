"""`cytolens explain`, with a shipped bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from cytolens.prepare.synthetic import render_cell
from tests.apps.speaking import say


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rendered lymphocyte."""
    path = tmp_path_factory.mktemp("cell") / "cell.png"
    Image.fromarray(render_cell(3, "lymphocyte", 96).pixels).save(path)
    return path


def test_a_cell_is_explained(picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "why"
    words = [
        "explain",
        str(picture),
        "--bundle",
        "wbc-attributes",
        "--out",
        str(out),
        "--square",
        "0.5",
        "--step",
        "0.5",
    ]
    answer = say(*words, "--json")
    assert answer.code == 0, answer.err
    (cell,) = answer.json["cells"]
    assert len(cell["top"]) == 3
    assert sum(one["probability"] for one in cell["top"]) <= 1.001
    assert cell["top"][0]["probability"] >= cell["top"][1]["probability"] >= cell["top"][2]["probability"]
    assert cell["speaks"] == []  # this one reads names from the picture
    assert cell["map_before"] == pytest.approx(cell["top"][0]["probability"], abs=2e-3)
    assert json.loads((out / "explained.json").read_text(encoding="utf-8"))["cells"] == [cell]
    assert (out / cell["map"]).is_file()
    assert "what mattered" in (out / "explained.html").read_text(encoding="utf-8")
    plain = say(*words)
    assert plain.code == 0
    assert "1 of 1 named cells explained" in plain.out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--square", "0"], "square"),
        (["--most", "0"], "most"),
        (["--bundle", "smear-detector"], "has no classifier"),
        (["--bundle", "smaer"], "smear"),
    ],
)
def test_mistakes_are_one_clear_line(words: list[str], complaint: str, picture: Path, tmp_path: Path) -> None:
    answer = say("explain", str(picture), "--out", str(tmp_path / "out"), *words)
    assert answer.code == 2
    assert complaint in answer.complaint
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    answer = say("explain", str(tmp_path / "none.png"), "--out", str(tmp_path / "out"))
    assert answer.code == 2
    assert "none.png" in answer.complaint
