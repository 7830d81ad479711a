"""What folds or parts share of their samples: states, vessels, wells and sites that stand in several of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cytolens.dataset import Dataset
from cytolens.formats.sample_ids import SampleId, parsed
from cytolens.prepare.split import Column


@dataclass(frozen=True, slots=True)
class Shared:
    """How many values of one property stand in several folds or parts.

    Attributes:
        what: "type and state", "vessel", "well" (of its vessel) or "site" (of its well).
        values: how many different ones there are.
        across: those that images of several folds or parts have, sorted.
    """

    what: str
    values: int
    across: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"what": self.what, "values": self.values, "across": list(self.across)}


def sample_ids(dataset: Dataset) -> dict[str, str]:
    """Image id → Sartorius' sample id, as far as an import wrote them into the dataset's provenance."""
    told: dict[str, str] = {}
    for step in dataset.provenance:
        given = step.get("sample_ids")
        told |= given if isinstance(given, Mapping) else {}
    return {image_id: told[image_id] for image_id in dataset.images.ids if image_id in told}


def shared_samples(dataset: Dataset, column: Column) -> tuple[Shared, ...]:
    """What the folds or parts of a dataset share; nothing where no sample ids are known.

    Images without a sample id, or without a fold or part, are passed over.

    Raises:
        FormatError: the provenance holds a sample id of another form.
    """
    ids = sample_ids(dataset)
    part_of = dict(dataset.images.frame.select("image_id", column).iter_rows())
    seen: dict[str, dict[str, set[Any]]] = {}
    for image_id, text in ids.items():
        if part_of[image_id] is not None:
            for what, value in _properties(parsed(text)).items():
                seen.setdefault(what, {}).setdefault(value, set()).add(part_of[image_id])
    return tuple(
        Shared(what, len(values), tuple(sorted(value for value, parts in values.items() if len(parts) > 1)))
        for what, values in seen.items()
    )


def _properties(sample: SampleId) -> dict[str, str]:
    return {
        "type and state": sample.condition,
        "vessel": sample.group("vessel"),
        "well": sample.group("well"),
        "site": f"{sample.group('well')} site {sample.site}",
    }
