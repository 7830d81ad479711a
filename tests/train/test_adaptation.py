"""Adaptation to other pictures: statistics and teachers by hand, and no label of the target is ever used."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.labels import LabelSet
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from cytolens.problems import DatasetError, Problems, SettingError
from cytolens.tasks.detect import DetectInput, DetectOutput

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch import nn  # noqa: E402

from cytolens.models import catalog  # noqa: E402
from cytolens.train.adapt_settings import AdaptSettings  # noqa: E402
from cytolens.train.adaptation import adapted, network_of, unnamed, with_statistics_of  # noqa: E402
from cytolens.train.classify_settings import ClassifyTraining  # noqa: E402
from cytolens.train.detection import DetectTraining  # noqa: E402
from cytolens.train.mean_teacher import ClassifyTeacher, DetectTeacher, follow, ramped  # noqa: E402
from cytolens.train.settings import Hardware  # noqa: E402

LABELS = LabelSet.of(["leukocyte", "erythrocyte"])
QUIET = Hardware(accelerator="cpu", workers=0, threads=1, precision="32-true", channels_last=False)
TINY = SyntheticSettings(width_px=128, height_px=96, red_cells=(2, 4), white_cells=(1, 1), platelets=(0, 1))
DETECT = DetectTraining(input=DetectInput(side_px=64), hardware=QUIET)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four rendered fields with their cells."""
    return write_synthetic(tmp_path_factory.mktemp("target"), 4, 3, TINY)


@pytest.fixture(scope="module")
def detector() -> Any:
    """A detector that nobody has trained."""
    torch.manual_seed(0)
    return network_of(DETECT, LABELS, catalog.detector(DETECT.model, len(LABELS)).state_dict())


# -- batch normalisation ------------------------------------------------------------------------------


def norm_of(mean: float, variance: float) -> nn.Module:
    norm = nn.BatchNorm2d(1)
    norm.running_mean.fill_(mean)
    norm.running_var.fill_(variance)
    return nn.Sequential(norm).eval()


@pytest.mark.parametrize(("share", "mean", "variance"), [(1.0, 3.0, 8 / 3), (0.25, 0.75 * 7 + 0.75, 0.75 * 2 + 2 / 3)])
def test_statistics_by_hand(share: float, mean: float, variance: float) -> None:
    """One batch of 1, 3, 3, 5: mean 3, variance (4 + 0 + 0 + 4) / 3."""
    before = norm_of(7.0, 2.0)
    batch = torch.tensor([1.0, 3, 3, 5]).reshape(2, 1, 1, 2)
    after, seen = with_statistics_of(before, [batch], share)
    assert float(after[0].running_mean) == pytest.approx(mean)  # type: ignore[index, arg-type]
    assert float(after[0].running_var) == pytest.approx(variance)  # type: ignore[index, arg-type]
    assert seen == {"pictures": 2, "norms": 1}
    assert float(before[0].running_mean) == 7.0  # type: ignore[index, arg-type]
    assert not after.training


def test_every_picture_weighs_the_same() -> None:
    """Three pictures of 0 and 2 in one batch, one of 4 and 8 in another: the mean of 1, 1, 1, 6."""
    large, small = torch.tensor([0.0, 2]).repeat(3).reshape(3, 1, 1, 2), torch.tensor([4.0, 8]).reshape(1, 1, 1, 2)
    after, _ = with_statistics_of(norm_of(0, 1), [large, small], 1.0)
    assert float(after[0].running_mean) == pytest.approx(9 / 4)  # type: ignore[index, arg-type]


def test_what_cannot_be_adapted_is_said() -> None:
    with pytest.raises(SettingError, match="no batch normalisation"):
        with_statistics_of(nn.Conv2d(3, 1, 1), [torch.zeros(1, 3, 2, 2)], 1.0)
    with pytest.raises(DatasetError, match="1 picture of 1 x 1 px is too little"):
        with_statistics_of(norm_of(0, 1), [torch.zeros(1, 1, 1, 1)], 1.0)
    with pytest.raises(DatasetError, match="no picture"):
        with_statistics_of(norm_of(0, 1), [], 1.0)


# -- the teacher -----------------------------------------------------------------------------------------


def test_the_ramp_by_hand() -> None:
    assert ramped(0.0, 0.5) == pytest.approx(math.exp(-5))
    assert ramped(0.25, 0.5) == pytest.approx(math.exp(-1.25))
    assert ramped(0.5, 0.5) == ramped(0.9, 0.5) == ramped(0.0, 0.0) == 1.0


def test_the_teacher_follows_weights_statistics_and_counters() -> None:
    teacher, student = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    nn.init.constant_(teacher.weight, 1.0)
    nn.init.constant_(student.weight, 3.0)
    student.running_mean.fill_(10.0)
    student.num_batches_tracked.fill_(5)
    follow(teacher, student, 0.9)
    assert teacher.weight.item() == pytest.approx(1.2)
    assert float(teacher.running_mean) == pytest.approx(1.0)
    assert int(teacher.num_batches_tracked) == 5


def test_sure_findings_are_truths_and_doubtful_ones_cost_nothing() -> None:
    """Thresholds .6 and .4: .6 and .5 of the second are sure, .35 is doubtful, .1 nothing, a repetition is dropped."""
    how = AdaptSettings(method="mean-teacher", doubt=0.5)
    output = DetectOutput(thresholds={"leukocyte": 0.6, "erythrocyte": 0.4})
    teacher = DetectTeacher(nn.Identity(), how, DETECT, output, LABELS)
    boxes = np.array([[0, 0, 9, 9], [20, 0, 29, 9], [0, 0, 9, 10], [40, 0, 49, 9], [0, 40, 9, 49]], np.float32)
    scores = np.array([[0.6, 0.1], [0.2, 0.5], [0.45, 0.1], [0.35, 0.1], [0.1, 0.0]], np.float32)
    truth = teacher.believed(boxes, scores, (64, 64))
    assert sorted(truth.boxes.tolist()) == boxes[[0, 1]].tolist()
    assert sorted(truth.classes.tolist()) == [0, 1]
    assert truth.ignored.tolist() == boxes[[3]].tolist()
    all_sure = DetectTeacher(nn.Identity(), AdaptSettings(confidence=0.3), DETECT, output, LABELS)
    assert len(all_sure.believed(boxes, scores, (64, 64)).boxes) == 3


class Told(nn.Module):
    """A network that says the first pixels of a picture: logits of two names and of two values."""

    def forward(self, images: Any) -> tuple[Any, Any, Any]:
        """Logits (B, 2), no embedding, attributes (B, 2)."""
        flat = images.flatten(1)
        return flat[:, :2], flat[:, :1], flat[:, 2:4]


def test_the_student_learns_what_the_teacher_is_sure_of() -> None:
    """Two cells, names and one attribute; the teacher is sure of the first cell's name only: 1 of 2, over 2 parts."""
    teacher = ClassifyTeacher(Told(), AdaptSettings(confidence=0.8), [2, 2])
    calm = torch.tensor([[3.0, 0, 1, 0], [1.0, 0, 0, 0]]).reshape(2, 1, 1, 4)
    strong = torch.tensor([[0.0, 2, 0, 0], [0.0, 9, 0, 9]]).reshape(2, 1, 1, 4)
    loss, sure = teacher.disagreement(calm, strong)
    assert sure == 1
    assert float(loss) == pytest.approx(math.log(1 + math.exp(2)) / 2 / 2)


def test_values_learnt_each_by_itself_are_taught_so() -> None:
    """Sigmoids .881 and .119 of the first cell's values: .881 ≥ .85, by a softmax .982; the second is in doubt.

    The asymmetric loss of the first for logits (0, 0): −.5 · ln .5 and −.42⁴ · ln .58; over two cells and two parts.
    """
    teacher = ClassifyTeacher(Told(), AdaptSettings(confidence=0.85), [2, 2], exclusive=False)
    calm = torch.tensor([[0.0, 0, 2, -2], [0.0, 0, 1, -1]]).reshape(2, 1, 1, 4)
    strong = torch.zeros(2, 1, 1, 4)
    loss, sure = teacher.disagreement(calm, strong)
    assert sure == 1  # a softmax of (1, −1) is .881, sigmoids divided by their sum .731
    expected = -0.5 * math.log(0.5) - 0.42**4 * math.log(0.58)
    assert float(loss) == pytest.approx(expected / 2 / 2, rel=1e-5)


def test_a_threshold_of_nothing_is_no_division_by_nothing() -> None:
    output = DetectOutput(thresholds={"leukocyte": 0.0, "erythrocyte": 0.5})
    teacher = DetectTeacher(nn.Identity(), AdaptSettings(doubt=0.5), DETECT, output, LABELS)
    boxes = np.array([[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]], np.float32)
    truth = teacher.believed(boxes, np.array([[0.3, 0], [0, 0], [0.007, 0]], np.float32), (64, 64))
    assert truth.boxes.tolist() == boxes[:1].tolist()
    assert truth.ignored.tolist() == boxes[2:].tolist()


# -- labels of the target ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["batch-norm", "mean-teacher"])
def test_a_detector_adapts_alike_whatever_the_labels_of_the_target(method: str, target: Dataset, detector: Any) -> None:
    how = AdaptSettings.model_validate(
        {"method": method, "epochs": 1, "batch": 2, "confidence": 0.001, "hardware": QUIET}
    )
    bare = replace(target, cells=Cells.empty(target.labels))
    states = []
    for given in (target, bare):
        blind = unnamed(given, "detect", LABELS)
        network, seen = adapted(detector, DETECT, DetectOutput(), blind, how, Problems(), lambda _: None)
        assert seen["pictures"] == 4
        states.append(network.state_dict())
    first, second = states
    assert all(torch.equal(first[name], second[name]) for name in first)
    own = detector.state_dict()
    changed = {name for name in own if not torch.equal(first[name], own[name])}
    assert changed
    statistics = {name for name in own if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert changed <= statistics if method == "batch-norm" else not changed & statistics


@pytest.mark.parametrize("method", ["batch-norm", "mean-teacher"])
def test_a_classifier_adapts_alike_whatever_the_names_of_the_target(method: str, target: Dataset) -> None:
    settings = ClassifyTraining.model_validate({"model": "resnet10t", "input": {"side_px": 32}, "hardware": QUIET})
    how = AdaptSettings.model_validate(
        {"method": method, "epochs": 1, "batch": 4, "confidence": 0.5, "hardware": QUIET}
    )
    network = catalog.classifier("resnet10t", classes=2, side_px=32, norm=settings.norm, dropout=0, drop_path=0)
    other = target.cells.frame["label"].reverse()
    renamed = replace(target, cells=Cells(target.cells.frame.with_columns(label=other), target.labels))
    states = []
    for given in (target, renamed):
        blind = unnamed(given, "classify", LABELS)
        assert set(blind.cells.label_names()) == {"leukocyte"}
        network.eval()
        states.append(adapted(network, settings, None, blind, how, Problems(), lambda _: None)[0].state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_classifier_needs_boxes_and_cells(target: Dataset) -> None:
    with pytest.raises(DatasetError, match="--boxes"):
        unnamed(replace(target, cells=Cells.empty(target.labels)), "classify", LABELS)
    whole = ClassifyTraining.model_validate({"target": "image", "loss": "focal"})
    with pytest.raises(SettingError, match="whole images"):
        adapted(nn.Identity(), whole, None, target, AdaptSettings(), Problems(), lambda _: None)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(SettingError, match="not those of yolox-nano"):
        network_of(DETECT, LABELS, catalog.detector("yolox-nano", 5).state_dict())
