"""Which found image is which truth image.

By the SHA-256 of the files' bytes, then by image id, then by a file name that is unique on both sides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cytolens.cells import Cells
from cytolens.images import Images
from cytolens.problems import DatasetError, Problems, listing

_Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ImagePartners:
    """The found image of each truth image that is scored.

    Attributes:
        found_id: truth image id → found image id, in the truth's order; None: known to hold no finding.
        joined_by: how many images were joined by "sha256", "image_id" and "file name".
        notes: what the reader of the figures has to know.
        problems: truth images that are not scored.
    """

    found_id: Mapping[str, str | None]
    joined_by: Mapping[str, int]
    notes: tuple[str, ...]
    problems: Problems


def join_images(truth: Images, found: Cells, found_images: Images | None, missing_ok: bool) -> ImagePartners:
    """Find the partner of each truth image.

    Args:
        truth: the truth's images.
        found: the findings.
        found_images: the images that were looked at. Where they are not known, a truth image that no
            finding refers to counts as looked at with nothing found, as long as some images do join.
        missing_ok: leave out truth images without a partner, instead of refusing.

    Raises:
        DatasetError: an image has no partner (unless `missing_ok`), or none has.
    """
    if found_images is None:
        ids = found.frame["image_id"].unique(maintain_order=True).to_list()
        rows: list[_Row] = [{"image_id": i, "sha256": None, "width_px": None, "height_px": None} for i in ids]
    else:
        rows = list(found_images.rows())
    search = _Search(truth.rows(), rows)
    joined: dict[str, str | None] = dict(search.chosen)
    notes = search.notes()
    if found_images is None and (joined or not rows):
        empty = [i for i in truth.ids if i not in joined and i not in search.reasons]
        joined.update(dict.fromkeys(empty))
        if empty:
            notes.append(
                f"{len(empty)} of {len(truth)} truth images have no finding and count as images in which nothing was "
                "found: the findings came without their table of images (images.parquet)."
            )
    lost = [image_id for image_id in truth.ids if image_id not in joined]
    problems = Problems()
    for image_id in lost:
        why = search.reasons.get(image_id, "there is no found image with its bytes, id or file name")
        problems.add("image-without-partner", image_id, f"{why}.", "Predict it too; it is not scored.")
    if lost:
        _refuse_unless(missing_ok and bool(joined), problems, len(truth))
        notes.append(f"{len(lost)} of {len(truth)} truth images have no found image and are not scored.")
    in_order = {image_id: joined[image_id] for image_id in truth.ids if image_id in joined}
    return ImagePartners(in_order, dict(search.joined_by), tuple(notes), problems)


def _refuse_unless(allowed: bool, problems: Problems, total: int) -> None:
    if allowed:
        return
    shown = "; ".join(f"{problem.where} ({problem.what.rstrip('.')})" for problem in list(problems)[:5])
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    none_left = len(problems) == total
    fix = "No image is left to score." if none_left else "Predict them too, or score the rest: --missing ok."
    raise DatasetError(f"{len(problems)} of {total} truth images have no found image: {shown}{more}. {fix}")


class _Search:
    """The three ways to find a partner, one after the other."""

    def __init__(self, truth: Sequence[_Row], found: Sequence[_Row]) -> None:
        self.truth, self.found = truth, found
        self.chosen: dict[str, str] = {}  # truth image id → found image id
        self.joined_by: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}  # truth image id → why a likely partner was refused
        self.other_bytes: list[str] = []  # joined by a name, although both files are known to differ
        self._by_content()
        self.copies = len(self.chosen) - len(set(self.chosen.values()))
        self._by_id()
        self._by_name()

    def _left(self) -> list[_Row]:
        return [row for row in self.truth if row["image_id"] not in self.chosen]

    def _take(self, row: _Row, partner: _Row, how: str) -> None:
        self.chosen[row["image_id"]] = partner["image_id"]
        self.joined_by[how] += 1

    def _by_content(self) -> None:
        same: dict[str, list[_Row]] = defaultdict(list)
        for row in self.found:
            if row["sha256"] is not None:
                same[row["sha256"]].append(row)
        for row in self.truth:
            candidates = same.get(row["sha256"] or "")
            if candidates:
                # Copies of one file: the one of the same name is meant, otherwise any will do.
                self._take(row, min(candidates, key=lambda other: _unlikeness(row, other)), "sha256")

    def _by_id(self) -> None:
        taken = set(self.chosen.values())
        free = {row["image_id"]: row for row in self.found if row["image_id"] not in taken}
        for row in self._left():
            if (partner := free.get(row["image_id"])) is not None:
                self._by_word(row, partner, "image_id")

    def _by_name(self) -> None:
        taken = set(self.chosen.values())
        ours = Counter(_name(row) for row in self.truth)
        theirs: dict[str, list[_Row]] = defaultdict(list)
        for row in self.found:
            theirs[_name(row)].append(row)
        for row in self._left():
            name = _name(row)
            same = theirs.get(name, [])
            if row["image_id"] in self.reasons or not same:
                continue
            if len(same) > 1 or ours[name] > 1:
                counts = f"{ours[name]} in the truth, {len(same)} found"
                self.reasons[row["image_id"]] = f'the file name "{name}" is not unique: {counts}'
            elif same[0]["image_id"] not in taken:
                self._by_word(row, same[0], "file name")

    def _by_word(self, row: _Row, partner: _Row, how: str) -> None:
        """Join by a name, unless the sizes say that it is another picture."""
        (width, height), (other_width, other_height) = (
            (side["width_px"], side["height_px"]) for side in (row, partner)
        )
        known = None not in (width, height, other_width, other_height)
        if known and (width, height) != (other_width, other_height):
            self.reasons[row["image_id"]] = (
                f"the found image of that name is {other_width} × {other_height} px, not {width} × {height}"
            )
            return
        self._take(row, partner, how)
        if row["sha256"] is not None and partner["sha256"] is not None:
            self.other_bytes.append(row["image_id"])

    def notes(self) -> list[str]:
        """What the reader has to know about the joining."""
        notes = []
        if self.other_bytes:
            names = listing(self.other_bytes, 3)
            notes.append(f"{len(self.other_bytes)} images were joined by name although their bytes differ: {names}.")
        if self.copies:
            notes.append(f"{self.copies} truth images are copies of others (same bytes) and share their findings.")
        spare = len(self.found) - len(set(self.chosen.values()))
        if spare:
            notes.append(f"{spare} found images are not in the truth and are left out.")
        return notes


def _name(row: _Row) -> str:
    return PurePosixPath(row["image_id"]).name


def _unlikeness(row: _Row, other: _Row) -> int:
    if row["image_id"] == other["image_id"]:
        return 0
    return 1 if _name(row) == _name(other) else 2
