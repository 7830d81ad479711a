"""Duplicates: found under every symmetry, after re-encoding and a slight crop; different cells stay apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.image_files import load_grey, load_image
from cytolens.images import Images
from cytolens.labels import LabelSet
from cytolens.prepare.duplicates import (
    DuplicateSettings,
    aligned_likeness,
    find_duplicates,
    joined_groups,
    with_groups,
)
from cytolens.prepare.duplicates_page import write_page
from cytolens.prepare.picture_hashes import SIDE, SYMMETRIES, hashes, small, symmetry
from cytolens.prepare.synthetic import render_field
from cytolens.problems import ImageError
from tests.apps.speaking import say

LABELS = LabelSet.of(["leukocyte"])
KNOWN = [
    ("BA_20201", "BA_809918"), ("BA_225540", "BA_786369"), ("BA_251042", "BA_988506"), ("BA_381452", "BA_80990"),
    ("BA_435917", "BA_858229"), ("BA_546746", "BA_685720"), ("BNE_191112", "EO_225902"), ("EO_220125", "EO_433229"),
    ("EO_284748", "EO_738445"), ("EO_621854", "EO_728356"), ("EO_65638", "EO_873756"), ("EO_890163", "EO_918881"),
    ("MO_145357", "MO_997225"), ("MO_231316", "MO_415531"),
]  # fmt: skip


def changed(pixels: NDArray[np.uint8], which: int, crop: float = 0.0) -> NDArray[np.uint8]:
    """A picture turned, and cropped by a share of its sides: half of it on each side."""
    height, width = pixels.shape[:2]
    top, left = round(height * crop / 2), round(width * crop / 2)
    return np.ascontiguousarray(symmetry(pixels[top : height - top, left : width - left], which))


def table(folder: Path, **columns: list[str | None]) -> Images:
    rows = [{"image_id": path.name, "path": str(path)} for path in sorted(folder.iterdir())]
    return Images.of([row | {name: some[i] for name, some in columns.items()} for i, row in enumerate(rows)])


@given(seed=st.integers(0, 10_000))
def test_hashes_of_turned_pictures_follow_from_one_transform(seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    own = hashes(picture[None])[0]
    for which in range(len(SYMMETRIES)):
        turned = hashes(np.ascontiguousarray(symmetry(picture, which))[None])[0, 0]
        # Equal but for frequencies that lie at the median to the last digit.
        assert int(np.bitwise_count(turned ^ own[which])) <= 2


def test_the_transform_is_scipys() -> None:
    from scipy.fft import dctn

    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    low = np.asarray(dctn(picture.astype(float), norm="ortho"))[:8, :8]
    low[0, 0] = 0
    bits = (low > np.median(low)).astype(int).ravel()
    assert int(hashes(picture[None])[0, 0]) == int("".join(map(str, bits)), 2)


def test_a_small_picture_keeps_grey_levels() -> None:
    assert (small(np.full((90, 121), 77, np.uint8)) == 77).all()


@pytest.mark.parametrize("which", range(8))
def test_a_turned_cropped_re_encoded_copy_is_found(which: int, tmp_path: Path) -> None:
    for seed in range(4):
        Image.fromarray(render_field(seed).pixels).save(tmp_path / f"{seed}.png")
    copy = changed(render_field(2).pixels, which, crop=0.03)
    Image.fromarray(copy).save(tmp_path / "copy.jpg", quality=70)
    found = find_duplicates(table(tmp_path))
    assert found.groups == (("2.png", "copy.jpg"),)
    row = found.pairs.row(0, named=True)
    assert (row["kind"], row["likeness"] > 0.95) == ("alike", True)
    if which:
        assert find_duplicates(table(tmp_path), DuplicateSettings(turned=False)).groups == ()


def test_the_same_bytes_are_told_apart_from_what_is_alike(tmp_path: Path) -> None:
    pixels = render_field(1).pixels
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    Image.fromarray(pixels).save(tmp_path / "c.bmp")
    (tmp_path / "d.png").write_bytes(b"")
    found = find_duplicates(table(tmp_path, split=["train", "val", "train", None]))
    kinds = {(row["first"], row["second"]): row["kind"] for row in found.pairs.iter_rows(named=True)}
    assert kinds[("a.png", "b.png")] == "same file"
    assert {kind for pair, kind in kinds.items() if "c.bmp" in pair} == {"alike"}
    assert found.groups == (("a.png", "b.png", "c.bmp"),)
    assert {"a.png", "b.png"} in [set(row[:2]) for row in found.across_splits.iter_rows()]
    assert [problem.kind for problem in found.problems] == ["image-empty"]
    write_page(found, table(tmp_path), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == len(found.pairs)
    assert "likeness 1.000" in page


def test_plain_pictures_are_not_alike() -> None:
    """What has no structure cannot be aligned, and two white fields are not one picture."""
    assert aligned_likeness(np.full((96, 96), 240, np.uint8), np.full((96, 96), 240, np.uint8)) == 0


@given(pairs=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh"))))
def test_groups_are_connected_components(pairs: list[tuple[str, str]]) -> None:
    groups = joined_groups(pairs)
    named = [name for group in groups for name in group]
    assert sorted(named) == sorted({name for pair in pairs for name in pair})
    home = {name: i for i, group in enumerate(groups) for name in group}
    assert all(home[a] == home[b] for a, b in pairs)
    for group in groups:  # joined by steps from its first
        reached, ahead = {group[0]}, [group[0]]
        while ahead:
            here = ahead.pop()
            ahead += [b for pair in pairs for a, b in (pair, pair[::-1]) if a == here and b not in reached]
            reached |= set(ahead)
        assert reached == set(group)


def test_duplicates_join_the_groups_that_are_known(tmp_path: Path) -> None:
    images = Images.of(
        [
            {"image_id": name, "group": group}
            for name, group in [("a", "p1"), ("b", "p1"), ("c", "p2"), ("d", None), ("e", None), ("f", None)]
        ]
    )
    dataset = Dataset(images, Cells.empty(LABELS), "x")
    pairs = pl.DataFrame({"first": ["b", "d"], "second": ["c", "e"]})
    found = find_duplicates(Images.empty())
    linked = type(found)(pairs, joined_groups(list(pairs.iter_rows())), 6, 3, found.problems)
    grouped = with_groups(dataset, linked)
    assert grouped.images.frame["group"].to_list() == [
        "p1+p2",
        "p1+p2",
        "p1+p2",
        "duplicates of d",
        "duplicates of d",
        None,
    ]
    assert grouped.provenance[-1]["groups"] == 2
    assert dataset.images.frame["group"].to_list()[0] == "p1"


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(3):
        Image.fromarray(render_field(seed).pixels).save(tmp_path / "in" / f"{seed}.png")
    clean = Dataset(table(tmp_path / "in"), Cells.empty(LABELS), "x")
    clean.write(tmp_path / "clean")
    assert say("duplicates", tmp_path / "clean").code == 0
    Image.fromarray(render_field(0).pixels[::-1]).save(tmp_path / "in" / "copy.png")
    Dataset(table(tmp_path / "in"), Cells.empty(LABELS), "x").write(tmp_path / "data")
    spoken = say(
        "duplicates", tmp_path / "data", "--json", "--out", tmp_path / "grouped", "--report", tmp_path / "p.html"
    )
    assert spoken.code == 1
    assert json.loads(spoken.out)["groups"] == [["0.png", "copy.png"]]
    groups = Dataset.read(tmp_path / "grouped").images.frame["group"].to_list()
    assert groups == ["duplicates of 0.png", None, None, "duplicates of 0.png"]
    assert (tmp_path / "p.html").exists()


@pytest.mark.data
@pytest.mark.slow
def test_every_known_duplicate_of_pbc_is_found_whatever_was_done_to_it(data_root: Path, tmp_path: Path) -> None:
    """The 13 pairs of equal bytes and the near one, with one partner flipped, turned, re-encoded and cropped."""
    source = data_root / "pbc" / "images"
    for place, (first, second) in enumerate(KNOWN):
        pixels = load_image(source / f"{second}.jpg").pixels
        (tmp_path / f"{first}.jpg").write_bytes((source / f"{first}.jpg").read_bytes())
        Image.fromarray(changed(pixels, place % 8, crop=0.03)).save(tmp_path / f"{second}.jpg", quality=70)
    others = [
        path for path in sorted(source.glob("*.jpg")) if path.stem not in {name for pair in KNOWN for name in pair}
    ]
    for path in others[::10]:
        (tmp_path / path.name).symlink_to(path)
    found = find_duplicates(table(tmp_path))
    assert {tuple(sorted((f"{a}.jpg", f"{b}.jpg"))) for a, b in KNOWN} <= set(found.groups)
    assert len(found.groups) <= len(KNOWN) + 1


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_grey_picture_is_the_colour_one_made_small(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(render_field(3).pixels).save(path)
    whole, grey = load_image(path), load_grey(path, 64)
    assert grey.sha256 == whole.sha256
    assert grey.pixels.ndim == 2
    assert min(grey.pixels.shape) >= 64
    assert (suffix == "jpg") == (grey.pixels.shape[0] < whole.pixels.shape[0])
    levels = np.asarray(Image.fromarray(whole.pixels).convert("L"), np.float64)
    assert np.abs(small(grey.pixels, 32) - small(levels.astype(np.uint8), 32).astype(float)).max() < 12


def test_a_damaged_jpeg_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(render_field(3).pixels).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ImageError, match=r"a\.jpg"):
        load_grey(path, 64)
