"""Soft outlines on disk: one file per image, from which the cleaning of masks is tuned without asking a network again.

A file is a compressed ``.npz`` of plain arrays; nothing in it is ever unpickled. It names its image and the labels that
its classes are places in, so that it can be read beside another label set.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from cytolens.labels import LabelSet
from cytolens.problems import DatasetError, FormatError, LabelError, listing, written
from cytolens.tasks.segment import SoftOutlines

FORMAT_VERSION = 1
_LONGEST_NAME = 150
_Kind = TypeVar("_Kind", bound=np.generic)
_DAMAGED = (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class StoredOutlines:
    """What one file holds.

    Attributes:
        image_id: the image.
        names: the labels that classes are places in (K).
        soft: what networks say of the image.
    """

    image_id: str
    names: tuple[str, ...]
    soft: SoftOutlines

    def spoken(self, labels: LabelSet) -> SoftOutlines:
        """The outlines with classes that are places in the names of another label set.

        Raises:
            LabelError: a label has no counterpart there, or two have the same.
        """
        if self.names == labels.names:
            return self.soft
        try:
            places = np.array([labels.index(labels.require(name)) for name in self.names], np.intp)
        except LabelError as error:
            raise LabelError(f'the soft outlines of "{self.image_id}": {error}') from None
        if len(set(places.tolist())) < len(places):
            raise LabelError(
                f'the soft outlines of "{self.image_id}" have labels that are one label here: {listing(self.names)}'
            )
        soft = self.soft
        class_scores = np.zeros((len(soft.scores), len(labels.names)), np.float32)
        class_scores[:, places] = soft.class_scores
        return SoftOutlines(soft.size_hw, soft.boxes, places[soft.classes], soft.scores, class_scores, soft.patches)


def write_soft_outlines(folder: Path, image_id: str, soft: SoftOutlines, names: Sequence[str]) -> Path:
    """Keep what networks say of an image; equal outlines give equal bytes.

    Args:
        folder: for all images.
        image_id: the image; the file is called by it.
        soft: its outlines.
        names: the labels that classes are places in.
    """
    path = Path(folder) / _file_name(image_id)
    with written(path) as part:
        np.savez_compressed(
            part,
            format_version=np.int64(FORMAT_VERSION),
            image_id=np.array(image_id, np.str_),
            names=np.array(list(names), np.str_),
            size_hw=np.array(soft.size_hw, np.int64),
            boxes=soft.boxes.astype(np.float32),
            classes=soft.classes.astype(np.int32),
            scores=soft.scores.astype(np.float32),
            class_scores=soft.class_scores.astype(np.float32),
            patches=soft.patches.astype(np.uint8),
        )
    return path


def read_soft_outlines(path: Path) -> StoredOutlines:
    """Read what `write_soft_outlines` wrote.

    Raises:
        FormatError: the file is missing, damaged, of another version, or something else.
    """
    try:
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            version = int(data["format_version"])
            if version != FORMAT_VERSION:
                raise FormatError(f"{path}: format version {version}; this program reads version {FORMAT_VERSION}")
            height, width = (int(side) for side in data["size_hw"])
            soft = SoftOutlines(
                size_hw=(height, width),
                boxes=_array(data["boxes"], np.float32),
                classes=_array(data["classes"], np.int32).astype(np.intp),
                scores=_array(data["scores"], np.float32),
                class_scores=_array(data["class_scores"], np.float32),
                patches=_array(data["patches"], np.uint8),
            )
            stored = StoredOutlines(str(data["image_id"]), tuple(data["names"].tolist()), soft)
            _check(stored)
    except FileNotFoundError:
        raise FormatError(f"{path}: there is no such file of soft outlines") from None
    except _DAMAGED as error:
        raise FormatError(f"{path}: is no file of soft outlines written by cytolens, or damaged ({error})") from error
    return stored


def soft_outline_files(*folders: Path) -> dict[str, Path]:
    """The files of folders, such as one for each fold, by the image that they are of.

    Raises:
        DatasetError: there are none, or two are of one image.
        FormatError: a file is not one of soft outlines.
    """
    files: dict[str, Path] = {}
    for path in (path for folder in folders for path in sorted(Path(folder).glob("[!.]*.npz"))):
        try:
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as data:
                image_id = str(data["image_id"])
        except _DAMAGED as error:
            raise FormatError(f"{path}: is not a file of soft outlines written by cytolens ({error})") from error
        if image_id in files:
            other = files[image_id].name if files[image_id].parent == path.parent else files[image_id]
            raise DatasetError(f'{path} and {other} are both of image "{image_id}"; keep one of them')
        files[image_id] = path
    if not files:
        where = ", ".join(map(str, folders))
        raise DatasetError(f"{where}: holds no soft outlines (files .npz, one for each image)")
    return files


def _file_name(image_id: str) -> str:
    name = quote(image_id, safe=" ")
    if len(name) > _LONGEST_NAME or name.startswith("."):
        name = f"{name[:_LONGEST_NAME].lstrip('.')}-{hashlib.sha256(image_id.encode()).hexdigest()[:12]}"
    return f"{name}.npz"


def _array(values: NDArray[Any], kind: type[_Kind]) -> NDArray[_Kind]:
    if values.dtype != kind:
        raise ValueError(f"an array holds {values.dtype}, not {np.dtype(kind)}")
    return values


def _check(stored: StoredOutlines) -> None:
    """Refuse arrays that do not fit each other.

    Raises:
        ValueError: they do not.
    """
    soft, labels = stored.soft, len(stored.names)
    count, side = len(soft.scores), soft.patches.shape[-1]
    shapes = {
        "boxes": (soft.boxes.shape, (count, 4)),
        "classes": (soft.classes.shape, (count,)),
        "scores": (soft.scores.shape, (count,)),
        "class_scores": (soft.class_scores.shape, (count, labels)),
        "patches": (soft.patches.shape, (count, side, side)),
    }
    for name, (seen, wanted) in shapes.items():
        if seen != wanted:
            raise ValueError(f"{name} has shape {seen}, not {wanted}")
    if not np.isfinite(soft.boxes).all() or not np.isfinite(soft.scores).all():
        raise ValueError("boxes or scores are no numbers")
    if count and not (soft.classes.min() >= 0 and soft.classes.max() < labels):
        raise ValueError(f"classes are places in {labels} labels, but some are not")
    if min(soft.size_hw) <= 0:
        raise ValueError(f"the image is {soft.size_hw[1]} × {soft.size_hw[0]} px")
