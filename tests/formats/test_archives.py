"""Archives of strangers: what is unpacked, what is refused, and that nothing is left of a refusal."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cytolens.formats.archives import extract, folder_written
from cytolens.problems import FormatError

_FILES = {"top/data/a.txt": b"alpha", "top/data/deep/b.bin": bytes(range(256)) * 20, "top/README": b"read me"}
_PLENTY = 1 << 20
Make = Callable[[Path, dict[str, bytes]], None]


def make_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("top")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def tree(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(archive: Path, tmp_path: Path, match: str, **options: int) -> None:
    """The archive is refused for that reason, and nothing of it is left."""
    before = tree(tmp_path)
    with pytest.raises(FormatError, match=match), folder_written(tmp_path / "out") as part:
        extract(archive, part, **({"most_bytes": _PLENTY} | options))  # type: ignore[arg-type]
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize("make", [make_zip, make_tar], ids=["zip", "tar.gz"])
def test_all_files_arrive(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "archive", _FILES)
    with folder_written(tmp_path / "out") as part:
        assert extract(tmp_path / "archive", part, most_bytes=_PLENTY) == 3
    assert tree(tmp_path / "out") == _FILES


@pytest.mark.parametrize("mode", ["w:", "w:bz2", "w:xz"])
def test_tar_files_of_all_kinds(mode: str, tmp_path: Path) -> None:
    make_tar(tmp_path / "archive", _FILES, mode)
    extract(tmp_path / "archive", tmp_path / "out", most_bytes=_PLENTY)
    assert tree(tmp_path / "out") == _FILES


@pytest.mark.parametrize("make", [make_zip, make_tar], ids=["zip", "tar.gz"])
def test_leading_folders_are_left_out_and_one_folder_is_chosen(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "archive", _FILES | {"top/database/c": b"not in data"})
    assert extract(tmp_path / "archive", tmp_path / "out", strip=1, below="data", most_bytes=_PLENTY) == 2
    assert tree(tmp_path / "out") == {"a.txt": b"alpha", "deep/b.bin": _FILES["top/data/deep/b.bin"]}


def test_what_macos_adds_is_left_out(tmp_path: Path) -> None:
    make_zip(tmp_path / "archive", {"a.jpg": b"picture", "__MACOSX/._a.jpg": b"its attributes"})
    extract(tmp_path / "archive", tmp_path / "out", most_bytes=_PLENTY)
    assert tree(tmp_path / "out") == {"a.jpg": b"picture"}


@pytest.mark.parametrize("make", [make_zip, make_tar], ids=["zip", "tar.gz"])
@pytest.mark.parametrize("name", ["../evil", "top/../../evil", "/tmp/evil", "C:/evil", "top\\..\\evil"])
def test_paths_that_lead_outside_are_refused(make: Make, name: str, tmp_path: Path) -> None:
    make(tmp_path / "archive", {"good": b"fine", name: b"evil"})
    refused(tmp_path / "archive", tmp_path, "would land outside")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "archive", "w") as archive:
        info = tarfile.TarInfo("innocent")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    refused(tmp_path / "archive", tmp_path, '"innocent" is a link or a device')


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        info = zipfile.ZipInfo("innocent")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refused(tmp_path / "archive", tmp_path, '"innocent" is a link or a device')


@pytest.mark.parametrize("make", [make_zip, make_tar], ids=["zip", "tar.gz"])
def test_a_bomb_is_stopped(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "archive", {"a": bytes(3_000_000), "b": bytes(3_000_000)})
    assert (tmp_path / "archive").stat().st_size < 20_000
    refused(tmp_path / "archive", tmp_path, "more than the 5000000 bytes", most_bytes=5_000_000)
    assert extract(tmp_path / "archive", tmp_path / "out", most_bytes=6_000_000) == 2


@pytest.mark.parametrize("make", [make_zip, make_tar], ids=["zip", "tar.gz"])
def test_a_file_that_is_a_folder_as_well_is_refused(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "archive", {"a": b"file", "a/b": b"file in it"})
    refused(tmp_path / "archive", tmp_path, "twice, or as a file and as a folder")


def test_a_repeated_member_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr("a", "one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", "two")
    refused(tmp_path / "archive", tmp_path, "twice")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    make_zip(tmp_path / "archive", {"a": b"secret"})
    data = bytearray((tmp_path / "archive").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    (tmp_path / "archive").write_bytes(data)
    refused(tmp_path / "archive", tmp_path, "encrypted")


@pytest.mark.parametrize("make", [make_zip, make_tar], ids=["zip", "tar.gz"])
def test_a_cut_or_damaged_archive_is_refused(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    make(path, {"a": bytes((i * i) % 251 for i in range(100_000))})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, tmp_path, "neither a zip nor a tar|is damaged")
    path.write_bytes(whole[:200] + bytes(50) + whole[250:])
    refused(path, tmp_path, "is damaged")


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>please log in</html>")
    refused(tmp_path / "page.html", tmp_path, "neither a zip nor a tar")


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(FormatError, match="is there already"), folder_written(tmp_path / "out"):
        pytest.fail("nothing may be written")
    assert tree(tmp_path) == {"out/mine": b"mine"}


_steps = st.lists(st.sampled_from(["..", ".", "a", "b", "", "C:", "a\\b"]), min_size=1, max_size=4)


@given(steps=_steps, strip=st.integers(0, 2), below=st.sampled_from(["", "a"]))
def test_whatever_the_name_it_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], strip: int, below: str
) -> None:
    folder = tmp_path_factory.mktemp("inside")
    name = "/".join(steps)
    assume(name)  # zipfile cannot write a member without a name
    make_zip(folder / "archive", {name: b"x"})
    try:
        extract(folder / "archive", folder / "deep" / "out", strip=strip, below=below, most_bytes=10)
    except FormatError:
        return
    written = set(tree(folder)) - {"archive"}
    wanted = PurePosixPath(name).parts[strip:]
    kept = (
        wanted[len(PurePosixPath(below).parts) :]
        if wanted[: len(PurePosixPath(below).parts)] == PurePosixPath(below).parts
        else ()
    )
    expected = {f"deep/out/{PurePosixPath(*kept)}"} if kept and not name.endswith("/") else set()
    assert written == expected
