"""What finds the cells of a field by their outlines: a map network, or one or several region networks together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from cytolens.bundle import Bundle
from cytolens.formats.run_lengths import code_of_positions, positions_of_code
from cytolens.labels import LabelSet
from cytolens.predict import tta
from cytolens.predict.outline_tiles import joined
from cytolens.predict.outlining import FieldOutliner, Pixels, Read, shows
from cytolens.predict.region_networks import RegionEnsemble
from cytolens.predict.tiles import Window, windows
from cytolens.problems import BundleError, listing
from cytolens.tasks.mask_cleaning import cleaned
from cytolens.tasks.segment import Outlines, SegmentOutput, SoftOutlines

_TILE_PX = 1024  # a larger field is looked at by region networks in tiles of this side


class Outliner(Protocol):
    """Finds cells by their outlines."""

    labels: LabelSet

    def look(self, pixels: Pixels) -> Outlines:
        """The cells of a field in memory, uint8 RGB (H, W, 3)."""
        ...

    def look_through(self, read: Read, size_wh: tuple[int, int], sample: Pixels) -> Outlines:
        """The cells of a field of any size, of which parts are read as they are needed."""
        ...


def outliner_of(bundle: Bundle, choice: tta.Tta, device: str) -> Outliner:
    """The outliner of a bundle: of itself, or of its members.

    Raises:
        BundleError: it has several networks that cannot be asked together.
        SettingError: the device is not here.
    """
    members = [one for one in bundle.members_of("segment") if shows(one) != "cell"]
    maps = [one for one in members if shows(one) == "field"]
    if maps and len(members) > 1:
        raise BundleError(
            f'"{bundle.name}" holds {listing([one.name for one in members])}: only region networks are asked together'
        )
    return FieldOutliner(maps[0], choice, device) if maps else RegionOutliner(bundle, members, choice, device)


class RegionOutliner:
    """Region networks with the steps that make cells of what they say; safe to call from several threads.

    Args:
        bundle: whose settings and weights hold: the only member itself, or the ensemble.
        members: the region networks.
        choice: views of each picture.
        device: as of `session`.
    """

    def __init__(self, bundle: Bundle, members: Sequence[Bundle], choice: tta.Tta, device: str) -> None:
        output = bundle.info.segment_output or members[0].info.segment_output or SegmentOutput()
        self.output = output.model_copy(update={"views": tta.count(choice, output.views)})
        self.labels = members[0].labels
        self.ensemble = RegionEnsemble(members, self.output, bundle.info.weights, device=device)

    def soft(self, pixels: Pixels) -> SoftOutlines:
        """What the networks say of a field, before any pixel is decided."""
        return self.ensemble.look(pixels)

    def look(self, pixels: Pixels) -> Outlines:
        """The cells of a field in memory, uint8 RGB (H, W, 3)."""
        size_wh = (pixels.shape[1], pixels.shape[0])
        if max(size_wh) > _TILE_PX:
            return self.look_through(lambda x, y, w, h: pixels[y : y + h, x : x + w], size_wh, pixels)
        soft = self.soft(pixels)
        return replace(cleaned(soft, self.labels, self.output), notes=self._notes([soft]))

    def look_through(self, read: Read, size_wh: tuple[int, int], sample: Pixels) -> Outlines:
        """The cells of a field of any size, tile by tile; see `outline_tiles` for what becomes of those on seams."""
        parts = [
            (window, self.soft(read(window.x, window.y, window.width, window.height)))
            for window in windows(size_wh, _TILE_PX)
        ]
        return replace(joined(parts, size_wh, self.labels, self.output), notes=self._notes([soft for _, soft in parts]))

    def _notes(self, looks: Sequence[SoftOutlines]) -> tuple[str, ...]:
        """A count that stops at a limit says so."""
        full = sum(len(soft.boxes) >= self.output.most for soft in looks)
        if not full:
            return ()
        where = "" if len(looks) == 1 else f" in {full} of {len(looks)} tiles"
        return (
            f"{self.output.most} cells found{where}, which is as many as are kept (output.most): some may be missing",
        )


def moved(window: Window, code: bytes, size_wh: tuple[int, int]) -> bytes:
    """A mask of a window as one of the image."""
    x, y = np.divmod(positions_of_code(code, (window.width, window.height)), window.height)
    return code_of_positions((x + window.x) * size_wh[1] + y + window.y, size_wh)
