"""Label names as files give them, and the label set they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from cytolens.labels import LabelSet, folded, taxonomy
from cytolens.problems import Problems, did_you_mean, listing

_MOST_HINTS = 50  # looking for a name that is near takes long; a file with more strange names has another fault


def name_labels(
    cells: pl.DataFrame, names: Sequence[str], wanted: LabelSet | None, problems: Problems
) -> tuple[LabelSet, dict[str, str | None]]:
    """The label set of an import, and which of its labels each given name means.

    Args:
        cells: columns `label` and `where`.
        names: all names of the source, in the order that they are to have.
        wanted: the label set to speak; None: one is made of the names exactly as given.
        problems: collects unknown names and different spellings of one name.

    Returns:
        The label set, and given name → label (None: no such label).
    """
    given = cells.select("label", "where").drop_nulls("label")
    counts = given.group_by("label").agg(pl.len(), pl.col("where").first())
    found = {name: (count, where) for name, count, where in counts.iter_rows()}
    if wanted is not None:
        return wanted, _in_words_of(wanted, found, problems)
    spelling = _spellings(names, found, problems)
    kept = list(dict.fromkeys(name for name in spelling.values() if name is not None))
    for number, name in enumerate(name for name in kept if taxonomy().resolve(name) is None):
        what = f'the label "{name}" is not in the shipped taxonomy; it has no parent and no role.'
        hint = did_you_mean(name, _words(taxonomy())) if number < _MOST_HINTS else ""
        problems.add("label-unfamiliar", name, what, hint, "note")
    return LabelSet.of(kept), spelling


def in_taxonomy_order(names: set[str]) -> list[str]:
    """Names in the order of the shipped taxonomy; those it does not know come last, by the alphabet."""
    known = taxonomy()
    position = {name: i for i, name in enumerate(known.names)}
    return sorted(names, key=lambda name: (position.get(known.resolve(name) or "", len(position)), name))


def _in_words_of(labels: LabelSet, found: Mapping[str, tuple[int, str]], problems: Problems) -> dict[str, str | None]:
    meaning = {name: labels.resolve(name) for name in found}
    for number, name in enumerate(sorted(name for name, label in meaning.items() if label is None)):
        count, where = found[name]
        hint = did_you_mean(name, _words(labels)) if number < _MOST_HINTS else ""
        problems.add(
            "label-unknown",
            where,
            f'the label "{name}" is not among: {listing(labels.names)}. {count} cells are kept without a label.',
            hint or "Add it to the label set, or leave labels out to take the names as they are.",
            "error",
        )
    return meaning


def _spellings(names: Sequence[str], found: Mapping[str, tuple[int, str]], problems: Problems) -> dict[str, str | None]:
    """Given name → the spelling that stands for it, since a label set knows each name once."""
    first: dict[str, str] = {}
    table: dict[str, str | None] = {}
    for name in names:
        if not name.strip():
            count, where = found.get(name, (0, "the list of labels"))
            problems.add("label-empty", where, f"a label has no name; {count} cells are kept without a label.")
            table[name] = None
            continue
        table[name] = first.setdefault(folded(name), name)
        if table[name] != name:
            where = found.get(name, (0, "the list of labels"))[1]
            problems.add("label-spelling", where, f'"{name}" is taken for "{table[name]}": the same name.')
    return table


def _words(labels: LabelSet) -> list[str]:
    return [*labels.names, *labels.aliases]
