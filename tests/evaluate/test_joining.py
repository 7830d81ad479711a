from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate import EvaluateSettings, evaluate, read_found
from cytolens.evaluate.joining import join, overlaps_by_image
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.problems import DatasetError, SettingError
from tests.evaluate import cases

BCCD = LabelSet.shipped("bccd")
WHITE = ("WBC", (0, 0, 10, 10))
PLAIN = EvaluateSettings(intervals=False)
OK = EvaluateSettings(intervals=False, missing="ok")


def truth_of(**images):
    """A truth with one white cell in each image; keywords are columns by image id (dots as "__")."""
    rows = {name.replace("__", "."): columns for name, columns in images.items()}
    return cases.dataset(BCCD, {i: [WHITE] for i in rows}, images=rows)


def found_in(ids, shift=0.0):
    corners = (shift, 0, 10 + shift, 10)
    return cases.findings(BCCD, {i: [("WBC", corners, 0.9)] for i in ids})


def images_of(**images):
    rows = [{"image_id": name.replace("__", "."), **columns} for name, columns in images.items()]
    return Images.of(rows)


def partners(joined):
    """Truth image id → cell ids found in it."""
    frame = joined.found.frame.group_by("image_id").agg(pl.col("cell_id"))
    return {image_id: sorted(ids) for image_id, ids in frame.iter_rows()}


def test_bytes_come_first():
    """Two files that changed names are still told apart by their bytes."""
    truth = truth_of(a__png={"sha256": "1"}, b__png={"sha256": "2"})
    found = found_in(["b.png", "a.png"])
    images = images_of(b__png={"sha256": "1"}, a__png={"sha256": "2"})
    joined = join(truth, found, images, PLAIN)
    assert joined.joined_by == {"sha256": 2}
    by_image = dict(zip(found.frame["image_id"], found.frame["cell_id"], strict=True))
    assert partners(joined) == {"a.png": [by_image["b.png"]], "b.png": [by_image["a.png"]]}
    assert joined.notes == ()


def test_then_ids_then_names():
    truth = cases.dataset(
        BCCD,
        {"x/a.png": [WHITE], "x/b.png": [WHITE], "y/a.png": [WHITE]},
        images={"x/a.png": {"sha256": "1"}},
    )
    images = Images.of(
        [{"image_id": "other.png", "sha256": "1"}, {"image_id": "y/a.png"}, {"image_id": "/elsewhere/b.png"}]
    )
    joined = join(truth, found_in(images.ids), images, PLAIN)
    assert joined.joined_by == {"sha256": 1, "image_id": 1, "file name": 1}
    assert joined.images.ids == ["x/a.png", "x/b.png", "y/a.png"]
    assert sorted(joined.found.frame["image_id"]) == ["x/a.png", "x/b.png", "y/a.png"]


def test_a_name_that_is_not_unique_is_no_partner():
    truth = cases.dataset(BCCD, {"x/a.png": [WHITE], "b.png": [WHITE]})
    images = Images.of([{"image_id": i} for i in ("u/a.png", "v/a.png", "b.png")])
    with pytest.raises(
        DatasetError, match=r'1 of 2 .*x/a\.png \(the file name "a\.png" is not unique: 1 in the truth, 2'
    ):
        join(truth, found_in(images.ids), images, PLAIN)
    truth = cases.dataset(BCCD, {"x/a.png": [WHITE], "y/a.png": [WHITE]})
    with pytest.raises(DatasetError, match="2 in the truth, 1 found"):
        join(truth, found_in(["a.png"]), Images.of([{"image_id": "a.png"}]), PLAIN)


def test_an_image_without_partner_is_named():
    truth = truth_of(a__png={}, b__png={})
    images = images_of(a__png={})
    with pytest.raises(DatasetError, match=r"1 of 2 truth images have no found image: b\.png \(.*--missing ok"):
        evaluate(truth, found_in(["a.png"]), found_images=images, settings=PLAIN)
    scores = evaluate(truth, found_in(["a.png"]), found_images=images, settings=OK)
    assert (scores.figures["images"], scores.figures["truth"], scores.figures["recall"]) == (1, 1, 1)
    assert "1 of 2 truth images have no found image and are not scored." in scores.notes
    assert [problem.where for problem in scores.problems] == ["b.png"]
    assert scores.problems[0].kind == "image-without-partner"


def test_many_lost_images_are_cut_short_in_the_message():
    truth = cases.dataset(BCCD, {f"{i}.png": [WHITE] for i in range(9)})
    with pytest.raises(DatasetError, match=r"8 of 9 .*; and 3 more\. Predict them too"):
        join(truth, Cells.empty(BCCD), images_of(**{"0__png": {}}), PLAIN)


def test_no_partner_at_all_is_refused_even_if_missing_is_ok():
    truth = truth_of(a__png={})
    with pytest.raises(DatasetError, match=r"1 of 1 .* No image is left to score"):
        evaluate(truth, found_in(["z.png"]), found_images=images_of(z__png={}), settings=OK)


def test_the_same_name_with_another_size_is_another_picture():
    truth = truth_of(a__png={"width_px": 640, "height_px": 480})
    images = images_of(a__png={"width_px": 320, "height_px": 240})
    with pytest.raises(DatasetError, match="the found image of that name is 320 × 240 px, not 640 × 480"):
        join(truth, found_in(["a.png"]), images, PLAIN)


def test_other_bytes_under_the_same_name_are_noted():
    truth = truth_of(a__png={"sha256": "1"})
    joined = join(truth, found_in(["a.png"]), images_of(a__png={"sha256": "2"}), PLAIN)
    assert joined.notes == ("1 images were joined by name although their bytes differ: a.png.",)


def test_copies_share_the_findings_of_their_bytes():
    truth = truth_of(a__png={"sha256": "1"}, b__png={"sha256": "1"})
    joined = join(truth, found_in(["a.png"]), images_of(a__png={"sha256": "1"}), PLAIN)
    assert len(joined.found) == 2
    assert "1 truth images are copies of others" in joined.notes[0]
    both = images_of(b__png={"sha256": "1"}, a__png={"sha256": "1"})
    found = found_in(["b.png", "a.png"])
    ids = dict(zip(found.frame["image_id"], found.frame["cell_id"], strict=True))
    joined = join(truth, found, both, PLAIN)
    assert partners(joined) == {name: [cell] for name, cell in ids.items()}
    assert joined.notes == ()


def test_an_image_with_nothing_found_is_a_partner():
    truth = truth_of(a__png={}, b__png={})
    scores = evaluate(truth, found_in(["a.png"]), found_images=truth.images, settings=PLAIN)
    assert (scores.figures["images"], scores.figures["recall"]) == (2, 0.5)
    assert scores.notes == ()


def test_cells_alone_count_other_images_as_empty_and_say_so():
    truth = truth_of(a__png={}, b__png={})
    for settings in (PLAIN, OK):
        scores = evaluate(truth, found_in(["elsewhere/a.png"]), settings=settings)
        assert scores.figures["recall"] == 0.5
        assert any(
            "1 of 2 truth images have no finding and count as images in which nothing" in n for n in scores.notes
        )
    nothing = evaluate(truth, Cells.empty(BCCD), settings=PLAIN)
    assert nothing.figures["recall"] == 0


def test_cells_alone_of_other_images_are_refused():
    with pytest.raises(DatasetError, match="2 of 2 truth images"):
        evaluate(truth_of(a__png={}, b__png={}), found_in(["x.png"]), settings=PLAIN)


def test_found_images_beyond_the_truth_are_left_out():
    truth = truth_of(a__png={})
    scores = evaluate(truth, found_in(["a.png", "b.png"]), settings=PLAIN)
    assert scores.figures["found"] == 1
    assert scores.notes == ("1 found images are not in the truth and are left out.",)


def test_a_dataset_brings_its_own_images():
    truth = truth_of(a__png={"sha256": "1"}, b__png={"sha256": "2"})
    found = Dataset(images_of(n__png={"sha256": "2"}, m__png={"sha256": "1"}), found_in(["m.png", "n.png"]))
    assert join(truth, found, None, PLAIN).joined_by == {"sha256": 2}


def test_arguments_are_not_changed():
    truth = truth_of(a__png={})
    found = found_in(["elsewhere/a.png"])
    before = truth.cells.frame.clone(), found.frame.clone()
    evaluate(truth, found, settings=PLAIN)
    assert before[0].equals(truth.cells.frame)
    assert before[1].equals(found.frame)


def test_overlaps_are_those_of_each_image():
    truth = cases.dataset(BCCD, {"a.png": [WHITE], "b.png": [], "c.png": [WHITE, ("RBC", (20, 0, 30, 10))]})
    joined = join(truth, found_in(["c.png", "b.png"], shift=5), truth.images, PLAIN)
    tables = [one.table for one in overlaps_by_image(joined)]
    assert [table.shape for table in tables] == [(0, 1), (1, 0), (1, 2)]
    assert tables[2] == pytest.approx(np.array([[1 / 3, 0]]))


# -- labels and settings --------------------------------------------------------------------------


def test_labels_go_through_the_shipped_names():
    truth = cases.dataset(BCCD, {"a.png": [WHITE]})
    txl = LabelSet.shipped("txl_pbc")
    found = cases.findings(txl, {"a.png": [("Platelet", (0, 0, 1, 1), 0.5), ("RBC", (0, 0, 1, 1), 0.5)]})
    joined = join(truth, found, truth.images, PLAIN)
    assert joined.mapping == {"WBC": "WBC", "RBC": "RBC", "Platelet": "Platelets"}
    assert [joined.labels.names[i] for i in joined.found_label] == ["Platelets", "RBC"]


def test_an_unknown_level_is_refused_with_a_hint():
    truth = cases.dataset(BCCD, {"a.png": [WHITE]})
    with pytest.raises(SettingError, match=r'level: unknown label "neutrophyl"\. Did you mean "neutrophil"\?'):
        evaluate(truth, truth, settings=EvaluateSettings(level=("neutrophyl",)))


def test_an_unknown_task_is_refused_with_a_hint():
    truth = cases.dataset(BCCD, {"a.png": [WHITE]})
    with pytest.raises(SettingError, match=r'unknown task "detect"\. Did you mean "detection"\?'):
        evaluate(truth, truth, task="detect")


@pytest.mark.parametrize(
    "wrong", [{"iou_min": 0}, {"iou_min": 1.1}, {"missing": "maybe"}, {"bootstrap": 1}, {"level": ()}, {"iou": 0.5}]
)
def test_settings_refuse_nonsense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EvaluateSettings(**wrong)


# -- from disk ------------------------------------------------------------------------------------


def test_read_found(tmp_path):
    truth = truth_of(a__png={"sha256": "1"})
    found = found_in(["a.png"])
    found.write_parquet(tmp_path / "out" / "cells.parquet")
    cells, images = read_found(tmp_path / "out")
    assert images is None
    assert cells.frame.equals(found.frame)
    truth.images.frame.write_parquet(tmp_path / "out" / "images.parquet")
    for place in (tmp_path / "out", tmp_path / "out" / "cells.parquet"):
        images = read_found(place)[1]
        assert images is not None
        assert images.frame.equals(truth.images.frame)
    truth.write(tmp_path / "set")
    cells, images = read_found(tmp_path / "set")
    assert cells.frame.equals(truth.cells.frame)
    assert images is not None
    assert images.ids == truth.images.ids


def test_read_found_says_what_is_wrong(tmp_path):
    with pytest.raises(DatasetError, match="there is no such file"):
        read_found(tmp_path)
    found_in(["a.png"]).write_parquet(tmp_path / "cells.parquet")
    (tmp_path / "images.parquet").write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match=r"images\.parquet: cannot be read"):
        read_found(tmp_path)
