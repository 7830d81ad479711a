"""Bundles on disk: what is written can be read, and what was touched since is noticed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens import bundle as bundles
from cytolens.bundle import Bundle, BundleInfo, rewrite, shipped, write
from cytolens.labels import LabelSet
from cytolens.problems import BundleError
from cytolens.tasks.detect import DetectInput, DetectOutput
from tests.strategies import label_sets

FILES: dict[str, Path | bytes] = {
    "model.onnx": b"a network" * 50,
    "exam/field.png": b"a picture",
    "card.md": "Für alle".encode(),
}
LABELS = LabelSet.of(["leukocyte", "erythrocyte", "platelet"])


def info(name: str = "small", **values: Any) -> BundleInfo:
    given = {"task": "detect", "labels": LABELS.to_dict()} | values
    return BundleInfo(name=name, **given)


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    """A bundle of three files."""
    return write(tmp_path / "small", info(), FILES)


def described(bundle: Bundle) -> dict[str, Any]:
    return json.loads((bundle.folder / "bundle.json").read_text(encoding="utf-8"))


def described_as(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> Path:
    """The bundle with another ``bundle.json``."""
    data = described(bundle)
    change(data)
    (bundle.folder / "bundle.json").write_text(json.dumps(data), encoding="utf-8")
    return bundle.folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- writing and reading ----------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    given = info(
        version="3",
        description="für Ausstriche",
        architecture={"model": "yolox-nano", "red_cell_px": 71.5},
        detect_input=DetectInput(side_px=320),
        detect_output=DetectOutput(thresholds={"leukocyte": 0.61}),
        field_ranges={"density": (0.25, 1.5)},
        licence="MIT",
        credits=["someone"],
        training={"seed": 3},
    )
    written = write(tmp_path / "b", given, FILES)
    read = Bundle.load(tmp_path / "b")
    assert read.info == written.info
    assert read.info.model_copy(update={"files": {}}) == given
    assert read.hash == written.hash == hashlib.sha256((tmp_path / "b" / "bundle.json").read_bytes()).hexdigest()[:12]
    assert read.source == f"bundle:small@{read.hash}"
    assert read.labels == LABELS
    assert read.info.files == {
        name: hashlib.sha256(content).hexdigest() for name, content in FILES.items() if isinstance(content, bytes)
    }
    assert everything(tmp_path / "b") == {**FILES, "bundle.json": (tmp_path / "b" / "bundle.json").read_bytes()}


@given(labels=label_sets())
def test_any_label_set_survives(tmp_path_factory: pytest.TempPathFactory, labels: LabelSet) -> None:
    folder = tmp_path_factory.getbasetemp() / "labels"
    assert write(folder, info(labels=labels.to_dict()), {}).labels == labels


def test_files_are_copied_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"from a run")
    bundle = write(tmp_path / "b", info(), {"model.onnx": tmp_path / "net.onnx"})
    file = bundle.file("model.onnx")
    assert file is not None
    assert file.read_bytes() == b"from a run"
    assert (tmp_path / "net.onnx").exists()


def test_only_checked_files_are_handed_out(small: Bundle) -> None:
    (small.folder / "extra.bin").write_bytes(b"put there by somebody")
    again = Bundle.load(small.folder)
    assert again.file("extra.bin") is None
    assert again.file("bundle.json") is None
    assert again.file("card.md") == small.folder / "card.md"


def test_the_same_content_has_the_same_hash_wherever_it_lies(tmp_path: Path, small: Bundle) -> None:
    other = write(tmp_path / "elsewhere", info(), FILES)
    assert other.hash == small.hash
    assert write(tmp_path / "third", info(version="2"), FILES).hash != small.hash
    assert write(tmp_path / "fourth", info(), {**FILES, "card.md": b"other"}).hash != small.hash


# -- finding ----------------------------------------------------------------------------------------


def test_a_bundle_is_found_by_its_folder_its_run_or_its_name(
    tmp_path: Path, small: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small.folder, run / "bundle")
    assert Bundle.load(run).hash == small.hash
    assert Bundle.load(str(small.folder)).folder == small.folder
    monkeypatch.chdir(tmp_path)
    assert Bundle.load("small").hash == small.hash
    assert Bundle.load("smear").folder.parent == Path(bundles.__file__).parent / "bundles"


@pytest.mark.parametrize("name", ["smaer", "nothing of the kind", "", "../bundles/smear", "smear/../smear"])
def test_an_unknown_name_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=r"neither a folder with bundle\.json nor a shipped one.*wbc-classifier"):
        Bundle.load(name)


def test_a_slip_of_the_pen_gets_a_hint() -> None:
    with pytest.raises(BundleError, match=r'Did you mean "smear"\?'):
        Bundle.load("Smaer")


# -- what is noticed when loading -------------------------------------------------------------------


@given(data=st.data())
def test_no_byte_of_any_file_can_change_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "byte"
    before = Bundle.load(folder) if folder.exists() else write(folder, info(), FILES)
    name = data.draw(st.sampled_from([*FILES, "bundle.json"]))
    content = (folder / name).read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    changed = bytes([content[at] ^ data.draw(st.integers(1, 255))])
    try:
        (folder / name).write_bytes(content[:at] + changed + content[at + 1 :])
        if name != "bundle.json":
            with pytest.raises(BundleError, match="has been changed"):
                Bundle.load(folder)
        else:  # whoever knows the hash notices; whoever does not is told what is damaged
            with contextlib.suppress(BundleError):
                assert Bundle.load(folder).hash != before.hash
    finally:
        (folder / name).write_bytes(content)


def test_a_missing_file_is_named(small: Bundle) -> None:
    (small.folder / "exam" / "field.png").unlink()
    with pytest.raises(BundleError, match=r"exam.field\.png: is missing from the bundle"):
        Bundle.load(small.folder)


def test_a_folder_in_place_of_a_file_is_missing_it(small: Bundle) -> None:
    folder = described_as(small, lambda data: data["files"].update({"exam": "0" * 64}))
    with pytest.raises(BundleError, match="exam: is missing from the bundle"):
        Bundle.load(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5])
def test_another_version_is_refused(small: Bundle, version: object) -> None:
    folder = described_as(small, lambda data: data.update(format_version=version))
    with pytest.raises(BundleError, match=r"format version .*; this program reads version 1"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "blue"}, "colour: Extra inputs are not permitted"),
        ({"detect_input": {"side_px": 416, "sied": 3}}, r"detect_input\.sied: Extra inputs"),
        ({"detect_input": {"side_px": 415}}, r"detect_input\.side_px: Input should be a multiple of 32"),
        ({"task": "fortune"}, "task: Input should be 'detect', 'classify', 'segment' or 'pipeline'"),
        ({"format": "other"}, "format: Input should be 'cytolens-bundle'"),
        ({"labels": {"names": ["a", "a"]}}, "labels: damaged"),
        ({"labels": {"names": 3}}, "labels: damaged"),
        ({"labels": {}}, "labels: damaged"),
        ({"labels": []}, "labels: Input should be a valid dictionary"),
        ({"files": {"model.onnx": 3}}, r"files\.model\.onnx: Input should be a valid string"),
    ],
)
def test_a_description_that_says_something_else_is_refused(small: Bundle, change: dict[str, Any], message: str) -> None:
    folder = described_as(small, lambda data: data.update(change))
    with pytest.raises(BundleError, match=message):
        Bundle.load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b'{"format_version": 1}'])
def test_a_damaged_description_is_refused(small: Bundle, content: bytes) -> None:
    (small.folder / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        Bundle.load(small.folder)


@pytest.mark.parametrize("where", ["../outside", "exam/../../outside", "{absolute}", "link", "a\0b"])
def test_a_path_outside_the_folder_is_refused(tmp_path: Path, small: Bundle, where: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"a secret")
    name = where.format(absolute=outside)
    if name == "link":
        (small.folder / "link").symlink_to(outside)
    sha = hashlib.sha256(b"a secret").hexdigest()
    folder = described_as(small, lambda data: data["files"].update({name: sha}))
    with pytest.raises(BundleError, match="lies outside the bundle"):
        Bundle.load(folder)


# -- pipelines --------------------------------------------------------------------------------------


@pytest.fixture
def pipeline(tmp_path: Path) -> Bundle:
    """A pipeline of two members that stand beside it."""
    eyes = write(tmp_path / "eyes", info("eyes"), FILES)
    names = write(tmp_path / "names", info("names", task="classify"), FILES)
    members = {"eyes": eyes.hash, "names": names.hash}
    return write(tmp_path / "both", info("both", task="pipeline", members=members), {})


def test_a_pipeline_has_the_members_it_names(pipeline: Bundle) -> None:
    assert {name: member.name for name, member in pipeline.members.items()} == {"eyes": "eyes", "names": "names"}
    for task, name in (("detect", "eyes"), ("classify", "names"), ("pipeline", "both")):
        member = pipeline.member(task)
        assert member is not None
        assert member.name == name
    assert pipeline.members["eyes"].member("classify") is None


def test_a_pipeline_refuses_another_member_of_the_same_name(pipeline: Bundle) -> None:
    member = pipeline.members["names"]
    rewrite(member, member.info.model_copy(update={"version": "2"}))
    with pytest.raises(BundleError, match=rf'was made with "names" of hash {member.hash}.*pack the pipeline again'):
        Bundle.load(pipeline.folder)


def test_a_pipeline_refuses_a_damaged_member(pipeline: Bundle) -> None:
    (pipeline.members["eyes"].folder / "model.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"eyes.model\.onnx: has been changed"):
        Bundle.load(pipeline.folder)


def test_a_pipeline_without_its_member_says_which(pipeline: Bundle) -> None:
    shutil.rmtree(pipeline.members["names"].folder)
    with pytest.raises(BundleError, match=r'no bundle ".*names"'):
        Bundle.load(pipeline.folder)


def test_a_bundle_cannot_be_its_own_member(small: Bundle) -> None:
    folder = described_as(small, lambda data: data.update(task="pipeline", members={"small": small.hash}))
    with pytest.raises(BundleError, match="pack the pipeline again"):
        Bundle.load(folder)


# -- writing is one step ----------------------------------------------------------------------------


def test_another_bundle_takes_the_place_whole(small: Bundle) -> None:
    again = write(small.folder, info(version="2"), {"model.onnx": b"new"})
    assert sorted(everything(small.folder)) == ["bundle.json", "model.onnx"]
    assert again.info.version == "2"
    assert [p.name for p in small.folder.parent.iterdir()] == ["small"]


@pytest.mark.parametrize("step", ["copying", "describing", "exchanging"])
def test_a_write_that_breaks_off_leaves_the_old_bundle(
    small: Bundle, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = everything(small.folder)

    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    files: dict[str, Path | bytes] = {"model.onnx": b"new", "card.md": Path("/nowhere/card.md")}
    if step != "copying":
        files = {"model.onnx": b"new"}
    if step == "describing":
        monkeypatch.setattr(bundles, "_write_info", no_space)
    if step == "exchanging":
        move = Path.replace

        def refuse_new(self: Path, target: Path) -> Path:
            return no_space() if self.name.endswith(".part") else move(self, target)  # type: ignore[return-value]

        monkeypatch.setattr(Path, "replace", refuse_new)
        monkeypatch.setattr(bundles, "_write_info", lambda folder, given: (folder / "bundle.json").write_text("{}"))
    with pytest.raises(OSError, match="No s"):
        write(small.folder, info(version="2"), files)
    assert everything(small.folder) == before
    assert [p.name for p in small.folder.parent.iterdir()] == ["small"]


def test_a_first_write_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "b", info(), {"model.onnx": tmp_path / "none"})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("years of work")
    with pytest.raises(BundleError, match="holds something else than a bundle"):
        write(folder, info(), FILES)
    assert everything(folder) == {"chapter.tex": b"years of work"}
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(BundleError, match="holds something else than a bundle"):
        write(file, info(), FILES)
    assert file.read_text() == "x"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert write(tmp_path / "b", info(), FILES).name == "small"


def test_rewriting_keeps_the_other_files(small: Bundle) -> None:
    again = rewrite(small, small.info.model_copy(update={"licence": "MIT"}), {"card.md": b"new", "more.txt": b"more"})
    expected = {**FILES, "card.md": b"new", "more.txt": b"more"}
    assert {name: content for name, content in everything(small.folder).items() if name != "bundle.json"} == expected
    assert again.info.licence == "MIT"
    assert again.hash != small.hash


def test_a_copy_is_the_same_bundle(small: Bundle, tmp_path: Path) -> None:
    text = json.dumps(described(small), indent=7)  # as another version may have written it
    (small.folder / "bundle.json").write_text(text)
    (small.folder / "notes.txt").write_text("not part of the bundle")
    source = Bundle.load(small.folder)
    copied = bundles.copy(source, tmp_path / "other")
    assert copied.hash == source.hash != small.hash
    assert set(everything(copied.folder)) == {*FILES, "bundle.json"}
    write(tmp_path / "third", info("third"), {})
    assert bundles.copy(source, tmp_path / "third").hash == source.hash
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(BundleError, match="holds something else than a bundle"):
        bundles.copy(source, tmp_path / "full")


@pytest.mark.parametrize("name", ["", " ", ".", "..", ".hidden", "a/b", "a\\b", "../up", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, small: Bundle, name: str) -> None:
    with pytest.raises(BundleError, match="cannot be the name of a bundle"):
        write(tmp_path / "b", info(name), FILES)
    assert not (tmp_path / "b").exists()
    folder = described_as(small, lambda data: data.update(name=name))
    with pytest.raises(BundleError, match="cannot be the name of a bundle"):
        Bundle.load(folder)


# -- the bundles that are shipped ---------------------------------------------------------------------


def test_what_is_shipped_is_small() -> None:
    folder = Path(bundles.__file__).parent / "bundles"
    sizes = {name: sum(f.stat().st_size for f in (folder / name).rglob("*") if f.is_file()) for name in shipped()}
    assert sizes["smear"] + sizes["smear-detector"] + sizes["wbc-classifier"] <= 25_000_000
    assert max(sizes.values()) <= 15_000_000


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_bundle_is_whole_described_and_free(name: str) -> None:
    bundle = Bundle.load(name)
    on_disk = set(everything(bundle.folder)) - {"bundle.json"}
    assert on_disk == set(bundle.info.files)  # nothing lies there that is not checked
    assert bundle.name == name
    assert bundle.info.licence
    assert "research use only" in (bundle.folder / "card.md").read_text(encoding="utf-8").lower()
    for task, file in (("detect", "model.onnx"), ("classify", "model.onnx")):
        member = bundle.member(task)
        assert member is None or member.file(file) is not None


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_bundle_holds_no_pickle(name: str) -> None:
    allowed = {".json", ".onnx", ".npz", ".safetensors", ".png", ".parquet", ".md"}
    for file in Bundle.load(name).folder.rglob("*"):
        if file.is_dir():
            continue
        assert file.suffix in allowed
        assert file.read_bytes()[:1] != b"\x80"  # the first opcode of every pickle since protocol 2
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                assert all(member.endswith(".npy") for member in archive.namelist())
            with np.load(file, allow_pickle=False) as arrays:
                assert all(arrays[key].dtype.kind == "f" for key in arrays)
        elif file.suffix != ".onnx":
            assert not zipfile.is_zipfile(file)
