"""Ensembles of region networks of which each outlines one cell type, for images whose cells are all of one.

A first ensemble looks at the boxes of an image and says which type they speak for; the ensemble of that type then
outlines the image. A type that has no ensemble of its own is outlined by the first.

Source: the shape is that of the 11th place of the Sartorius challenge (T. Viel), whose sets of networks differ from
type to type.
"""

from __future__ import annotations

from collections.abc import Mapping

from cytolens.labels import LabelSet
from cytolens.predict.region_member import Pixels
from cytolens.predict.region_networks import RegionEnsemble
from cytolens.problems import LabelError, listing
from cytolens.tasks.image_types import majority
from cytolens.tasks.segment import SoftOutlines


class TypedEnsembles:
    """Ensembles by the cell type that they outline.

    Args:
        first: tells the type of an image, and outlines those of types that have no ensemble.
        labels: of all members; a type is one of them.
        of_type: label → its ensemble.

    Raises:
        LabelError: a type is none of the labels, or one type is named by two names.
    """

    def __init__(self, first: RegionEnsemble, labels: LabelSet, of_type: Mapping[str, RegionEnsemble]) -> None:
        try:
            names = [labels.require(name) for name in of_type]
        except LabelError as error:
            raise LabelError(f"a set of networks is for one label, and {error}") from error
        if len(set(names)) < len(names):
            raise LabelError(f"two sets of networks are for the same label: {listing(of_type)}")
        self.first, self.labels = first, labels
        self._of_type = dict(zip(names, of_type.values(), strict=True))

    def type_of(self, pixels: Pixels) -> str | None:
        """The cell type that the boxes of an image (H, W, 3) speak for, or None where there are none."""
        class_scores = self.first.found(self.first.image(pixels))[1]
        best = class_scores.max(axis=1, initial=0)
        kind = majority(class_scores.argmax(axis=1), best, self.first.output.type_score_min)
        return None if kind is None else self.labels.names[kind]

    def look(self, pixels: Pixels) -> SoftOutlines:
        """The cells of an image (H, W, 3) with their soft outlines, best first."""
        if not self._of_type:
            return self.first.look(pixels)
        return self._of_type.get(self.type_of(pixels) or "", self.first).look(pixels)
