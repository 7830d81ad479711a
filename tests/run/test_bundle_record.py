"""What a bundle says of where its weights come from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cytolens.dataset import Dataset
from cytolens.models.public_weights import WEIGHTS
from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic
from cytolens.run.bundle_record import info_of

pytestmark = pytest.mark.torch


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return write_synthetic(tmp_path / "data", 1, 0, SyntheticSettings(width_px=96, height_px=96))


def credits(data: Dataset, run: Path, weights: str | None) -> list[str]:
    run.mkdir(exist_ok=True)
    (run / "finished.json").write_text("{}", encoding="utf-8")
    settings: Any = SimpleNamespace(weights=weights, name="x", task="detect", model_dump=lambda mode: {})
    return info_of(settings, data, run).credits


@pytest.mark.parametrize("place", ["bundle/bundle.json", "bundle.json"])
def test_who_is_credited_by_a_run_is_by_those_that_go_on_from_it(data: Dataset, tmp_path: Path, place: str) -> None:
    name, public = next(iter(WEIGHTS.items()))
    first = credits(data, tmp_path / "run", name)
    assert first == [f"started from {public.credit}, {public.licence}"]
    earlier = tmp_path / "earlier"
    (earlier / place).parent.mkdir(parents=True)
    (earlier / place).write_text(json.dumps({"credits": first}), encoding="utf-8")
    assert credits(data, tmp_path / "run", str(earlier / "weights.safetensors")) == first


def test_weights_of_unknown_origin_credit_nobody(data: Dataset, tmp_path: Path) -> None:
    for weights in (None, str(tmp_path / "w.safetensors")):
        assert credits(data, tmp_path / "run", weights) == []
    (tmp_path / "bundle.json").write_text("no JSON", encoding="utf-8")
    assert credits(data, tmp_path / "run", str(tmp_path / "w.safetensors")) == []
