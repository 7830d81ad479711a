"""Which members of an ensemble are worth their time: accuracy against latency, and the best under a budget.

Every set of classifier families is judged out of fold, with weights that were tuned without the judged fold, and its
time for an image is added up from what each member takes on this machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl

from cytolens.bundle import Bundle
from cytolens.predict.blend import Nested, TuneSettings
from cytolens.problems import SettingError, written
from cytolens.run.latency import Timing, measure
from cytolens.run.out_of_fold import OutOfFold, answer_with, judge, read_out_of_fold
from cytolens.run.packing import pack_ensemble
from cytolens.run.tunable import Tunable, read_tunable

ALL_SETS_UP_TO = 10  # families; of more, sets are grown one family at a time
_TRIED_IN_ALL = 100_000  # weights, over all sets; few families get a grid as fine as a blend's
Notify = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """One set of classifier families.

    Attributes:
        families: by name, in the blend's order.
        weights: family → its weight, tuned on all cells; one of weight 0 is not packed, and takes no time.
        macro_f1: out of fold, with weights that were tuned without the judged fold.
        in_sample: macro-F1 of the weights tuned and judged on all cells.
        models: classifiers that are asked.
        ms: predicted for an image, detectors included.
        on_front: no other set is as good and takes less time, or better and takes no more.
        judged: what the figures come from.
    """

    families: tuple[str, ...]
    weights: Mapping[str, float]
    macro_f1: float
    in_sample: float
    models: int
    ms: float
    on_front: bool
    judged: Nested = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """The families, readable."""
        return " + ".join(self.families)


@dataclass(frozen=True)
class Tuned:
    """The outcome.

    Attributes:
        choices: all sets that were judged, the fastest first.
        timing: what their times come from.
        cells: that they were judged on.
        chosen: the best under the budget; None: no budget was given.
        bundle: of the chosen.
        notes: what a reader has to know.
    """

    choices: tuple[Choice, ...]
    timing: Timing
    cells: int
    chosen: Choice | None = None
    bundle: Bundle | None = None
    notes: tuple[str, ...] = ()


def tune(
    run: Path,
    out: Path,
    *,
    budget_ms: float | None = None,
    images: Path | None = None,
    one_fold: bool = False,
    notify: Notify = lambda _: None,
) -> Tuned:
    """Judge and time the sets of classifiers of a run, and pack the best under a budget.

    Leaves ``front.csv``, ``front.png``, ``front.html`` and ``tune.json``, and with a budget ``bundle`` with its members
    beside it.

    Args:
        run: what `cytolens run` left, with a blend and (for a bundle) a pack step; or the folder of a blend in it.
        out: folder for the results.
        budget_ms: for an image on this machine, on one thread; None: nothing is packed.
        images: folder of images to measure with; None: rendered fields.
        one_fold: keep one fold's model of each family, instead of all.
        notify: is told what is being done.

    Raises:
        SettingError: there is no such run, it cannot be packed, or no set keeps to the budget.
        DatasetError: no image can be read, or the members named other boxes.
        BundleError: a member has no network.
    """
    from cytolens.run.tune_page import write_page

    given = read_tunable(run)
    if budget_ms is not None and given.pack is None:
        raise SettingError(
            f'{run}: nothing can be packed for --budget-ms, because the run has no step do = "pack" that says which '
            "detectors go with the classifiers; add one to the recipe, or leave the budget out to see the front"
        )
    said = read_out_of_fold(given.blend.truth, given.blend.members)
    timing = measure(given, said, images, one_fold, notify)
    choices = with_front(list(judged_sets(given, said, timing, one_fold, notify)))
    fitting = [one for one in choices if budget_ms is None or one.ms <= budget_ms]
    chosen = None if budget_ms is None or not fitting else max(fitting, key=lambda one: (one.macro_f1, -one.ms))
    result = Tuned(choices, timing, int(said.single.sum()), chosen, None, given.notes)
    out.mkdir(parents=True, exist_ok=True)
    write_front(choices, chosen, out / "front.csv")
    write_page(result, budget_ms, one_fold, out)
    if chosen is not None:
        notify(f"packing {chosen.name}")
        result = replace(result, bundle=_packed(given, said, chosen, one_fold, out))
    with written(out / "tune.json") as part:
        part.write_text(json.dumps(summary(result, budget_ms, one_fold), indent=1, ensure_ascii=False) + "\n", "utf-8")
    if not fitting:
        raise SettingError(_nothing_fits(choices[0], float(budget_ms or 0), given, one_fold, out))
    return result


# -- judging --------------------------------------------------------------------------------------


def judged_sets(
    given: Tunable, said: OutOfFold, timing: Timing, one_fold: bool, notify: Notify = lambda _: None
) -> Iterator[Choice]:
    """All sets of families; of many families those that arise by adding the best one at a time."""
    families = list(given.classifiers)
    greedy = len(families) > ALL_SETS_UP_TO
    count = len(families) * (len(families) + 1) // 2 if greedy else 2 ** len(families) - 1
    method = given.blend.method
    settings = TuneSettings(
        method="optuna" if method == "optuna" else "grid",
        seed=given.blend.seed,
        candidates=min(TuneSettings().candidates, max(100, _TRIED_IN_ALL // count)),
    )
    folds = {family: len(places) for family, places in given.kept(one_fold)[1].items()}
    notify(f"judging {count} sets of {len(families)} families")

    def choice(some: Sequence[str]) -> Choice:
        judged = judge(said, some, method, settings)
        weights = dict(zip(some, judged.weights.tolist(), strict=True))
        used = [family for family in some if weights[family] > 0]
        models = sum(folds[family] for family in used)
        return Choice(tuple(some), weights, judged.score, judged.in_sample, models, timing.ms(used), False, judged)

    if not greedy:
        for size in range(1, len(families) + 1):
            yield from map(choice, combinations(families, size))
        return
    kept: tuple[str, ...] = ()
    while len(kept) < len(families):
        grown = [choice([f for f in families if f in kept or f == more]) for more in families if more not in kept]
        yield from grown
        kept = max(grown, key=lambda one: (one.macro_f1, -one.ms)).families


def with_front(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """The sets by rising time, marked where no other is at least as good in both and better in one."""

    def beaten(one: Choice) -> bool:
        return any(
            other.ms <= one.ms
            and other.macro_f1 >= one.macro_f1
            and (other.ms < one.ms or other.macro_f1 > one.macro_f1)
            for other in choices
        )

    marked = [replace(one, on_front=not beaten(one)) for one in choices]
    return tuple(sorted(marked, key=lambda one: (one.ms, -one.macro_f1, len(one.families))))


# -- what is left ---------------------------------------------------------------------------------


def _packed(given: Tunable, said: OutOfFold, chosen: Choice, one_fold: bool, out: Path) -> Bundle:
    assert given.pack is not None
    detectors, classifiers = given.kept(one_fold)
    answer = answer_with(said, chosen.families, chosen.judged)
    threshold = None
    if given.pack.threshold is not None:
        threshold = json.loads((given.pack.threshold / "threshold.json").read_text(encoding="utf-8"))["threshold"]
    return pack_ensemble(
        [place for places in detectors.values() for place in places],
        {family: classifiers[family] for family in chosen.families},
        out / "bundle",
        name=f"{given.pack.name}-tuned",
        description=given.pack.description,
        weights=chosen.weights,
        sure=answer.sure,
        temperature=answer.temperature,
        threshold=threshold,
        fusion=given.pack.fusion,
    )


def _nothing_fits(cheapest: Choice, budget_ms: float, given: Tunable, one_fold: bool, out: Path) -> str:
    several = any(len(places) > 1 for places in (*given.classifiers.values(), *given.detectors.values()))
    way = "" if one_fold or not several else "--one-fold keeps one fold's model of each family; or "
    return (
        f"nothing keeps to {budget_ms:g} ms for an image on this machine: the cheapest, {cheapest.name}, takes "
        f"{cheapest.ms:.1f} ms. {way}allow more; {out / 'front.html'} shows what each takes"
    )


def write_front(choices: Sequence[Choice], chosen: Choice | None, path: Path) -> None:
    """All sets as CSV, the fastest first."""
    rows = [
        {
            "families": one.name,
            "models": one.models,
            "ms_per_image": one.ms,
            "macro_f1": one.macro_f1,
            "macro_f1_in_sample": one.in_sample,
            "weights": weights_text(one.weights),
            "on_front": one.on_front,
            "chosen": one is chosen,
        }
        for one in choices
    ]
    with written(path) as part:
        pl.DataFrame(rows).write_csv(part, float_precision=5)


def weights_text(weights: Mapping[str, float]) -> str:
    """Weights as text, such as "vitl 0.25, effnet 0.75"."""
    return ", ".join(f"{family} {weight:.3g}" for family, weight in weights.items())


def summary(result: Tuned, budget_ms: float | None, one_fold: bool) -> dict[str, Any]:
    """What ``tune.json`` and the command's JSON say."""
    chosen, timing = result.chosen, result.timing
    return {
        "cells": result.cells,
        "one_fold": one_fold,
        "budget_ms": budget_ms,
        "measured_with": timing.pictures,
        "cells_per_image": timing.cells_per_image,
        "detectors_ms_per_image": dict(timing.detectors),
        "classifiers_ms_per_cell": dict(timing.classifiers),
        "front": [_row(one) for one in result.choices if one.on_front],
        "sets": len(result.choices),
        "chosen": None if chosen is None else _row(chosen),
        "bundle": None if result.bundle is None else {"name": result.bundle.name, "hash": result.bundle.hash},
        "notes": list(result.notes),
    }


def _row(one: Choice) -> dict[str, Any]:
    weights = {family: round(weight, 6) for family, weight in one.weights.items()}
    return {
        "families": list(one.families),
        "weights": weights,
        "models": one.models,
        "ms_per_image": one.ms,
        "macro_f1": one.macro_f1,
        "macro_f1_in_sample": one.in_sample,
    }
