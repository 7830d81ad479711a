"""Settings: filled from TOML and the command line, checked once, with errors that help."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from cytolens.problems import SettingError
from cytolens.settings import checked, parse_value, read_recipe, with_overrides

# Those of one training; recipes of many steps are planned in tests/run/test_plan.py.
RECIPES = [
    path for path in sorted((Path(__file__).parents[1] / "recipes").glob("*.toml")) if "steps" not in read_recipe(path)
]


class Dye(BaseModel):
    """The innermost table."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    density: float | None = Field(default=None, gt=0)
    background: bool = True


class Input(BaseModel):
    """A table with a table."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    side_px: int = Field(default=416, ge=64)
    stain: Dye = Dye()


class Training(BaseModel):
    """Settings three levels deep."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = "x"
    scale: tuple[float, float] = (0.5, 2.0)
    input: Input = Input()


# -- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("-0.25", -0.25),
        ("1e-3", 0.001),
        ("true", True),
        ("[0.6, 1.5]", [0.6, 1.5]),
        ('["a", "b"]', ["a", "b"]),
        ('"two words"', "two words"),
        ("{x = 1}", {"x": 1}),
        ("2024-05-01", date(2024, 5, 1)),
        ("yolox-nano", "yolox-nano"),  # no TOML: the text itself
        ("True", "True"),
        ("", ""),
        ("a=b", "a=b"),
        ("1\nother = 2", "1\nother = 2"),  # nothing is taken from further lines
    ],
)
def test_values_are_toml_or_else_the_text(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@given(st.text())
def test_any_text_is_a_value(text: str) -> None:
    parse_value(text)


@given(st.recursive(st.integers(-(2**53), 2**53) | st.booleans(), lambda inner: st.lists(inner, max_size=4)))
def test_numbers_and_lists_come_back_as_they_were_written(value: object) -> None:
    assert parse_value(str(value).lower()) == value


# -- overrides ------------------------------------------------------------------------------------


def test_overrides_reach_into_tables_and_make_those_that_are_missing() -> None:
    data = {"name": "a", "input": {"side_px": 64}}
    result = with_overrides(data, ["input.side_px=96", "input.stain.density=0.5", "name = b = c", "scale=[1, 2]"])
    assert result == {"name": "b = c", "input": {"side_px": 96, "stain": {"density": 0.5}}, "scale": [1, 2]}
    assert data == {"name": "a", "input": {"side_px": 64}}  # the argument is not touched
    assert checked(Training, result, "x").input.stain.density == 0.5


def test_the_last_override_wins() -> None:
    assert with_overrides({}, ["a.b=1", "a.b=2"]) == {"a": {"b": 2}}


@pytest.mark.parametrize("override", ["input.side_px", "=3", ""])
def test_an_override_needs_a_key_and_a_value(override: str) -> None:
    with pytest.raises(SettingError, match="--set takes KEY=VALUE"):
        with_overrides({}, [override])


def test_an_override_cannot_go_through_a_value() -> None:
    with pytest.raises(SettingError, match=r'--set name.deeper=1: "name" is a value, not a table'):
        with_overrides({"name": "a"}, ["name.deeper=1"])


@given(
    keys=st.lists(st.text("abc", min_size=1, max_size=2), min_size=1, max_size=3),
    number=st.integers(),
    before=st.dictionaries(st.text("abc", max_size=2), st.dictionaries(st.text("abc", max_size=2), st.integers())),
)
def test_an_override_changes_one_place_only(keys, number, before) -> None:
    try:
        after = with_overrides(before, [f"{'.'.join(keys)}={number}"])
    except SettingError:
        return  # the path leads through a number
    place = after
    for key in keys[:-1]:
        place = place[key]
    assert place[keys[-1]] == number
    assert {k: v for k, v in after.items() if k != keys[0]} == {k: v for k, v in before.items() if k != keys[0]}


# -- recipes --------------------------------------------------------------------------------------


def test_a_recipe_is_read(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('name = "größe"\n[input]\nside_px = 96\n', encoding="utf-8")
    assert read_recipe(tmp_path / "r.toml") == {"name": "größe", "input": {"side_px": 96}}


def test_recipes_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"gone\.toml: there is no such recipe"):
        read_recipe(tmp_path / "gone.toml")
    (tmp_path / "bad.toml").write_text("name = \nother = 1\n")
    with pytest.raises(SettingError, match=r"bad\.toml: not valid TOML \(.*line 1"):
        read_recipe(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes('name = "é"'.encode("latin-1"))
    with pytest.raises(SettingError, match=r"latin\.toml: not valid TOML"):
        read_recipe(tmp_path / "latin.toml")


def test_a_date_in_a_recipe_is_a_wrong_value_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("name = 2024-05-01\n")
    data = with_overrides(read_recipe(tmp_path / "r.toml"), ["input.side_px=96"])
    with pytest.raises(SettingError, match=r"name = datetime.date"):
        checked(Training, data, "r.toml")


# -- checking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "hint", "neighbours"),
    [
        ("nmae", "name", "name, scale, input"),
        ("input.side_pz", "side_px", "side_px, stain"),
        ("input.stain.densty", "density", "density, background"),
    ],
)
def test_a_wrong_key_is_named_with_its_neighbour_at_any_depth(key: str, hint: str, neighbours: str) -> None:
    with pytest.raises(SettingError) as caught:
        checked(Training, with_overrides({}, [f"{key}=1"]), "run.toml")
    assert str(caught.value) == (
        f'run.toml: unknown setting "{key}". Did you mean "{hint}"? Allowed here: {neighbours}'
    )


def test_a_wrong_key_like_nothing_known_lists_what_is_allowed() -> None:
    with pytest.raises(SettingError, match=r'unknown setting "input.zzz". Allowed here: side_px, stain$'):
        checked(Training, {"input": {"zzz": 1}}, "x")


def test_a_wrong_value_is_shown_with_what_is_allowed() -> None:
    with pytest.raises(SettingError, match=r"x: input.side_px = 12: Input should be greater than or equal to 64"):
        checked(Training, {"input": {"side_px": 12}}, "x")
    with pytest.raises(SettingError, match="x: input = 3: Input should be a valid dictionary"):
        checked(Training, {"input": 3}, "x")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(SettingError) as caught:
        checked(Training, {"nmae": 1, "scale": [1, "wide"], "input": {"stain": {"density": -1}}}, "x")
    text = str(caught.value)
    assert all(part in text for part in ('"nmae"', "scale.1 = 'wide'", "input.stain.density = -1"))
    assert "\n" not in text


# -- the project's own ----------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_fits_its_task(recipe: Path) -> None:
    from cytolens.run.training import training_settings

    data = read_recipe(recipe)
    settings = training_settings(data["task"], recipe)
    assert settings.task == data["task"]
    assert 0 <= settings.optimise.closing_epochs < settings.optimise.epochs
    assert settings.model_dump(mode="json").keys() >= data.keys()


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.torch
def test_training_settings_come_from_recipe_command_line_and_defaults(tmp_path: Path) -> None:
    from cytolens.run.training import training_settings

    (tmp_path / "r.toml").write_text('task = "detect"\nmodel = "yolox-s"\n[optimise]\nepochs = 9\n')
    settings = training_settings("detect", tmp_path / "r.toml", ["optimise.batch=4", "model=yolox-m"], "yolox-tiny")
    assert (settings.model, settings.optimise.epochs, settings.optimise.batch) == ("yolox-tiny", 9, 4)
    with pytest.raises(SettingError, match='is a recipe for "detect", not for "classify"'):
        training_settings("classify", tmp_path / "r.toml")
    with pytest.raises(SettingError, match='no training task "paint"; allowed: detect, classify, outline, segment'):
        training_settings("paint")
    with pytest.raises(SettingError, match=r'"augment.mosaik". Did you mean "mosaic"'):
        training_settings("detect", None, ["augment.mosaik=1"])
