"""The slide and the microscope of rendered fields: stains, lamp, lens and camera.

Cells are painted as amounts of stain. Light falls off with them as Beer and Lambert say,
value = background · exp(−Σ amount · stain vector), so stain that lies on stain darkens as it does
on glass. The stain vectors are optical densities (natural logarithm of background / value) per
channel, read off the 8-bit values of published smears; they hold the camera's tone curve with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from cytolens.images import Pixels
from cytolens.prepare.synthetic_settings import Look, SyntheticSettings
from cytolens.prepare.synthetic_shapes import Plane, blurred, noise

# One plane per kind of stained matter.
HAEMOGLOBIN, CHROMATIN, AZURE, EOSIN, AZUROPHIL, NEUTRAL = range(6)
PLANES = 6

_STAINS: dict[Look, tuple[tuple[float, float, float], ...]] = {
    "cream": (
        (0.22, 0.34, 0.19),  # haemoglobin
        (1.30, 2.08, 0.49),  # chromatin
        (0.80, 0.62, 0.14),  # azure: blue cytoplasm, full of RNA
        (0.22, 0.74, 0.48),  # eosin: granules of eosinophils
        (0.62, 1.30, 0.32),  # azurophil: purple granules
        (1.00, 1.00, 1.00),  # neutral: dirt
    ),
    "grey": (
        (0.12, 0.30, 0.28),
        (0.56, 0.90, -0.07),
        (0.36, 0.37, -0.02),
        (0.05, 0.36, 0.08),
        (0.22, 0.48, 0.00),
        (1.00, 1.00, 1.00),
    ),
    "violet": (
        (0.39, 0.53, 0.21),
        (0.52, 1.75, 0.33),
        (0.48, 0.58, 0.12),
        (0.28, 0.70, 0.32),
        (0.38, 1.12, 0.20),
        (1.00, 1.00, 1.00),
    ),
}
_BACKGROUNDS: dict[Look, tuple[float, float, float]] = {
    "cream": (255, 232, 205),
    "grey": (212, 217, 209),
    "violet": (218, 191, 170),
}


@dataclass(frozen=True, slots=True)
class Slide:
    """What all fields of one slide share: scale, stain, lamp, lens and camera.

    Attributes:
        red_cell_px: mean diameter of the red cells.
        stains: optical density per unit of each plane, shape (PLANES, 3).
        background: value of the empty slide, RGB, shape (3,).
        look: the look that weighs most.
    """

    red_cell_px: float
    red_cell_spread: float
    red_density_spread: float
    pallor: float
    ring: float
    crenated: bool
    white_cell_scale: float
    stains: NDArray[np.float32]
    background: NDArray[np.float32]
    look: Look
    shading: float
    shading_angle: float
    glare: float
    fringe_px: float
    sharpening: float
    noise: float
    jpeg_quality: int | None


def draw_slide(rng: np.random.Generator, settings: SyntheticSettings) -> Slide:
    """A slide within the settings."""
    looks: tuple[Look, ...] = get_args(Look)
    weights = np.array([settings.looks.get(look, 0.0) for look in looks]) * rng.gamma(0.6, size=len(looks))
    weights /= weights.sum()
    stains = sum(w * np.array(_STAINS[look]) for w, look in zip(weights, looks, strict=True))
    background = sum(w * np.array(_BACKGROUNDS[look]) for w, look in zip(weights, looks, strict=True))
    stains = np.asarray(stains) * (1 + settings.stain_shift * rng.normal(size=(PLANES, 3)))
    stains[HAEMOGLOBIN] *= rng.uniform(*settings.red_density)
    stains[CHROMATIN:NEUTRAL] *= rng.uniform(*settings.white_density)
    background = np.asarray(background) * (1 + settings.tint * rng.normal(size=3)) * rng.uniform(*settings.brightness)
    quality = settings.jpeg_quality
    return Slide(
        red_cell_px=rng.uniform(*settings.red_cell_diameter_px),
        red_cell_spread=rng.uniform(*settings.red_cell_spread),
        red_density_spread=rng.uniform(*settings.red_density_spread),
        pallor=rng.uniform(*settings.pallor),
        ring=rng.uniform(*settings.ring),
        crenated=bool(rng.random() < rng.uniform(*settings.crenated)),
        white_cell_scale=rng.uniform(*settings.white_cell_scale),
        stains=stains.astype(np.float32),
        background=np.minimum(background, 254).astype(np.float32),
        look=looks[int(np.argmax(weights))],
        shading=rng.uniform(*settings.shading),
        shading_angle=rng.uniform(0, 2 * np.pi),
        glare=rng.uniform(*settings.glare),
        fringe_px=rng.uniform(*settings.fringe_px),
        sharpening=rng.uniform(*settings.sharpening),
        noise=rng.uniform(*settings.noise),
        jpeg_quality=None if quality is None else int(rng.integers(quality[0], quality[1] + 1)),
    )


def photograph(rng: np.random.Generator, planes: Plane, slide: Slide, blur_px: float) -> Pixels:
    """What the camera makes of the stain on the slide.

    Args:
        rng: randomness of the sensor.
        planes: amounts of stain, shape (PLANES, height, width).
        slide: stain vectors, lamp, lens and camera.
        blur_px: standard deviation of the point spread.

    Returns:
        uint8 RGB, shape (height, width, 3).
    """
    import cv2

    density = np.tensordot(planes, slide.stains, axes=(0, 0)).astype(np.float32)
    light = np.exp(-density) * _lamp(rng, planes.shape[1:3], slide)[:, :, None]
    light = cv2.GaussianBlur(light, (0, 0), blur_px) if blur_px > 0 else light
    light = _fringed(np.asarray(light, np.float32), slide.fringe_px)
    light += np.float32(slide.glare) * (light.mean(axis=(0, 1)) - light)
    # Edge enhancement works on brightness, and wide enough to leave the pale rims that real pictures show.
    brightness = light.mean(axis=2)
    edges = brightness - blurred(brightness, blur_px + 1.2)
    image = (light + np.float32(slide.sharpening) * edges[:, :, None]) * slide.background
    image += _sensor_noise(rng, image, slide.noise)
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return pixels if slide.jpeg_quality is None else _through_jpeg(pixels, slide.jpeg_quality)


def _lamp(rng: np.random.Generator, size_hw: tuple[int, ...], slide: Slide) -> Plane:
    """Light on the slide, 1 where it is brightest: a slope, a fall towards the corners, and slow unevenness."""
    height, width = size_hw[:2]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    slope = x * np.float32(np.cos(slide.shading_angle)) + y * np.float32(np.sin(slide.shading_angle))
    corners = (x * x + y * y) / 2
    uneven = noise(rng, (height, width), max(height, width) / 3)
    light = 1 - np.float32(slide.shading) * (0.3 * (1 + slope) + 0.35 * corners + 0.06 * uneven)
    return np.minimum(light, 1.02).astype(np.float32)


def _fringed(light: NDArray[np.float32], fringe_px: float) -> NDArray[np.float32]:
    """Lateral colour error: red and blue are drawn a little larger and smaller than green."""
    import cv2

    if fringe_px < 0.05:
        return light
    height, width = light.shape[:2]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    out = light.copy()
    for channel, sign in ((0, 1.0), (2, -1.0)):
        scale = 1 + sign * fringe_px / float(np.hypot(*centre))
        shift = centre * (1 - scale)
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        plane = np.ascontiguousarray(light[:, :, channel])
        out[:, :, channel] = cv2.warpAffine(
            plane, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
    return out


def _sensor_noise(rng: np.random.Generator, image: NDArray[np.float32], sigma: float) -> NDArray[np.floating]:
    """Noise that grows with the light, partly shared by neighbours as after colour interpolation."""
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    lumps = blurred(rng.standard_normal(image.shape[:2], dtype=np.float32), 0.8) * np.float32(2.3)
    strength = np.sqrt(np.clip(image, 0, 255) / 255 * np.float32(0.8) + np.float32(0.2))
    return np.float32(sigma * 0.75) * (grain * np.float32(0.8) + lumps[:, :, None]) * strength


def _through_jpeg(pixels: Pixels, quality: int) -> Pixels:
    """The picture after the camera's JPEG, with its halved colour resolution."""
    import cv2

    _, code = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert decoded is not None  # it was encoded just now
    return np.ascontiguousarray(decoded[:, :, ::-1], np.uint8)
