"""Where results are kept: what a key is made of, when a result is whole, and that one run at a time is at work."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens.problems import SettingError
from cytolens.run import store as storing
from cytolens.run.store import Store, content_key, key_of

_SAID = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


# -- keys -----------------------------------------------------------------------------------------


def test_a_key_is_the_hash_of_the_sorted_json() -> None:
    text = '["split", 1, {"folds": 2, "größe": null}]'
    assert key_of(["split", 1, {"größe": None, "folds": 2}]) == hashlib.sha256(text.encode()).hexdigest()[:16]


@given(st.dictionaries(st.text(max_size=4), _SAID, max_size=4))
def test_the_order_of_settings_does_not_matter(settings: dict[str, object]) -> None:
    assert key_of(settings) == key_of(dict(reversed(settings.items())))


@given(_SAID, _SAID)
def test_other_settings_have_other_keys(one: object, other: object) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (key_of(one) == key_of(other)) == same


def test_a_file_is_known_by_its_content_and_not_by_its_time_or_name(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("one")
    key = content_key(file)
    assert key == hashlib.sha256(b"one").hexdigest()[:16]
    os.utime(file, (1, 1))
    assert content_key(file) == key
    assert content_key(Path(shutil.copy(file, tmp_path / "copy.csv"))) == key
    file.write_text("two")
    assert content_key(file) != key


def test_a_very_large_file_is_known_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "_HASHED_UP_TO", 2)
    file = tmp_path / "slide.tif"
    file.write_text("one")
    os.utime(file, (5, 5))
    key = content_key(file)
    file.write_text("two")
    os.utime(file, (5, 5))
    assert content_key(file) == key
    os.utime(file, (6, 6))
    assert content_key(file) != key


def test_a_folder_is_known_by_names_sizes_and_times(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "inner").mkdir(parents=True)
    one, two = folder / "a.png", folder / "inner" / "b.png"
    for file in (one, two):
        file.write_text("1234")
        os.utime(file, (5, 5))
    keys = [content_key(folder)]
    one.write_text("5678")
    os.utime(one, (5, 5))
    assert content_key(folder) == keys[0]
    os.utime(two, (6, 6))
    keys.append(content_key(folder))
    two.write_text("12345")
    os.utime(two, (6, 6))
    keys.append(content_key(folder))
    two.rename(folder / "inner" / "c.png")
    keys.append(content_key(folder))
    one.unlink()
    keys.append(content_key(folder))
    assert len(set(keys)) == 5
    moved = folder.rename(tmp_path / "elsewhere")
    assert content_key(moved) == keys[-1]


def test_what_is_not_there_has_no_content(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"none\.csv: there is no such file or folder"):
        content_key(tmp_path / "none.csv")


# -- results --------------------------------------------------------------------------------------


def test_a_result_is_whole_once_it_is_marked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.started("a fold=0", "k")
    folder = store.begin("a fold=0", "k", keep=False)
    assert folder == tmp_path / "steps" / "a.fold=0" / "k"
    assert (store.done("a fold=0", "k"), store.started("a fold=0", "k")) == (None, True)
    store.finish("a fold=0", "k", {"summary": {"cells": 3}})
    assert store.done("a fold=0", "k") == {"stage": "a fold=0", "key": "k", "summary": {"cells": 3}}
    assert not store.started("a fold=0", "k")
    assert store.done("a fold=0", "other") is None
    assert [file.name for file in folder.iterdir()] == ["done.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "other"}', "null"])
def test_a_damaged_marker_marks_nothing(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    (store.begin("a", "k", keep=False) / "done.json").write_text(text)
    assert store.done("a", "k") is None
    assert store.started("a", "k")


def test_what_a_stopped_attempt_left_is_kept_or_cleared_away(tmp_path: Path) -> None:
    store = Store(tmp_path)
    half = store.begin("a", "k", keep=True) / "half.txt"
    half.write_text("half")
    assert (store.begin("a", "k", keep=True) / "half.txt").read_text() == "half"
    assert [*store.begin("a", "k", keep=False).iterdir()] == []


@given(st.text(min_size=1, max_size=8))
def test_a_result_lies_below_the_folder_whatever_the_stage_is_called(name: str) -> None:
    folder = Store(Path("/out")).folder(f"step {name}", "k")
    assert folder.parts[:3] == ("/", "out", "steps")
    assert folder.parts[4:] == ("k",)
    assert not set(folder.parts[3]) & set('/\\:*?"<>| \n')


# -- one run at a time ----------------------------------------------------------------------------

_HOLD = """
import sys, time
from pathlib import Path
from cytolens.run.store import Store
with Store(Path(sys.argv[1])).alone():
    print("in", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_ends_however_it_ends(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    command = [sys.executable, "-c", _HOLD, str(store.out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        said = "out: another run is at work there; wait, or use another --out"
        with pytest.raises(SettingError, match=said), store.alone():
            raise AssertionError("two at a time")
        other.kill()
    with store.alone():
        assert store.out.is_dir()
    with store.alone():
        pass
