"""Soft outlines on disk come back as they were, and what is no such file is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytolens.labels import LabelSet
from cytolens.predict.soft_outlines import read_soft_outlines, soft_outline_files, write_soft_outlines
from cytolens.problems import DatasetError, FormatError, LabelError
from cytolens.tasks.segment import SoftOutlines


def outlines(count: int, seed: int = 0, labels: int = 3) -> SoftOutlines:
    random = np.random.default_rng(seed)
    class_scores = random.random((count, labels), np.float32)
    return SoftOutlines(
        size_hw=(40, 60),
        boxes=(random.random((count, 4)) * 20 + [0, 0, 20, 20]).astype(np.float32),
        classes=class_scores.argmax(axis=1) if count else np.zeros(0, np.intp),
        scores=class_scores.max(axis=1, initial=0),
        class_scores=class_scores,
        patches=random.integers(0, 256, (count, 28, 28), np.uint8),
    )


def same(a: SoftOutlines, b: SoftOutlines) -> bool:
    return all(np.array_equal(getattr(a, one.name), getattr(b, one.name)) for one in fields(SoftOutlines))


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1), st.integers(0, 4))
@settings(max_examples=40)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, image_id: str, count: int):
    folder = tmp_path_factory.mktemp("soft")
    soft = outlines(count, seed=count)
    path = write_soft_outlines(folder, image_id, soft, ["shsy5y", "astro", "cort"])
    assert path.parent == folder
    stored = read_soft_outlines(path)
    assert (stored.image_id, stored.names) == (image_id, ("shsy5y", "astro", "cort"))
    assert same(stored.soft, soft)
    assert soft_outline_files(folder) == {image_id: path}


def test_equal_outlines_are_equal_bytes(tmp_path: Path):
    first = write_soft_outlines(tmp_path / "a", "x.png", outlines(3), "abc")
    second = write_soft_outlines(tmp_path / "b", "x.png", outlines(3), "abc")
    assert first.read_bytes() == second.read_bytes()


def test_classes_follow_the_names_into_another_label_set(tmp_path: Path):
    soft = outlines(5)
    stored = read_soft_outlines(write_soft_outlines(tmp_path, "x", soft, ["a", "b", "c"]))
    wider = LabelSet.of(["c", "more", "a", "b"])
    spoken = stored.spoken(wider)
    assert [wider.names[i] for i in spoken.classes] == ["abc"[i] for i in soft.classes]
    assert np.array_equal(spoken.class_scores[:, [2, 3, 0]], soft.class_scores)
    assert not spoken.class_scores[:, 1].any()
    assert stored.spoken(LabelSet.of(["a", "b", "c"])) is stored.soft
    with pytest.raises(LabelError, match=r'soft outlines of "x".*"c"'):
        stored.spoken(LabelSet.of(["a", "b"]))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path):
    path = write_soft_outlines(tmp_path, "x", outlines(2), "abc")
    whole = dict(np.load(path))

    def changed(**arrays: object) -> Path:
        np.savez(tmp_path / "other.npz", **(whole | arrays))  # type: ignore[arg-type]
        return tmp_path / "other.npz"

    for arrays, what in (
        ({"format_version": np.int64(2)}, "format version 2"),
        ({"boxes": np.zeros((3, 4), np.float32)}, r"boxes has shape \(3, 4\), not \(2, 4\)"),
        ({"boxes": np.zeros((2, 4))}, "an array holds float64"),
        ({"scores": np.array([np.nan, 1], np.float32)}, "no numbers"),
        ({"classes": np.array([0, 3], np.int32)}, "places in 3 labels"),
        ({"size_hw": np.array([0, 4])}, "the image is 4 × 0 px"),
        ({"patches": np.array([{}, {}], object)}, "no file of soft outlines"),  # would have to be unpickled
    ):
        with pytest.raises(FormatError, match=what):
            read_soft_outlines(changed(**arrays))
    with (tmp_path / "other.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(FormatError, match="no file of soft outlines"):
        read_soft_outlines(tmp_path / "other.npz")
    (tmp_path / "other.npz").write_bytes(path.read_bytes()[:-90])
    with pytest.raises(FormatError, match=r"other\.npz"):
        soft_outline_files(tmp_path)
    with pytest.raises(FormatError, match="there is no such file"):
        read_soft_outlines(tmp_path / "none.npz")
    with pytest.raises(DatasetError, match="holds no soft outlines"):
        soft_outline_files(tmp_path / "nowhere")


def test_two_files_of_one_image_are_refused(tmp_path: Path):
    path = write_soft_outlines(tmp_path, "x", outlines(2), "abc")
    (tmp_path / "copy.npz").write_bytes(path.read_bytes())
    with pytest.raises(DatasetError, match="both of image"):
        soft_outline_files(tmp_path)
