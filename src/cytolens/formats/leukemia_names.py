"""What LeukemiaAttri's file names say: patient, field, magnification and diagnosis, and its published division.

A name is ``<patient>_<field>_<1000 for 100x, 400 for 40x>_<diagnosis>.png``. Its subsets, one per microscope,
magnification and camera, lie in folders called like ``H_100x_C1`` (H, L: costly and cheap microscope; C1, C2:
camera) and show the same cells, so the patient is what no split may part.

Source: the patient lists that the authors of LeukemiaAttri (MICCAI 2024) published, and the names of its images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cytolens.formats.intake import Intake, Reference
from cytolens.formats.sources import without_image_suffix
from cytolens.problems import listing

# Diagnosis → patients of the published train part, and of its test part.
PATIENTS: dict[str, tuple[frozenset[int], frozenset[int]]] = {
    "ALL": (frozenset({1, 3, 5, 7, 9, 11, 13, 29, 35, 38, 41}), frozenset({2, 4, 6, 8, 10, 20, 26})),
    "AML": (
        frozenset({12, 14, 17, 18, 19, 22, 33, 36, 39, 40, 43, 45, 46, 47, 48}),
        frozenset({15, 16, 25, 34, 37, 42, 44}),
    ),
    "CML": (frozenset({27, 31}), frozenset({28, 30})),
    "CLL": (frozenset({32}), frozenset({21})),
    "APML": (frozenset({23}), frozenset({24})),
}
_DIAGNOSIS = {patient: name for name, parts in PATIENTS.items() for patient in parts[0] | parts[1]}
_MAGNIFICATIONS = {"1000": "100x", "400": "40x", "100": "10x"}
_NAME = re.compile(r"(\d{1,6})_(\d{1,6})_(\d{1,6})_([A-Za-z]+)", re.ASCII)
_SUBSET = re.compile(r"(?:^|[/_\s-])([HL])_(10|40|100)x_(C[12])(?![A-Za-z0-9])", re.IGNORECASE)
_GROUP = re.compile(r"(?:patient )?(\d{1,6})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Name:
    """What a file's name says; `magnification` is the code as it stands there where it is unknown."""

    patient: int
    field: int
    magnification: str
    diagnosis: str


def parsed(image_id: str) -> Name | None:
    """What the name of an image says, or None where it is not one of LeukemiaAttri's."""
    match = _NAME.fullmatch(without_image_suffix(image_id.rsplit("/", 1)[-1]))
    if match is None:
        return None
    code = match.group(3)
    return Name(int(match.group(1)), int(match.group(2)), _MAGNIFICATIONS.get(code, code), match.group(4).upper())


def subset_of(image_id: str) -> tuple[str, str] | None:
    """Microscope with camera, such as "H C1", and magnification, from the folder of a subset; None: no such folder."""
    match = _SUBSET.search(image_id.rpartition("/")[0])
    return None if match is None else (f"{match.group(1).upper()} {match.group(3).upper()}", f"{match.group(2)}x")


def published_part(image_id: str, group: str | None) -> str | None:
    """The published part ("train" or "test") of an image, by its name, else by its group; None: neither says it."""
    name = parsed(image_id)
    match = None if group is None else _GROUP.fullmatch(group)
    patient = name.patient if name is not None else int(match.group(1)) if match is not None else None
    diagnosis = None if patient is None else _DIAGNOSIS.get(patient)
    if patient is None or diagnosis is None:
        return None
    return "train" if patient in PATIENTS[diagnosis][0] else "test"


def with_names(intake: Intake, references: Sequence[Reference]) -> list[Reference]:
    """The references with patient (as group), magnification and scanner; what is missing or wrong is a problem."""
    out, unreadable = [], []
    for reference in references:
        image_id = reference.image_id or reference.name
        name, subset = parsed(image_id), subset_of(image_id)
        if name is None:
            unreadable.append(reference)
        else:
            _note_contradictions(intake, reference, name, subset)
        known = None if name is None or name.magnification not in _MAGNIFICATIONS.values() else name.magnification
        out.append(
            replace(
                reference,
                group=reference.group or (None if name is None else f"patient {name.patient}"),
                magnification=known or (None if subset is None else subset[1]),
                scanner=None if subset is None else subset[0],
            )
        )
    if unreadable:
        what = (
            f'{len(unreadable)} of {len(references)} image names are not "<patient>_<field>_<1000 or 400>_<diagnosis>" '
            f'(first: "{unreadable[0].name}"): their patients are not known.'
        )
        fix = "Rename the images, or say with --group-pattern what their patient is."
        intake.problems.add("name-unreadable", unreadable[0].where, what, fix)
    return out


def _note_contradictions(intake: Intake, reference: Reference, name: Name, subset: tuple[str, str] | None) -> None:
    said = []
    expected = _DIAGNOSIS.get(name.patient)
    if expected is None:
        said.append(f"patient {name.patient} is not among the {len(_DIAGNOSIS)} of the data set")
    elif name.diagnosis != expected:
        said.append(f'it says "{name.diagnosis}", but patient {name.patient} has {expected}')
    if name.magnification not in _MAGNIFICATIONS.values():
        said.append(f'the magnification "{name.magnification}" is none of {listing(_MAGNIFICATIONS)}')
    elif subset is not None and subset[1] != name.magnification:
        said.append(f"it says {name.magnification}, but its folder {subset[1]}")
    if said:
        what = f'the name "{reference.name}" contradicts what is known: {"; ".join(said)}.'
        intake.problems.add("name-contradiction", reference.where, what, "Look at the image and its source.")
