"""Scores: how well findings agree with the truth, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.evaluate.joining import Joined, join, read_found
from cytolens.evaluate.scores import EvaluateSettings, Scores
from cytolens.images import Images
from cytolens.problems import SettingError, did_you_mean

__all__ = ["TASKS", "EvaluateSettings", "Scores", "evaluate", "read_found"]

# Each task's module and function; imported when asked for.
_TASKS: dict[str, tuple[str, str]] = {
    "detection": ("cytolens.evaluate.detection", "score_detection"),
    "classification": ("cytolens.evaluate.classification", "score_classification"),
    "attributes": ("cytolens.evaluate.attributes", "score_attributes"),
    "segmentation": ("cytolens.evaluate.segmentation", "score_segmentation"),
    "cytologia": ("cytolens.evaluate.challenge", "score_challenge"),
    "sartorius": ("cytolens.evaluate.segmentation", "score_sartorius"),
}
_NAMELESS = ("segmentation", "sartorius")  # these score cells without a name, too
TASKS = tuple(_TASKS)


def evaluate(
    truth: Dataset,
    found: Cells | Dataset,
    *,
    found_images: Images | None = None,
    task: str = "detection",
    settings: EvaluateSettings | None = None,
) -> Scores:
    """Compare findings with the truth.

    Args:
        truth: the annotated images.
        found: what was found in them, by a model or another person.
        found_images: the images that were looked at, where `found` is a table of cells. Without it an
            image without findings cannot be told from one that was never looked at.
        task: one of `TASKS`.
        settings: how the two are compared; None: the defaults.

    Raises:
        SettingError: there is no such task, or `settings.level` names an unknown label.
        DatasetError: a truth image has no found image (with missing="error"), or none has; or outlines are to be
            scored, and some cells have none.
    """
    if task not in _TASKS:
        raise SettingError(f'unknown task "{task}". {did_you_mean(task, TASKS)} Tasks: {", ".join(TASKS)}')
    settings = settings or EvaluateSettings()
    module, name = _TASKS[task]
    score: Callable[[Joined, EvaluateSettings], Scores] = getattr(import_module(module), name)
    return score(join(truth, found, found_images, settings, task not in _NAMELESS), settings)
