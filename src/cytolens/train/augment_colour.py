"""Augmentation of colour and sharpness: other stains, lamps, cameras and lenses than the training set's.

The stain is varied in optical density, where stains add (Beer and Lambert): each channel's density
is scaled, channels are mixed a little (other dyes absorb elsewhere), and the whole is made weaker
or stronger. Lamp, white balance, lens and file format follow, in the order in which a microscope
applies them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolens.prepare.stain_colour import WHITE, restained

Pixels = NDArray[np.uint8]


class ColourAugment(BaseModel):
    """How far colours and sharpness are varied; 0 switches a variation off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stain: float = Field(default=1.0, ge=0, description="strength of the variation of dyes")
    weak: float = Field(default=0.5, ge=0, le=1, description="how often the stain is made weaker")
    weakest: float = Field(default=0.3, gt=0, le=1, description="share of the stain's strength left at the weakest")
    gamma: float = Field(default=0.25, ge=0, le=1, description="how often the density's curve is bent")
    white_balance: float = Field(default=1.0, ge=0, description="strength of the variation of lamp and white balance")
    hue: float = Field(default=0.0, ge=0, description="largest turn of the hue, in degrees of a full circle of 360")
    saturation: float = Field(default=0.0, ge=0, description="largest relative change of the saturation")
    blur: float = Field(default=0.4, ge=0, le=1, description="how often the picture is defocused")
    blur_px: float = Field(default=1.8, ge=0, description="standard deviation of the widest blur")
    resample: float = Field(default=0.25, ge=0, le=1, description="how often resolution is lost and made up again")
    sharpen: float = Field(default=0.1, ge=0, le=1, description="how often a camera's sharpening is imitated")
    noise: float = Field(default=0.2, ge=0, le=1, description="how often sensor noise is added")
    jpeg: float = Field(default=0.3, ge=0, le=1, description="how often JPEG artefacts are added")
    grey: float = Field(default=0.0, ge=0, le=1, description="how often the colour is taken away")


def vary_colour(pixels: Pixels, settings: ColourAugment, random: Generator) -> Pixels:
    """A picture (H, W, 3), uint8 RGB, in another laboratory's colours and sharpness."""
    if settings.stain or settings.white_balance:
        pixels = _vary_stain(pixels, settings, random)
    if settings.hue or settings.saturation:
        pixels = _vary_hue(pixels, settings, random)
    if random.random() < settings.grey:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    return _vary_sharpness(pixels, settings, random)


def _vary_stain(pixels: Pixels, settings: ColourAugment, random: Generator) -> Pixels:
    k = settings.stain
    mixing = np.eye(3) * np.exp(random.normal(0, 0.25 * k)) + random.normal(0, 0.08 * k, (3, 3))
    mixing *= np.exp(random.normal(0, 0.15 * k, (3, 1)))
    if random.random() < settings.weak:
        mixing *= np.exp(random.uniform(np.log(settings.weakest), 0.1))
    bend = float(np.exp(random.uniform(-0.3, 0.3))) if random.random() < settings.gamma else 1.0
    lamp = WHITE * np.exp(random.normal(0, 0.06 * settings.white_balance, 3))
    lift = random.uniform(-20, 20) * settings.white_balance if random.random() < 0.3 else 0.0
    return restained(pixels, mixing, lamp, bend=bend, lift=lift)


def _vary_hue(pixels: Pixels, settings: ColourAugment, random: Generator) -> Pixels:
    import cv2

    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV).astype(np.int16)
    hsv[..., 0] = (hsv[..., 0] + round(random.uniform(-1, 1) * settings.hue / 2)) % 180  # OpenCV counts half degrees
    hsv[..., 1] = np.clip(hsv[..., 1] * (1 + random.uniform(-1, 1) * settings.saturation), 0, 255)
    return np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB), np.uint8)


def _vary_sharpness(pixels: Pixels, settings: ColourAugment, random: Generator) -> Pixels:
    import cv2

    height, width = pixels.shape[:2]
    if random.random() < settings.blur:
        pixels = _bytes(cv2.GaussianBlur(pixels, (0, 0), random.uniform(0.4, max(settings.blur_px, 0.41))))
    if random.random() < settings.resample:
        share = random.uniform(0.35, 0.8)
        small = cv2.resize(pixels, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
        pixels = _bytes(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))
    if random.random() < settings.sharpen:
        soft = cv2.GaussianBlur(pixels, (0, 0), random.uniform(0.8, 2.0))
        gain = random.uniform(0.3, 1.2)
        pixels = _bytes(cv2.addWeighted(pixels, 1 + gain, soft, -gain, 0))
    if random.random() < settings.noise:
        grain = random.normal(0, random.uniform(1, 8), pixels.shape).astype(np.float32)
        pixels = np.clip(pixels + grain, 0, 255).astype(np.uint8)
    if random.random() < settings.jpeg:
        quality = int(random.uniform(30, 90))
        coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        pixels = _bytes(cv2.imdecode(coded, cv2.IMREAD_COLOR))
    return pixels


def _bytes(array: Any) -> Pixels:
    """OpenCV's answer as what it is."""
    return np.asarray(array, np.uint8)
