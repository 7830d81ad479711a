"""A run: a recipe's stages made by an engine, and ``run.json``, which says what was made of what."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytolens.predict.outputs import versions
from cytolens.problems import SettingError, written
from cytolens.run.engine_local import run_stages
from cytolens.run.plan import Planned, plan, remember
from cytolens.run.recipe import FULL, Recipe, load
from cytolens.run.store import Store

ENGINES = ("local", "ray")
Told = Callable[[str, str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run leaves.

    Attributes:
        out: the run's folder.
        folders: where each stage's result stands, by the stage's name.
        summaries: what each stage says of itself.
        made: names of the stages that this call had to do.
    """

    out: Path
    folders: Mapping[str, Path]
    summaries: Mapping[str, Mapping[str, Any]]
    made: tuple[str, ...]


def run(
    recipe: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    scale: str = FULL,
    engine: str = "local",
    address: str | None = None,
    told: Told = lambda *_: None,
) -> RunResult:
    """Make what a recipe describes; results that are there already are not made again.

    Args:
        recipe: the TOML file.
        out: the run's folder. A run that was stopped, or whose settings changed, goes on there.
        overrides: KEY=VALUE each, such as "data=smears/".
        scale: "full", or one of the recipe's own scales.
        engine: "local", or "ray" for a cluster.
        address: of a running Ray cluster; None: one is started here.
        told: is told (stage, "start" | "note" | "done" | "failed", more) as it happens.

    Raises:
        SettingError: the recipe, a step or a setting is not allowed.
        CytolensError: a step cannot be carried out.
    """
    started = time.time()
    make = _engine(engine, address)
    read = load(Path(recipe), overrides, scale)
    store = Store(Path(out))
    with store.alone():
        stages = plan(read, store)
        made = tuple(one.name for one in stages if one.state != "done")
        try:
            make(stages, store, told)
        finally:
            remember([one for one in stages if store.done(one.name, one.key)], store)
        result = _result(stages, store, made)
        _write(result, read, Path(recipe), stages, overrides, scale, engine, started)
    return result


def _engine(name: str, address: str | None) -> Callable[[Sequence[Planned], Store, Told], None]:
    if name not in ENGINES:
        raise SettingError(f'no engine "{name}"; allowed: {", ".join(ENGINES)}')
    if name == "local":
        if address is not None:
            raise SettingError("--address names a Ray cluster; it goes with --engine ray")
        return run_stages
    from cytolens.run.engine_ray import engine

    return engine(address)


def _result(stages: Sequence[Planned], store: Store, made: tuple[str, ...]) -> RunResult:
    said = {one.name: store.done(one.name, one.key) or {} for one in stages}
    return RunResult(
        store.out, {one.name: one.folder for one in stages}, {n: d.get("summary", {}) for n, d in said.items()}, made
    )


def _write(
    result: RunResult,
    recipe: Recipe,
    path: Path,
    stages: Sequence[Planned],
    overrides: Sequence[str],
    scale: str,
    engine: str,
    started: float,
) -> None:
    store = Store(result.out)
    said = {
        "recipe": recipe.name,
        "file": str(path),
        "overrides": list(overrides),
        "scale": scale,
        "engine": engine,
        "values": dict(recipe.values),
        "versions": all_versions(),
        "started": started,
        "seconds": round(time.time() - started, 2),
        "stages": [
            {
                "name": one.name,
                "do": one.stage.do,
                "key": one.key,
                "folder": one.folder.relative_to(result.out).as_posix(),
                "made_now": one.name in result.made,
                "seconds": (store.done(one.name, one.key) or {}).get("seconds"),
                "takes": list(one.takes),
                "settings": one.keyed,
                "summary": result.summaries[one.name],
            }
            for one in stages
        ],
    }
    with written(result.out / "run.json") as part:
        part.write_text(json.dumps(said, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def all_versions() -> dict[str, str]:
    """The versions that a run's results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = dict(versions())
    for package in ("torch", "torchvision", "lightning", "timm", "ray", "optuna", "cleanlab", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
