"""Sartorius' sample ids: what an image is of, and on which plate and in which well it was taken.

``<type>[<state>]_<well>-<site>_Vessel-<number>_…_Ph_<position>``, such as ``shsy5y[diff]_E10-4_Vessel-714_Ph_3``.
One type of cell is spelt both ``astro`` and ``astros``; it is ``astro`` here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cytolens.problems import FormatError

SampleGroup = Literal["well", "vessel"]

_FORM = re.compile(
    r"(?P<kind>[^\[\]_]+)\[(?P<state>[^\[\]]*)\]_(?P<well>[A-Z]+[0-9]+)-(?P<site>[0-9]+)"
    r"_Vessel-(?P<vessel>[0-9]+)(?:_.*)?_Ph_(?P<position>[0-9]+)"
)
_SPELLINGS = {"astros": "astro"}


@dataclass(frozen=True, slots=True)
class SampleId:
    """What a sample id says.

    Attributes:
        kind: the type of cell, such as "shsy5y".
        state: what was done to the cells, such as "diff"; may be empty.
        vessel: the number of the plate.
        well: its name on the plate, such as "E10".
        site: the place in the well.
        position: the number behind "Ph".
    """

    kind: str
    state: str
    vessel: int
    well: str
    site: int
    position: int

    def group(self, by: SampleGroup = "well") -> str:
        """What must not straddle a split: the well of the vessel, or the vessel as a whole."""
        return f"vessel {self.vessel} well {self.well}" if by == "well" else f"vessel {self.vessel}"

    @property
    def condition(self) -> str:
        """Type and state, as the id writes them."""
        return f"{self.kind}[{self.state}]"


def parsed(text: str) -> SampleId:
    """A sample id taken apart.

    Raises:
        FormatError: it is of another form.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise FormatError(
            f'"{text[:80]}" is no sample id. Wanted: <type>[<state>]_<well>-<site>_Vessel-<number>_…_Ph_<position>, '
            "such as shsy5y[diff]_E10-4_Vessel-714_Ph_3."
        )
    kind = _SPELLINGS.get(found["kind"], found["kind"])
    return SampleId(
        kind, found["state"], int(found["vessel"]), found["well"], int(found["site"]), int(found["position"])
    )
