"""Two scanners: the labeled scans come from one, all others from another with a brighter side."""

from dataclasses import dataclass

import numpy as np

from nnunet_mn.sandbox.volumes import SHAPE, Array, positions, smooth, texture, unit_vector


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """What a scanner does to an image. Each scan draws its own values between the bounds.

    Args:
        gamma: exponent of the contrast.
        shading: standard deviation of the log of a smooth field that the image is multiplied by.
        decay_mm: the brightness falls by the factor e over this distance from the coil's side; None: an even coil.
        noise: standard deviation of the Rician noise, where the brightest tissue is about 1.
    """

    gamma: tuple[float, float]
    shading: tuple[float, float]
    decay_mm: tuple[float, float] | None
    noise: tuple[float, float]


# Stock augmentation changes contrast, noise and blur, but it never shades an image.
EVEN_COIL = Scanner(gamma=(0.9, 1.1), shading=(0.05, 0.1), decay_mm=None, noise=(0.02, 0.03))
SURFACE_COIL = Scanner(gamma=(0.8, 1.3), shading=(0.1, 0.25), decay_mm=(45.0, 75.0), noise=(0.02, 0.05))


def acquire(rng: np.random.Generator, image: Array, scanner: Scanner) -> Array:
    """The scan of an ideal image (z, y, x): contrast, coil, blur, Rician noise and an arbitrary scale."""
    image = np.clip(image, 0, None) ** rng.uniform(*scanner.gamma)
    image = image * np.exp(rng.uniform(*scanner.shading) * texture(rng, sigma_mm=35.0))
    if scanner.decay_mm is not None:
        image = image * np.exp(positions() @ unit_vector(rng) / rng.uniform(*scanner.decay_mm))
    image = smooth(image, sigma_mm=0.7)
    noise = rng.normal(0, rng.uniform(*scanner.noise), (2, *SHAPE))
    magnitude: Array = np.hypot(image + noise[0], noise[1])
    return rng.uniform(200, 900) * magnitude
