"""Training of map networks through the command line: interrupted and resumed, and what its bundle then says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cytolens.bundle import Bundle
from cytolens.labels import LabelSet
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from tests.apps.speaking import Answer, say
from tests.apps.test_train_cli import interrupted_by_ctrl_c, rows

pytestmark = [pytest.mark.slow, pytest.mark.torch]

_SMALL = SyntheticSettings(
    width_px=96,
    height_px=80,
    red_cells=(2, 4),
    white_cells=(1, 1),
    platelets=(0, 1),
    red_cell_diameter_px=(20, 26),
    debris=(0, 1),
)
_SETTINGS = {
    "model": "test_efficientnet",
    "width": 0.25,
    "crop_px": 64,
    "tuning_share": 0.25,
    "optimise.epochs": 2,
    "optimise.closing_epochs": 1,
    "optimise.batch": 2,
    "hardware.accelerator": "cpu",
    "hardware.workers": 0,
    "hardware.threads": 1,
}


def words(data: Path, run: Path) -> list[str]:
    """The command that trains."""
    return [
        "train",
        "outline",
        "--data",
        str(data),
        "--out",
        str(run),
        *(f"--set={name}={value}" for name, value in _SETTINGS.items()),
    ]


@dataclass(frozen=True)
class Run:
    """A training that was interrupted and gone on with."""

    data: Path
    folder: Path
    interrupted: Answer
    resumed: Answer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("outline")
    drawn = write_synthetic(folder / "data", 6, 5, _SMALL, fields_per_slide=1)
    drawn.relabel(LabelSet.of(["leukocyte", "erythrocyte", "platelet"]), missing="drop").write(folder / "data")
    spoken = words(folder / "data", folder / "run")
    interrupted = interrupted_by_ctrl_c(
        spoken, lambda: rows(folder / "run") >= 1, (folder / "run" / "finished.json").exists
    )
    return Run(folder / "data", folder / "run", interrupted, say(*spoken, "--resume", "--json"))


def test_an_interrupted_run_is_gone_on_with(run: Run) -> None:
    assert run.interrupted.code == 130
    assert (run.resumed.code, run.resumed.json["epochs"]) == (0, 2)
    history = pl.read_parquet(run.folder / "history.parquet")
    assert history["epoch"].to_list() == sorted(set(history["epoch"]))
    assert np.isfinite(history["loss"].to_numpy()).all()
    assert history["score"].is_between(0, 1).all()


def test_its_bundle_says_what_it_is_and_passes_its_own_test(run: Run) -> None:
    bundle = Bundle.load(run.folder)
    assert bundle.hash == run.resumed.json["hash"]
    assert bundle.info.task == "segment"
    assert bundle.info.architecture == {"kind": "maps", "model": "test_efficientnet", "width": 0.25}
    assert set(bundle.info.files) >= {"model.onnx", "weights.safetensors"}
    assert bundle.info.outline_output is not None
    assert say("bundles", "verify", run.folder).code == 0


def test_its_findings_can_be_scored_by_their_outlines(run: Run, tmp_path: Path) -> None:
    answer = say(
        "predict", run.data, "--bundle", run.folder, "--out", tmp_path / "found", "--format", "cells", "--json"
    )
    assert answer.code == 0
    assert answer.json["images"] == 6
    scored = say(
        "evaluate",
        "--truth",
        run.data,
        "--found",
        tmp_path / "found",
        "--task",
        "segmentation",
        "--bootstrap",
        "0",
        "--json",
    )
    assert scored.code == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("crop_px=100", "crop_px"),
        ("modell=x", 'unknown setting "modell". Did you mean "model"?'),
        ("model=test_convnext", "gives features at strides"),
        ('input.shows="cell"', "name the cells and their parts"),
    ],
)
def test_what_cannot_be_trained_is_one_clear_line(run: Run, tmp_path: Path, change: str, message: str) -> None:
    answer = say(*words(run.data, tmp_path / "run"), f"--set={change}")
    assert answer.code == 2
    assert message in answer.err.splitlines()[-1]
    assert "Traceback" not in answer.err
