"""What is odd about labels and attributes: unused, rare, misspelt, numbers, off by one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import polars as pl

from cytolens.dataset import Dataset
from cytolens.labels import AttributeSchema, LabelSet, attribute_schema, folded, taxonomy
from cytolens.prepare.check_findings import CheckSettings, Finding, finding
from cytolens.problems import LabelError, did_you_mean, listing

# What programs call "no object" when it takes up the first class number.
_BACKGROUND = frozenset({"background", "bg", "void", "none", "null", "nil", "unlabelled", "unlabeled", "empty"})
_ALIKE = 0.84  # share of common letters from which an unknown name is taken for a misspelling
_CODE = 3  # names up to so many letters are codes, of which every letter counts


def label_findings(dataset: Dataset, settings: CheckSettings) -> list[Finding]:
    """What is odd about the label set and how the cells use it."""
    counts = dict(dataset.cells.frame["label"].drop_nulls().cast(pl.String).value_counts().iter_rows())
    unnamed = dataset.cells.frame["label"].null_count()
    labels = dataset.labels
    return [
        *_unnamed(dataset, unnamed),
        *_class_zero(labels, counts, unnamed),
        *_spellings(labels, counts),
        *_synonyms(labels),
        *_counts(labels, counts, settings.label_cells_min),
        *_attributes(dataset),
    ]


def _unnamed(dataset: Dataset, unnamed: int) -> Iterator[Finding]:
    if unnamed:
        what = f"{unnamed} of {len(dataset.cells)} cells have no label."
        yield finding("label-missing", dataset.name, what, "Name them, or train without their label.", "note")


def _class_zero(labels: LabelSet, counts: dict[str, int], unnamed: int) -> Iterator[Finding]:
    """Names that betray a list of classes counted from another number than the files."""
    if not labels.names:
        return
    first = labels.names[0]
    numbers = [name for name in labels.names if name.strip().isdecimal()]
    look = "Look at some cells of each label; correct the list of classes and import again."
    # Some data sets call a kind of cell "None"; the taxonomy knows them.
    known = taxonomy().resolve(first) not in (None, "background")
    if folded(first) in _BACKGROUND and not known:
        have = f"{counts.get(first, 0)} cells are called so"
        what = f'the first label is "{first}", and {have}. Files that count without it are off by one.'
        yield finding("label-background", first, what, look)
    elif first not in counts and unnamed and len(counts) == len(labels) - 1:
        what = f'no cell is "{first}", the first label, and {unnamed} cells have none: numbers seem to start at 1.'
        yield finding("label-shift", first, what, look)
    if numbers:
        used = sorted(int(name) for name in numbers if name in counts)
        from_one = used and used[0] == 1 and used == list(range(1, len(used) + 1))
        start = " They are counted from 1." if from_one else ""
        what = f"{len(numbers)} labels are numbers ({listing(numbers, 6)}): the list of names is missing.{start}"
        yield finding("label-number", numbers[0], what, "Import again with --labels.")


def _spellings(labels: LabelSet, counts: dict[str, int]) -> Iterator[Finding]:
    known = taxonomy()
    common = [*known.names, *known.aliases]
    for name in labels.names:
        if known.resolve(name) is not None or name.strip().isdecimal():
            continue
        # Of two names that are both unknown, the one with fewer cells is the slip.
        rivals = [other for other in labels.names if (counts.get(other, 0), other) > (counts.get(name, 0), name)]
        meant = _alike(name, [*rivals, *common])
        cells = f"{counts.get(name, 0)} cells"
        if meant:
            what = f'the label "{name}" ({cells}) looks like "{meant}".'
            yield finding("label-typo", name, what, f'Did you mean "{meant}"? Correct it and import again.')
        else:
            what = f'the label "{name}" ({cells}) is not in the shipped taxonomy; it has no parent and no role.'
            fix = did_you_mean(name, common) or "Nothing needs to be done where it is a name of your own."
            yield finding("label-unfamiliar", name, what, fix, "note")


def _alike(name: str, others: list[str]) -> str | None:
    """The name that this one is a misspelling of, if any."""
    if len(folded(name)) <= _CODE:
        return None
    by_fold = {folded(other): other for other in others if len(folded(other)) > _CODE}
    close = difflib.get_close_matches(folded(name), list(by_fold), n=1, cutoff=_ALIKE)
    return by_fold[close[0]] if close else None


def _synonyms(labels: LabelSet) -> Iterator[Finding]:
    concepts: dict[str, list[str]] = {}
    for name in labels.names:
        concept = taxonomy().resolve(name)
        if concept is not None:
            concepts.setdefault(concept, []).append(name)
    for concept, names in concepts.items():
        if len(names) > 1:
            what = f'{listing(names)} are all names of "{concept}".'
            yield finding("label-synonyms", names[0], what, "Import again with --labels to make them one.", "note")


def _counts(labels: LabelSet, counts: dict[str, int], least: int) -> Iterator[Finding]:
    used = {wider for name in counts for wider in (name, *labels.ancestors(name))}
    for name in labels.names:
        if name not in used:
            fix = "Leave it out of the label set, or add cells of it."
            yield finding("label-unused", name, f'no cell is a "{name}".', fix, "note")
        elif 0 < counts.get(name, 0) < least:
            what = f'only {counts[name]} cells are "{name}" (fewer than {least}): too few to learn or to score.'
            yield finding("label-rare", name, what, "Add cells, or roll the label up to its parent.", "note")


def _attributes(dataset: Dataset) -> Iterator[Finding]:
    """Attributes of a shipped schema that the schema does not have, or not with these values."""
    for attribute in dataset.labels.attributes:
        try:
            shipped = {one.name: one for one in attribute_schema(attribute.schema)}
        except LabelError:  # a schema of one's own
            continue
        official = shipped.get(attribute.name)
        if official is None:
            what = f'the schema "{attribute.schema}" has no attribute "{attribute.name}".'
            fix = did_you_mean(attribute.name, shipped) or f"It has: {listing(shipped, 30)}."
            yield finding("attribute-unfamiliar", attribute.column, what, fix)
        else:
            yield from _values(dataset, attribute, official)


def _values(dataset: Dataset, attribute: AttributeSchema, official: AttributeSchema) -> Iterator[Finding]:
    counts = dict(dataset.cells.frame[attribute.column].drop_nulls().cast(pl.String).value_counts().iter_rows())
    for value in attribute.values:
        if value not in official.values:
            what = f'{counts.get(value, 0)} cells have the value "{value}", which the schema does not know.'
            fix = did_you_mean(value, official.values) or f"Allowed: {listing(official.values, 30)}."
            yield finding("attribute-unfamiliar", attribute.column, what, fix)
