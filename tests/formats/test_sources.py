from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens.formats import sources
from cytolens.formats.sources import ImageIndex
from cytolens.problems import Problems
from tests.contracts import save_picture


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a.png", "a.png"),
        (" ./x//y/./a.png ", "x/y/a.png"),
        ("C:\\x\\a.png", "C:/x/a.png"),
        ("/x/a.png", "/x/a.png"),
        ("///", ""),
        ("", ""),
        ("../a.png", "../a.png"),
    ],
)
def test_names_as_annotations_write_them(text: str, name: str) -> None:
    assert sources.posix_name(text) == name


@given(st.text())
def test_a_name_is_settled_after_one_pass(text: str) -> None:
    once = sources.posix_name(text)
    assert sources.posix_name(once) == once.strip() or once != once.strip()


def test_walking_leaves_out_what_is_hidden_and_ends_in_a_ring(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a/x.png", ".hidden.png", ".git/y.png", "a/._x.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert [name for name, _ in sources.walk(tmp_path)] == ["a/x.png", "b.png", "link/x.png"]
    assert list(sources.walk(tmp_path / "nowhere")) == []


def test_a_name_that_is_no_text_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.png"))).write_bytes(b"")
    assert ImageIndex(tmp_path, tmp_path).ids == ["a.png"]


class TestResolve:
    def index(self, folder: Path, *names: str) -> ImageIndex:
        return ImageIndex(folder, touch(folder, *names))

    def test_a_path_wins_over_a_name(self, tmp_path: Path) -> None:
        index = self.index(tmp_path, "x/a.png", "a.png")
        assert index.resolve(["a.png", "x/a.png"]) == {"a.png": "a.png", "x/a.png": "x/a.png"}

    def test_paths_below_the_listed_folder(self, tmp_path: Path) -> None:
        touch(tmp_path, "images/x/a.png", "other/a.png")
        index = ImageIndex(tmp_path, tmp_path / "images")
        assert index.ids == ["images/x/a.png"]
        assert index.resolve(["x/a.png", "images/x/a.png"]) == dict.fromkeys(
            ["x/a.png", "images/x/a.png"], "images/x/a.png"
        )

    def test_most_shared_folders_decide(self, tmp_path: Path) -> None:
        index = self.index(tmp_path, "s/p1/a.png", "s/p2/a.png", "p3/a.png", "b.png", "q/b.png")
        assert index.resolve(["/home/me/p2/a.png"]) == {"/home/me/p2/a.png": "s/p2/a.png"}
        assert index.resolve(["z/a.png"]) == {"z/a.png": None}
        assert index.resolve(["elsewhere/b.png"]) == {"elsewhere/b.png": "b.png"}

    def test_two_names_cannot_both_mean_one_file_by_its_bare_name(self, tmp_path: Path) -> None:
        index = self.index(tmp_path, "train/1.png", "b/2.png")
        assert index.resolve(["train/1.png", "val/1.png"]) == {"train/1.png": "train/1.png", "val/1.png": None}
        assert index.resolve(["x/2.png", "y/2.png"]) == {"x/2.png": None, "y/2.png": None}

    def test_case_and_suffix(self, tmp_path: Path) -> None:
        index = self.index(tmp_path, "A.JPG", "b.tif", "c.png", "c.jpg")
        assert index.resolve(["a.jpg", "b", "b.png", "c"]) == {"a.jpg": "A.JPG", "b": "b.tif", "b.png": None, "c": None}
        assert index.resolve(["b.png"], any_suffix=True) == {"b.png": "b.tif"}
        assert sorted(index.candidates("c")) == ["c.jpg", "c.png"]

    def test_images_that_nothing_names(self, tmp_path: Path) -> None:
        index = self.index(tmp_path, "p/a.png", "p/b.png", "masks/a.png", "q/images/c.png")
        assert index.others({"p/a.png", None}) == ["p/b.png", "q/images/c.png"]
        assert ImageIndex(tmp_path, tmp_path / "masks").others(set()) == ["masks/a.png"]

    def test_many_missing_images_cost_nothing(self, tmp_path: Path) -> None:
        index = self.index(tmp_path, "a.png")
        started = time.process_time()
        found = index.resolve(f"{number}.png" for number in range(48_000))
        assert time.process_time() - started < 2
        assert set(found.values()) == {None}


def test_pictures_are_measured_and_hashed(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", (7, 5))
    touch(tmp_path, "b.png")
    problems = Problems()
    index = ImageIndex(tmp_path, tmp_path)
    pictures = sources.read_pictures(index, index.ids, problems)
    assert list(pictures) == ["a.png"]
    assert pictures["a.png"].size_wh == (7, 5)
    assert [(problem.kind, problem.where) for problem in problems] == [("image-empty", "b.png")]
