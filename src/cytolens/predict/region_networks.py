"""Region networks in prediction: several of them asked together, at each of three stages.

1. Proposals. Objectness and deltas of every anchor are averaged over the members that share their anchors and their
   scale of the picture; members with others make proposals of their own, and the lists are joined. No views here.
2. Boxes. The same proposals go through every member in every view; corners and class scores are averaged. Then one
   suppression, whatever the label.
3. Masks. The boxes that are left go through every member in every view; soft masks are turned back and averaged.

A single network is an ensemble of one. Members are asked one after the other: a stage keeps their means, never their
answers, and what stays in memory between the stages is bounded.

A view flips or turns the image, and the canvas is laid about the result, so that a flipped image is shown in the very
pictures in which the image itself is shown, wherever padding is needed. What the ensemble says at stages 2 and 3 of
given regions therefore follows flips of the image exactly.

Source: the shape of the ensemble is that of the 11th place of the Sartorius challenge (T. Viel); described in
docs/why/three-stage-ensemble.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from cytolens import boxes as box
from cytolens.bundle import Bundle
from cytolens.models.region_settings import AnchorLayout
from cytolens.predict import tta
from cytolens.predict.region_member import Floats, Pixels, RegionMember, Seen, shown, turned_back
from cytolens.problems import LabelError, SettingError, did_you_mean, listing
from cytolens.tasks.region_proposals import Mean, counts, joined, proposals
from cytolens.tasks.segment import PATCH, SegmentOutput, SoftOutlines
from cytolens.views import View

_MB = 1_000_000


class RegionEnsemble:
    """Region networks that answer together.

    Args:
        bundles: the members, all with the same labels.
        output: how their answer is read.
        weights: name of a member → its weight at all stages, 1 where not named.
        device, threads: as of `session`.
        networks_mb: members stay open up to this size of files; those beyond are opened for each stage of each image,
            one at a time.
        maps_mb: what trunks said is kept from stage to stage up to this size; beyond, they look again.

    Raises:
        SettingError: there is no member, or a weight is wrong.
        LabelError: the members have different labels.
        BundleError: a member is no region network.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        output: SegmentOutput,
        weights: Mapping[str, float] | None = None,
        *,
        device: str = "cpu",
        threads: int = 1,
        networks_mb: float = 1024,
        maps_mb: float = 1024,
    ) -> None:
        weighed = _weighed(bundles, weights or {})
        labels = bundles[0].labels.names
        for one in bundles:
            if one.labels.names != labels:
                raise LabelError(
                    f'"{one.name}" has the labels {listing(list(one.labels.names))}, and "{bundles[0].name}" '
                    f"{listing(list(labels))}. Class scores are averaged, so members need the same, in one order."
                )
        self.members = [RegionMember(one, device, threads) for one, weight in weighed if weight > 0]
        self.weights = [weight for _, weight in weighed if weight > 0]
        self.output = output
        self._kinds = len(labels)
        self._stays = np.cumsum([member.size_bytes for member in self.members]) <= networks_mb * _MB
        self._maps_bytes = maps_mb * _MB

    def look(self, pixels: Pixels) -> SoftOutlines:
        """The cells of an image (H, W, 3) with their soft outlines, best first."""
        image = self.image(pixels)
        boxes, class_scores = self.found(image)
        classes = class_scores.argmax(axis=1)
        patches = self.masks(image, boxes, classes)
        return SoftOutlines(
            size_hw=(image.wh[1], image.wh[0]),
            boxes=boxes,
            classes=classes,
            scores=class_scores[np.arange(len(classes)), classes],
            class_scores=class_scores,
            patches=np.round(patches * 255).astype(np.uint8),
        )

    def found(self, image: Looked) -> tuple[Floats, Floats]:
        """Stages 1 and 2: the boxes of the cells of an image (N, 4), best first, and their class scores (N, K)."""
        regions, _ = self.proposals(image)
        return self._distinct(*self.boxes(image, regions), image.wh)

    def image(self, pixels: Pixels) -> Looked:
        """An image (H, W, 3) that the stages are asked about."""
        return Looked(pixels, tta.symmetries((pixels.shape[1], pixels.shape[0]), self.output.views), self._maps_bytes)

    def proposals(self, image: Looked) -> tuple[Floats, Floats]:
        """Stage 1: boxes worth a look in px of the image (N, 4), best first, and their objectness (N).

        Here a member's own shift is left aside: it is less than a proposal is wrong by, and anchors are averaged.
        """
        found = []
        for numbers in self._groups():
            first = self.members[numbers[0]]
            _, view = shown(image.pixels, image.views[0], first.input, (0.0, 0.0))
            found.append(proposals(*self._merged(image, numbers), first.layout, view, self.output))
        return joined(found, self.output)

    def objectness(self, image: Looked) -> list[Floats]:
        """Logits of the anchors on each level, finest first, (places, anchors of a place); of the first members' group.

        They are what `tasks.image_types` tells the cell type of an image from by density.
        """
        numbers = self._groups()[0]
        logits, layout = self._merged(image, numbers)[0], self.members[numbers[0]].layout
        canvas, _ = shown(image.pixels, image.views[0], self.members[numbers[0]].input, (0.0, 0.0))
        ends = np.cumsum(counts(layout, (canvas.shape[1], canvas.shape[0])))[:-1]
        return [level.reshape(-1, len(layout.ratios)) for level in np.split(logits, ends)]

    def _groups(self) -> list[list[int]]:
        """Numbers of the members whose anchors stand at the same places of an image, in the order of the members."""
        groups: dict[tuple[AnchorLayout, float], list[int]] = {}
        for number, member in enumerate(self.members):
            groups.setdefault((member.layout, member.input.magnify), []).append(number)
        return list(groups.values())

    def _merged(self, image: Looked, numbers: Sequence[int]) -> tuple[Floats, Floats]:
        """The mean objectness (A,) and deltas (A, 4) of members that share their anchors."""
        objectness, deltas = Mean(), Mean()
        for number in numbers:
            with self._asking(number) as member:
                seen, _ = self._seen(image, number, member, 0)
            objectness.add(seen.objectness, self.weights[number])
            deltas.add(seen.deltas, self.weights[number])
        return objectness.value(), deltas.value()

    def boxes(self, image: Looked, regions: Floats) -> tuple[Floats, Floats]:
        """Stage 2: boxes in px of the image (N, 4) and class scores (N, K) of regions (N, 4), averaged.

        Every view's box is cut to the image first: what a network sees in the padding is on another side in each.
        """
        if not len(regions):
            return np.zeros((0, 4), np.float32), np.zeros((0, self._kinds), np.float32)
        boxes, scores = Mean(), Mean()

        def ask(member: RegionMember, seen: Seen, view: View, weight: float) -> None:
            told, placed = member.boxes(seen.maps, view.forward_boxes(regions))
            scores.add(told, weight)
            boxes.add(box.clip(view.back_boxes(placed), *image.wh), weight)

        self._ask_all(image, ask)
        return boxes.value(), scores.value()

    def masks(self, image: Looked, boxes: Floats, classes: NDArray[np.intp]) -> Floats:
        """Stage 3: soft masks 0 … 1 of the classes (N) inside boxes (N, 4) of the image, averaged, (N, 28, 28)."""
        if not len(boxes):
            return np.zeros((0, PATCH, PATCH), np.float32)
        masks = Mean()

        def ask(member: RegionMember, seen: Seen, view: View, weight: float) -> None:
            masks.add(turned_back(member.masks(seen.maps, view.forward_boxes(boxes), classes), view), weight)

        self._ask_all(image, ask)
        return masks.value()

    def _distinct(self, boxes: Floats, class_scores: Floats, wh: tuple[int, int]) -> tuple[Floats, Floats]:
        """The boxes inside the image that score and that no better one covers, best first, and their class scores."""
        best = class_scores.max(axis=1, initial=0)
        good = np.flatnonzero(box.valid(boxes, *wh) & (best >= self.output.score_floor))
        keep = good[box.non_maximum_suppression(boxes[good], best[good], self.output.box_nms_iou)[: self.output.most]]
        return boxes[keep], class_scores[keep]

    def _ask_all(self, image: Looked, ask: Callable[[RegionMember, Seen, View, float], None]) -> None:
        """Every member, one after the other, in every view."""
        for number, weight in enumerate(self.weights):
            with self._asking(number) as member:
                for turn in range(len(image.views)):
                    ask(member, *self._seen(image, number, member, turn), weight)

    @contextmanager
    def _asking(self, number: int) -> Iterator[RegionMember]:
        """A member while it is asked; closed afterwards where memory does not hold them all."""
        try:
            yield self.members[number]
        finally:
            if not self._stays[number]:
                self.members[number].close()

    def _seen(self, image: Looked, number: int, member: RegionMember, turn: int) -> tuple[Seen, View]:
        canvas, view = shown(image.pixels, image.views[turn], member.input, member.shift_px)
        return image.kept((number, turn), lambda: member.trunk(canvas)), view


class Looked:
    """An image while an ensemble looks at it: its views, and what trunks said, as far as memory allows.

    Args:
        pixels: the image, shape (H, W, 3).
        views: flips and turns of it.
        most_bytes: of what trunks said; whatever came first stays.
    """

    def __init__(self, pixels: Pixels, views: Sequence[View], most_bytes: float) -> None:
        self.pixels, self.views = pixels, list(views)
        self.wh = (pixels.shape[1], pixels.shape[0])
        self._left_bytes = most_bytes
        self._said: dict[tuple[int, int], Seen] = {}

    def kept(self, key: tuple[int, int], look: Callable[[], Seen]) -> Seen:
        """What a member (number) said of a view (number), or what it says now."""
        if key in self._said:
            return self._said[key]
        seen = look()
        if seen.size_bytes <= self._left_bytes:
            self._said[key] = seen
            self._left_bytes -= seen.size_bytes
        return seen


def _weighed(bundles: Sequence[Bundle], weights: Mapping[str, float]) -> list[tuple[Bundle, float]]:
    names = [one.name for one in bundles]
    if not names:
        raise SettingError("an ensemble of region networks needs at least one member")
    for name, weight in weights.items():
        if name not in names:
            hint = did_you_mean(name, names)
            raise SettingError(f'weights: no member "{name}"; {hint + " " if hint else ""}members: {listing(names)}')
        if names.count(name) > 1:
            raise SettingError(
                f'weights: {names.count(name)} members are called "{name}", so nothing tells which one is meant; train '
                "or pack them under names of their own"
            )
        if not (np.isfinite(weight) and weight >= 0):
            raise SettingError(f'weights: "{name}" has {weight}; allowed: 0 and more')
    weighed = [(one, float(weights.get(one.name, 1))) for one in bundles]
    if not any(weight for _, weight in weighed):
        raise SettingError("weights: all members have weight 0; give at least one a positive weight")
    return weighed
