"""Settings: from a recipe, the command line and defaults to one frozen object, checked once.

Each settings model stands beside the function it steers; this is how they are filled.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cytolens.problems import SettingError, did_you_mean, listing

Settings = TypeVar("Settings", bound=BaseModel)


def parse_value(text: str) -> Any:
    """A value of ``--set key=value``: TOML where it is valid TOML, otherwise the text itself."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text  # several lines are no single value


def with_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of nested settings with ``a.b=c`` applied.

    Raises:
        SettingError: an override has no "=", or goes through something that is not a table.
    """
    result: dict[str, Any] = copy.deepcopy(dict(data))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise SettingError(f'--set takes KEY=VALUE, such as optimise.epochs=10; got "{override}"')
        *path, last = key.strip().split(".")
        table = result
        for step in path:
            table = table.setdefault(step, {})
            if not isinstance(table, dict):
                raise SettingError(f'--set {override}: "{step}" is a value, not a table of settings')
        table[last] = parse_value(value.strip())
    return result


def overlaid(tables: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables with others laid over them, key by key."""
    merged = dict(tables)
    for key, value in others.items():
        below = merged.get(key)
        merged[key] = overlaid(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def read_recipe(path: Path) -> dict[str, Any]:
    """The tables of a TOML recipe.

    Raises:
        SettingError: the file is missing or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(f"{path}: there is no such recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: not valid TOML ({error})") from error


def checked(model: type[Settings], data: Mapping[str, Any], where: str) -> Settings:
    """The settings as their type, or an error that names the key, its value and what is allowed.

    Raises:
        SettingError: a key is unknown or a value is not allowed.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_sentence(model, detail) for detail in error.errors()]
        raise SettingError(f"{where}: " + "; ".join(lines)) from None


def _sentence(model: type[BaseModel], detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] != "extra_forbidden":
        return f"{key} = {detail.get('input')!r}: {detail['msg']}"
    allowed = _fields_at(model, [str(part) for part in detail["loc"][:-1]])
    hint = did_you_mean(str(detail["loc"][-1]), allowed)
    return f'unknown setting "{key}". {hint + " " if hint else ""}Allowed here: {listing(allowed, 30)}'


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for step in path:
        annotation = model.model_fields[step].annotation if step in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
