"""Training a detector that also describes: boxes, names and attributes of cells from one pass of one network."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytolens.dataset import Dataset
from cytolens.models.attributes import UNKNOWN, asymmetric_terms, cross_entropy_terms, mean_of_known, weights_of
from cytolens.models.regions import RegionHead, as_regions, with_gradient
from cytolens.tasks.attributes import known_partners, value_indices, widths
from cytolens.tasks.cell_scale import box_scale_features, red_index, ruler_px
from cytolens.tasks.detect import Findings
from cytolens.train.augment_field import FieldSample
from cytolens.train.description import value_macro_f1
from cytolens.train.detection import DetectModule, DetectTraining
from cytolens.train.detection_loss import Truth
from cytolens.views import View


class DescribingDetectModule(DetectModule):
    """A detector with attributes in training.

    Learns attributes at the annotated boxes, moved a little; on the tuning part it is scored where cells are found,
    as in prediction.

    Args:
        settings: of the training.
        tuning: the tuning part, in labels with the attributes to learn.
        samples: the training's fields; the weights of values follow from them.
    """

    def __init__(self, settings: DetectTraining, tuning: Dataset, samples: list[FieldSample]) -> None:
        super().__init__(settings, tuning)
        self.values = widths(tuning.labels.attributes)
        known = torch.from_numpy(np.concatenate([sample.values[~sample.ignored] for sample in samples]))
        self.value_weights: Tensor
        self.register_buffer("value_weights", weights_of(known, self.values, settings.attribute_balance))
        self._by_image = dict(tuning.cells.by_image())
        self._annotated = int((value_indices(tuning.cells) != UNKNOWN).any(axis=1).sum())
        self._um_per_px = {row["image_id"]: row["um_per_px"] for row in tuning.images.rows()}
        self._logits: list[NDArray[np.float32]] = []
        self._known: list[NDArray[np.int8]] = []

    @property
    def head(self) -> RegionHead:
        """The network's head of attributes."""
        assert self.network.attributes is not None
        return self.network.attributes

    def said(self, images: Tensor, truths: list[Truth]) -> tuple[Tensor, dict[str, Tensor]]:
        """The raw output for images, and the weighted loss of the attributes of all cells of the batch."""
        raw, maps = self.network.look(images)
        regions, sides, scales, values = (
            [getattr(truth, name) for truth in truths] for name in ("regions", "sides_px", "scales", "values")
        )
        logits = self.head(
            with_gradient(maps, self.settings.attribute_gradient),
            as_regions(regions),
            torch.cat(sides),
            torch.cat(scales) if self.head.told else None,
        )
        return raw, {"loss_attributes": self.settings.attribute_share * self.value_loss(logits, torch.cat(values))}

    def value_loss(self, logits: Tensor, values: Tensor) -> Tensor:
        """The mean loss of all values that are known: logits (N, ΣV) against indices or −1 (N, A)."""
        terms = asymmetric_terms if self.settings.attribute_loss == "asymmetric" else cross_entropy_terms
        return mean_of_known(terms(logits, values, self.values), values, self.values, self.value_weights)

    def describe(self, found: Findings, view: View, maps: tuple[Tensor, Tensor], image_id: str) -> None:
        """Read the attributes of the cells that were found in one image, where the truth knows some."""
        truth = self._by_image.get(image_id)
        if truth is None:
            return
        rows, values = known_partners(truth, found.boxes)
        if not len(rows):
            return
        seen = torch.from_numpy(np.asarray(view.forward_boxes(found.boxes[rows]), np.float32)).to(self.device)
        scales = None
        if self.head.told:
            ruler = ruler_px(found, red_index(self.tuning.labels), self._um_per_px[image_id])
            scales = torch.from_numpy(box_scale_features(found.boxes[rows], ruler)).to(self.device)
        self._logits.append(self.head(maps, as_regions([seen]), scales=scales).float().cpu().numpy())
        self._known.append(values)

    def score(self, of_boxes: float) -> float:
        """The mean of the score of the boxes and that of the attributes.

        The latter is their mean macro-F1 times the share of the described cells that were found: whoever finds one
        cell and describes it well is not the best.
        """
        of_values: dict[str, float] = {}
        if self._logits:
            of_values = value_macro_f1(np.concatenate(self._logits), np.concatenate(self._known), self.tuning.labels)
        found = sum(map(len, self._known)) / max(self._annotated, 1)
        self._logits, self._known = [], []
        described = float(np.mean(list(of_values.values()))) if of_values else 0.0
        self.log("f1_attributes", described, prog_bar=True)
        self.log_dict({f"f1 {a.column}": of_values.get(a.column, 0.0) for a in self.tuning.labels.attributes})
        return (of_boxes + found * described) / 2
