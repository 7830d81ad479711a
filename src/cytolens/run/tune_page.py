"""The page of a tuning: accuracy against time, drawn and as a table."""

from __future__ import annotations

from pathlib import Path

from cytolens.evaluate import plots
from cytolens.evaluate.page import Page, Tile
from cytolens.problems import written
from cytolens.run.tune import Choice, Tuned, weights_text

_NOTES = (
    "Macro-F1 is out of fold: each fold's cells are named with weights that were tuned without it, by models that have "
    "not learnt from it. The best of many sets is chosen on the cells that it is judged on, so its figure flatters a "
    "little.",
    "Out of fold each cell is named by one fold's model of a family. All folds together are mostly better than that, "
    "and take as many times longer.",
    "Times are of this machine, on one thread, without reading images: detectors for an image, and each classifier for "
    "its share of the cells.",
)


def write_page(result: Tuned, budget_ms: float | None, one_fold: bool, out: Path) -> None:
    """Write ``front.png`` and ``front.html``."""
    chosen, timing = result.chosen, result.timing
    picture = plots.score_against_cost(
        [one.name for one in result.choices],
        [one.ms for one in result.choices],
        [one.macro_f1 for one in result.choices],
        [one.on_front for one in result.choices],
        ("ms for an image, predicted", "macro-F1, out of fold"),
        chosen=None if chosen is None else result.choices.index(chosen),
        limit=budget_ms,
    )
    with written(out / "front.png") as part:
        part.write_bytes(picture)
    models = "one fold's model of each family" if one_fold else "the models of all folds"
    page = Page("What members are worth", f"{result.cells:,} cells, {models}, measured with {timing.pictures}")
    page = page.tiles(_tiles(result, budget_ms)).notes(_NOTES).notes(result.notes, "warning")
    page = page.section("Accuracy against time")
    page = page.figure(picture, "Each point is a set of classifiers; the line joins those that no other beats in both.")
    page = page.section("Sets of classifiers", "The fastest first.")
    columns = ("classifiers", "models", "ms for an image", "macro-F1", "in sample", "weights", "")
    page = page.table(columns, [_row(one, chosen) for one in result.choices])
    page = page.section("Members", "All folds that are kept, on this machine.")
    members = [[f, "detector", f"{ms:.2f} for an image"] for f, ms in timing.detectors.items()]
    members += [[f, "classifier", f"{ms:.2f} for a cell"] for f, ms in timing.classifiers.items()]
    page.table(("member", "task", "ms"), members).write(out / "front.html")


def _tiles(result: Tuned, budget_ms: float | None) -> list[Tile]:
    best, chosen = max(result.choices, key=lambda one: one.macro_f1), result.chosen
    tiles = [
        Tile("best macro-F1", f"{best.macro_f1:.3f}", f"{best.name}, {best.ms:.1f} ms"),
        Tile("fastest", f"{result.choices[0].ms:.1f} ms", result.choices[0].name),
        Tile("cells per image", f"{result.timing.cells_per_image:.2f}"),
    ]
    if budget_ms is not None:
        within = "nothing" if chosen is None else f"{chosen.macro_f1:.3f}"
        tiles.insert(0, Tile(f"within {budget_ms:g} ms", within, "" if chosen is None else chosen.name))
    return tiles


def _row(one: Choice, chosen: Choice | None) -> list[object]:
    mark = "chosen" if one is chosen else "on the line" if one.on_front else ""
    return [one.name, one.models, f"{one.ms:.1f}", one.macro_f1, one.in_sample, weights_text(one.weights), mark]
