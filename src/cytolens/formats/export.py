"""What all writers share: names for files, numbers as text, copies of images, folders that start empty."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cytolens.formats.sources import without_image_suffix
from cytolens.images import Images
from cytolens.problems import FormatError, Problems, written


def number_text(value: float) -> str:
    """A float32 number as the shortest text that reads back as itself; whole numbers without a point."""
    return np.format_float_positional(np.float32(value), unique=True, trim="-")


def output_file(path: Path, suffix: str, default: str) -> Path:
    """The file to write: `path` where it has the suffix, else `default` in the folder `path`."""
    return path if path.suffix.lower() == suffix else path / default


def output_folder(path: Path) -> Path:
    """A folder to fill, made where it is not there.

    Raises:
        FormatError: it holds something already, which would be read back together with what is written.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FormatError(f'"{path}" is there already and not an empty folder. Name a new folder, or empty this one.')
    path.mkdir(parents=True, exist_ok=True)
    return path


def file_names(image_ids: Sequence[str], *, by_stem: bool = False) -> dict[str, str]:
    """Image id → name in the export: the bare file names where they stay apart, else the whole paths.

    Names that differ in case only do not stay apart, since not every disk minds case.

    Args:
        image_ids: POSIX paths.
        by_stem: whether an annotation file is called like the image, so that suffixes do not tell images apart.

    Raises:
        FormatError: not even the paths stay apart, or a path leaves the folder.
    """
    bare = [image_id.rsplit("/", 1)[-1] for image_id in image_ids]
    names = bare if _clash(image_ids, bare, by_stem) is None else list(image_ids)
    for image_id, name in zip(image_ids, names, strict=True):
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise FormatError(f'the image id "{image_id}" is no path below a folder. Import the data again.')
    table = dict(zip(image_ids, names, strict=True))
    distinct(table, by_stem=by_stem)
    return table


def distinct(names: Mapping[str, str], *, by_stem: bool = False) -> None:
    """See that images get different names; `names` is image id → name.

    Raises:
        FormatError: two have the same name, or (by_stem) names that differ in the suffix only.
    """
    if (pair := _clash(list(names), list(names.values()), by_stem)) is not None:
        why = "their annotation files would have the same name" if by_stem else "their names differ in case only"
        raise FormatError(f'the images "{pair[0]}" and "{pair[1]}" cannot both be exported: {why}. Rename one.')


def _clash(image_ids: Sequence[str], names: Sequence[str], by_stem: bool) -> tuple[str, str] | None:
    """Two images whose names do not stay apart, or None."""
    seen: dict[str, str] = {}
    for image_id, name in zip(image_ids, names, strict=True):
        key = (without_image_suffix(name) if by_stem else name).casefold()
        if seen.setdefault(key, image_id) != image_id:
            return seen[key], image_id
    return None


def folder_name(text: str, what: str) -> str:
    """A text that is to be the name of a folder or file.

    Raises:
        FormatError: no folder can be called so.
    """
    if text.strip() in ("", ".", "..") or text.startswith(".") or any(c in text for c in '/\\:*?"<>|'):
        raise FormatError(f'the {what} "{text}" cannot be the name of a folder. Rename it first.')
    return text


def copy_images(images: Images, targets: Mapping[str, Path], problems: Problems) -> None:
    """Copy image files byte by byte; one that is not there is a problem.

    Args:
        images: the images.
        targets: image id → where to; images that are not named are not copied.
        problems: collects missing files.
    """
    for image_id, path in images.frame.select("image_id", "path").iter_rows():
        if image_id not in targets:
            continue
        try:
            if path is None:
                raise FileNotFoundError
            with written(targets[image_id]) as part:
                shutil.copyfile(path, part)
        except OSError as error:
            what = f"the image file cannot be copied ({error.strerror or 'it is not known where it is'})."
            problems.add("image-missing", image_id, what, "Import the data again where the images are.", "error")
