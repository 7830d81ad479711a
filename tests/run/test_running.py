"""A run: what it makes, what it writes down, and how it goes on after a failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cytolens
from cytolens import __version__
from cytolens.problems import DatasetError, SettingError
from cytolens.run.running import RunResult, run
from cytolens.run.step_kinds import STEPS
from cytolens.run.store import Store
from tests.run.toy_steps import TOYS, value

RECIPE = """
name = "toy"
description = "Adds numbers."
start = 1
[steps.one]
do = "add"
plus = "${start}"
[steps.fold]
do = "add"
each = { fold = 2 }
parts = ["@one"]
plus = "${fold}"
[steps.weak]
do = "break"
part = "@one"
while_there = "THERE"
[steps.both]
do = "add"
parts = ["@fold", "@weak"]
"""
ALL = ("one", "fold fold=0", "fold fold=1", "weak", "both")


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in TOYS.items():
        monkeypatch.setitem(STEPS, name, kind)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The recipe above; nothing is in the way."""
    file = tmp_path / "toy.toml"
    file.write_text(RECIPE.replace("THERE", str(tmp_path / "obstacle")))
    return file


def started(result: RunResult) -> dict[str, float]:
    """When each result was begun."""
    return {name: json.loads((place / "done.json").read_text())["started"] for name, place in result.folders.items()}


def test_a_run_makes_everything_once(recipe: Path, tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    first = run(recipe, tmp_path / "out", told=lambda name, what, _: told.append((name, what)))
    assert first.made == ALL
    assert told == [
        ("one", "start"), ("one", "note"), ("one", "done"),
        ("fold fold=0", "start"), ("fold fold=0", "note"), ("fold fold=0", "done"),
        ("fold fold=1", "start"), ("fold fold=1", "note"), ("fold fold=1", "done"),
        ("weak", "start"), ("weak", "done"),
        ("both", "start"), ("both", "note"), ("both", "done"),
    ]  # fmt: skip
    assert {name: value(place) for name, place in first.folders.items()} == {
        "one": 1, "fold fold=0": 1, "fold fold=1": 2, "weak": 1, "both": 4,
    }  # fmt: skip
    assert first.summaries["both"] == {"value": 4}
    told.clear()
    again = run(recipe, tmp_path / "out", told=lambda name, what, _: told.append((name, what)))
    assert (again.made, told, again.folders) == ((), [], first.folders)
    assert started(again) == started(first)


def test_run_json_says_what_was_made_of_what(recipe: Path, tmp_path: Path) -> None:
    run(recipe, tmp_path / "out")
    sets = ["steps.fold.when={1 = {plus = 5}}", "start=1"]
    result = run(recipe, tmp_path / "out", overrides=sets)
    said = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (said["recipe"], said["file"], said["scale"], said["engine"]) == ("toy", str(recipe), "full", "local")
    assert (said["overrides"], said["values"]) == (sets, {"start": 1})
    assert said["versions"]["cytolens"] == __version__
    assert {"python", "numpy", "polars"} <= said["versions"].keys()
    by_name = {one["name"]: one for one in said["stages"]}
    assert tuple(by_name) == ALL
    assert {name for name, one in by_name.items() if one["made_now"]} == {"fold fold=1", "both"}
    fold = by_name["fold fold=1"]
    assert (fold["do"], fold["takes"], fold["summary"]) == ("add", ["one"], {"value": 6})
    assert fold["settings"] == {"parts": [{"result": by_name["one"]["key"]}], "plus": 5}
    assert tmp_path / "out" / fold["folder"] == result.folders["fold fold=1"]
    assert fold["folder"] == f"steps/fold.fold=1/{fold['key']}"
    assert by_name["both"]["takes"] == ["fold fold=0", "fold fold=1", "weak"]


def test_a_failure_leaves_what_is_made_and_the_next_call_goes_on(recipe: Path, tmp_path: Path) -> None:
    out, obstacle = tmp_path / "out", tmp_path / "obstacle"
    obstacle.touch()
    told: list[tuple[str, str, Any]] = []
    with pytest.raises(DatasetError, match="obstacle is in the way; remove it"):
        run(recipe, out, told=lambda *said: told.append(said))
    assert told[-1] == ("weak", "failed", {"text": f"{obstacle} is in the way; remove it"})
    assert not (out / "run.json").exists()
    assert sorted(place.parent.parent.name for place in out.glob("steps/*/*/done.json")) == [
        "fold.fold=0", "fold.fold=1", "one",
    ]  # fmt: skip
    before = {place: place.read_bytes() for place in out.glob("steps/*/*/done.json")}
    obstacle.unlink()
    result = run(recipe, out)
    assert result.made == ("weak", "both")
    assert value(result.folders["weak"]) == 2  # it went on with what the first attempt left
    assert all(place.read_bytes() == content for place, content in before.items())


def test_an_interruption_leaves_what_is_made(recipe: Path, tmp_path: Path) -> None:
    def stop(name: str, what: str, more: dict[str, Any]) -> None:
        if (name, what) == ("fold fold=1", "note"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "out", told=stop)
    assert run(recipe, tmp_path / "out").made == ALL[2:]


def test_two_runs_in_one_folder(recipe: Path, tmp_path: Path) -> None:
    with (
        Store(tmp_path / "out").alone(),
        pytest.raises(SettingError, match="another run is at work there; wait, or use another --out"),
    ):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "steps").exists()
    assert run(recipe, tmp_path / "out").made == ALL


def test_nothing_is_left_of_a_request_that_is_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match='no engine "spark"; allowed: local, ray'):
        run(recipe, tmp_path / "out", engine="spark")
    with pytest.raises(SettingError, match="--address names a Ray cluster; it goes with --engine ray"):
        run(recipe, tmp_path / "out", address="10.0.0.1:6379")
    with pytest.raises(SettingError, match=r'there is no "starts"\. Did you mean "start"'):
        run(recipe, tmp_path / "out", overrides=["starts=1"])
    assert not (tmp_path / "out").exists()


def test_run_is_a_public_name_and_a_package(recipe: Path, tmp_path: Path) -> None:
    assert "run" in cytolens.__all__
    made = cytolens.run(recipe, tmp_path / "out", overrides=["start=2"])  # type: ignore[operator]
    assert isinstance(made, RunResult)
    assert made.summaries["one"] == {"value": 2}
    import cytolens.run.store as inside

    assert inside.Store is Store
