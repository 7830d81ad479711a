"""The one-call prediction of the Python API, and the settings that the command line shares with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cytolens.bundle import Bundle
from cytolens.cells import Cells
from cytolens.dataset import Dataset
from cytolens.predict.fields import ImageResult, assembled, image_rows, predict_images
from cytolens.predict.pipeline import Predictor, PredictSettings
from cytolens.problems import ImageError, SettingError
from cytolens.settings import checked

Source = str | os.PathLike[str]
Place = Source | Dataset


def predict_settings(**values: Any) -> PredictSettings:
    """Settings of a prediction.

    Raises:
        SettingError: a key is unknown, or a value is not allowed.
    """
    return checked(PredictSettings, values, "predict")


def predict(
    images: Place | np.ndarray | Sequence[Place], *, bundle: Source | Bundle = "smear", **settings: Any
) -> Cells:
    """The cells found in images.

    Args:
        images: a file, folder, pattern or dataset; several of them; or pixels, uint8 RGB (H, W, 3).
        bundle: a shipped bundle by name, the folder of one, or one that is loaded.
        settings: of `PredictSettings`, such as tile_px or jobs.

    Returns:
        One row per cell; `counted` marks those above the threshold.

    Raises:
        ImageError: an image cannot be read. (The command line goes on with the others.)
        CytolensError: the request cannot be carried out.
    """
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    predictor = Predictor(loaded, predict_settings(**settings))
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[2] != 3 or not images.size:
            raise SettingError(f"pixels are uint8 RGB of shape (height, width, 3); got {images.dtype} {images.shape}")
        row = {"image_id": "image", "sha256": "", "width_px": images.shape[1], "height_px": images.shape[0]}
        return assembled(predictor, [ImageResult(row, predictor.field(np.ascontiguousarray(images)))]).cells
    places = (str, os.PathLike, Dataset)
    sources = [images] if isinstance(images, places) else list(images)
    if wrong := [type(s).__name__ for s in sources if not isinstance(s, places)]:
        raise SettingError(f"several images are given as files, folders, patterns or datasets; got {', '.join(wrong)}")
    prediction = predict_images(predictor, image_rows([Path(s) if isinstance(s, os.PathLike) else s for s in sources]))
    if prediction.failed:
        raise ImageError(prediction.failed[0])
    return prediction.cells
