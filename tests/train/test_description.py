"""Training names and attributes together: each cell teaches what is known of it, and a bundle comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet, attribute_schema
from cytolens.predict.concepts import concepts_of
from cytolens.predict.fields import predict_images
from cytolens.predict.pipeline import Predictor
from cytolens.predict.report_attributes import spoken_for_names
from cytolens.prepare.synthetic import render_cell
from cytolens.problems import LabelError, Problems, SettingError
from cytolens.run.training import labels_to_learn, train
from cytolens.settings import checked
from cytolens.tasks import classify
from cytolens.tasks.attributes import UNKNOWN
from cytolens.train.classification import ClassifyTraining, StoredCells, sample_maker, tuning_batches
from cytolens.train.description import DescribeModule, value_macro_f1

pytestmark = pytest.mark.torch

SHAPE = next(a for a in attribute_schema("wbcatt") if a.name == "nucleus_shape")
GRAINS = next(a for a in attribute_schema("wbcatt") if a.name == "granularity")
LABELS = LabelSet.of(["leukocyte", "segmented neutrophil", "lymphocyte"], (SHAPE, GRAINS))
LEAVES, VALUES = 2, 8


def settings(**values: Any) -> ClassifyTraining:
    small: dict[str, Any] = {
        "model": "test_efficientnet",
        "input": {"side_px": 32},
        "attributes": ["wbcatt"],
        "optimise": {"epochs": 1, "batch": 8},
        "hardware": {"accelerator": "cpu", "workers": 0, "precision": "32-true"},
    }
    return checked(ClassifyTraining, small | values, "test")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Rendered cells: a third with name and attributes, a third with a name, a third with attributes."""
    folder = tmp_path_factory.mktemp("cells")
    kinds = {"segmented neutrophil": ("segmented-multilobed", "yes"), "lymphocyte": ("unsegmented-round", "no")}
    rows: list[dict[str, Any]] = []
    names: list[str | None] = []
    shapes: list[str | None] = []
    grains: list[str | None] = []
    for number in range(30):
        name = list(kinds)[number % 2]
        image_id = f"{number}.png"
        Image.fromarray(render_cell(number, name, 48).pixels).save(folder / image_id)
        rows.append({"image_id": image_id, "path": str(folder / image_id), "width_px": 48, "height_px": 48})
        names.append(None if number % 3 == 2 else name)
        shapes.append(None if number % 3 == 1 else kinds[name][0])
        grains.append(None if number % 3 == 1 or number % 6 == 0 else kinds[name][1])
    cells = Cells.of(
        LABELS,
        image_id=[row["image_id"] for row in rows],
        boxes=[[0, 0, 48, 48]] * len(rows),
        label=names,
        source="import:x",
        attributes={SHAPE.column: shapes, GRAINS.column: grains},
    )
    return Dataset(Images.of(rows), cells, "rendered")


# -- what is shown --------------------------------------------------------------------------------


def test_cells_with_a_name_or_attributes_are_stored_with_what_is_known(data: Dataset) -> None:
    own = settings()
    store = StoredCells(data, own, Problems())
    assert len(store.pixels) == 30
    assert store.known.shape == (30, LEAVES + 2)
    assert store.names[2] == ""
    assert store.known[:3, :LEAVES].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert store.known[:3, LEAVES:].tolist() == [[2, UNKNOWN], [UNKNOWN, UNKNOWN], [2, 1]]
    _, known = sample_maker(store, own)(2, np.random.default_rng(0), 0)
    assert known.tolist() == store.known[2].tolist()
    tuning = tuning_batches(data, own, Problems(), batch=64)[0][1]
    assert tuning.tolist() == store.known.tolist()


def test_without_attributes_nameless_cells_are_left_out(data: Dataset) -> None:
    plain = data.relabel(replace(LABELS, attributes=()))
    store = StoredCells(plain, settings(attributes=[]), Problems())
    assert len(store.pixels) == 20
    assert store.known.dtype == bool


def test_labels_to_learn_hold_the_attributes_that_are_asked_for(data: Dataset) -> None:
    assert labels_to_learn([data], settings()).attributes == (SHAPE, GRAINS)
    assert labels_to_learn([data], settings(attributes=[GRAINS.column])).attributes == (GRAINS,)
    assert labels_to_learn([data], settings(attributes=[])).attributes == ()
    plain = data.relabel(replace(LABELS, attributes=()))
    assert labels_to_learn([plain, data], settings(labels=["leukocyte"])).attributes == (SHAPE, GRAINS)
    with pytest.raises(LabelError, match='attributes = "leukemia_attri"'):
        labels_to_learn([data], settings(attributes=["leukemia_attri"]))


def test_whole_images_have_no_attributes() -> None:
    with pytest.raises(SettingError, match="they need target = cell"):
        settings(target="image", loss="focal")


# -- loss and score -------------------------------------------------------------------------------


def module_for(known: np.ndarray, **values: Any) -> DescribeModule:
    torch.manual_seed(0)
    return DescribeModule(settings(**values), LABELS, known)


@pytest.mark.parametrize("kind", ["cross-entropy", "asymmetric"])
def test_each_cell_teaches_what_is_known_of_it(kind: str) -> None:
    known = np.array([[1, 0, -1, -1], [0, 0, 3, -1]], np.int8)
    module = module_for(known, attribute_loss=kind)
    said = torch.randn(2, LEAVES + VALUES, requires_grad=True)
    module.loss(said, torch.from_numpy(known)).backward()
    assert said.grad is not None
    taught = said.grad != 0
    assert taught[0].tolist() == [True] * 2 + [False] * 8
    assert taught[1].tolist() == [False] * 2 + [True] * 6 + [False] * 2


def test_the_share_weighs_attributes_against_names() -> None:
    known = np.array([[1, 0, 2, 1], [0, 1, 0, 0]], np.int8)
    said = torch.randn(2, LEAVES + VALUES, generator=torch.Generator().manual_seed(1))
    losses = {
        share: module_for(known, attribute_share=share, smoothing=0).loss(said, torch.from_numpy(known)).item()
        for share in (0.0, 0.25, 1.0)
    }
    names = torch.nn.functional.cross_entropy(said[:, :2], torch.tensor([0, 1])).item()
    parts = [(said[:, 2:8], torch.tensor([2, 0])), (said[:, 8:], torch.tensor([1, 0]))]
    values = np.mean([torch.nn.functional.cross_entropy(part, truth).item() for part, truth in parts])
    assert losses[0.0] == pytest.approx(names, abs=1e-5)
    assert losses[1.0] == pytest.approx(values, abs=1e-5)
    assert losses[0.25] == pytest.approx(0.75 * names + 0.25 * values, abs=1e-5)


def test_a_batch_of_which_nothing_is_known_has_no_loss() -> None:
    known = np.full((2, LEAVES + 2), UNKNOWN, np.int8)
    known[:, :LEAVES] = 0
    module = module_for(known)
    loss = module.loss(torch.randn(2, LEAVES + VALUES, requires_grad=True), torch.from_numpy(known))
    assert loss.item() == 0


def test_values_are_scored_where_they_are_known() -> None:
    logits = np.zeros((3, VALUES))
    logits[[0, 1, 2], [2, 2, 5]] = 1
    truth = np.array([[2, UNKNOWN], [UNKNOWN, UNKNOWN], [0, UNKNOWN]], np.int8)
    # nucleus shape: "segmented-multilobed" right, "irregular" taken for something else
    assert value_macro_f1(logits, truth, LABELS) == {SHAPE.column: pytest.approx(0.5)}


# -- from end to end ------------------------------------------------------------------------------


def test_a_training_ends_in_a_bundle_that_describes(data: Dataset, tmp_path: Path) -> None:
    own = settings(attribute_loss="asymmetric", tuning_share=0.4, attribute_wrong=0.5, attribute_balance=0.5)
    bundle = train(own, data, tmp_path / "run", progress=False).bundle
    output = bundle.info.attribute_output
    assert output is not None
    assert output.outputs == "sigmoid"  # as it was learnt
    assert set(output.temperature) == set(output.sure) == {SHAPE.column, GRAINS.column}
    assert "lymphocyte" in output.kinds
    history = pl.read_parquet(tmp_path / "run" / "history.parquet")
    assert {"f1_names", "f1_attributes", f"f1 {SHAPE.column}"} <= set(history.columns)
    mean = (history["f1_names"][0] + history["f1_attributes"][0]) / 2
    assert history["score"][0] == pytest.approx(mean, abs=1e-6)
    found = predict_images(Predictor(bundle), data.images.rows()).cells
    assert len(found) == 30
    table = found.attribute_probabilities(SHAPE.column)
    assert table.sum(axis=1) == pytest.approx(np.ones(30), abs=1e-5)
    for row, value in zip(table, found.attribute_values(SHAPE.column), strict=True):
        sure = row.max() >= output.sure[SHAPE.column]
        assert value == (SHAPE.values[int(row.argmax())] if sure else None)
    assert bundle.self_test().passed


@pytest.mark.parametrize("loss", ["cross-entropy", "asymmetric"])
def test_a_bottleneck_reads_names_from_attributes_and_the_bundle_knows_how(
    loss: str, data: Dataset, tmp_path: Path
) -> None:
    own = settings(concepts="joint", attribute_loss=loss, tuning_share=0.4, output={"views": 4})
    bundle = train(own, data, tmp_path / "run", progress=False).bundle
    assert bundle.info.architecture["concepts"] == "joint"
    reader = concepts_of(bundle)
    assert reader is not None
    layer, labels = reader
    assert layer.weights.shape == (LEAVES, VALUES)
    assert ((layer.mean > 0) & (layer.mean < 1)).all()
    found = predict_images(Predictor(bundle), data.images.rows())
    assert found.concepts is not None
    # What the layer says of the concepts is what the cells are called, at the temperature that was learnt.
    output = bundle.info.classify_output
    assert output is not None
    logits = found.concepts @ layer.weights.T + layer.bias
    expected = classify.probabilities(logits, output.temperature)
    assert found.cells.probabilities() == pytest.approx(expected, abs=1e-3)
    assert labels.attributes == (SHAPE, GRAINS)
    assert len(spoken_for_names(found.cells, found.concepts, bundle)) <= 30


def test_a_bottleneck_needs_attributes() -> None:
    with pytest.raises(SettingError, match="concepts = joint: there are no attributes to read names from"):
        settings(concepts="joint", attributes=[])


def test_with_a_single_name_only_attributes_are_learnt(data: Dataset, tmp_path: Path) -> None:
    own = settings(labels=["leukocyte"], tuning_share=0.4)
    bundle = train(own, data, tmp_path / "run", progress=False).bundle
    history = pl.read_parquet(tmp_path / "run" / "history.parquet")
    assert history["score"][0] == pytest.approx(history["f1_attributes"][0], abs=1e-6)
    found = predict_images(Predictor(bundle), data.images.rows()[:3]).cells
    output = bundle.info.attribute_output
    assert output is not None
    assert (output.outputs, output.sure) == ("softmax", {})
    assert found.label_names() == ["leukocyte"] * 3
    assert found.frame[GRAINS.column].is_not_null().all()  # a value is always given, unless settings say otherwise
