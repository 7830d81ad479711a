"""The plan of a run: every stage with its key, whether its result is there, and if not, why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cytolens.problems import CytolensError, SettingError, did_you_mean, listing, written
from cytolens.run.recipe import Recipe, Reference, Stage, references
from cytolens.run.step_kinds import STEPS
from cytolens.run.steps import Step
from cytolens.run.store import Store, content_key, key_of
from cytolens.settings import checked, overlaid

State = Literal["done", "to do", "to go on with"]


@dataclass(frozen=True, slots=True)
class Planned:
    """One stage of a plan.

    Attributes:
        stage: of the recipe.
        step: its settings, checked; paths are where the results of others stand.
        key: of its result.
        folder: where its result stands, or will.
        keyed: the settings as the key sees them, with keys in the place of results and files.
        takes: names of the stages it takes from.
        state: whether it is there.
        why: what makes it necessary; empty where it is done.
    """

    stage: Stage
    step: Step
    key: str
    folder: Path
    keyed: Mapping[str, Any]
    takes: tuple[str, ...]
    state: State
    why: str

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name


def plan(recipe: Recipe, store: Store) -> list[Planned]:
    """What is to be done, in order.

    Raises:
        SettingError: a step is unknown, a setting is not allowed, or a file from outside is missing.
    """
    before = _remembered(store)
    planned: dict[str, Planned] = {}
    outside: dict[str, str] = {}
    for stage in recipe.stages:
        where = f"{recipe.name}: steps.{stage.step}"
        if stage.do not in STEPS:
            hint = did_you_mean(stage.do, [*STEPS])
            raise SettingError(f'{where}: do = "{stage.do}" is unknown. {hint} Allowed: {listing(STEPS, 40)}')
        kind = STEPS[stage.do]
        paths = _with(stage.arguments, lambda name: str(planned[name].folder))
        step = checked(kind, paths, where)
        keyed = _with(stage.arguments, lambda name: {"result": planned[name].key})
        for name in kind.outside:
            given = _at(stage.arguments, name.split("."))
            place = kind.place(name, given) if isinstance(given, str) and given else None
            if place is not None:
                if given not in outside:  # a folder of images is looked through once
                    outside[given] = content_key(place)
                keyed = overlaid(keyed, _nested(name.split("."), {"outside": outside[given]}))
        key = key_of([stage.do, kind.version, keyed])
        takes = tuple(references(stage.arguments))
        state: State = "done" if store.done(stage.name, key) else "to do"
        if state == "to do" and store.started(stage.name, key) and kind.resumes:
            state = "to go on with"
        why = "" if state == "done" else _why(stage, key, keyed, [planned[name] for name in takes], before, state)
        if state != "done":
            _check(step, where)
        planned[stage.name] = Planned(stage, step, key, store.folder(stage.name, key), keyed, takes, state, why)
    return list(planned.values())


def _check(step: Step, where: str) -> None:
    """What would be refused hours later is refused now."""
    try:
        step.check()
    except CytolensError as error:
        raise type(error)(f"{where}: {error}") from error


def _at(tables: Any, path: list[str]) -> Any:
    for name in path:
        tables = tables.get(name) if isinstance(tables, Mapping) else None
    return tables


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    return {path[0]: value if len(path) == 1 else _nested(path[1:], value)}


def _with(value: Any, told: Any) -> Any:
    """The arguments with something in the place of each reference."""
    if isinstance(value, Reference):
        found = [told(name) for name in value.stages]
        return found if value.many else found[0]
    if isinstance(value, Mapping):
        return {key: _with(inner, told) for key, inner in value.items()}
    if isinstance(value, list):  # a list of references that stand for several each becomes one list
        flat = []
        for inner in value:
            one = _with(inner, told)
            flat += one if isinstance(inner, Reference) and inner.many else [one]
        return flat
    return value


def _why(stage: Stage, key: str, keyed: Any, takes: list[Planned], before: Mapping[str, Any], state: State) -> str:
    if state == "to go on with":
        return "was stopped"
    earlier = before.get(stage.name)
    if earlier is None or earlier["key"] == key:
        return "was never made" if earlier is None else "was not finished"
    if waiting := [one.name for one in takes if one.state != "done" or _changed(one, before)]:
        return f"follows from {listing(waiting, 3)}"
    changes = _differences(earlier["settings"], json.loads(json.dumps(keyed, default=str)))
    return "changed: " + (", ".join(changes[:3]) if changes else "the program's version of this step")


def _changed(one: Planned, before: Mapping[str, Any]) -> bool:
    return before.get(one.name, {}).get("key") not in (None, one.key)


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict) and not {"result", "outside"} & (old.keys() | new.keys()):
        names = dict.fromkeys([*old, *new])
        return [line for n in names for line in _differences(old.get(n), new.get(n), f"{path}.{n}" if path else n)]
    if old == new:
        return []
    if isinstance(new, dict) and "outside" in new:
        return [f"the files of {path}"]
    return [f"{path} {json.dumps(old)} → {json.dumps(new)}"]


def _remembered(store: Store) -> dict[str, Any]:
    """The keys and settings of the last run's plan."""
    try:
        return json.loads((store.out / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def remember(stages: list[Planned], store: Store) -> None:
    """Keep the plan, so that the next one can say what changed."""
    said = {one.name: {"key": one.key, "settings": one.keyed} for one in stages}
    with written(store.out / "plan.json") as part:
        part.write_text(json.dumps({**_remembered(store), **said}, indent=1, default=str) + "\n", "utf-8")


def drawn(stages: list[Planned]) -> list[str]:
    """The plan as lines of a tree: each stage under the last of those it takes from."""
    by_name = {one.name: one for one in stages}
    depth: dict[str, int] = {}
    for one in stages:
        depth[one.name] = 1 + max((depth[name] for name in one.takes), default=-1)
    last = {
        one.name: max(one.takes, key=lambda name: (depth[name], [*by_name].index(name)), default=None) for one in stages
    }
    lines: list[str] = []

    def draw(name: str, indent: str, end: bool, top: bool) -> None:
        one = by_name[name]
        branch = "" if top else ("└─ " if end else "├─ ")
        told = one.state if one.state == "done" else f"{one.state}: {one.why}"
        lines.append(f"{indent}{branch}{name} [{one.stage.do}] — {told}")
        under = [other.name for other in stages if last[other.name] == name]
        for index, other in enumerate(under):
            draw(other, indent if top else indent + ("   " if end else "│  "), index == len(under) - 1, False)

    for one in stages:
        if last[one.name] is None:
            draw(one.name, "", True, True)
    return lines
