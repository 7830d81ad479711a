"""What a recipe's steps do, each on a little real or rendered data."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from cytolens.boxes import non_maximum_suppression
from cytolens.bundle import Bundle
from cytolens.bundle import write as write_bundle
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate import read_found
from cytolens.image_files import load_image
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.predict.blend import tuned_weights
from cytolens.predict.fuse import FuseSettings
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.prepare.synthetic import write_synthetic
from cytolens.problems import DatasetError, SettingError
from cytolens.run.packing import pack_ensemble
from cytolens.run.step_kinds import STEPS
from tests.predict.doubles import SMALL, ColourEyes, FixedNames, connect, detecting, naming, painted, rendered

FLAT = LabelSet.shipped("cytologia").flat()
KINDS = ("PNN", "LY", "MO")


def done(do: str, out: Path, /, **settings: Any) -> dict[str, Any]:
    """What a step says of itself after it filled a folder."""
    out.mkdir(parents=True, exist_ok=True)
    step = STEPS[do].model_validate(settings)
    step.check()
    return step.run(out, lambda _: None)


# -- data -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen real photographs of single cells, one of them twice, in the layout of the challenge."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "images").mkdir()
    rows = []
    for code, word in (("SNE", "PNN"), ("LY", "LY")):
        for file in sorted((data_root / "pbc" / "images").glob(f"{code}_*.jpg"))[:8]:
            shutil.copy(file, folder / "images")
            rows.append([file.name, 100, 100, 260, 260, word])
    shutil.copy(folder / "images" / rows[0][0], folder / "images" / "again.jpg")
    rows.append(["again.jpg", 100, 100, 260, 400, "PNN"])  # and its box goes beyond the edge
    for name, header, table in (
        ("train.csv", ["NAME", "x1", "y1", "x2", "y2", "class"], rows),
        ("test.csv", ["trustii_id", "NAME"], [[1, "again.jpg"], [2, "again.jpg"], [3, rows[1][0]]]),
    ):
        with (folder / name).open("w", newline="") as stream:
            csv.writer(stream).writerows([header, *table])
    return folder


@pytest.fixture(scope="module")
def imported(photographs: Path) -> Path:
    """The photographs as a dataset."""
    out = photographs / "imported"
    said = done(
        "import", out, source=photographs / "train.csv", images=photographs / "images", format="csv_boxes",
        labels="cytologia", flat=True, name="c",
    )  # fmt: skip
    assert (said["images"], said["cells"]) == (17, 17)
    return out


@pytest.mark.data
def test_import_takes_labels_and_a_condition(photographs: Path, imported: Path, tmp_path: Path) -> None:
    dataset = Dataset.read(imported)
    assert (dataset.name, dataset.labels) == ("c", FLAT)
    assert dataset.cells.frame["label"].cast(pl.String).value_counts(sort=True).rows() == [("PNN", 9), ("LY", 8)]
    settings = {"source": photographs / "train.csv", "images": photographs / "images", "format": "csv_boxes"}
    done("import", tmp_path, **settings, where="image_id = 'images/again.jpg'")
    assert Dataset.read(tmp_path).images.ids == ["images/again.jpg"]
    with pytest.raises(DatasetError, match=r'no image of .*train\.csv meets "image_id = \'a\'"'):
        done("import", tmp_path, **settings, where="image_id = 'a'")


@pytest.mark.data
def test_images_are_all_or_those_of_a_list(photographs: Path, tmp_path: Path) -> None:
    assert done("images", tmp_path / "all", folder=photographs / "images") == {"images": 17, "cells": 0}
    listed = {"folder": photographs / "images", "listed": photographs / "test.csv"}
    assert done("images", tmp_path / "some", **listed)["images"] == 2
    assert Dataset.read(tmp_path / "some").images.ids[0] == "again.jpg"
    with pytest.raises(DatasetError, match=r'test\.csv: no column "FILE"; its columns: trustii_id, NAME'):
        done("images", tmp_path / "none", **listed, column="FILE")
    (tmp_path / "lost.csv").write_text("NAME\nagain.jpg\nlost.jpg\n")
    with pytest.raises(DatasetError, match=r"1 images that .*lost\.csv names are not there: lost\.jpg"):
        done("images", tmp_path / "none", folder=photographs / "images", listed=tmp_path / "lost.csv")


@pytest.mark.data
def test_duplicates_repair_split_and_fraction(imported: Path, tmp_path: Path) -> None:
    ids = Dataset.read(imported).images.ids
    first = min(name for name in ids if "SNE" in name)
    assert done("duplicates", tmp_path / "grouped", dataset=imported)["duplicates"] == 1
    grouped = dict(Dataset.read(tmp_path / "grouped").images.frame.select("image_id", "group").iter_rows())
    assert grouped[first] == grouped["images/again.jpg"] is not None
    assert [name for name in ids if grouped[name] == grouped[first] and name not in (first, "images/again.jpg")] == []
    dropped = done("duplicates", tmp_path / "dropped", dataset=imported, drop=True)
    assert dropped == {"images": 16, "cells": 16, "duplicates": 1}
    assert done("repair", tmp_path / "mended", dataset=tmp_path / "grouped")["changes"] >= 1
    mended = Dataset.read(tmp_path / "mended")
    low = dict(mended.images.frame.select("image_id", "height_px").iter_rows())
    assert all(y <= low[i] for i, y in mended.cells.frame.select("image_id", "y_max").iter_rows())
    assert done("split", tmp_path / "folds", dataset=tmp_path / "mended", folds=2, seed=3)["images"] == 17
    folds = dict(Dataset.read(tmp_path / "folds").images.frame.select("image_id", "fold").iter_rows())
    assert set(folds.values()) == {0, 1}
    assert folds[first] == folds["images/again.jpg"]
    part = done("fraction", tmp_path / "part", dataset=tmp_path / "folds", share=0.5, seed=1)
    assert 6 <= part["images"] <= 10
    assert set(Dataset.read(tmp_path / "part").images.ids) < set(folds)


@pytest.mark.data
def test_backgrounds_have_no_cell_and_keep_their_fold(imported: Path, tmp_path: Path) -> None:
    done("split", tmp_path / "folds", dataset=imported, folds=2)
    done("backgrounds", tmp_path / "bare", dataset=tmp_path / "folds", seed=1)
    bare, source = Dataset.read(tmp_path / "bare"), Dataset.read(tmp_path / "folds")
    assert len(bare.cells) == 0
    assert 10 <= len(bare.images) <= 17
    assert set(bare.images.frame["fold"]) <= set(source.images.frame["fold"])
    row = bare.images.frame.row(0, named=True)
    assert load_image(row["path"]).pixels.shape == (row["height_px"], row["width_px"], 3)


@pytest.mark.data
def test_red_cells_around_it_do_not_keep_a_cell_from_being_the_only_one(imported: Path, tmp_path: Path) -> None:
    done("predict", tmp_path / "found", dataset=imported, bundle=Path("smear-detector"))
    kinds = read_found(tmp_path / "found")[0].frame["label"].unique()
    assert "erythrocyte" in kinds
    told = done("backgrounds", tmp_path / "bare", dataset=imported, found=[tmp_path / "found"])
    assert told["images"] >= 4  # the others have platelets, which are a kind of the dataset


@pytest.mark.data
@pytest.mark.torch
@pytest.mark.slow
def test_a_very_small_training_leaves_a_bundle_that_predicts(imported: Path, tmp_path: Path) -> None:
    settings = {
        "name": "tiny", "model": "resnet18", "input": {"side_px": 64}, "tuning_share": 0.3, "split": "",
        "optimise": {"epochs": 1, "closing_epochs": 0, "batch": 4, "warmup_epochs": 0},
        "hardware": {"accelerator": "cpu", "workers": 0, "threads": 1},
    }  # fmt: skip
    said = done("train", tmp_path / "run", task="classify", data=[imported], settings=settings)
    bundle = Bundle.load(tmp_path / "run")
    assert (said["bundle"], bundle.name, bundle.info.task) == (bundle.hash, "tiny", "classify")
    named = done("predict", tmp_path / "named", dataset=imported, bundle=tmp_path / "run", boxes=[imported], jobs=1)
    assert (named["images"], named["cells"]) == (17, 17)
    again = done("train", tmp_path / "run", task="classify", data=[imported], settings=settings)
    assert again == said  # what is finished is left as it is


# -- rendered fields, looked at by the shipped bundles --------------------------------------------


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rendered fields in two folds."""
    folder = tmp_path_factory.mktemp("fields")
    write_synthetic(folder / "drawn", 4, 1, SMALL, fields_per_slide=1)
    done("split", folder / "folds", dataset=folder / "drawn", folds=2)
    return folder / "folds"


@pytest.fixture(scope="module")
def found(fields: Path) -> list[Path]:
    """What the shipped detector finds in each fold."""
    places = [fields.parent / f"found-{fold}" for fold in (0, 1)]
    for fold, place in enumerate(places):
        settings = {"where": f"fold = {fold}", "jobs": 1}
        assert done("predict", place, dataset=fields, bundle="smear-detector", **settings)["images"] == 2
    return places


def test_predict_looks_at_one_fold_and_names_given_boxes(fields: Path, found: list[Path], tmp_path: Path) -> None:
    folds = dict(Dataset.read(fields).images.frame.select("image_id", "fold").iter_rows())
    cells, images = read_found(found[1])
    assert images is not None
    assert {folds[i] for i in images.ids} == {1}
    settings = {"where": "fold = 1", "boxes": found, "jobs": 1}
    done("predict", tmp_path, dataset=fields, bundle="wbc-classifier", **settings)
    named, _ = read_found(tmp_path)
    np.testing.assert_array_equal(named.boxes(), cells.boxes())
    assert "lymphocyte" in named.labels
    counted = cells.frame["counted"].to_numpy()
    assert not np.isnan(named.probabilities()[counted]).any()


def test_fuse_with_itself_keeps_what_counts(found: list[Path], tmp_path: Path) -> None:
    shutil.copytree(found[0], tmp_path / "copy")
    cells, _ = read_found(found[0])
    done("fuse", tmp_path / "fused", members=[found[0], tmp_path / "copy"], settings={"by": "label"})
    fused, images = read_found(tmp_path / "fused")
    assert images is not None
    assert len(images) == 2
    counted = [one.filter(pl.col("counted")) for one in (cells, fused)]
    # Boxes that fusing takes for one cell become one; the detector's own limit is a little wider.
    once = [non_maximum_suppression(own.boxes(), own.scores(), FuseSettings().iou) for _, own in counted[0].by_image()]
    assert sum(map(len, once)) == len(counted[1]) > 5


def test_crops_are_findings_with_the_names_of_the_truth(fields: Path, found: list[Path], tmp_path: Path) -> None:
    truth = Dataset.read(fields)
    said = done("crops", tmp_path / "crops", dataset=fields, found=found, background="Background")
    crops = Dataset.read(tmp_path / "crops")
    assert said["annotated"] == len(truth.cells)
    assert {*truth.labels.names, "Background"} == set(crops.labels.names)
    assert len(crops.cells) > 0.7 * len(truth.cells)
    names = dict(truth.cells.frame.select("cell_id", pl.col("label").cast(pl.String)).iter_rows())
    own = crops.cells.frame.select("cell_id", pl.col("label").cast(pl.String)).rows()
    assert all(names.get(cell_id, "Background") == label for cell_id, label in own)
    with pytest.raises(SettingError, match="two of the predictions looked at the same image"):
        done("crops", tmp_path / "twice", dataset=fields, found=[found[0], found[0]])


def test_one_more_name(fields: Path, tmp_path: Path) -> None:
    done("name-label", tmp_path, dataset=fields, label="Background")
    before, after = Dataset.read(fields), Dataset.read(tmp_path)
    assert after.labels.names == (*before.labels.names, "Background")
    assert after.cells.label_names() == before.cells.label_names()


def test_noise_doubts_a_cell_that_nobody_finds(fields: Path, tmp_path: Path) -> None:
    truth = Dataset.read(fields)
    lost = truth.cells.frame["cell_id"][0]
    others = truth.cells.frame.filter(pl.col("cell_id") != lost)
    seen = Cells(others.with_columns(score=pl.lit(0.9, pl.Float32), counted=pl.lit(True)), truth.labels)
    place = left(tmp_path / "seen", seen, truth.images)
    settings = {"found": [place], "most": 1.0}
    said = done("noise", tmp_path / "ignored", dataset=fields, **settings)
    ignored = Dataset.read(tmp_path / "ignored").cells.frame.filter(pl.col("ignore"))["cell_id"].to_list()
    already = truth.cells.frame.filter(pl.col("ignore"))["cell_id"].to_list()
    assert set(ignored) == {*already, lost}
    assert said["doubts"]["not found"] == 1
    left_out = done("noise", tmp_path / "left-out", dataset=fields, how="leave out", **settings)
    assert left_out["images"] == 3
    assert done("noise", tmp_path / "kept", dataset=fields, how="keep", **settings)["images"] == 4
    assert Dataset.read(tmp_path / "kept").cells.frame.equals(truth.cells.frame)


# -- named cells, out of fold ---------------------------------------------------------------------

COUNT = 30


def left(folder: Path, cells: Cells, images: Images) -> Path:
    """A folder as a prediction leaves it."""
    folder.mkdir(parents=True)
    cells.write_parquet(folder / "cells.parquet")
    images.frame.write_parquet(folder / "images.parquet")
    return folder


def names_of(truth: NDArray[np.int64]) -> list[str]:
    return [KINDS[i] for i in truth]


def written_truth(folder: Path, answer: NDArray[np.int64]) -> Path:
    """One cell in each of thirty images, in three folds."""
    rows = [
        {"image_id": f"{i:02d}.jpg", "path": f"/no/{i}.jpg", "width_px": 100, "height_px": 100, "fold": i % 3,
         "sha256": f"{i:064x}"}
        for i in range(COUNT)
    ]  # fmt: skip
    ids = [row["image_id"] for row in rows]
    cells = Cells.of(FLAT, image_id=ids, boxes=[(10, 10, 60, 60)] * COUNT, label=names_of(answer), source="human:a")
    Dataset(Images.of(rows), cells, "truth").write(folder)
    return folder


def shares(answer: NDArray[np.int64], seed: int, sharp: float) -> NDArray[np.float32]:
    """Probabilities over all leaves (N, K) that favour the right one of three by `sharp`."""
    random = np.random.default_rng(seed)
    logits = np.full((COUNT, len(FLAT.leaves)), -8.0)
    columns = [FLAT.leaves.index(name) for name in KINDS]
    logits[:, columns] = random.normal(0, 1.5, (COUNT, 3))
    logits[np.arange(COUNT), np.array(columns)[answer]] += sharp
    raised = np.exp(logits)
    return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)


def member(folder: Path, truth: Path, table: NDArray[np.float32], score: float = 0.8) -> Path:
    """A classifier's answer for the boxes of the truth."""
    dataset = Dataset.read(truth)
    cells = Cells.of(
        FLAT,
        image_id=dataset.images.ids,
        boxes=[(10, 10, 60, 60)] * COUNT,
        label=[FLAT.leaves[i] for i in table.argmax(axis=1)],
        source="bundle:m@1",
        score=[score] * COUNT,
        probabilities=table,
        counted=[True] * COUNT,
    )
    return left(folder, cells, dataset.images)


ANSWER = np.arange(COUNT) // 3 % 3


@pytest.fixture
def named(tmp_path: Path) -> tuple[Path, dict[str, Path], list[NDArray[np.float32]]]:
    """The truth, two classifiers' answers, and their tables."""
    truth = written_truth(tmp_path / "truth", ANSWER)
    tables = [shares(ANSWER, 1, 1.0), shares(ANSWER, 2, 1.2)]
    members = {name: member(tmp_path / name, truth, one) for name, one in zip("ab", tables, strict=True)}
    return truth, members, tables


def weights_used(blended: Path, tables: list[NDArray[np.float32]], fold: int) -> NDArray[np.float64]:
    """The weights that a fold's cells were blended with, worked out from what came of it.

    log p is (Σ w · log p_member) / T and a constant: least squares give w / T, and the weights sum to 1.
    """
    cells, _ = read_found(blended)
    here = np.arange(COUNT) % 3 == fold
    columns = [FLAT.leaves.index(name) for name in KINDS]
    logs = [np.log(np.maximum(one.astype(float), 1e-12))[here][:, columns] for one in (*tables, cells.probabilities())]
    *given, came = [(one - one.mean(axis=1, keepdims=True)).ravel() for one in logs]
    found = np.linalg.lstsq(np.stack(given, axis=1), came, rcond=None)[0]
    return found / found.sum()


def test_each_fold_is_blended_with_weights_that_were_tuned_without_it(
    named: tuple[Path, dict[str, Path], list[NDArray[np.float32]]], tmp_path: Path
) -> None:
    truth, places, tables = named
    members = {name: [place] for name, place in places.items()}
    said = done("blend", tmp_path / "blend", truth=truth, members=members)
    columns = [FLAT.leaves.index(name) for name in KINDS]
    answer, fold = np.array(columns)[ANSWER], np.arange(COUNT) % 3
    logs = np.log(np.maximum(np.stack(tables), 1e-12))
    for name in range(3):
        other = fold != name
        wanted = tuned_weights(logs[:, other], answer[other]).weights
        np.testing.assert_allclose(weights_used(tmp_path / "blend", tables, name), wanted, atol=2e-3)
    assert json.loads((tmp_path / "blend" / "blend.json").read_text()) == said
    assert said["cells"] == COUNT
    assert list(said["weights"].values()) == pytest.approx(tuned_weights(logs, answer).weights.tolist(), abs=1e-6)
    # Other names in fold 0 change what the other folds are blended with, and not what fold 0 is.
    changed = np.where(fold == 0, (ANSWER + 1) % 3, ANSWER)
    other_truth = written_truth(tmp_path / "other", changed)
    done("blend", tmp_path / "again", truth=other_truth, members=members)
    before = [weights_used(tmp_path / "blend", tables, name) for name in range(3)]
    after = [weights_used(tmp_path / "again", tables, name) for name in range(3)]
    np.testing.assert_allclose(after[0], before[0], atol=2e-3)
    assert max(np.abs(after[name] - before[name]).max() for name in (1, 2)) > 0.02


def test_equal_weights_are_equal(
    named: tuple[Path, dict[str, Path], list[NDArray[np.float32]]], tmp_path: Path
) -> None:
    truth, places, tables = named
    members = {name: [place] for name, place in places.items()}
    said = done("blend", tmp_path / "blend", truth=truth, members=members, method="equal")
    assert said["weights"] == {"a": 0.5, "b": 0.5}
    for fold in range(3):
        np.testing.assert_allclose(weights_used(tmp_path / "blend", tables, fold), [0.5, 0.5], atol=2e-3)


def test_members_of_other_boxes_or_in_another_order_are_refused(
    named: tuple[Path, dict[str, Path], list[NDArray[np.float32]]], tmp_path: Path
) -> None:
    truth, places, _ = named
    cells, images = read_found(places["b"])
    assert images is not None
    turned = left(tmp_path / "turned", Cells(cells.frame.reverse(), FLAT), images)
    moved = left(tmp_path / "moved", cells.with_boxes(cells.boxes() + 1), images)
    for place in (turned, moved):
        with pytest.raises(DatasetError, match='the member "b" named other boxes, or in other labels, than the first'):
            done("blend", tmp_path / "blend", truth=truth, members={"a": [places["a"]], "b": [place]})
    assert not (tmp_path / "blend" / "blend.json").exists()


def test_the_threshold_is_the_largest_of_the_best(tmp_path: Path) -> None:
    truth = written_truth(tmp_path / "truth", ANSWER)
    place = member(tmp_path / "found", truth, shares(ANSWER, 1, 30.0))
    cells, images = read_found(place)
    assert images is not None
    false = cells.with_boxes(cells.boxes() + 35).frame.with_columns(
        score=pl.lit(0.3, pl.Float32), cell_id=pl.col("cell_id") + "-false"
    )
    both = left(tmp_path / "both", Cells(pl.concat([cells.frame, false]), FLAT), images)
    said = done("threshold", tmp_path / "chosen", truth=truth, found=both)
    assert said == {"threshold": 0.8, "strict_macro_f1": pytest.approx(1.0)}
    curve = pl.read_csv(tmp_path / "chosen" / "curve.csv")
    assert curve["threshold"].to_list() == pytest.approx([n / 100 for n in range(5, 96)])
    at = dict(curve.iter_rows())
    # Below 0.3 a false finding stands beside every right one: F1 is 2·1 / (2·1 + 1).
    assert (at[0.3], at[0.31], at[0.9]) == pytest.approx((2 / 3, 1.0, 0.0))
    counted, _ = read_found(tmp_path / "chosen")
    assert counted.frame["counted"].to_list() == [True] * COUNT + [False] * COUNT


def test_comparison_names_the_best(
    named: tuple[Path, dict[str, Path], list[NDArray[np.float32]]], tmp_path: Path
) -> None:
    truth, places, tables = named
    right = member(tmp_path / "right", truth, shares(ANSWER, 3, 30.0))
    answers = {"a": [places["a"]], "right": [right]}
    said = done("compare", tmp_path / "compared", truth=truth, answers=answers, baseline="a", title="Who is right?")
    assert said == {"answers": 2, "cells": COUNT, "best": "right", "macro_f1": 1.0}
    rows = {row["name"]: row for row in pl.read_csv(tmp_path / "compared" / "comparison.csv").to_dicts()}
    accuracy = np.mean([FLAT.leaves[i] == KINDS[k] for i, k in zip(tables[0].argmax(axis=1), ANSWER, strict=True)])
    assert rows["a"]["accuracy"] == pytest.approx(accuracy, abs=1e-5)
    assert rows["right"]["difference"] == pytest.approx(1 - rows["a"]["macro_f1"], abs=2e-5)
    assert "Who is right?" in (tmp_path / "compared" / "comparison.html").read_text()


def test_a_submission_is_read_back(tmp_path: Path) -> None:
    truth = written_truth(tmp_path / "truth", ANSWER)
    place = member(tmp_path / "found", truth, shares(ANSWER, 1, 30.0))
    (tmp_path / "test.csv").write_text("trustii_id,NAME\n7,04.jpg\n8,00.jpg\n9,04.jpg\n")
    said = done("submission", tmp_path / "handed-in", found=place, test=tmp_path / "test.csv")
    assert said == {"rows": 3, "expected_counts": "not used"}
    assert (tmp_path / "handed-in" / "submission.csv").read_text().splitlines() == [
        "trustii_id,NAME,x1,y1,x2,y2,class",
        "7,04.jpg,10,10,60,60,LY",
        "8,00.jpg,10,10,60,60,PNN",
        "9,04.jpg,10,10,60,60,LY",
    ]


def test_pseudo_labels_are_sure_single_cells(tmp_path: Path) -> None:
    truth = written_truth(tmp_path / "truth", ANSWER)
    table = shares(ANSWER, 1, 30.0)
    table[:10] = shares(ANSWER, 1, -30.0)[:10] * 0.5 + table[:10] * 0.5  # not sure of the first ten
    place = member(tmp_path / "found", truth, table, score=0.95)
    cells, images = read_found(place)
    assert images is not None
    second = cells.with_boxes(cells.boxes() + 35).frame.with_columns(cell_id=pl.col("cell_id") + "-2").tail(4)
    both = left(tmp_path / "both", Cells(pl.concat([cells.frame, second]), FLAT), images)
    assert done("pseudo-labels", tmp_path / "pseudo", found=both) == {"images": 16, "of": 30}
    pseudo = Dataset.read(tmp_path / "pseudo")
    assert pseudo.images.ids == [f"{i:02d}.jpg" for i in range(10, 26)]
    assert pseudo.cells.label_names() == names_of(ANSWER[10:26])
    assert set(pseudo.cells.frame["source"]) == {"pseudo:1"}
    assert pseudo.images.frame["fold"].is_null().all()


# -- bundles --------------------------------------------------------------------------------------


def test_an_ensemble_of_two_copies_is_the_single_pipeline(tmp_path: Path) -> None:
    runs: dict[str, Path] = {}
    for name, shipped in (
        ("d1", "smear-detector"),
        ("d2", "smear-detector"),
        ("c1", "wbc-classifier"),
        ("c2", "wbc-classifier"),
    ):
        one = Bundle.load(shipped)
        files: dict[str, Path | bytes] = {file: one.folder / file for file in one.info.files}
        runs[name] = write_bundle(tmp_path / "runs" / name, one.info.model_copy(update={"name": name}), files).folder
    classifiers = {"c": [runs["c1"], runs["c2"]]}
    detectors = [runs["d1"], runs["d2"]]
    said = done("pack", tmp_path / "pack", detectors=detectors, classifiers=classifiers, fusion={"iou": 0.6})
    both = Bundle.load(tmp_path / "pack")
    assert said == {"hash": both.hash, "members": 4}
    assert (both.info.weights, both.info.fusion.iou if both.info.fusion else 0) == ({"c1": 0.5, "c2": 0.5}, 0.6)
    assert both.self_test().passed
    single = pack_ensemble([runs["d1"]], {"c": [runs["c1"]]}, tmp_path / "single" / "bundle", name="single")
    pixels, settings = rendered(3).pixels, PredictSettings(tta="none")
    one, two = (Predictor(bundle, settings).field(pixels) for bundle in (single, both))
    kept = [np.lexsort((cells.boxes[:, 0], -cells.scores)) for cells in (one, two)]
    kept = [order[cells.counted[order]] for order, cells in zip(kept, (one, two), strict=True)]
    assert len(kept[0]) == len(kept[1]) > 5
    for field in ("boxes", "scores", "probabilities"):
        np.testing.assert_allclose(getattr(two, field)[kept[1]], getattr(one, field)[kept[0]], atol=1e-5, rtol=1e-5)
    assert [two.labels[i] for i in kept[1]] == [one.labels[i] for i in kept[0]]
    assert not np.isnan(one.probabilities[kept[0]]).all()


def test_what_was_learnt_from_the_blend_goes_into_the_bundle(tmp_path: Path) -> None:
    for place, said in (
        (tmp_path / "blend" / "blend.json", {"weights": {"c": 0.7}, "sure": 0.6, "temperature": 1.5}),
        (tmp_path / "at" / "threshold.json", {"threshold": 0.35}),
    ):
        place.parent.mkdir()
        place.write_text(json.dumps(said))
    done(
        "pack", tmp_path / "pack", detectors=["smear-detector"], classifiers={"c": ["wbc-classifier"]},
        blend=tmp_path / "blend", threshold=tmp_path / "at", name="e", description="Two.",
    )  # fmt: skip
    info = Bundle.load(tmp_path / "pack").info
    assert (info.name, info.description, info.weights) == ("e", "Two.", {"wbc-classifier": 0.7})
    assert info.classify_output is not None
    assert (info.classify_output.sure, info.classify_output.temperature) == (0.6, 1.5)
    assert info.detect_output is not None
    assert set(info.detect_output.thresholds.values()) == {0.35}
    members = {path.name for path in (tmp_path / "pack").iterdir()}
    assert members == {"bundle", "smear-detector", "wbc-classifier"}


@pytest.mark.parametrize(("temperature", "wanted"), [(None, 0.8), (1.0, 0.8), (2.0, 2 / 3)])
def test_the_temperature_of_a_blend_counts_once_and_for_one_member_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, temperature: float | None, wanted: float
) -> None:
    # The member says 16 : 1, and 4 : 1 at its own temperature of 2; at 2 once more that is 2 : 1.
    connect(monkeypatch, eyes=ColourEyes(), names=FixedNames([0.0, 0.0, 16 / 17, 1 / 17]))
    described = (detecting(tmp_path), naming(tmp_path, temperature=2.0))
    eyes, names = (write_bundle(tmp_path / "runs" / one.name, one.info, {}).folder for one in described)
    out = tmp_path / "packed" / "both"
    bundle = pack_ensemble([eyes], {"names": [names]}, out, name="both", temperature=temperature)
    cells = Predictor(bundle).field(painted((416, 320), [("leukocyte", 100, 100, 30)]))
    shares = dict(zip(bundle.labels.leaves, cells.probabilities[0].tolist(), strict=True))
    assert shares["lymphocyte"] == pytest.approx(wanted, abs=0.01)


# -- whole images ---------------------------------------------------------------------------------


def test_whole_images_have_the_say_that_other_folds_gave_them(
    named: tuple[Path, dict[str, Path], list[NDArray[np.float32]]], tmp_path: Path
) -> None:
    truth, places, _ = named
    done("blend", tmp_path / "blend", truth=truth, members={"a": [places["a"]]}, method="equal")
    own = read_found(tmp_path / "blend")[0].probabilities().astype(float)
    said = np.full((COUNT, len(FLAT.leaves)), 0.01)
    said[np.arange(COUNT), [FLAT.leaves.index(name) for name in names_of(ANSWER)]] = 0.9  # always right
    fold = np.arange(COUNT) % 3
    folders = []
    for name in range(3):
        ids = [f"{i:02d}.jpg" for i in np.flatnonzero(fold == name)]
        frame = pl.DataFrame(said[fold == name], schema=dict.fromkeys(FLAT.leaves, pl.Float32), orient="row")
        folders.append(tmp_path / f"shares-{name}")
        folders[-1].mkdir()
        frame.insert_column(0, pl.Series("image_id", ids)).write_parquet(folders[-1] / "shares.parquet")
    told = done("image-blend", tmp_path / "both", truth=truth, blend=tmp_path / "blend", shares=folders)
    kept = json.loads((tmp_path / "both" / "blend.json").read_text())
    assert kept["weights"] == {"a": 1.0}
    assert kept["single_cells"] == COUNT
    assert told["single_macro_f1_nested"] == 1.0
    assert 0 <= told["cell_share"] < 1
    after = read_found(tmp_path / "both")[0]
    assert [FLAT.leaves[i] for i in after.probabilities().argmax(axis=1)] == names_of(ANSWER)
    for name in range(3):  # of each fold, one and the same share of the cells' own table
        here = fold == name
        change = after.probabilities()[here].astype(float)
        best = min(
            np.abs(mixed / mixed.sum(axis=1, keepdims=True) - change).max()
            for share in np.linspace(0, 1, 1001)
            for mixed in [share * own[here] + (1 - share) * said[here]]
        )
        assert best < 2e-3
    without = Dataset.read(truth)
    Dataset(without.images.with_columns(fold=None), without.cells, without.name).write(tmp_path / "unfolded")
    with pytest.raises(DatasetError, match="there are images without a fold; make folds with: cytolens split"):
        done("image-blend", tmp_path / "no", truth=tmp_path / "unfolded", blend=tmp_path / "blend", shares=folders)


@pytest.mark.data
def test_whole_images_are_asked_one_by_one(imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, whole=FixedNames([0.2, 0.2, 0.6]))
    from cytolens.bundle import BundleInfo
    from cytolens.tasks.classify import ClassifyInput, ClassifyOutput

    labels = LabelSet.of(["lymphocyte", "monocyte", "eosinophil"])
    info = BundleInfo(
        name="whole", task="classify", labels=labels.to_dict(), classify_input=ClassifyInput(side_px=64),
        classify_output=ClassifyOutput(outputs="sigmoid"),
    )  # fmt: skip
    write_bundle(tmp_path / "whole", info, {"model.onnx": b"not read here"})
    monkeypatch.setattr("cytolens.predict.session.session", lambda *_: FixedNames([0.2, 0.2, 0.6]))
    said = done("image-shares", tmp_path / "shares", dataset=imported, bundle=tmp_path / "whole")
    table = pl.read_parquet(tmp_path / "shares" / "shares.parquet")
    assert said == {"images": 17, "failed": 0}
    assert table.columns == ["image_id", *labels.leaves]
    expected = [1 / (1 + np.exp(-np.log(share))) for share in (0.2, 0.2, 0.6)]
    np.testing.assert_allclose(table.drop("image_id").to_numpy(), [expected] * 17, rtol=1e-5)


def test_a_prediction_of_images_that_all_cannot_be_read_is_no_result(fields: Path, tmp_path: Path) -> None:
    gone = Dataset.read(fields)
    Dataset(gone.images.with_columns(path="nowhere.png"), gone.cells, gone.name).write(tmp_path / "gone")
    (tmp_path / "out").mkdir()
    with pytest.raises(DatasetError, match=r"\d+ of \d+ images could not be read, first: .*nowhere\.png"):
        done("predict", tmp_path / "out", dataset=tmp_path / "gone", bundle=Path("smear-detector"))
    assert not (tmp_path / "out" / "cells.parquet").exists()
