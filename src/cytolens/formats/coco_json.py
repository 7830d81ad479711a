"""COCO's JSON files as Python data: loaded, told apart, and checked as far as reading and writing share it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cytolens.formats.sources import is_text
from cytolens.problems import FormatError


def load(text: str, path: Path) -> Any:
    """JSON text as Python data.

    Raises:
        FormatError: it is damaged; the message names the line.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FormatError(f"{path}, line {error.lineno}: is not JSON ({error.msg}). Is the file whole?") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: cannot be read as JSON ({error}).") from error


def is_instances(data: Any) -> bool:
    """Whether JSON data are an instances file."""
    return isinstance(data, dict) and isinstance(data.get("images"), list) and isinstance(data.get("categories"), list)


def is_results(data: Any) -> bool:
    """Whether JSON data are a results list; an empty list is one."""
    return isinstance(data, list) and (
        not data or (isinstance(data[0], dict) and {"image_id", "category_id"} <= data[0].keys())
    )


def is_id(value: Any) -> bool:
    """Whether a value can be an id of an image or category."""
    return isinstance(value, int) or (isinstance(value, str) and is_text(value))


def categories(data: dict[str, Any], path: Path) -> dict[Any, str]:
    """Category id → name, in the order of the file.

    Raises:
        FormatError: a category lacks an id or a name, or two have the same id.
    """
    names: dict[Any, str] = {}
    for number, entry in enumerate(data["categories"], 1):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not is_text(name) or not is_id(entry.get("id")):
            raise FormatError(f"{path}: category {number} needs an id and a name; it is {json.dumps(entry)[:80]}.")
        if names.setdefault(entry["id"], name.strip()) != name.strip():
            raise FormatError(f'{path}: two categories have the id {entry["id"]}: "{names[entry["id"]]}" and "{name}".')
    return names
