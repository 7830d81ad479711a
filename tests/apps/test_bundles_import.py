"""`cytolens bundles import`: what it says, how it ends, and that a file that would run something does not."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open

from cytolens.bundle import Bundle
from cytolens.models.checkpoint import sha256_of
from tests.apps.speaking import Answer, listing, say

pytestmark = pytest.mark.torch


class _Runs:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def backbone(path: Path, **more: Any) -> Path:
    """A small transformer's weights, as DINOv2's training leaves a teacher's."""
    torch.manual_seed(1)
    state = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=64).state_dict()
    torch.save({"teacher": {f"backbone.{name}": value for name, value in state.items()}} | more, path)
    return path


def bring(file: Path, out: Path, *words: object) -> Answer:
    return say("bundles", "import", file, "--out", out, *words)


_BLOOM = ("--kind", "dinobloom", "--model", "test_vit", "--side-px", "96")


def test_a_classifier_becomes_a_bundle_that_passes_its_exam(tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = timm.create_model("test_efficientnet", pretrained=False, num_classes=23)
    state = {f"backbone.{k}": v for k, v in network.state_dict().items() if not k.startswith("classifier")}
    state |= {f"classifier.{k}": v for k, v in network.classifier.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"lr": 2e-4}}, tmp_path / "best.ckpt")
    words = ("--kind", "cytologia-classifier", "--model", "test_efficientnet", "--side-px", "64")
    answer = bring(tmp_path / "best.ckpt", tmp_path / "names", *words, "--licence", "MIT", "--json")
    assert answer.code == 0
    (made,) = answer.json["made"]
    assert answer.json["problems"] == []
    assert (made["source"], made["task"], made["kind"]) == ("best.ckpt", "classify", "cytologia-classifier")
    bundle = Bundle.load(tmp_path / "names")
    assert (bundle.hash, bundle.info.licence) == (made["hash"], "MIT")
    assert bundle.info.training["imported"]["sha256"] == sha256_of(tmp_path / "best.ckpt")
    assert say("bundles", "verify", tmp_path / "names").code == 0
    assert "read as cytologia-classifier" in say("bundles", "show", tmp_path / "names").out
    packed = say("bundles", "pack", tmp_path / "names", "--out", tmp_path / "packed", "--json")
    assert packed.code == 0


def test_a_backbone_becomes_starting_weights(tmp_path: Path) -> None:
    answer = bring(backbone(tmp_path / "bloom.pth"), tmp_path / "bloom.safetensors", *_BLOOM, "--licence", "CC0")
    assert answer.code == 0
    assert "starting weights, dinobloom from bloom.pth" in answer.out
    assert "--set model=test_vit --set input.side_px=96" in answer.out
    with safe_open(tmp_path / "bloom.safetensors", "pt") as kept:
        about = kept.metadata()
    assert about == {
        "file": "bloom.pth", "sha256": sha256_of(tmp_path / "bloom.pth"), "kind": "dinobloom",
        "model": "test_vit", "side_px": "96", "licence": "CC0",
    }  # fmt: skip


def test_of_an_archive_the_good_files_are_made_and_the_others_named(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        packed.write(backbone(tmp_path / "a.pth"), "folds/a.pth")
        packed.write(backbone(tmp_path / "b.pth", exp=_Runs(trace)), "folds/b.pth")
    answer = bring(tmp_path / "all.zip", tmp_path / "out", *_BLOOM)
    assert answer.code == 1
    assert "error: folds/b.pth: not a weight file that can be read safely" in answer.out
    assert listing(tmp_path / "out") == ["a.safetensors", "imported.json"]
    assert not trace.exists()
    data = bring(tmp_path / "all.zip", tmp_path / "out", *_BLOOM, "--json").json
    assert ([one["source"] for one in data["made"]], len(data["problems"])) == (["folds/a.pth"], 1)


def test_what_would_be_run_is_named_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    complaint = bring(backbone(tmp_path / "x.pth", exp=_Runs(trace)), tmp_path / "x.safetensors", *_BLOOM).complaint
    assert "x.pth: not a weight file that can be read safely: to load it, " in complaint
    assert "open would be run" in complaint
    assert not trace.exists()
    assert not (tmp_path / "x.safetensors").exists()


def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as packed:
        packed.write(backbone(tmp_path / "a.pth"), "../a.pth")
    assert "would land outside its folder" in bring(tmp_path / "bad.zip", tmp_path / "out", *_BLOOM).complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kind", "dinoblom"), 'Did you mean "dinobloom"?'),
        (("--kind", "yolox"), "holds no YOLOX"),
        (("--kind", "dinobloom"), "class token of 64 features"),
        (("--kind", "dinobloom", "--model", "test_vitt"), 'timm has no network "test_vitt"'),
        (("--kind", "dinobloom", "--model", "test_vit", "--side-px", "100"), "patches of 16 px"),
        ((*_BLOOM[:3], "test_efficientnet", "--side-px", "64"), "not of the network test_efficientnet at 64 px"),
        (("--kind", "cytologia-classifier"), "holds none of vit_large_patch16_224"),
    ],
)
def test_requests_that_cannot_be_carried_out(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    out = tmp_path / ("out.safetensors" if "dino" in words[1] else "out")
    assert said in bring(backbone(tmp_path / "x.pth"), out, *words).complaint
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.pth"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "there is no such file" in bring(tmp_path / "none.pth", tmp_path / "out").complaint
    (tmp_path / "notes.pth").write_text("no weights", encoding="utf-8")
    assert "not a weight file that can be read safely" in bring(tmp_path / "notes.pth", tmp_path / "out").complaint
