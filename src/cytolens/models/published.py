"""Networks that others have published: what their weight files look like, and how they are to be used.

Sources: YOLOX (Ge et al., arXiv 2107.08430, github.com/Megvii-BaseDetection/YOLOX); the winning entry of
the CytologIA challenge (github.com/MPWARE-TEAM/Cytologia); DinoBloom (github.com/marrlab/DinoBloom).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cytolens.models.catalog import DETECTORS, classifier, detector
from cytolens.models.checkpoint import Fit, fitted
from cytolens.models.yolox import SIZES
from cytolens.problems import FormatError, SettingError, did_you_mean, listing

Kind = Literal["yolox", "cytologia-detector", "cytologia-classifier", "dinobloom"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# All of them were trained on pictures normalised by these, also where timm's own weights want others.
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BACKGROUND = "Background"  # the 24th output of some classifiers of CytologIA's winner

# In the order of the outputs. Source: the data set's 80 classes in the order of their numbers, cocodataset.org.
# fmt: off
COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on


@dataclass(frozen=True, slots=True)
class CytologiaClassifier:
    """One classifier of CytologIA's winner: its timm backbone, outputs, input side, and how it was asked."""

    model: str
    outputs: int
    side_px: int
    views: int  # 2: the picture and its mirror image
    answers: Literal["softmax", "sigmoid"] = "softmax"


CYTOLOGIA_CLASSIFIERS = (
    CytologiaClassifier("vit_large_patch16_224.augreg_in21k_ft_in1k", 23, 224, 2),
    CytologiaClassifier("vit_large_patch16_224.augreg_in21k_ft_in1k", 24, 224, 2),
    CytologiaClassifier("nextvit_large.bd_ssld_6m_in1k_384", 23, 384, 2),
    CytologiaClassifier("tf_efficientnetv2_m.in21k", 23, 512, 1),
    CytologiaClassifier("tf_efficientnetv2_m.in21k", 24, 512, 2, "sigmoid"),
    CytologiaClassifier("vit_base_patch14_dinov2.lvd142m", 23, 224, 2),
    CytologiaClassifier("tiny_vit_21m_512.dist_in22k_ft_in1k", 23, 512, 1),
)
DINOBLOOM_PX = 224
DINOBLOOMS = {  # by the number of features
    384: "vit_small_patch14_dinov2.lvd142m",
    768: "vit_base_patch14_dinov2.lvd142m",
    1024: "vit_large_patch14_dinov2.lvd142m",
}
_STEM = "backbone.backbone.stem.conv.conv.weight"
_CLASSES = "head.cls_preds.0.weight"
_BLOCK = re.compile(r"(^|\.)blocks\.\d+\.(\d+)\.")


def recognised(path: Path, tensors: Mapping[str, Tensor]) -> Kind:
    """What kind of file this is, by the names and shapes of its tensors.

    Raises:
        FormatError: it is none of `KINDS`.
    """
    if any(name.endswith(_STEM) for name in tensors):
        return "cytologia-detector" if yolox_form(path, tensors)[1] == 1 else "yolox"
    if any(heads(tensors, None, {23, 24})):
        return "cytologia-classifier"
    if any(name.endswith("cls_token") for name in tensors) and any(name.endswith("ls1.gamma") for name in tensors):
        return "dinobloom"
    raise FormatError(
        f"{path}: holds none of the networks that are known here, as far as its {len(tensors)} tensors tell. "
        f"Say what it is by --kind and --model; kinds: {listing(KINDS)}"
    )


# -- detectors --------------------------------------------------------------------------------------


def yolox_form(path: Path, tensors: Mapping[str, Tensor], model: str | None = None) -> tuple[str, int]:
    """The name of the detector in a file and its number of classes, by the shapes of its stem and its head.

    Raises:
        FormatError: there is no YOLOX in it, or not the one named.
        SettingError: there is no detector of that name.
    """
    if model is not None and model not in DETECTORS:
        hint = did_you_mean(model, DETECTORS)
        raise SettingError(f'no detector "{model}". {hint + " " if hint else ""}Allowed: {listing(DETECTORS)}')
    stem = next((value for name, value in tensors.items() if name.endswith(_STEM)), None)
    head = next((value for name, value in tensors.items() if name.endswith(_CLASSES)), None)
    if stem is None or head is None or not stem.ndim or not head.ndim:
        raise FormatError(f'{path}: holds no YOLOX; there is no "{_STEM}" or no "{_CLASSES}" in it')
    channels = {int(64 * size.width): f"yolox-{name}" for name, size in SIZES.items()}
    found = channels.get(len(stem))
    if model is None and found is None:
        raise FormatError(f"{path}: a YOLOX whose stem has {len(stem)} channels; known: {listing(map(str, channels))}")
    return model or str(found), len(head)


def detector_fit(path: Path, tensors: Mapping[str, Tensor], model: str, classes: int) -> Fit:
    """A detector's tensors in a file; raises FormatError where one is missing or has another shape."""
    with torch.device("meta"):
        wanted = detector(model, classes).state_dict()
    fit = fitted(wanted, tensors)
    fit.require(path, f"{model} with {classes} classes")
    return fit


# -- classifiers ------------------------------------------------------------------------------------


def backbone_of(model: str, side_px: int) -> nn.Module:
    """A classifier's backbone without memory behind it: names and shapes only; raises SettingError as building does."""
    with torch.device("meta"):
        network = classifier(model, classes=1, side_px=side_px, norm="batch", dropout=0, drop_path=0)
    return network.get_submodule("backbone")


def heads(tensors: Mapping[str, Tensor], width: int | None, outputs: Collection[int] = ()) -> Iterator[str]:
    """Prefixes of linear layers: that read `width` features, and have one of these numbers of outputs, where given."""
    for name, weight in tensors.items():
        stem = name.removesuffix("weight")
        bias = tensors.get(f"{stem}bias")
        if stem == name or weight.ndim != 2 or bias is None or tuple(bias.shape) != (len(weight),):
            continue
        if width in (None, weight.shape[1]) and (not outputs or len(weight) in outputs):
            yield stem


def head_of(path: Path, tensors: Mapping[str, Tensor], fit: Fit, width: int, outputs: Collection[int]) -> str:
    """The prefix of the linear layer that reads a backbone's features.

    Raises:
        FormatError: there is none, none with one of these numbers of outputs, or more than one.
    """
    free = {name: tensors[name] for name in fit.unused}
    # The backbone and its head hang from one module; copies of both (averages) hang from another.
    root = fit.prefix.rstrip(".").rpartition(".")[0]
    beside = {name: value for name, value in free.items() if name.startswith(f"{root}." if root else "")}
    found = list(heads(beside, width, outputs)) or list(heads(free, width, outputs))
    if len(found) == 1:
        return found[0]
    if found:
        raise FormatError(f"{path}: several layers could be the head: {listing(found)}. Keep one of them in the file.")
    others = [f'"{stem[:-1]}" with {len(free[f"{stem}weight"])}' for stem in heads(free, width)]
    raise FormatError(
        f"{path}: has no head that reads the backbone's {width} features and answers with "
        f"{' or '.join(map(str, sorted(outputs)))} outputs, one per label. There is: {listing(others) or 'no head'}. "
        "Name its labels by --labels, in the order of the outputs."
    )


def cytologia_model(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Which backbone of CytologIA's winner a file holds, by trying all; raises FormatError where none fits."""
    tried: dict[str, int] = {}
    for known in CYTOLOGIA_CLASSIFIERS:
        if known.model in tried:
            continue
        fit = fitted(backbone_of(known.model, known.side_px).state_dict(), tensors)
        if fit.complete:
            return known.model
        tried[known.model] = len(fit.state)
    nearest = max(tried, key=lambda model: tried[model])
    raise FormatError(
        f"{path}: holds none of {listing(tried)}; nearest is {nearest}, of which {tried[nearest]} tensors fit. "
        "Name its backbone by --model, as timm does."
    )


def known_classifier(model: str, outputs: int) -> CytologiaClassifier | None:
    """The classifier of CytologIA's winner with this backbone and so many outputs, or with this backbone, or None."""
    same = [known for known in CYTOLOGIA_CLASSIFIERS if known.model == model]
    return next((known for known in same if known.outputs == outputs), next(iter(same), None))


# -- backbones alone --------------------------------------------------------------------------------


def unchunked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with blocks counted through; DINOv2's training groups them: "blocks.2.7." is the eighth."""
    return {_BLOCK.sub(r"\1blocks.\2.", name): value for name, value in tensors.items()}


def dinobloom_model(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Which DINOv2 a file holds, by the number of its features; raises FormatError where it is none."""
    token = next((value for name, value in tensors.items() if name.endswith("cls_token")), None)
    width = None if token is None else token.shape[-1]
    if width not in DINOBLOOMS:
        seen = "no class token" if token is None else f"a class token of {width} features"
        raise FormatError(
            f"{path}: is no DINOv2 that is known here: it has {seen}; known: {listing(map(str, DINOBLOOMS))}. "
            "Name its backbone by --model, as timm does."
        )
    return DINOBLOOMS[width]
