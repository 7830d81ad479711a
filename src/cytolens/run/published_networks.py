"""From a published weight file to a network that answers: its tensors found, its labels and input as in its training.

What the original was shown is what the bundle shows: stain normalisation is off, a detector's stem is turned
from BGR to RGB when it is exported, a classifier's crop is stretched and normalised as in its training.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from cytolens.bundle import BundleInfo
from cytolens.labels import LabelSet
from cytolens.models import catalog, published
from cytolens.models.checkpoint import Fit, fitted
from cytolens.models.classifier import for_this_size
from cytolens.models.public_weights import WEIGHTS
from cytolens.models.yolox import SIZES
from cytolens.prepare.stain import StainSettings
from cytolens.problems import LabelError, SettingError, listing, written
from cytolens.tasks.classify import ClassifyInput, ClassifyOutput
from cytolens.tasks.detect import DetectInput, DetectOutput
from cytolens.train.export import export_classifier, export_detector

_AS_IT_IS = StainSettings(background=False, density=None)
_MARGIN_PX = 16.0


class ImportSettings(BaseModel):
    """What is known of a weight file besides its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(default="auto", description="yolox, cytologia-detector, cytologia-classifier, dinobloom or auto")
    model: str | None = Field(default=None, description="the network; None: told by the tensors")
    labels: str | None = Field(default=None, description="coco, a shipped label set, or a file of names")
    side_px: int | None = Field(default=None, ge=32, description="side of the network's input; None: as published")
    licence: str | None = Field(default=None, description="terms of the weights; None: as far as known")


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A weight file that was read: where it is, what it is called to its user, and what was asked of it.

    `notes` is added to while a network is made of it: sentences for the user.
    """

    path: Path
    name: str
    sha256: str
    tensors: dict[str, Tensor]
    settings: ImportSettings
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Network:
    """A network on its way into a bundle."""

    network: Any
    info: BundleInfo
    export: Callable[[Any, Path, int], None]
    side_px: int


# -- detectors --------------------------------------------------------------------------------------


def detector(source: WeightFile, kind: published.Kind, out: Path) -> Network:
    """A detector with the weights of a file, and the description of its bundle in the folder `out`.

    Raises:
        FormatError: the file holds no such detector, or not all of it.
        SettingError, LabelError: network, side or labels are wrong, or must be given.
    """
    model, classes = published.yolox_form(source.path, source.tensors, source.settings.model)
    labels = _detector_labels(source, kind, classes)
    side_px = source.settings.side_px
    if side_px is None and kind == "cytologia-detector":
        raise SettingError(
            f"{source.path}: nothing in the file tells the side it was trained at; CytologIA's winner has detectors of "
            "512 and of 640 px. Say it by --side-px."
        )
    side_px = side_px or SIZES[model.removeprefix("yolox-")].side_px
    fit = published.detector_fit(source.path, source.tensors, model, classes)
    network: Any = catalog.detector(model, classes)
    network.load_state_dict(fit.state, strict=False)
    _note_fit(source, fit, {fit.prefix + name for name in fit.state})
    source.notes.append("its scores are not calibrated: findings count from 0.5")
    source.notes.append("images far from square are shown without the grey that filled the original's square canvas")
    output = DetectOutput() if kind == "yolox" else DetectOutput(score_floor=0.001, nms_iou=0.30)
    info = _info(source, kind, out, labels).model_copy(
        update={
            "task": "detect",
            "detect_input": DetectInput(side_px=side_px, stain=_AS_IT_IS),
            "detect_output": output,
            "architecture": {"model": model},
        }
    )
    return Network(network.eval(), info, export_detector, side_px)


def _detector_labels(source: WeightFile, kind: published.Kind, classes: int) -> LabelSet:
    wanted = source.settings.labels
    if wanted is not None:
        labels = label_set(wanted)
    elif kind == "cytologia-detector":
        labels = LabelSet.of(["cell"])  # it learnt white cells, erythroblasts, large platelets and lysed cells alike
    elif classes == len(published.COCO):
        labels = LabelSet.of(published.COCO)
        source.notes.append("80 classes, so its labels are taken for COCO's")
    else:
        raise SettingError(
            f"{source.path}: has {classes} classes without names. Give them in the order of the classes: --labels FILE"
        )
    if len(labels) != classes:
        raise LabelError(
            f"{source.path}: has {classes} classes, but there are {len(labels)} labels: {listing(labels.names)}"
        )
    return labels


# -- classifiers ------------------------------------------------------------------------------------


def classifier(source: WeightFile, kind: published.Kind, out: Path) -> Network:
    """A classifier with the weights of a file, and the description of its bundle in the folder `out`.

    Raises:
        FormatError: the file holds no such backbone, not all of it, or no head for the labels.
        SettingError, LabelError: network, side or labels are wrong, or must be given.
    """
    model = source.settings.model or published.cytologia_model(source.path, source.tensors)
    wanted = source.settings.labels or "cytologia"
    given = label_set(wanted)
    known = published.known_classifier(model, 0)
    side_px = source.settings.side_px or (known.side_px if known else None)
    if side_px is None:
        raise SettingError(f"{source.path}: nothing tells the side that {model} was trained at. Say it by --side-px.")
    backbone: Any = published.backbone_of(model, side_px)
    fit = fitted(backbone.state_dict(), source.tensors)
    if fit.missing:
        fit.require(source.path, f"{model} at {side_px} px")
    width = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    allowed = {len(given.names), len(given.leaves)} | ({len(given.names) + 1} if wanted == "cytologia" else set())
    stem = published.head_of(source.path, source.tensors, fit, width, allowed)
    weight, bias = source.tensors[f"{stem}weight"], source.tensors[f"{stem}bias"]
    network = _with_weights(source, model, side_px, fit, (weight, bias))
    _note_fit(source, fit, {*(fit.prefix + name for name in fit.state), f"{stem}weight", f"{stem}bias"})
    labels, leave_out = _classifier_labels(source, given, len(bias))
    known = published.known_classifier(model, len(bias))
    output = ClassifyOutput(leave_out=leave_out, views=known.views if known else 1)
    if known is not None and known.answers == "sigmoid" and known.outputs == len(bias):
        output = output.model_copy(update={"outputs": "sigmoid"})
        source.notes.append(f"{len(bias)} outputs of {model}: the classifier of whole images, read by sigmoids")
    source.notes.append("its probabilities are not calibrated: temperature 1, sure from 0.5")
    shown = ClassifyInput(side_px=side_px, margin_px=_MARGIN_PX, fit="stretch", stain=_AS_IT_IS)
    normalised = {"mean": list(published.IMAGENET_MEAN), "deviation": list(published.IMAGENET_DEVIATION)}
    info = _info(source, kind, out, labels).model_copy(
        update={
            "task": "classify",
            "classify_input": shown,
            "classify_output": output,
            "architecture": {"model": model, "norm": "batch", **normalised},
        }
    )
    return Network(network, info, export_classifier, side_px)


def _with_weights(source: WeightFile, model: str, side_px: int, fit: Fit, head: tuple[Tensor, Tensor]) -> Any:
    """The classifier with the weights of the file, and the normalisation that they were trained with."""
    network: Any = catalog.classifier(
        model, classes=len(head[1]), side_px=side_px, norm="batch", dropout=0.0, drop_path=0.0
    )
    state = _backbone_state(source, network, fit, f"{model} at {side_px} px")
    network.load_state_dict(state | {"head.weight": head[0], "head.bias": head[1]}, strict=False)
    for name, values in (("mean", published.IMAGENET_MEAN), ("deviation", published.IMAGENET_DEVIATION)):
        own = getattr(network, name)
        wanted = torch.tensor(values).view(1, 3, 1, 1) * 255
        if name == "mean" and not torch.allclose(own, wanted):
            source.notes.append(
                "the network is shown pictures normalised by ImageNet's mean and deviation, as in its training; "
                f"training on from weights.safetensors uses timm's own for {model}"
            )
        setattr(network, name, wanted)
    return network.eval()


def _backbone_state(source: WeightFile, network: Any, fit: Fit, what: str) -> dict[str, Tensor]:
    """The tensors of a classifier's backbone under its names, position embeddings at its size; all must fit."""
    state = {f"backbone.{name}": value for name, value in fit.state.items()}
    for name, _, _ in fit.misfits:
        state[f"backbone.{name}"] = source.tensors[fit.prefix + name]
    state = for_this_size(network, state)
    own = network.state_dict()
    resampled = [name for name, _, _ in fit.misfits if state[f"backbone.{name}"].shape == own[f"backbone.{name}"].shape]
    replace(fit, misfits=tuple(one for one in fit.misfits if one[0] not in resampled)).require(source.path, what)
    source.notes.extend(f"{name} is resampled for {what}" for name in resampled)
    return state


def _classifier_labels(source: WeightFile, given: LabelSet, outputs: int) -> tuple[LabelSet, tuple[str, ...]]:
    """The label set whose leaves are the outputs, in their order; and the names that are never given."""
    if outputs == len(given.leaves):
        return given, ()
    flat = replace(given, parents={})  # each output is a name by itself, also where one is wider than another
    if flat.leaves != given.leaves:
        source.notes.append("its labels stand side by side: where one is a kind of another, the outputs exclude that")
    if outputs == len(given.names):
        return flat, ()
    background = published.BACKGROUND
    source.notes.append(f'output {outputs} is "{background}": it is kept among the labels, and never given as a name')
    return replace(flat, names=(*flat.names, background)), (background,)


# -- backbones alone --------------------------------------------------------------------------------


def starting_weights(source: WeightFile, out: Path) -> Path:
    """A file of weights that `weights = FILE` of a classifier's training takes."""
    from safetensors.torch import save_file

    if out.suffix != ".safetensors":
        raise SettingError(
            f"--out {out}: a backbone without a head can name nothing, so it becomes a file of starting weights. "
            f'Name it "{out.name}.safetensors"'
        )
    settings = source.settings
    model = settings.model or published.dinobloom_model(source.path, source.tensors)
    side_px = settings.side_px or published.DINOBLOOM_PX
    counted = replace(source, tensors=published.unchunked(source.tensors))
    fit = fitted(published.backbone_of(model, side_px).state_dict(), counted.tensors)
    with torch.device("meta"):
        network = catalog.classifier(model, classes=1, side_px=side_px, norm="batch", dropout=0.0, drop_path=0.0)
    state = _backbone_state(counted, network, fit, f"{model} at {side_px} px")
    _note_fit(counted, fit, {fit.prefix + name for name in [*fit.state, *(one[0] for one in fit.misfits)]})
    about = _origin(source, "dinobloom") | {"model": model, "side_px": str(side_px), "licence": settings.licence or ""}
    with written(out) as part:
        save_file({name: value.contiguous().float() for name, value in state.items()}, part, metadata=about)
    source.notes.append(
        f"use it by: cytolens train classify --set model={model} --set input.side_px={side_px} --set weights={out}"
    )
    return out


# -- what all have in common ------------------------------------------------------------------------


def label_set(text: str) -> LabelSet:
    """Labels by name ("coco", or a shipped set such as "cytologia"), or from a file, in the order of the outputs.

    A file is TOML (``names = […]`` or ``[[label]]`` tables), or text with a name in each line.

    Raises:
        LabelError: there is no such set or file, or it has no names.
    """
    path = Path(text)
    if not path.is_file():
        return LabelSet.of(published.COCO) if text == "coco" else LabelSet.shipped(text)
    try:
        content = path.read_text(encoding="utf-8")
        data = tomllib.loads(content) if path.suffix == ".toml" else {"names": content.split("\n")}
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LabelError(f"{path}: is no list of labels ({error})") from error
    rows: Any = data.get("label")
    if isinstance(rows, list):
        return LabelSet.from_rows(rows)
    names = [str(name).strip() for name in data.get("names", ())]
    if not any(names):
        raise LabelError(f"{path}: has no names; one in each line, or TOML with names = […]")
    return LabelSet.of(name for name in names if name)


def _note_fit(source: WeightFile, fit: Fit, used: set[str]) -> None:
    """Say which of the file's tensors were taken, which were not, and what was not there."""
    source.notes.append(
        f'{len(used)} tensors taken, from "{fit.prefix}…"' if fit.prefix else f"{len(used)} tensors taken"
    )
    spare = Counter(".".join(name.split(".")[:2]) for name in source.tensors if name not in used)
    if spare:
        groups = [f"{name} ({count})" if count > 1 else name for name, count in spare.most_common()]
        source.notes.append(f"{spare.total()} tensors not used: {listing(groups, 6)}")
    if fit.others:
        source.notes.append(f"the same network once more, not used: {listing(f'{one}…' for one in fit.others)}")


def _origin(source: WeightFile, kind: published.Kind) -> dict[str, str]:
    return {"file": source.name, "sha256": source.sha256, "kind": kind}


def _info(source: WeightFile, kind: published.Kind, out: Path, labels: LabelSet) -> BundleInfo:
    public = next((one for one in WEIGHTS.values() if one.sha256 == source.sha256), None)
    known, credits = "", []
    if public is not None:
        known, credits = public.licence, [public.credit]
    elif kind.startswith("cytologia"):
        known = "MIT, as the repository MPWARE-TEAM/Cytologia; it names no terms of the training images"
        credits = ["MPWARE-TEAM/Cytologia, winner of the CytologIA challenge"]
    if not (source.settings.licence or known):
        source.notes.append("its licence is not known; --licence says it")
    return BundleInfo(
        name=out.resolve().name,
        task="detect",
        description=f"Imported from {source.name} ({kind}).",
        labels=labels.to_dict(),
        licence=source.settings.licence or known,
        credits=credits,
        training={"imported": _origin(source, kind) | {"notes": list(source.notes)}},
    )
