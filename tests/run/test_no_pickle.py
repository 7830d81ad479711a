"""No pickle leaves a run: not in its bundle, not in a packed one; and a run goes on only from what is safe to read."""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cytolens.dataset import Dataset
from cytolens.formats import read
from cytolens.prepare.synthetic import render_cell
from cytolens.problems import SettingError
from cytolens.run.packing import pack_single
from cytolens.run.training import train, training_settings

pytestmark = [pytest.mark.torch, pytest.mark.slow]


class _Runs:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def is_pickled(file: Path) -> bool:
    """Whether a file is a pickle, or an archive that holds one, by its content and whatever its name."""
    content = file.read_bytes()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as packed:
            names = packed.namelist()
            if any(name.endswith((".pkl", ".pickle")) for name in names):
                return True
            return any(_is_pickle(packed.read(name)) or _holds_objects(packed.read(name)) for name in names)
    return _is_pickle(content) or _holds_objects(content)


def _is_pickle(content: bytes) -> bool:
    """A pickle of protocol 2 or later, or one of the first protocols that ends where a pickle ends."""
    if content[:1] == b"\x80" and content[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    try:
        return sum(1 for _ in pickletools.genops(content)) > 1
    except Exception:
        return False


def _holds_objects(content: bytes) -> bool:
    """A NumPy file of objects, which NumPy pickles."""
    return content[:6] == b"\x93NUMPY" and b"'|O'" in content[:128]


def test_the_check_can_fail(tmp_path: Path) -> None:
    for protocol in range(6):
        (tmp_path / f"{protocol}").write_bytes(pickle.dumps({"a": [1.5]}, protocol=protocol))
    torch.save({"a": torch.zeros(2)}, tmp_path / "new.json")
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.json", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    assert all(is_pickled(file) for file in tmp_path.iterdir())
    np.savez(tmp_path / "numbers.npz", a=np.zeros(3))
    (tmp_path / "plain.json").write_text("{}\n")
    assert not is_pickled(tmp_path / "numbers.npz")
    assert not is_pickled(tmp_path / "plain.json")


def settings() -> Any:
    given = ["optimise.epochs=1", "optimise.closing_epochs=0", "optimise.warmup_epochs=0", "optimise.batch=4"]
    given += ["input.side_px=64", "tuning_share=0.3", "hardware.workers=0", "hardware.threads=1"]
    return training_settings("classify", None, [*given, "hardware.accelerator=cpu"], "test_efficientnet")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve rendered cells of two kinds."""
    folder = tmp_path_factory.mktemp("cells")
    for kind in ("lymphocyte", "eosinophil"):
        (folder / kind).mkdir()
        for seed in range(6):
            Image.fromarray(render_cell(seed, kind, 72).pixels).save(folder / kind / f"{seed}.png")
    return read(folder, "image_folder").dataset


@pytest.fixture(scope="module")
def run(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "run"
    train(settings(), data, folder, progress=False)
    return folder


def test_only_checkpoints_for_resuming_are_pickles(run: Path) -> None:
    files = [file for file in run.rglob("*") if file.is_file()]
    pickled = {file.relative_to(run).parts[0] for file in files if is_pickled(file)}
    assert pickled == {"checkpoints"}
    assert len(files) > 8
    for file in (run / "checkpoints").iterdir():
        torch.load(file, map_location="cpu", weights_only=True)  # they hold nothing that would have to be run


def test_no_pickle_is_packed(run: Path, tmp_path: Path) -> None:
    pack_single(
        str(run), tmp_path / "p", name="p", description="", scores={}, card="", licence="CC0", keep_weights=True
    )
    files = [file for file in (tmp_path / "p").rglob("*") if file.is_file()]
    assert {"model.onnx", "weights.safetensors", "familiarity.npz", "bundle.json"} <= {file.name for file in files}
    assert [file for file in files if is_pickled(file)] == []


def test_a_checkpoint_that_would_run_something_is_not_gone_on_with(run: Path, data: Dataset, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    other = tmp_path / "run"
    (other / "checkpoints").mkdir(parents=True)
    (other / "settings.json").write_bytes((run / "settings.json").read_bytes())
    content = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    torch.save(content | {"more": _Runs(trace)}, other / "checkpoints" / "last.ckpt")
    with pytest.raises(SettingError, match=r"last\.ckpt: is damaged, or holds more than a training leaves"):
        train(settings(), data, other, resume=True, progress=False)
    assert not trace.exists()
