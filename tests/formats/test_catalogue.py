"""The catalogue: its entries are whole; data sets are fetched, unpacked and read; refusals are clear."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from cytolens import formats
from cytolens.formats.catalogue import Entry, SourceFile, by_hand, catalogue, fetched, find, read_entry
from cytolens.formats.download import fetch, is_pinned
from cytolens.labels import LabelSet
from cytolens.problems import DownloadError, FormatError, SettingError
from tests.formats.test_download import Scripted

Serve = Callable[..., Scripted]
_ENTRIES = catalogue()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers with a content of their own, and stops them at the end."""
    servers: list[Scripted] = []

    def start(content: bytes, *script: str) -> Scripted:
        server = Scripted(*script)
        server.content = content
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """A folder with two images and their boxes as the CytologIA challenge has them."""
    folder = tmp_path / "mine"
    (folder / "pictures").mkdir(parents=True)
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (40, 30), colour).save(folder / "pictures" / f"{number}.png")
    (folder / "train.csv").write_text("NAME,x1,y1,x2,y2,class\n0.png,1,2,11,12,PNN\n1.png,3,4,13,24,LY\n")
    return folder


def packed(folder: Path, top: str = "repository-abc/data") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("repository-abc/README.md", "about")
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{top}/{file.relative_to(folder).as_posix()}")
    return stream.getvalue()


def entry_of(url: str, sha256: str | None, **more: Any) -> Entry:
    file = {"url": url, "name": "mine.zip", "sha256": sha256, "unpack": True, "strip": 1, "below": "data"}
    layout = {"needs": ["train.csv", "pictures"], "source": "train.csv", "format": "csv_boxes", "images": "pictures"}
    plain = {"name": "mine", "title": "Mine", "what": "two squares", "licence": "CC0 1.0", "citation": "Me (2026)"}
    plain |= {"model": "yes", "model_note": "No conditions.", "home": "https://example.org/mine"}
    return Entry.model_validate(plain | {"files": [file], "layouts": [layout]} | more)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- the shipped entries ----------------------------------------------------------------------------


def test_the_known_data_sets_are_there() -> None:
    assert set(_ENTRIES) == {
        "bccd", "txl_pbc", "pbc", "wbcatt", "dsb2018", "livecell", "cytologia", "leukemia_attri", "raabin", "bbbc041",
    }  # fmt: skip


@pytest.mark.parametrize("entry", _ENTRIES.values(), ids=_ENTRIES)
def test_an_entry_is_whole(entry: Entry) -> None:
    assert entry.images
    assert entry.cells or entry.counts_note
    assert entry.home.startswith("https://")
    assert not entry.doi or entry.doi.startswith("10.")
    assert entry.doi or "arXiv" in entry.citation or entry.name in ("bccd", "cytologia")  # these have neither
    assert entry.model == "yes" or entry.licence_note or "NC" in entry.licence
    assert entry.defects or entry.notes
    assert all(file.url.startswith("https://") for file in entry.files)
    assert len({file.name for file in entry.files}) == len(entry.files)
    for layout in entry.layouts:
        assert layout.labels is None or LabelSet.shipped(layout.labels)
        assert not layout.source or (layout.source in layout.needs or f"{layout.source}/" in " ".join(layout.needs))


def test_licences_say_who_may_ship_a_model() -> None:
    said = {name: (entry.licence, entry.model) for name, entry in _ENTRIES.items()}
    assert said["bccd"] == ("MIT", "yes")
    assert said["pbc"] == ("CC BY 4.0", "yes")
    assert said["dsb2018"] == ("CC0 1.0", "yes")
    assert said["livecell"] == ("CC BY-NC 4.0", "non-commercial")
    assert {name for name, (_, model) in said.items() if model == "unclear"} == {"txl_pbc", "cytologia", "raabin"}


def test_access() -> None:
    how = {name: entry.access for name, entry in _ENTRIES.items()}
    assert [name for name, access in how.items() if access == "direct"] == ["bccd", "txl_pbc", "pbc", "wbcatt"]
    assert [name for name, access in how.items() if access == "registration"] == ["cytologia", "leukemia_attri"]


@pytest.mark.parametrize("name", ["BCCD", "txl-pbc", "TXL_PBC"])
def test_names_are_found_in_any_spelling(name: str) -> None:
    assert find(name, _ENTRIES).name == name.lower().replace("-", "_")


def test_an_unknown_name_has_a_hint() -> None:
    with pytest.raises(SettingError, match=r'no data set "livecel".*Did you mean "livecell"'):
        find("livecel", _ENTRIES)


# -- a catalogue of one's own -----------------------------------------------------------------------


def toml_of(entry: Entry, more: str = "") -> str:
    def value(data: Any) -> str:
        if isinstance(data, dict):
            return "{" + ", ".join(f"{k} = {value(v)}" for k, v in data.items() if v is not None) + "}"
        if isinstance(data, list):
            return "[" + ", ".join(value(item) for item in data) + "]"
        return json.dumps(data, ensure_ascii=False)

    fields = entry.model_dump(mode="json", exclude_none=True)
    return "[[data_set]]\n" + "".join(f"{key} = {value(data)}\n" for key, data in fields.items()) + more


def test_a_file_adds_and_replaces_entries(tmp_path: Path) -> None:
    mine = entry_of("https://example.org/mine.zip", "0" * 64)
    mirror = entry_of("https://example.org/bccd.zip", "1" * 64, name="bccd")
    (tmp_path / "more.toml").write_text(toml_of(mine) + toml_of(mirror))
    entries = catalogue(tmp_path / "more.toml")
    assert list(entries) == [*_ENTRIES, "mine"]
    assert entries["mine"] == mine
    assert entries["bccd"] == mirror
    assert entries["pbc"] == _ENTRIES["pbc"]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ("colour = 1\n", "colour"),
        ('[[data_set.extra]]\nname = "x"\n', "extra"),
        ("images = -1\n", "images"),
        ("this is not TOML", "not valid TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused(more: str, complaint: str, tmp_path: Path) -> None:
    mine = entry_of("https://example.org/mine.zip", "0" * 64)
    (tmp_path / "more.toml").write_text(toml_of(mine, more))
    with pytest.raises(SettingError, match=complaint):
        catalogue(tmp_path / "more.toml")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": "Mine!"}, "name"),
        ({"licence": ""}, "licence"),
        ({"model": "perhaps"}, "model"),
        ({"layouts": []}, "wants either"),
        ({"unreadable": "it is odd"}, "wants either"),
        ({"layouts": [{"needs": ["a"], "format": "vocc"}]}, "no such format"),
        ({"layouts": [{"needs": ["../a"], "format": "voc"}]}, "relative path"),
        ({"layouts": [{"needs": [], "format": "voc"}]}, "needs"),
        ({"files": [{"url": "https://example.org", "name": "../../etc/passwd"}]}, "relative path"),
        ({"files": [{"url": "https://example.org", "name": "a", "into": "/tmp"}]}, "relative path"),
        ({"files": [{"url": "https://example.org", "name": "a", "sha256": "abc"}]}, "sha256"),
    ],
)
def test_an_entry_that_is_wrong_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        entry_of("https://example.org/mine.zip", "0" * 64, **change)


def test_two_entries_of_one_name_and_a_missing_file(tmp_path: Path) -> None:
    mine = entry_of("https://example.org/mine.zip", "0" * 64)
    (tmp_path / "more.toml").write_text(toml_of(mine) * 2)
    with pytest.raises(SettingError, match="two entries have one name"):
        catalogue(tmp_path / "more.toml")
    with pytest.raises(SettingError, match="cannot be read as a catalogue"):
        catalogue(tmp_path / "none.toml")


# -- fetching ---------------------------------------------------------------------------------------


def test_what_is_fetched_with_dropped_connections_is_what_lies_in_the_folder(
    serve: Serve, data_set: Path, tmp_path: Path
) -> None:
    content = packed(data_set)
    server = serve(content, "drop 100", "drop-resume 200", "resume")
    entry = entry_of(server.url, digest(content))
    got = fetched(entry, tmp_path / "kept")
    assert server.ranges == [None, "bytes=100-", "bytes=300-"]
    assert got.files == ({"url": server.url, "sha256": digest(content), "checked": True},)
    fetched_data = read_entry(entry, got.folder, got.files).dataset
    at_hand = read_entry(entry, data_set).dataset
    assert fetched_data.fingerprint == at_hand.fingerprint
    assert fetched_data.cells.frame.equals(at_hand.cells.frame)
    assert fetched_data.images.frame.drop("path").equals(at_hand.images.frame.drop("path"))
    assert at_hand.cells.label_names() == ["PNN", "LY"]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["fetched", got.folder.name]
    again = fetched(entry, tmp_path / "kept")
    assert again == got
    assert len(server.ranges) == 3  # nothing was fetched twice


def test_origin_licence_and_citation_are_kept(serve: Serve, data_set: Path, tmp_path: Path) -> None:
    content = packed(data_set)
    server = serve(content, "whole")
    entry = entry_of(server.url, digest(content), doi="10.1000/mine")
    got = fetched(entry, tmp_path / "kept")
    data = read_entry(entry, got.folder, got.files).dataset
    assert (data.name, data.licence) == ("mine", "CC0 1.0")
    first, second = data.provenance
    assert (first["step"], first["citation"], first["doi"], first["licence"]) == (
        "catalogue", "Me (2026)", "10.1000/mine", "CC0 1.0",
    )  # fmt: skip
    assert first["files"] == [{"url": server.url, "sha256": digest(content), "checked": True}]
    assert (second["step"], second["source"]) == ("import", "Me (2026)")
    assert read_entry(entry, data_set).dataset.provenance[0]["folder"] == "mine"


def test_another_file_than_expected_leaves_nothing(serve: Serve, data_set: Path, tmp_path: Path) -> None:
    server = serve(packed(data_set), "other")
    with pytest.raises(DownloadError, match=r"not the file expected.*--from DIR"):
        fetched(entry_of(server.url, digest(packed(data_set))), tmp_path / "kept")
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]


def test_an_archive_without_the_folder_that_is_wanted(serve: Serve, data_set: Path, tmp_path: Path) -> None:
    content = packed(data_set, "repository-abc/elsewhere")
    server = serve(content, "whole")
    with pytest.raises(FormatError, match='holds nothing below "data"'):
        fetched(entry_of(server.url, digest(content)), tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["fetched"]


def test_an_archive_that_grows_beyond_its_declaration(serve: Serve, data_set: Path, tmp_path: Path) -> None:
    (data_set / "more.csv").write_bytes(bytes(100_000))
    content = packed(data_set)
    server = serve(content, "whole")
    entry = entry_of(server.url, digest(content))
    file = entry.files[0].model_copy(update={"unpacked_bytes": 40_000})
    with pytest.raises(FormatError, match="more than the 80000 bytes"):
        fetched(entry.model_copy(update={"files": (file,)}), tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["fetched"]


def test_several_files_and_tables_that_are_not_packed(serve: Serve, data_set: Path, tmp_path: Path) -> None:
    images, table = packed(data_set / "pictures"), (data_set / "train.csv").read_bytes()
    one, other = serve(images, "whole"), serve(table, "whole")
    files = [
        {"url": one.url, "name": "i.zip", "sha256": digest(images), "unpack": True, "strip": 2, "into": "pictures"},
        {"url": other.url, "name": "train.csv", "sha256": digest(table)},
    ]
    entry = entry_of("", None, files=files)
    got = fetched(entry, tmp_path / "kept")
    assert read_entry(entry, got.folder).dataset.fingerprint == read_entry(entry, data_set).dataset.fingerprint


@pytest.mark.parametrize(
    ("url", "pinned"),
    [
        ("https://github.com/owner/name/archive/" + "a1" * 20 + ".zip", True),
        ("https://github.com/owner/name/archive/" + "a1" * 20 + ".tar.gz", True),
        ("https://raw.githubusercontent.com/owner/name/" + "a1" * 20 + "/a/b.csv", True),
        ("http://github.com/owner/name/archive/" + "a1" * 20 + ".zip", False),
        ("https://github.com/owner/name/archive/a1a1a1a1a1a1.zip", False),
        ("https://github.com/owner/name/archive/refs/heads/master.zip", False),
        ("https://github.com.example.org/owner/name/archive/" + "a1" * 20 + ".zip", False),
        ("https://example.org/" + "a1" * 20 + ".zip", False),
    ],
)
def test_which_addresses_fix_what_they_send(url: str, pinned: bool) -> None:
    assert is_pinned(url) is pinned
    assert SourceFile(url=url, name="a").fetchable is pinned
    assert SourceFile(url=url, name="a", sha256="0" * 64).fetchable


_PINNED = "https://github.com/owner/name/archive/" + "a1" * 20 + ".zip"


def sent_on(monkeypatch: pytest.MonkeyPatch, server: Scripted, seen_as: str | None = None) -> None:
    """Requests go to a server here, whose answers claim to come from the address asked for, or `seen_as`."""
    ask = urllib.request.urlopen

    def redirected(request: urllib.request.Request, timeout: float) -> Any:
        answer = ask(urllib.request.Request(server.url, headers=dict(request.header_items())), timeout=timeout)
        answer.url = seen_as or request.full_url
        return answer

    monkeypatch.setattr(urllib.request, "urlopen", redirected)


def test_without_a_sha256_only_what_is_pinned_is_fetched(serve: Serve, tmp_path: Path) -> None:
    server = serve(b"anything", "whole")
    with pytest.raises(DownloadError, match=r"its sha256 is not known, and the address is not https with a commit"):
        fetch(server.url, tmp_path / "a", sha256=None)
    assert server.ranges == []


def test_what_could_not_be_checked_is_said(
    serve: Serve, data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = packed(data_set)
    server = serve(content, "drop 100", "resume")
    sent_on(monkeypatch, server)
    entry = entry_of(_PINNED, None)
    got = fetched(entry, tmp_path / "kept")
    assert got.files == ({"url": _PINNED, "sha256": digest(content), "checked": False},)
    data = read_entry(entry, got.folder, got.files).dataset
    assert data.provenance[0]["files"] == [dict(got.files[0])]
    assert data.fingerprint == read_entry(entry, data_set).dataset.fingerprint


def test_an_unchecked_file_that_is_no_archive_is_thrown_away(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent_on(monkeypatch, serve(b"<html>come back later</html>", "whole"))
    with pytest.raises(FormatError, match="neither a zip nor a tar"):
        fetched(entry_of(_PINNED, None), tmp_path / "kept")
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]


def test_without_a_sha256_an_answer_that_is_not_https_is_refused(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent_on(monkeypatch, serve(b"anything", "whole"), "http://elsewhere.example.org/a.zip")
    with pytest.raises(DownloadError, match="sends on to http://elsewhere"):
        fetch(_PINNED, tmp_path / "a", sha256=None)
    assert list(tmp_path.iterdir()) == []


def test_without_a_sha256_a_part_that_cannot_be_resumed_starts_anew(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.part").write_bytes(b"of another, longer file")
    server = serve(b"short", "resume")
    sent_on(monkeypatch, server)
    assert fetch(_PINNED, tmp_path / "a", sha256=None, pause_s=0.001).read_bytes() == b"short"
    assert server.ranges == ["bytes=23-", None]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("cytologia", r"needs registration.*https://app\.trustii\.io.*datasets get cytologia --from DIR"),
        ("leukemia_attri", r"needs registration.*https://im\.itu\.edu\.pk"),
        ("livecell", r"no sha256 was published.*livecell_coco_train\.json.*datasets get livecell --from DIR"),
        ("raabin", r"has no address that can be fetched.*https://raabindata\.com/free-data/.*--from DIR"),
        ("bbbc041", r"malaria\.zip.*cannot be imported"),
        ("wbcatt", r"cannot be imported: no format here reads tables of attributes yet"),
    ],
)
def test_what_is_not_fetched_says_how_to_go_on(name: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=complaint):
        fetched(_ENTRIES[name], tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    assert name not in ("cytologia", "livecell") or "images" in by_hand(_ENTRIES[name])


# -- copies at hand ---------------------------------------------------------------------------------


def test_a_folder_in_another_layout(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(FormatError, match=r"Looked for Annotations, JPEGImages or BCCD/.*without Annotations; without"):
        read_entry(_ENTRIES["bccd"], tmp_path)
    with pytest.raises(FormatError, match=r"no such folder.*Annotations, JPEGImages"):
        read_entry(_ENTRIES["bccd"], tmp_path / "none")
    with pytest.raises(FormatError, match="no format here reads its labels with attributes"):
        read_entry(_ENTRIES["leukemia_attri"], tmp_path)


def test_the_published_layout_of_the_data_science_bowl(tmp_path: Path) -> None:
    for name in ("aa", "bb"):
        folder = tmp_path / "stage1_train" / name
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        Image.new("RGB", (5, 4)).save(folder / "images" / f"{name}.png")
        Image.new("L", (5, 4)).save(folder / "masks" / f"{name}-1.png")
    # Column by column, from 1: 5 and 6 are the first two pixels of the second column.
    (tmp_path / "stage1_train_labels.csv").write_text("ImageId,EncodedPixels\naa,5 2 9 2\nbb,1 4\n")
    data = read_entry(_ENTRIES["dsb2018"], tmp_path).dataset
    assert data.images.frame["image_id"].to_list() == [
        "stage1_train/aa/images/aa.png", "stage1_train/bb/images/bb.png",
    ]  # fmt: skip
    assert data.cells.boxes().tolist() == [[1, 0, 3, 2], [0, 0, 1, 4]]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "images", "cells", "labels"),
    [
        ("bccd", 292, 3943, 3),
        ("txl_pbc", 813, 12_832, 3),
        ("pbc", 9330, 9330, 13),
        ("dsb2018", 293, 11_496, 3),
        ("cytologia", 48_417, 52_748, 23),
    ],
)
def test_copies_of_real_data_sets(data_root: Path, name: str, images: int, cells: int, labels: int) -> None:
    imported = read_entry(_ENTRIES[name], data_root / name)
    data = imported.dataset
    assert (len(data.images), len(data.cells), len(data.labels)) == (images, cells, labels)
    assert imported.problems.worst != "error"
    assert data.licence == _ENTRIES[name].licence
    complete = data.images.frame["complete_for"].drop_nulls()
    assert complete.to_list() == ([["WBC", "Platelets"]] * 292 if name == "bccd" else [])


@pytest.mark.data
def test_options_of_an_entry_change_how_it_is_read_and_no_cell(data_root: Path) -> None:
    plain = formats.read(data_root / "bccd", "voc").dataset.cells.frame.drop("source", "cell_id")
    ours = read_entry(_ENTRIES["bccd"], data_root / "bccd").dataset.cells.frame.drop("source", "cell_id")
    order = ["image_id", "x_min", "y_min", "x_max", "y_max", "label"]
    text = pl.col("label").cast(pl.String)
    assert ours.with_columns(text).sort(order).equals(plain.with_columns(text).sort(order))
