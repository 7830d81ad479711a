"""Attributes in prediction from the detector that finds the cells: of which, from where, in tiles and in views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cytolens.bundle import Bundle, write
from cytolens.labels import AttributeSchema, LabelSet
from cytolens.predict import ensemble
from cytolens.predict.describe import attribute_outputs
from cytolens.predict.field_cells import FieldCells
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.run.packing import pack_pipeline
from cytolens.tasks.attributes import AttributeOutput
from tests.predict.doubles import FOUND, ColourEyes, FixedNames, detecting, naming, painted

SIDE = AttributeSchema("s", "side", ("left", "right"))
KINDS = {"leukocyte": {"s.side": (0.5, 0.5)}}
SMEAR = painted((416, 320), [("leukocyte", 100, 100, 30), ("erythrocyte", 300, 200, 25), ("leukocyte", 330, 90, 28)])


class MapEyes(ColourEyes):
    """A detector's session whose first map holds, at each place, where it is in the picture, 0 to 1."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Boxes, scores and the two maps."""
        assert list(outputs) == ["boxes", "scores", "map_4", "map_8"]
        height, width = feeds["images"].shape[1:3]
        found = super().run(["boxes", "scores"], feeds)
        maps = [np.zeros((1, 1, height // s, width // s), np.float32) + np.linspace(0, 1, width // s) for s in (4, 8)]
        return [*found, *[one.astype(np.float32) for one in maps]]


class Reader:
    """The session of the attributes: says "right" of regions in the right half of the map."""

    def __init__(self) -> None:
        self.regions: list[NDArray[np.float32]] = []

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Logits of the one attribute."""
        assert list(outputs) == ["attributes"]
        assert set(feeds) == {"map_4", "map_8", "regions"}
        self.regions.append(feeds["regions"])
        assert (feeds["regions"][:, 0] == 0).all()
        columns = (feeds["regions"][:, [1, 3]].mean(axis=1) / 4).astype(int)
        place = feeds["map_4"][0, 0, 0, np.clip(columns, 0, feeds["map_4"].shape[3] - 1)]
        return [
            np.stack([np.where(place < 0.5, 3.0, -3.0), np.where(place < 0.5, -3.0, 3.0)], axis=1, dtype=np.float32)
        ]


def describing(folder: Path, **output: Any) -> Bundle:
    eyes = detecting(folder, **output)
    labels = LabelSet.of(FOUND, (SIDE,))
    told = AttributeOutput(kinds=KINDS)
    return Bundle(
        folder, eyes.info.model_copy(update={"labels": labels.to_dict(), "attribute_output": told}), eyes.hash, {}
    )


def connect(patch: pytest.MonkeyPatch, **sessions: Any) -> None:
    def session(bundle: Bundle, device: str = "cpu", threads: int = 1, *, file: str = "model.onnx") -> Any:
        return sessions[bundle.name if file == "model.onnx" else "reader"]

    patch.setattr(ensemble, "session", session)
    patch.setattr("cytolens.predict.describe.session", session)


def sides(cells: FieldCells) -> dict[int, str | None]:
    """Left edge of each cell → what is said of it."""
    said = {}
    for corners, row in zip(cells.boxes, cells.attributes["s.side"], strict=True):
        said[round(float(corners[0]))] = None if np.isnan(row).any() else SIDE.values[int(row.argmax())]
    return said


def test_white_cells_are_described_in_the_pass_that_finds_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    eyes, reader = MapEyes(), Reader()
    connect(monkeypatch, eyes=eyes, reader=reader)
    cells = Predictor(describing(tmp_path)).field(SMEAR)
    assert len(eyes.shown) == len(reader.regions) == 1
    assert sides(cells) == {70: "left", 302: "right", 275: None}  # nobody described a red cell
    np.testing.assert_allclose(np.sort(reader.regions[0][:, 1]), [70, 302], atol=1.5)


def test_what_does_not_count_is_not_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader = Reader()
    connect(monkeypatch, eyes=MapEyes(), reader=reader)
    cells = Predictor(describing(tmp_path, thresholds={"leukocyte": 0.95})).field(SMEAR)
    assert set(sides(cells).values()) == {None}
    assert not cells.counted[[name == "leukocyte" for name in cells.labels]].any()
    assert reader.regions == []


def test_an_attribute_that_no_cell_had_in_training_is_not_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connect(monkeypatch, eyes=MapEyes(), reader=Reader())
    bundle = describing(tmp_path)
    told = AttributeOutput(kinds={"leukocyte": {"s.other": (1.0,)}})
    info = bundle.info.model_copy(update={"attribute_output": told})
    cells = Predictor(Bundle(tmp_path, info, bundle.hash, {})).field(SMEAR)
    assert set(sides(cells).values()) == {None}


def test_an_empty_field_has_the_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch, eyes=MapEyes(), reader=Reader())
    cells = Predictor(describing(tmp_path)).field(painted((416, 320), []))
    assert cells.attributes["s.side"].shape == (0, 2)


def test_views_are_read_where_the_cell_lies_in_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader = Reader()
    connect(monkeypatch, eyes=MapEyes(), reader=reader)
    cells = Predictor(describing(tmp_path), PredictSettings(tta="flip")).field(SMEAR)
    assert len(reader.regions) == 2
    # The double knows left from right in the picture it is shown, so a view and its mirror image say the opposite.
    white = ~np.isnan(cells.attributes["s.side"]).any(axis=1)
    np.testing.assert_allclose(cells.attributes["s.side"][white], 0.5, atol=1e-3)
    lefts = np.sort(np.concatenate([one[:, 1] for one in reader.regions]))
    np.testing.assert_allclose(lefts, sorted([70, 302, 416 - 130, 416 - 358]), atol=1.5)


def test_tiles_keep_what_was_said_in_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(monkeypatch, eyes=MapEyes(), reader=Reader())
    cells = Predictor(describing(tmp_path), PredictSettings(tile_px=300)).field(SMEAR)
    said = sides(cells)
    assert said.keys() >= {70, 302}
    assert said[70] == "left"
    assert said[275] is None


class SizeReader(Reader):
    """The session of a head that is told sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.scales: list[NDArray[np.float32]] = []

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Logits of the one attribute."""
        assert len(feeds["scales"]) == len(feeds["regions"])
        self.scales.append(feeds["scales"])
        return super().run(outputs, {name: table for name, table in feeds.items() if name != "scales"})

    def said(self) -> list[float]:
        """What was told of all cells so far, by size."""
        assert all((one[:, 1] == 1).all() for one in self.scales)
        return sorted(np.concatenate(self.scales)[:, 0].tolist())


RED = [("erythrocyte", 40.0 + 60 * i, 250.0 + 4 * (i % 2), 12.0 + i) for i in range(5)]
WHITE = [("leukocyte", 100.0, 100.0, 28.0), ("leukocyte", 300.0, 90.0, 14.0)]


def told_sizes(folder: Path, **output: Any) -> Bundle:
    bundle = describing(folder, **output)
    architecture = {**bundle.info.architecture, "attribute_scale": "red-cell"}
    return Bundle(folder, bundle.info.model_copy(update={"architecture": architecture}), bundle.hash, {})


def larger(discs: Sequence[Any], zoom: float) -> list[Any]:
    return [(name, zoom * x, zoom * y, zoom * radius) for name, x, y, radius in discs]


@pytest.mark.parametrize("zoom", [1, 2, 3])
def test_sizes_are_told_in_red_cells_at_any_magnification(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, zoom: int
) -> None:
    reader = SizeReader()
    connect(monkeypatch, eyes=MapEyes(), reader=reader)
    field = painted((416 * zoom, 320 * zoom), larger(RED + WHITE, zoom))
    Predictor(told_sizes(tmp_path)).field(field)
    assert reader.said() == pytest.approx([0, 1], abs=0.1)  # the median red cell has a radius of 14
    if zoom == 1:  # as wide as 7.5 µm, half as wide
        reader.scales.clear()
        Predictor(told_sizes(tmp_path)).field(field, um_per_px=7.5 / 56)
        assert reader.said() == pytest.approx([-1, 0], abs=0.1)


def test_a_field_without_red_cells_tells_no_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader = SizeReader()
    connect(monkeypatch, eyes=MapEyes(), reader=reader)
    cells = Predictor(told_sizes(tmp_path)).field(painted((416, 320), [*RED[:4], *WHITE]))
    assert not np.concatenate(reader.scales).any()
    assert set(sides(cells).values()) == {"left", "right", None}


def test_all_tiles_take_the_red_cells_of_the_field(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader = SizeReader()
    connect(monkeypatch, eyes=MapEyes(), reader=reader)
    Predictor(told_sizes(tmp_path), PredictSettings(tile_px=240)).field(painted((416, 320), RED + WHITE))
    assert len(reader.scales) > 1
    assert {round(one) for one in reader.said()} == {0, 1}


def test_a_pipeline_names_with_one_member_and_describes_with_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connect(monkeypatch, eyes=MapEyes(), reader=Reader(), names=FixedNames([0.05, 0.05, 0.85, 0.05]))
    members = [describing(tmp_path), naming(tmp_path)]
    places = [str(write(tmp_path / "runs" / one.name, one.info, {}).folder) for one in members]
    bundle = pack_pipeline(
        places, tmp_path / "packed" / "all", name="all", description="", scores={}, card="", licence=None,
        name_these=["leukocyte"],
    )  # fmt: skip
    assert bundle.labels.attributes == (SIDE,)
    assert list(attribute_outputs(bundle)) == ["s.side"]
    cells = Predictor(bundle).field(SMEAR)
    assert [name for name in cells.labels if name is not None].count("lymphocyte") == 2
    assert sides(cells) == {70: "left", 302: "right", 275: None}
