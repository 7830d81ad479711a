"""Attributes through the command line: trained, packed, predicted, in the table and the report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from cytolens.bundle import Bundle
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from tests.apps.speaking import say

pytestmark = [pytest.mark.slow, pytest.mark.torch]

_SETTINGS = {
    "name": "looks", "model": "test_efficientnet", "input.side_px": 32, "tuning_share": 0.3, "optimise.epochs": 1,
    "optimise.batch": 8, "hardware.accelerator": "cpu", "hardware.workers": 0, "hardware.precision": "32-true",
}  # fmt: skip


def test_from_a_dataset_with_attributes_to_a_described_smear(tmp_path: Path) -> None:
    settings = SyntheticSettings(
        width_px=320, height_px=240, white_cells=(2, 3), mix={"segmented neutrophil": 0.5, "lymphocyte": 0.5}
    )
    write_synthetic(tmp_path / "data", 8, 5, settings, fields_per_slide=1)
    sets = [f"--set={name}={value}" for name, value in _SETTINGS.items()]
    run, packed, out = tmp_path / "run", tmp_path / "packed" / "smear", tmp_path / "out"
    words = ["train", "classify", "--data", str(tmp_path / "data"), "--out", str(run), *sets]
    trained = say(*words, '--set=attributes=["wbcatt"]', '--set=labels=["segmented neutrophil","lymphocyte"]')
    assert trained.code == 0, trained.err
    assert Bundle.load(run).info.attribute_output is not None
    answer = say("bundles", "pack", "smear-detector", "wbc-classifier", str(run), "--out", str(packed))
    assert answer.code == 0, answer.err
    assert say("bundles", "verify", str(packed)).code == 0
    picture = next((tmp_path / "data").rglob("*.png"))
    answer = say("predict", str(picture), "--bundle", str(packed), "--out", str(out), "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["blasts"] is None  # the labels have none
    with (out / "cells.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    white = [row for row in rows if row["wbcatt.cell_size"]]
    assert white
    assert all(row["description"].count(" cell, ") == 1 for row in white)
    red = [row for row in rows if row["label"] == "erythrocyte"]
    assert red
    assert {row["description"] for row in red} == {""}
    assert "Attributes, kind by kind" in (out / "report.html").read_text(encoding="utf-8")


def test_mistakes_in_settings_are_one_clear_line(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "data", 2, 5, SyntheticSettings(width_px=160, height_px=160), fields_per_slide=1)
    words = ["train", "classify", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    answer = say(*words, '--set=attributes=["wbcat"]')
    assert answer.code == 2
    assert 'attributes = "wbcat": the data have no such schema or column. Did you mean "wbcatt"?' in answer.complaint
    answer = say("predict", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--blasts", "blastoid")
    assert answer.code == 2
    assert 'blasts.names: "blastoid"' in answer.complaint
    assert not (tmp_path / "out").exists()
