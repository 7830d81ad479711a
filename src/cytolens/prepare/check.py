"""Everything that is wrong or odd in a dataset: where, what, how bad, and what to do about it.

Nothing is changed here. What can be mended without a person, `repair` mends.
"""

from __future__ import annotations

from cytolens.dataset import Dataset
from cytolens.prepare.box_faults import box_faults
from cytolens.prepare.check_boxes import box_findings
from cytolens.prepare.check_findings import KINDS, MENDED, CheckSettings, Finding, Tell
from cytolens.prepare.check_images import Seen, image_findings, look, size_verdicts, with_file_sizes
from cytolens.prepare.check_labels import label_findings
from cytolens.prepare.check_sizes import size_findings
from cytolens.prepare.check_splits import split_findings
from cytolens.problems import Problems

__all__ = ["KINDS", "MENDED", "CheckSettings", "Finding", "check", "findings"]


def check(dataset: Dataset, settings: CheckSettings | None = None, tell: Tell | None = None) -> Problems:
    """Everything that is wrong or odd in a dataset.

    Errors and warnings are wrong; notes are worth knowing. `KINDS` says what each kind means, `MENDED` which
    ones `repair` mends.

    Args:
        dataset: what to check.
        settings: what to look at, and from where on something is odd; None: the defaults.
        tell: called with (images looked at, images in all).
    """
    return Problems(found.problem for found in findings(dataset, settings, tell))


def findings(dataset: Dataset, settings: CheckSettings | None = None, tell: Tell | None = None) -> list[Finding]:
    """As `check`, with the image and the cells that each problem is about."""
    settings = settings or CheckSettings()
    seen: dict[str, Seen] = {}
    if settings.images:
        options = {"threads": settings.threads, "max_pixels": settings.max_pixels}
        seen = look(dataset.images, decode=True, tell=tell, **options)
    verdicts = size_verdicts(dataset, seen)
    # A box is judged by the size that the image has, not by one that is wrong in the table.
    sized = with_file_sizes(dataset, seen, verdicts)
    faults = box_faults(sized, settings.same_iou)
    return [
        *(image_findings(dataset, seen, verdicts) if settings.images else []),
        *box_findings(sized, faults, settings),
        *size_findings(sized, faults, settings),
        *split_findings(dataset),
        *label_findings(dataset, settings),
    ]
