"""One import on its way: the annotation files it reads, the images they mean, what was wrong so far."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytolens.formats.options import ReadOptions
from cytolens.formats.sources import ImageIndex, Picture, absolute, read_pictures
from cytolens.problems import FormatError, Problems, SettingError, did_you_mean, listing


@dataclass(frozen=True, slots=True)
class Reference:
    """An image that the annotations speak of.

    Attributes:
        name: what they call it, as `posix_name` gives it.
        where: file and line that name it, for problems.
        image_id: the image that is meant; None where no file was found.
        splits: the parts of the data set that list it, the one that counts first.
        group: patient, slide or plate, where the source says so.
        size_wh: width and height in px that the annotations declare.
        scanner, magnification: with what the image was taken, where the source says so.
        annotated: False where no person said what is in it, so that no cells does not mean "no cell here".
    """

    name: str
    where: str
    image_id: str | None
    splits: tuple[str, ...] = ()
    group: str | None = None
    size_wh: tuple[int, int] | None = None
    annotated: bool = True
    scanner: str | None = None
    magnification: str | None = None


class Intake:
    """One import on its way: where from, how, what was read so far and what was wrong with it.

    Attributes:
        format: the format's name.
        root: the import root; image ids and places in problems are relative to it.
        options: how to read.
        problems: what was wrong so far.
    """

    def __init__(self, format: str, root: Path, options: ReadOptions, name: str = "") -> None:
        self.format = format
        self.root = absolute(root)
        self.options = options
        self.problems = Problems()
        self.name = options.name or name or self.root.name or "dataset"
        self._digests: dict[str, str] = {}

    # -- annotation files -----------------------------------------------------------------------

    def place(self, path: Path) -> str:
        """A file as problems name it: relative to the import root."""
        try:
            return absolute(path).relative_to(self.root).as_posix()
        except ValueError:
            return str(path)

    def read_bytes(self, path: Path) -> bytes:
        """Read an annotation file; its hash becomes part of the cells' source.

        Raises:
            FormatError: it cannot be opened.
        """
        try:
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            raise FormatError(f"{path}: cannot be opened ({error}). Check the path and its permissions.") from error
        self._digests[self.place(path)] = hashlib.sha256(data).hexdigest()
        return data

    def read_text(self, path: Path) -> str:
        """Read an annotation file as text.

        Raises:
            FormatError: it cannot be opened, or is not UTF-8 (or UTF-16 with its mark).
        """
        return decode_text(self.read_bytes(path), str(path))

    def remember(self, words: Iterable[str]) -> None:
        """Make words part of the cells' source, for formats that say something without a file."""
        self._digests["words"] = hashlib.sha256("\n".join(words).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def annotations_hash(self) -> str:
        """Hexadecimal digest of all annotation files read so far and their places."""
        lines = sorted(f"{place} {digest}" for place, digest in self._digests.items())
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()

    # -- images ---------------------------------------------------------------------------------

    def index(self, *folders: str) -> ImageIndex:
        """The images of `options.images`, else of the first of `folders` below the root that exists, else of the root.

        Raises:
            SettingError: `options.images` is not a folder.
        """
        if self.options.images is not None:
            if not self.options.images.is_dir():
                raise SettingError(f'images: "{self.options.images}" is not a folder. Name the folder with the images.')
            return ImageIndex(self.root, absolute(self.options.images))
        there = [self.root / folder for folder in folders if (self.root / folder).is_dir()]
        return ImageIndex(self.root, there[0] if there else self.root)

    def locate(self, references: Sequence[Reference], index: ImageIndex) -> list[Picture | None]:
        """The picture of each reference; None for those that are left out.

        Left out are images of another split than `options.split`, those whose file is missing
        (unless `options.allow_missing_images`) and those that cannot be read; the latter two are problems.

        Raises:
            FormatError: no image was found at all, or there is no split of that name.
        """
        wanted = self._of_split(references)
        chosen = [reference for reference, keep in zip(references, wanted, strict=True) if keep]
        found = list(dict.fromkeys(r.image_id for r in chosen if r.image_id is not None))
        if chosen and not found and not self.options.allow_missing_images:
            raise FormatError(
                f'none of the {len(chosen)} images that the annotations name (first: "{chosen[0].name}") is among the '
                f"{len(index)} images under {index.folder}. Name their folder with --images DIR, or keep the "
                "annotations alone with --allow-missing-images."
            )
        pictures = read_pictures(index, found, self.problems)
        self._missing([r for r in chosen if r.image_id is None], index)
        return [
            None if not keep else self._picture(reference, pictures)
            for reference, keep in zip(references, wanted, strict=True)
        ]

    def _of_split(self, references: Sequence[Reference]) -> list[bool]:
        declared = sorted({name for reference in references for name in reference.splits})
        split = self.options.split
        if split is None or not declared:
            return [True] * len(references)
        if split not in declared:
            hint = did_you_mean(split, declared)
            raise FormatError(f'there is no split "{split}". {hint + " " if hint else ""}Splits: {listing(declared)}')
        return [split in reference.splits for reference in references]

    def _picture(self, reference: Reference, pictures: Mapping[str, Picture]) -> Picture | None:
        if reference.image_id is not None:
            return pictures.get(reference.image_id)
        if not self.options.allow_missing_images:
            return None
        return Picture(reference.name, None, reference.size_wh, None)

    def _missing(self, references: Sequence[Reference], index: ImageIndex) -> None:
        if self.options.allow_missing_images:
            if references:
                self.problems.add(
                    "image-missing",
                    self.name,
                    f'{len(references)} images are not there (first: "{references[0].name}"); '
                    "they are kept without file and hash, as asked for.",
                    severity="note",
                )
            return
        for reference in references:
            others = index.candidates(reference.name)
            several = f" {len(others)} files have that name: {listing(others, 3)}." if len(others) > 1 else ""
            self.problems.add(
                "image-missing",
                reference.where,
                f'the image "{reference.name}" is not among those under {index.folder}; it is left out.{several}',
                "Name the folder with --images DIR, or keep it with --allow-missing-images.",
                "error",
            )

    def note_unplaced(self, count: int, why: str) -> None:
        """Say that cells are left out because nobody knows how large their image is."""
        if count:
            what = f"{count} cells are left out, because the size of their image is not known. {why}."
            fix = "Name the folder with the images with --images DIR."
            self.problems.add("image-size-unknown", self.name, what, fix, "error")


def decode_text(data: bytes, where: str) -> str:
    """Bytes as text: UTF-8 with or without its mark, or UTF-16 with its mark.

    Raises:
        FormatError: they are neither.
    """
    encoding = encoding_of(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise FormatError(
            f"{where}, line {line}: byte {data[error.start]:#04x} is not {encoding.removesuffix('-sig').upper()} text. "
            "Save the file as UTF-8."
        ) from error


def encoding_of(data: bytes) -> str:
    """UTF-16 where its mark comes first, else UTF-8 (with or without mark)."""
    return "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def as_number(value: Any) -> float:
    """A number from text or JSON; NaN where it is none (the row is then reported, not the file)."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
