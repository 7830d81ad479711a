"""Published weights become bundles: from one file, or from an archive of them."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytolens.bundle import Bundle, copy, rewrite
from cytolens.bundle import write as write_bundle
from cytolens.formats.archives import extract
from cytolens.models import published
from cytolens.models.checkpoint import read_tensors, sha256_of
from cytolens.predict.exam import make_exam
from cytolens.problems import CytolensError, FormatError, Problems, SettingError, did_you_mean, listing, written
from cytolens.run import published_networks as networks
from cytolens.run.bundle_card import card_text
from cytolens.run.published_networks import ImportSettings, Network, WeightFile

WEIGHT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
LIST = "imported.json"
_MOST_BYTES = 100_000_000_000
Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of one weight file.

    Attributes:
        source: the file, by its path in the archive or its name.
        kind: which kind of file it is.
        path: the bundle's folder, or the file of starting weights.
        bundle: None for starting weights.
        notes: what a user should know, in sentences.
    """

    source: str
    kind: published.Kind
    path: Path
    bundle: Bundle | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        about = {"source": self.source, "kind": self.kind, "path": str(self.path), "notes": list(self.notes)}
        if self.bundle is None:
            return about | {"task": None}
        return about | {"name": self.bundle.name, "task": self.bundle.info.task, "hash": self.bundle.hash}


def import_weights(file: Path, out: Path, settings: ImportSettings | None = None) -> Imported:
    """A bundle from one weight file; from a backbone alone, a file of starting weights.

    Args:
        file: ``.pth``, ``.ckpt`` … or ``.safetensors``; read without running anything in it.
        out: the bundle's folder, or for kind "dinobloom" the ``.safetensors`` file to write.
        settings: what is known of it.

    Raises:
        FormatError: the file cannot be read safely, or is not of the network.
        SettingError, LabelError: kind, network, side or labels are wrong, or must be given.
    """
    return _import(Path(file), Path(file).name, Path(out), settings or ImportSettings())


def import_archive(
    archive: Path, out: Path, settings: ImportSettings | None = None, notify: Notify = lambda _: None
) -> tuple[list[Imported], Problems]:
    """One bundle for each weight file of a zip or tar archive, side by side in a folder, with a list of them.

    A file that is refused is a problem, and the others are made.

    Raises:
        FormatError: the archive is damaged, would write outside its folder, or holds no weight file.
    """
    made: list[Imported] = []
    problems = Problems()
    with tempfile.TemporaryDirectory(prefix="cytolens-") as place:
        folder = Path(place)
        extract(archive, folder, most_bytes=_MOST_BYTES)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in WEIGHT_SUFFIXES)
        if not files:
            raise FormatError(f"{archive}: holds no weight file; those end in {', '.join(WEIGHT_SUFFIXES)}")
        names = [path.relative_to(folder).as_posix() for path in files]
        for path, name, target in zip(files, names, _targets(names), strict=True):
            notify(name)
            try:
                made.append(_import(path, name, out / target, settings or ImportSettings(), in_folder=True))
            except CytolensError as error:
                problems.add("weights-refused", name, str(error).replace(f"{path}: ", ""), severity="error")
    if made:
        with written(out / LIST) as part:
            listed = [one.to_dict() | {"path": one.path.name} for one in made]
            text = json.dumps({"archive": archive.name, "sha256": sha256_of(archive), "made": listed}, indent=1)
            part.write_text(text + "\n", encoding="utf-8")
    return made, problems


def is_archive(file: Path) -> bool:
    """Whether a file holds other files; PyTorch's own are zip files, too, and are told by their content."""
    if ".tar" in file.suffixes or file.suffix in (".tgz", ".tbz2", ".txz"):
        return True
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as packed:
        return not any(name.count("/") <= 1 and name.endswith("data.pkl") for name in packed.namelist())


def _targets(names: Sequence[str]) -> list[str]:
    """A folder name for each file: its path without suffix, and without the folders that all have in common."""
    steps = [[*name.split("/")[:-1], Path(name).stem] for name in names]
    common = 0
    while all(len(one) > common + 1 and one[common] == steps[0][common] for one in steps):
        common += 1
    targets = ["-".join(one[common:]).strip(". ") or "weights" for one in steps]
    repeated = Counter(targets)
    return [
        target if repeated[target] == 1 else f"{target}-{Path(name).suffix[1:]}"
        for target, name in zip(targets, names, strict=True)
    ]


def _import(path: Path, name: str, out: Path, settings: ImportSettings, in_folder: bool = False) -> Imported:
    """What becomes of one file; `in_folder`: `out` is a name without suffix that was made here."""
    kind = _kind(settings)
    tensors = read_tensors(path)
    if bad := [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise FormatError(f"{path}: has numbers that are not finite in {listing(bad, 4)}")
    source = WeightFile(path, name, sha256_of(path), tensors, settings, [])
    kind = kind or published.recognised(path, tensors)
    if kind == "dinobloom":
        target = networks.starting_weights(source, out.with_name(f"{out.name}.safetensors") if in_folder else out)
        return Imported(name, kind, target, None, tuple(source.notes))
    if out.suffix == ".safetensors":
        raise SettingError(f"--out {out}: this file becomes a bundle; name a folder")
    make = networks.classifier if kind == "cytologia-classifier" else networks.detector
    made = make(source, kind, out)
    return Imported(name, kind, out, _bundle(made, out), tuple(source.notes))


def _kind(settings: ImportSettings) -> published.Kind | None:
    """The kind that is asked for; None: to be recognised."""
    if settings.kind == "auto":
        return None
    for kind in published.KINDS:
        if kind == settings.kind:
            return kind
    hint = did_you_mean(settings.kind, published.KINDS)
    raise SettingError(
        f'no kind "{settings.kind}". {hint + " " if hint else ""}Allowed: auto, {", ".join(published.KINDS)}'
    )


def _bundle(made: Network, out: Path) -> Bundle:
    """Export, sit the exam once, and only then put the bundle in its place."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="cytolens-") as place:
        folder = Path(place)
        made.export(made.network, folder / "model.onnx", made.side_px)
        state = {name: value.contiguous() for name, value in made.network.state_dict().items()}
        save_file(state, folder / "weights.safetensors")
        files: dict[str, Path | bytes] = {name: folder / name for name in ("model.onnx", "weights.safetensors")}
        bundle = make_exam(write_bundle(folder / "bundle", made.info, files))
        card = card_text(bundle.info, bundle.labels, "").encode()
        return copy(rewrite(bundle, bundle.info, {"card.md": card}), out)
