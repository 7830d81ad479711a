"""What can be wrong, how it is said, and how nothing is left half-written.

Two ways to say that something is wrong, never mixed:

* a **Problem** is a row in a list: something in the user's data that does not stop the work.
  Every check, import and prediction returns its list of problems.
* an **error** stops the request. All of them derive from one class::

    CytolensError                 the request cannot be carried out (exit code 2)
    ├── SettingError              an option, setting or recipe key is wrong
    ├── LabelError                a label is unknown, ambiguous or missing from a label set
    ├── FormatError               a file is not what its format promises
    ├── ImageError                one image cannot be read, or is refused
    ├── DatasetError              a dataset folder is missing, damaged or of another version
    ├── BundleError               a bundle is missing, damaged or of another version
    ├── MissingExtraError         the request needs an extra that is not installed
    └── DownloadError             a file could not be fetched, or is not the one expected

Every message says what, where, the value seen, what is allowed and what to do.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

Severity = Literal["error", "warning", "note"]
_ORDER: dict[str, int] = {"error": 0, "warning": 1, "note": 2}
_part_numbers = itertools.count()


class CytolensError(Exception):
    """The request cannot be carried out; the message says why and what to do."""


class SettingError(CytolensError):
    """An option, setting or recipe key is wrong."""


class LabelError(CytolensError):
    """A label is unknown, ambiguous or missing from a label set."""


class FormatError(CytolensError):
    """A file is not what its format promises."""


class ImageError(CytolensError):
    """One image cannot be read, or is refused. Carries the `Problem` that a batch reports."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem

    def __reduce__(self) -> tuple[type[ImageError], tuple[Problem]]:
        return type(self), (self.problem,)


class DatasetError(CytolensError):
    """A dataset folder is missing, damaged or of another version."""


class BundleError(CytolensError):
    """A bundle is missing, damaged or of another version."""


class MissingExtraError(CytolensError):
    """The request needs an extra that is not installed."""


class DownloadError(CytolensError):
    """A file could not be fetched, or is not the one expected."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in the data: where, what, how bad, and what to do about it."""

    kind: str  # a stable word for counting and filtering, such as "image-unreadable"
    where: str  # file, line, image id, cell id
    what: str
    fix: str = ""
    severity: Severity = "warning"

    def __str__(self) -> str:
        tail = f" {self.fix}" if self.fix else ""
        return f"{self.where}: {self.what}{tail}"

    def to_dict(self) -> dict[str, str]:
        """The problem as a flat dictionary of strings."""
        return asdict(self)


class Problems:
    """An ordered collection of problems; the result of every check."""

    def __init__(self, items: Iterable[Problem] = ()) -> None:
        self._items: list[Problem] = list(items)

    def add(self, kind: str, where: str, what: str, fix: str = "", severity: Severity = "warning") -> None:
        """Append one problem."""
        self._items.append(Problem(kind, where, what, fix, severity))

    def extend(self, items: Iterable[Problem]) -> None:
        """Append several problems."""
        self._items.extend(items)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Problem:
        return self._items[index]

    def __repr__(self) -> str:
        return f"Problems({dict(self.counts())})"

    def counts(self) -> Counter[str]:
        """How many problems there are of each kind."""
        return Counter(item.kind for item in self._items)

    def of(self, kind: str) -> list[Problem]:
        """The problems of one kind."""
        return [item for item in self._items if item.kind == kind]

    @property
    def worst(self) -> Severity | None:
        """The gravest severity present, or None where nothing is wrong."""
        if not self._items:
            return None
        return min((item.severity for item in self._items), key=_ORDER.__getitem__)

    def to_dicts(self) -> list[dict[str, str]]:
        """The problems as flat dictionaries, in order."""
        return [item.to_dict() for item in self._items]


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """A hint such as ``Did you mean "neutrophil"?``, or an empty string.

    Case is ignored when comparing, because a wrong case is the commonest slip.
    """
    by_fold = {name.casefold(): name for name in allowed}
    close = difflib.get_close_matches(word.casefold(), list(by_fold), n=1, cutoff=0.6)
    return f'Did you mean "{by_fold[close[0]]}"?' if close else ""


def listing(names: Iterable[str], most: int = 12) -> str:
    """Names for an error message, cut where the list would drown it."""
    names = list(names)
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} … and {len(names) - most} more"


def require(module: str, extra: str, why: str) -> ModuleType:
    """Import a module of an extra, or say which extra to install.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f'{why} needs the package "{module.split(".")[0]}", which is not installed. '
            f'Install the extra: pip install "cytolens[{extra}]"'
        ) from error


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name to write to; the file takes its real name only when the block ends well.

    The temporary name stands in the same folder, so that the renaming is one step, and keeps the
    suffix, because writers choose their format by it. No two writers share one, also not two threads
    that write the same file. After an error nothing is left behind.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{os.getpid()}-{next(_part_numbers)}.part{target.suffix}")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
