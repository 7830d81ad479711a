"""Unpacking archives of strangers: nothing lands outside the folder, and nothing grows without bound."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from cytolens.problems import FormatError

_BLOCK = 1 << 18
_LEFTOVERS = "__MACOSX"  # what macOS adds to archives; never part of the data
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


@contextmanager
def folder_written(target: Path) -> Iterator[Path]:
    """A new folder to write to; it takes its real name only when the block ends well, else nothing is left.

    Raises:
        FormatError: there is something of that name already.
    """
    if target.exists():
        raise FormatError(f"{target}: is there already. Remove it, or name another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    part.mkdir()
    try:
        yield part
        part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def extract(archive: Path, folder: Path, *, strip: int = 0, below: str = "", most_bytes: int) -> int:
    """Unpack a zip or (compressed) tar file into a folder.

    Refused are absolute paths, "..", links, devices, encrypted or repeated members, and contents of more
    than `most_bytes`, counted as they are written and not as the archive declares them. Whoever calls
    writes to a folder that is thrown away on errors (`folder_written`).

    Args:
        archive: the file.
        folder: where to; made if it is not there.
        strip: leading folders to leave out of every path, such as the 1 that git hosts add.
        below: only what lies in this folder (after stripping) is unpacked, and its path left out.
        most_bytes: bytes that may be written in all.

    Returns:
        How many files were written.

    Raises:
        FormatError: it is no such archive, is damaged, or holds something that is refused.
    """
    wanted = PurePosixPath(below).parts
    left = most_bytes
    count = 0
    try:
        for name, stream in _members(archive):
            path = _kept(name, archive, strip, wanted)
            if path is None:
                continue
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            left = _copy(stream, target, left, archive, most_bytes)
            count += 1
    except _DAMAGE as error:
        raise FormatError(_damaged(archive, error)) from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise FormatError(f"{archive}: holds {error.filename} twice, or as a file and as a folder.") from error
    except OSError as error:
        if error.errno is not None:  # the system's word (no space left …), not that of a decompressor
            raise
        raise FormatError(_damaged(archive, error)) from error
    return count


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Every file of an archive with its name and content; a stream is good until the next is asked for."""
    if zipfile.is_zipfile(archive):
        yield from _zip_members(archive)
    elif tarfile.is_tarfile(archive):
        yield from _tar_members(archive)
    else:
        raise FormatError(f"{archive}: is neither a zip nor a tar file.")


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise FormatError(f'{archive}: "{info.filename}" is a link or a device, not a file; refused.')
            if info.is_dir():
                continue
            with packed.open(info) as stream:  # encrypted ones raise RuntimeError
                yield info.filename, stream


def _tar_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(archive, "r:*") as packed:
        for info in packed:
            if info.isdir():
                continue
            stream = packed.extractfile(info) if info.isreg() else None
            if stream is None:
                raise FormatError(f'{archive}: "{info.name}" is a link or a device, not a file; refused.')
            with stream:
                yield info.name, stream
        while packed.fileobj is not None and packed.fileobj.read(_BLOCK):
            pass  # a compressed stream checks itself only at its end


def _kept(name: str, archive: Path, strip: int, wanted: tuple[str, ...]) -> PurePosixPath | None:
    """Where a member goes below the folder; None where it is not wanted."""
    path = PurePosixPath(name)
    odd = "\\" in name or "\0" in name or ":" in path.parts[0] if path.parts else True
    if odd or path.is_absolute() or ".." in path.parts:
        raise FormatError(f'{archive}: the member "{name}" would land outside its folder; refused.')
    steps = path.parts[strip:]
    if _LEFTOVERS in path.parts or len(steps) <= len(wanted) or steps[: len(wanted)] != wanted:
        return None
    return PurePosixPath(*steps[len(wanted) :])


def _copy(stream: IO[bytes], target: Path, left: int, archive: Path, most_bytes: int) -> int:
    """Write one file that is not there yet; returns how many bytes may still be written."""
    with target.open("xb") as out:
        while block := stream.read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise FormatError(
                    f"{archive}: unpacks to more than the {most_bytes} bytes that are plausible; stopped."
                )
            out.write(block)
    return left


def _damaged(archive: Path, error: Exception) -> str:
    return f"{archive}: is damaged, or not as archives are ({error}). Fetch it again."
