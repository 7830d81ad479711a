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
    PredictStep,
    PseudoLabelsStep,
    RepairStep,
    SplitStep,
    Step,
    TrainStep,
)
from cytolens.run.steps_ensemble import (
    BlendStep,
    CompareStep,
    EvaluateStep,
    FuseStep,
    PackStep,
    SubmissionStep,
    ThresholdStep,
)
from cytolens.run.steps_whole_image import ImageBlendStep, ImageSharesStep

STEPS: dict[str, type[Step]] = {
    "import": ImportStep,
    "images": ImagesStep,
    "repair": RepairStep,
    "duplicates": DuplicatesStep,
    "split": SplitStep,
    "fraction": FractionStep,
    "backgrounds": BackgroundsStep,
    "noise": NoiseStep,
    "crops": CropsStep,
    "name-label": NameLabelStep,
    "pseudo-labels": PseudoLabelsStep,
    "train": TrainStep,
    "predict": PredictStep,
    "fuse": FuseStep,
    "blend": BlendStep,
    "image-shares": ImageSharesStep,
    "image-blend": ImageBlendStep,
    "threshold": ThresholdStep,
    "evaluate": EvaluateStep,
    "compare": CompareStep,
    "pack": PackStep,
    "submission": SubmissionStep,
}
