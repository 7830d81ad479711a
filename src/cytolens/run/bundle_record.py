"""What a bundle says of the training that it comes from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import torch

from cytolens.bundle import BundleInfo
from cytolens.dataset import Dataset
from cytolens.models.public_weights import WEIGHTS


def info_of(settings: Any, dataset: Dataset, run: Path, **more: Any) -> BundleInfo:
    """The description of a bundle that a finished run leaves.

    Args:
        settings: of the training.
        dataset: what was learnt from.
        run: the run folder, with its ``finished.json``.
        more: fields of the description that the task knows.
    """
    return BundleInfo(
        name=settings.name,
        task=more.pop("task", settings.task),
        labels=dataset.labels.to_dict(),
        licence=dataset.licence,
        credits=_credits(settings.weights),
        training={
            "settings": settings.model_dump(mode="json"),
            "dataset": dataset.name,
            "dataset_fingerprint": dataset.fingerprint,
            "images": len(dataset.images),
            "cells": len(dataset.cells),
            "commit": _commit(),
            "torch": torch.__version__,
            "result": json.loads((run / "finished.json").read_text(encoding="utf-8")),
        },
        **more,
    )


def _credits(weights: str | None) -> list[str]:
    """Whom the starting weights are owed to: public ones to their makers, a run's own to whom that run names."""
    if weights is None:
        return []
    if public := WEIGHTS.get(weights):
        return [f"started from {public.credit}, {public.licence}"]
    # A run leaves its bundle beside its weights, and a bundle of its own holds both.
    place = Path(weights).parent
    for file in (place / "bundle" / "bundle.json", place / "bundle.json"):
        try:
            told = json.loads(file.read_text(encoding="utf-8")).get("credits", [])
        except (OSError, ValueError, AttributeError):
            continue
        return [str(one) for one in told] if isinstance(told, list) else []
    return []


def _commit() -> str | None:
    """The commit of the program's own checkout, or None where it is installed from a package."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
