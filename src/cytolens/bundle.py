"""Bundle: a trained model on disk, with everything that is needed to use, check and judge it.

A folder::

    bundle.json          what it is: task, architecture, settings, labels, calibration, scores, licence, file hashes
    model.onnx           the network, pre- and post-processing inside where they can be
    attributes.onnx      detectors that describe: attributes of cells, from maps that model.onnx gives
    trunk.onnx, boxes.onnx, masks.onnx    region networks: the three pieces of one network, in place of model.onnx
    weights.safetensors  for further training (may be left out)
    familiarity.npz      classifiers: what training cells look like, so that strangers are noticed (optional)
    exam/                pictures, the cells expected in them, the tolerance
    card.md              what it is for, what it is not for, data, scores, limits

A pipeline bundle has no network of its own: it names its members, by the hash they must have.
Loading checks every sha256 and unpickles nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cytolens.labels import LabelSet
from cytolens.problems import BundleError, LabelError, did_you_mean, listing, written
from cytolens.tasks.attributes import AttributeOutput
from cytolens.tasks.classify import ClassifyInput, ClassifyOutput
from cytolens.tasks.detect import DetectInput, DetectOutput, Fusion
from cytolens.tasks.outlines import OutlineInput, OutlineOutput
from cytolens.tasks.segment import SegmentInput, SegmentOutput

if TYPE_CHECKING:
    from cytolens.predict.exam import ExamResult

FORMAT_VERSION = 1
_SHIPPED = Path(__file__).parent / "bundles"


class BundleInfo(BaseModel):
    """The content of ``bundle.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["cytolens-bundle"] = "cytolens-bundle"
    format_version: int = FORMAT_VERSION
    name: str
    version: str = "1"
    task: Literal["detect", "classify", "segment", "pipeline"]
    description: str = ""
    architecture: dict[str, Any] = Field(default_factory=dict)
    labels: dict[str, Any] = Field(description="a label set, as LabelSet.to_dict gives it")
    detect_input: DetectInput | None = None
    detect_output: DetectOutput | None = None
    classify_input: ClassifyInput | None = None
    classify_output: ClassifyOutput | None = None
    segment_input: SegmentInput | None = None
    segment_output: SegmentOutput | None = None
    outline_input: OutlineInput | None = None
    outline_output: OutlineOutput | None = None
    attribute_output: AttributeOutput | None = Field(
        default=None, description="networks that give the labels' attributes, too: how they are read"
    )
    field_ranges: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="measures of a field and the range they had in training"
    )
    members: dict[str, str] = Field(default_factory=dict, description="pipeline: bundle name → hash it must have")
    weights: dict[str, float] = Field(
        default_factory=dict, description="pipeline with several members of a task: name → weight, 1 where not named"
    )
    cell_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="pipeline with classifiers of whole images: what the others weigh in an image with one cell",
    )
    fusion: Fusion | None = Field(default=None, description="pipeline with several detectors: how they are fused")
    name_these: list[str] = Field(default_factory=list, description="pipeline: labels that the classifier names")
    describers: list[str] = Field(
        default_factory=list, description="pipeline: members that give attributes of cells, and no names"
    )
    training: dict[str, Any] = Field(default_factory=dict, description="settings, data fingerprints, seed, commit")
    scores: dict[str, Any] = Field(default_factory=dict, description="domain → figures with intervals")
    licence: str = ""
    credits: list[str] = Field(default_factory=list)
    exam_tolerance: dict[str, float] = Field(default_factory=lambda: {"box_px": 0.5, "score": 0.01})
    files: dict[str, str] = Field(default_factory=dict, description="file → sha256")


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle that was loaded and checked.

    Attributes:
        folder: where it is.
        info: the content of its ``bundle.json``.
        hash: twelve hexadecimal digits of the sha256 of ``bundle.json``; since that file holds the hashes
            of all others, it changes when anything changes.
        members: the bundles of a pipeline, by name.
    """

    folder: Path
    info: BundleInfo
    hash: str
    members: Mapping[str, Bundle]

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self.info.name

    @property
    def labels(self) -> LabelSet:
        """The label set that the bundle speaks."""
        return LabelSet.from_dict(self.info.labels)

    @property
    def source(self) -> str:
        """How its cells say where they come from."""
        return f"bundle:{self.name}@{self.hash}"

    def file(self, name: str) -> Path | None:
        """One of the bundle's files, or None; only files that were checked when it was loaded are found."""
        return self.folder / name if name in self.info.files else None

    def members_of(self, task: str) -> list[Bundle]:
        """The members of a pipeline, or the bundle itself, that do a task."""
        if self.info.task == task:
            return [self]
        return [member for member in self.members.values() if member.info.task == task]

    def member(self, task: str) -> Bundle | None:
        """The first of those that do a task, or None."""
        return next(iter(self.members_of(task)), None)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> Self:
        """Load a bundle by the name of a shipped one, or from a folder.

        Raises:
            BundleError: it is missing, damaged, changed, or of another format version.
        """
        folder = find(name_or_path)
        file = folder / "bundle.json"
        content = file.read_bytes()
        try:
            data = json.loads(content)
        except ValueError as error:
            raise BundleError(f"{file}: damaged ({error})") from error
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise BundleError(f"{file}: format version {version}; this program reads version {FORMAT_VERSION}")
        try:
            info = BundleInfo.model_validate(data)
        except ValidationError as error:
            detail = error.errors()[0]
            raise BundleError(f"{file}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}") from None
        _check_name(info.name)
        for name, expected in info.files.items():
            _check(folder, name, expected)
        try:
            LabelSet.from_dict(info.labels)
        except (LabelError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{file}: labels: damaged ({type(error).__name__}: {error})") from error
        members = {name: cls._member(folder, name, expected) for name, expected in info.members.items()}
        return cls(folder, info, _own_hash(content), members)

    @classmethod
    def _member(cls, folder: Path, name: str, expected: str) -> Self:
        """A member of a pipeline, which stands beside it; its hash is looked at first, so none can hold itself."""
        other = find(folder.parent / name)
        if (own := _own_hash((other / "bundle.json").read_bytes())) != expected:
            raise BundleError(
                f'{folder}: was made with "{name}" of hash {expected}, but {other} has {own}. '
                "Thresholds and scores would not hold; pack the pipeline again with this member."
            )
        return cls.load(other)

    def self_test(self) -> ExamResult:
        """Sit the exam that travels in the bundle: predict its pictures, compare with the expected cells.

        Raises:
            BundleError: the bundle has no exam.
        """
        from cytolens.predict.exam import self_test  # prediction stands above bundles; only this call looks up

        return self_test(self)


def _own_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _check_name(name: str) -> None:
    """Bundles and exported networks stand in folders and files of their name, so it must not lead elsewhere."""
    if not name.strip() or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise BundleError(f'"{name}" cannot be the name of a bundle; it must do as the name of a folder')


def _check(folder: Path, name: str, expected: str) -> None:
    path = folder / name
    if "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f'{folder}: lists the file "{name}", which lies outside the bundle')
    if not path.is_file():
        raise BundleError(f"{path}: is missing from the bundle")
    if file_hash(path) != expected:
        raise BundleError(f"{path}: has been changed (its sha256 is not the one in bundle.json)")


def file_hash(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def shipped() -> list[str]:
    """Names of the bundles that come with the package."""
    return sorted(path.parent.name for path in _SHIPPED.glob("*/bundle.json"))


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a bundle, by name or path.

    Raises:
        BundleError: there is none.
    """
    path = Path(name_or_path)
    if (path / "bundle.json").exists():
        return path
    if (path / "bundle" / "bundle.json").exists():  # a run folder
        return path / "bundle"
    own = _SHIPPED / str(name_or_path)
    if os.fspath(name_or_path) in shipped():
        return own
    hint = did_you_mean(str(name_or_path), shipped())
    raise BundleError(
        f'no bundle "{name_or_path}": neither a folder with bundle.json nor a shipped one. '
        f"{hint + ' ' if hint else ''}Shipped: {listing(shipped())}"
    )


def write(folder: Path, info: BundleInfo, files: Mapping[str, Path | bytes]) -> Bundle:
    """Write a bundle; an earlier one in the folder is replaced only when the new one is whole.

    Args:
        folder: where it goes.
        info: its description; `files` there is filled in here.
        files: name inside the bundle → a file to copy, or its bytes.

    Raises:
        BundleError: the folder holds something else than a bundle, or the name is none for a folder.
    """
    _check_name(info.name)

    def fill(fresh: Path) -> None:
        for name, content in files.items():
            place = fresh / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                place.write_bytes(content)
            else:
                shutil.copyfile(content, place)
        hashes = {name: file_hash(fresh / name) for name in sorted(files)}
        _write_info(fresh, info.model_copy(update={"files": hashes}))

    return _placed(Path(folder), fill)


def copy(bundle: Bundle, folder: Path) -> Bundle:
    """A copy of a bundle, byte by byte, so that its hash stays; members of a pipeline are not copied.

    Raises:
        BundleError: the folder holds something else than a bundle.
    """

    def fill(fresh: Path) -> None:
        for name in (*bundle.info.files, "bundle.json"):
            place = fresh / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.folder / name, place)

    return _placed(Path(folder), fill)


def _placed(folder: Path, fill: Callable[[Path], None]) -> Bundle:
    """The bundle that `fill` writes into a fresh folder, which then takes the place of `folder`."""
    target = folder.resolve()
    if target.exists() and not (target / "bundle.json").exists() and not (target.is_dir() and _is_empty(target)):
        raise BundleError(
            f"{folder}: holds something else than a bundle, and would be replaced. Choose another folder."
        )
    fresh = target.with_name(f".{target.name}.{os.getpid()}.part")
    before = target.with_name(f".{target.name}.{os.getpid()}.before")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        fill(fresh)
        _exchange(target, fresh, before)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Bundle.load(folder)


def _exchange(target: Path, fresh: Path, before: Path) -> None:
    """Put `fresh` in the place of `target`, which stands aside until that is done."""
    if target.exists():
        target.replace(before)
    try:
        fresh.replace(target)
    except OSError:
        if before.exists():
            before.replace(target)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def _write_info(folder: Path, info: BundleInfo) -> None:
    with written(folder / "bundle.json") as part:
        text = json.dumps(info.model_dump(mode="json", exclude_none=True), indent=1, ensure_ascii=False)
        part.write_text(text + "\n", encoding="utf-8")


def rewrite(bundle: Bundle, info: BundleInfo, files: Mapping[str, Path | bytes] | None = None) -> Bundle:
    """The same bundle with another description, and some files added or replaced."""
    kept: dict[str, Path | bytes] = {name: bundle.folder / name for name in bundle.info.files}
    return write(bundle.folder, info, kept | dict(files or {}))
