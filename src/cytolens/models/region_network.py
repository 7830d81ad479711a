"""What all region networks share: a backbone, a pyramid, proposals; and the calls that each family answers.

Images are (B, 3, H, W) float, RGB, 0 … 255, with sides that are multiples of 32; the backbone's own mean and deviation
are applied inside. Regions are (N, 5): the number of the image, then x_min, y_min, x_max, y_max in px of the input.
Classes are counted from 0 without the background.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from cytolens.models import pyramid
from cytolens.models.region_heads import BOX_BINS, MASK_BINS, ProposalNetwork, Target
from cytolens.models.region_pooling import pooled
from cytolens.models.region_settings import AnchorLayout, RegionSettings


class RegionNetwork(nn.Module, ABC):
    """A network that proposes regions, names them, corrects their boxes, and draws the cell in each.

    Args:
        backbone: timm's name of a network with maps of strides 4, 8, 16 and 32.
        classes: K, without the background.
        keep_stride: False: the stride of the first convolution is removed; anchors and regions follow.
        freeze_norms: batch norms of the backbone keep what they have.
        drop_path: share of the backbone's residual branches dropped in training.
        settings: of everything above the backbone.

    Attributes:
        anchors: where the anchors lie.
        map_channels: of the four maps that `boxes` and `masks` read.

    Raises:
        SettingError: there is no such backbone, or it cannot serve.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        *,
        keep_stride: bool = True,
        freeze_norms: bool = False,
        drop_path: float = 0.0,
        settings: RegionSettings | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings = settings or RegionSettings()
        self.classes, self.frozen_norms = classes, freeze_norms
        self.backbone = pyramid.features(backbone, keep_stride=keep_stride, drop_path=drop_path)
        self.pyramid = pyramid.pyramid_over(self.backbone, settings.channels)
        self.strides = tuple(stride if keep_stride else stride // 2 for stride in pyramid.STRIDES)
        layout = (*self.strides, 2 * self.strides[-1])
        self.anchors = AnchorLayout(layout, settings.anchor_scale, settings.anchor_ratios)
        self.map_channels: tuple[int, ...] = (settings.channels,) * len(self.strides)
        self.rpn = ProposalNetwork(self.anchors, settings)
        mean, deviation = pyramid.mean_and_deviation(backbone)
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1) * 255, persistent=False)
        self.train(self.training)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The pyramid of images, five maps, finest first."""
        from_backbone = self.backbone((images - self.mean) / self.deviation)
        return list(self.pyramid({str(level): one for level, one in enumerate(from_backbone)}).values())

    def trunk(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Images → their maps, finest first; objectness of the anchors (B, A), logits; deltas (B, A, 4)."""
        maps = self.maps(images)
        return maps, *self.rpn.answers(maps)

    @abstractmethod
    def boxes(self, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """What is in regions (N, 5), by the maps of `trunk`.

        Returns:
            Scores (N, K): softmax over background and classes, without that of the background; boxes (N, 4) in px of
            the input and inside it, of the best class where each has its own.
        """

    @abstractmethod
    def masks(self, maps: Sequence[Tensor], regions: Tensor, classes: Tensor) -> Tensor:
        """The probability (N, 28, 28) that parts of regions (N, 5) belong to a cell of the class given (N,)."""

    @abstractmethod
    def losses(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """What is wrong with the network's answers, for training; regions are drawn by torch's own generator.

        Args:
            images: (B, 3, H, W).
            targets: for each image `boxes` (G, 4) float, `labels` (G,) int64 from 0 to K − 1, `masks` (G, H, W) uint8.

        Returns:
            `class`, `box`, `mask`, `rpn_class`, `rpn_box`; a Hybrid Task Cascade has `semantic`, too. One number each.
        """

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for norms that are frozen."""
        super().train(mode)
        if self.frozen_norms:
            pyramid.freeze_norms(self.backbone)
        return self

    def for_boxes(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """What box heads read of regions (N, 5), shape (N, C, 7, 7)."""
        return pooled(maps[: len(self.strides)], regions, self.strides, BOX_BINS, self.settings.aligned)

    def for_masks(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """What mask heads read of regions (N, 5), shape (N, C, 14, 14)."""
        return pooled(maps[: len(self.strides)], regions, self.strides, MASK_BINS, self.settings.aligned)
