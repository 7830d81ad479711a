"""`cytolens datasets list | get`: what is said, and how it ends."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from cytolens.dataset import Dataset
from tests.apps.speaking import listing, run, say
from tests.formats.test_download import Scripted

_ENTRY = """
[[data_set]]
name = "squares"
title = "Two squares"
what = "two squares"
images = 2
licence = "CC0 1.0"
model = "yes"
model_note = "No conditions."
citation = "Me (2026)"
home = "https://example.org/squares"

[[data_set.files]]
url = "{url}"
name = "squares.zip"
sha256 = "{sha256}"
unpack = true
strip = 1

[[data_set.layouts]]
needs = ["Annotations", "JPEGImages"]
format = "voc"
complete_for = ["WBC"]
"""
_PAGE = (
    "<annotation><filename>{0}.jpg</filename><size><width>40</width><height>30</height></size>"
    "<object><name>WBC</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>12</ymax></bndbox></object>"
    "</annotation>"
)


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A VOC folder of two images with one cell each."""
    folder = tmp_path / "at-hand"
    (folder / "Annotations").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (40, 30), colour).save(folder / "JPEGImages" / f"{name}.jpg")
        (folder / "Annotations" / f"{name}.xml").write_text(_PAGE.format(name))
    return folder


@pytest.fixture
def archive(squares: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for file in sorted(squares.rglob("*")):
            packed.write(file, f"squares-main/{file.relative_to(squares).as_posix()}")
    return stream.getvalue()


@pytest.fixture
def server() -> Iterator[Scripted]:
    one = Scripted("whole")
    threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield one
    one.shutdown()
    one.server_close()


def written(tmp_path: Path, url: str, content: bytes) -> Path:
    """A catalogue with the squares."""
    file = tmp_path / "more.toml"
    file.write_text(_ENTRY.format(url=url, sha256=hashlib.sha256(content).hexdigest()))
    return file


def test_the_table_names_every_data_set() -> None:
    answer = say("datasets", "list")
    assert answer.code == 0
    lines = {line.split()[0]: line for line in answer.out.splitlines() if line}
    assert {"bccd", "txl_pbc", "pbc", "wbcatt", "dsb2018", "livecell", "cytologia", "leukemia_attri"} <= lines.keys()
    assert {"raabin", "bbbc041"} <= lines.keys()
    assert "17,092" in lines["pbc"]
    assert "CC BY 4.0" in lines["pbc"]
    assert "fetched" in lines["pbc"]
    assert "non-commercial  by hand" in lines["livecell"]
    assert "register" in lines["cytologia"]
    assert "no import" in lines["wbcatt"]
    data = say("datasets", "list", "--json").json["data_sets"]
    assert {one["name"]: one["access"] for one in data}["cytologia"] == "registration"


def test_one_data_set_in_full() -> None:
    text = say("datasets", "list", "livecell").out
    for wanted in ("CC BY-NC 4.0", "10.1038/s41592-021-01249-6", "1,686,352 cells", "images.zip", "sha256 not known"):
        assert wanted in text
    assert "--from DIR" in text
    one = say("datasets", "list", "bccd", "--json").json
    assert (one["licence"], one["model"], one["images"], one["access"]) == ("MIT", "yes", 364, "direct")
    assert one["files"][0]["sha256"] is None
    assert "defect: Red cells are not all boxed." in say("datasets", "list", "bccd").out
    assert 'Did you mean "bccd"' in say("datasets", "list", "bcdc").complaint


def test_fetched_through_dropped_connections_it_is_the_folder_at_hand(
    squares: Path, archive: bytes, server: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CYTOLENS_CACHE", str(tmp_path / "cache"))
    server.content, server.script = archive, ["drop 300", "drop-resume 300", "resume"]
    more = written(tmp_path, server.url, archive)
    got = say("datasets", "get", "squares", "--out", tmp_path / "got", "--catalogue", more, "--json")
    assert got.code == 0
    assert server.ranges == [None, "bytes=300-", "bytes=600-"]
    words = ("datasets", "get", "squares", "--from", squares, "--out", tmp_path / "own", "--catalogue", more)
    own = say(*words, "--json")
    assert own.code == 0
    assert got.json["fingerprint"] == own.json["fingerprint"]
    assert (got.json["images"], got.json["labels"], got.json["licence"]) == (2, {"WBC": 2}, "CC0 1.0")
    assert got.json["files"][0]["checked"] is True
    assert own.json["files"] == []
    assert len(server.ranges) == 3  # --from asks nobody
    fetched, at_hand = Dataset.read(tmp_path / "got"), Dataset.read(tmp_path / "own")
    assert fetched.fingerprint == at_hand.fingerprint == got.json["fingerprint"]
    assert fetched.cells.frame.equals(at_hand.cells.frame)
    assert fetched.images.frame["path"].str.contains(str(tmp_path / "cache" / "datasets" / "squares")).all()
    imported = say("import", squares, "--format", "voc", "--name", "squares", "--complete-for", "WBC", "--out",
                   tmp_path / "imported", "--json")  # fmt: skip
    assert imported.json["fingerprint"] == own.json["fingerprint"]
    said = say(*words).out
    assert "licence: CC0 1.0" in said
    assert "No conditions." in said


def test_files_are_kept_where_one_says(archive: bytes, server: Scripted, tmp_path: Path) -> None:
    server.content = archive
    more = written(tmp_path, server.url, archive)
    words = ("datasets", "get", "squares", "--keep-files", tmp_path / "kept", "--catalogue", more)
    said = say(*words, "--out", tmp_path / "one")
    assert said.code == 0
    assert "as expected" in said.out
    assert (tmp_path / "kept" / "fetched" / "squares.zip").read_bytes() == archive
    assert say(*words, "--out", tmp_path / "two").code == 0
    assert len(server.ranges) == 1
    both = say(*words, "--from", tmp_path, "--out", tmp_path / "three")
    assert "with --from nothing is fetched" in both.complaint


def test_another_file_than_expected_ends_with_2_and_leaves_nothing(
    archive: bytes, server: Scripted, tmp_path: Path
) -> None:
    server.content = archive + b"!"
    more = written(tmp_path, server.url, archive)
    out = tmp_path / "got"
    answer = say("datasets", "get", "squares", "--out", out, "--keep-files", tmp_path / "kept", "--catalogue", more)
    assert "wrong sha256" in answer.complaint
    assert listing(tmp_path / "kept") == []
    assert not out.exists()


def test_without_a_network_the_address_and_the_way_on_are_said(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/squares.zip"
        more = written(tmp_path, url, archive)
        words = ("datasets", "get", "squares", "--out", tmp_path / "got", "--keep-files", tmp_path / "kept")
        complaint = say(*words, "--catalogue", more).complaint
    assert url in complaint
    assert "cytolens datasets get squares --from DIR" in complaint
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cytologia", ("needs registration", "https://app.trustii.io/datasets/1533", "--from DIR")),
        ("leukemia_attri", ("needs registration", "https://im.itu.edu.pk/sparse-leukemiaattri/")),
        ("wbcatt", ("no format here reads tables of attributes yet",)),
        ("livecell", ("no sha256 was published", "images.zip", "--from DIR")),
    ],
)
def test_what_is_not_fetched_ends_with_2(name: str, words: tuple[str, ...], tmp_path: Path) -> None:
    complaint = say("datasets", "get", name, "--out", tmp_path / "out").complaint
    assert all(word in complaint for word in words)
    assert not (tmp_path / "out").exists()


def test_a_copy_that_does_not_fit(squares: Path, tmp_path: Path) -> None:
    words = ("datasets", "get", "livecell", "--from", squares, "--out", tmp_path / "out")
    assert "Looked for images, livecell_coco_train.json; it is without images" in say(*words).complaint
    wbcatt = say("datasets", "get", "wbcatt", "--from", squares, "--out", tmp_path / "out", "--json")
    assert wbcatt.code == 2
    assert "attributes" in json.loads(wbcatt.out)["error"]
    assert "no such folder" in say("datasets", "get", "bccd", "--from", tmp_path / "x", "--out", "y").complaint
    assert not (tmp_path / "out").exists()


def test_the_command_as_a_user_types_it(squares: Path, tmp_path: Path) -> None:
    answer = run("datasets", "get", "bccd", "--from", squares, "--out", tmp_path / "out")
    assert (answer.code, answer.err) == (0, "")
    assert "2 images, 2 cells" in answer.out
    data = Dataset.read(tmp_path / "out")
    assert data.licence == "MIT"
    assert data.images.frame["complete_for"].to_list() == [["WBC", "Platelets"]] * 2
