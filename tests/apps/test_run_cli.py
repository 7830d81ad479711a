"""`cytolens run`, as a user types it: made once, gone on with after a kill, and made again only where it has to be."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cytolens import formats
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from cytolens.run.store import Store
from tests.apps.speaking import COMMAND, Answer, listing, say, surroundings

_SMALL = SyntheticSettings(
    width_px=192, height_px=192, red_cells=(3, 6), white_cells=(1, 1), platelets=(0, 1),
    red_cell_diameter_px=(26, 34), debris=(0, 1),
)  # fmt: skip
RECIPE = """
name = "toy"
source = "FOLDER/truth.json"
[steps.raw]
do = "import"
source = "${source}"
format = "coco"
images = "FOLDER"
[steps.mended]
do = "repair"
dataset = "@raw"
[steps.folds]
do = "split"
dataset = "@mended"
folds = 2
[steps.found]
do = "predict"
each = { tta = ["none", "flip"], fold = 2 }
dataset = "@folds"
bundle = "smear-detector"
where = "fold = ${fold}"
tta = "${tta}"
[steps.fused]
do = "fuse"
each = { fold = 2 }
members = ["@found"]
[steps.scores]
do = "evaluate"
truth = "@folds"
found = ["@fused"]
task = "detection"
settings = { intervals = false, level = ["leukocyte", "erythrocyte", "platelet"] }
[scale.smoke]
"steps.folds.folds" = 3
"""
FOUND = [f"found tta={tta} fold={fold}" for tta in ("none", "flip") for fold in (0, 1)]
ALL = ["raw", "mended", "folds", *FOUND, "fused fold=0", "fused fold=1", "scores"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe above over six rendered fields."""
    folder = tmp_path_factory.mktemp("toy")
    dataset = write_synthetic(folder / "smears", 6, 3, _SMALL, fields_per_slide=1)
    formats.write(dataset, folder / "smears" / "truth.json", "coco")
    (folder / "toy.toml").write_text(RECIPE.replace("FOLDER", str(folder / "smears")))
    return folder / "toy.toml"


@dataclass(frozen=True)
class Made:
    """A run that nothing disturbed."""

    out: Path
    answer: Answer


@pytest.fixture(scope="module")
def made(recipe: Path) -> Made:
    out = recipe.parent / "made"
    return Made(out, say("run", recipe, "--out", out, "--json"))


def results(out: Path) -> dict[str, Any]:
    """File → what is in it, without what tells of times: tables as they are, the rest as text."""
    found: dict[str, Any] = {}
    for marker in out.glob("steps/*/*/done.json"):
        for file in marker.parent.iterdir():
            name = file.relative_to(out).as_posix()
            if file.suffix == ".parquet":
                found[name] = pl.read_parquet(file)
            elif file.name in ("scores.json", "dataset.json", "report.html") or file.suffix == ".csv":
                found[name] = file.read_text()
    return found


def markers(out: Path) -> dict[Path, bytes]:
    """What is whole, with the time when it was begun."""
    return {place.relative_to(out): place.read_bytes() for place in out.glob("steps/*/*/done.json")}


# -- left alone -----------------------------------------------------------------------------------


def test_what_a_run_says(made: Made) -> None:
    assert made.answer.code == 0, made.answer.err
    said = made.answer.json
    assert (said["out"], said["stages"], said["made"]) == (str(made.out), len(ALL), ALL)
    assert [*said["results"]] == ["scores"]
    last = said["results"]["scores"]
    assert last["map50"] > 0.5
    scores = json.loads((Path(last["folder"]) / "scores.json").read_text())
    assert scores["map50"] == last["map50"]
    assert scores["images"] == 6
    assert made.answer.err == ""


def test_what_a_run_leaves(made: Made) -> None:
    said = json.loads((made.out / "run.json").read_text())
    assert [one["name"] for one in said["stages"]] == ALL
    assert all((made.out / one["folder"] / "done.json").exists() for one in said["stages"])
    assert said["stages"][0]["summary"]["images"] == 6
    assert said["stages"][-1]["takes"] == ["folds", "fused fold=0", "fused fold=1"]
    endings = {Path(name).suffix for name in listing(made.out)}
    assert endings <= {".json", ".parquet", ".csv", ".html", ""}, endings
    assert [name for name in listing(made.out) if not Path(name).suffix] == [".lock"]
    for name in listing(made.out):  # a pickle begins with its protocol, 2 or more
        assert (made.out / name).read_bytes()[:1] != b"\x80", name


def test_the_same_again_makes_nothing(recipe: Path, made: Made) -> None:
    before = markers(made.out)
    again = say("run", recipe, "--out", made.out)
    assert again.code == 0
    assert again.out.startswith("0 of 10 steps made, the others were there;")
    assert "    map50: " in again.out
    assert again.err == ""
    assert markers(made.out) == before


def test_a_changed_setting_makes_again_what_follows_and_going_back_makes_nothing(recipe: Path, made: Made) -> None:
    before = markers(made.out)
    iou = ("run", recipe, "--out", made.out, "--json", "--set", "steps.fused.settings.iou=0.7")
    plan = say(*iou, "--dry-run").json
    assert {one["name"]: one["why"] for one in plan["stages"] if one["state"] != "done"} == {
        "fused fold=0": 'changed: settings null → {"iou": 0.7}',
        "fused fold=1": 'changed: settings null → {"iou": 0.7}',
        "scores": "follows from fused fold=0, fused fold=1",
    }
    assert markers(made.out) == before
    assert say(*iou).json["made"] == ["fused fold=0", "fused fold=1", "scores"]
    assert markers(made.out).items() > before.items()
    assert say("run", recipe, "--out", made.out, "--json").json["made"] == []
    assert say(*iou).json["made"] == []


# -- planned --------------------------------------------------------------------------------------


def test_a_plan_says_why_and_leaves_nothing(recipe: Path, tmp_path: Path) -> None:
    shown = say("run", recipe, "--out", tmp_path / "out", "--dry-run")
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert lines[:4] == [
        "raw [import] — to do: was never made",
        "└─ mended [repair] — to do: was never made",
        "   └─ folds [split] — to do: was never made",
        "      ├─ found tta=none fold=0 [predict] — to do: was never made",
    ]
    assert lines[-1] == "10 of 10 steps to do"
    smoke = say("run", recipe, "--out", tmp_path / "out", "--dry-run", "--json", "--scale", "smoke").json
    assert (smoke["to_do"], len(smoke["stages"])) == (10, 10)
    assert smoke["stages"][0].keys() == {"name", "do", "state", "why", "key", "folder", "takes"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "smok"], 'Did you mean "smoke"?'),
        (["--set", "sorce=x"], 'there is no "sorce". Did you mean "source"?'),
        (["--set", "steps.fold.seed=1"], 'there is no step "fold". Did you mean "folds"?'),
        (["--set", "steps.folds.sead=1"], 'steps.folds: unknown setting "sead". Did you mean "seed"?'),
        (["--set", 'steps.folds.do="splitt"'], 'do = "splitt" is unknown. Did you mean "split"?'),
        (["--set", "steps.fused.settings.iuo=1"], 'steps.fused: settings: unknown setting "iuo". Did you mean "iou"?'),
        (["--set", 'steps.fused.members=["@fond"]'], 'there is no step "fond". Did you mean "found"?'),
        (["--set", 'steps.found.bundle="smear-detectr"'], 'Did you mean "smear-detector"?'),
        (["--set", "steps.folds.folds=1"], "folds = 1: Input should be greater than or equal to 2"),
        (["--set", "steps.raw.images=none"], "none: there is no such file or folder"),
        (["--engine", "spark"], 'no engine "spark"; allowed: local, ray'),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(recipe: Path, tmp_path: Path, words: list[str], message: str) -> None:
    assert message in say("run", recipe, "--out", tmp_path / "out", *words).complaint
    assert not (tmp_path / "out").exists()


# -- disturbed ------------------------------------------------------------------------------------


def test_a_second_run_in_the_folder_is_refused(recipe: Path, tmp_path: Path) -> None:
    with Store(tmp_path).alone():
        answer = say("run", recipe, "--out", tmp_path, "--json")
    assert answer.code == 2
    assert answer.json["error"] == f"{tmp_path}: another run is at work there; wait, or use another --out"


def test_a_step_that_fails_leaves_the_others(recipe: Path, tmp_path: Path) -> None:
    sets = ("--set", "steps.found={do = 'predict', dataset = '@folds', bundle = 'smear-detector', where = 'fold = 9'}")
    sets = (*sets, "--set", "steps.fused.each={}")
    failed = say("run", recipe, "--out", tmp_path, *sets)
    assert failed.code == 2
    lines = failed.err.splitlines()
    assert lines[-2:] == ["found: failed", 'cytolens: no image of "truth" meets "fold = 9"']
    assert len(markers(tmp_path)) == 3
    assert not (tmp_path / "run.json").exists()
    shown = say("run", recipe, "--out", tmp_path, "--dry-run", "--json").json
    assert [one["name"] for one in shown["stages"] if one["state"] == "done"] == ["raw", "mended", "folds"]


def started(recipe: Path, out: Path, reached: Callable[[], bool]) -> subprocess.Popen[str]:
    """The real command in a process group of its own, once it has reached something."""
    process = subprocess.Popen(
        [COMMAND, "run", str(recipe), "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings(), start_new_session=True,
    )  # fmt: skip
    while not reached() and process.poll() is None:
        time.sleep(0.005)
    return process


def begun(out: Path) -> int:
    """How many stages were begun."""
    return len([*out.glob("steps/*/*")])


@pytest.mark.slow
def test_killed_at_random_and_interrupted_it_ends_where_it_would_have_ended(
    recipe: Path, made: Made, tmp_path: Path
) -> None:
    # Paths of images are kept relative to the results, so both runs stand beside each other.
    out, chance = recipe.parent / "disturbed", random.Random(5)
    more = 2

    def reached() -> bool:
        return begun(out) >= wanted

    for how in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        kept, wanted = markers(out), begun(out) + more
        process = started(recipe, out, reached)
        time.sleep(chance.uniform(0, 0.2))
        os.killpg(process.pid, how)
        err = process.communicate(timeout=120)[1]
        if how == signal.SIGINT:
            assert process.returncode == 130, err
            assert "interrupted; what is on disk is whole" in err
        else:
            assert process.returncode == -signal.SIGKILL, err
        assert markers(out).items() >= kept.items()
        assert not (out / "run.json").exists()
    kept = markers(out)
    assert 3 <= len(kept) < len(ALL)
    last = say("run", recipe, "--out", out, "--json").json
    assert len(last["made"]) == len(ALL) - len(kept)
    assert markers(out).items() > kept.items()
    for name in markers(out):  # the same keys, and so the same folders
        one, other = (json.loads((folder / name).read_text())["summary"] for folder in (out, made.out))
        assert {**one, "ms_per_image": 0} == {**other, "ms_per_image": 0}
    there, wanted_there = results(out), results(made.out)
    assert len(there) >= 20
    for name, content in there.items():
        same = wanted_there[name]
        assert content.equals(same) if isinstance(content, pl.DataFrame) else content == same, name
