"""Which image files there are, which one an annotation means, and what their headers say.

The one place where a format's image names meet files. Files are listed once, and names are looked
up in that list, so an annotation can never make the program open a file outside the import root,
and many missing images cost nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from cytolens.formats.file_metadata import metadata_of
from cytolens.formats.regions import open_regions
from cytolens.images import SUFFIXES, image_size_wh
from cytolens.problems import ImageError, Problem, Problems

# Names of parts that data sets are commonly divided into; folders of other names are not taken for parts.
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
IMAGE_FOLDER = "images"  # what data sets of several layouts call the folder with their images


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as an import knows it.

    Attributes:
        image_id: POSIX path relative to the import root.
        path: the file, absolute; None where it is missing.
        size_wh: width and height in px with the EXIF orientation applied; None where unknown.
        sha256: of the file's bytes; None where it is missing.
        um_per_px: side of a pixel in µm, where the file says it.
    """

    image_id: str
    path: str | None
    size_wh: tuple[int, int] | None
    sha256: str | None
    um_per_px: float | None = None


def is_text(text: str) -> bool:
    """Whether a string is proper Unicode; a lone surrogate (a broken file name, a JSON escape) is not."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def absolute(path: str | os.PathLike[str]) -> Path:
    """An absolute path without ".." steps; links are not followed, so ids keep the names that people gave."""
    return Path(os.path.normpath(Path(path).absolute()))


def posix_name(text: str) -> str:
    """An image name as annotations write it, with forward slashes and without empty or "." steps."""
    text = text.strip().replace("\\", "/")
    kept = "/".join(step for step in text.split("/") if step not in ("", "."))
    return "/" + kept if text.startswith("/") and kept else kept


def without_image_suffix(name: str) -> str:
    """A name without its last suffix, if that is one of an image."""
    suffix = PurePosixPath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in SUFFIXES else name


def walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file below a folder with its POSIX path relative to it, sorted; hidden ones are left out.

    Linked folders are entered, but none twice on one way down, so that a ring of links ends.
    """
    yield from _walk(os.fspath(folder), "", frozenset())


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        info = Path(folder).stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # not ours to read, or gone: nothing of it can be imported
        return
    here = (info.st_dev, info.st_ino)
    if here in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {here})
        elif entry.is_file():  # a pipe or a device would never end
            yield prefix + entry.name, entry


def split_in_path(name: str) -> str | None:
    """The first folder of a path that is called like a part of a data set, such as "train"."""
    return next((step for step in name.split("/")[:-1] if step.casefold() in SPLIT_NAMES), None)


def split_in_file_name(name: str) -> str | None:
    """The part that a file is called after, such as "train" of instances_train2017.json; else its folder's."""
    words = re.split(r"[^a-z]+", PurePosixPath(name).stem.casefold())
    return next((word for word in words if word in SPLIT_NAMES), None) or split_in_path(name)


class ImageIndex:
    """The image files below a folder, found by name.

    Attributes:
        folder: the folder that was listed.
        base: what the ids have before the path relative to that folder.
        ids: the image ids, sorted.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder
        self._paths: dict[str, str] = {}
        self._exact: dict[str, str] = {}
        self._by_path: dict[str, list[str]] = defaultdict(list)  # path without suffix → ids
        self._by_name: dict[str, list[str]] = defaultdict(list)  # file name, case folded → ids
        self._by_stem: dict[str, list[str]] = defaultdict(list)  # file name without suffix, case folded → ids
        self.base = _inside(folder, root)
        self._only_images = absolute(folder) != absolute(root)
        for relative, entry in walk(folder):
            if is_text(relative) and without_image_suffix(entry.name) != entry.name:
                self._add(self.base + relative, relative, entry)
        self.ids = sorted(self._paths)

    def _add(self, image_id: str, relative: str, entry: os.DirEntry[str]) -> None:
        self._paths[image_id] = entry.path
        for key in {image_id, relative}:
            self._exact[key] = image_id
            self._by_path[without_image_suffix(key)].append(image_id)
        self._by_name[entry.name.casefold()].append(image_id)
        self._by_stem[without_image_suffix(entry.name).casefold()].append(image_id)

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, image_id: str) -> str:
        """The file of an image id."""
        return self._paths[image_id]

    def resolve(self, names: Iterable[str], *, any_suffix: bool = False) -> dict[str, str | None]:
        """Which image each name means; None where there is none, or where several fit equally well.

        A name is a path below the import root or below the listed folder. Otherwise it is the one
        file of that name that shares most of the folders at the end of the path, unless another
        name means that file too. A name without an image suffix fits any suffix.

        Args:
            names: as `posix_name` gives them.
            any_suffix: whether a wrong suffix is forgiven.
        """
        table = {name: self.exactly(name, any_suffix=any_suffix) for name in names}
        taken = {image_id for image_id in table.values() if image_id is not None}
        near = {name: self._nearest(name, any_suffix, taken) for name, image_id in table.items() if image_id is None}
        claims = Counter(image_id for image_id in near.values() if image_id is not None)
        alone = {image_id for image_id, count in claims.items() if count == 1}
        return table | {name: image_id if image_id in alone else None for name, image_id in near.items()}

    def others(self, meant: Collection[str | None]) -> list[str]:
        """Images that are not in `meant` but lie where images of the data set lie.

        That is a folder listed or called as one of images, or one with an image of `meant`; masks and
        pictures for a page are often found elsewhere below the root.
        """
        folders = {image_id.rpartition("/")[0] for image_id in meant if image_id is not None}
        return [
            image_id
            for image_id in self.ids
            if image_id not in meant
            and (self._only_images or image_id.rpartition("/")[0] in folders or IMAGE_FOLDER in image_id.split("/"))
        ]

    def candidates(self, name: str, *, any_suffix: bool = False) -> list[str]:
        """The images whose file name fits, wherever they are; for saying why a name means none."""
        last = name.rsplit("/", 1)[-1]
        same = self._by_name.get(last.casefold(), [])
        exact = [image_id for image_id in same if image_id.endswith(last)]
        stem = without_image_suffix(last) if any_suffix else last
        return exact or same or self._by_stem.get(last.casefold(), []) or self._by_stem.get(stem.casefold(), [])

    def exactly(self, name: str, *, any_suffix: bool = False) -> str | None:
        """The image at that path below the import root or the listed folder, or None."""
        if name in self._exact:
            return self._exact[name]
        fitting = self._by_path.get(name, []) or (
            self._by_path.get(without_image_suffix(name), []) if any_suffix else []
        )
        return fitting[0] if len(fitting) == 1 else None

    def _nearest(self, name: str, any_suffix: bool, taken: set[str]) -> str | None:
        fitting = [image_id for image_id in self.candidates(name, any_suffix=any_suffix) if image_id not in taken]
        if len(fitting) < 2:
            return fitting[0] if fitting else None
        shared = [_shared_folders(name, image_id.removeprefix(self.base)) for image_id in fitting]
        best = max(shared)
        return fitting[shared.index(best)] if shared.count(best) == 1 else None


def _shared_folders(name: str, path: str) -> tuple[int, bool]:
    """How many folders a name shares with a path, counted from the file upwards; and are they all of the path's?"""
    wanted, own = name.split("/")[-2::-1], path.split("/")[-2::-1]
    count = 0
    while count < min(len(wanted), len(own)) and wanted[count] == own[count]:
        count += 1
    return count, count == len(own)


def _inside(folder: Path, root: Path) -> str:
    """The prefix that makes a path below `folder` relative to `root`; empty where it lies elsewhere."""
    try:
        relative = absolute(folder).relative_to(absolute(root)).as_posix()
    except ValueError:
        return ""
    return "" if relative == "." else relative + "/"


def read_pictures(index: ImageIndex, ids: Sequence[str], problems: Problems) -> dict[str, Picture]:
    """Size and hash of each image; one that cannot be read is a problem and left out."""
    pictures: dict[str, Picture] = {}
    many: dict[str, int] = {}
    for image_id in ids:
        try:
            pictures[image_id], pages = _picture(image_id, absolute(index.path(image_id)))
        except ImageError as error:
            problems.extend([replace(error.problem, where=image_id)])
            continue
        if pages > 1:
            many[image_id] = pages
    if many:
        (first, pages), *_ = many.items()
        what = f"{len(many)} files hold several pictures ({first}: {pages}); the first of each is taken."
        problems.add("image-pages", first, what, severity="note")
    return pictures


def _picture(image_id: str, path: Path) -> tuple[Picture, int]:
    """An image file, and how many pictures it holds; large ones are not read into memory.

    Raises:
        ImageError: it cannot be read.
        MissingExtraError: it is a slide, and OpenSlide is not installed.
    """
    if (regions := open_regions(path)) is not None:
        with regions:
            picture = Picture(image_id, str(path), regions.size_wh, regions.fingerprint(), regions.um_per_px)
            return picture, regions.pages
    data = _bytes_of(path, image_id)
    size_wh = image_size_wh(data, image_id)
    said = metadata_of(path)
    return Picture(image_id, str(path), size_wh, hashlib.sha256(data).hexdigest(), said.um_per_px), said.pages


def _bytes_of(path: Path, image_id: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"cannot be opened ({error.strerror})."
        raise ImageError(Problem("image-unreadable", image_id, what, "Check the permissions.", "error")) from error
