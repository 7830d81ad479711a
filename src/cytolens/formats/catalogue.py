"""Public data sets: what they are, under what terms, where they lie, and how they are read.

The entries stand in ``catalogue.toml``; a file of the user's can add to them or replace one. What is not
known about a data set is left empty there and said to be unknown; nothing is guessed.
"""

from __future__ import annotations

import hashlib
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cytolens import formats
from cytolens.formats.archives import extract, folder_written
from cytolens.formats.download import Progress, cache_folder, fetch, file_sha256, is_pinned
from cytolens.formats.options import Order, ReadOptions
from cytolens.labels import LabelSet
from cytolens.problems import DownloadError, FormatError, SettingError, did_you_mean, listing
from cytolens.settings import checked

Shipping = Literal["yes", "non-commercial", "unclear"]
_Text = Annotated[str, Field(min_length=1)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

# Photographs hardly shrink in an archive and text shrinks tenfold; an archive that grows more is a bomb.
_MOST_GROWTH = 20
_ROOM = 1 << 20  # for tiny archives, whose growth says nothing


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceFile(_Part):
    """One file of a data set on the network.

    Attributes:
        url: its address.
        name: what it is called here.
        sha256: what it hashes to; None where nobody published it.
        size_bytes: its length; None where not known.
        unpacked_bytes: what an archive holds; twice as much is refused. None: a bound from its length.
        unpack: whether it is an archive.
        strip: leading folders of an archive that are left out.
        below: the folder of an archive (after stripping) that is wanted; its path is left out.
        into: the folder of the data set that it, or its content, goes to.
    """

    url: _Text
    name: _Text
    sha256: _Sha256 | None = None
    size_bytes: int | None = Field(default=None, gt=0)
    unpacked_bytes: int | None = Field(default=None, gt=0)
    unpack: bool = False
    strip: int = Field(default=0, ge=0)
    below: str = ""
    into: str = ""

    @field_validator("name", "into", "below")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        return _relative(value)

    @property
    def fetchable(self) -> bool:
        """Whether `fetch` takes it: its sha256 is known, or its address fixes what is sent."""
        return self.sha256 is not None or is_pinned(self.url)


class Layout(_Part):
    """One way in which a data set lies in a folder, and how it is read then; paths are relative to the folder.

    Attributes:
        needs: files and folders by which it is told from others.
        source: the file or folder to read; empty for the folder itself.
        format: one of `formats.FORMATS`.
        labels: a shipped label set; None takes the names as they are.
        images, split, group_pattern, allow_missing_images, columns, complete_for, order, label: as in `ReadOptions`.
    """

    needs: Annotated[tuple[_Text, ...], Field(min_length=1)]
    source: str = ""
    format: _Text
    labels: str | None = None
    images: str | None = None
    split: str | None = None
    group_pattern: str | None = None
    allow_missing_images: bool = False
    columns: dict[str, str] | None = None
    complete_for: tuple[str, ...] | None = None
    order: Order | None = None
    label: str | None = None

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        if value not in formats.FORMATS:
            raise ValueError(f"there is no such format; there are {listing(formats.FORMATS, 20)}")
        return value

    @field_validator("needs", "source", "images")
    @classmethod
    def _stay_inside(cls, value: Any) -> Any:
        for path in (value,) if isinstance(value, str) else value or ():
            _relative(path)
        return value

    def missing(self, folder: Path) -> list[str]:
        """What it needs and the folder does not have."""
        return [path for path in self.needs if not (folder / path).exists()]

    def options(self, folder: Path, entry: Entry) -> ReadOptions:
        """How the data set is read from that folder."""
        return ReadOptions(
            name=entry.name,
            licence=entry.licence,
            source=entry.citation,
            labels=None if self.labels is None else LabelSet.shipped(self.labels),
            images=None if self.images is None else folder / self.images,
            **self.model_dump(exclude={"needs", "source", "format", "labels", "images"}),
        )


class Entry(_Part):
    """A data set.

    Attributes:
        name: what it is called here.
        title, what: its own name, and what it shows.
        images, cells: how many there are; None where not known.
        rounded: whether these are round figures of the authors, not counts.
        counts_note: what the figures count, and of which version.
        size: of what is fetched, in words; empty where not known.
        licence, licence_note: its terms, and what is not certain about them.
        model, model_note: whether a model trained on it may be given to others, as far as known.
        citation, doi, home: whom to cite, and where it is described.
        apply: where to register for it; empty where one need not.
        files: what to fetch.
        layouts: how it is read, the likeliest first.
        unreadable: why no format reads it; empty where one does.
        notes, defects: what to know, and what is known to be wrong in it.
    """

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]*$")]
    title: _Text
    what: _Text
    images: int | None = Field(default=None, gt=0)
    cells: int | None = Field(default=None, gt=0)
    rounded: bool = False
    counts_note: str = ""
    size: str = ""
    licence: _Text
    licence_note: str = ""
    model: Shipping
    model_note: _Text
    citation: _Text
    doi: str = ""
    home: _Text
    apply: str = ""
    files: tuple[SourceFile, ...] = ()
    layouts: tuple[Layout, ...] = ()
    unreadable: str = ""
    notes: tuple[_Text, ...] = ()
    defects: tuple[_Text, ...] = ()

    @model_validator(mode="after")
    def _readable_or_not(self) -> Self:
        if bool(self.layouts) == bool(self.unreadable):
            raise ValueError("wants either [[data_set.layouts]] or unreadable = why no format reads it")
        return self

    @property
    def access(self) -> Literal["direct", "by hand", "registration"]:
        """How one comes to it: fetched by `fetched`, fetched by hand, or after registration."""
        if self.apply:
            return "registration"
        return "direct" if self.files and all(file.fetchable for file in self.files) else "by hand"


class _Catalogue(_Part):
    data_set: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Fetched:
    """What `fetched` brought: the data set's folder, and each file's address and sha256."""

    folder: Path
    files: tuple[Mapping[str, Any], ...]


def catalogue(more: Path | None = None) -> dict[str, Entry]:
    """All entries by name, in order.

    Args:
        more: a TOML file with further ``[[data_set]]`` tables; one of a known name replaces the shipped entry.

    Raises:
        SettingError: the file is missing, not TOML, or an entry is not as it should be.
    """
    shipped = resources.files("cytolens.formats").joinpath("catalogue.toml").read_text(encoding="utf-8")
    entries = _entries(shipped, "catalogue.toml")
    if more is not None:
        try:
            text = more.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"{more}: cannot be read as a catalogue ({error}).") from error
        entries |= _entries(text, str(more))
    return entries


def _entries(text: str, where: str) -> dict[str, Entry]:
    try:
        found = checked(_Catalogue, tomllib.loads(text), where).data_set
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{where}: not valid TOML ({error}).") from error
    table = {entry.name: entry for entry in found}
    if len(table) < len(found):
        raise SettingError(f"{where}: two entries have one name. Names: {listing(entry.name for entry in found)}")
    return table


def find(name: str, entries: Mapping[str, Entry]) -> Entry:
    """The entry of that name, in any case, with "-" or "_".

    Raises:
        SettingError: there is none.
    """
    spelt = name.casefold()
    for candidate in (spelt, spelt.replace("-", "_"), spelt.replace("_", "-")):
        if candidate in entries:
            return entries[candidate]
    hint = did_you_mean(name, entries)
    raise SettingError(
        f'there is no data set "{name}" in the catalogue. {hint + " " if hint else ""}There are: {listing(entries, 40)}'
    )


# -- fetching ---------------------------------------------------------------------------------------


def fetched(
    entry: Entry, keep: Path | None = None, progress: Callable[[str], Progress | None] | None = None
) -> Fetched:
    """Fetch and unpack a data set, or find it already there.

    Args:
        entry: the data set.
        keep: the folder for its files; None: ``datasets/<name>`` in the cache folder.
        progress: given a file's name, the function that is told how far its fetching is.

    Raises:
        SettingError: it is not to be fetched: registration is needed, there is nothing to check it by, or no
            format would read it.
        DownloadError: a file cannot be fetched, or is not the one expected.
        FormatError: an archive is damaged or refused.
    """
    if entry.access != "direct":
        raise SettingError(by_hand(entry))
    if entry.unreadable:
        raise SettingError(f"{entry.name}: {_unreadable(entry)}")
    keep = cache_folder() / "datasets" / entry.name if keep is None else keep
    paths, seen = [], []
    for file in entry.files:
        tell = None if progress is None else progress(file.name)
        paths.append(_fetched_file(entry, file, keep / "fetched" / file.name, tell))
        seen.append({"url": file.url, "sha256": file_sha256(paths[-1]), "checked": file.sha256 is not None})
    # The name says which files it was made of, so that another version of an entry gets a folder of its own.
    key = "\n".join(f"{file.model_dump_json()} {one['sha256']}" for file, one in zip(entry.files, seen, strict=True))
    folder = keep / f"unpacked-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not folder.exists():
        with folder_written(folder) as part:
            for file, path in zip(entry.files, paths, strict=True):
                _placed(file, path, part)
    return Fetched(folder, tuple(seen))


def _fetched_file(entry: Entry, file: SourceFile, target: Path, progress: Progress | None) -> Path:
    try:
        return fetch(file.url, target, sha256=file.sha256, size=file.size_bytes, progress=progress)
    except DownloadError as error:
        raise DownloadError(
            f"{error} Or bring the data set here by other means and name its folder: "
            f"cytolens datasets get {entry.name} --from DIR --out DATASET"
        ) from error


def _placed(file: SourceFile, path: Path, part: Path) -> None:
    """Put a file, or what it holds, where it belongs in the data set's folder."""
    folder = part / file.into
    if not file.unpack:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / file.name)
        return
    most = file.unpacked_bytes * 2 if file.unpacked_bytes else path.stat().st_size * _MOST_GROWTH + _ROOM
    try:
        count = extract(path, folder, strip=file.strip, below=file.below, most_bytes=most)
        if not count:
            raise FormatError(f'{path}: holds nothing below "{file.below}".')
    except FormatError:
        if file.sha256 is None:  # cut short, perhaps; with a sha256 it is what it was meant to be
            path.unlink()
        raise


def by_hand(entry: Entry) -> str:
    """How one comes to a data set that is not fetched directly."""
    if entry.apply:
        way = f"needs registration, so it is not fetched from here. Apply at {entry.apply}"
    elif entry.files:
        addresses = listing((file.url for file in entry.files if not file.fetchable), 6)
        way = f"is not fetched from here, because no sha256 was published to check it by. Fetch by hand: {addresses}"
    else:
        way = f"has no address that can be fetched directly. It is described at {entry.home}"
    if entry.unreadable:
        return f"{entry.name} {way}. {_unreadable(entry)}"
    return (
        f"{entry.name} {way}. Unpack what you get into one folder ({_wanted(entry)}) and go on with: "
        f"cytolens datasets get {entry.name} --from DIR --out DATASET "
        f"(more: cytolens datasets list {entry.name})"
    )


# -- reading ----------------------------------------------------------------------------------------


def read_entry(entry: Entry, folder: Path, files: tuple[Mapping[str, Any], ...] = ()) -> formats.Imported:
    """Read a data set from its folder, with its licence, and its citation in the provenance.

    Args:
        entry: the data set.
        folder: where it lies.
        files: addresses and sha256 of what was fetched; empty for a copy at hand.

    Raises:
        FormatError: no format reads it, the folder is not there or in none of its layouts, or it cannot be read.
    """
    if entry.unreadable:
        raise FormatError(f"{entry.name}: {_unreadable(entry)}")
    if not folder.is_dir():
        raise FormatError(f'"{folder}": there is no such folder. Name the folder with {entry.name} ({_wanted(entry)}).')
    layout = next((layout for layout in entry.layouts if not layout.missing(folder)), None)
    if layout is None:
        missing = "; ".join(f"without {listing(layout.missing(folder))}" for layout in entry.layouts)
        raise FormatError(
            f"{folder}: is not laid out as {entry.name} is. Looked for {_wanted(entry)}; it is {missing}."
        )
    imported = formats.read(folder / layout.source, layout.format, layout.options(folder, entry))
    origin: dict[str, Any] = {"step": "catalogue", "data_set": entry.name, "title": entry.title, "home": entry.home}
    origin |= {"citation": entry.citation, "doi": entry.doi, "licence": entry.licence, "model": entry.model}
    origin |= {"files": [dict(file) for file in files]} if files else {"folder": folder.resolve().name}
    dataset = imported.dataset
    return replace(imported, dataset=replace(dataset, provenance=(origin, *dataset.provenance)))


def _wanted(entry: Entry) -> str:
    """What the layouts need, as a phrase."""
    return " or ".join(listing(layout.needs) for layout in entry.layouts)


def _unreadable(entry: Entry) -> str:
    return f"It cannot be imported: {entry.unreadable}"


def _relative(text: str) -> str:
    """A path that stays where it is put.

    Raises:
        ValueError: it is absolute, or climbs.
    """
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text:
        raise ValueError("has to be a relative path without ..")
    return text
