"""`cytolens fuse`, and the challenge's score and answer, as a user types them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import cytolens
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate import read_found
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.predict.fuse import FuseSettings
from tests.apps.speaking import say

FLAT = LabelSet(LabelSet.shipped("cytologia").names)
NAMES = ("a.jpg", "b.jpg", "c.jpg")


def images(**changed: Any) -> Images:
    rows = [{"image_id": n, "width_px": 400, "height_px": 300, "sha256": n[0] * 64, "path": f"/no/{n}"} for n in NAMES]
    return Images.of(
        [row | {key: value.get(row["image_id"], row[key]) for key, value in changed.items()} for row in rows]
    )


def cells(rows: Sequence[tuple[str, Sequence[float], str, float]], source: str, labels: LabelSet = FLAT) -> Cells:
    return Cells.of(
        labels,
        image_id=[row[0] for row in rows],
        boxes=[row[1] for row in rows],
        label=[row[2] for row in rows],
        score=[row[3] for row in rows],
        source=source,
    )


def left(folder: Path, found: Cells, looked_at: Images | None = None) -> Path:
    """A folder as predict leaves it."""
    folder.mkdir()
    found.write_parquet(folder / "cells.parquet")
    (images() if looked_at is None else looked_at).frame.write_parquet(folder / "images.parquet")
    return folder


ONE = [("a.jpg", (10, 10, 110, 110), "PNN", 0.9), ("a.jpg", (150, 150, 250, 250), "LY", 0.8)]
TWO = [("a.jpg", (14, 10, 114, 110), "PNN", 0.3), ("b.jpg", (50, 60, 150, 180), "MO", 0.6)]


@pytest.fixture
def members(tmp_path: Path) -> tuple[Path, Path]:
    return left(tmp_path / "one", cells(ONE, "bundle:one@1")), left(tmp_path / "two", cells(TWO, "bundle:two@2"))


def test_two_folders_become_one(members: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "both"
    said = say("fuse", *members, "--iou", "0.5", "--out", out)
    assert said.code == 0
    assert said.out.splitlines()[0] == f"2 members, 3 images, 3 cells, 0 referred to a person → {out}"
    assert {path.name for path in out.iterdir()} == {
        "cells.parquet", "images.parquet", "cells.csv", "differential.csv", "run.json",
    }  # fmt: skip
    found, looked_at = read_found(out)
    assert looked_at is not None
    assert looked_at.frame.equals(images().frame)
    read = [read_found(member)[0] for member in members]
    settings = FuseSettings(iou=0.5)
    assert found.frame.equals(cytolens.fuse(read, settings=settings, images=images()).frame)
    assert found.frame["x_min"].to_list() == pytest.approx([11, 150, 50])
    assert found.scores().tolist() == pytest.approx([0.6, 0.4, 0.3])
    with (out / "cells.csv").open(newline="") as stream:
        assert [row["label"] for row in csv.DictReader(stream)] == ["PNN", "LY", "MO"]
    run = json.loads((out / "run.json").read_text())
    assert (run["method"], run["bundle"], run["settings"]["iou"]) == ("wbf", None, 0.5)
    assert [member["sources"] for member in run["members"]] == [["bundle:one@1"], ["bundle:two@2"]]
    assert run["counts"] == {"PNN": 1, "LY": 1, "MO": 1}


def test_what_was_fused_can_be_fused_and_scored_again(members: tuple[Path, Path], tmp_path: Path) -> None:
    assert say("fuse", members[0], "--out", tmp_path / "again").code == 0
    found, _ = read_found(tmp_path / "again")
    assert found.boxes().tolist() == [list(row[1]) for row in ONE]
    assert say("fuse", tmp_path / "again", members[1], "--out", tmp_path / "more").code == 0


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        # Of both lists: (3 · 0.9 + 0.3) / 2 · 2 / 4. Of the first: 3 · 0.8 / 4. The second has not half the weight.
        (["--weights", "3,1"], [0.75, 0.6]),
        (["--one-list"], [0.8, 0.6, 0.6]),
        (["--method", "nms"], [0.9, 0.8, 0.6]),
        (["--method", "blend"], [0.8, 0.6]),
        (["--threshold", "0.35"], [0.6, 0.4]),
    ],
)
def test_the_options(members: tuple[Path, Path], tmp_path: Path, options: list[str], scores: list[float]) -> None:
    said = say("fuse", *members, "--out", tmp_path / "both", *options, "--json")
    assert said.code == 0
    counted = read_found(tmp_path / "both")[0].filter(pl.col("counted"))
    assert counted.scores().tolist() == pytest.approx(scores)
    assert said.json["cells"] == len(counted)


def test_images_are_the_same_by_their_bytes(members: tuple[Path, Path], tmp_path: Path) -> None:
    moved = images().with_columns(image_id=["x/" + name for name in NAMES])
    far = cells([("x/" + i, corners, name, score) for i, corners, name, score in TWO], "bundle:two@2")
    other = left(tmp_path / "moved", far, moved)
    assert say("fuse", members[0], other, "--out", tmp_path / "both").code == 0
    assert say("fuse", *members, "--out", tmp_path / "plain").code == 0
    one, two = (read_found(tmp_path / name)[0].frame for name in ("both", "plain"))
    assert one.equals(two)


def test_what_cannot_be_fused(members: tuple[Path, Path], tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    fewer = left(tmp_path / "fewer", cells(ONE, "b"), Images(images().frame.head(2)))
    said = say("fuse", members[0], fewer, *out).complaint
    assert "1 of " in said
    assert "one are not in" in said
    assert "fewer: c.jpg" in said
    assert say("fuse", fewer, members[0], *out).complaint == said  # it is the same image, whoever comes first
    other = left(tmp_path / "other", cells(ONE, "b"), images(sha256={"b.jpg": "e" * 64}))
    assert "b.jpg. Predict the same images" in say("fuse", members[0], other, *out).complaint
    pbc = left(tmp_path / "pbc", cells([("a.jpg", (0, 0, 9, 9), "LY", 0.5)], "b", LabelSet.shipped("pbc")))
    assert "different label sets" in say("fuse", members[0], pbc, *out).complaint
    assert "nowhere" in say("fuse", members[0], tmp_path / "nowhere", *out).complaint
    (fewer / "images.parquet").unlink()
    assert "no images.parquet beside the cells" in say("fuse", fewer, *out).complaint
    assert "is a member and would be overwritten" in say("fuse", *members, "--out", members[1]).complaint
    assert 'Did you mean "nms"' in say("fuse", *members, *out, "--method", "nsm").complaint
    assert "wanted 2 positive numbers" in say("fuse", *members, *out, "--weights", "1").complaint
    assert "--weights takes numbers" in say("fuse", *members, *out, "--weights", "1,x").complaint
    assert "iou = 1.5" in say("fuse", *members, *out, "--iou", "1.5").complaint
    assert "a report tells of one bundle" in say("fuse", *members, *out, "--format", "report").complaint
    assert not (tmp_path / "out" / "run.json").exists()


# -- the challenge --------------------------------------------------------------------------------


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    rows = [
        ("a.jpg", (10, 10, 110, 110), "PNN"), ("a.jpg", (150, 150, 250, 250), "LY"),
        ("b.jpg", (50, 60, 150, 180), "MO"), ("c.jpg", (0, 0, 80, 80), "EO"),
    ]  # fmt: skip
    said = Cells.of(
        FLAT, image_id=[r[0] for r in rows], boxes=[r[1] for r in rows], label=[r[2] for r in rows], source="human:x"
    )
    Dataset(images(), said, "truth").write(tmp_path / "truth")
    return tmp_path / "truth"


C = [
    ("a.jpg", (12, 8, 112, 108), "PNN", 0.9), ("a.jpg", (148, 152, 252, 250), "LY", 0.8),
    ("b.jpg", (55, 60, 150, 170), "LY", 0.7),
]  # fmt: skip


def test_the_challenges_score(truth: Path, tmp_path: Path) -> None:
    found = left(tmp_path / "found", cells(C, "bundle:c@1"))
    words = ("evaluate", "--truth", truth, "--found", found, "--task", "cytologia")
    figures = say(*words, "--bootstrap", "20", "--json").json
    shown = {name: round(figures[name], 6) for name in ("score", "giou_term", "macro_f1", "strict_macro_f1")}
    assert shown == {"score": 0.410070, "giou_term": 0.717018, "macro_f1": 0.333333, "strict_macro_f1": 0.416667}
    assert len(figures["score_interval"]) == 2
    report = tmp_path / "scores.html"
    said = say(*words, "--bootstrap", "0", "--expected-counts", "truth", "--report", report)
    assert "strict_macro_f1: 0.4167" in said.out
    assert "oracle" in said.out
    assert "challenge score S" in report.read_text()
    other = say(*words[:-1], "detection", "--expected-counts", "truth")
    assert "--expected-counts goes with --task cytologia only" in other.complaint


def test_the_challenges_answer(tmp_path: Path) -> None:
    found = left(tmp_path / "found", cells(C, "bundle:c@1"))
    test = tmp_path / "test.csv"
    test.write_text("trustii_id,NAME\n5,b.jpg\n2,a.jpg\n")
    words = ("export", found, "--format", "cytologia", "--out", tmp_path / "sub.csv")
    said = say(*words, "--test", test)
    assert said.code == 0
    assert "1 cells are more than the rows asked for" in said.out
    lines = (tmp_path / "sub.csv").read_text().splitlines()
    assert lines == ["trustii_id,NAME,x1,y1,x2,y2,class", "5,b.jpg,55,60,150,170,LY", "2,a.jpg,12,8,112,108,PNN"]
    assert say(*words, "--test", test, "--expected-counts", "--json").json["out"] == str(tmp_path / "sub.csv")
    assert "needs --test" in say(*words).complaint
    assert "do not go with --format cytologia" in say(*words, "--test", test, "--copy-images").complaint
    wrong = say("export", found, "--format", "coco", "--out", tmp_path / "c.json", "--test", test)
    assert "go with --format cytologia, not with coco" in wrong.complaint
    (found / "images.parquet").unlink()
    assert "sizes of the images are not known" in say(*words, "--test", test).complaint
