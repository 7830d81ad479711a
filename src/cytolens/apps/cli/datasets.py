"""`cytolens datasets list` and `cytolens datasets get`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytolens.apps.cli.console import BAD, DONE, Debug, Json, answer, command, problem_lines, progress
from cytolens.problems import SettingError

if TYPE_CHECKING:
    from cytolens.formats.catalogue import Entry
    from cytolens.formats.download import Progress

app = typer.Typer(help="Public data sets: what there is, under what terms; fetch and import.", no_args_is_help=True)

_Catalogue = Annotated[
    Path | None, typer.Option(help="A TOML file with further [[data_set]] tables; one of a known name replaces it.")
]
_ACCESS = {"direct": "fetched", "by hand": "by hand", "registration": "register"}
_UNKNOWN = "not known"
_MODEL = "may a model trained on it be given to others"


@app.command("list")
@command
def list_datasets(
    name: Annotated[str | None, typer.Argument(help="One data set, in full; none: all of them, one line each.")] = None,
    catalogue: _Catalogue = None,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Public data sets: images, cells, licence, whether a model trained on them may be shipped, how to get them.

    "get" says how: fetched (by cytolens datasets get), by hand (fetch it yourself, then --from), register (ask
    its owners, then --from), no import (no format reads it).

    Example: cytolens datasets list bccd
    """
    from cytolens.formats.catalogue import catalogue as all_entries
    from cytolens.formats.catalogue import find

    entries = all_entries(catalogue)
    if name is not None:
        entry = find(name, entries)
        answer(_about(entry), _in_full(entry), json_output)
        return DONE
    answer({"data_sets": [_about(entry) for entry in entries.values()]}, _table(list(entries.values())), json_output)
    return DONE


@app.command()
@command
def get(
    name: Annotated[str, typer.Argument(help="A data set of the catalogue.")],
    out: Annotated[Path, typer.Option(help="Folder for the dataset.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="A copy at hand: import this folder, and fetch nothing.")
    ] = None,
    keep_files: Annotated[
        Path | None, typer.Option(help="Folder for the fetched files and images. Default: the cache folder.")
    ] = None,
    catalogue: _Catalogue = None,
    json_output: Json = False,
    debug: Debug = False,
) -> int:
    """Fetch a public data set and import it; a fetch that was cut goes on where it was.

    Images stay where they were unpacked, or in the folder of --from; the dataset refers to them. Read the
    licence first: cytolens datasets list NAME.

    Example: cytolens datasets get bccd --out data/bccd
    """
    from cytolens.formats.catalogue import catalogue as all_entries
    from cytolens.formats.catalogue import fetched, find, read_entry

    if source is not None and keep_files is not None:
        raise SettingError("--keep-files is for what is fetched; with --from nothing is fetched. Leave one of them out")
    entry = find(name, all_entries(catalogue))
    if source is not None:
        folder, files = source, ()
    else:
        with _fetching(json_output) as tell:
            got = fetched(entry, keep_files, tell)
        folder, files = got.folder, got.files
    imported = read_entry(entry, folder, files)
    dataset, problems = imported.dataset, imported.problems
    dataset.write(out)
    counts = dict(dataset.cells.frame["label"].cast(str).value_counts(sort=True).iter_rows())
    data = {
        "dataset": str(out),
        "data_set": entry.name,
        "folder": str(folder),
        "images": len(dataset.images),
        "cells": len(dataset.cells),
        "labels": {str(label): count for label, count in counts.items()},
        "licence": entry.licence,
        "model": entry.model,
        "files": [dict(file) for file in files],
        "fingerprint": dataset.fingerprint,
        "problems": problems.to_dicts(),
    }
    lines = [f"{out}: {len(dataset.images)} images, {len(dataset.cells)} cells; the images lie in {folder}"]
    lines += [f"  {label or '(no label)'}: {count}" for label, count in counts.items()]
    lines += [_seen(file) for file in files]
    lines += [f"  licence: {_with_note(entry.licence, entry.licence_note)}", f"  {_MODEL}: {_shipping(entry)}"]
    answer(data, lines + problem_lines(problems), json_output)
    return BAD if problems.worst == "error" else DONE


def _seen(file: Any) -> str:
    if file["checked"]:
        return f"  {file['url']}: sha256 {file['sha256']}, as expected"
    return (
        f"  {file['url']}: sha256 {file['sha256']}; it could not be checked, because none is published. "
        "The address names a fixed commit; the hash is kept in the dataset's provenance."
    )


@contextmanager
def _fetching(as_json: bool) -> Iterator[Callable[[str], Progress | None]]:
    """One bar for all files, one after the other."""
    with progress("fetching", as_json) as bar:

        def begin(_name: str) -> Progress | None:
            return None if bar is None else _counting(bar)

        yield begin


def _counting(bar: Callable[[int, int], None]) -> Progress:
    """A server may not say how much will come; the bar then shows what has come."""
    return lambda done, total: bar(done, total or done)


# -- showing ----------------------------------------------------------------------------------------


def _about(entry: Entry) -> dict[str, Any]:
    return entry.model_dump(mode="json") | {"access": entry.access}


def _table(entries: list[Entry]) -> list[str]:
    head = ("name", "images", "cells", "licence", "model", "get", "what")
    rows = [
        (
            entry.name,
            _count(entry.images, entry.rounded),
            _count(entry.cells, entry.rounded),
            _shortened(entry.licence, 24),
            entry.model,
            "no import" if entry.unreadable else _ACCESS[entry.access],
            entry.what + (f" [{entry.size}]" if entry.size else ""),
        )
        for entry in entries
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head) - 1)]
    right = {1, 2}
    return [
        "  ".join(
            [
                *(
                    text.rjust(w) if i in right else text.ljust(w)
                    for i, (text, w) in enumerate(zip(row, widths, strict=False))
                ),
                row[-1],
            ]
        )
        for row in (head, *rows)
    ] + ["", "model: may a model trained on it be given to others? In full: cytolens datasets list NAME"]


def _in_full(entry: Entry) -> list[str]:
    figures = f"{_count(entry.images, entry.rounded)} images, {_count(entry.cells, entry.rounded)} cells"
    lines = [
        f"{entry.name}: {entry.title}",
        f"  what: {entry.what}",
        f"  figures: {_with_note(figures, entry.counts_note)}",
        f"  size: {entry.size or _UNKNOWN}",
        f"  licence: {_with_note(entry.licence, entry.licence_note)}",
        f"  {_MODEL}: {_shipping(entry)}",
        f"  cite: {entry.citation}",
        f"  doi: {entry.doi or _UNKNOWN}",
        f"  home: {entry.home}",
    ]
    lines += [f"  register: {entry.apply}"] if entry.apply else []
    for file in entry.files:
        size = f"{file.size_bytes:,} bytes" if file.size_bytes else f"size {_UNKNOWN}"
        lines.append(f"  file: {file.url} ({size}; sha256 {file.sha256 or _UNKNOWN})")
    lines += [f"  get: {_how(entry)}"]
    lines += [f"  read as: {layout.format}, where there is {', '.join(layout.needs)}" for layout in entry.layouts]
    lines += [f"  cannot be imported: {entry.unreadable}"] if entry.unreadable else []
    lines += [f"  note: {note}" for note in entry.notes]
    return lines + [f"  defect: {defect}" for defect in entry.defects]


def _how(entry: Entry) -> str:
    from cytolens.formats.catalogue import by_hand

    if entry.unreadable:
        return "not by this program"
    if entry.access == "direct":
        return f"cytolens datasets get {entry.name} --out DATASET"
    return by_hand(entry)


def _shipping(entry: Entry) -> str:
    return _with_note(entry.model, entry.model_note)


def _with_note(text: str, note: str) -> str:
    return f"{text}. {note}" if note else text


def _count(number: int | None, rounded: bool) -> str:
    if number is None:
        return "?"
    return f"{'~' if rounded else ''}{number:,}"


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 2].rstrip(" ,;") + " …"
