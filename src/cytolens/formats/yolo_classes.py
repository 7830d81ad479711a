"""What a YOLO data set says of itself: class names and splits, in ``data.yaml`` or ``classes.txt``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytolens.formats.intake import Intake
from cytolens.formats.sources import IMAGE_FOLDER, ImageIndex, is_text, posix_name, split_in_path
from cytolens.problems import FormatError, listing

# Text files that are beside label files without being any.
CLASS_FILES = frozenset({"classes.txt", "predefined_classes.txt", "obj.names"})
_YAML = frozenset({".yaml", ".yml"})
_MOST_LETTERS = 400_000  # of a YAML file: its reader takes seconds for more, and no list of classes is as long
# Keys of data.yaml that are not splits.
_OTHER_KEYS = frozenset({"path", "names", "nc", "download", "kpt_shape", "flip_idx", "channels", "roboflow"})


@dataclass(frozen=True)
class Description:
    """Class names by class number, and the splits with what they consist of.

    Attributes:
        classes: class number → name.
        splits: split → folders (or .txt files that list images), as the file writes them.
    """

    classes: Mapping[int, str]
    splits: Mapping[str, Sequence[str]]

    @property
    def names(self) -> list[str]:
        """The class names in the order of their numbers."""
        return [self.classes[number] for number in sorted(self.classes)]


def describe(
    intake: Intake, source: Path, files: Sequence[tuple[str, Path]], standard: Sequence[str] | None = None
) -> Description:
    """Find and read the class names (and splits) of a data set.

    Args:
        intake: the import; its label set stands in where no file names the classes.
        source: the folder, or the YAML file to be read.
        files: all files below the root with their relative names.
        standard: the names where neither a file nor the label set gives them.

    Raises:
        FormatError: there are no class names, several files of them disagree, or one cannot be read.
    """
    yaml_file = source if source.is_file() else _yaml_file(files)
    listed = _class_file(intake, [(n, p) for n, p in files if p.name.casefold() in CLASS_FILES])
    if yaml_file is not None:
        description = _from_yaml(intake.read_text(yaml_file), intake.place(yaml_file))
        if listed is not None and listed != description.names:
            what = f"class names here: {listing(description.names, 5)}; in classes.txt: {listing(listed, 5)}."
            intake.problems.add(
                "classes-differ", intake.place(yaml_file), what, "This file is taken; delete the wrong one."
            )
        return description
    if listed is None and intake.options.labels is not None:
        listed = list(intake.options.labels.names)
        what = f"no classes.txt or data.yaml: class numbers are taken for the labels in their order: {listing(listed)}."
        intake.problems.add("classes-missing", intake.name, what, severity="note")
    listed = list(standard) if listed is None and standard is not None else listed
    if listed is None:
        raise FormatError(
            f"{intake.root}: no class names. Add classes.txt (one name per line) or data.yaml (names: [...]), "
            "or give a label set with --labels, whose order then is that of the class numbers."
        )
    return Description(dict(enumerate(listed)), {})


def _yaml_file(files: Sequence[tuple[str, Path]]) -> Path | None:
    """The YAML file at the top that names classes."""
    there = [path for name, path in files if "/" not in name and path.suffix.lower() in _YAML and names_classes(path)]
    usual = [path for path in there if path.stem.casefold() in ("data", "dataset")]
    chosen = usual if len(usual) == 1 else there
    if len(chosen) > 1:
        raise FormatError(f"several files name classes: {listing(p.name for p in chosen)}. Name the one that is meant.")
    return chosen[0] if chosen else None


def names_classes(path: Path) -> bool:
    """Whether a YAML file has a key "names" at its top level."""
    try:
        return re.search(rb"^(\xef\xbb\xbf)?[\"']?names[\"']?\s*:", path.read_bytes(), re.MULTILINE) is not None
    except OSError:
        return False


def _class_file(intake: Intake, files: Sequence[tuple[str, Path]]) -> list[str] | None:
    """The names in classes.txt: that at the top, else what all others agree on."""
    top = [(name, path) for name, path in files if "/" not in name]
    lists = {name: [line.strip() for line in intake.read_text(p).splitlines()] for name, p in (top[:1] or files)}
    for names in lists.values():
        while names and not names[-1]:
            names.pop()
    if len({tuple(names) for names in lists.values()}) > 1:
        raise FormatError(f"the class lists differ: {listing(lists, 5)}. Keep one classes.txt at the top.")
    return next(iter(lists.values()), None)


def _from_yaml(text: str, where: str) -> Description:
    import yaml

    if len(text) > _MOST_LETTERS:
        raise FormatError(f"{where}: {len(text):,} characters are more than the {_MOST_LETTERS:,} allowed for YAML.")
    try:
        # The base loader makes text of every scalar, so that a class called No, 1 or null keeps its name.
        data: Any = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FormatError(f"{where}: cannot be read as YAML ({' '.join(str(error).split())}).") from error
    names = data.get("names") if isinstance(data, dict) else None
    pairs: Iterable[tuple[Any, Any]] = names.items() if isinstance(names, dict) else enumerate(names or ())
    try:
        if not isinstance(names, (list, dict, str)) or (isinstance(names, str) and names):
            raise ValueError
        classes = {int(number): _name(name) for number, name in pairs}
        if any(number < 0 for number in classes):
            raise ValueError
    except (ValueError, TypeError):
        raise FormatError(f"{where}: names must be a list of class names, or class numbers with names.") from None
    splits = {
        key: [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, str) and entry]
        for key, value in data.items()
        if isinstance(key, str) and is_text(key) and key not in _OTHER_KEYS and isinstance(value, (str, list))
    }
    return Description(classes, splits)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not is_text(value):
        raise ValueError
    return value.strip()


class Parts:
    """Which splits an image is in: as data.yaml says, else by a folder called train, val, test."""

    def __init__(
        self,
        intake: Intake,
        splits: Mapping[str, Sequence[str]],
        index: ImageIndex,
        files: Mapping[str, Path],
        names: set[str],
    ) -> None:
        self._folders: list[tuple[str, str]] = []  # start of the name, split
        self._listed: dict[str, list[str]] = {}
        for split, entry in ((split, entry) for split, entries in splits.items() for entry in entries):
            listed = entry.endswith(".txt")
            for tail in _tails(entry):
                if listed and tail in files:
                    self._list(intake.read_text(files[tail]), split, index)
                    break
                if not listed and any(name.startswith(f"{tail}/") for name in names):
                    self._folders.append((f"{tail}/", split))
                    break

    def _list(self, text: str, split: str, index: ImageIndex) -> None:
        found = index.resolve(name for line in text.splitlines() if (name := posix_name(line)))
        for image_id in found.values():
            if image_id is not None:
                self._listed.setdefault(image_id, []).append(split)

    def of(self, name: str, image_id: str | None) -> tuple[str, ...]:
        """The splits of an image; usually none or one."""
        declared = [split for start, split in self._folders if name.startswith(start)]
        declared += self._listed.get(image_id or "", [])
        in_path = split_in_path(name)
        return tuple(dict.fromkeys(declared)) or (() if in_path is None else (in_path,))


def _tails(entry: str) -> list[str]:
    """The ends of a path in data.yaml, longest first: it may be absolute, or relative to who knows what."""
    steps = [step for step in posix_name(entry).split("/") if step not in ("", "..")]
    return ["/".join(steps[at:]) for at in range(len(steps))]


def description_texts(names: Sequence[str], splits: Iterable[str]) -> dict[str, str]:
    """What ``classes.txt`` and ``data.yaml`` say, by file name.

    Raises:
        FormatError: a split is called like another key of data.yaml, or a name holds a line break.
    """
    import yaml

    data: dict[str, Any] = {}
    for split in splits:
        if split in _OTHER_KEYS:
            raise FormatError(f'a split cannot be called "{split}" in data.yaml. Rename it first.')
        data[split] = f"{IMAGE_FOLDER}/{split}"
    if broken := [name for name in names if name.splitlines() != [name]]:
        raise FormatError(f"the label {broken[0]!r} holds a line break, which classes.txt cannot. Rename it first.")
    data |= {"nc": len(names), "names": dict(enumerate(names))}
    return {
        "classes.txt": "".join(f"{name}\n" for name in names),
        "data.yaml": yaml.safe_dump(data, sort_keys=False, allow_unicode=True),
    }
