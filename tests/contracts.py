"""What every format must keep to: one class that each format's tests inherit."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cytolens import formats, masks
from cytolens.cells import BOX_COLUMNS, Cells, join
from cytolens.dataset import Dataset
from cytolens.formats import Imported, ReadOptions, WriteOptions
from cytolens.formats.losses import ASPECTS
from cytolens.images import SUFFIXES, Images
from cytolens.labels import LabelSet
from cytolens.problems import FormatError, Problems
from tests.strategies import attribute_schemas, cell_tables, label_names

# The same test runs for several classes, and each example writes a handful of small files.
RELAXED = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow]
)
_TOKENS = (
    b"nan", b"-1", b"1e999", b"99999999999999999999", b"\x00", b"<", b'"', b"{}", b"[[", b"null", b"../../x", b";",
    b",", b"\n", b"\\ud800", b"&x;", b"\xff", b" 0.5", b":", b"- ", b"true",
)  # fmt: skip


# -- datasets with real files -----------------------------------------------------------------------


@st.composite
def filed_datasets(draw: st.DrawFn) -> Dataset:
    """Datasets whose images `with_files` can write: their ids are paths of PNG files, with sizes of their own."""
    names = [name.strip() for name in draw(label_names(1, 4))]
    labels = LabelSet(tuple(names), attributes=draw(attribute_schemas()))
    ids = st.builds(
        lambda folder, stem: f"{folder}{stem}.png",
        st.sampled_from(["", "p1/", "p2/", "p1/q/"]),
        st.sampled_from(["a", "b 1", "Ü", "細胞", "x.y", "7"]),
    )
    rows: list[dict[str, Any]] = []
    tables: list[Cells] = []
    for image_id in draw(st.lists(ids, max_size=4, unique_by=str.casefold)):
        size_wh = draw(st.integers(2, 40)), draw(st.integers(2, 40))
        rows.append(
            {
                "image_id": image_id,
                "width_px": size_wh[0],
                "height_px": size_wh[1],
                "group": draw(st.none() | st.sampled_from(["patient 1", "patient 2"])),
                "split": draw(st.none() | st.sampled_from(["train", "val", "tune"])),
                "fold": draw(st.none() | st.integers(0, 4)),
                "um_per_px": draw(st.none() | st.just(0.25)),
            }
        )
        tables.append(draw(cell_tables(labels, image_ids=(image_id,), size_wh=size_wh, most=3)))
    return Dataset(Images.of(rows), join(tables, labels), "drawn")


def with_files(data: Dataset, folder: Path) -> Dataset:
    """The dataset with a PNG file of its own for every image, below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, row in enumerate(data.images.rows()):
        paths.append(str(save_picture(folder / row["image_id"], (row["width_px"], row["height_px"]), number)))
    return replace(data, images=data.images.with_columns(path=pl.Series(paths, dtype=pl.String)))


def save_picture(path: Path, size_wh: tuple[int, int] = (20, 10), number: int = 0) -> Path:
    """Write a picture of noise; files of different `number` have different bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size_wh[::-1], 3), np.uint8)
    pixels[0, 0] = number
    Image.fromarray(pixels).save(path)
    return path


def small_dataset(folder: Path, **changes: Any) -> Dataset:
    """Two images of one cell each that fills its image, and whatever `changes` say of the cells."""
    labels = LabelSet.of(["WBC", "RBC"])
    images = Images.of(
        {"image_id": f"{name}.png", "width_px": 20, "height_px": 10, "split": split, "group": f"patient {name}"}
        for name, split in (("one", "train"), ("two", "val"))
    )
    columns: dict[str, Any] = {"boxes": [[0, 0, 20, 10], [0, 0, 20, 10]], "label": ["WBC", "RBC"]} | changes
    cells = Cells.of(labels, image_id=["one.png", "two.png"], source="human:ab", **columns)
    return with_files(Dataset(images, cells, "small"), folder)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that lives as long as the block; hypothesis runs many examples inside one `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# -- what must come back ----------------------------------------------------------------------------


def _seen(data: Dataset) -> dict[bytes, tuple[Any, list[dict[str, Any]]]]:
    """Image bytes → the image's split and group, and its cells in order."""
    cells_of = dict(data.cells.by_image())
    columns = [*BOX_COLUMNS, "label", "score", "mask", "ignore"]
    return {
        Path(row["path"]).read_bytes(): (
            {"split": row["split"], "group": row["group"], "size": (row["width_px"], row["height_px"])},
            cells_of[row["image_id"]].frame.select(columns).to_dicts() if row["image_id"] in cells_of else [],
        )
        for row in data.images.rows()
    }


def _expected(data: Dataset, lost: set[str]) -> dict[bytes, tuple[Any, list[dict[str, Any]]]]:
    """What of `_seen` survives a format that cannot keep `lost`."""
    frame = data.cells.frame
    if "cells below the threshold" in lost:
        frame = frame.filter("counted")
    per_image = frame.group_by("image_id").len()
    if "cells without a label" in lost:
        frame = frame.filter(pl.col("label").is_not_null())
    blank = {"scores": "score", "masks": "mask"}
    frame = frame.with_columns(pl.lit(None, frame.schema[name]).alias(name) for a, name in blank.items() if a in lost)
    if "ignore flags" in lost:
        frame = frame.with_columns(ignore=pl.lit(False))
    images = data.images
    if "cells without a mask" in lost:
        frame = frame.filter(pl.Series([bool(code and masks.area(code)) for code in frame["mask"]], dtype=pl.Boolean))
    if "masks without a pixel" in lost:
        codes = [code if code and masks.area(code) else None for code in frame["mask"]]
        frame = frame.with_columns(mask=pl.Series(codes, dtype=pl.Binary))
    if "images with several cells" in lost:
        several = per_image.filter(pl.col("len") > 1)["image_id"].to_list()
        images = Images(images.frame.filter(~pl.col("image_id").is_in(several)))
    for aspect, name in (("splits", "split"), ("groups", "group")):
        if aspect in lost:
            images = images.with_columns(**{name: None})
    kept = replace(data, cells=Cells(frame, data.labels)).of_images(images)
    if "overlaps of masks" in lost:
        kept = replace(kept, cells=_without_overlaps(kept))
    if "boxes other than the mask's bounds" in lost:
        kept = replace(kept, cells=kept.cells.with_boxes(_tight_boxes(kept)))
    if "boxes other than the whole image" in lost:
        sizes = kept.cells.frame.select("image_id").join(images.frame, on="image_id", how="left", maintain_order="left")
        whole = [[0, 0, row["width_px"], row["height_px"]] for row in sizes.to_dicts()]
        kept = replace(kept, cells=kept.cells.with_boxes(np.array(whole, np.float32).reshape(-1, 4)))
    return _seen(kept)


def _sizes_hw(data: Dataset) -> dict[str, tuple[int, int]]:
    return {row["image_id"]: (row["height_px"], row["width_px"]) for row in data.images.rows()}


def _tight_boxes(data: Dataset) -> NDArray[np.float32]:
    """The boxes, those of cells with masks about the masks' pixels."""
    boxes, sizes = data.cells.boxes().copy(), _sizes_hw(data)
    for number, (image_id, code) in enumerate(data.cells.frame.select("image_id", "mask").iter_rows()):
        if code is not None:
            y, x = np.nonzero(masks.decode(code, sizes[image_id]))
            boxes[number] = [x.min(), y.min(), x.max() + 1, y.max() + 1]
    return boxes


def _without_overlaps(data: Dataset) -> Cells:
    """The cells less the pixels of better ones (higher score, else earlier), without those that keep none."""
    sizes, tables = _sizes_hw(data), []
    for image_id, cells in data.cells.by_image():
        taken = np.zeros(sizes[image_id], bool)
        left: list[bytes | None] = [None] * len(cells)
        for number in np.argsort(-cells.scores(), kind="stable"):
            own = masks.decode(cells.masks()[number], sizes[image_id]) & ~taken
            taken |= own
            left[number] = masks.encode(own) if own.any() else None
        tables.append(cells.with_masks(left).filter(pl.col("mask").is_not_null()))
    return join(tables, data.labels)


class FormatContract:
    """Inherited by the tests of each format; a subclass names it and how exact it is."""

    format: str
    box_error: float = 0.0  # of an edge, as a share of the image's side
    score_error: float = 0.0
    annotation_suffixes: tuple[str, ...]
    usual: frozenset[str] = frozenset()  # kinds of problems that data of another origin have in this format

    def can_copy(self, data: Dataset) -> bool:
        """Whether the images can be copied into folders of this format."""
        return True

    # -- tools ------------------------------------------------------------------------------------

    def sample(self, folder: Path, **changes: Any) -> Dataset:
        """`small_dataset`, with masks that fill the images where the format holds nothing else."""
        whole = masks.encode(np.ones((10, 20), bool))
        given = {"mask": [whole, whole]} if "cells without a mask" in self.lost else {}
        return small_dataset(folder, **given, **changes)

    def export(self, data: Dataset, folder: Path, *, copy_images: bool = True) -> formats.Problems:
        return formats.write(data, folder, self.format, WriteOptions(copy_images=copy_images))

    def import_(self, folder: Path, **options: Any) -> Imported:
        back = formats.read(folder, self.format, ReadOptions(**options))
        return replace(back, problems=Problems(one for one in back.problems if one.kind not in self.usual))

    def annotation_files(self, folder: Path) -> list[Path]:
        files = sorted(path for path in folder.rglob("*") if path.suffix in self.annotation_suffixes)
        assert files
        return files

    def image_files(self, folder: Path) -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)

    @property
    def lost(self) -> set[str]:
        return set(formats.cannot_keep(self.format))

    # -- round trips ------------------------------------------------------------------------------

    @RELAXED
    @given(data=filed_datasets(), copy_images=st.booleans())
    def test_what_is_written_is_read_again(self, data: Dataset, copy_images: bool) -> None:
        with temporary_folder() as folder:
            data = with_files(data, folder / "images of the user")
            copy_images = copy_images and self.can_copy(data)
            self.export(data, folder / "out", copy_images=copy_images)
            images = None if copy_images else folder / "images of the user"
            back = self.import_(folder / "out", images=images)
            assert back.problems.worst in (None, "note", "warning"), [str(problem) for problem in back.problems]
            expected, got = _expected(data, self.lost), _seen(back.dataset)
            assert got.keys() == expected.keys(), data.images.ids
            for key, (image, cells) in expected.items():
                assert got[key][0] == image, data.images.rows()
                self._same_cells(got[key][1], cells, image["size"])
            if "labels without cells" not in self.lost:
                assert back.dataset.labels.names == data.labels.names

    def _same_cells(self, got: list[dict[str, Any]], wanted: list[dict[str, Any]], size_wh: tuple[int, int]) -> None:
        assert len(got) == len(wanted)
        slack = self.box_error * np.array([*size_wh, *size_wh])
        for one, other in zip(got, wanted, strict=True):
            assert (one["label"], one["ignore"], one["mask"]) == (other["label"], other["ignore"], other["mask"])
            difference = np.abs([float(one[name]) - float(other[name]) for name in BOX_COLUMNS])
            assert (difference <= slack).all(), (one, other)
            if other["score"] is None or one["score"] is None:
                assert one["score"] is other["score"]
            else:
                assert abs(one["score"] - other["score"]) <= self.score_error

    @RELAXED
    @given(data=filed_datasets())
    def test_what_was_lost_is_said(self, data: Dataset) -> None:
        with temporary_folder() as folder:
            problems = self.export(with_files(data, folder / "images"), folder / "out", copy_images=False)
            present = {aspect for aspect in self.lost if ASPECTS[aspect][1](data)}
            assert {problem.where for problem in problems.of("not-kept")} == present

    def test_reading_twice_gives_the_same(self, tmp_path: Path) -> None:
        self.export(self.sample(tmp_path / "images"), tmp_path / "out")
        first, second = self.import_(tmp_path / "out"), self.import_(tmp_path / "out")
        assert first.dataset.fingerprint == second.dataset.fingerprint
        cells = first.dataset.cells.frame
        assert cells["cell_id"].is_unique().all()
        assert cells["source"].str.contains(r"^import:out@[0-9a-f]{8}$").all()
        assert len(cells) == 2
        assert first.dataset.provenance[0]["format"] == self.format
        for row in first.dataset.images.rows():
            assert (tmp_path / "out" / row["image_id"]).read_bytes() == Path(row["path"]).read_bytes()
            assert Path(row["path"]).is_absolute()

    def test_an_empty_dataset_comes_back_empty(self, tmp_path: Path) -> None:
        labels = LabelSet.of(["WBC", "RBC"])
        self.export(Dataset(Images.empty(), Cells.empty(labels)), tmp_path / "out")
        back = self.import_(tmp_path / "out")
        assert (len(back.dataset.images), len(back.dataset.cells), list(back.problems)) == (0, 0, [])
        if "labels without cells" not in self.lost:
            assert back.dataset.labels.names == labels.names

    def test_the_format_is_recognised(self, tmp_path: Path) -> None:
        self.export(self.sample(tmp_path / "images"), tmp_path / "out")
        back = formats.read(tmp_path / "out")
        assert back.dataset.provenance[0]["format"] == self.format
        assert back.dataset.fingerprint == self.import_(tmp_path / "out").dataset.fingerprint

    # -- options ----------------------------------------------------------------------------------

    def test_one_split(self, tmp_path: Path) -> None:
        self.export(self.sample(tmp_path / "images"), tmp_path / "out")
        part = self.import_(tmp_path / "out", split="val").dataset
        assert part.images.frame["split"].to_list() == ["val"]
        assert part.cells.label_names() == ["RBC"]
        with pytest.raises(FormatError, match=r'no split "vall".*Did you mean "val".*train, val'):
            self.import_(tmp_path / "out", split="vall")

    def test_a_split_for_data_without_any(self, tmp_path: Path) -> None:
        data = self.sample(tmp_path / "images")
        self.export(replace(data, images=data.images.with_columns(split=None)), tmp_path / "out")
        part = self.import_(tmp_path / "out", split="test").dataset
        assert part.images.frame["split"].to_list() == ["test", "test"]

    def test_names_groups_and_terms(self, tmp_path: Path) -> None:
        self.export(self.sample(tmp_path / "images"), tmp_path / "out")
        data = self.import_(
            tmp_path / "out", name="mine", group_pattern=r"(one|two)\.png$", complete_for=("leukocyte",), licence="CC0"
        ).dataset
        assert sorted(data.images.frame["group"].to_list()) == ["one", "two"]
        assert data.images.frame["complete_for"].to_list() == [["WBC"], ["WBC"]]
        assert (data.name, data.licence) == ("mine", "CC0")
        assert data.cells.frame["source"].str.starts_with("import:mine@").all()

    # -- what is wrong in the data ----------------------------------------------------------------

    def test_an_unknown_label_is_collected(self, tmp_path: Path) -> None:
        self.export(self.sample(tmp_path / "images"), tmp_path / "out")
        back = self.import_(tmp_path / "out", labels=LabelSet.of(["leukocyte", "platelet"]))
        (problem,) = back.problems.of("label-unknown")
        assert '"RBC"' in problem.what
        assert "1 cells" in problem.what
        assert problem.severity == "error"
        assert set(back.dataset.cells.label_names()) == {None, "leukocyte"}

    def test_boxes_outside_and_without_area_are_collected(self, tmp_path: Path) -> None:
        if {"boxes other than the whole image", "cells without a mask"} & self.lost:
            return
        boxes = np.array([[-3, 0, 20, 10], [5, 5, 5, 9]], np.float32)
        self.export(self.sample(tmp_path / "images", boxes=boxes), tmp_path / "out")
        back = self.import_(tmp_path / "out")
        (outside,), (flat,) = back.problems.of("box-outside-image"), back.problems.of("box-no-area")
        assert "-3, 0, 20, 10" in outside.what
        assert "20 × 10" in outside.what
        assert outside.where != flat.where
        assert len(back.problems) == 2
        assert np.allclose(back.dataset.cells.boxes(), boxes, atol=1e-4)

    def test_a_missing_image_is_collected(self, tmp_path: Path) -> None:
        self.export(self.sample(tmp_path / "images"), tmp_path / "out")
        next(path for path in self.image_files(tmp_path / "out") if path.stem == "one").unlink()
        back = self.import_(tmp_path / "out")
        (problem,) = back.problems.of("image-missing")
        assert "one" in problem.what
        assert "--images" in problem.fix
        assert back.dataset.cells.label_names() == ["RBC"]
        assert len(back.dataset.images) == 1

    def test_missing_images_can_be_allowed(self, tmp_path: Path) -> None:
        self.export(self.sample(tmp_path / "images"), tmp_path / "out")
        for path in self.image_files(tmp_path / "out"):
            path.unlink()
        with pytest.raises(FormatError, match=r"--images DIR.*--allow-missing-images"):
            self.import_(tmp_path / "out")
        back = self.import_(tmp_path / "out", allow_missing_images=True)
        assert back.dataset.images.frame.select("path", "sha256").null_count().row(0) == (2, 2)
        (note,) = back.problems.of("image-missing")
        assert (note.severity, note.what[:8]) == ("note", "2 images")
        unplaced = back.problems.of("image-size-unknown")
        assert len(back.dataset.cells) == (0 if unplaced else 2)

    @pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0 cut", b"\x89PNG\r\n\x1a\n"])
    def test_a_damaged_image_is_collected(self, tmp_path: Path, data: bytes) -> None:
        self.export(self.sample(tmp_path / "images"), tmp_path / "out")
        next(path for path in self.image_files(tmp_path / "out") if path.stem == "one").write_bytes(data)
        back = self.import_(tmp_path / "out")
        (problem,) = back.problems
        assert problem.kind in ("image-empty", "image-not-an-image", "image-damaged")
        assert problem.where.endswith("one.png")
        assert back.dataset.cells.label_names() == ["RBC"]

    # -- damaged annotations ----------------------------------------------------------------------

    def _read_anything(self, folder: Path, **options: Any) -> None:
        """Reading gives a dataset with its problems or a FormatError; anything else fails the test."""
        try:
            back = self.import_(folder, **options)
        except FormatError:
            return
        assert all(problem.where and problem.what for problem in back.problems)

    @RELAXED
    @given(data=st.binary(max_size=200))
    def test_nonsense_is_refused_or_collected(self, data: bytes) -> None:
        with temporary_folder() as folder:
            self.export(self.sample(folder / "images"), folder / "out")
            for path in self.annotation_files(folder / "out"):
                path.write_bytes(data)
            self._read_anything(folder / "out")

    @pytest.mark.parametrize("seed", range(4))
    def test_mutated_files_are_refused_or_collected(self, tmp_path: Path, seed: int) -> None:
        generator = random.Random(seed)
        self.export(self.sample(tmp_path / "images"), tmp_path / "out")
        files = self.annotation_files(tmp_path / "out")
        for turn in range(50):
            path = generator.choice(files)
            whole = path.read_bytes()
            path.write_bytes(mutated(whole, generator))
            self._read_anything(tmp_path / "out", allow_missing_images=bool(turn % 2))
            path.write_bytes(whole)
        assert len(self.import_(tmp_path / "out").dataset.cells) == 2


def mutated(data: bytes, generator: random.Random) -> bytes:
    """The bytes with one to three mistakes: flipped, cut out, doubled, overwritten by an awkward token, or cut off."""
    for _ in range(generator.randint(1, 3)):
        at, length = generator.randrange(len(data) + 1), generator.randint(1, 12)
        kind = generator.choice(["flip", "cut", "double", "token", "token", "end"])
        if kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << generator.randrange(8)]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + length :]
        elif kind == "double":
            data = data[:at] + data[at : at + length] + data[at:]
        elif kind == "token":
            data = data[:at] + generator.choice(_TOKENS) + data[at + length :]
        elif kind == "end" and generator.random() < 0.3:
            data = data[:at]
    return data
