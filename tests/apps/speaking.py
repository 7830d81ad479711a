"""Running the command line in tests: in this process, or as the command that a user types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from typer.testing import CliRunner

from cytolens.apps.cli.main import app

COMMAND = Path(sys.executable).with_name("cytolens")


@dataclass(frozen=True)
class Answer:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output; fails where there is anything else."""
        assert self.out.count("\n") == 1, f"one line was promised: {self.out!r}"
        assert self.out.endswith("\n")
        data = json.loads(self.out, parse_constant=_not_json)
        assert isinstance(data, dict)
        return data

    @property
    def complaint(self) -> str:
        """The one line that says what is wrong with a request; fails where there is a traceback or more."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert self.err.startswith("cytolens: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("cytolens: ").strip()


def _not_json(text: str) -> NoReturn:
    raise AssertionError(f"{text} is no JSON")


def say(*words: object) -> Answer:
    """A command in this process; only what is no answer at all (a bug) is raised."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


def surroundings(**more: str) -> dict[str, str]:
    """Environment variables for a process of its own: one thread, nothing that changes Python's ways."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COLUMNS"))}
    return kept | {"OMP_NUM_THREADS": "1"} | more


def run(*words: object, timeout_s: float = 300, **environment: str) -> Answer:
    """The real command in a process of its own."""
    done = subprocess.run(
        [COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout_s,
        env=surroundings(**environment),
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def python(script: str, *words: object, timeout_s: float = 300) -> Answer:
    """A script in a Python process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=surroundings(),
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def listing(folder: Path) -> Sequence[str]:
    """All files below a folder, as POSIX paths."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
