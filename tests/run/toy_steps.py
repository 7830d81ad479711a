"""Steps that are done in no time, and say what they did: for tests of plans and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from cytolens.problems import DatasetError, SettingError
from cytolens.run.steps import Notify, Step


class TakeStep(Step):
    """Copy a file from outside."""

    outside = ("source",)
    source: Path
    scale: int = 1

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``value.json``: the number in the file, times a factor."""
        value = int(self.source.read_text()) * self.scale
        return _left(folder, value)


class AddStep(Step):
    """Add up what others left."""

    version: ClassVar[int] = 1
    parts: tuple[Path, ...] = ()
    named: dict[str, tuple[Path, ...]] = Field(default_factory=dict)
    plus: int = 0

    def check(self) -> None:
        """Thirteen is refused before anything is done."""
        if self.plus == 13:
            raise SettingError("plus = 13: choose another")

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``value.json``: the sum."""
        notify("adding")
        places = [*self.parts, *(place for some in self.named.values() for place in some)]
        return _left(folder, self.plus + sum(value(place) for place in places))


class BreakStep(Step):
    """Leaves half a result and fails, while a file is there."""

    resumes = True
    part: Path
    while_there: Path

    def run(self, folder: Path, notify: Notify) -> dict[str, Any]:
        """``value.json``: how many attempts it took."""
        with (folder / "attempts.txt").open("a") as stream:
            stream.write("x")
        if self.while_there.exists():
            raise DatasetError(f"{self.while_there} is in the way; remove it")
        return _left(folder, len((folder / "attempts.txt").read_text()))


TOYS: dict[str, type[Step]] = {"take": TakeStep, "add": AddStep, "break": BreakStep}


def value(folder: Path) -> int:
    """What a step left."""
    return int(json.loads((folder / "value.json").read_text()))


def _left(folder: Path, number: int) -> dict[str, Any]:
    (folder / "value.json").write_text(json.dumps(number))
    return {"value": number}
