"""A detector that describes, through the command line: what is trained is what predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytolens.bundle import Bundle, rewrite
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import load_image
from cytolens.labels import LabelSet, attribute_schema
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from tests.apps.speaking import say

pytestmark = [pytest.mark.slow, pytest.mark.torch]

SMALL = SyntheticSettings(
    width_px=128, height_px=96, red_cells=(2, 4), white_cells=(1, 2), platelets=(0, 1), red_cell_diameter_px=(24, 30),
    debris=(0, 1),
)  # fmt: skip
COLUMNS = ("wbcatt.cell_size", "wbcatt.nucleus_shape")
SETTINGS = (
    "input.side_px=96", "multi_scale=0", "tuning_share=0.3", "optimise.epochs=1", "optimise.closing_epochs=0",
    "optimise.batch=3", "augment.mosaic=1.0", "hardware.accelerator=cpu", "hardware.threads=1", "hardware.workers=0",
)  # fmt: skip


def trained(data: Path, run: Path, attributes: str, *more: str) -> list[str]:
    """The words of a training."""
    sets = [f"--set={one}" for one in (*SETTINGS, f"attributes={attributes}", *more)]
    return ["train", "detect", "--data", str(data), "--out", str(run), *sets]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine rendered fields that know their attributes."""
    folder = tmp_path_factory.mktemp("described") / "data"
    labels = LabelSet.of(("leukocyte", "erythrocyte", "platelet"), attribute_schema("wbcatt"))
    write_synthetic(folder, 9, 3, SMALL, fields_per_slide=1).relabel(labels, missing="drop").write(folder)
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """A training of one epoch, with a bundle that counts whatever it finds."""
    run = data.parent / "run"
    return of_one_epoch(data, run)


def of_one_epoch(data: Path, run: Path, *more: str) -> Path:
    answer = say(*trained(data, run, '["wbcatt.cell_size", "wbcatt.nucleus_shape"]', *more))
    assert answer.code == 0, answer.err
    bundle = Bundle.load(run)
    assert bundle.self_test().passed
    output = bundle.info.detect_output
    assert output is not None
    counted = output.model_copy(update={"thresholds": dict.fromkeys(bundle.labels.names, 0.0), "score_floor": 0.0})
    rewrite(bundle, bundle.info.model_copy(update={"detect_output": counted.model_copy(update={"most": 40})}))
    return run


def test_the_bundle_says_what_it_describes(run: Path) -> None:
    bundle = Bundle.load(run)
    assert {"model.onnx", "attributes.onnx", "weights.safetensors"} <= bundle.info.files.keys()
    assert tuple(attribute.column for attribute in bundle.labels.attributes) == COLUMNS
    assert bundle.info.attribute_output is not None
    assert set(bundle.info.attribute_output.kinds) == {"leukocyte"}  # nothing is known of red cells and platelets


def test_what_predicts_is_what_was_trained(run: Path, data: Path, tmp_path: Path) -> None:
    assert "attribute_scale" not in Bundle.load(run).info.architecture
    predicts_as_trained(run, data, tmp_path, told=0)


def test_so_it_is_where_sizes_are_told_in_red_cells(data: Path, tmp_path: Path) -> None:
    run = of_one_epoch(data, tmp_path / "run", "attribute_scale=red-cell")
    assert Bundle.load(run).info.architecture["attribute_scale"] == "red-cell"
    predicts_as_trained(run, data, tmp_path, told=2)
    answer = say(*trained(data, tmp_path / "other", '["wbcatt"]', "attribute_scale=micron"))
    assert "attribute_scale" in answer.complaint


def predicts_as_trained(run: Path, data: Path, tmp_path: Path, told: int) -> None:
    import torch

    from cytolens.models import catalog
    from cytolens.models.checkpoint import load_matching, read_state_dict
    from cytolens.models.regions import as_regions
    from cytolens.predict.describe import read_by
    from cytolens.tasks.cell_scale import box_scale_features
    from cytolens.tasks.detect import picture

    answer = say("predict", data, "--bundle", run, "--out", tmp_path / "found", "--format", "cells,csv", "--json")
    assert answer.code == 0, answer.err
    cells = Cells.read_parquet(tmp_path / "found" / "cells.parquet")
    white = cells.where(label="leukocyte")
    assert len(white) > 0
    assert white.frame[COLUMNS[0]].null_count() == 0
    others = cells.where(label=["erythrocyte", "platelet"])
    assert others.frame[COLUMNS[0]].null_count() == len(others)

    bundle = Bundle.load(run)
    network = catalog.detector("yolox-nano", 3, (2, 6), told=told)
    assert load_matching(network, read_state_dict(run / "weights.safetensors")) == ([], [])
    network.eval()
    assert network.attributes is not None
    assert bundle.info.detect_input is not None
    compared = 0
    for row in Dataset.read(data).images.rows()[:3]:
        found = white.of_image(row["image_id"])
        shown, view = picture(load_image(row["path"]).pixels, bundle.info.detect_input)
        with torch.no_grad():
            planes = torch.from_numpy(np.ascontiguousarray(shown[None, ..., ::-1].transpose(0, 3, 1, 2))).float()
            regions = as_regions([torch.from_numpy(view.forward_boxes(found.boxes()).astype(np.float32))])
            scales = None
            if told:
                assert row["um_per_px"] is not None
                scales = torch.from_numpy(box_scale_features(found.boxes(), 7.5 / row["um_per_px"]))
                assert (scales[:, 1] == 1).all()
            logits = network.attributes(network.look(planes)[1], regions, scales=scales).numpy()
        for column, table in read_by(bundle, logits).items():
            np.testing.assert_allclose(found.attribute_probabilities(column), table, atol=1e-4)
            compared += len(found)
    assert compared > 0


def test_a_prediction_is_written_and_scored(run: Path, data: Path, tmp_path: Path) -> None:
    assert say("predict", data, "--bundle", run, "--out", tmp_path / "found", "--format", "cells").code == 0
    written = say("export", tmp_path / "found", "--format", "attributes_csv", "--out", tmp_path / "cells.csv")
    assert written.code == 0, written.err
    header = (tmp_path / "cells.csv").read_text().splitlines()[0]
    assert "Cell Size" in header
    assert "Nucleus Shape" in header
    scored = say(
        "evaluate", "--truth", data, "--found", tmp_path / "found", "--task", "attributes", "--bootstrap", "0", "--json"
    )
    assert scored.code == 0, scored.err
    assert set(scored.json["per_attribute"]) >= {"cell_size", "nucleus_shape"}


def test_attributes_that_the_data_have_not_are_refused(data: Path, tmp_path: Path) -> None:
    answer = say(*trained(data, tmp_path / "run", '["leukemia_attri"]'))
    assert 'attributes = "leukemia_attri": the data have no such schema or column' in answer.complaint
    assert "attribute_head" in say(*trained(data, tmp_path / "run", '["wbcatt"]', "attribute_head=huge")).complaint
