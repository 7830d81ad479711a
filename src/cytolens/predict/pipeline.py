"""Detect → crop → classify, for one field."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens.bundle import Bundle
from cytolens.images import MAX_PIXELS
from cytolens.labels import LabelSet
from cytolens.predict.blasts import BlastSettings, blast_labels
from cytolens.predict.describe import Describers, attribute_outputs
from cytolens.predict.ensemble import Finders, Namers, given_labels, namers_of
from cytolens.predict.familiarity import FILE, Familiarity, field_measures, outside
from cytolens.predict.field_cells import FieldCells, of_outlines, with_outlines
from cytolens.predict.outliners import outliner_of
from cytolens.predict.outlining import CellOutliner, Read, shows
from cytolens.predict.tiles import joined, sampled, tile_from_ruler, windows
from cytolens.predict.tta import Tta
from cytolens.prepare import crops, stain
from cytolens.prepare.stain import FieldStain
from cytolens.problems import BundleError
from cytolens.tasks import classify
from cytolens.tasks.attributes import describable
from cytolens.tasks.cell_scale import RED_CELL_UM, red_cell_size, red_index
from cytolens.tasks.detect import Findings


class PredictSettings(BaseModel):
    """How images are predicted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile_px: int | None = Field(
        default=None, ge=64, description="side of a tile in px of the image; None: chosen by the red cells"
    )
    whole_px: int = Field(default=1400, ge=64, description="images up to this side are looked at whole first")
    max_pixels: int = Field(default=MAX_PIXELS, gt=0, description="larger plain images are refused")
    jobs: int = Field(default=0, ge=0, description="images at a time; 0: one per core")
    device: str = Field(default="cpu", description="cpu, cuda or openvino")
    blasts: BlastSettings = BlastSettings()
    tta: Tta = Field(default="bundle", description="views of each picture: none, flip, flips or all")


class Predictor:
    """A bundle, ready to look at images. Safe to call from several threads.

    Raises:
        BundleError: the bundle has nothing to predict with.
        SettingError: the device is not here.
    """

    def __init__(self, bundle: Bundle, settings: PredictSettings | None = None) -> None:
        self.bundle, self.settings = bundle, settings or PredictSettings()
        settings = self.settings
        self.labels: LabelSet = given_labels(bundle)
        blast_labels(self.labels, settings.blasts)  # a wrong name is better known before the work than after
        detecting, naming = bundle.member("detect"), next(iter(namers_of(bundle)), None)
        fields = [one for one in bundle.members_of("segment") if shows(one) != "cell"]
        cells = [one for one in bundle.members_of("segment") if shows(one) == "cell"]
        if detecting is None and naming is None and not fields and not cells:
            raise BundleError(f'the bundle "{bundle.name}" has neither a detector nor a classifier nor outlines')
        self._outliner = outliner_of(bundle, settings.tta, settings.device) if fields else None
        self._cell_outliners = [CellOutliner(one, settings.tta, settings.device) for one in cells]
        self._detecting = detecting
        self._finders = None if detecting is None else Finders(bundle, settings.tta, settings.device)
        self._namers = None if naming is None else Namers(bundle, self.labels, settings.tta, settings.device)
        self._describers = Describers(bundle, settings.tta, settings.device)
        self.attribute_outputs = attribute_outputs(bundle)
        self._familiarity = None
        if naming is not None and (file := naming.file(FILE)) is not None:
            self._familiarity = Familiarity.from_bytes(file.read_bytes())
        if detecting is not None and self._finders is not None:
            names = detecting.labels.names
            self._found_names = [self.labels.require(name) for name in names]
            self._red = red_index(detecting.labels)
            self._to_be_named = set(bundle.info.name_these) if naming is not None else set()
            self._told_apart = self._leaves_told_apart()
            self._thresholds = np.array([self._finders.output.threshold(name) for name in names], np.float32)

    def _leaves_told_apart(self) -> NDArray[np.bool_]:
        """Leaves that the detector finds as labels of their own: it has looked, and said something else."""
        own = [name for name in self._found_names if name not in self._to_be_named]
        return np.array([any(self.labels.is_a(leaf, name) for name in own) for leaf in self.labels.leaves], bool)

    # -- one field ------------------------------------------------------------------------------

    def field(
        self, pixels: NDArray[np.uint8], um_per_px: float | None = None, red_cell_px: float | None = None
    ) -> FieldCells:
        """The cells of one image; without a detector the image is taken for one cell.

        Args:
            pixels: uint8 RGB, shape (H, W, 3).
            um_per_px: resolution, where it is known.
            red_cell_px: diameter of a red cell in px, where it is known, as from another part of the image.
        """
        if self._outliner is not None:
            return of_outlines(self._outliner.look(pixels), self.labels)
        if self._finders is None:
            whole = np.array([[0, 0, pixels.shape[1], pixels.shape[0]]], np.float32)
            if self._namers is None:
                return self._outlined(_one_cell(whole, self._cell_outliners[0]), pixels)
            return self.named(pixels, whole, np.full(1, np.nan, np.float32), np.ones(1, bool))
        field = stain.measure(pixels)
        if um_per_px:
            red_cell_px = RED_CELL_UM / um_per_px
        found = self._found(pixels, field, red_cell_px)
        names = [self._found_names[i] for i in found.classes]
        counted = found.scores >= self._thresholds[found.classes]
        asked = np.array([name in self._to_be_named for name in names], bool) & counted
        answer = self._answer(pixels, field, found.boxes, list(names), found.scores, counted, asked)
        # Who finds a cell may describe it, too; the name may have become another since, that nobody described.
        everyone = np.arange(len(names))
        told = answer.attributes | self._told(found.attributes, everyone, answer.labels)
        return self._outlined(replace(answer, attributes=told), pixels, field)

    @property
    def outlines_fields(self) -> bool:
        """Whether cells are found by their outlines, so that a field of any size may be read through `through`."""
        return self._outliner is not None

    def through(self, read: Read, size_wh: tuple[int, int], sample: NDArray[np.uint8]) -> FieldCells:
        """The cells of a field of any size, found by their outlines, of which parts are read as they are needed.

        Args:
            read: gives the pixels at x, y, width, height.
            size_wh: of the field.
            sample: pixels of the field as they are, (h, w, 3); its levels are measured there.

        Raises:
            BundleError: the bundle does not outline fields.
        """
        if self._outliner is None:
            raise BundleError(f'"{self.bundle.name}" does not find cells by their outlines')
        return of_outlines(self._outliner.look_through(read, size_wh, sample), self.labels)

    def _outlined(self, cells: FieldCells, pixels: NDArray[np.uint8], field: FieldStain | None = None) -> FieldCells:
        for outliner in self._cell_outliners:
            cells = with_outlines(cells, outliner, pixels, self.labels, field)
        return cells

    def named(
        self,
        pixels: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        counted: NDArray[np.bool_],
    ) -> FieldCells:
        """The same boxes (N, 4), those that count named by the classifier; what found them had its say already.

        Args:
            pixels: uint8 RGB, shape (H, W, 3).
            boxes: where the cells are.
            scores: shape (N,); NaN (said by a person) becomes the probability of the likeliest kind.
            counted: which of them are asked for, shape (N,).

        Raises:
            BundleError: the bundle has no classifier.
        """
        if self._namers is None:
            raise BundleError(f'the bundle "{self.bundle.name}" has no classifier to name given boxes with')
        field = stain.measure(pixels)
        answer = self._answer(pixels, field, boxes, [None] * len(boxes), scores, counted, counted, told_apart=False)
        likeliest = np.nan_to_num(answer.probabilities).max(axis=1, initial=0.0)
        answer = replace(answer, scores=np.where(np.isnan(scores), likeliest, scores).astype(np.float32))
        return self._outlined(answer, pixels, field)

    def _found(self, pixels: NDArray[np.uint8], field: FieldStain, red_cell_px: float | None) -> Findings:
        """The detectors' findings, over tiles where the image asks for them."""
        assert self._finders is not None
        size_wh = (pixels.shape[1], pixels.shape[0])
        tile_px = self.settings.tile_px or self._tile_px(pixels, field, red_cell_px)
        if tile_px is None:
            return self._look(pixels, field, red_cell_px)
        if self._finders.scaled and not red_cell_px:
            red_cell_px = self._red_cell_px(pixels, field)  # of the field: one of its tiles may show too few
        parts = [(window, self._look(window.of(pixels), field, red_cell_px)) for window in windows(size_wh, tile_px)]
        return joined(parts, size_wh, self._finders.output)

    def _look(self, pixels: NDArray[np.uint8], field: FieldStain, red_cell_px: float | None = None) -> Findings:
        """The detectors' findings in one picture."""
        assert self._finders is not None
        return self._finders.look(pixels, field, red_cell_px)

    def _tile_px(self, pixels: NDArray[np.uint8], field: FieldStain, red_cell_px: float | None) -> int | None:
        """The side of the tiles in which a red cell has the size that the detector knows; None: look at it whole."""
        assert self._finders is not None
        size_wh = (pixels.shape[1], pixels.shape[0])
        known = self._known_red_cell_px()
        if known is None or max(size_wh) <= self.settings.whole_px:
            return None
        size = red_cell_px or self._red_cell_px(pixels, field)
        if size is None:
            return None
        wanted = tile_from_ruler(size, self._finders.side_px, known)
        return None if wanted >= max(size_wh) else wanted

    def red_cell_px(self, pixels: NDArray[np.uint8]) -> float | None:
        """The diameter in px of the red cells of an image (H, W, 3), or None where too few are seen to tell."""
        if self._detecting is None or self._known_red_cell_px() is None:
            return None
        return self._red_cell_px(pixels, stain.measure(pixels))

    def _known_red_cell_px(self) -> float | None:
        """The size of a red cell in the detector's input, as it learnt it."""
        assert self._detecting is not None
        return float(self._detecting.info.architecture.get("red_cell_px", 0)) or None

    def _red_cell_px(self, pixels: NDArray[np.uint8], field: FieldStain) -> float | None:
        """Looked for through windows of falling size, until the red cells seen are large enough to be sure of."""
        assert self._finders is not None
        side_px, size_wh = self._finders.side_px, (pixels.shape[1], pixels.shape[0])
        least = 0.5 * (self._known_red_cell_px() or 0)
        side = max(size_wh)
        while side >= side_px / 2:
            for window in sampled(size_wh, side):
                size = red_cell_size(self._look(window.of(pixels), field), self._red)
                if size is not None and size * side_px / max(window.width, window.height) >= least:
                    return size
            side //= 2
        return None

    def _answer(
        self,
        pixels: NDArray[np.uint8],
        field: FieldStain,
        boxes: NDArray[np.float32],
        names: list[str | None],
        scores: NDArray[np.float32],
        counted: NDArray[np.bool_],
        asked: NDArray[np.bool_],
        told_apart: bool = True,
    ) -> FieldCells:
        """Put names to the boxes asked for, and mark what a person should look at."""
        table = np.full((len(boxes), len(self.labels.leaves)), np.nan, np.float32)
        reasons: dict[str, NDArray[np.bool_]] = {}
        rows = np.flatnonzero(asked)
        described: dict[str, NDArray[np.float32]] = {}
        concepts = None
        if self._namers is not None and len(rows):
            output = self._namers.output
            said = self._namers.look(pixels, boxes[rows], field)
            table[rows], embedding = said.table, said.embedding
            described = said.attributes | self._describers.look(pixels, boxes[rows], field)
            if said.concepts is not None:
                concepts = np.full((len(boxes), said.concepts.shape[1]), np.nan, np.float32)
                concepts[rows] = said.concepts
            if counted.sum() == 1 and len(rows) == 1:
                table[rows] = self._namers.with_image(table[rows], pixels)
            table[rows] = classify.with_evidence(table[rows], self._weights(told_apart))
            given, unsure = classify.decide(table[rows], self.labels, output.sure, [names[row] for row in rows])
            for row, name in zip(rows, given, strict=True):
                names[row] = name
            strange = self._familiarity.strangers(embedding) if self._familiarity else np.zeros(len(rows), bool)
            for reason, which in (("unsure name", unsure), ("unlike training cells", strange)):
                reasons[reason] = np.zeros(len(boxes), bool)
                reasons[reason][rows] = which
        remarks = tuple(outside(field_measures(pixels, field), self.bundle.info.field_ranges))
        if remarks:
            reasons["unlike training fields"] = asked
        refer = np.logical_or.reduce([np.zeros(len(boxes), bool), *reasons.values()])
        reasons = {reason: which for reason, which in reasons.items() if which.any()}
        told = self._told(described, rows, names)
        return FieldCells(boxes, names, scores, table, counted, refer, remarks, reasons, told, concepts=concepts)

    def _weights(self, told_apart: bool) -> NDArray[np.float64]:
        """What each leaf's probability is weighed with, shape (K,): how common it is, and what the detector said."""
        assert self._namers is not None
        output = self._namers.output
        weights = classify.prior_weights(output.prior, self.labels)
        if self._finders is not None and told_apart:
            weights = weights * np.where(self._told_apart, output.elsewhere, 1.0)
        return weights

    @property
    def scaled(self) -> bool:
        """Whether cells are described by their size in red cells of the field."""
        return self._finders is not None and self._finders.scaled

    @property
    def names_cells(self) -> bool:
        """Whether a classifier gives names."""
        return self._namers is not None

    def region(self, cell: NDArray[np.float32], size_wh: tuple[int, int]) -> NDArray[np.float64]:
        """The part of a field that the first classifier is shown of a cell: from its box (4,), a box (4,).

        Raises:
            BundleError: the bundle has no classifier.
        """
        return crops.region(cell, size_wh, self._asked().bundles[0].info.classify_input or classify.ClassifyInput())

    def shares(self, pixels: NDArray[np.uint8], cell: NDArray[np.float32], field: FieldStain) -> NDArray[np.float32]:
        """Probabilities (K,) over the leaves of a cell at a box (4,), as `field` gives them.

        What classifiers of whole images would add is left out.

        Args:
            pixels: uint8 RGB, shape (H, W, 3).
            cell: its box.
            field: the stain of the field, so that a changed cell does not change how it is seen.

        Raises:
            BundleError: the bundle has no classifier.
        """
        table, _ = self._asked().shares(pixels, cell[None], field)
        return classify.with_evidence(table, self._weights(told_apart=True))[0]

    def _asked(self) -> Namers:
        if self._namers is None:
            raise BundleError(f'the bundle "{self.bundle.name}" has no classifier, so there are no names to explain')
        return self._namers

    def _told(
        self, described: dict[str, NDArray[np.float32]], rows: NDArray[np.intp], names: list[str | None]
    ) -> dict[str, NDArray[np.float32]]:
        """What is said of some rows as columns of all N cells; NaN for cells of kinds that nobody described."""
        told = {}
        for attribute in self.labels.attributes:
            part = described.get(attribute.column)
            if part is None:
                continue
            full = np.full((len(names), len(attribute.values)), np.nan, np.float32)
            fits = describable([names[row] for row in rows], self.labels, self.attribute_outputs[attribute.column])
            full[rows[fits]] = part[fits]
            told[attribute.column] = full
        return told


def _one_cell(whole: NDArray[np.float32], outliner: CellOutliner) -> FieldCells:
    """An image that is taken for one cell, which nobody names but the outliner."""
    return FieldCells(
        boxes=whole,
        labels=[outliner.whole],
        scores=np.ones(1, np.float32),
        probabilities=np.full((1, len(outliner.labels.leaves)), np.nan, np.float32),
        counted=np.ones(1, bool),
        refer=np.zeros(1, bool),
    )
