"""Backbones of timm as the bottom of a feature pyramid: four maps, each of half the size of the one before.

The stride of the first convolution can be removed, with the weights as they are: then all maps are twice as large, so
that small objects are seen without magnifying the image. Source: the spec of Sartorius, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from cytolens.problems import SettingError, did_you_mean

STRIDES = (4, 8, 16, 32)  # of the four maps while the first convolution has its stride
_LEVELS = len(STRIDES)


class EvenConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding for inputs whose sides are multiples of its stride.

    TensorFlow pads more at the lower right. For such sides the amount does not depend on the input, and so a network
    can be exported with free sides.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C′, H / stride, W / stride)."""
        padding: list[int] = []
        for kernel, stride, dilation in zip(
            self.kernel_size[::-1], self.stride[::-1], self.dilation[::-1], strict=True
        ):
            total = max((kernel - 1) * dilation + 1 - stride, 0)
            padding += [total // 2, total - total // 2]
        return F.conv2d(F.pad(input, padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def features(name: str, *, keep_stride: bool = True, drop_path: float = 0.0) -> Any:
    """A timm backbone that gives its maps of strides 4, 8, 16 and 32, or 2, 4, 8 and 16.

    Args:
        name: timm's name of the network.
        keep_stride: False: the first convolution looks at every pixel instead of every second.
        drop_path: share of residual branches dropped.

    Raises:
        SettingError: timm has no such network, or it has no such maps, or not for images of any size.
    """
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise SettingError(
            f'timm has no network "{name}". {hint} List them: python -c "import timm; print(timm.list_models())"'
        )
    extra: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        network: Any = timm.create_model(
            name, pretrained=False, features_only=True, out_indices=tuple(range(-_LEVELS, 0)), **extra
        )
        strides = tuple(network.feature_info.reduction())
    except (TypeError, RuntimeError, ValueError, AssertionError, AttributeError, IndexError) as error:
        raise SettingError(f'backbone = "{name}": timm cannot take maps from it as asked: {error}') from error
    config = timm.get_pretrained_cfg(name)
    if strides != STRIDES or getattr(network, "output_fmt", None) == "NHWC" or (config and config.fixed_input_size):
        raise SettingError(
            f'backbone = "{name}" gives maps of strides {strides}; needed are {STRIDES}, channels first, for images '
            "of any size, as from resnet18, resnet50, resnext101_32x4d or tf_efficientnet_b4"
        )
    pad_evenly(network)
    if not keep_stride:
        remove_stride(network, name)
    return network


def remove_stride(network: nn.Module, name: str) -> None:
    """Set the stride of a backbone's first convolution from 2 to 1.

    Args:
        network: is changed; its weights stay as they are.
        name: timm's, for the message.

    Raises:
        SettingError: the first convolution has another stride.
    """
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if first.stride != (2, 2):
        raise SettingError(
            f'keep_stride = false: the first convolution of "{name}" has the stride {first.stride[0]}, not 2; '
            "keep it, or take a backbone such as resnet18 or tf_efficientnet_b4"
        )
    first.stride = (1, 1)


def pyramid_over(network: Any, channels: int) -> FeaturePyramidNetwork:
    """A pyramid of five maps with so many channels each, over the four of a backbone.

    Source: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017; the fifth is every second place of
    the fourth.
    """
    return FeaturePyramidNetwork(network.feature_info.channels(), channels, LastLevelMaxPool())


def mean_and_deviation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What the backbone's published weights were normalised by, for channels of 0 … 1."""
    config: Any = timm.get_pretrained_cfg(name)
    given: Mapping[str, Any] = config.to_dict() if config is not None else {}
    return tuple(given.get("mean", (0.485, 0.456, 0.406))), tuple(given.get("std", (0.229, 0.224, 0.225)))


def freeze_norms(network: nn.Module) -> None:
    """Let batch norms keep their statistics, scale and shift; to be called after each change to training mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(False)


def pad_evenly(module: nn.Module) -> None:
    """An `EvenConv2d` with the same weights in place of each convolution that reckons its padding at run time."""
    for name, child in module.named_children():
        if type(child) is Conv2dSame:
            setattr(module, name, _even(child))
        else:
            pad_evenly(child)


def _even(given: Any) -> EvenConv2d:
    even = EvenConv2d(
        given.in_channels,
        given.out_channels,
        (given.kernel_size[0], given.kernel_size[1]),
        (given.stride[0], given.stride[1]),
        dilation=(given.dilation[0], given.dilation[1]),
        groups=given.groups,
        bias=given.bias is not None,
    )
    even.weight, even.bias = given.weight, given.bias
    return even
