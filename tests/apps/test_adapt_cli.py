"""`cytolens adapt` as a user types it: a bundle of its own that says what was done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytolens.bundle import Bundle, BundleInfo, write
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.labels import LabelSet, attribute_schema
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from cytolens.settings import checked
from cytolens.tasks.attributes import AttributeOutput
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


# -- what else a bundle holds ------------------------------------------------------------------------


SHAPE = next(a for a in attribute_schema("wbcatt") if a.name == "nucleus_shape")
NAMED = LabelSet.of(["leukocyte", "lymphocyte", "monocyte"], (SHAPE,))


def untrained(folder: Path, settings: Any, network: Any, files: dict[str, bytes], **info: Any) -> Path:
    """The bundle of a network that nobody has trained."""
    from safetensors.torch import save

    weights = save({name: value.contiguous() for name, value in network.state_dict().items()})
    said = BundleInfo(
        task=settings.task, attribute_output=AttributeOutput(kinds={"leukocyte": {SHAPE.column: (1 / 6,) * 6}}),
        training={"settings": settings.model_dump(mode="json")}, **info,
    )  # fmt: skip
    write(folder, said, {"model.onnx": b"", "weights.safetensors": weights, **files})
    return folder


@pytest.mark.parametrize("method", ["batch-norm", "mean-teacher"])
def test_the_layer_that_reads_names_is_that_of_the_adapted_network(method: str, target: Path, tmp_path: Path) -> None:
    from cytolens.models import catalog
    from cytolens.predict.concepts import FILE, Concepts, concepts_of
    from cytolens.predict.session import Classifier, session
    from cytolens.train.classify_settings import ClassifyTraining

    settings = checked(
        ClassifyTraining,
        {"model": "test_efficientnet", "input": {"side_px": 32}, "attributes": ["wbcatt"], "concepts": "joint"},
        "test",
    )
    torch.manual_seed(0)
    network: Any = catalog.classifier(
        settings.model, classes=2, side_px=32, norm="batch", dropout=0, drop_path=0, attributes=(6,), concepts="joint"
    )
    weights, bias = (one.detach().numpy() for one in (network.head.weight, network.head.linear.bias))
    source = Concepts(weights, bias, np.linspace(0, 0.3, 6, dtype=np.float32))
    folder = untrained(
        tmp_path / "reader", settings, network, {FILE: source.to_bytes()}, name="reader", labels=NAMED.to_dict(),
        classify_input=settings.input, classify_output=settings.output,
        architecture={"model": settings.model, "norm": "batch", "concepts": "joint"},
    )  # fmt: skip
    boxes = replace(Dataset.read(target), name="boxes")
    names = ["leukocyte"] * len(boxes.cells)
    cells = Cells.of(
        LabelSet.of(["leukocyte"]), image_id=boxes.cells.frame["image_id"].to_list(), boxes=boxes.cells.boxes(),
        label=names, source="human:ab",
    )  # fmt: skip
    replace(boxes, cells=cells).write(tmp_path / "data")
    words = ("--method", method, "--set", "batch=4", *HERE)
    if method == "mean-teacher":
        words = (*words, "--set", "epochs=1", "--set", "confidence=0.1", "--set", "decay=0", "--set", "ramp=0")
        words = (*words, "--set", "hardware.workers=0")
    answer = say("adapt", folder, "--data", tmp_path / "data", "--out", tmp_path / "new", *words)
    assert answer.code == 0, answer.err
    made = Bundle.load(tmp_path / "new")
    reader = concepts_of(made)
    assert reader is not None
    layer = reader[0]
    same = np.array_equal(layer.weights, source.weights) and np.array_equal(layer.bias, source.bias)
    assert same == (method == "batch-norm")
    assert np.array_equal(layer.mean, source.mean)
    # The layer says what the new network says.
    shown = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    logits = Classifier(session(made), describes=True, concepts=True)(shown)[0]
    said, concepts = logits[:, :2], logits[:, 2 + 6 :]
    np.testing.assert_allclose(concepts @ layer.weights.T + layer.bias, said, atol=1e-4)


@pytest.mark.slow
def test_a_detector_that_describes_still_does(target: Path, tmp_path: Path) -> None:
    from cytolens.models import catalog
    from cytolens.train.detection import DetectTraining

    settings = checked(
        DetectTraining, {"input": {"side_px": 64}, "attributes": ["wbcatt"], "attribute_scale": "red-cell"}, "test"
    )
    labels = LabelSet.of(["leukocyte", "erythrocyte"], (SHAPE,))
    torch.manual_seed(0)
    network = catalog.detector(settings.model, 2, (6,), told=2)
    folder = untrained(
        tmp_path / "eyes", settings, network, {"attributes.onnx": b""}, name="eyes", labels=labels.to_dict(),
        detect_input=settings.input, architecture={"model": settings.model, "attribute_scale": "red-cell"},
        detect_output=DetectOutput(thresholds={"leukocyte": 0.0, "erythrocyte": 0.0}, score_floor=0.0),
    )  # fmt: skip
    answer = say("adapt", folder, "--data", target / "bare", "--out", tmp_path / "new", *HERE)
    assert answer.code == 0, answer.err
    made = Bundle.load(tmp_path / "new")
    assert made.self_test().passed
    out = tmp_path / "found"
    answer = say("predict", target / "bare", "--bundle", tmp_path / "new", "--out", out, "--format", "cells", "--json")
    assert answer.code == 0, answer.err
    white = Cells.read_parquet(out / "cells.parquet").where(label="leukocyte")
    assert len(white) > 0
    assert white.frame[SHAPE.column].null_count() == 0
