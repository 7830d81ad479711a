"""Weights of others become bundles that answer as the originals do; what does not fit, or would be run, is refused."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from cytolens.bundle import Bundle
from cytolens.labels import LabelSet
from cytolens.models import catalog, published
from cytolens.models.checkpoint import load_matching, read_tensors, sha256_of
from cytolens.models.public_weights import WEIGHTS, PublicWeights, starting_weights
from cytolens.models.yolox import SIZES, Yolox
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.predict.session import Classifier, Detector, session
from cytolens.prepare import stain
from cytolens.problems import FormatError, LabelError, SettingError
from cytolens.run import published_networks as networks
from cytolens.run.importing import import_archive, import_weights, is_archive
from cytolens.run.published_networks import ImportSettings, WeightFile, label_set
from cytolens.tasks import classify
from tests.train.test_export import pictures, shaken

pytestmark = pytest.mark.torch

Trap = Callable[[Path], Any]
_CHALLENGE = (  # the order of the outputs of the challenge's winner
    "PNN LY MO EO BA Er PM Thromb LAM3 Lysee LyB LLC MBL LGL B M MM LF MoB LH_lyAct LM LZMG SS".split()  # noqa: SIM905
)


class _Runs:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


# -- detectors --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_class() -> Yolox:
    torch.manual_seed(3)
    network = shaken(catalog.detector("yolox-nano", 1), 4)
    assert isinstance(network, Yolox)
    for layer in (*network.head.cls_preds, *network.head.obj_preds):
        torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # a network that finds something
    return network.eval()


def trainer_file(network: Yolox, path: Path) -> Path:
    """A checkpoint as YOLOX's trainer writes it: with the optimiser's state, and scores as NumPy's numbers."""
    momentum = {"momentum_buffer": torch.ones(4)}
    optimiser = {"state": {0: momentum, 1: dict(momentum)}, "param_groups": [{"lr": 0.01, "params": [0, 1]}]}
    content = {"start_epoch": 110, "model": network.state_dict(), "optimizer": optimiser}
    torch.save(content | {"best_ap": np.float64(0.944), "curr_ap": np.float64(0.94)}, path)
    return path


@pytest.fixture(scope="module")
def detector(one_class: Yolox, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle, Any]:
    file = trainer_file(one_class, tmp_path_factory.mktemp("yolox") / "best_ckpt.pth")
    made = import_weights(file, file.parent / "cells", ImportSettings(side_px=128, licence="CC0"))
    assert made.bundle is not None
    return file, made.bundle, made


def test_a_checkpoint_of_yoloxs_trainer_becomes_a_bundle(detector: tuple[Path, Bundle, Any], one_class: Yolox) -> None:
    file, bundle, made = detector
    assert (made.kind, bundle.info.task, bundle.name) == ("cytologia-detector", "detect", "cells")
    assert bundle.labels.names == ("cell",)
    assert bundle.info.detect_input is not None
    assert (bundle.info.detect_input.side_px, bundle.info.detect_input.stain.background) == (128, False)
    assert bundle.info.detect_output is not None
    assert (bundle.info.detect_output.score_floor, bundle.info.detect_output.nms_iou) == (0.001, 0.3)
    origin = bundle.info.training["imported"]
    assert (origin["file"], origin["sha256"]) == ("best_ckpt.pth", sha256_of(file))
    assert (bundle.info.licence, bundle.info.architecture) == ("CC0", {"model": "yolox-nano"})
    card = bundle.file("card.md")
    assert card is not None
    assert origin["sha256"] in card.read_text(encoding="utf-8")
    assert any("optimizer.state (2)" in note for note in made.notes)
    kept = load_file(bundle.folder / "weights.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in one_class.state_dict().items())
    assert bundle.self_test().passed


def test_an_imported_detector_is_shown_what_it_learnt_from(
    detector: tuple[Path, Bundle, Any], one_class: Yolox
) -> None:
    """Bytes as they are, in BGR, scaled, at the upper left of grey 114; the answer scaled back."""
    pixels = np.random.default_rng(5).integers(0, 256, (40, 38, 3), np.uint8)  # down to 0, which normalising would lift
    scaled = np.asarray(cv2.resize(pixels, (38 * 128 // 40, 128), interpolation=cv2.INTER_LINEAR))
    canvas = np.full((128, 128, 3), 114, np.uint8)
    canvas[:, : scaled.shape[1]] = scaled
    with torch.no_grad():
        raw = one_class(torch.from_numpy(canvas[:, :, ::-1].transpose(2, 0, 1).copy())[None].float())[0]
    expected = np.sort((raw[:, 5].sigmoid() * raw[:, 4].sigmoid()).numpy())[::-1]
    found = Predictor(detector[1], PredictSettings(jobs=1)).field(pixels)
    assert expected[0] > 0.1
    shown = detector[1].info.detect_input
    assert shown is not None
    table = stain.table(stain.measure(pixels), shown.stain)
    assert (table == np.arange(256)[:, None]).all()
    assert found.scores.max() == pytest.approx(float(expected[0]), rel=1e-3)


@pytest.fixture
def quickly(detector: tuple[Path, Bundle, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network is not exported again: its graph takes any size."""
    graph = detector[1].folder / "model.onnx"
    monkeypatch.setattr(networks, "export_detector", lambda network, path, side_px: shutil.copyfile(graph, path))


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_told_by_its_tensors(size: str) -> None:
    with torch.device("meta"):
        tensors = {f"model.{k}": v for k, v in Yolox(size=size, classes=80).state_dict().items()}
    assert published.yolox_form(Path("x"), tensors) == (f"yolox-{size}", 80)
    assert published.recognised(Path("x"), tensors) == "yolox"
    assert published.detector_fit(Path("x"), tensors, f"yolox-{size}", 80).prefix == "model."


def test_the_classes_of_coco_are_in_their_order() -> None:
    assert len(set(published.COCO)) == 80
    assert (published.COCO[0], published.COCO[25], published.COCO[79]) == ("person", "umbrella", "toothbrush")
    assert label_set("coco").leaves == published.COCO  # none of them is taken for a cell
    assert label_set("coco").roles == {}


def _suppressed(boxes: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any], iou: float) -> list[int]:
    """Non-maximum suppression, one pair at a time."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        for j in kept:
            if classes[i] == classes[j]:
                low, high = np.maximum(boxes[i, :2], boxes[j, :2]), np.minimum(boxes[i, 2:], boxes[j, 2:])
                inter = np.prod(np.clip(high - low, 0, None))
                areas = [np.prod(boxes[n, 2:] - boxes[n, :2]) for n in (i, j)]
                if inter / (sum(areas) - inter) > iou:
                    break
        else:
            kept.append(int(i))
    return kept


@pytest.mark.slow
@pytest.mark.data
def test_published_weights_find_what_the_reference_finds(data_root: Path, golden_root: Path, tmp_path: Path) -> None:
    """The tensors of the reference implementation, and what they say is there, against the imported bundle."""
    made = import_weights(
        data_root / "weights" / "yolox_nano_coco.safetensors", tmp_path / "nano", ImportSettings(kind="yolox")
    )
    assert made.bundle is not None
    assert made.bundle.labels.names == published.COCO
    golden = np.load(golden_root / "yolox_nano_forward.npz")
    pixels = np.ascontiguousarray(golden["image"][0].transpose(1, 2, 0)[:, :, ::-1])
    decoded = golden["decoded"][0].astype(np.float64)
    corners = np.concatenate([decoded[:, :2] - decoded[:, 2:4] / 2, decoded[:, :2] + decoded[:, 2:4] / 2], axis=1)
    likely = decoded[:, 5:] * decoded[:, 4:5]
    boxes, scores = Detector(session(made.bundle))(pixels[None])
    np.testing.assert_allclose(boxes[0], corners, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(scores[0], likely, rtol=1e-3, atol=1e-3)

    found = Predictor(made.bundle, PredictSettings(jobs=1)).field(pixels)
    sure = np.flatnonzero(likely.max(axis=1) >= 0.02)  # the floor is 0.01: rounding decides nothing here
    placed, best = np.clip(corners[sure], 0, 416), likely[sure].max(axis=1)
    kept = _suppressed(placed, best, likely[sure].argmax(axis=1), 0.65)
    assert len(kept) > 0
    ours = found.scores >= best[kept].min() - 1e-3
    assert ours.sum() == len(kept)
    assert [made.bundle.labels.index(str(name)) for name in np.array(found.labels)[ours]] == list(
        likely[sure][kept].argmax(axis=1)
    )
    np.testing.assert_allclose(found.boxes[ours], placed[kept], rtol=1e-3, atol=0.02)
    np.testing.assert_allclose(found.scores[ours], best[kept], atol=1e-3)


def test_a_detector_whose_tensors_do_not_fit_is_refused(one_class: Yolox, tmp_path: Path) -> None:
    state = dict(one_class.state_dict())
    state["head.stems.2.conv.weight"] = state["head.stems.2.conv.weight"][:7]
    del state["backbone.C3_p3.conv1.conv.weight"]
    torch.save({"model": state}, tmp_path / "cut.pth")
    said = (
        r"yolox-nano with 1 classes.*C3_p3\.conv1.*head\.stems\.2\.conv\.weight is \(7, 256, 1, 1\), wanted \(64, 256"
    )
    with pytest.raises(FormatError, match=said):
        import_weights(tmp_path / "cut.pth", tmp_path / "out", ImportSettings(side_px=640))
    with pytest.raises(FormatError, match="not of the network yolox-s"):
        import_weights(
            trainer_file(one_class, tmp_path / "x.pth"), tmp_path / "out", ImportSettings(model="yolox-s", side_px=640)
        )
    assert not (tmp_path / "out").exists()


def test_what_the_file_does_not_tell_must_be_said(one_class: Yolox, tmp_path: Path) -> None:
    file = trainer_file(one_class, tmp_path / "x.pth")
    for settings, error, said in [
        ({}, SettingError, "512 and of 640 px. Say it by --side-px"),
        ({"kind": "yolox"}, SettingError, "1 classes without names"),
        ({"kind": "yolox", "labels": "bccd"}, LabelError, "1 classes, but there are 3 labels"),
        ({"kind": "yolo"}, SettingError, 'Did you mean "yolox"'),
        ({"model": "yolox-q"}, SettingError, 'no detector "yolox-q"'),
        ({"labels": "nowhere.txt", "side_px": 640}, LabelError, "no shipped label set"),
    ]:
        with pytest.raises(error, match=said):
            import_weights(file, tmp_path / "out", ImportSettings.model_validate(settings))


@pytest.mark.usefixtures("quickly")
def test_weights_known_by_their_hash_keep_their_terms(
    one_class: Yolox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = trainer_file(one_class, tmp_path / "x.pth")
    public = PublicWeights("yolox-nano", "https://example.org/x", sha256_of(file), "Apache-2.0", "its makers")
    monkeypatch.setitem(WEIGHTS, "known", public)
    (tmp_path / "names.txt").write_text("leukocyte\n", encoding="utf-8")
    settings = ImportSettings(kind="yolox", labels=str(tmp_path / "names.txt"), side_px=64)
    bundle = import_weights(file, tmp_path / "out", settings).bundle
    assert bundle is not None
    assert (bundle.info.licence, bundle.info.credits) == ("Apache-2.0", ["its makers"])
    assert bundle.labels.names == ("leukocyte",)


# -- classifiers ------------------------------------------------------------------------------------


def lightning_file(network: Any, path: Path, prefix: str = "", **more: Any) -> Path:
    """A checkpoint as Lightning writes it of a backbone and a linear layer; `network` is timm's with its own head."""
    state = {}
    for name, value in network.state_dict().items():
        head = name.removeprefix("head.").removeprefix("classifier.")
        state[f"{prefix}{'classifier.' + head if head != name else 'backbone.' + name}"] = value
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2, 2)}}
    content: dict[str, Any] = {"epoch": 31, "global_step": 9, "pytorch-lightning_version": "2.4.0", "state_dict": state}
    content |= {"optimizer_states": [{"state": moments, "param_groups": [{"lr": 2e-4, "params": [0]}]}]}
    content |= {"lr_schedulers": [{"T_max": 32, "last_epoch": 31, "_last_lr": [0.0]}]}
    content |= {"callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.91)}}}
    content |= {"hyper_parameters": {"backbone": "test", "folds": [0, 1], "size": (64, 64), "mixup": None}}
    torch.save(content | more, path)
    return path


def timm_network(model: str, outputs: int, seed: int = 6) -> Any:
    torch.manual_seed(seed)
    extra = {"img_size": 64} if "vit" in model else {}
    return shaken(timm.create_model(model, pretrained=False, num_classes=outputs, **extra), seed).eval()


@pytest.mark.parametrize(("model", "outputs", "prefix"), [("test_efficientnet", 23, ""), ("test_vit", 24, "model.")])
def test_a_lightning_checkpoint_becomes_a_bundle(model: str, outputs: int, prefix: str, tmp_path: Path) -> None:
    network = timm_network(model, outputs)
    file = lightning_file(network, tmp_path / "best_model.ckpt", prefix)
    made = import_weights(file, tmp_path / "names", ImportSettings(model=model, side_px=64))
    assert (made.kind, made.bundle is not None) == ("cytologia-classifier", True)
    bundle = made.bundle
    assert bundle is not None
    extra = ["Background"] if outputs == 24 else []
    assert list(bundle.labels.leaves) == _CHALLENGE + extra  # never by the alphabet, and none left out as a parent
    shown, output = bundle.info.classify_input, bundle.info.classify_output
    assert shown is not None
    assert output is not None
    assert (shown.side_px, shown.fit, shown.margin_px, shown.stain.background) == (64, "stretch", 16, False)
    assert (output.leave_out, output.outputs) == (tuple(extra), "softmax")

    images = pictures(2, 64, 64)
    logits, embedding = Classifier(session(bundle))(images)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    planes = ((images / 255 - mean) / deviation).transpose(0, 3, 1, 2)
    with torch.no_grad():  # the original: timm's network, ImageNet's mean and deviation
        expected = network(torch.from_numpy(planes).float()).numpy()
    assert np.abs(logits - expected).max() < 1e-3 * max(1, np.abs(expected).max())
    assert len(embedding) == 2
    # The box grown by 16 px, inside the image, and stretched: (34, 0, 98, 52). Bytes are shown as they are.
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:52, 34:98] = 7
    seen = classify.pictures(pixels, [[50, 0, 82, 36]], shown)
    assert seen.shape == (1, 64, 64, 3)
    assert (seen[:-2] == 7).all()  # the last rows are mixed with the image's own, which lie below
    answer = Predictor(bundle, PredictSettings(jobs=1)).field(images[0])
    assert answer.probabilities.shape == (1, 23)
    assert answer.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert bundle.self_test().passed


def as_read(file: Path, **settings: Any) -> WeightFile:
    given = ImportSettings(model="test_efficientnet", side_px=64).model_copy(update=settings)
    return WeightFile(file, file.name, "", read_tensors(file), given, [])


def test_position_embeddings_are_resampled_to_another_side(tmp_path: Path) -> None:
    file = lightning_file(timm_network("test_vit", 23), tmp_path / "x.ckpt")
    source = as_read(file, model="test_vit", side_px=96)
    made = networks.classifier(source, "cytologia-classifier", tmp_path / "out")
    assert "pos_embed is resampled for test_vit at 96 px" in source.notes
    assert made.network.backbone.pos_embed.shape[1] == 1 + 6 * 6


def test_a_head_must_have_an_output_for_each_label(tmp_path: Path) -> None:
    file = lightning_file(timm_network("test_efficientnet", 7), tmp_path / "x.ckpt")
    known = {"kind": "cytologia-classifier", "model": "test_efficientnet", "side_px": 64}
    said = (
        r'reads the backbone\'s 256 features and answers with 21 or 23 or 24 outputs.*"state_dict\.classifier" with 7'
    )
    with pytest.raises(FormatError, match=said):
        import_weights(file, tmp_path / "out", ImportSettings.model_validate(known))
    names = tmp_path / "names.toml"
    names.write_text('names = ["MO", "LY", "LLC", "EO", "zebra", "BA", "PNN"]', encoding="utf-8")
    made = networks.classifier(as_read(file, labels=str(names)), "cytologia-classifier", tmp_path / "out")
    assert LabelSet.from_dict(made.info.labels).leaves == ("MO", "LY", "LLC", "EO", "zebra", "BA", "PNN")


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    file = lightning_file(timm_network("test_efficientnet", 23), tmp_path / "x.ckpt")
    with pytest.raises(FormatError, match="not of the network test_vit at 64 px: missing: "):
        import_weights(file, tmp_path / "out", ImportSettings(model="test_vit", side_px=64))
    with pytest.raises(SettingError, match="nothing tells the side"):
        import_weights(file, tmp_path / "out", ImportSettings(model="test_efficientnet"))
    with pytest.raises(FormatError, match="holds none of vit_large"):
        import_weights(file, tmp_path / "out")
    shapes = {name: value for name, value in read_tensors(file).items() if not name.endswith("conv_stem.weight")}
    save_file({**shapes, "state_dict.backbone.conv_stem.weight": torch.zeros(3, 3)}, tmp_path / "y.safetensors")
    with pytest.raises(FormatError, match=r"conv_stem\.weight is \(3, 3\), wanted \("):
        import_weights(
            tmp_path / "y.safetensors", tmp_path / "out", ImportSettings(model="test_efficientnet", side_px=64)
        )


@pytest.mark.parametrize("known", {known.model: known for known in published.CYTOLOGIA_CLASSIFIERS}.values())
def test_the_winners_backbones_are_told_by_their_tensors(known: published.CytologiaClassifier) -> None:
    backbone: Any = published.backbone_of(known.model, known.side_px)
    tensors = {f"state_dict.backbone.{name}": value for name, value in backbone.state_dict().items()}
    width = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    with torch.device("meta"):
        tensors |= {
            "state_dict.classifier.weight": torch.zeros(23, width),
            "state_dict.classifier.bias": torch.zeros(23),
        }
    assert published.recognised(Path("x"), tensors) == "cytologia-classifier"
    assert published.cytologia_model(Path("x"), tensors) == known.model


def test_the_whole_image_classifier_is_told_by_its_outputs() -> None:
    of = {n: published.known_classifier("tf_efficientnetv2_m.in21k", n) for n in (23, 24)}
    assert [one.answers for one in of.values() if one] == ["softmax", "sigmoid"]
    assert published.known_classifier("resnet18", 23) is None


# -- backbones alone --------------------------------------------------------------------------------


def dinov2_names(blocks: int) -> list[str]:
    """The names of a DINOv2 transformer in its own repository."""
    parts = ["norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"]
    parts += ["ls1.gamma", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight"]
    parts += ["mlp.fc2.bias", "ls2.gamma"]
    names = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"]
    return [*names, *(f"blocks.{block}.{part}" for block in range(blocks) for part in parts)]


def test_dinobloom_b_is_dinov2_by_name_and_shape() -> None:
    backbone = published.backbone_of("vit_base_patch14_dinov2.lvd142m", 224)
    state = backbone.state_dict()
    assert set(state) == set(dinov2_names(12))
    assert state["pos_embed"].shape == (1, 257, 768)
    tensors = {f"teacher.backbone.{name}": value for name, value in state.items()}
    assert published.recognised(Path("x"), tensors) == "dinobloom"
    assert published.dinobloom_model(Path("x"), tensors) == "vit_base_patch14_dinov2.lvd142m"


def _chunked(name: str) -> str:
    """DINOv2's training counts blocks within groups, from the group's first block on."""
    if not name.startswith("blocks."):
        return name
    number, _, rest = name.removeprefix("blocks.").partition(".")
    return f"blocks.{int(number) // 3}.{number}.{rest}"


@pytest.mark.parametrize("layout", ["teacher.backbone.", "student.backbone.", "model.", "", "chunked", "both"])
def test_a_backbone_becomes_starting_weights(layout: str, tmp_path: Path) -> None:
    state = dict(timm_network("test_vit", 0).state_dict())
    content: dict[str, Any] = {}
    if layout == "both":
        content = {"student": {f"backbone.{k}": v + 1 for k, v in state.items()}}
        layout = "teacher.backbone."
    top, _, below = layout.partition(".") if "." in layout else ("", "", "")
    rename = _chunked if layout == "chunked" else str
    tensors = {f"{below}{rename(name)}": value for name, value in state.items()}
    tensors |= {"dino_head.mlp.0.weight": torch.zeros(8, 64), "dino_head.mlp.0.bias": torch.zeros(8)}
    tensors |= {f"{below}mask_token": torch.zeros(1, 64)}
    content |= {top: tensors} if top else tensors
    torch.save(content, tmp_path / "bloom.pth")
    out = tmp_path / "bloom.safetensors"
    settings = ImportSettings(kind="dinobloom", model="test_vit", side_px=96)
    made = import_weights(tmp_path / "bloom.pth", out, settings)
    assert (made.bundle, made.path) == (None, out)
    assert any("3 tensors not used" in note or "dino_head" in note for note in made.notes)

    given = starting_weights(str(out))
    assert all(torch.equal(given[f"backbone.{name}"], value) for name, value in state.items() if name != "pos_embed")
    old: Tensor = state["pos_embed"]
    grid = old[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    new = F.interpolate(grid, size=(6, 6), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, 36, -1)
    torch.testing.assert_close(given["backbone.pos_embed"], torch.cat([old[:, :1], new], dim=1))
    network = catalog.classifier("test_vit", classes=5, side_px=96, norm="batch", dropout=0, drop_path=0)
    fresh, unused = load_matching(network, given)
    assert (fresh, unused) == (["head.weight", "head.bias"], [])


def test_a_backbone_is_not_a_bundle(tmp_path: Path) -> None:
    torch.save({"cls_token": torch.zeros(1, 1, 768), "blocks.0.ls1.gamma": torch.zeros(768)}, tmp_path / "x.pth")
    with pytest.raises(SettingError, match=r'Name it "out\.safetensors"'):
        import_weights(tmp_path / "x.pth", tmp_path / "out")
    with pytest.raises(FormatError, match="not of the network vit_base_patch14_dinov2"):
        import_weights(tmp_path / "x.pth", tmp_path / "out.safetensors")
    torch.save({"cls_token": torch.zeros(1, 1, 5)}, tmp_path / "y.pth")
    with pytest.raises(FormatError, match="class token of 5 features"):
        import_weights(tmp_path / "y.pth", tmp_path / "out.safetensors", ImportSettings(kind="dinobloom"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.pth", "y.pth"]


# -- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_run(zipped: bool, one_class: Yolox, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    content = {"model": one_class.state_dict(), "exp": _Runs(trace)}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(FormatError, match=r"cannot|can be read safely: to load it, \w*\.?open would be run"):
        import_weights(tmp_path / "bad.pth", tmp_path / "out", ImportSettings(side_px=64))
    assert not trace.exists()
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_none_are_refused(one_class: Yolox, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in one_class.state_dict().items()}
    state["head.obj_preds.0.bias"][0] = float("nan")
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(FormatError, match=r"not finite in head\.obj_preds\.0\.bias"):
        import_weights(tmp_path / "x.pth", tmp_path / "out", ImportSettings(side_px=64))


def test_a_file_of_something_else(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(FormatError, match="none of the networks that are known here"):
        import_weights(tmp_path / "x.pth", tmp_path / "out")
    nest: list[Any] = [{"lr": 0.1}]
    nest.append(nest)  # a list that holds itself
    torch.save({"nest": nest}, tmp_path / "y.pth")
    with pytest.raises(FormatError, match="holds no tensors"):
        import_weights(tmp_path / "y.pth", tmp_path / "out")


# -- archives ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_an_archive_becomes_a_bundle_per_fold(form: str, one_class: Yolox, tmp_path: Path) -> None:
    trainer_file(one_class, tmp_path / "best_ckpt.pth")
    torch.save({"weight": torch.zeros(3), "cfg": _Runs(tmp_path / "ran")}, tmp_path / "odd.pth")
    members = {f"yolox/fold{k}/best_ckpt.pth": tmp_path / "best_ckpt.pth" for k in (0, 1)}
    members |= {"yolox/odd.pth": tmp_path / "odd.pth", "yolox/README.md": Path(__file__)}
    archive = tmp_path / f"published.{form}"
    if form == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for name, path in members.items():
                packed.write(path, name)
    else:
        with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
            for name, path in members.items():
                packed.add(path, name)
    assert is_archive(archive)
    assert not is_archive(tmp_path / "best_ckpt.pth")  # a zip file, too
    made, problems = import_archive(archive, tmp_path / "out", ImportSettings(side_px=64))
    assert [one.source for one in made] == ["yolox/fold0/best_ckpt.pth", "yolox/fold1/best_ckpt.pth"]
    assert [Bundle.load(one.path).name for one in made] == ["fold0-best_ckpt", "fold1-best_ckpt"]
    assert [(one.kind, one.where) for one in problems] == [("weights-refused", "yolox/odd.pth")]
    assert "would be run" in problems[0].what
    listed = json.loads((tmp_path / "out" / "imported.json").read_text(encoding="utf-8"))
    assert [(one["path"], one["hash"]) for one in listed["made"]] == [
        (one.path.name, one.bundle.hash) for one in made if one.bundle
    ]
    assert listed["sha256"] == sha256_of(archive)
    assert not (tmp_path / "ran").exists()


def test_an_archive_cannot_write_elsewhere(one_class: Yolox, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as packed:
        packed.write(trainer_file(one_class, tmp_path / "x.pth"), "fold0/x.pth")
        packed.writestr("../../outside.pth", b"x")
    with pytest.raises(FormatError, match="would land outside"):
        import_archive(tmp_path / "bad.zip", tmp_path / "out", ImportSettings(side_px=64))
    assert not (tmp_path / "out").exists()
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as packed:
        packed.writestr("readme.txt", b"x")
    with pytest.raises(FormatError, match="holds no weight file"):
        import_archive(tmp_path / "none.zip", tmp_path / "out")


def test_labels_are_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.names").write_text("zebra\n\nLY\r\nant\n", encoding="utf-8")
    assert label_set(str(tmp_path / "a.names")).names == ("zebra", "LY", "ant")
    assert label_set("cytologia") == LabelSet.shipped("cytologia")
    (tmp_path / "b.toml").write_text("names = [", encoding="utf-8")
    with pytest.raises(LabelError, match="is no list of labels"):
        label_set(str(tmp_path / "b.toml"))
    (tmp_path / "c.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(LabelError, match="has no names"):
        label_set(str(tmp_path / "c.txt"))
