"""Fetching files from servers that drop, refuse, start anew or send something else."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cytolens.formats.download import cache_folder, fetch
from cytolens.problems import DownloadError

_CONTENT = bytes((i * i + i // 251) % 256 for i in range(700_001))
_SHA = hashlib.sha256(_CONTENT).hexdigest()


class Scripted(ThreadingHTTPServer):
    """A server that behaves, request after request, as its script says; the last word counts for all later ones.

    Words: "whole" and "resume" send all, or what is asked for; "drop N" and "drop-resume N" break off after N
    bytes; "ignore-range" sends all from the beginning; "other" sends other bytes; a number is an error status.
    """

    daemon_threads = False  # so that closing waits for every connection
    content = _CONTENT

    def __init__(self, *script: str) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.script = list(script)
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"

    def next_word(self) -> str:
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class Answering(BaseHTTPRequestHandler):
    """Answers as the server's script says."""

    server: Scripted  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        word, _, number = self.server.next_word().partition(" ")
        if word.isdigit():
            self.send_error(int(word))
            return
        body = self.server.content if word != "other" else b"something else"
        start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1)) if asked else 0  # type: ignore[union-attr]
        if word.endswith("resume") and start:
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            body = body[start:]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: int(number)] if number else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


Serve = Callable[..., Scripted]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers, and stops them at the end."""
    servers: list[Scripted] = []

    def start(*script: str) -> Scripted:
        server = Scripted(*script)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def got(url: str, target: Path, **options: object) -> Path:
    given = {"sha256": _SHA, "pause_s": 0.001, "timeout_s": 5.0, **options}
    return fetch(url, target, **given)  # type: ignore[arg-type]


def left(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_arrives_whole_and_is_not_fetched_twice(serve: Serve, tmp_path: Path) -> None:
    server = serve("whole")
    target = tmp_path / "new" / "file.bin"
    assert got(server.url, target) == target
    assert target.read_bytes() == _CONTENT
    assert got(server.url, target) == target
    assert server.ranges == [None]
    assert left(target.parent) == ["file.bin"]


def test_a_dropped_connection_goes_on_where_it_was(serve: Serve, tmp_path: Path) -> None:
    server = serve("drop 300000", "drop-resume 100000", "resume")
    got(server.url, tmp_path / "file.bin", attempts=1)  # bytes that arrive make up for the failure
    assert (tmp_path / "file.bin").read_bytes() == _CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=400000-"]
    assert left(tmp_path) == ["file.bin"]


def test_another_call_goes_on_where_an_earlier_one_gave_up(serve: Serve, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    failing = serve("drop 123456", "503")
    with pytest.raises(DownloadError, match="503"):
        got(failing.url, target, attempts=2)
    assert left(tmp_path) == ["file.bin.part"]  # nothing under the final name
    assert (tmp_path / "file.bin.part").read_bytes() == _CONTENT[:123456]
    working = serve("resume")
    got(working.url, target)
    assert working.ranges == ["bytes=123456-"]
    assert target.read_bytes() == _CONTENT


def test_a_server_that_cannot_resume_starts_from_the_beginning(serve: Serve, tmp_path: Path) -> None:
    server = serve("drop 500000", "ignore-range")
    got(server.url, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == _CONTENT
    assert server.ranges == [None, "bytes=500000-"]


def test_a_server_that_always_drops_at_the_same_byte_is_given_up(serve: Serve, tmp_path: Path) -> None:
    server = serve("drop 4000")
    with pytest.raises(DownloadError, match=r"ended after 4000 of 700001 bytes.*put it at"):
        got(server.url, tmp_path / "file.bin", attempts=3)
    assert len(server.ranges) == 4  # one that brought bytes, three that brought nothing new
    assert left(tmp_path) == ["file.bin.part"]


def test_a_server_that_is_busy_is_asked_again(serve: Serve, tmp_path: Path) -> None:
    server = serve("500", "503", "429", "whole")
    got(server.url, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == _CONTENT


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final_and_clear(serve: Serve, tmp_path: Path, status: int) -> None:
    server = serve(str(status), "whole")
    with pytest.raises(DownloadError, match=f"file.bin: the server answers {status}"):
        got(server.url, tmp_path / "file.bin")
    assert len(server.ranges) == 1
    assert left(tmp_path) == []


def test_a_whole_part_takes_its_name_when_nothing_is_left_to_send(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(_CONTENT)
    server = serve("resume")
    got(server.url, tmp_path / "file.bin")
    assert server.ranges == [f"bytes={len(_CONTENT)}-"]
    assert left(tmp_path) == ["file.bin"]


def test_a_part_that_is_longer_than_the_file_is_thrown_away(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(_CONTENT + b"more")
    server = serve("resume")
    with pytest.raises(DownloadError, match="not the file expected"):
        got(server.url, tmp_path / "file.bin")
    assert left(tmp_path) == []
    assert got(server.url, tmp_path / "file.bin").read_bytes() == _CONTENT


def test_something_else_is_not_accepted(serve: Serve, tmp_path: Path) -> None:
    server = serve("other")
    with pytest.raises(DownloadError, match=r"not the file expected \(wrong sha256\); it was thrown away"):
        got(server.url, tmp_path / "file.bin")
    assert left(tmp_path) == []


def test_a_part_of_another_file_is_noticed(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    server = serve("resume")
    with pytest.raises(DownloadError, match="not the file expected"):
        got(server.url, tmp_path / "file.bin")
    assert left(tmp_path) == []


def test_a_file_that_is_there_but_is_another_one_stays_untouched(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    target.write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"Remove it and try again"):
        got("http://127.0.0.1:9/file.bin", target)
    assert target.read_bytes() == b"mine"


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, but nobody listens: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file.bin"
        with pytest.raises(DownloadError, match=r"refused.*Without a network, fetch it elsewhere and put it at"):
            got(url, tmp_path / "file.bin", attempts=2)
    assert left(tmp_path) == []


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file.bin"
        with pytest.raises(DownloadError, match="timed out"):
            got(url, tmp_path / "file.bin", attempts=2, timeout_s=0.05)
    assert left(tmp_path) == []


def test_progress_rises_to_the_whole(serve: Serve, tmp_path: Path) -> None:
    server = serve("drop 300000", "resume")
    told: list[tuple[int, int | None]] = []
    got(server.url, tmp_path / "file.bin", progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (len(_CONTENT), len(_CONTENT))
    assert {total for _, total in told} == {len(_CONTENT)}


def test_a_file_of_this_machine_is_copied_and_checked(tmp_path: Path) -> None:
    (tmp_path / "there.bin").write_bytes(_CONTENT)
    url = (tmp_path / "there.bin").as_uri()
    assert got(url, tmp_path / "here.bin").read_bytes() == _CONTENT
    with pytest.raises(DownloadError, match="not the file expected"):
        got(url, tmp_path / "other.bin", sha256="0" * 64)
    assert left(tmp_path) == ["here.bin", "there.bin"]


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CYTOLENS_CACHE", raising=False)
    assert cache_folder() == tmp_path / "cytolens"
    monkeypatch.setenv("CYTOLENS_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
