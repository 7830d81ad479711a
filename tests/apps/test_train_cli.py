"""Training through the command line: killed, interrupted and resumed, it ends where it would have ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from cytolens.bundle import Bundle
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.labels import LabelSet
from cytolens.prepare.synthetic import SyntheticSettings, render_cell, write_synthetic
from tests.apps.speaking import COMMAND, Answer, say, surroundings

pytestmark = [pytest.mark.slow, pytest.mark.torch]

_EPOCHS = 3
_LABELS = ("leukocyte", "erythrocyte", "platelet")
_SMALL = SyntheticSettings(
    width_px=128,
    height_px=128,
    red_cells=(2, 5),
    white_cells=(1, 1),
    platelets=(0, 2),
    red_cell_diameter_px=(26, 34),
    debris=(0, 1),
)
_SETTINGS = {
    "input.side_px": 128,
    "multi_scale": 1,
    "tuning_share": 0.2,
    "optimise.epochs": _EPOCHS,
    "optimise.closing_epochs": 1,
    "optimise.warmup_epochs": 1,
    "optimise.batch": 4,
    "optimise.average_ramp": 10,
    "hardware.accelerator": "cpu",
    "hardware.threads": 1,
}


def words(data: Path, run: Path, **more: object) -> list[str]:
    """The command that trains; `more` are settings, with "_" for the dot."""
    settings = _SETTINGS | {name.replace("__", "."): value for name, value in more.items()}
    sets = [f"--set={name}={value}" for name, value in settings.items()]
    return ["train", "detect", "--data", str(data), "--out", str(run), *sets]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 small rendered fields with three labels."""
    folder = tmp_path_factory.mktemp("train") / "data"
    drawn = write_synthetic(folder, 24, 5, _SMALL, fields_per_slide=2)
    drawn.relabel(LabelSet.of(_LABELS), missing="drop").write(folder)
    return folder


def rows(run: Path) -> int:
    """The epochs in a history that may be replaced meanwhile: polars opens a path twice, so the bytes are read here."""
    file = run / "history.parquet"
    return len(pl.read_parquet(file.read_bytes())) if file.exists() else 0


def started(command: list[str], reached: Callable[[], bool]) -> subprocess.Popen[str]:
    """A training in a process group of its own, that has reached something."""
    process = subprocess.Popen(
        [COMMAND, *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings(), start_new_session=True,
    )  # fmt: skip
    while not reached():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def killed(command: list[str], reached: Callable[[], bool], delay_s: float = 0.0) -> None:
    """Training that is killed, with its workers, `delay_s` after it has reached something."""
    process = started(command, reached)
    time.sleep(delay_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def interrupted_by_ctrl_c(command: list[str], reached: Callable[[], bool], ignored: Callable[[], bool]) -> Answer:
    """Training that is interrupted when it has reached something; and again, if it has ignored that.

    Python drops an interruption that meets it in the midst of clearing an object away, and says "Exception ignored".
    """
    process = started(command, reached)
    process.send_signal(signal.SIGINT)
    while process.poll() is None and not ignored():
        time.sleep(0.01)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    return Answer(process.returncode, out, err)


@dataclass(frozen=True)
class Runs:
    """One training that was left alone, and one that was killed, interrupted and resumed."""

    alone: Path
    disturbed: Path
    interrupted: Answer


@pytest.fixture(scope="module")
def runs(data: Path) -> Runs:
    """Both trainings up to their last epoch; neither has a bundle yet.

    The first loads its data itself, the second in a process of its own: that must not matter either.
    """
    alone, disturbed = data.parent / "alone", data.parent / "disturbed"
    first = words(data, alone, hardware__workers=0)
    killed(first, (alone / "finished.json").exists)

    second = words(data, disturbed, hardware__workers=1)
    moment_s = float(np.random.default_rng(20).uniform(0, 0.3))
    killed(second, (disturbed / "checkpoints" / "last.ckpt").exists, moment_s)
    assert rows(disturbed) < _EPOCHS
    second.append("--resume")
    finished = (disturbed / "finished.json").exists
    interrupted = interrupted_by_ctrl_c(second, lambda: rows(disturbed) >= 2, finished)
    killed(second, finished)
    return Runs(alone, disturbed, interrupted)


@pytest.fixture(scope="module")
def finished(runs: Runs, data: Path) -> tuple[Path, dict[str, Any]]:
    """The first run, killed while its bundle was made, gone on with to its end."""
    answer = say(*words(data, runs.alone, hardware__workers=0), "--resume", "--json")
    assert answer.code == 0
    return runs.alone, answer.json


# -- killed and resumed -----------------------------------------------------------------------------


def test_the_history_is_complete(runs: Runs) -> None:
    for run in (runs.alone, runs.disturbed):
        history = pl.read_parquet(run / "history.parquet")
        assert history["epoch"].to_list() == [1, 2, 3]
        assert (
            history.select("loss", "score", "map50", "learning_rate", "seconds").null_count().sum_horizontal()[0] == 0
        )
        assert (run / "history.png").read_bytes().startswith(b"\x89PNG")
        assert json.loads((run / "finished.json").read_text())["epochs"] == _EPOCHS


def test_a_disturbed_run_learns_the_same(runs: Runs) -> None:
    clock = ("seconds", "images_per_s")
    histories = [pl.read_parquet(run / "history.parquet").drop(clock) for run in (runs.alone, runs.disturbed)]
    assert histories[0].equals(histories[1])
    losses = histories[0]["loss"].to_list()
    assert len(set(losses)) == _EPOCHS  # something is learnt, so that being equal means something


def test_a_disturbed_run_ends_with_the_same_weights_bit_for_bit(runs: Runs) -> None:
    import torch

    ends = [
        torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
        for run in (runs.alone, runs.disturbed)
    ]
    for part in ("epoch", "global_step", "state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        assert_same(ends[0][part], ends[1][part], part)
    moved = [not torch.equal(ends[0]["state_dict"][k], v) for k, v in ends[0]["current_model_state"].items()]
    assert any(moved)  # the running average is not the weights of the last step
    weights = [(run / "weights.safetensors").read_bytes() for run in (runs.alone, runs.disturbed)]
    assert weights[0] == weights[1]


def assert_same(one: Any, other: Any, where: str) -> None:
    """The same numbers in the same nest of tables and lists."""
    import torch

    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_same(value, other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}.{number}")
    else:
        assert one == other, where


def test_ctrl_c_is_130_and_says_that_it_can_go_on(runs: Runs) -> None:
    assert runs.interrupted.code == 130
    assert "Traceback" not in runs.interrupted.err or "Exception ignored" in runs.interrupted.err
    assert runs.interrupted.err.splitlines()[-1].startswith("interrupted; what is on disk is whole")
    assert runs.interrupted.out == ""


def test_nothing_is_left_half_written(runs: Runs) -> None:
    names = {file.name for file in runs.disturbed.rglob("*") if file.is_file()}
    assert names >= {"settings.json", "history.parquet", "history.png", "weights.safetensors", "best.ckpt", "last.ckpt"}


def test_a_run_is_not_started_over_or_gone_on_with_otherwise(runs: Runs, data: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in runs.disturbed.rglob("*")}
    again = say(*words(data, runs.disturbed, hardware__workers=1))
    assert "already holds a run. Use --resume to go on with it" in again.complaint
    other = say(*words(data, runs.disturbed, hardware__workers=1, optimise__epochs=5, seed=2), "--resume")
    assert "was started with other settings (optimise, seed); resume with the same ones" in other.complaint
    assert {file: file.stat().st_mtime_ns for file in runs.disturbed.rglob("*")} == before


# -- what comes out ---------------------------------------------------------------------------------


def test_a_run_killed_while_its_bundle_was_made_goes_on(finished: tuple[Path, dict[str, Any]], data: Path) -> None:
    run, said = finished
    bundle = Bundle.load(run)
    assert said["hash"] == bundle.hash
    assert (said["epochs"], said["problems"]) == (_EPOCHS, [])
    assert bundle.labels.names == _LABELS
    assert bundle.info.training["settings"]["optimise"]["epochs"] == _EPOCHS
    assert bundle.info.training["images"] < len(Dataset.read(data).images)  # some are kept for tuning
    assert bundle.info.detect_output is not None
    assert set(bundle.info.detect_output.thresholds) == set(_LABELS)
    assert bundle.info.architecture["red_cell_px"] == pytest.approx(30, abs=6)  # as rendered: 26 to 34 px
    network = (bundle.folder / "model.onnx").read_bytes()
    assert b"site-packages" not in network  # nor any other path of the machine it was made on
    assert b".py" not in network
    assert bundle.info.files.keys() >= {"model.onnx", "weights.safetensors", "exam/expected.parquet"}
    assert bundle.self_test().passed


def test_its_bundle_predicts(finished: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path) -> None:
    answer = say("predict", data, "--bundle", finished[0], "--out", tmp_path / "found", "--format", "cells", "--json")
    assert answer.code == 0
    assert answer.json["images"] == 24
    assert Cells.read_parquet(tmp_path / "found" / "cells.parquet").labels.names == _LABELS


def test_a_finished_run_stays_as_it_is(finished: tuple[Path, dict[str, Any]], data: Path) -> None:
    run, said = finished
    before = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in run.rglob("*")}
    command = words(data, run, hardware__workers=0)
    again = say(*command, "--resume", "--json")
    assert again.code == 0
    assert again.json == said
    assert {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in run.rglob("*")} == before
    assert "is finished; its bundle stays as it is" in say(*command, "--resume").err
    other = say(*command, "--set", "seed=3", "--resume")
    assert "other settings (seed)" in other.complaint


def test_a_classifier_learns_from_cells_and_predicts(tmp_path: Path) -> None:
    kinds = ("lymphocyte", "segmented neutrophil")
    for kind in kinds:
        (tmp_path / "cells" / kind).mkdir(parents=True)
        for seed in range(10):
            Image.fromarray(render_cell(seed, kind, 96).pixels).save(tmp_path / "cells" / kind / f"{seed}.png")
    imported = say("import", tmp_path / "cells", "--format", "image_folder", "--out", tmp_path / "data", "--json")
    assert imported.json["cells"] == 20
    recipe = tmp_path / "cells.toml"
    recipe.write_text(
        'task = "classify"\nname = "kinds"\ntuning_share = 0.3\n[input]\nside_px = 64\n[hardware]\nworkers = 0\n'
        'accelerator = "cpu"\nthreads = 1\n[optimise]\nepochs = 9\nclosing_epochs = 1\nbatch = 7\n'
    )
    answer = say(
        "train", "classify", "--data", tmp_path / "data", "--out", tmp_path / "run", "--recipe", recipe,
        "--model", "test_efficientnet", "--set", "optimise.epochs=2", "--json",
    )  # fmt: skip
    assert answer.code == 0
    assert answer.json["epochs"] == 2
    bundle = Bundle.load(tmp_path / "run")
    assert (bundle.name, bundle.info.task) == ("kinds", "classify")
    assert set(bundle.labels.leaves) == set(kinds)
    assert bundle.file("familiarity.npz") is not None
    assert bundle.self_test().passed
    found = say("predict", tmp_path / "cells", "--bundle", tmp_path / "run", "--out", tmp_path / "found", "--json")
    assert found.code == 0
    table = Cells.read_parquet(tmp_path / "found" / "cells.parquet")
    assert len(table) == 20
    np.testing.assert_allclose(table.probabilities().sum(axis=1), 1, atol=1e-5)
    scored = say("evaluate", "--truth", tmp_path / "data", "--found", tmp_path / "found", "--task", "classification",
                 "--bootstrap", "0", "--json")  # fmt: skip
    assert scored.json["matched"] == 20


# -- requests that cannot be carried out --------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["train", "paint"], 'no training task "paint"; allowed: detect, classify, outline, segment'),
        (["--set", "optimise.epoch=3"], 'unknown setting "optimise.epoch". Did you mean "epochs"?'),
        (["--set", "optimise.epochs=none"], "optimise.epochs = 'none'"),
        (["--set", "epochs"], "--set takes KEY=VALUE"),
        (["--recipe", "nowhere.toml"], "nowhere.toml: there is no such recipe"),
        (["--model", "yolox-giant"], 'no detector "yolox-giant"'),
        (["--set", "weights=nowhere.pth"], "nowhere.pth"),
        (["--set", "split=test", "--data", "{data}"], "data"),
        (["--set", 'labels=["lymphocyte"]'], "no counterpart"),
        (["--boxes", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_trained_is_one_clear_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    command = words(data, tmp_path / "run")
    given = [word.format(data=data) for word in change]
    answer = say(*given, *command[2:]) if change[0] == "train" else say(*command, *given)
    lines = answer.err.splitlines()  # the last one is the complaint; before it stands how far it got
    assert answer.code == 2
    assert message in lines[-1]
    assert lines[-1].startswith("cytolens: ")
    assert "Traceback" not in answer.err
    assert answer.out == ""
