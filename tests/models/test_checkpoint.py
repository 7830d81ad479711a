"""Reading weight files: only tensors come in, nothing that stands in them is run."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cytolens.models.checkpoint import read_state_dict, sha256_of
from cytolens.models.public_weights import WEIGHTS, starting_weights
from cytolens.problems import FormatError, SettingError

pytestmark = pytest.mark.torch

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
def test_state_dicts_are_found_where_publishers_put_them(tmp_path: Path, wrap) -> None:
    torch.save(wrap(STATE), tmp_path / "w.pth")
    read = read_state_dict(tmp_path / "w.pth")
    assert read.keys() == STATE.keys()
    assert torch.equal(read["a.weight"], STATE["a.weight"])


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "w.safetensors")["a.weight"], STATE["a.weight"])


class _Trap:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save({"model": STATE, "extra": _Trap(trace)}, tmp_path / "bad.pth")
    with pytest.raises(FormatError, match="not a weight file that can be read safely"):
        read_state_dict(tmp_path / "bad.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Trap(trace)))
    with pytest.raises(FormatError):
        read_state_dict(tmp_path / "plain.pth")
    assert not trace.exists()


@pytest.mark.parametrize("content", [{"lr": 0.1}, [1, 2], {"model": {}}, {}])
def test_files_without_a_state_dict_are_refused(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(FormatError, match="no state dict"):
        read_state_dict(tmp_path / "w.pth")


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such weight file"):
        read_state_dict(tmp_path / "none.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(FormatError, match=r"cut\.safetensors"):
        read_state_dict(tmp_path / "cut.safetensors")


def test_public_weights_have_full_checksums_and_known_models() -> None:
    import timm

    from cytolens.models.catalog import DETECTORS

    for weights in WEIGHTS.values():
        assert len(weights.sha256) == 64
        assert weights.model in DETECTORS or timm.is_model(weights.model)
        assert weights.licence == "Apache-2.0"


def test_weights_from_a_package_are_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cytolens.models.classifier import Classifier

    monkeypatch.setenv("CYTOLENS_CACHE", str(tmp_path))
    state = starting_weights("efficientnet-lite0-imagenet")
    files = list((tmp_path / "weights").iterdir())
    assert [file.suffix for file in files] == [".safetensors"]
    stamp, digest = files[0].stat().st_mtime_ns, sha256_of(files[0])
    assert starting_weights("efficientnet-lite0-imagenet").keys() == state.keys()
    assert files[0].stat().st_mtime_ns == stamp
    assert sha256_of(files[0]) == digest
    network = Classifier(backbone="tf_efficientnet_lite0", classes=4, side_px=64)
    own = network.state_dict()
    assert {name for name in own if name not in state} == {"head.weight", "head.bias"}
    assert all(own[name].shape == value.shape for name, value in state.items())


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(SettingError, match='Did you mean "yolox-nano-coco"'):
        starting_weights("yolox-nano-cocco")
