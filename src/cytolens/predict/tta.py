"""Test-time augmentation: a picture is looked at in several views, and the answers are put together.

The views are the symmetries of a square. A set that is closed under a symmetry makes the answer follow it: a flipped
image gives flipped boxes and the same names.
"""

from __future__ import annotations

from typing import Literal, get_args

from cytolens.problems import SettingError
from cytolens.views import View, flip, quarter_turn

Tta = Literal["bundle", "none", "flip", "flips", "all"]
TTA: tuple[str, ...] = get_args(Tta)
_COUNTS = {"none": 1, "flip": 2, "flips": 4, "all": 8}


def count(tta: str, of_bundle: int) -> int:
    """How many views a choice means; "bundle": what the bundle says itself.

    Raises:
        SettingError: there is no such choice.
    """
    if tta == "bundle":
        return of_bundle
    if tta not in _COUNTS:
        raise SettingError(f'no test-time augmentation "{tta}"; allowed: {", ".join(TTA)}')
    return _COUNTS[tta]


def symmetries(size_wh: tuple[int, int], views: int) -> list[View]:
    """The first so many of: as it is, flipped left to right, upside down, both; and these after a quarter turn."""
    straight = View.whole(size_wh)
    turned = quarter_turn(size_wh)
    return [
        view
        for first in (straight, turned)
        for view in (
            first,
            first.then(flip(first.wh)),
            first.then(flip(first.wh, horizontal=False)),
            first.then(flip(first.wh)).then(flip(first.wh, horizontal=False)),
        )
    ][:views]
