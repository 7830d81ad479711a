"""Classifiers: any timm backbone with a linear head, and another for attributes where they are asked for.

Shapes: images are (B, 3, S, S) float, RGB, 0 … 255; the backbone's own mean and deviation are
applied inside. The answer is logits (B, K) and the embedding (B, D) they are read from, which
tells how far a cell lies from everything seen in training; behind them come the logits of attributes (B, ΣV), and
where names are read from these, the probabilities (B, ΣV) that they are read from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import group_parameters
from torch import Tensor, nn

from cytolens.models.attributes import AttributeHeads
from cytolens.models.concepts import ConceptHead
from cytolens.problems import SettingError, did_you_mean


class Classifier(nn.Module):
    """A timm backbone and a linear head.

    Args:
        backbone: timm's name of the network.
        classes: number of leaves K.
        side_px: side of the input; backbones with a fixed size (transformers) are built for it.
        norm: "batch" keeps the backbone's norms; "group" exchanges batch norms for group norms, which
            hold no statistics of the training stain.
        dropout: share of the embedding dropped before the head.
        drop_path: share of residual branches dropped.
        attributes: number of values of each attribute; none: cells are only named.
        concepts: "none": names are read from the embedding; "joint" or "sequential": from the attributes alone, and
            what names teach reaches the attributes or not.
        exclusive: whether concepts are a softmax within each attribute; otherwise sigmoids.

    Raises:
        SettingError: timm has no such network, or it cannot be built for this side or with these norms.
    """

    def __init__(
        self,
        *,
        backbone: str,
        classes: int,
        side_px: int,
        norm: str = "batch",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        attributes: Sequence[int] = (),
        concepts: str = "none",
        exclusive: bool = True,
    ) -> None:
        super().__init__()
        self.backbone: Any = _backbone(backbone, side_px, drop_path)
        if norm == "group":
            if not _exchange_norms(self.backbone):
                raise SettingError(f'norm = "group": "{backbone}" has no batch norms to exchange; leave norm = "batch"')
        elif norm != "batch":
            raise SettingError(f'norm = "{norm}"; allowed: batch, group')
        config = self.backbone.pretrained_cfg
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("deviation", torch.tensor(config["std"]).view(1, 3, 1, 1) * 255, persistent=False)
        self.dropout = nn.Dropout(dropout)
        # Some networks read their features through one more layer, whose width is another.
        width = getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features
        self.attributes = AttributeHeads(width, attributes) if attributes else None
        self.head: nn.Module
        if concepts == "none":
            self.head = nn.Linear(width, classes)
        else:
            self.head = ConceptHead(attributes, classes, exclusive=exclusive, detached=concepts == "sequential")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, S, S) → logits (B, K), embedding (B, D), and with attributes their logits (B, ΣV).

        A fourth table (B, ΣV) are the concepts, where names are read from attributes.
        """
        embedding = self.backbone((images - self.mean) / self.deviation)
        dropped = self.dropout(embedding)
        if self.attributes is None:
            return self.head(dropped), embedding
        described = self.attributes(dropped)
        if isinstance(self.head, ConceptHead):
            names, concepts = self.head(described)
            return names, embedding, described, concepts
        return self.head(dropped), embedding, described

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for modules that are frozen: their norms keep their statistics."""
        super().train(mode)
        for module in self.backbone.modules():
            weights = list(module.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                module.eval()
        return self


def freeze(network: Classifier, last: int) -> None:
    """Let only the last blocks of the backbone, and the head, be trained.

    Blocks are those of timm's `group_matcher`: the transformer's blocks, or the residual blocks of all
    stages. A norm or convolution behind the last block goes with it; what reads the features is the head's.

    Args:
        network: is changed: its other weights need no gradient, and their norms keep their statistics.
        last: how many blocks are trained; 0: the head alone.

    Raises:
        SettingError: the backbone has fewer blocks, or timm does not say where they are.
    """
    backbone = network.backbone
    matcher = backbone.group_matcher() if hasattr(backbone, "group_matcher") else None
    if not isinstance(matcher, Mapping):
        raise SettingError("timm does not say what the blocks of this network are, so none can be frozen")
    group: Any = group_parameters(backbone, matcher, reverse=True)  # 0: the stem, then the blocks in order
    known = [one for spec in matcher.values() for one in ([(spec, None)] if isinstance(spec, str) else spec or ())]
    behind = {group[name] for name in group if not any(re.match(pattern, name) for pattern, _ in known)}
    blocks = len(set(group.values()) - {0} - behind)
    if not 0 <= last <= blocks:
        raise SettingError(f"frozen = {last}: the network has {blocks} blocks; allowed: 0 to {blocks}")
    for name, weight in backbone.named_parameters():
        weight.requires_grad_(group[name] > blocks - last)
    network.train(network.training)


def for_this_size(network: Classifier, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Starting weights with position embeddings resampled to the network's own grid of patches.

    Transformers of timm hold one embedding per patch, so weights learnt at another side do not fit as they are.

    Args:
        network: that is to start from them.
        state: tensors by name, as in `network.state_dict()`.
    """
    name, backbone = "backbone.pos_embed", network.backbone
    own, given = getattr(backbone, "pos_embed", None), state.get(name)
    if not isinstance(own, Tensor) or given is None or own.ndim != 3 or given.ndim != 3 or own.shape == given.shape:
        return dict(state)
    prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
    old = round((given.shape[1] - prefix) ** 0.5)
    if old**2 + prefix != given.shape[1] or own.shape[2] != given.shape[2]:
        return dict(state)  # not of this network; loading says which tensors do not fit
    grid = list(backbone.patch_embed.grid_size)
    return {**state, name: resample_abs_pos_embed(given, new_size=grid, num_prefix_tokens=prefix)}


def _backbone(name: str, side_px: int, drop_path: float) -> nn.Module:
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise SettingError(
            f'timm has no network "{name}". {hint} List them: python -c "import timm; print(timm.list_models())"'
        )
    extra: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    config = timm.get_pretrained_cfg(name)
    if config is None or config.fixed_input_size:
        extra["img_size"] = side_px
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, **extra)
    except TypeError as error:
        raise SettingError(f'timm\'s "{name}" does not take {sorted(extra)}: {error}') from error
    _check_patches(name, network, side_px)
    return network


def _check_patches(name: str, network: Any, side_px: int) -> None:
    """Raise where the patches do not fill the picture: the network would not see its right and lower edge."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if patch is None:
        return
    patch_px = patch if isinstance(patch, int) else int(patch[0])
    if side_px % patch_px:
        low = side_px // patch_px * patch_px
        allowed = [side for side in (low, low + patch_px) if side]
        raise SettingError(
            f'input.side_px = {side_px}: "{name}" sees patches of {patch_px} px, so the side is a multiple of it, '
            f"such as {' or '.join(map(str, allowed))}"
        )


def _exchange_norms(module: nn.Module) -> int:
    """Group norm (16 channels per group where they divide) in place of every batch norm; how many there were."""
    found = 0
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            groups = next(g for g in (channels // 16, 4, 1) if g and channels % g == 0)
            norm = nn.GroupNorm(groups, channels)
            # timm fuses the activation into its batch norms; it must survive the exchange.
            act = getattr(child, "act", None)
            setattr(module, name, norm if act is None or isinstance(act, nn.Identity) else nn.Sequential(norm, act))
            found += 1
        else:
            found += _exchange_norms(child)
    return found
