"""Attributes in prediction: who is asked, who is described, and which cells are unlike their kind."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens.bundle import Bundle, write
from cytolens.cells import Cells
from cytolens.labels import AttributeSchema, LabelSet
from cytolens.predict.calibrate import value_threshold
from cytolens.predict.describe import attribute_outputs, least_likely, surprise, surprise_limit, unlike_their_kind
from cytolens.predict.field_blocks import joined_blocks
from cytolens.predict.field_cells import FieldCells
from cytolens.predict.fields import ImageResult, assembled
from cytolens.predict.pipeline import Predictor
from cytolens.predict.tiles import Window
from cytolens.problems import BundleError
from cytolens.run.packing import pack_ensemble, pack_pipeline
from cytolens.tasks.attributes import AttributeOutput
from tests.predict.doubles import ColourEyes, FixedLooks, FixedNames, connect, describing, detecting, naming, painted

SIZE = AttributeSchema("s", "size", ("small", "large"))
TINT = AttributeSchema("s", "tint", ("blue", "red", "grey"))
SHARES = [0.05, 0.05, 0.85, 0.05]  # a lymphocyte, among NAMES
LOOKS = [0.0, 2.0, 1.0, 0.0, 0.0]
SMEAR = painted((416, 320), [("leukocyte", 100, 100, 30), ("erythrocyte", 300, 200, 25)])


def on_disk(folder: Path, *bundles: Bundle) -> list[str]:
    return [str(write(folder / "runs" / one.name, one.info, {}).folder) for one in bundles]


def packed(folder: Path, members: list[str]) -> Bundle:
    return pack_pipeline(
        members, folder / "packed" / "all", name="all", description="", scores={}, card="", licence=None,
        name_these=["leukocyte"],
    )  # fmt: skip


def found_in(bundle: Bundle) -> Cells:
    predictor = Predictor(bundle)
    row = {"image_id": "a.png", "sha256": "1", "width_px": 416, "height_px": 320}
    return assembled(predictor, [ImageResult(row, predictor.field(SMEAR))]).cells


def test_a_member_that_describes_gives_attributes_and_no_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    looks = FixedLooks([0.9, 0.04, 0.03, 0.03], LOOKS)
    connect(monkeypatch, eyes=ColourEyes(), names=FixedNames(SHARES), looks=looks)
    output = AttributeOutput(temperature={"s.size": 2.0}, sure={"s.tint": 0.9})
    describer = describing(tmp_path, (SIZE, TINT), **output.model_dump())
    bundle = packed(tmp_path, on_disk(tmp_path, describer, detecting(tmp_path), naming(tmp_path)))
    assert bundle.info.describers == ["looks"]
    assert bundle.labels.attributes == (SIZE, TINT)
    cells = found_in(bundle)
    white, red = cells.where(label="lymphocyte"), cells.where(label="erythrocyte")
    assert (len(white), len(red)) == (1, 1)  # named by "names"; "looks" would have said otherwise
    assert white.attribute_values("s.size") == ["large"]
    assert white.attribute_probabilities("s.size")[0] == pytest.approx([1 / (1 + np.e), np.e / (1 + np.e)], abs=1e-5)
    assert white.attribute_values("s.tint") == [None]  # not sure, and the probabilities are kept
    assert white.attribute_probabilities("s.tint")[0] == pytest.approx(np.exp([1, 0, 0]) / np.exp([1, 0, 0]).sum())
    assert red.attribute_values("s.size") == [None]
    assert np.isnan(red.attribute_probabilities("s.size")).all()
    assert bundle.self_test().passed


def test_one_classifier_may_name_and_describe_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    looks = FixedLooks(SHARES, LOOKS)
    connect(monkeypatch, eyes=ColourEyes(), looks=looks)
    bundle = packed(tmp_path, on_disk(tmp_path, detecting(tmp_path), describing(tmp_path, (SIZE, TINT))))
    looks.shown.clear()
    white = found_in(bundle).where(label="lymphocyte")
    assert white.attribute_values("s.tint") == ["blue"]
    assert len(looks.shown) == 1  # one forward pass for both


def test_cells_of_kinds_that_nobody_described_have_no_attributes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connect(monkeypatch, eyes=ColourEyes(), looks=FixedLooks(SHARES, [0.0, 2.0]))
    kinds = {"monocyte": {"s.size": (0.5, 0.5)}}
    bundle = packed(tmp_path, on_disk(tmp_path, detecting(tmp_path), describing(tmp_path, (SIZE,), kinds=kinds)))
    cells = found_in(bundle)
    assert cells.where(label="lymphocyte").attribute_values("s.size") == [None]
    assert np.isnan(cells.attribute_probabilities("s.size")).all()


def test_what_cannot_be_packed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = describing(tmp_path, (SIZE,), bundle="one"), describing(tmp_path, (SIZE,), bundle="two")
    plain, detector = naming(tmp_path), detecting(tmp_path)
    other = Bundle(tmp_path, plain.info.model_copy(update={"name": "other"}), "0", {})
    with pytest.raises(BundleError, match="other gives no attributes"):
        packed(tmp_path, on_disk(tmp_path, detector, plain, other))
    with pytest.raises(BundleError, match=r"given by two members: s\.size"):
        packed(tmp_path, on_disk(tmp_path, detector, one, two))
    with pytest.raises(BundleError, match="a pipeline needs a detector and a classifier"):
        packed(tmp_path, on_disk(tmp_path, one))


def test_an_ensemble_blends_what_its_members_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(
        monkeypatch, eyes=ColourEyes(), one=FixedLooks(SHARES, [0.0, np.log(4)]), two=FixedLooks(SHARES, [0.0, 0.0])
    )
    members = [describing(tmp_path, (SIZE,), bundle=name) for name in ("one", "two")]
    places = [Path(place) for place in on_disk(tmp_path, detecting(tmp_path), *members)]
    bundle = pack_ensemble(
        places[:1], {"a": places[1:2], "b": places[2:]}, tmp_path / "packed" / "both", name="both", weights={"a": 3.0}
    )
    white = found_in(bundle).where(label="lymphocyte")
    assert white.attribute_probabilities("s.size")[0] == pytest.approx([0.275, 0.725], abs=1e-5)


def test_blocks_keep_the_attributes_of_the_cells_they_keep() -> None:
    def part(x: float, size: list[float] | None) -> FieldCells:
        given = {} if size is None else {"s.size": np.array([size], np.float32)}
        flags = np.ones(1, bool)
        box = np.array([[x, 10, x + 20, 30]], np.float32)
        return FieldCells(
            box, ["a"], np.full(1, 0.9, np.float32), np.ones((1, 1), np.float32), flags, ~flags, attributes=given
        )

    left, right = Window(0, 0, 100, 100), Window(80, 0, 100, 100)
    cells = joined_blocks([(left, part(20, [0.2, 0.8])), (right, part(50, None))], (180, 100))
    rows = {int(box[0]): row.tolist() for box, row in zip(cells.boxes, cells.attributes["s.size"], strict=True)}
    assert rows[20] == pytest.approx([0.2, 0.8])
    assert np.isnan(rows[130]).all()


# -- cells unlike their kind ----------------------------------------------------------------------

LABELS = LabelSet.of(["leukocyte", "neutrophil", "band neutrophil", "platelet"], (SIZE, TINT))
KINDS = {"neutrophil": {"s.size": (0.9, 0.1), "s.tint": (0.98, 0.015, 0.005)}}
OUTPUTS: dict[str, AttributeOutput] = dict.fromkeys(["s.size", "s.tint"], AttributeOutput(kinds=KINDS))


def cells(rows: list[tuple]) -> Cells:
    return Cells.of(
        LABELS, image_id=["a"] * len(rows), boxes=[[0, 0, 1, 1]] * len(rows), label=[row[0] for row in rows],
        source="x",
        attributes={"s.size": [row[1] for row in rows], "s.tint": [row[2] for row in rows]},
    )  # fmt: skip


def test_surprise_is_that_of_the_values_in_the_nearest_kind() -> None:
    table = cells(
        [
            ("neutrophil", "small", "blue"),
            ("band neutrophil", "large", "grey"),
            ("neutrophil", None, "red"),
            ("platelet", "small", "blue"),
            ("neutrophil", None, None),
            (None, "small", None),
        ]
    )
    wanted = [-np.log(0.9 * 0.98), -np.log(0.1 * 0.005), -np.log(0.015), np.nan, np.nan, np.nan]
    assert surprise(table, OUTPUTS) == pytest.approx(wanted, nan_ok=True)
    unlike, _ = unlike_their_kind(table, OUTPUTS)
    assert unlike.tolist() == [False, True, False, False, False, False]
    row = table.frame.row(1, named=True)
    assert least_likely(row, LABELS, OUTPUTS) == "tint grey (0.5 %)"
    assert least_likely(table.frame.row(0, named=True), LABELS, OUTPUTS) == ""


tables = st.lists(
    st.lists(st.integers(1, 50), min_size=2, max_size=4).map(lambda n: tuple(v / sum(n) for v in n)),
    min_size=1, max_size=4,
)  # fmt: skip


@given(tables=tables, share=st.floats(0.5, 0.999))
def test_the_limit_holds_the_share_of_all_combinations(tables: list[tuple[float, ...]], share: float) -> None:
    limit, slack = surprise_limit(tables, share), 0.01 * len(tables)
    inside = below = 0.0
    for values in itertools.product(*tables):
        cost = -float(np.log(values).sum())
        inside += float(np.prod(values)) * (cost <= limit + slack)
        below += float(np.prod(values)) * (cost < limit - slack)
    assert inside >= share - 1e-6
    assert below < share + 1e-6


def test_outputs_are_those_of_all_members(tmp_path: Path) -> None:
    assert set(attribute_outputs(describing(tmp_path, (SIZE, TINT)))) == {"s.size", "s.tint"}
    assert attribute_outputs(naming(tmp_path)) == {}


# -- when a value is sure -------------------------------------------------------------------------


@given(
    rows=st.lists(st.tuples(st.floats(0.5, 1), st.booleans()), min_size=1, max_size=12), most_wrong=st.floats(0, 0.6)
)
def test_the_lowest_threshold_with_few_wrong_values(rows: list[tuple[float, bool]], most_wrong: float) -> None:
    table = np.array([[height, 1 - height] for height, _ in rows])
    truth = np.array(
        [int(table[i].argmax()) if right else 1 - int(table[i].argmax()) for i, (_, right) in enumerate(rows)]
    )

    def good(threshold: float) -> bool:
        given = [right for height, right in rows if height >= threshold]
        return bool(given) and (len(given) - sum(given)) / len(given) <= most_wrong

    wanted = next((percent / 100 for percent in range(100) if good(percent / 100)), 0.99)
    assert value_threshold(table, truth, most_wrong) == wanted
