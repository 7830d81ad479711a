"""All that a recipe's steps can do, by the word for it."""

from __future__ import annotations

from cytolens.run.steps import (
    BackgroundsStep,
    CropsStep,
    DuplicatesStep,
    FractionStep,
    ImagesStep,
    ImportStep,
    NameLabelStep,
    NoiseStep,
    PseudoLabelsStep,
    RepairStep,
    SplitStep,
    Step,
)
from cytolens.run.steps_attributes import AttributesCsvStep, CheckStep
from cytolens.run.steps_domains import AdaptStep, DomainsStep, RecolourStep
from cytolens.run.steps_ensemble import (
    BlendStep,
    CompareStep,
    EvaluateStep,
    FuseStep,
    PackStep,
    SubmissionStep,
    ThresholdStep,
)
from cytolens.run.steps_models import PredictStep, TrainStep
from cytolens.run.steps_outline_data import GroupsStep, LeaveOutStep, MasksOfStep, PseudoOutlinesStep
from cytolens.run.steps_outlines import (
    CleanOutlinesStep,
    CompareOutlinesStep,
    PackOutlinersStep,
    SartoriusSubmissionStep,
    SoftOutlinesStep,
    TuneMasksStep,
)
from cytolens.run.steps_whole_image import ImageBlendStep, ImageSharesStep

STEPS: dict[str, type[Step]] = {
    "import": ImportStep,
    "images": ImagesStep,
    "check": CheckStep,
    "repair": RepairStep,
    "duplicates": DuplicatesStep,
    "split": SplitStep,
    "fraction": FractionStep,
    "backgrounds": BackgroundsStep,
    "noise": NoiseStep,
    "recolour": RecolourStep,
    "crops": CropsStep,
    "name-label": NameLabelStep,
    "pseudo-labels": PseudoLabelsStep,
    "train": TrainStep,
    "adapt": AdaptStep,
    "predict": PredictStep,
    "fuse": FuseStep,
    "blend": BlendStep,
    "image-shares": ImageSharesStep,
    "image-blend": ImageBlendStep,
    "threshold": ThresholdStep,
    "evaluate": EvaluateStep,
    "compare": CompareStep,
    "domains": DomainsStep,
    "pack": PackStep,
    "submission": SubmissionStep,
    "attributes-csv": AttributesCsvStep,
    "leave-out": LeaveOutStep,
    "groups": GroupsStep,
    "masks-of": MasksOfStep,
    "soft-outlines": SoftOutlinesStep,
    "tune-masks": TuneMasksStep,
    "clean-outlines": CleanOutlinesStep,
    "compare-outlines": CompareOutlinesStep,
    "pseudo-outlines": PseudoOutlinesStep,
    "pack-outliners": PackOutlinersStep,
    "sartorius-submission": SartoriusSubmissionStep,
}
