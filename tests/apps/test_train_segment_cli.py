"""Training of outlines through the command line: interrupted and resumed, it ends where it would have ended."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cytolens.bundle import Bundle
from cytolens.dataset import Dataset
from cytolens.images import load_image
from cytolens.labels import LabelSet
from cytolens.predict.region_networks import RegionEnsemble
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from cytolens.tasks.segment import SegmentOutput
from tests.apps.speaking import Answer, say
from tests.apps.test_train_cli import interrupted_by_ctrl_c, killed, rows

pytestmark = [pytest.mark.slow, pytest.mark.torch]

_EPOCHS = 3
_LABELS = ("leukocyte", "erythrocyte", "platelet")
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
    "backbone": "test_resnet",
    "crop_px": 64,
    "loss_decay": True,
    "tuning_share": 0.2,
    "network.channels": 16,
    "network.hidden": 16,
    "network.mask_layers": 1,
    "augment.flip_paste": 0.3,
    "augment.copy_paste": 0.3,
    "output.score_floor": 0.01,
    "output.proposals_kept": 50,
    "output.most": 10,
    "optimise.epochs": _EPOCHS,
    "optimise.closing_epochs": 1,
    "optimise.batch": 2,
    "hardware.accelerator": "cpu",
    "hardware.threads": 1,
}


def words(data: list[Path], run: Path, **more: object) -> list[str]:
    """The command that trains; `more` are settings, with "__" for the dot."""
    settings = _SETTINGS | {name.replace("__", "."): value for name, value in more.items()}
    places = [word for folder in data for word in ("--data", str(folder))]
    sets = [
        f"--set={name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in settings.items()
    ]
    return ["train", "segment", *places, "--out", str(run), *sets]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six small rendered fields with outlines, and three more that a teacher outlined."""
    folder = tmp_path_factory.mktemp("segment")
    drawn = write_synthetic(folder / "data", 6, 5, _SMALL, fields_per_slide=1)
    drawn.relabel(LabelSet.of(_LABELS), missing="drop").write(folder / "data")
    more = write_synthetic(folder / "more", 3, 6, _SMALL, fields_per_slide=1, name="more")
    more = more.relabel(LabelSet.of(_LABELS), missing="drop")
    told = more.cells.with_columns(score=[0.9] * len(more.cells), source="bundle:teacher@0123456789ab", ignore=False)
    groups = pl.concat_str(pl.lit("more-"), pl.col("group"))
    replace(more, cells=told, images=more.images.with_columns(group=groups)).write(folder / "more")
    return [folder / "data", folder / "more"]


@dataclass(frozen=True)
class Runs:
    """One training that was left alone up to its last epoch, and one that was interrupted and gone on with."""

    alone: Path
    disturbed: Path
    interrupted: Answer
    resumed: Answer


@pytest.fixture(scope="module")
def runs(data: list[Path]) -> Runs:
    alone, disturbed = data[0].parent / "alone", data[0].parent / "disturbed"
    killed(words(data, alone, hardware__workers=1), (alone / "finished.json").exists)
    second = words(data, disturbed, hardware__workers=0)
    interrupted = interrupted_by_ctrl_c(second, lambda: rows(disturbed) >= 1, (disturbed / "finished.json").exists)
    assert 1 <= rows(disturbed) <= _EPOCHS
    return Runs(alone, disturbed, interrupted, say(*second, "--resume", "--json"))


def test_an_interrupted_run_ends_with_the_same_weights_bit_for_bit(runs: Runs) -> None:
    assert runs.interrupted.code == 130
    assert (runs.resumed.code, runs.resumed.json["epochs"]) == (0, _EPOCHS)
    clock = ("seconds", "images_per_s")
    one, other = (pl.read_parquet(run / "history.parquet").drop(clock) for run in (runs.alone, runs.disturbed))
    assert one.equals(other)
    assert one.columns == [
        "epoch", "learning_rate", "loss", "loss_box", "loss_class", "loss_mask", "loss_rpn_box", "loss_rpn_class",
        *(f"map from {limit}" for limit in (0.3, 0.4, 0.5, 0.6, 0.7)), "score",
    ]  # fmt: skip
    assert (runs.alone / "weights.safetensors").read_bytes() == (runs.disturbed / "weights.safetensors").read_bytes()
    assert len(set(one["loss"])) == _EPOCHS


def test_its_bundle_says_what_it_is_and_outlines_cells(runs: Runs, data: list[Path]) -> None:
    bundle = Bundle.load(runs.disturbed)
    assert bundle.hash == runs.resumed.json["hash"]
    assert (bundle.info.task, bundle.labels.names) == ("segment", _LABELS)
    described = bundle.info.architecture
    assert (described["kind"], described["family"], described["backbone"]) == ("regions", "mask-rcnn", "test_resnet")
    assert described["anchors"] == {"strides": [2, 4, 8, 16, 32], "scale": 8.0, "ratios": [0.5, 1.0, 2.0]}
    assert np.isfinite(described["mirror_shift_px"]).all()
    assert set(bundle.info.files) == {"trunk.onnx", "boxes.onnx", "masks.onnx", "weights.safetensors"}
    assert bundle.info.segment_output == SegmentOutput(score_floor=0.01, proposals_kept=50, most=10)
    assert bundle.info.training["thresholds"] == "those of the settings; not tuned"
    assert bundle.info.training["pseudo_labels"]["images"] == 3
    assert bundle.info.training["pseudo_labels"]["sources"] == ["bundle:teacher@0123456789ab"]
    image = Dataset.read(data[0]).images.rows()[0]
    soft = RegionEnsemble([bundle], SegmentOutput(score_floor=0.0, most=5)).look(load_image(image["path"]).pixels)
    assert soft.size_hw == (80, 96)
    assert soft.patches.shape == (len(soft.boxes), 28, 28)
    assert 1 <= len(soft.boxes) <= 5


def test_training_judges_by_what_prediction_says(runs: Runs, data: list[Path]) -> None:
    """The network in torch and its exported pieces, asked by `predict`, say the same."""
    import torch

    from cytolens.models.checkpoint import read_state_dict
    from cytolens.settings import checked
    from cytolens.tasks.segment import picture
    from cytolens.train.region_answers import soft_outlines
    from cytolens.train.segment_settings import SegmentTraining
    from cytolens.train.segmentation import network_of

    bundle = Bundle.load(runs.disturbed)
    settings = checked(SegmentTraining, bundle.info.training["settings"], "test")
    network = network_of(settings, len(_LABELS))
    network.load_state_dict(read_state_dict(bundle.folder / "weights.safetensors"))
    info = bundle.info.model_copy(update={"architecture": {**bundle.info.architecture, "mirror_shift_px": [0, 0]}})
    output = SegmentOutput(score_floor=0.0, most=8, proposals_kept=40)
    pixels = load_image(Dataset.read(data[0]).images.rows()[1]["path"]).pixels
    with torch.no_grad():
        here = soft_outlines(network.eval(), *picture(pixels, settings.input), output)
    there = RegionEnsemble([replace(bundle, info=info)], output).look(pixels)
    np.testing.assert_allclose(here.boxes, there.boxes, atol=1e-2)
    np.testing.assert_allclose(here.scores, there.scores, atol=1e-4)
    np.testing.assert_array_equal(here.classes, there.classes)
    assert np.abs(here.patches.astype(int) - there.patches).max(initial=0) <= 1


def test_a_finished_run_stays_as_it_is(runs: Runs, data: list[Path]) -> None:
    again = say(*words(data, runs.disturbed, hardware__workers=0), "--resume", "--json")
    assert again.code == 0
    assert again.json == runs.resumed.json
    assert (
        "is finished; its bundle stays as it is"
        in say(*words(data, runs.disturbed, hardware__workers=0), "--resume").err
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--set=channels=3"], 'unknown setting "channels"'),
        (["--set=network.chanels=3"], 'unknown setting "network.chanels". Did you mean "channels"?'),
        (["--set=crop_px=100"], "crop_px = 100"),
        (["--model", "resnet_of_nobody"], "resnet_of_nobody"),
        (["--set=augment.flip_paste_labels=['astro']"], "labels that are not learnt: astro"),
        (["--set=extra.teacher=bundle:other@0123456789ab"], "but there are cells of bundle:teacher@0123456789ab"),
    ],
)
def test_what_cannot_be_trained_is_one_clear_line(
    data: list[Path], tmp_path: Path, change: list[str], message: str
) -> None:
    answer = say(*words(data, tmp_path / "run"), *change)
    assert answer.code == 2
    assert message in answer.err.splitlines()[-1]
    assert "Traceback" not in answer.err


def test_boxes_alone_teach_no_outlines(data: list[Path], tmp_path: Path) -> None:
    drawn = Dataset.read(data[0])
    replace(drawn, cells=drawn.cells.with_masks([None] * len(drawn.cells))).write(tmp_path / "bare")
    answer = say(*words([tmp_path / "bare"], tmp_path / "run"))
    assert answer.code == 2
    assert "cells have a box and no outline" in answer.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
