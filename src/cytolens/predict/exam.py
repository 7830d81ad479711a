"""The exam that travels in a bundle: rendered pictures, and the cells the bundle found in them."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from cytolens import match
from cytolens.bundle import Bundle, rewrite
from cytolens.cells import Cells
from cytolens.images import decode_image
from cytolens.predict.ensemble import given_labels
from cytolens.predict.fields import ImageResult, assembled
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.prepare.synthetic import SyntheticSettings, render_cell, render_field
from cytolens.problems import BundleError, DatasetError

_FIELD_SEEDS = (11, 12)
_CELL_SEEDS = {"segmented neutrophil": 21, "lymphocyte": 22, "eosinophil": 23, "monocyte": 24}
_SURE = 0.5  # findings above it must come again; fainter ones may drift over the edge of a threshold


@dataclass(frozen=True, slots=True)
class ExamResult:
    """How a bundle did in its own exam."""

    passed: bool
    pictures: int
    cells: int
    mistakes: tuple[str, ...]


def make_exam(bundle: Bundle) -> Bundle:
    """The bundle with an exam: rendered pictures and what it finds in them today."""
    if bundle.member("detect") is not None:
        settings = SyntheticSettings(width_px=480, height_px=360, white_cells=(2, 3))
        pictures = {f"field-{seed}.png": render_field(seed, settings).pixels for seed in _FIELD_SEEDS}
    else:
        pictures = {
            f"{name.replace(' ', '-')}.png": render_cell(seed, name, 256).pixels for name, seed in _CELL_SEEDS.items()
        }
    files = {f"exam/{name}": _png(pixels) for name, pixels in pictures.items()}
    bundle = rewrite(bundle, bundle.info, files)
    found = _sit(bundle, list(pictures))
    buffer = io.BytesIO()
    found.frame.drop("source", "cell_id").write_parquet(buffer)
    return rewrite(bundle, bundle.info, {"exam/expected.parquet": buffer.getvalue()})


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _sit(bundle: Bundle, names: list[str]) -> Cells:
    predictor = Predictor(bundle, PredictSettings(jobs=1))
    results = []
    for name in names:
        image = decode_image((bundle.folder / "exam" / name).read_bytes(), name)
        row = {
            "image_id": name,
            "sha256": image.sha256,
            "width_px": image.pixels.shape[1],
            "height_px": image.pixels.shape[0],
        }
        results.append(ImageResult(row, predictor.field(image.pixels)))
    return assembled(predictor, results).cells


def self_test(bundle: Bundle) -> ExamResult:
    """Sit the exam: predict its pictures and compare with the expected cells.

    Every expected cell that is sure must be found again, at the same place, with the same name and
    score within the bundle's tolerance; and no sure cell may be new.

    Raises:
        BundleError: the bundle has no exam.
    """
    import polars as pl

    expected_file = bundle.file("exam/expected.parquet")
    names = _picture_names(bundle)
    if expected_file is None or not names:
        raise BundleError(f"{bundle.folder}: has no exam, so it cannot be tested")
    try:
        given = pl.read_parquet(expected_file).with_columns(source=pl.lit("exam"), cell_id=pl.lit("exam"))
        labels = given_labels(bundle)
        expected = Cells(given.select(Cells.empty(labels).frame.columns), labels)
    except (pl.exceptions.PolarsError, DatasetError) as error:
        raise BundleError(f"{expected_file}: holds no cells of this bundle's labels ({error})") from error
    found = _sit(bundle, names)
    mistakes = [
        line for name in names for line in _compare(bundle, name, expected.of_image(name), found.of_image(name))
    ]
    return ExamResult(not mistakes, len(names), len(expected), tuple(mistakes))


def _compare(bundle: Bundle, name: str, expected: Cells, found: Cells) -> list[str]:
    tolerance = bundle.info.exam_tolerance
    pairs = match.pair(match.overlaps(expected, found), np.zeros(len(expected), bool), iou_min=0.5)
    sure_expected = expected.scores() >= _SURE
    sure_found = found.scores() >= _SURE + tolerance["score"]
    said = [f"{name}: an expected cell is not found" for row in pairs.missed if sure_expected[row]]
    said += [f"{name}: a new cell is found" for row in pairs.surplus if sure_found[row]]
    for there, here in zip(pairs.truth, pairs.found, strict=True):
        if not sure_expected[there]:
            continue
        shift = float(np.abs(expected.boxes()[there] - found.boxes()[here]).max())
        drift = float(abs(expected.scores()[there] - found.scores()[here]))
        if not (shift <= tolerance["box_px"] and drift <= tolerance["score"]):  # no number at all is a mistake, too
            said.append(f"{name}: a cell moved by {shift:.2f} px, its score by {drift:.4f}")
        elif expected.label_names()[there] != found.label_names()[here]:
            said.append(f"{name}: a {expected.label_names()[there]} is now called {found.label_names()[here]}")
    return said


def _picture_names(bundle: Bundle) -> list[str]:
    listed = (name for name in bundle.info.files if name.startswith("exam/") and name.endswith(".png"))
    return sorted(name.removeprefix("exam/") for name in listed)
