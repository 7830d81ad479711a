"""The shift of a network's coordinates is measured, not assumed."""

from __future__ import annotations

import numpy as np
import pytest

from cytolens.predict.mirror_shift import measure_mirror_shift
from cytolens.predict.region_member import Pixels, RegionMember
from tests.predict.region_doubles import RegionEyes, connect, outlining


def measured(
    patch: pytest.MonkeyPatch, eyes: RegionEyes, pixels: Pixels | None = None, magnify: float = 1.0
) -> list[float]:
    connect(patch, eyes=eyes)
    return list(measure_mirror_shift(RegionMember(outlining(magnify=magnify)), pixels))


@pytest.mark.parametrize("offset", [(0.5, 0.5), (0.5, 0.0), (-0.37, 1.21), (0.1, -0.06)])
def test_a_known_shift_is_found(monkeypatch: pytest.MonkeyPatch, offset: tuple[float, float]) -> None:
    assert measured(monkeypatch, RegionEyes(offset)) == pytest.approx([-offset[0], -offset[1]], abs=0.05)


def test_a_known_shift_is_found_on_any_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (40, 75, 3)).astype(np.uint8)
    pixels = np.kron(blocks, np.ones((3, 3, 1), np.uint8))
    assert measured(monkeypatch, RegionEyes((0.4, -0.8)), pixels) == pytest.approx([-0.4, 0.8], abs=0.05)


def test_a_known_shift_is_in_px_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, RegionEyes((0.5, 0)), magnify=2.0) == pytest.approx([-0.5, 0], abs=0.05)


def test_a_lopsided_network_has_its_shift_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, RegionEyes((0.5, -0.5), lopsided=0.1))
    assert found == pytest.approx([-0.5, 0.5], abs=0.15)


def test_a_network_that_follows_mirroring_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, RegionEyes()) == [0, 0]


def test_what_no_shift_explains_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that depend on the place, and a shift too far away to be one."""
    assert measured(monkeypatch, RegionEyes(lopsided=0.8))[1] == 0
    assert measured(monkeypatch, RegionEyes((8.0, 0.0))) == [0, 0]
