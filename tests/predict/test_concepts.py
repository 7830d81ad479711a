"""What spoke for a name: the arithmetic, and its way from the network to the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens.bundle import Bundle, BundleInfo, write
from cytolens.evaluate.pictures import jpeg
from cytolens.labels import AttributeSchema, LabelSet
from cytolens.predict.concepts import FILE, Concepts, Voice, concepts_of, for_and_against
from cytolens.predict.differential import differential
from cytolens.predict.field_blocks import joined_blocks
from cytolens.predict.field_cells import FieldCells
from cytolens.predict.fields import predict_images
from cytolens.predict.pipeline import Predictor
from cytolens.predict.report import write_report
from cytolens.predict.report_attributes import spoken_for_names
from cytolens.predict.tiles import Window
from tests.apps.speaking import say
from tests.predict.doubles import ColourEyes, ConceptLooks, connect, describing, detecting, painted
from tests.predict.test_describe import on_disk, packed

SIZE = AttributeSchema("s", "size", ("small", "large"))
TINT = AttributeSchema("s", "tint", ("blue", "red", "grey"))
LABELS = LabelSet.of(("lymphocyte", "monocyte"), (SIZE, TINT))
WEIGHTS = np.array([[4, 0, 1, 3, -2], [0, 4, 1, -1, 2]], np.float32)
LAYER = Concepts(WEIGHTS, np.array([0.5, -0.5], np.float32), np.array([0.5, 0.5, 0.4, 0.4, 0.2], np.float32))


def test_the_worked_example() -> None:
    concepts = np.array([0.9, 0.1, 0.1, 0.8, 0.1])
    tint, size = sorted(LAYER.voices(concepts, "lymphocyte", LABELS), key=lambda voice: voice.attribute.name == "size")
    # Relative weights of the lymphocyte: (2, −2) and (0, 2, −2).
    assert (size.attribute, size.value, tint.attribute, tint.value) == (SIZE, "small", TINT, "red")
    assert (size.probability, tint.probability) == pytest.approx((0.9, 0.8))
    assert (size.weight, tint.weight) == pytest.approx((2 * 0.4 + -2 * -0.4, 2 * 0.4 + -2 * -0.1))
    other = LAYER.voices(concepts, "monocyte", LABELS)
    assert [voice.weight for voice in other] == pytest.approx([-1.0, -1.6])
    assert for_and_against([size, tint]) == "for it: size small +1.6, tint red +1.0"
    assert for_and_against(other) == "against it: size small −1.6, tint red −1.0"
    assert for_and_against([Voice(SIZE, "small", 0.5, 0.01)]) == ""


@given(seed=st.integers(0, 10_000), leaf=st.integers(0, 3))
def test_the_parts_add_up_to_what_the_name_gained_over_the_average_cell(seed: int, leaf: int) -> None:
    random = np.random.default_rng(seed)
    layer = Concepts(
        random.normal(0, 3, (4, 5)).astype(np.float32),
        random.normal(0, 1, 4).astype(np.float32),
        np.r_[random.dirichlet([1, 1]), random.dirichlet([1, 1, 1])].astype(np.float32),
    )
    concepts = np.c_[random.dirichlet([1, 1], 1), random.dirichlet([1, 1, 1], 1)]

    def ahead(p: np.ndarray) -> float:
        logits = layer.weights @ p + layer.bias
        return float(logits[leaf] - logits.mean())

    told = layer.contributions(concepts, [leaf])
    assert told.sum() == pytest.approx(ahead(concepts[0]) - ahead(layer.mean), abs=1e-5)
    # What is added to all names alike, or to all values of an attribute, changes no name and no attribute's part.
    shift, lift = random.normal(0, 3, 5), np.outer(random.normal(0, 3, 4), [1, 1, 0, 0, 0])
    shifted = Concepts((layer.weights + shift).astype(np.float32), layer.bias, layer.mean)
    assert shifted.contributions(concepts, [leaf]) == pytest.approx(told, abs=1e-5)
    lifted = Concepts((layer.weights + lift).astype(np.float32), layer.bias, layer.mean)
    sums = [part[:, :2].sum() for part in (told, lifted.contributions(concepts, [leaf]))]
    assert sums[0] == pytest.approx(sums[1], abs=1e-5)


def test_a_layer_survives_its_file() -> None:
    again = Concepts.from_bytes(LAYER.to_bytes())
    for one, other in ((again.weights, WEIGHTS), (again.bias, LAYER.bias), (again.mean, LAYER.mean)):
        assert np.array_equal(one, other)


# -- from the network to the report ---------------------------------------------------------------

SMEAR = painted((416, 320), [("leukocyte", 100, 100, 30), ("erythrocyte", 300, 200, 25)])
SAID = np.array([0.9, 0.1, 0.1, 0.8, 0.1], np.float32)


def reading(folder: Path) -> Bundle:
    """A describing bundle with a bottleneck, and its layer."""
    plain = describing(folder, (SIZE, TINT), names=("lymphocyte", "monocyte"))
    info = plain.info.model_copy(update={"architecture": {"concepts": "joint"}})
    return Bundle(folder, BundleInfo.model_validate(info.model_dump()), plain.hash, {})


def pipeline(folder: Path) -> Bundle:
    on_disk(folder, detecting(folder))
    own = reading(folder)
    write(folder / "runs" / own.name, own.info, {FILE: LAYER.to_bytes()})
    return packed(folder, [str(folder / "runs" / "eyes"), str(folder / "runs" / own.name)])


def test_the_report_says_what_spoke_for_each_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch, eyes=ColourEyes(), looks=ConceptLooks([0.9, 0.1], SAID))
    bundle = pipeline(tmp_path)
    reader = concepts_of(bundle)
    assert reader is not None
    assert np.array_equal(reader[0].weights, WEIGHTS)
    (tmp_path / "a.jpg").write_bytes(jpeg(SMEAR))
    row = {"image_id": "a.jpg", "path": str(tmp_path / "a.jpg"), "width_px": 416, "height_px": 320}
    found = predict_images(Predictor(bundle), [row])
    assert found.concepts is not None
    white = found.cells.frame["label"].cast(str).to_list().index("lymphocyte")
    assert found.concepts[white] == pytest.approx(SAID)
    assert np.isnan(np.delete(found.concepts, white, axis=0)).all()  # red cells were not asked
    spoken = spoken_for_names(found.cells, found.concepts, bundle)
    assert spoken == {found.cells.frame["cell_id"][white]: "for it: size small +1.6, tint red +1.0"}
    write_report(found, bundle, differential(found.cells, found.images), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "for it: size small +1.6, tint red +1.0" in page
    assert "read from the attributes alone" in page


def test_cells_of_blocks_keep_what_they_were_named_by() -> None:
    def block(x: float, concepts: np.ndarray | None) -> FieldCells:
        one = np.ones(1, bool)
        boxes = np.array([[x, 5, x + 20, 25]], np.float32)
        return FieldCells(
            boxes, ["lymphocyte"], one.astype(np.float32), np.ones((1, 2), np.float32), one, ~one, concepts=concepts
        )

    parts = [(Window(0, 0, 50, 50), block(5, SAID[None])), (Window(50, 0, 50, 50), block(9, None))]
    joined = joined_blocks(parts, (100, 50))
    assert joined.concepts is not None
    order = np.argsort(joined.boxes[:, 0])
    assert joined.concepts[order[0]] == pytest.approx(SAID)
    assert np.isnan(joined.concepts[order[1]]).all()
    assert joined_blocks(parts[1:], (100, 50)).concepts is None


def test_the_bundle_says_how_it_reads_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch, eyes=ColourEyes(), looks=ConceptLooks([0.9, 0.1], SAID))
    answer = say("bundles", "show", str(pipeline(tmp_path).folder))
    assert answer.code == 0
    assert "looks reads names from attributes alone (concept bottleneck, joint)" in answer.out


def test_names_that_are_read_from_something_else_have_no_voices(tmp_path: Path) -> None:
    assert concepts_of(describing(tmp_path, (SIZE, TINT))) is None
