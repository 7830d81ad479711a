"""The steps that outline cells with region networks, on drawn discs and networks that read darkness."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest

from cytolens import bundle as bundles
from cytolens import masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate import read_found
from cytolens.evaluate.outline_comparison import compare_outlines
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.predict.soft_outlines import soft_outline_files
from cytolens.problems import DatasetError, LabelError, SettingError
from cytolens.run.step_kinds import STEPS
from cytolens.tasks.segment import TRUNK_FILE, SegmentOutput
from tests.predict.region_doubles import KINDS, RegionEyes, connect, outlining

WH = (96, 64)
DISCS = ((20, 18, 9), (52, 30, 11), (78, 16, 8), (30, 46, 8))
OUTPUT = {"score_floor": 0.05, "box_nms_iou": 0.3, "proposals_kept": 60, "most": 20, "one_label": True}
GRID = {"mask_threshold": [0.2, 0.35], "mask_nms_iou": [0.1], "score_min": [0.1, 0.3, 0.5], "area_min_px": [0, 20]}
NETWORKS = ["sharp", "dull"]


def done(do: str, out: Path, /, **settings: Any) -> dict[str, Any]:
    """What a step says of itself after it filled a folder."""
    out.mkdir(parents=True, exist_ok=True)
    step = STEPS[do].model_validate(settings)
    step.check()
    return step.run(out, lambda _: None)


def refused(do: str, **settings: Any) -> str:
    """What is said of settings that are refused."""
    with pytest.raises(SettingError) as raised:
        STEPS[do].model_validate(settings).check()
    return str(raised.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of six images in two folds, and the bundles of two networks for each fold."""
    root = tmp_path_factory.mktemp("outlines")
    y, x = np.mgrid[: WH[1], : WH[0]] + 0.5
    rows, codes, ids = [], [], []
    for number in range(6):
        pixels, name = np.full((WH[1], WH[0], 3), 250, np.uint8), f"{number}.png"
        for at, (middle_x, middle_y, radius) in enumerate(DISCS[: 3 + number % 2]):
            disc = np.hypot(x - middle_x - number, y - middle_y) < radius
            pixels[disc] = 60 + 8 * at
            codes.append(masks.encode(disc))
            ids.append(name)
        cv2.imwrite(str(root / name), pixels)
        rows.append(
            {"image_id": name, "path": str(root / name), "width_px": WH[0], "height_px": WH[1]}
            | {"fold": number % 2, "group": f"well {number // 2}"}
        )
    cells = Cells.of(
        LabelSet.of(KINDS), image_id=ids, boxes=np.array([masks.bounds(code, WH[::-1]) for code in codes]),
        label=["round"] * len(ids), source="human:test", mask=codes,
    )  # fmt: skip
    Dataset(Images.of(rows), cells, "discs").write(root / "folds")
    for name in NETWORKS:
        for fold in range(2):
            info = outlining(f"{name}-{fold}").info
            bundles.write(root / f"{name}-{fold}" / "bundle", info, {TRUNK_FILE: b"eyes"})
    return root


@pytest.fixture(autouse=True)
def _eyes(monkeypatch: pytest.MonkeyPatch) -> None:
    _connect(monkeypatch)


def _connect(patch: pytest.MonkeyPatch) -> None:
    sharpness = {"sharp": 6.0, "dull": 3.0}
    connect(patch, **{f"{name}-{fold}": RegionEyes(sharpness=sharpness[name]) for name in NETWORKS for fold in (0, 1)})


def asked(made: Path, out: Path, fold: int, names: list[str], **settings: Any) -> dict[str, Any]:
    places = [made / f"{name}-{fold}" for name in names]
    given = {"bundles": places, "networks": names, "output": OUTPUT, "where": f"fold = {fold}"}
    return done("soft-outlines", out, dataset=made / "folds", **(given | settings))


@pytest.fixture(scope="module")
def answers(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Out-of-fold outlines, tuned cleaning and cells of each network and of both."""
    out = tmp_path_factory.mktemp("answers")
    with pytest.MonkeyPatch.context() as patch:
        _connect(patch)
        for answer, names in {"sharp": ["sharp"], "dull": ["dull"], "both": NETWORKS}.items():
            for fold in range(2):
                said = asked(made, out / f"{answer}-soft-{fold}", fold, names)
                assert said == {"images": 3, "failed": 0, "networks": len(names)}
            soft = [out / f"{answer}-soft-{fold}" for fold in range(2)]
            done(
                "tune-masks", out / f"{answer}-tuned", truth=made / "folds", soft=soft, bundles=[made / "sharp-0"],
                output=OUTPUT, grid=GRID,
            )  # fmt: skip
            done("clean-outlines", out / answer, soft=soft, tuned=out / f"{answer}-tuned", held_out=True)
    return out


# -- outlines -------------------------------------------------------------------------------------


def test_discs_are_outlined_out_of_fold(made: Path, answers: Path, tmp_path: Path) -> None:
    cells, images = read_found(answers / "both")
    assert images is not None
    assert sorted(images.ids) == [f"{number}.png" for number in range(6)]
    assert set(cells.frame["source"]) == {"ensemble"}
    said = done("evaluate", tmp_path, truth=made / "folds", found=[answers / "both"], task="sartorius")
    assert said["score"] > 0  # the doubles draw boxes that are too small, but see every disc
    assert (tmp_path / "report.html").exists()


def test_cells_of_a_fold_are_cleaned_by_what_was_tuned_without_it(answers: Path, tmp_path: Path) -> None:
    told = json.loads((answers / "both-tuned" / "cleaning.json").read_text())
    assert told["unit"] == "fold"
    assert [*told["held_out"]] == ["0", "1"]
    assert SegmentOutput.model_validate(told["output"]).one_label
    assert not (answers / "both-tuned" / "bundle").exists()  # one network is not the ensemble
    # Another setting for fold 1 changes its images, and no other.
    told["held_out"]["1"]["per_label"] = {name: {"score_min": 1.0} for name in KINDS}
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "cleaning.json").write_text(json.dumps(told))
    soft = [answers / f"both-soft-{fold}" for fold in range(2)]
    done("clean-outlines", tmp_path / "out", soft=soft, tuned=tmp_path / "tuned", held_out=True)
    before, after = read_found(answers / "both")[0].frame, read_found(tmp_path / "out")[0].frame
    even = pl.col("image_id").is_in(["0.png", "2.png", "4.png"])
    assert after.filter(even).equals(before.filter(even))
    assert not after.filter(~even)["counted"].any()
    done("clean-outlines", tmp_path / "one", soft=soft, tuned=tmp_path / "tuned", fold=1)
    assert not read_found(tmp_path / "one")[0].frame["counted"].any()
    with pytest.raises(DatasetError, match="nothing was tuned without fold 7; there are 0, 1"):
        done("clean-outlines", tmp_path / "none", soft=soft, tuned=tmp_path / "tuned", fold=7)


def test_a_network_is_compared_with_the_ensemble_on_the_same_images(made: Path, answers: Path, tmp_path: Path) -> None:
    said = done(
        "compare-outlines", tmp_path, truth=made / "folds", ensemble=[answers / "both"],
        members=[answers / "sharp", answers / "dull"], networks=NETWORKS, more={"again": [answers / "sharp"]},
    )  # fmt: skip
    assert (said["images"], said["interval_unit"], said["groups"]) == (6, "group", 3)
    low, high = said["gain_score_interval"]
    assert low <= said["gain_score"] <= high
    table = {row["name"]: row for row in csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines())}
    assert [*table] == ["ensemble", "sharp", "dull", "again"]
    better = max(NETWORKS, key=lambda name: float(table[name]["score"]))
    assert said["better_member"] == better
    gain = float(table["ensemble"]["score"]) - float(table[better]["score"])
    assert said["gain_score"] == pytest.approx(gain, abs=2e-5)
    assert table["again"]["score_difference"] == table["sharp"]["score_difference"]
    assert "Gain over the better member" in (tmp_path / "comparison.html").read_text()


def test_an_answer_beside_itself_differs_by_nothing(made: Path, answers: Path) -> None:
    truth, found = Dataset.read(made / "folds"), read_found(answers / "both")
    row = compare_outlines(truth, {"a": found, "b": found}, "a").frame.row(1, named=True)
    assert (row["score_difference"], row["score_difference_low"], row["score_difference_high"]) == (0, 0, 0)
    some = truth.images.where(fold=0)
    part = (found[0].filter(pl.col("image_id").is_in(some.ids)), some)
    with pytest.raises(DatasetError):
        compare_outlines(truth, {"a": found, "b": part}, "a")


def test_types_with_networks_of_their_own_are_outlined_by_them(made: Path, tmp_path: Path) -> None:
    first, plain = {"first": ["sharp"]}, tmp_path / "plain"
    asked(made, plain, 0, ["dull"])
    # What "sharp" calls the discs is outlined by "dull" alone.
    kind = read_kind(made, tmp_path)
    asked(made, tmp_path / "own", 0, NETWORKS, members={kind: ["dull"]}, **first)
    asked(made, tmp_path / "other", 0, NETWORKS, members={next(k for k in KINDS if k != kind): ["dull"]}, **first)
    asked(made, tmp_path / "sharp", 0, ["sharp"])
    content = {name: files(tmp_path / name) for name in ("plain", "own", "other", "sharp")}
    assert content["own"] == content["plain"] != content["sharp"]
    assert content["other"] == content["sharp"]
    with pytest.raises(LabelError, match="a set of networks is for one label"):
        asked(made, tmp_path / "none", 0, NETWORKS, members={"sphere": ["dull"]})


def read_kind(made: Path, folder: Path) -> str:
    asked(made, folder / "kind", 0, ["sharp"])
    done("clean-outlines", folder / "kinds", soft=[folder / "kind"], output=OUTPUT)
    (kind,) = set(read_found(folder / "kinds")[0].label_names())
    return str(kind)


def files(place: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in soft_outline_files(place / "soft").items()}


def test_the_packed_bundle_says_what_the_steps_say(
    made: Path, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cytolens.run.packing.make_exam", lambda bundle: bundle)  # doubles see no rendered fields
    places = [made / f"{name}-{fold}" for name in NETWORKS for fold in range(2)]
    given = {"bundles": places, "networks": NETWORKS, "tuned": answers / "both-tuned", "weights": {"dull": 0.5}}
    assert done("pack-outliners", tmp_path / "packed", **given)["members"] == 4
    packed = bundles.Bundle.load(tmp_path / "packed")
    assert packed.info.weights == {"dull-0": 0.5, "dull-1": 0.5}
    assert packed.info.scores["mask cleaning, out of fold"]["images"] == 6
    done("predict", tmp_path / "found", dataset=made / "folds", bundle=tmp_path / "packed")
    weighed = {"bundles": places, "networks": NETWORKS, "output": OUTPUT, "weights": {"dull": 0.5}}
    done("soft-outlines", tmp_path / "soft", dataset=made / "folds", **weighed)
    done("clean-outlines", tmp_path / "cells", soft=[tmp_path / "soft"], tuned=answers / "both-tuned")
    one, other = (read_found(tmp_path / name)[0].frame.drop("cell_id", "source") for name in ("found", "cells"))
    assert one.equals(other)
    only = {"members": {"round": ["dull"]}, "set": "round", "output_of": {"round": {"most": 7}}}
    assert done("pack-outliners", tmp_path / "round", **given, **only)["members"] == 2
    output = bundles.Bundle.load(tmp_path / "round").info.segment_output
    assert output is not None
    assert output.most == 7


def test_the_submission_has_a_row_for_every_cell(answers: Path, tmp_path: Path) -> None:
    said = done("sartorius-submission", tmp_path, found=[answers / "both"])
    rows = [*csv.reader((tmp_path / "submission.csv").read_text().splitlines())]
    assert rows[0] == ["id", "predicted"]
    assert sum(bool(code) for _, code in rows[1:]) == said["cells"] > 0
    assert {name for name, _ in rows[1:]} == {str(number) for number in range(6)}


def test_pseudo_outlines_are_told_by_teacher_and_score(answers: Path, tmp_path: Path) -> None:
    said = done("pseudo-outlines", tmp_path / "a", found=answers / "both", teacher="teacher-0", score_min=0.2)
    dataset = Dataset.read(tmp_path / "a")
    assert said["images"] == len(dataset.images) > 0
    assert set(dataset.cells.frame["source"]) == {"teacher-0"}
    assert dataset.cells.frame["score"].null_count() == 0
    assert dataset.images.frame["fold"].null_count() == len(dataset.images)
    with pytest.raises(DatasetError, match="no outlined cell has a score of 1 or more; lower score_min"):
        done("pseudo-outlines", tmp_path / "b", found=answers / "both", teacher="t", score_min=1.0)


# -- data -----------------------------------------------------------------------------------------


def test_images_are_left_out_by_name_or_label(made: Path, tmp_path: Path) -> None:
    assert done("leave-out", tmp_path / "a", dataset=made / "folds")["left_out"] == 0
    assert done("leave-out", tmp_path / "b", dataset=made / "folds", words=["3.PNG", "sphere"])["left_out"] == 1
    assert "3.png" not in Dataset.read(tmp_path / "b").images.ids
    with pytest.raises(DatasetError, match='all 6 images of "discs" hold one of Round'):
        done("leave-out", tmp_path / "c", dataset=made / "folds", words=["Round"])


def test_groups_are_given_or_by_look(made: Path, tmp_path: Path) -> None:
    given = done("groups", tmp_path / "a", dataset=made / "folds")
    assert (given["by"], given["groups"]) == ("the data", 3)
    dataset = Dataset.read(made / "folds")
    bare = Dataset(dataset.images.with_columns(group=[None] * 6), dataset.cells, "bare")
    bare.write(tmp_path / "bare")
    assert done("groups", tmp_path / "b", dataset=tmp_path / "bare")["by"] == "look"
    assert Dataset.read(tmp_path / "b").images.frame["group"].null_count() == 0


def test_corrected_masks_are_laid_over_or_left(made: Path, tmp_path: Path) -> None:
    assert done("masks-of", tmp_path / "a", dataset=made / "folds")["corrected"] == 0
    dataset = Dataset.read(made / "folds")
    dataset.of_images(dataset.images.where(fold=1)).write(tmp_path / "corrected")
    said = done("masks-of", tmp_path / "b", dataset=made / "folds", corrected=tmp_path / "corrected")
    assert said["corrected"] == 3
    assert Dataset.read(tmp_path / "b").images.frame["fold"].to_list() == [0, 1, 0, 1, 0, 1]


def test_settings_that_do_not_fit_are_refused(made: Path) -> None:
    places = [made / "sharp-0", made / "dull-0"]
    soft = {"dataset": made, "bundles": places}
    assert 'no network "shrap". Did you mean "sharp"? Networks: sharp, dull' in refused(
        "soft-outlines", **soft, networks=NETWORKS, members={"round": ["shrap"]}
    )
    assert "2 results for 3 networks (a, b, c)" in refused("soft-outlines", **soft, networks=["a", "b", "c"])
    assert "networks names one twice" in refused("soft-outlines", **soft, networks=["a", "a"])
    assert "output_of.round" in refused("soft-outlines", **soft, output_of={"round": {"view": 2}})
    assert "give tuned, too" in refused("clean-outlines", soft=[made], held_out=True)
    assert "exclude each other" in refused("clean-outlines", soft=[made], tuned=made, held_out=True, fold=1)
    members = {"bundles": places, "networks": NETWORKS, "members": {"round": ["dull"]}}
    assert 'set = "long" has no networks; members names round' in refused("pack-outliners", **members, set="long")
