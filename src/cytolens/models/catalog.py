"""The networks by name: one literal dict of functions, and one for public weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from cytolens.models.cascade import CascadeMaskRcnn
from cytolens.models.htc import HybridTaskCascade
from cytolens.models.mask_rcnn import MaskRcnn
from cytolens.models.region_network import RegionNetwork
from cytolens.models.region_settings import Family
from cytolens.models.yolox import SIZES, Yolox
from cytolens.problems import SettingError, did_you_mean, listing

DETECTORS: dict[str, Callable[..., Yolox]] = {f"yolox-{size}": partial(Yolox, size=size) for size in SIZES}
REGION_NETWORKS: dict[Family, type[RegionNetwork]] = {
    "mask-rcnn": MaskRcnn,
    "cascade": CascadeMaskRcnn,
    "htc": HybridTaskCascade,
}


def detector(
    name: str, classes: int, attributes: Sequence[int] = (), region_head: str = "small", told: int = 0
) -> Yolox:
    """A detector with freshly drawn weights; `attributes`, `region_head` and `told` as in `Yolox`.

    Raises:
        SettingError: there is no detector of that name.
    """
    if name not in DETECTORS:
        hint = did_you_mean(name, DETECTORS)
        raise SettingError(f'no detector "{name}". {hint + " " if hint else ""}Allowed: {listing(DETECTORS)}')
    return DETECTORS[name](classes=classes, attributes=attributes, region_head=region_head, told=told)


def classifier(
    name: str,
    *,
    classes: int,
    side_px: int,
    norm: str,
    dropout: float,
    drop_path: float,
    attributes: Sequence[int] = (),
    concepts: str = "none",
    exclusive: bool = True,
) -> nn.Module:
    """A classifier with freshly drawn weights; `name` is timm's name of the backbone, the rest as in `Classifier`.

    Raises:
        SettingError: timm has no such network.
    """
    from cytolens.models.classifier import Classifier

    return Classifier(
        backbone=name,
        classes=classes,
        side_px=side_px,
        norm=norm,
        dropout=dropout,
        drop_path=drop_path,
        attributes=attributes,
        concepts=concepts,
        exclusive=exclusive,
    )


def region_network(family: Family, backbone: str, classes: int, **options: Any) -> RegionNetwork:
    """A network of outlines with freshly drawn weights; `backbone` is timm's name.

    Args:
        family: "mask-rcnn", "cascade" (Cascade Mask R-CNN) or "htc" (Hybrid Task Cascade).
        backbone: a network with maps of strides 4, 8, 16 and 32, such as resnet18.
        classes: K, without the background.
        options: `keep_stride`, `freeze_norms`, `drop_path`, `settings`, as in `RegionNetwork`.

    Raises:
        SettingError: there is no such family or backbone, or it cannot serve.
    """
    if family not in REGION_NETWORKS:
        hint = did_you_mean(family, REGION_NETWORKS)
        raise SettingError(f'no family "{family}". {hint + " " if hint else ""}Allowed: {listing(REGION_NETWORKS)}')
    return REGION_NETWORKS[family](backbone, classes, **options)
