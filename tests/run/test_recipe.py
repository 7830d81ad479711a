"""A recipe: what its values, choices and references become, and what is refused before anything is done."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens.problems import SettingError
from cytolens.run.recipe import Recipe, Reference, Stage, load, references
from cytolens.run.step_kinds import STEPS


def written(folder: Path, text: str) -> Path:
    """A recipe file."""
    file = folder / "recipe.toml"
    file.write_text(text, encoding="utf-8")
    return file


def stages(recipe: Recipe) -> dict[str, Stage]:
    """The stages by name."""
    return {stage.name: stage for stage in recipe.stages}


def arguments(folder: Path, text: str, *overrides: str, scale: str = "full") -> dict[str, Any]:
    """Stage → its arguments."""
    return {name: dict(one.arguments) for name, one in stages(load(written(folder, text), overrides, scale)).items()}


def refused(folder: Path, text: str, *overrides: str, scale: str = "full") -> str:
    """What is said of a recipe that is refused."""
    with pytest.raises(SettingError) as raised:
        load(written(folder, text), overrides, scale)
    return str(raised.value)


# -- values ---------------------------------------------------------------------------------------


def test_a_value_keeps_its_type_where_it_stands_alone(tmp_path: Path) -> None:
    text = """
        folds = 4
        share = 0.5
        sure = true
        kinds = ["a", "b"]
        optimise = { epochs = 3 }
        [steps.one]
        do = "x"
        plain = ["${folds}", "${share}", "${sure}"]
        list = "${kinds}"
        table = { inner = "${optimise}", text = "fold = ${folds} of ${kinds}" }
    """
    assert arguments(tmp_path, text)["one"] == {
        "plain": [4, 0.5, True],
        "list": ["a", "b"],
        "table": {"inner": {"epochs": 3}, "text": "fold = 4 of ['a', 'b']"},
    }


def test_a_value_may_be_made_of_those_above_it(tmp_path: Path) -> None:
    text = 'root = "a"\nimages = "${root}/images"\n[steps.one]\ndo = "x"\nfolder = "${images}"\n'
    assert arguments(tmp_path, text)["one"] == {"folder": "a/images"}
    assert arguments(tmp_path, text, "root=b")["one"] == {"folder": "b/images"}
    below = 'images = "${root}/images"\nroot = "a"\n[steps.one]\ndo = "x"\n'
    assert "there is no value ${root}" in refused(tmp_path, below)


def test_an_unknown_value_is_named_with_the_nearest(tmp_path: Path) -> None:
    said = refused(tmp_path, 'threads = 2\n[steps.one]\ndo = "x"\nsettings = { hardware = "${thread}" }\n')
    assert 'recipe.toml: steps.one.settings.hardware: there is no value ${thread}. Did you mean "threads"?' in said


def test_the_name_and_description_are_no_values(tmp_path: Path) -> None:
    read = load(written(tmp_path, 'name = "n"\ndescription = "d"\nfolds = 2\n[steps.one]\ndo = "x"\n'))
    assert (read.name, read.description, read.values) == ("n", "d", {"folds": 2})
    assert load(written(tmp_path, '[steps.one]\ndo = "x"\n')).name == "recipe"


# -- choices --------------------------------------------------------------------------------------


def test_a_number_and_a_list_of_choices(tmp_path: Path) -> None:
    text = """
        folds = 2
        [steps.a]
        do = "x"
        each = { fold = "${folds}" }
        where = "fold = ${fold}"
        [steps.b]
        do = "x"
        each = { family = ["r", "c"] }
        name = "${family}"
        [steps.c]
        do = "x"
        each = { fold = 2, family = ["r", "c"] }
        both = "${family}-${fold}"
        number = "${fold}"
    """
    assert arguments(tmp_path, text) == {
        "a fold=0": {"where": "fold = 0"},
        "a fold=1": {"where": "fold = 1"},
        "b family=r": {"name": "r"},
        "b family=c": {"name": "c"},
        "c fold=0 family=r": {"both": "r-0", "number": 0},
        "c fold=0 family=c": {"both": "c-0", "number": 0},
        "c fold=1 family=r": {"both": "r-1", "number": 1},
        "c fold=1 family=c": {"both": "c-1", "number": 1},
    }
    assert [*arguments(tmp_path, text, "folds=1")][:2] == ["a fold=0", "b family=r"]


def test_a_choice_goes_before_a_value_of_the_same_name(tmp_path: Path) -> None:
    text = 'fold = 9\n[steps.a]\ndo = "x"\neach = { fold = 1 }\nk = "${fold}"\n[steps.b]\ndo = "x"\nk = "${fold}"\n'
    assert arguments(tmp_path, text) == {"a fold=0": {"k": 0}, "b": {"k": 9}}


@pytest.mark.parametrize(
    ("each", "message"),
    [
        ("[0, 1]", "each is a table such as { fold = [0, 1, 2, 3] }; got [0, 1]"),
        ("{ fold = 0 }", "each.fold is a number of choices or a list of them; got 0"),
        ("{ fold = true }", "each.fold is a number of choices or a list of them; got True"),
        ("{ fold = [] }", "each.fold is a number of choices or a list of them; got []"),
        ('{ fold = "two" }', "each.fold is a number of choices or a list of them; got 'two'"),
        ('{ fold = [0, "0"] }', "each.fold has a choice twice: [0, '0']"),
    ],
)
def test_choices_that_are_none(tmp_path: Path, each: str, message: str) -> None:
    assert message in refused(tmp_path, f'[steps.a]\ndo = "x"\neach = {each}\n')


def test_when_lays_its_settings_over_those_of_one_choice(tmp_path: Path) -> None:
    text = """
        [steps.a]
        do = "x"
        each = { family = ["r", "c"], fold = 2 }
        settings = { side_px = 112, optimise = { epochs = 8, batch = 4 } }
        [steps.a.when.c.settings]
        weights = "w-${fold}"
        optimise = { epochs = 9 }
        [steps.a.when.1.settings]
        seed = 5
    """
    plain = {"side_px": 112, "optimise": {"epochs": 8, "batch": 4}}
    other = {"side_px": 112, "optimise": {"epochs": 9, "batch": 4}}
    assert {name: one["settings"] for name, one in arguments(tmp_path, text).items()} == {
        "a family=r fold=0": plain,
        "a family=r fold=1": plain | {"seed": 5},
        "a family=c fold=0": other | {"weights": "w-0"},
        "a family=c fold=1": other | {"weights": "w-1", "seed": 5},
    }


def test_a_when_that_never_happens_is_refused(tmp_path: Path) -> None:
    text = '[steps.a]\ndo = "x"\neach = { family = ["r"] }\n[steps.a.when.{}]\nk = 1\n'
    said = refused(tmp_path, text.replace("{}", "c"))
    assert said.endswith("steps.a.when.c never happens; the choices are r")
    text = '[steps.a]\ndo = "x"\n[steps.a.when.0]\nk = 1\n'
    assert refused(tmp_path, text).endswith("steps.a.when.0 never happens; the step has no choices (each = …)")


# -- references -----------------------------------------------------------------------------------

CHAIN = """
    [steps.raw]
    do = "x"
    [steps.detector]
    do = "x"
    each = { size = ["s", "l"], fold = 2 }
"""


@pytest.mark.parametrize(
    ("each", "reference", "names", "many"),
    [
        ("", "@raw", ["raw"], False),
        (
            "",
            "@detector",
            ["detector size=s fold=0", "detector size=s fold=1", "detector size=l fold=0", "detector size=l fold=1"],
            True,
        ),
        ("", "@detector fold=1", ["detector size=s fold=1", "detector size=l fold=1"], True),
        ("", "@detector fold=1 size=l", ["detector size=l fold=1"], False),
        ("fold = [1]", "@raw", ["raw"], False),
        ("fold = [1]", "@detector", ["detector size=s fold=1", "detector size=l fold=1"], True),
        ("fold = [1]", "@detector size=${size}", ["detector size=l fold=1"], False),
        ("fold = [1]", "@detector fold=0", ["detector size=s fold=0", "detector size=l fold=0"], True),
        ('size = ["s"], fold = [1]', "@detector", ["detector size=s fold=1"], False),
        ('seed = [3], size = ["s"]', "@${step}", ["detector size=s fold=0", "detector size=s fold=1"], True),
    ],
)
def test_a_reference_is_to_the_same_choice_or_to_all(
    tmp_path: Path, each: str, reference: str, names: list[str], many: bool
) -> None:
    text = f'step = "detector"\nsize = "l"\n{CHAIN}\n[steps.last]\ndo = "x"\neach = {{ {each} }}\nk = "{reference}"\n'
    last = load(written(tmp_path, text)).stages[-1]
    assert last.arguments == {"k": Reference(tuple(names), many)}
    assert references(last.arguments) == names


def test_references_inside_lists_and_tables(tmp_path: Path) -> None:
    text = f"""{CHAIN}
        [steps.last]
        do = "x"
        data = ["@raw", "@detector fold=0"]
        text = "raw@raw"
        members = {{ small = ["@detector size=s"], large = {{ deep = "@raw" }} }}
    """
    last = load(written(tmp_path, text)).stages[-1]
    small = ("detector size=s fold=0", "detector size=s fold=1")
    first = ("detector size=s fold=0", "detector size=l fold=0")
    assert last.arguments == {
        "data": [Reference(("raw",), False), Reference(first, True)],
        "text": "raw@raw",
        "members": {"small": [Reference(small, True)], "large": {"deep": Reference(("raw",), False)}},
    }
    assert references(last.arguments) == ["raw", *first, small[1]]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("@detectr", 'steps.last.k: there is no step "detectr". Did you mean "detector"? Steps: raw, detector, last'),
        ("@detector colour=red", "step \"detector\" has no choice \"colour\"; its choices: ['size', 'fold']"),
        ("@detector fold=7", "step \"detector\" has no {'fold': '7'}; it has [{'size': 's', 'fold': 0},"),
        ("@detector fold 0", '"@detector fold 0" is no reference; write "@step", or "@step fold=0" for one of several'),
        ("@", '"@" is no reference'),
    ],
)
def test_a_reference_to_nothing_is_refused(tmp_path: Path, reference: str, message: str) -> None:
    assert message in refused(tmp_path, f'{CHAIN}\n[steps.last]\ndo = "x"\nk = "{reference}"\n')


def test_a_choice_that_the_other_step_lacks_is_refused(tmp_path: Path) -> None:
    text = f'{CHAIN}\n[steps.last]\ndo = "x"\neach = {{ fold = 3 }}\nk = "@detector"\n'
    assert "step \"detector\" has no {'fold': '2'}" in refused(tmp_path, text)


def test_steps_stand_after_what_they_take_from(tmp_path: Path) -> None:
    text = '[steps.c]\ndo = "x"\nk = ["@b", "@a"]\n[steps.a]\ndo = "x"\n[steps.b]\ndo = "x"\nk = { of = "@a" }\n'
    assert [stage.name for stage in load(written(tmp_path, text)).stages] == ["a", "b", "c"]


@given(st.permutations(range(6)), st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=10))
def test_any_order_of_writing_is_put_in_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], pairs: set[tuple[int, int]]
) -> None:
    takes = {n: sorted(low for low, high in pairs if high == n and low < n) for n in range(6)}
    text = "".join(f'[steps.s{n}]\ndo = "x"\nk = {[f"@s{low}" for low in takes[n]]}\n' for n in order)
    names = [stage.name for stage in load(written(tmp_path_factory.mktemp("r"), text)).stages]
    assert sorted(names) == [f"s{n}" for n in range(6)]
    for high, low in itertools.chain.from_iterable([(n, low) for low in takes[n]] for n in range(6)):
        assert names.index(f"s{low}") < names.index(f"s{high}")


def test_a_circle_is_drawn(tmp_path: Path) -> None:
    text = '[steps.a]\ndo = "x"\nk = "@c"\n[steps.b]\ndo = "x"\nk = "@a"\n[steps.c]\ndo = "x"\nk = ["@b"]\n'
    assert "steps take from each other in a circle: a → c → b → a" in refused(tmp_path, text)
    assert "in a circle: a → a" in refused(tmp_path, '[steps.a]\ndo = "x"\nk = "@a"\n')


# -- steps that are off ---------------------------------------------------------------------------

OFF = """
    with_large = true
    [steps.small]
    do = "x"
    [steps.large]
    do = "x"
    off = "${without}"
    [steps.last]
    do = "x"
    data = ["@small", "@large"]
    only = ["@large"]
    plain = "@large"
    empty = []
    members = { small = ["@small"], large = ["@large"], both = ["@large", "@small"] }
"""


def test_lists_and_tables_do_without_a_step_that_is_off(tmp_path: Path) -> None:
    small, large = Reference(("small",), False), Reference(("large",), False)
    on = arguments(tmp_path, f"without = false\n{OFF}")
    assert on["last"]["data"] == [small, large]
    assert on["last"]["members"] == {"small": [small], "large": [large], "both": [large, small]}
    off = arguments(tmp_path, f"without = false\n{OFF}", "without=true")
    assert [*off] == ["small", "last"]
    assert off["last"] == {"data": [small], "empty": [], "members": {"small": [small], "both": [small]}}
    assert [*arguments(tmp_path, f"without = false\n{OFF}", "steps.large.off=true")] == ["small", "last"]


def test_off_is_true_or_false(tmp_path: Path) -> None:
    said = refused(tmp_path, f'without = "no"\n{OFF}')
    assert said.endswith("steps.large.off is true or false; got 'no'")


# -- what a cluster is asked for ------------------------------------------------------------------


def test_cores_and_accelerators_are_no_settings(tmp_path: Path) -> None:
    text = 'many = 4\n[steps.a]\ndo = "x"\ncpus = "${many}"\ngpus = 0.5\nk = 1\n[steps.b]\ndo = "x"\n'
    read = stages(load(written(tmp_path, text)))
    assert (read["a"].cpus, read["a"].gpus, read["a"].arguments) == (4, 0.5, {"k": 1})
    assert (read["b"].cpus, read["b"].gpus) == (1, 0)
    for value in ('"two"', "true", "-1"):
        said = refused(tmp_path, f'[steps.a]\ndo = "x"\ngpus = {value}\n')
        assert "steps.a.gpus is a number of 0 or more; got" in said


# -- changes --------------------------------------------------------------------------------------

SCALED = """
    folds = 4
    data = ""
    [steps.a]
    do = "x"
    folds = "${folds}"
    data = "${data}"
    settings = { optimise = { epochs = 40, batch = 16 }, side_px = 512 }
    [scale.smoke]
    folds = 2
    "steps.a.settings.optimise.epochs" = 1
    "steps.a.settings.augment" = { mosaic = 0.0 }
    "steps.a.settings.new.key" = true
"""


def test_a_scale_changes_values_and_settings_and_nothing_else(tmp_path: Path) -> None:
    full = {"folds": 4, "data": "", "settings": {"optimise": {"epochs": 40, "batch": 16}, "side_px": 512}}
    assert arguments(tmp_path, SCALED) == {"a": full}
    small = {
        "optimise": {"epochs": 1, "batch": 16},
        "side_px": 512,
        "augment": {"mosaic": 0.0},
        "new": {"key": True},
    }
    assert arguments(tmp_path, SCALED, scale="smoke") == {"a": {"folds": 2, "data": "", "settings": small}}


def test_what_is_set_goes_over_the_scale(tmp_path: Path) -> None:
    sets = ("folds=3", "data=smears/", "steps.a.settings.optimise.epochs=7", "steps.a.settings.colour.stain=0.5")
    changed = arguments(tmp_path, SCALED, *sets, scale="smoke")["a"]
    assert (changed["folds"], changed["data"]) == (3, "smears/")
    assert changed["settings"]["optimise"] == {"epochs": 7, "batch": 16}
    assert changed["settings"]["colour"] == {"stain": 0.5}
    assert load(written(tmp_path, SCALED), sets).values == {"folds": 3, "data": "smears/"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fold=2", 'there is no "fold". Did you mean "folds"?'),
        ("step.a.settings.side_px=2", 'there is no "step". Did you mean "steps"?'),
        ("steps.b.settings.side_px=2", 'there is no step "b".'),
        ("steps=2", 'there is no step "".'),
        ("scale.smoke.folds=2", 'there is no "scale".'),
        ("folds.more=2", '"folds" is a value, not a table of settings'),
        ("folds", "--set takes KEY=VALUE"),
    ],
)
def test_a_misspelt_change_is_refused(tmp_path: Path, override: str, message: str) -> None:
    assert message in refused(tmp_path, SCALED, override)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fold = 2", 'scale.smoke: there is no "fold". Did you mean "folds"?'),
        ('"steps.b.seed" = 2', 'scale.smoke: there is no step "b".'),
        ('"folds.more" = 2', 'scale.smoke: "folds" is a value, not a table of settings'),
    ],
)
def test_a_scale_that_changes_nothing_is_refused(tmp_path: Path, line: str, message: str) -> None:
    assert message in refused(tmp_path, f"{SCALED}\n{line}\n", scale="smoke")


def test_an_unknown_scale_is_named_with_the_nearest(tmp_path: Path) -> None:
    said = refused(tmp_path, SCALED, scale="smok")
    assert said.endswith('no scale "smok". Did you mean "smoke"? Allowed: full, smoke')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folds = 2\n", "a recipe needs [steps.NAME] tables; this file has none"),
        ("steps = 2\n", "a recipe needs [steps.NAME] tables; this file has none"),
        ("[steps.a]\nk = 2\n", 'step "a" needs do = "…"'),
        ("steps = { a = 2 }\n", 'step "a" needs do = "…"'),
        ("[steps.a]\ndo = x\n", "not valid TOML"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text)


def test_there_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"none\.toml: there is no such recipe"):
        load(tmp_path / "none.toml")


def test_the_recipe_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "recipes.md"
    lines = page.read_text(encoding="utf-8").partition("## Write one")[2].partition("\n- `each`")[0].splitlines()
    text = "\n".join(line for line in lines if line.startswith("    ") or not line)
    full, smoke = (load(written(tmp_path, text), scale=scale) for scale in ("full", "smoke"))
    assert [stage.do for stage in full.stages] == ["import", "split", *["train"] * 4, *["predict"] * 4, "evaluate"]
    assert len(smoke.stages) == 7
    for stage in (*full.stages, *smoke.stages):
        kind = STEPS[stage.do]
        assert stage.arguments.keys() <= kind.model_fields.keys()
    assert set(STEPS) <= set(re.findall(r"`([\w-]+)`", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("needs", "there"), [('""', False), ("[]", False), ('["${data}", "x"]', False), ('"x"', True), ('["x", "y"]', True)]
)
def test_a_step_is_left_out_where_what_it_needs_is_empty(tmp_path: Path, needs: str, there: bool) -> None:
    text = (
        f'data = ""\n[steps.one]\ndo = "x"\nneeds = {needs}\n[steps.two]\ndo = "x"\nparts = ["@one"]\nstart = "@one"\n'
    )
    given = arguments(tmp_path, text)
    assert ("one" in given, "start" in given["two"]) == (there, there)
    assert "needs" not in given.get("one", {})


def test_needs_is_a_text_or_a_list(tmp_path: Path) -> None:
    said = refused(tmp_path, '[steps.one]\ndo = "x"\nneeds = true\n')
    assert "steps.one.needs is a text or a list" in said
