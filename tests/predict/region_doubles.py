"""Doubles of region networks: the three pieces, in NumPy, with a known way of looking beside the mark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.bundle import Bundle, BundleInfo
from cytolens.labels import LabelSet
from cytolens.models.region_settings import AnchorLayout
from cytolens.predict import region_member
from cytolens.predict.region_networks import RegionEnsemble
from cytolens.tasks.region_proposals import anchors
from cytolens.tasks.segment import SegmentInput, SegmentOutput

KINDS = ("round", "long", "star")
LAYOUT = AnchorLayout((4, 8, 16, 32, 64), 4.0, (0.5, 1.0, 2.0))
Array = NDArray[Any]


class RegionEyes:
    """The three pieces of a network that reads darkness.

    What it sees at x lies at x + offset, in px of its input: its regions, boxes and masks are all beside the mark by
    that much. It follows mirroring else, unless it is lopsided: then it believes more in what is to the left, draws
    masks that fade to the right, and boxes that lean downwards and reach too far right.
    """

    def __init__(
        self,
        offset: tuple[float, float] = (0, 0),
        *,
        lopsided: float = 0.0,
        sharpness: float = 6.0,
        layout: AnchorLayout = LAYOUT,
    ) -> None:
        self.offset, self.lopsided, self.sharpness, self.layout = np.array(offset), lopsided, sharpness, layout
        self.calls: list[str] = []

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """As the session of the piece that these outputs are of."""
        self.calls.append(outputs[-1])
        if "images" in feeds:
            assert list(outputs) == ["map_0", "map_1", "map_2", "map_3", "objectness", "deltas"]
            return self._trunk(feeds["images"])
        regions = feeds["regions"]
        assert regions.dtype == np.float32
        assert regions.shape[1] == 5
        assert (regions[:, 0] == 0).all()
        darkness = feeds["map_0"][0, 0]
        if list(outputs) == ["scores", "boxes"]:
            return self._boxes(darkness, regions[:, 1:])
        assert list(outputs) == ["masks"]
        assert feeds["classes"].dtype == np.int64
        return [self._masks(darkness, regions[:, 1:], feeds["classes"])]

    def _trunk(self, images: Array) -> list[Array]:
        assert images.dtype == np.uint8
        assert len(images) == 1
        assert images.shape[1] % 32 == images.shape[2] % 32 == 0
        darkness = (1 - images[0].astype(np.float32).mean(axis=2) / 255)[None, None]
        placed = anchors(self.layout, (images.shape[2], images.shape[1]))
        inside = self._sampled(darkness[0, 0], placed, 4).mean(axis=(1, 2))
        deltas = np.stack([inside, -inside, inside / 4, -inside / 4], axis=1)
        maps = [darkness, *[np.zeros((1, 1, 1, 1), np.float32)] * 3]
        return [*maps, (20 * (inside[None] - 0.3)).astype(np.float32), deltas[None].astype(np.float32)]

    def _sampled(self, darkness: Array, regions: Array, bins: int) -> Array:
        """Darkness at the middles of bins of regions (N, 4), between pixels bilinear; shape (N, bins, bins)."""
        height, width = darkness.shape
        steps = (np.arange(bins) + 0.5) / bins
        sizes = box.sizes_wh(regions.astype(np.float64))
        x = np.clip(regions[:, :1] + steps * sizes[:, :1] + self.offset[0] - 0.5, 0, width - 1.001)
        y = np.clip(regions[:, 1:2] + steps * sizes[:, 1:] + self.offset[1] - 0.5, 0, height - 1.001)
        left, top = x.astype(int)[:, None, :], y.astype(int)[:, :, None]
        to_right, down = x[:, None, :] - left, y[:, :, None] - top
        return (darkness[top, left] * (1 - to_right) + darkness[top, left + 1] * to_right) * (1 - down) + (
            darkness[top + 1, left] * (1 - to_right) + darkness[top + 1, left + 1] * to_right
        ) * down

    def _boxes(self, darkness: Array, regions: Array) -> list[Array]:
        seen = self._sampled(darkness, regions, 9)
        sizes = np.tile(box.sizes_wh(regions), 2)
        # Edges draw in where little is dark beside them.
        edges = (seen[:, :, :3], seen[:, :3], seen[:, :, 6:], seen[:, 6:])
        beside = np.stack([edge.mean(axis=(1, 2)) for edge in edges], axis=1)
        inwards = (1 - beside) * sizes * np.array([0.2, 0.2, -0.2, -0.2])
        lean = self.lopsided * sizes * np.array([0, 0.1, 0.2, 0.2])
        middle, spread = seen[:, 3:6, 3:6].mean(axis=(1, 2)), seen.std(axis=(1, 2))
        to_right = regions[:, [0, 2]].mean(axis=1) / darkness.shape[1]
        logits = self.sharpness * np.stack(
            [middle, spread, 1.2 * middle - spread, 0.5 - self.lopsided * (0.3 - 0.6 * to_right)], axis=1
        )
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return [shares[:, :3].astype(np.float32), (regions + inwards + lean).astype(np.float32)]

    def _masks(self, darkness: Array, regions: Array, classes: Array) -> Array:
        seen = self._sampled(darkness, regions, 28)
        fade = 1 - self.lopsided * np.linspace(0, 0.5, 28)
        return np.clip(seen * fade * (1 - 0.1 * classes[:, None, None]), 0, 1).astype(np.float32)


def outlining(
    name: str = "eyes",
    *,
    layout: AnchorLayout = LAYOUT,
    shift_px: Sequence[float] = (0.0, 0.0),
    names: Sequence[str] = KINDS,
    magnify: float = 1.0,
    **architecture: Any,
) -> Bundle:
    """The bundle of a region network, without files."""
    described = {
        "kind": "regions",
        "anchors": {"strides": list(layout.strides), "scale": layout.scale, "ratios": list(layout.ratios)},
        "mirror_shift_px": list(shift_px),
    }
    info = BundleInfo(
        name=name,
        task="segment",
        labels=LabelSet.of(names).to_dict(),
        architecture=described | architecture,
        segment_input=SegmentInput(magnify=magnify),
        segment_output=SegmentOutput(),
    )
    return Bundle(Path("nowhere"), info, "0123456789ab", {})


def connect(patch: pytest.MonkeyPatch, **eyes: RegionEyes) -> list[tuple[str, str]]:
    """Let members find these, by the name of the bundle, in place of ONNX Runtime; what was opened is noted."""
    opened: list[tuple[str, str]] = []

    def session(bundle: Bundle, device: str = "cpu", threads: int = 1, *, file: str = "model.onnx") -> Any:
        opened.append((bundle.name, file))
        return eyes[bundle.name]

    patch.setattr(region_member, "session", session)
    return opened


def ensemble(
    patch: pytest.MonkeyPatch, *eyes: RegionEyes, weights: Mapping[str, float] | None = None, **output: Any
) -> RegionEnsemble:
    """An ensemble of doubles, called a, b, c …; what they look beside the mark by is told it."""
    names = "abcdefgh"[: len(eyes)]
    connect(patch, **dict(zip(names, eyes, strict=True)))
    bundles = [
        outlining(name, layout=one.layout, shift_px=(-one.offset).tolist())
        for name, one in zip(names, eyes, strict=True)
    ]
    return RegionEnsemble(bundles, SegmentOutput(**output), weights)
