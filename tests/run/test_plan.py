"""The plan: keys, what is to be done and why, and what is refused before anything is done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cytolens.problems import BundleError, CytolensError, SettingError
from cytolens.run.engine_local import run_stages
from cytolens.run.plan import Planned, drawn, plan, remember
from cytolens.run.recipe import load
from cytolens.run.step_kinds import STEPS
from cytolens.run.steps_models import TrainStep
from cytolens.run.store import Store
from tests.apps.speaking import python
from tests.run.toy_steps import TOYS, AddStep, value

_RECIPES = Path(__file__).resolve().parents[2] / "recipes"
RECIPE = """
name = "toy"
source = "SOURCE"
[steps.one]
do = "take"
source = "${source}"
[steps.fold]
do = "add"
each = { fold = 2 }
parts = ["@one"]
plus = "${fold}"
[steps.both]
do = "add"
parts = ["@fold"]
cpus = 1
[steps.aside]
do = "add"
named = { x = ["@one"] }
plus = 7
"""
_KEYS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from cytolens.run.plan import plan
from cytolens.run.recipe import load
from cytolens.run.step_kinds import STEPS
from cytolens.run.store import Store
from tests.run.toy_steps import TOYS
STEPS.update(TOYS)
print(*(one.key for one in plan(load(Path(sys.argv[2])), Store(Path("elsewhere")))))
"""
ALL = ["one", "fold fold=0", "fold fold=1", "both", "aside"]


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in TOYS.items():
        monkeypatch.setitem(STEPS, name, kind)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The recipe above over a file with the number 3."""
    (tmp_path / "number.txt").write_text("3")
    file = tmp_path / "toy.toml"
    file.write_text(RECIPE.replace("SOURCE", str(tmp_path / "number.txt")))
    return file


def planned(recipe: Path, *overrides: str, out: str = "out") -> dict[str, Planned]:
    """The plan by stage."""
    return {one.name: one for one in plan(load(recipe, overrides), Store(recipe.parent / out))}


def make(recipe: Path, *overrides: str) -> list[str]:
    """Do what is to be done; returns the names of it."""
    store, stages = Store(recipe.parent / "out"), [*planned(recipe, *overrides).values()]
    run_stages(stages, store, lambda *_: None)
    remember(stages, store)
    return [one.name for one in stages if one.state != "done"]


def keys(recipe: Path, *overrides: str) -> dict[str, str]:
    return {name: one.key for name, one in planned(recipe, *overrides).items()}


def changed(recipe: Path, *overrides: str) -> list[str]:
    """The stages whose keys a change changes."""
    before, after = keys(recipe), keys(recipe, *overrides)
    return [name for name in before if before[name] != after[name]]


# -- keys -----------------------------------------------------------------------------------------


def test_a_key_is_the_same_in_every_process_and_for_every_run_folder(recipe: Path) -> None:
    answer = python(_KEYS, _RECIPES.parent, recipe)
    assert answer.out.split() == [*keys(recipe).values()], answer.err
    assert {len(key) for key in answer.out.split()} == {16}


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("steps.one.scale=2", ALL),
        ("steps.fold.plus=5", ["fold fold=0", "fold fold=1", "both"]),
        ("steps.fold.when={1 = {plus = 9}}", ["fold fold=1", "both"]),
        ("steps.both.plus=1", ["both"]),
        ("steps.aside.plus=1", ["aside"]),
        ("steps.aside.named={y = ['@one']}", ["aside"]),
        ("steps.both.cpus=4", []),
        ("steps.both.gpus=1", []),
        ("steps.aside.plus=7", []),
        ('name="other"', []),
    ],
)
def test_a_setting_changes_its_own_key_and_those_that_follow(recipe: Path, override: str, names: list[str]) -> None:
    assert changed(recipe, override) == names


def test_the_version_of_a_step_is_part_of_its_key(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(recipe)
    monkeypatch.setattr(AddStep, "version", 2)
    assert [name for name, key in keys(recipe).items() if key != before[name]] == ALL[1:]


def test_the_content_of_a_file_from_outside_is_part_of_the_key_and_its_place_is_not(recipe: Path) -> None:
    file, copy = recipe.parent / "number.txt", recipe.parent / "copy.txt"
    copy.write_text("3")
    os.utime(file, (1, 1))
    assert changed(recipe, f"source={copy}") == []
    copy.write_text("4")
    assert changed(recipe, f"source={copy}") == ALL


def test_public_weights_are_known_by_name_and_weights_of_ones_own_by_content(tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    own.write_text("1")
    assert TrainStep.place("settings.weights", "yolox-s-coco") is None
    assert TrainStep.place("settings.weights", str(own)) == own
    assert TrainStep.place("recipe", "none.toml") == Path("none.toml")


# -- what is to be done, and why ------------------------------------------------------------------


def whys(recipe: Path, *overrides: str) -> dict[str, str]:
    """Why each stage that is not done is to be done."""
    return {name: one.why for name, one in planned(recipe, *overrides).items() if one.state != "done"}


def test_every_stage_says_why(recipe: Path) -> None:
    assert whys(recipe) == dict.fromkeys(ALL, "was never made")
    assert make(recipe) == ALL
    assert whys(recipe) == {}
    assert whys(recipe, "steps.fold.plus=5") == {
        "fold fold=0": "changed: plus 0 → 5",
        "fold fold=1": "changed: plus 1 → 5",
        "both": "follows from fold fold=0, fold fold=1",
    }
    assert whys(recipe, "steps.aside.named={y = ['@one']}", "steps.aside.plus=6")["aside"] == (
        'changed: named.x [{"result": "KEY"}] → null, named.y null → [{"result": "KEY"}], plus 7 → 6'
    ).replace("KEY", keys(recipe)["one"])
    (recipe.parent / "number.txt").write_text("4")
    assert whys(recipe)["one"] == "changed: the files of source"
    assert whys(recipe)["aside"] == "follows from one"


def test_a_new_version_and_a_lost_result_are_told_apart(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(recipe)
    (planned(recipe)["both"].folder / "done.json").unlink()
    assert whys(recipe) == {"both": "was not finished"}
    assert make(recipe) == ["both"]
    monkeypatch.setattr(AddStep, "version", 2)
    assert whys(recipe) == {
        **dict.fromkeys(ALL[1:3], "changed: the program's version of this step"),
        "both": "follows from fold fold=0, fold fold=1",
        "aside": "changed: the program's version of this step",
    }


def test_only_what_follows_is_made_again_and_going_back_makes_nothing(recipe: Path) -> None:
    assert make(recipe) == ALL
    assert value(planned(recipe)["both"].folder) == 3 + 4
    assert make(recipe, "steps.fold.plus=5") == ["fold fold=0", "fold fold=1", "both"]
    assert value(planned(recipe, "steps.fold.plus=5")["both"].folder) == 8 + 8
    assert make(recipe) == []
    assert value(planned(recipe)["both"].folder) == 3 + 4
    assert make(recipe, "steps.fold.plus=5") == []


def test_a_plan_is_drawn_as_a_tree(recipe: Path) -> None:
    make(recipe)
    lines = drawn([*planned(recipe, "steps.fold.when={1 = {plus = 9}}").values()])
    assert lines == [
        "one [take] — done",
        "├─ fold fold=0 [add] — done",
        "├─ fold fold=1 [add] — to do: changed: plus 1 → 9",
        "│  └─ both [add] — to do: follows from fold fold=1",
        "└─ aside [add] — done",
    ]


def test_planning_leaves_nothing(recipe: Path) -> None:
    planned(recipe)
    assert not (recipe.parent / "out").exists()


# -- what is refused ------------------------------------------------------------------------------


def refused(recipe: Path, *overrides: str, kind: type[CytolensError] = SettingError) -> str:
    with pytest.raises(kind) as raised:
        planned(recipe, *overrides)
    assert type(raised.value) is kind
    return str(raised.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('steps.one.do="taek"', 'toy: steps.one: do = "taek" is unknown. Did you mean "take"? Allowed: import, images'),
        ("steps.one.scal=1", 'toy: steps.one: unknown setting "scal". Did you mean "scale"? Allowed here: source, sca'),
        ('steps.one.scale="x"', "toy: steps.one: scale = 'x': "),
        ("steps.one={do = 'take'}", "toy: steps.one: source = {}: Field required"),
        ("source=none.txt", "none.txt: there is no such file or folder"),
        ("steps.aside.plus=13", "toy: steps.aside: plus = 13: choose another"),
    ],
)
def test_a_mistake_is_found_before_anything_is_done(recipe: Path, override: str, message: str) -> None:
    assert message in refused(recipe, override)


def test_what_is_done_is_not_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(recipe)

    def refuse(step: AddStep) -> None:
        raise SettingError("never")

    monkeypatch.setattr(AddStep, "check", refuse)
    assert make(recipe) == []
    assert refused(recipe, "steps.aside.plus=1") == "toy: steps.aside: never"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            'do = "fuse"\nmembers = ["a"]\nsettings = { iuo = 0.5 }',
            'unknown setting "iuo". Did you mean "iou"?',
        ),
        (
            'do = "evaluate"\ntruth = "t"\nfound = ["f"]\ntask = "detection"\nsettings = { interval = false }',
            'settings: unknown setting "interval". Did you mean "intervals"?',
        ),
        ('do = "pack"\ndetectors = ["a"]\nfusion = { iou = 2 }', "fusion: iou = 2: "),
        (
            'do = "compare"\ntruth = "t"\nbaseline = "r"\nanswers = { a = ["b"] }',
            'the baseline "r" is none of the answers: a',
        ),
    ],
)
def test_settings_of_a_whole_stage_are_checked_too(tmp_path: Path, step: str, message: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text(f'name = "r"\n[steps.a]\n{step}\n')
    said = refused(file)
    assert said.startswith("r: steps.a: ")
    assert message in said


@pytest.mark.torch
def test_the_settings_of_a_training_are_checked_too(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('name = "r"\n[steps.a]\ndo = "train"\ntask = "detect"\ndata = ["d"]\nsettings.optimise.epoch = 2\n')
    said = refused(file)
    assert said.startswith('r: steps.a: settings: unknown setting "optimise.epoch". Did you mean "epochs"?')


def test_an_unknown_bundle_is_named(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('[steps.a]\ndo = "predict"\ndataset = "d"\nbundle = "smear-detectr"\n')
    said = refused(file, kind=BundleError)
    assert 'no bundle "smear-detectr"' in said
    assert 'Did you mean "smear-detector"?' in said


# -- the recipes that we stand behind -------------------------------------------------------------


def _with_steps() -> list[Any]:
    import tomllib

    files = sorted(_RECIPES.glob("*.toml"))
    told = [(file, tomllib.loads(file.read_text(encoding="utf-8"))) for file in files]
    return [
        pytest.param(file, scale, id=f"{file.stem}-{scale}")
        for file, data in told
        if "steps" in data
        for scale in ("full", *data.get("scale", {}))
    ]


@pytest.mark.torch
@pytest.mark.parametrize(("file", "scale"), _with_steps())
def test_a_recipe_of_ours_can_be_planned(file: Path, scale: str, tmp_path: Path) -> None:
    for name in ("images", "train", "test", "bccd/JPEGImages", "txl_pbc", "pbc/images", "wbcatt"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for name in ("train.csv", "test.csv", "bccd/wbc_subtypes.csv"):
        (tmp_path / "data" / name).touch()
    read = load(file, [f"data={tmp_path / 'data'}"], scale)
    stages = plan(read, Store(tmp_path / "out"))
    # These have no folds and no ensemble.
    assert len(stages) >= {"leukemia_attri": 9, "concepts": 12}.get(file.stem, 20)
    assert {one.state for one in stages} == {"to do"}
    assert len({one.folder for one in stages}) == len(stages)
    at = {one.name: number for number, one in enumerate(stages)}
    assert all(at[name] < at[one.name] for one in stages for name in one.takes)
    judged = [
        one for one in stages if one.stage.do in ("evaluate", "compare", "compare-outlines", "domains", "submission")
    ]
    assert judged
    if scale == "smoke":  # for any machine, alone or in a cluster
        assert not any(one.stage.gpus for one in stages)
    assert not (tmp_path / "out").exists()
