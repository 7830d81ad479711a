"""Map networks: an encoder known to timm, and a decoder that climbs back to the resolution of the input.

Shapes: images are (B, 3, H, W) float, RGB, 0 … 255, H and W multiples of 32. The answer is logits of maps (B, M, H, W),
and with types of images their logits (B, T), read from the coarsest features.

Source: Ronneberger et al., "U-Net", MICCAI 2015, for the shape of the decoder.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cytolens.models.pyramid import pad_evenly
from cytolens.problems import SettingError, did_you_mean

_WIDTHS = (24, 32, 48, 64, 96)  # of the decoder from the finest level to the coarsest


class MapNetwork(nn.Module):
    """Encoder, decoder and a head of maps.

    Args:
        backbone: timm's name of the encoder; it must give features at strides 2, 4, 8, 16 and 32.
        maps: number of maps M.
        types: number of types of images T; 0: none are told.
        width: factor on the widths of the decoder.

    Raises:
        SettingError: timm has no such network, or it does not give these strides.
    """

    def __init__(self, backbone: str, maps: int, types: int = 0, width: float = 1.0) -> None:
        super().__init__()
        if not timm.is_model(backbone):
            hint = did_you_mean(backbone, timm.list_models())
            raise SettingError(f'timm has no network "{backbone}". {hint}')
        self.backbone: Any = timm.create_model(backbone, pretrained=False, features_only=True)
        pad_evenly(self.backbone)
        strides, channels = self.backbone.feature_info.reduction(), self.backbone.feature_info.channels()
        if list(strides) != [2, 4, 8, 16, 32]:
            raise SettingError(f'"{backbone}" gives features at strides {strides}; allowed: 2, 4, 8, 16, 32')
        config = self.backbone.default_cfg
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("deviation", torch.tensor(config["std"]).view(1, 3, 1, 1) * 255, persistent=False)
        widths = [max(8, round(one * width / 8) * 8) for one in _WIDTHS]
        self.deepest = _layer(channels[4], widths[4], 1)
        self.climbs = nn.ModuleList(
            _Climb(widths[level + 1], channels[level], widths[level]) for level in reversed(range(4))
        )
        self.finest = nn.Sequential(_layer(widths[0] + 3, widths[0], 3), nn.Conv2d(widths[0], maps, 3, padding=1))
        self.types = nn.Linear(channels[4], types) if types else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) → maps (B, M, H, W), and with types of images their logits (B, T)."""
        scaled = (images - self.mean) / self.deviation
        features = self.backbone(scaled)
        answer = self.deepest(features[4])
        for climb, features_here in zip(self.climbs, reversed(features[:4]), strict=True):
            answer = climb(answer, features_here)
        answer = torch.cat((_smoothly_twice(answer), scaled), dim=1)
        maps = self.finest(answer)
        return (maps,) if self.types is None else (maps, self.types(features[4].mean(dim=(2, 3))))


class _Climb(nn.Module):
    """One level up: twice the resolution, joined with what the encoder saw there."""

    def __init__(self, below: int, beside: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_layer(below + beside, width, 3), _layer(width, width, 3))

    def forward(self, below: Tensor, beside: Tensor) -> Tensor:
        """(B, C, h, w) and (B, C′, 2h, 2w) → (B, width, 2h, 2w)."""
        return self.layers(torch.cat((_twice(below), beside), dim=1))


# Both are written without asking for the size of the picture, so that an exported graph holds for any.


def _twice(maps: Tensor) -> Tensor:
    """(B, C, h, w) → (B, C, 2h, 2w), every value four times."""
    fourfold = torch.arange(maps.shape[1], device=maps.device).repeat_interleave(4)
    return F.pixel_shuffle(maps.index_select(1, fourfold), 2)


def _smoothly_twice(maps: Tensor) -> Tensor:
    """(B, C, h, w) → (B, C, 2h, 2w) by bilinear interpolation between the middles of pixels."""
    sides = torch.tensor([0.25, 0.75, 0.75, 0.25], device=maps.device, dtype=maps.dtype)
    weights = (sides[:, None] * sides).expand(maps.shape[1], 1, 4, 4)
    framed = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    return F.conv_transpose2d(framed, weights, stride=2, padding=3, groups=maps.shape[1])


def _layer(inputs: int, outputs: int, side: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False), nn.BatchNorm2d(outputs), nn.SiLU(inplace=True)
    )
