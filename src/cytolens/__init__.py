"""Cytolens: microscope images in, counted and named cells out.

The public names are imported when they are first used, so that ``import cytolens`` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cytolens.bundle import Bundle
    from cytolens.cells import Cells
    from cytolens.dataset import Dataset
    from cytolens.evaluate import evaluate
    from cytolens.formats import read
    from cytolens.images import Images
    from cytolens.labels import LabelSet
    from cytolens.predict.calling import predict
    from cytolens.predict.fuse import fuse
    from cytolens.prepare.split import split
    from cytolens.run.running import run
    from cytolens.run.training import train

_HOMES = {
    "Bundle": "cytolens.bundle",
    "Cells": "cytolens.cells",
    "Dataset": "cytolens.dataset",
    "Images": "cytolens.images",
    "LabelSet": "cytolens.labels",
    "evaluate": "cytolens.evaluate",
    "fuse": "cytolens.predict.fuse",
    "predict": "cytolens.predict.calling",
    "read": "cytolens.formats",
    "run": "cytolens.run.running",
    "split": "cytolens.prepare.split",
    "train": "cytolens.run.training",
}

__all__ = [
    "Bundle",
    "Cells",
    "Dataset",
    "Images",
    "LabelSet",
    "__version__",
    "evaluate",
    "fuse",
    "predict",
    "read",
    "run",
    "split",
    "train",
]


class _Callable(ModuleType):
    """A package that is called like the function of its name: ``cytolens.predict("smear.jpg")``."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _function(self.__name__.rpartition(".")[2])(*args, **options)


class _Package(ModuleType):
    """Python binds a package's parts to their names as they are imported; those that are also functions become both."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and type(value) is ModuleType:
            value.__class__ = _Callable
        super().__setattr__(name, value)


def _function(name: str) -> Any:
    return getattr(importlib.import_module(_HOMES[name]), name)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cytolens' has no attribute {name!r}")
    return _function(name)


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _Package
