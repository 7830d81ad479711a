"""Packing members that leave names out: the bundle does not speak them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytolens.bundle import Bundle, write
from cytolens.predict.pipeline import Predictor
from cytolens.run.packing import pack_ensemble, pack_pipeline
from tests.predict.doubles import FOUND, NAMES, ColourEyes, FixedNames, connect, detecting, naming, painted


@pytest.fixture
def members(tmp_path: Path) -> list[Bundle]:
    """A detector and a classifier with a background class, on disk; the networks are test doubles."""
    described = (detecting(tmp_path), naming(tmp_path, names=(*NAMES, "Background"), leave_out=("Background",)))
    return [write(tmp_path / "runs" / one.name, one.info, {}) for one in described]


@pytest.mark.parametrize("how", ["pipeline", "ensemble"])
def test_a_background_class_is_not_packed(
    monkeypatch: pytest.MonkeyPatch, members: list[Bundle], tmp_path: Path, how: str
) -> None:
    connect(monkeypatch, eyes=ColourEyes(), names=FixedNames([0.1, 0.1, 0.2, 0.1, 0.5]))
    detector, classifier = (member.folder for member in members)
    out = tmp_path / "packed" / "both"
    if how == "pipeline":
        bundle = pack_pipeline(
            [str(detector), str(classifier)], out, name="both", description="", scores={}, card="", licence=None,
            name_these=["leukocyte"],
        )  # fmt: skip
    else:
        bundle = pack_ensemble([detector], {"names": [classifier]}, out, name="both")
    assert set(bundle.labels.names) == {*NAMES, *FOUND}
    assert "Background" in Bundle.load(classifier).labels
    cells = Predictor(bundle).field(painted((416, 320), [("leukocyte", 100, 100, 30)]))
    shares = dict(zip(bundle.labels.leaves, cells.probabilities[0].tolist(), strict=True))
    assert shares["lymphocyte"] == pytest.approx(0.4, abs=0.01)
    assert bundle.self_test().passed
