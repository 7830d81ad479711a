"""Groups by look: kind, size and colour decide, order and chance do not; a split keeps them whole."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
from PIL import Image

from cytolens import formats
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.prepare.image_groups import LookSettings, colour_of, grouped_by_look
from cytolens.problems import SettingError
from tests.apps.speaking import say

LABELS = LabelSet.of(["fluorescence", "histology"])
DARK, DIM, PINK, BLUE = (20, 20, 20), (26, 26, 26), (230, 180, 200), (120, 120, 220)
# Label, size, colour of each image.
LOOKS = [
    *[("fluorescence", (40, 30), DARK)] * 3, ("fluorescence", (40, 30), DIM), *[("fluorescence", (50, 30), DARK)] * 2,
    *[("histology", (40, 30), PINK)] * 3, *[("histology", (40, 30), BLUE)] * 3, ("histology", (40, 30), DARK),
]  # fmt: skip


def dataset(folder: Path, looks: list[tuple[str, tuple[int, int], tuple[int, int, int]]]) -> Dataset:
    """An image of noise about a colour for each look, with one cell."""
    rows = []
    for number, (_, size_wh, shade) in enumerate(looks):
        noise = np.random.default_rng(number).integers(-2, 3, (*size_wh[::-1], 3))
        Image.fromarray(np.clip(np.array(shade) + noise, 0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
        path = str(folder / f"{number:02}.png")
        rows.append({"image_id": f"{number:02}.png", "path": path, "width_px": size_wh[0], "height_px": size_wh[1]})
    cells = Cells.of(
        LABELS,
        image_id=[row["image_id"] for row in rows],
        boxes=np.tile([[0, 0, 9, 9]], (len(rows), 1)),
        label=[label for label, _, _ in looks],
        source="human:ab",
    )
    return Dataset(Images.of(rows), cells, "looks")


def groups_of(data: Dataset) -> set[frozenset[str]]:
    frame = data.images.frame.group_by("group").agg("image_id")
    return {frozenset(ids) for ids in frame["image_id"].to_list()}


def named(*groups: tuple[int, ...]) -> set[frozenset[str]]:
    return {frozenset(f"{number:02}.png" for number in group) for group in groups}


def test_kind_size_and_colour_make_the_groups(tmp_path: Path) -> None:
    found = grouped_by_look(dataset(tmp_path, LOOKS), LookSettings(copies=False))
    assert groups_of(found.dataset) == named((0, 1, 2, 3), (4, 5), (6, 7, 8), (9, 10, 11), (12,))
    assert found.per_kind == {"fluorescence": 2, "histology": 3}
    assert found.dataset.provenance[-1] == {"step": "groups", "by": "look", "distance": 5.0, "groups": 5}
    assert not len(found.problems)
    fine = grouped_by_look(dataset(tmp_path, LOOKS), LookSettings(copies=False, distance=1.5))
    assert groups_of(fine.dataset) == named((0, 1, 2), (3,), (4, 5), (6, 7, 8), (9, 10, 11), (12,))


def test_the_order_of_the_images_does_not_matter(tmp_path: Path) -> None:
    data = dataset(tmp_path, LOOKS)
    turned = Dataset(Images(data.images.frame.sort("image_id", descending=True)), data.cells, "looks")
    wanted, got = (grouped_by_look(one).dataset.images.frame.sort("image_id") for one in (data, turned))
    assert wanted.equals(got)


def test_no_two_images_of_a_group_lie_further_apart_than_asked(tmp_path: Path) -> None:
    shades = [(60 + 3 * step, 60 + 3 * step, 60) for step in range(25)]
    data = dataset(tmp_path, [("histology", (20, 20), shade) for shade in shades])
    found = grouped_by_look(data, LookSettings(distance=6, copies=False)).dataset
    pixels = {row["image_id"]: np.asarray(Image.open(row["path"])) for row in found.images.rows()}
    sizes = []
    for group in groups_of(found):
        colours = [colour_of(pixels[image_id]).reshape(5, 3) for image_id in group]
        apart = [np.sqrt(((a - b) ** 2).sum(axis=1).mean()) for a in colours for b in colours]
        assert max(apart) <= 6
        sizes.append(len(group))
    assert 1 < len(sizes) < 25


def test_copies_join_groups(tmp_path: Path) -> None:
    data = dataset(tmp_path, LOOKS)
    y, x = np.mgrid[:64, :64]
    picture = np.stack([x * 4 % 256, (x + y) * 2 % 256, ((x - 20) ** 2 + y * y) // 20 % 256], axis=2).astype(np.uint8)
    for name, size_wh in (("00.png", (40, 30)), ("06.png", (40, 30))):
        Image.fromarray(cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA)).save(tmp_path / name)
    apart = grouped_by_look(data, LookSettings(copies=False)).dataset
    joined = grouped_by_look(data).dataset
    assert {frozenset({"00.png"}), frozenset({"06.png"})} <= groups_of(apart)
    assert frozenset({"00.png", "06.png"}) in groups_of(joined)


def test_given_groups_are_not_overruled_and_lost_images_stand_alone(tmp_path: Path) -> None:
    data = dataset(tmp_path, LOOKS)
    known = Dataset(data.images.with_columns(group="patient 1"), data.cells)
    with pytest.raises(SettingError, match="13 of 13 images stand in a group already"):
        grouped_by_look(known)
    (tmp_path / "00.png").unlink()
    (tmp_path / "01.png").write_bytes(b"no picture")
    found = grouped_by_look(data)
    assert found.problems.worst == "error"
    assert found.dataset.images.frame.filter(pl.col("group").is_null())["image_id"].to_list() == ["00.png", "01.png"]
    assert found.per_kind["fluorescence"] == 4


# -- the command ------------------------------------------------------------------------------------


def test_a_split_by_look_keeps_groups_whole_and_says_how_many_there_are(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    dataset(tmp_path / "in", LOOKS).write(tmp_path / "data")
    words = ("split", tmp_path / "data", "--group-by", "look", "--folds", 2, "--out", tmp_path / "out")
    told = say(*words, "--json").json
    assert told["groups_by_look"] == {"fluorescence": 2, "histology": 3}
    frame = Dataset.read(tmp_path / "out").images.frame
    assert frame.group_by("group").agg(pl.col("fold").n_unique())["fold"].to_list() == [1] * 5
    for label in ("fluorescence", "histology"):
        assert all(row["count"] for row in told["balance"] if row["label"] == label)
    assert "groups by look: fluorescence 2, histology 3" in say(*words).out
    assert say(*words, "--look-distance", "60", "--json").json["groups_by_look"] == {"fluorescence": 2, "histology": 2}
    missing = say(*words[:4], "--shares", "a=0.2,b=0.4,c=0.4", "--out", tmp_path / "parts")
    assert "fluorescence is missing from " in missing.out
    wrong = say("split", tmp_path / "data", "--folds", 2, "--look-distance", 3, "--out", tmp_path / "x")
    assert "--look-distance goes with --group-by look" in wrong.complaint
    again = say("split", tmp_path / "out", *words[2:-1], tmp_path / "x")
    assert "stand in a group already" in again.complaint


def test_a_split_says_what_its_samples_share(tmp_path: Path) -> None:
    samples = [f"cort[{state}]_{well}-{site}_Vessel-{vessel}_Ph_1" for state, vessel, well, site in [
        ("density", 1, "A1", 1), ("density", 1, "A1", 2), ("density", 1, "A2", 1), ("oka", 2, "A1", 1),
    ]]  # fmt: skip
    lines = ["id,annotation,width,height,cell_type,sample_id"]
    for number, sample in enumerate(samples):
        Image.fromarray(np.full((10, 20, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number},1 2,20,10,cort,{sample}")
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    data = formats.read(tmp_path / "train.csv", "rle_csv").dataset
    folds = Dataset(data.images.with_columns(fold=[0, 0, 1, 1]), data.cells, "s", data.provenance)
    folds.write(tmp_path / "data")
    words = ("split", tmp_path / "data", "--folds", 2, "--keep", "--out", tmp_path / "out")
    shared = {row["what"]: (row["values"], row["across"]) for row in say(*words, "--json").json["shared"]}
    assert shared == {
        "type and state": (2, ["cort[density]"]),
        "vessel": (2, ["vessel 1"]),
        "well": (3, []),
        "site": (4, []),
    }
    out = say(*words).out
    assert "in several folds: 1 of 2 (vessel): vessel 1" in out
    assert "in several folds: 0 of 3 (well)\n" in out


@pytest.mark.data
def test_dsb_2018_by_look(data_root: Path, tmp_path: Path) -> None:
    """The larger images: each kind has several groups, and a split keeps every kind on both sides."""
    from cytolens.prepare.split import parts

    header, *rows = (data_root / "dsb2018" / "train.csv").read_text().splitlines()
    first = {row.partition(",")[0]: row for row in rows if int(row.split(",")[2]) >= 640}  # one cell each will do
    (tmp_path / "train.csv").write_text("\n".join([header, *first.values()]) + "\n")
    options = formats.ReadOptions(images=data_root / "dsb2018" / "images")
    data = formats.read(tmp_path / "train.csv", "rle_csv", options).dataset
    found = grouped_by_look(data, LookSettings(copies=False))
    assert found.per_kind == {"fluorescence": 5, "brightfield": 3}
    halves = parts(found.dataset, {"train": 0.8, "val": 0.2})
    assert (halves.balance.filter(pl.col("label") != "histology")["count"] > 0).all()
