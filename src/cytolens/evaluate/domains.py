"""Across microscopes: every model on every domain, before and after it was adapted.

A domain is what an image was taken with. The columns `scanner` (the microscope, with its camera where there are
several: "H C1"), `magnification` and `stain` say it; a data set of its own is one, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from cytolens.dataset import Dataset
from cytolens.evaluate.scores import Scores, paired_interval
from cytolens.images import Images
from cytolens.problems import DatasetError, SettingError, did_you_mean, listing

COLUMNS = ("scanner", "magnification", "stain")
UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False)
class DomainMatrix:
    """Figures of models on domains.

    Attributes:
        frame: one row per model, domain and figure: model, domain, figure, value, low, high, difference (from the
            baseline there) with difference_low and difference_high, images. They are null where there is nothing to
            score; intervals also where none was asked for.
        models, domains, figures: in their order.
        baseline: the model that the others are compared with.
        unit: what the intervals resample, "group" or "image".
    """

    frame: pl.DataFrame
    models: tuple[str, ...]
    domains: tuple[str, ...]
    figures: tuple[str, ...]
    baseline: str
    unit: str

    def table(self, figure: str, column: str = "value") -> list[list[Any]]:
        """One column of the frame as rows of models and columns of domains."""
        one = self.frame.filter(pl.col("figure") == figure)
        known = {(m, d): v for m, d, v in one.select("model", "domain", column).iter_rows()}
        return [[known.get((model, domain)) for domain in self.domains] for model in self.models]


def domain_names(images: Images, by: Sequence[str] = COLUMNS) -> list[str]:
    """The domain of each image, such as "H C1 / 100x": its values of some columns; "unknown" where one is not known.

    Raises:
        SettingError: a column is none that says what an image was taken with.
    """
    for name in by:
        if name not in COLUMNS:
            raise SettingError(
                f'"{name}" is no column of domains. {did_you_mean(name, COLUMNS)} Allowed: {", ".join(COLUMNS)}'
            )
    parts = [images.frame[name].fill_null(UNKNOWN).to_list() for name in by]
    return [" / ".join(values) for values in zip(*parts, strict=True)] if parts else [UNKNOWN] * len(images)


def parts_by_domain(tested: Mapping[str, Dataset], by: Sequence[str]) -> dict[str, tuple[str, Dataset]]:
    """Domain → the data set it is in and its images there; without columns, each data set is one domain."""
    if not by:
        return {name: (name, dataset) for name, dataset in tested.items()}
    parts: dict[str, tuple[str, Dataset]] = {}
    for name, dataset in tested.items():
        of_image = domain_names(dataset.images, by)
        for domain in sorted(set(of_image)):
            ids = [i for i, own in zip(dataset.images.ids, of_image, strict=True) if own == domain]
            shown = domain if len(tested) == 1 else f"{name}: {domain}"
            parts[shown] = (name, dataset.of_images(dataset.images.where(image_id=ids)))
    return parts


def domain_matrix(
    scored: Mapping[str, Mapping[str, Scores]], figures: Sequence[str], baseline: str, images: Mapping[str, int]
) -> DomainMatrix:
    """The matrix of models and domains from their scores.

    Args:
        scored: model → domain → scores; a model may lack a domain. Those of one domain are of the same images under
            the same seed, since the interval of a difference is one of pairs.
        figures: names of figures; "per_label.WBC.ap50" is one inside tables.
        baseline: the model that the others are compared with.
        images: domain → how many images it has.

    Raises:
        SettingError: the baseline is no model, or no score has a figure.
    """
    if baseline not in scored:
        raise SettingError(f'the baseline "{baseline}" is none of the models: {listing(scored)}')
    rows = []
    for wanted in figures:
        seen = False
        for model, by_domain in scored.items():
            for domain, scores in by_domain.items():
                (value, interval), there = _figure(scores, wanted)
                by_baseline = scored[baseline].get(domain)
                before, around = (None, None) if by_baseline is None else _figure(by_baseline, wanted)[0]
                seen |= there
                low, high = interval or (None, None)
                least, most = paired_interval(interval, around) or (None, None)
                rows.append(
                    {
                        "model": model, "domain": domain, "figure": wanted, "value": value, "low": low, "high": high,
                        "difference": None if value is None or before is None else value - before,
                        "difference_low": least, "difference_high": most, "images": images[domain],
                    }
                )  # fmt: skip
        if not seen:
            some = next(iter(next(iter(scored.values())).values()))
            raise SettingError(f'no score is called "{wanted}". {did_you_mean(wanted, some.figures)}')
    if not rows:
        raise DatasetError("there is no domain to judge on")
    schema = {"model": pl.String, "domain": pl.String, "figure": pl.String}
    numbers = dict.fromkeys(("value", "low", "high", "difference", "difference_low", "difference_high"), pl.Float64)
    units = {str(s.figures.get("interval_unit", "image")) for by_domain in scored.values() for s in by_domain.values()}
    return DomainMatrix(
        pl.DataFrame(rows, schema={**schema, **numbers, "images": pl.Int64}),
        tuple(scored), tuple(images), tuple(figures), baseline, " or ".join(sorted(units)),
    )  # fmt: skip


def _figure(scores: Scores, name: str) -> tuple[tuple[float | None, Sequence[float] | None], bool]:
    """A figure with its interval, and whether the scores have one of that name (a label may be missing in a domain)."""
    *path, last = name.split(".")
    table: Any = scores.figures
    for step in path:
        table = table.get(step) if isinstance(table, Mapping) else None
    if not isinstance(table, Mapping) or last not in table:
        return (None, None), False
    return (table[last], table.get(f"{last}_interval")), True
