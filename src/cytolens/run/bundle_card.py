"""The card of a bundle: its purpose, what it learnt from, its scores with intervals; and which scores it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cytolens.bundle import BundleInfo
from cytolens.labels import LabelSet

_HEADLINES = {
    "detection": ("map50", "map50_95", "precision", "recall", "f1"),
    "classification": ("accuracy", "macro_f1", "balanced_accuracy", "accuracy_accepted", "coverage", "ece"),
    "segmentation": ("map", "dsb_ap50", "f1_50", "pq", "coco_mask_map", "boundary_f"),
    "sartorius": ("score", "map", "pq", "coco_mask_map"),
    "attributes": ("mean_macro_f1", "mean_accuracy", "mean_gain_macro_f1", "exact_match", "mean_coverage"),
}
_COLUMNS = {
    "detection": ("ap50", "recall", "truth"),
    "classification": ("precision", "recall", "f1", "support"),
    "segmentation": ("ap50", "map", "pq", "truth"),
    "sartorius": ("score", "ap50", "pq", "truth"),
    "attributes": ("macro_f1", "accuracy", "kappa", "gain_macro_f1"),
}


def kept_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that a bundle keeps of an evaluation: the headlines and the labels, with intervals."""
    kept: dict[str, Any] = {}
    for domain, figures in scores.items():
        wanted = ("task", "images", "matched", "interval_unit", "per_label", *_HEADLINES[figures["task"]])
        kept[domain] = {
            key: value
            for key, value in figures.items()
            if key.removesuffix("_interval") in wanted and value is not None
        }
        if figures["task"] == "attributes":
            kept[domain] |= {"per_attribute": _columns_of(figures["per_attribute"])}
    return kept


def _columns_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of each attribute that the card shows, with intervals."""
    wanted = _COLUMNS["attributes"]
    return {
        name: {
            key: value for key, value in row.items() if key.removesuffix("_interval") in wanted and value is not None
        }
        for name, row in table.items()
    }


def card_text(info: BundleInfo, labels: LabelSet, purpose: str) -> str:
    """The card: purpose and limits as given, then what the bundle knows of itself."""
    lines = [f"# {info.name}", "", info.description, ""]
    if purpose.strip():
        lines += [purpose.strip(), ""]
    lines += ["## Labels", "", ", ".join(labels.names), ""]
    if info.training:
        lines += _training_lines(info.training)
    for domain, figures in info.scores.items():
        lines += [f"## Scores: {domain}", "", *_score_lines(figures), ""]
    if info.scores:
        lines += [
            "Behind each figure its 95 % interval (bootstrap). It covers the chance of which images were drawn.",
            "",
        ]
    lines += ["## Licence", "", info.licence or "not stated", ""]
    lines += [f"- {credit}" for credit in info.credits]
    lines += ["", "For research use only. Not a medical device.", ""]
    return "\n".join(lines)


def _training_lines(training: Mapping[str, Any]) -> list[str]:
    """Where the weights come from: a training here, or somebody else's file."""
    if (origin := training.get("imported")) is not None:
        notes = [f"- {note}" for note in origin["notes"]]
        return [
            "## Origin",
            "",
            f"- {origin['file']} (sha256 {origin['sha256']}), read as {origin['kind']}",
            *notes,
            "",
        ]
    lines = ["## Training", "", f"- data: {training['dataset']} ({training['dataset_fingerprint']})"]
    lines += [f"- {training['images']} images, {training['cells']} cells learnt from"]
    return [*lines, f"- seed {training['settings']['seed']}, best epoch {training['result']['best_epoch']}", ""]


def _score_lines(figures: Mapping[str, Any]) -> list[str]:
    headlines = [n for n in _HEADLINES[figures["task"]] if n in figures]
    lines = ["| figure | value |", "|---|---|"]
    lines += [f"| {name} | {_with_interval(figures, name)} |" for name in headlines]
    columns, of = _COLUMNS[figures["task"]], "attribute" if figures["task"] == "attributes" else "label"
    lines += ["", f"| {of} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for label, row in figures.get(f"per_{of}", {}).items():
        lines.append(f"| {label} | {' | '.join(_with_interval(row, column) for column in columns)} |")
    return lines


def _with_interval(figures: Mapping[str, Any], name: str) -> str:
    value = figures.get(name)
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    interval = figures.get(f"{name}_interval")
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
