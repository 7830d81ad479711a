"""Where the results of steps are kept: one folder per result, named by what it was made from.

``OUT/steps/<stage>/<key>/`` holds a result, and ``done.json`` there, written last, says that it is whole. The key is
the hash of what is done, in which version, with which settings and from which other results; so a changed setting gives
another folder, and going back to the old setting finds the old result.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cytolens.problems import SettingError, written

_MARKER = "done.json"
_HASHED_UP_TO = 256 << 20  # bytes of a single file whose content is hashed; larger ones are known by size and time


def key_of(parts: Any) -> str:
    """Sixteen hexadecimal digits of anything that JSON can say."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_key(path: Path) -> str:
    """What a file or folder from outside is known by: a file by its content, a folder by names, sizes and times.

    Raises:
        SettingError: there is no such file or folder.
    """
    if path.is_file():
        if path.stat().st_size <= _HASHED_UP_TO:
            with path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
        return key_of([path.name, path.stat().st_size, path.stat().st_mtime_ns])
    if not path.is_dir():
        raise SettingError(f"{path}: there is no such file or folder")
    files = []
    for folder, inner, names in os.walk(path):
        inner.sort()
        for name in sorted(names):
            file = Path(folder, name)
            state = file.stat()
            files.append([file.relative_to(path).as_posix(), state.st_size, state.st_mtime_ns])
    return key_of(files)


class Store:
    """The results under one folder."""

    def __init__(self, out: Path) -> None:
        self.out = Path(out)

    def folder(self, stage: str, key: str) -> Path:
        """Where a result stands, or will."""
        return self.out / "steps" / re.sub(r"[^\w.=-]+", ".", stage) / key

    def done(self, stage: str, key: str) -> dict[str, Any] | None:
        """What ``done.json`` says of a whole result, else None."""
        try:
            said = json.loads((self.folder(stage, key) / _MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return said if isinstance(said, dict) and said.get("key") == key else None

    def started(self, stage: str, key: str) -> bool:
        """Whether something unfinished is there."""
        return self.folder(stage, key).exists() and self.done(stage, key) is None

    def begin(self, stage: str, key: str, keep: bool) -> Path:
        """The folder to work in: empty, or with what a stopped attempt left where the step can go on from that."""
        folder = self.folder(stage, key)
        if folder.exists() and not keep:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def finish(self, stage: str, key: str, said: Mapping[str, Any]) -> None:
        """Mark a result as whole."""
        with written(self.folder(stage, key) / _MARKER) as part:
            part.write_text(json.dumps({"stage": stage, "key": key, **said}, indent=1, default=str) + "\n", "utf-8")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs out of the folder meanwhile.

        Raises:
            SettingError: another run is at work there.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / ".lock").open("w") as stream:
            for last in (False, True):  # a run that was just killed may need a moment to let go
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if last:
                        raise SettingError(
                            f"{self.out}: another run is at work there; wait, or use another --out"
                        ) from None
                    time.sleep(1)
            yield
