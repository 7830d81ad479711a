"""A recipe: a TOML file that says which steps make a result, each with its settings and what it takes from others.

::

    name = "two detectors"
    data = "smears/"                      # a value of its own; --set data=other/ changes it

    [steps.raw]
    do = "import"                         # what is done; every other key is a setting of that step
    source = "${data}"
    format = "voc"

    [steps.folds]
    do = "split"
    dataset = "@raw"                      # "@step": what that step left
    folds = 4

    [steps.detector]
    do = "train"
    each = { fold = [0, 1, 2, 3] }        # one step per fold
    data = ["@folds"]
    task = "detect"
    settings = { fold = "${fold}", optimise = { epochs = 40 } }

    [steps.found]
    do = "predict"
    each = { fold = [0, 1, 2, 3] }
    dataset = "@folds"
    bundle = "@detector"                  # of the same fold; in a step without folds: all four, in order
                                          # "@detector fold=0": one of them
    where = "fold = ${fold}"

    [steps.detector.when.0.settings]      # what is different where a choice of `each` has this value
    seed = 5

    [scale.smoke]                         # what --scale smoke changes
    "steps.detector.settings.optimise.epochs" = 1

A value may be made of those above it. ``off = true`` leaves a step out: a list or table that names it does without, and
a step that cannot do without is refused. So does ``needs = "${value}"`` where that value is empty (``""``, ``[]``), and
``needs = ["${one}", "${other}"]`` where one of them is. A recipe is data: nothing in it is executed, and what it names
must exist.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytolens.problems import SettingError, did_you_mean, listing
from cytolens.settings import overlaid, read_recipe, with_overrides

_OWN = ("do", "each", "when", "cpus", "gpus", "off", "needs")  # what says how a step is made, and is no setting of it
_RESERVED = ("steps", "scale", "name", "description")
_VALUE = re.compile(r"\$\{([\w.-]+)\}")
_REFERENCE = re.compile(r"@([\w.-]+)((?:\s+[\w-]+=\S+)*)")
FULL = "full"


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a recipe for one choice of its `each`.

    Attributes:
        name: the step's name, with the choice: "detector fold=0".
        step: the step's name in the recipe.
        do: what is done.
        choice: variable of `each` → value.
        arguments: settings, with `Reference`s where another step's result goes.
        cpus, gpus: what it asks for on a cluster.
    """

    name: str
    step: str
    do: str
    choice: Mapping[str, Any]
    arguments: Mapping[str, Any]
    cpus: float = 1
    gpus: float = 0


@dataclass(frozen=True, slots=True)
class Reference:
    """The results of other stages: one, or several in order."""

    stages: tuple[str, ...]
    many: bool


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe with all values filled in.

    Attributes:
        name: of the recipe.
        description: what it makes.
        values: the free values after all changes.
        stages: in an order in which each stands after what it takes from.
    """

    name: str
    description: str
    values: Mapping[str, Any]
    stages: tuple[Stage, ...]


def load(path: Path, overrides: Sequence[str] = (), scale: str = FULL) -> Recipe:
    """Read a recipe.

    Args:
        path: the TOML file.
        overrides: KEY=VALUE each, such as "data=smears/" or "steps.detector.settings.optimise.epochs=3".
        scale: "full", or the name of one of the recipe's own scales.

    Raises:
        SettingError: the file is no recipe, or names what there is not.
    """
    data = read_recipe(path)
    if not isinstance(data.get("steps"), dict) or not data["steps"]:
        raise SettingError(f"{path}: a recipe needs [steps.NAME] tables; this file has none")
    scales = data.get("scale", {})
    if scale != FULL:
        if scale not in scales:
            hint = did_you_mean(scale, [FULL, *scales])
            raise SettingError(f'{path}: no scale "{scale}". {hint} Allowed: {listing([FULL, *scales])}')
        for key, value in scales[scale].items():
            _check_known(data, key, f"{path}: scale.{scale}")
            data = _set(data, key.split("."), value, f"{path}: scale.{scale}")
    for override in overrides:
        _check_known(data, override.partition("=")[0].strip(), f"{path}: --set {override}")
    data = with_overrides(data, overrides)
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in _RESERVED:
            values[key] = _filled(value, values, f"{path}: {key}")
    stages = _ordered(_expanded(data["steps"], values, str(path)), str(path))
    return Recipe(str(data.get("name", Path(path).stem)), str(data.get("description", "")), values, tuple(stages))


def _set(data: dict[str, Any], path: list[str], value: Any, where: str) -> dict[str, Any]:
    """A copy of nested tables with one value replaced or added."""
    if len(path) == 1:
        return {**data, path[0]: value}
    inner = data.get(path[0], {})
    if not isinstance(inner, dict):
        raise SettingError(f'{where}: "{path[0]}" is a value, not a table of settings')
    return {**data, path[0]: _set(inner, path[1:], value, where)}


def _check_known(data: Mapping[str, Any], key: str, where: str) -> None:
    """A misspelt key would silently do nothing, so the first part, and the step, must exist."""
    first, *rest = key.split(".")
    known = [name for name in data if name != "scale"]
    if first not in known:
        raise SettingError(f'{where}: there is no "{first}". {did_you_mean(first, known)}'.rstrip())
    if first == "steps" and (not rest or rest[0] not in data["steps"]):
        name = rest[0] if rest else ""
        raise SettingError(f'{where}: there is no step "{name}". {did_you_mean(name, [*data["steps"]])}'.rstrip())


def _expanded(steps: Mapping[str, Any], values: Mapping[str, Any], where: str) -> list[Stage]:
    """Every step for every choice of its `each`, references resolved."""
    choices: dict[str, list[dict[str, Any]]] = {}
    for name, table in steps.items():
        if not isinstance(table, dict) or not isinstance(table.get("do"), str):
            raise SettingError(f'{where}: step "{name}" needs do = "…"')
        each = _filled(table.get("each", {}), values, f"{where}: steps.{name}.each")
        choices[name] = _choices(each, f"{where}: steps.{name}")
    stages = []
    for name, table in steps.items():
        plain = {key: value for key, value in table.items() if key not in _OWN}
        when = table.get("when", {})
        possible = {str(value) for choice in choices[name] for value in choice.values()}
        if unknown := [value for value in when if value not in possible]:
            hint = f"the choices are {listing(possible, 20)}" if possible else "the step has no choices (each = …)"
            raise SettingError(f"{where}: steps.{name}.when.{unknown[0]} never happens; {hint}")
        if _is_off(table, values, f"{where}: steps.{name}"):
            continue
        for choice in choices[name]:
            place = f"{where}: steps.{name}"
            own = plain
            for value in choice.values():
                own = overlaid(own, when.get(str(value), {}))
            filled = _filled(own, {**values, **choice}, place)
            arguments = _referred(filled, choice, choices, steps, values, place)
            needs = {key: _number(table[key], values, f"{place}.{key}") for key in ("cpus", "gpus") if key in table}
            stages.append(Stage(_stage_name(name, choice), name, table["do"], choice, arguments, **needs))
    return stages


def _is_off(table: Mapping[str, Any], values: Mapping[str, Any], where: str) -> bool:
    off = _filled(table.get("off", False), values, f"{where}.off")
    if not isinstance(off, bool):  # a word such as "no" would count as true
        raise SettingError(f"{where}.off is true or false; got {off!r}")
    needs = _filled(table.get("needs", "nothing"), values, f"{where}.needs")
    if not isinstance(needs, str | list):
        raise SettingError(
            f"{where}.needs is a text or a list; where it or a part of it is empty, the step is left out; got {needs!r}"
        )
    return off or not needs or (isinstance(needs, list) and not all(needs))


def _number(value: Any, values: Mapping[str, Any], where: str) -> float:
    number = _filled(value, values, where)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number < 0:
        raise SettingError(f"{where} is a number of 0 or more; got {number!r}")
    return number


def _stage_name(name: str, choice: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in choice.items())])


def _choices(each: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(each, dict):
        raise SettingError(f"{where}: each is a table such as {{ fold = [0, 1, 2, 3] }}; got {each!r}")
    lists = []
    for key, value in each.items():
        options = list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(options, list) or not options:
            raise SettingError(f"{where}: each.{key} is a number of choices or a list of them; got {value!r}")
        if len(set(map(str, options))) < len(options):
            raise SettingError(f"{where}: each.{key} has a choice twice: {options}")
        lists.append([(key, option) for option in options])
    return [dict(pairs) for pairs in itertools.product(*lists)]


def _filled(value: Any, values: Mapping[str, Any], where: str) -> Any:
    """A copy with every ${name} replaced; alone in a string, it keeps its type."""
    if isinstance(value, dict):
        return {key: _filled(inner, values, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, values, where) for inner in value]
    if not isinstance(value, str):
        return value

    def known(name: str) -> Any:
        if name not in values:
            hint = did_you_mean(name, [*values])
            raise SettingError(f"{where}: there is no value ${{{name}}}. {hint} Values: {listing(values) or 'none'}")
        return values[name]

    if alone := _VALUE.fullmatch(value):
        return known(alone[1])
    return _VALUE.sub(lambda found: str(known(found[1])), value)


def _referred(
    value: Any,
    choice: Mapping[str, Any],
    choices: Mapping[str, list[dict[str, Any]]],
    steps: Mapping[str, Any],
    values: Mapping[str, Any],
    where: str,
) -> Any:
    """A copy with every "@step" as a Reference.

    Those to steps that are off are dropped from lists and tables, and so is a list of nothing else.
    """
    again = (choice, choices, steps, values)
    if isinstance(value, dict):
        inner = {key: _referred(one, *again, f"{where}.{key}") for key, one in value.items()}
        return {key: one for key, one in inner.items() if one is not _OFF}
    if isinstance(value, list):
        found = [_referred(one, *again, where) for one in value]
        kept = [one for one in found if one is not _OFF]
        return kept if kept or not found else _OFF  # nothing but steps that are off: as if it were not said
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    reference = _REFERENCE.fullmatch(value)
    if reference is None:
        raise SettingError(f'{where}: "{value}" is no reference; write "@step", or "@step fold=0" for one of several')
    name = reference[1]
    if name not in choices:
        hint = did_you_mean(name, [*choices])
        raise SettingError(f'{where}: there is no step "{name}". {hint} Steps: {listing(choices, 40)}')
    if _is_off(steps[name], values, where):
        return _OFF
    said = dict(pair.split("=", 1) for pair in reference[2].split())
    if unknown := [key for key in said if key not in choices[name][0]]:
        raise SettingError(f'{where}: step "{name}" has no choice "{unknown[0]}"; its choices: {[*choices[name][0]]}')
    wanted = {key: str(value) for key, value in {**choice, **said}.items()}
    fitting = [one for one in choices[name] if all(wanted[key] == str(one[key]) for key in one.keys() & wanted.keys())]
    if not fitting:
        raise SettingError(f'{where}: step "{name}" has no {wanted}; it has {choices[name]}')
    one_only = all(key in wanted for key in choices[name][0])
    return Reference(tuple(_stage_name(name, one) for one in fitting), many=not one_only)


_OFF = object()


def references(value: Any) -> list[str]:
    """Names of the stages that a stage's arguments take from, each once, in order."""
    if isinstance(value, Reference):
        return list(value.stages)
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return list(dict.fromkeys(name for part in parts for name in references(part)))


def _ordered(stages: list[Stage], where: str) -> list[Stage]:
    """The stages, each after those it takes from; otherwise as in the recipe."""
    by_name = {stage.name: stage for stage in stages}
    done: dict[str, Stage] = {}

    def place(stage: Stage, line: tuple[str, ...]) -> None:
        if stage.name in done:
            return
        if stage.name in line:
            raise SettingError(f"{where}: steps take from each other in a circle: {' → '.join([*line, stage.name])}")
        for name in references(stage.arguments):
            place(by_name[name], (*line, stage.name))
        done[stage.name] = stage

    for stage in stages:
        place(stage, ())
    return list(done.values())
