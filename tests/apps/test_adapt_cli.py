"""`cytolens adapt` as a user types it: a bundle of its own that says what was done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cytolens.bundle import Bundle, BundleInfo, write
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.labels import LabelSet
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from cytolens.tasks.detect import DetectInput, DetectOutput
from tests.apps.speaking import say

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

LABELS = LabelSet.of(["leukocyte", "erythrocyte"])
TINY = SyntheticSettings(width_px=128, height_px=96, red_cells=(2, 4), white_cells=(1, 1), platelets=(0, 1))
HERE = ("--set", "hardware.accelerator=cpu", "--set", "hardware.threads=1", "--json")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rendered fields with their cells, and beside them ("bare") the same without."""
    folder = tmp_path_factory.mktemp("target")
    dataset = write_synthetic(folder, 4, 3, TINY)
    replace(dataset, cells=Cells.empty(dataset.labels)).write(folder / "bare")
    return folder


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a detector that nobody has trained."""
    from safetensors.torch import save

    from cytolens.models import catalog
    from cytolens.train.detection import DetectTraining

    settings = DetectTraining(input=DetectInput(side_px=64))
    torch.manual_seed(0)
    state = catalog.detector(settings.model, len(LABELS)).state_dict()
    info = BundleInfo(
        name="eyes", task="detect", labels=LABELS.to_dict(), detect_input=settings.input,
        detect_output=DetectOutput(thresholds={"leukocyte": 0.3}), architecture={"model": settings.model},
        training={"settings": settings.model_dump(mode="json")}, scores={"home": {"map50": 0.9}},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("eyes") / "eyes"
    weights = save({name: value.contiguous() for name, value in state.items()})
    write(folder, info, {"model.onnx": b"", "weights.safetensors": weights})
    return folder


def test_the_new_bundle_says_what_was_done(eyes: Path, target: Path, tmp_path: Path) -> None:
    """Fields without any label are enough."""
    answer = say("adapt", eyes, "--data", target / "bare", "--out", tmp_path / "new", *HERE)
    assert answer.code == 0, answer.err
    before, made = Bundle.load(eyes), Bundle.load(tmp_path / "new")
    assert made.self_test().passed
    assert made.info.detect_output == before.info.detect_output
    assert made.info.scores == {}
    assert made.info.training["adapted"]["from"] == f"eyes@{before.hash}"
    assert made.info.training["adapted"]["seen"]["pictures"] == 4
    assert "without labels (batch-norm)" in made.info.description
    assert answer.json["hash"] == made.hash
    again = say("adapt", eyes, "--data", target, "--out", tmp_path / "new", *HERE)
    assert "already holds a run" in again.complaint


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("smear-detector",), "no weights.safetensors"),
        (("smear",), "is a pipeline"),
        (("EYES", "--where", "width_px > 9999"), 'no images to adapt to meet "width_px > 9999"'),
        (("EYES", "--set", "shar=1"), 'Did you mean "share"'),
        (("EYES", "--set", "share=2"), "share = 2"),
    ],
)
def test_what_cannot_be_done_is_said(
    words: tuple[Any, ...], complaint: str, eyes: Path, target: Path, tmp_path: Path
) -> None:
    given = [eyes if word == "EYES" else word for word in words]
    answer = say("adapt", *given, "--data", target, "--out", tmp_path / "new", "--json")
    assert complaint in answer.complaint
    assert not (tmp_path / "new").exists()


def test_import_says_what_images_were_taken_with(target: Path, tmp_path: Path) -> None:
    assert say("export", target, "--format", "coco", "--out", tmp_path / "coco.json").code == 0
    words = ("--images", target, "--scanner", "H C1", "--magnification", "100x")
    answer = say("import", tmp_path / "coco.json", "--format", "coco", *words, "--out", tmp_path / "data")
    assert answer.code == 0, answer.err
    frame = Dataset.read(tmp_path / "data").images.frame
    assert frame["scanner"].unique().to_list() == ["H C1"]
    assert frame["magnification"].unique().to_list() == ["100x"]
