"""Fetching published files: resumed where it was cut, checked before it is used."""

from __future__ import annotations

import hashlib
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

from cytolens.problems import DownloadError

_BLOCK = 1 << 18
_LATER = (408, 425, 429)  # refused now, but worth asking again
# The commit in such an address fixes what is sent; git hosts name it by its 40 digits.
_PINNED = re.compile(
    r"https://(?:github\.com/[^/]+/[^/]+/archive/[0-9a-f]{40}\.(?:zip|tar\.gz)"
    r"|raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/.+)"
)
Progress = Callable[[int, int | None], None]


def cache_folder() -> Path:
    """Where fetched files are kept: CYTOLENS_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("CYTOLENS_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cytolens"


def is_pinned(url: str) -> bool:
    """Whether an address is https and names a commit of a git host, so that what it sends cannot change."""
    return _PINNED.fullmatch(url) is not None


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str | None,
    size: int | None = None,
    attempts: int = 5,
    pause_s: float = 1.0,
    timeout_s: float = 30.0,
    progress: Progress | None = None,
) -> Path:
    """Download a file, or find it already there.

    What has arrived stands in ``<target>.part``; a dropped connection, or another call later, goes on
    from there. The file takes its name only after its sha256 is right.

    Args:
        url: where it is (http, https or file).
        target: where it goes.
        sha256: what it must hash to. None: not known, so what arrives could not be checked; the caller has to
            say so. Allowed only for an address that `is_pinned`.
        size: bytes expected, for the progress before the server has said.
        attempts: how often to try again when nothing arrives; an attempt that brings bytes does not count.
        pause_s: wait before another attempt, doubled each time.
        timeout_s: longest wait for the server.
        progress: is told the bytes so far and in all.

    Raises:
        DownloadError: the server cannot be reached or refuses, or the file is not the one expected.
    """
    target = Path(target)
    if sha256 is None and not is_pinned(url):
        raise DownloadError(
            f"{url}: its sha256 is not known, and the address is not https with a commit of a git host, so anything "
            f"might come. Fetch it elsewhere, look at it, and put it at {target}."
        )
    if target.exists():
        if sha256 is None or file_sha256(target) == sha256:
            return target
        raise DownloadError(f"{target} is there, but is not the file expected (wrong sha256). Remove it and try again.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    failures = 0
    most = part.stat().st_size if part.exists() else 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _append(url, part, size, timeout_s, progress, only_https=sha256 is None)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # nothing is left to send: the part is the whole, or from another file
                if sha256 is not None:
                    break
                part.unlink()  # which of the two it is cannot be told without a sha256
            elif error.code < 500 and error.code not in _LATER:
                raise DownloadError(f"{url}: the server answers {error.code} {error.reason}.") from error
            reason = f"{error.code} {error.reason}"
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
        # Only what was never reached before is progress: a server that cannot resume starts from the beginning.
        have = part.stat().st_size if part.exists() else 0
        failures = 0 if have > most else failures + 1
        most = max(most, have)
        if failures >= attempts:
            raise DownloadError(
                f"{url}: cannot be fetched ({reason}). Without a network, fetch it elsewhere and put it at {target}."
            )
        time.sleep(pause_s * 2 ** min(failures, 5))
    if sha256 is not None and file_sha256(part) != sha256:
        part.unlink()
        raise DownloadError(f"{url}: what arrived is not the file expected (wrong sha256); it was thrown away.")
    part.replace(target)
    return target


def _append(
    url: str, part: Path, size: int | None, timeout_s: float, progress: Progress | None, *, only_https: bool
) -> None:
    """One connection: ask for what is missing and append it.

    Raises:
        DownloadError: `only_https`, and the server sends elsewhere.
        OSError, HTTPException: the connection broke, or ended before the announced length.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "cytolens", **({"Range": f"bytes={have}-"} if have else {})}
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        if only_https and not answer.geturl().startswith("https://"):
            raise DownloadError(
                f"{url}: sends on to {answer.geturl()}, which is not https; nothing was taken from there."
            )
        continues = getattr(answer, "status", None) == 206
        have = have if continues else 0
        length = _length(answer)
        total = have + length if length is not None else size
        with part.open("ab" if continues else "wb") as stream:
            while block := answer.read(_BLOCK):
                stream.write(block)
                have += len(block)
                if progress is not None:
                    progress(have, total)
    if length is not None and total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _length(answer: Any) -> int | None:
    text = answer.headers.get("Content-Length")
    return int(text) if text is not None and text.isdigit() else None


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes; large files are not read into memory."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
