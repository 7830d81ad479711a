"""Scores of outlines as a user asks for them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from cytolens import formats, masks
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet
from tests.apps.speaking import say

LABELS = LabelSet.of(["shsy5y", "cort"])
SIZE_HW = (60, 80)


def disc(x: float, y: float, radius: float) -> bytes:
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    return masks.encode((columns - x) ** 2 + (rows - y) ** 2 < radius**2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A truth of four images with three cells each, and findings that miss one and shift another."""
    root = tmp_path_factory.mktemp("outlines")
    rng = np.random.default_rng(3)
    rows, codes = [], []
    for i in range(4):
        path = root / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (*SIZE_HW, 3), np.uint8)).save(path)
        rows.append({"image_id": path.name, "path": str(path), "width_px": SIZE_HW[1], "height_px": SIZE_HW[0]})
        codes.append([disc(14, 14, 9), disc(40, 30, 9), disc(66, 44, 9)])

    def cells(codes, **more):
        flat = [(rows[i]["image_id"], code, LABELS.names[i % 2]) for i, some in enumerate(codes) for code in some]
        return Cells.of(
            LABELS,
            image_id=[i for i, _, _ in flat],
            boxes=np.array([masks.bounds(code, SIZE_HW) for _, code, _ in flat]),
            label=[name for _, _, name in flat],
            mask=[code for _, code, _ in flat],
            **more,
        )

    images = Images.of(rows)
    Dataset(images, cells(codes, source="human:a"), "truth").write(root / "truth")
    said = [[disc(15, 14, 9), *some[1:]] for some in codes]
    said[1] = said[1][:2]
    found = cells(said, score=[0.9] * 11, source="bundle:test@0")
    Dataset(images, found, "found").write(root / "found")
    Dataset(images, found.with_masks([None] * len(found)), "boxes").write(root / "boxes")
    return root


def test_segmentation(folders, tmp_path):
    words = ("evaluate", "--truth", folders / "truth", "--found", folders / "found", "--task", "segmentation")
    figures = say(*words, "--bootstrap", "20", "--report", tmp_path / "r.html", "--json").json
    names = ["map", "dsb_ap50", "dsb_ap50_pooled", "f1_50", "pq", "coco_mask_map", "count_error", "boundary_f"]
    for name in names:
        low, high = figures[f"{name}_interval"]
        assert low <= figures[name] <= high
    assert (figures["truth"], figures["found"], figures["count_error"]) == (12, 11, 0.25)
    assert figures["dsb_ap50_pooled"] == pytest.approx(11 / 12)
    assert figures["dsb_ap50"] == pytest.approx((3 + 2 / 3) / 4)
    assert set(figures["per_label"]) == {"shsy5y", "cort"}
    assert "Images with the lowest figures" in (tmp_path / "r.html").read_text(encoding="utf-8")
    spoken = say(*words, "--bootstrap", "0")
    assert spoken.code == 0
    assert "pq: 0." in spoken.out


def test_sartorius(folders, tmp_path):
    words = ("evaluate", "--truth", folders / "truth", "--found", folders / "found", "--task", "sartorius")
    figures = say(*words, "--bootstrap", "0", "--report", tmp_path / "r.html", "--json").json
    assert figures["task"] == "sartorius"
    assert figures["score"] == pytest.approx(figures["map"])
    types = figures["per_label"]
    assert {name: row["images"] for name, row in types.items()} == {"shsy5y": 2, "cort": 2}
    assert figures["score"] == pytest.approx((types["shsy5y"]["score"] + types["cort"]["score"]) / 2)
    assert types["cort"]["score"] < types["shsy5y"]["score"] < 1


def test_refusals(folders):
    words = ["evaluate", "--truth", folders / "truth", "--found", folders / "boxes", "--bootstrap", "0"]
    assert "11 of 11 cells of the findings have a box but no mask" in say(*words, "--task", "segmentation").complaint
    assert say(*words, "--task", "detection").code == 0
    assert "--boundary-px and --boundary-share go with" in say(*words, "--boundary-px", "3").complaint
    words[4] = folders / "found"
    told = say(*words, "--task", "sartorius", "--boundary-px", "3", "--boundary-share", "0.01").complaint
    assert "give one of them" in told
    assert "boundary_share = 2" in say(*words, "--task", "sartorius", "--boundary-share", "2").complaint


@pytest.mark.data
def test_dsb_2018_against_itself(data_root, tmp_path):
    lines = (data_root / "dsb2018" / "train.csv").read_text(encoding="utf-8").splitlines()
    some = list(dict.fromkeys(line.split(",")[0] for line in lines[1:]))[::30]
    (tmp_path / "train.csv").write_text("\n".join([lines[0], *(x for x in lines if x.split(",")[0] in some)]))
    (tmp_path / "images").mkdir()
    for name in some:
        shutil.copy(data_root / "dsb2018" / "images" / f"{name}.png", tmp_path / "images")
    formats.read(tmp_path, "rle_csv").dataset.write(tmp_path / "truth")
    words = ("evaluate", "--truth", tmp_path / "truth", "--found", tmp_path / "truth", "--bootstrap", "0", "--json")
    for task in ("segmentation", "sartorius"):
        figures = say(*words, "--task", task).json
        for name in ("map", "dsb_ap50", "dsb_ap50_pooled", "f1_50", "pq", "coco_mask_map", "boundary_f"):
            assert figures[name] == pytest.approx(1), name
        assert figures.get("score", 1) == 1
        assert figures["images"] == len(some) == 10
        assert (figures["count_error"], figures["splits"], figures["merges"]) == (0, 0, 0)
