"""MR-like phantoms: a bent organ of two parts among structures of the same intensities."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_mn.sandbox.scanners import Scanner, acquire
from nnunet_mn.sandbox.volumes import SHAPE, Array, positions, texture, unit_vector

LABELS = {"background": 0, "head": 1, "tail": 2}


@dataclass(frozen=True)
class Phantom:
    """One volume: `image` (z, y, x) in arbitrary units and its `label` map of the same shape."""

    image: NDArray[np.float32]
    label: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Organ:
    """Shape and pose of the organ; lengths in mm, angles in radians."""

    center: Array  # (3,) z, y, x
    rotation: Array  # (3, 3) rows are the organ's own axes: along, across, depth
    length: float
    head_radius: float
    tail_radius: float
    bend: float  # sideways shift of both ends against the middle
    split: float  # border of tail and head, as a share of the length


def make_phantom(rng: np.random.Generator, scanner: Scanner) -> Phantom:
    """Draw one phantom.

    Args:
        rng: the only source of randomness; the same state gives the same phantom on one machine.
        scanner: takes the image of it. The anatomy and the label do not depend on the scanner.

    Returns:
        A volume of `SHAPE` voxels at `SPACING` mm, labeled as in `LABELS`.
    """
    points = positions()
    organ = _draw_organ(rng)
    tissue, head, tail = rng.uniform(0.3, 0.4), rng.uniform(0.75, 0.9), rng.uniform(0.54, 0.66)
    body = _ellipsoid(points, np.zeros(3), np.array([29.0, 34.0, 34.0]) * rng.uniform(0.92, 1.05, 3), np.eye(3))
    image = _paint(np.zeros(SHAPE), body, rng.uniform(0.7, 0.95))  # a bright rim, as of fat
    image = _paint(image, body + rng.uniform(2.5, 4.5), tissue + 0.05 * texture(rng, sigma_mm=3.0))
    for distance in _draw_neighbors(rng, points, organ):
        image = _paint(image, distance, rng.choice([head, tail]) + rng.uniform(-0.05, 0.05))
    image = _paint(image, _draw_fluid(rng, points, organ), rng.uniform(0.08, 0.25))
    along, distance = organ_distance(organ, points)
    intensity = np.where(along > organ.split, head, tail)
    image = _paint(image, distance, intensity + 0.04 * texture(rng, sigma_mm=3.0))
    label = np.where(distance < 0, np.where(along > organ.split, LABELS["head"], LABELS["tail"]), 0)
    return Phantom(acquire(rng, image, scanner).astype(np.float32), label.astype(np.uint8))


def organ_distance(organ: Organ, points: Array) -> tuple[Array, Array]:
    """Position along the organ (0 at the tail's end, 1 at the head's) and about the distance to its surface.

    Args:
        organ: shape and pose.
        points: (..., 3) positions in mm.

    Returns:
        Two arrays of shape (...); the second one in mm, negative inside.
    """
    local = (points - organ.center) @ organ.rotation.T  # (..., 3) along, across, depth
    along = local[..., 0] / organ.length + 0.5
    inside = np.clip(along, 0, 1)
    across = local[..., 1] - organ.bend * (4 * (inside - 0.5) ** 2 - 0.5)
    thickening = 1 / (1 + np.exp(-10 * (inside - organ.split)))  # the organ swells into its head
    radius = organ.tail_radius + (organ.head_radius - organ.tail_radius) * thickening
    past_end = (along - inside) * organ.length
    return along, np.sqrt(past_end**2 + across**2 + (1.25 * local[..., 2]) ** 2) - radius


def _draw_organ(rng: np.random.Generator) -> Organ:
    """Pose and shape vary more than four cases can show."""
    in_plane = np.array([[0.0, 0.5, 0.87], [0.0, 0.87, -0.5], [1.0, 0.0, 0.0]])
    return Organ(
        center=rng.uniform(-1, 1, 3) * np.array([5.0, 6.0, 6.0]),
        rotation=in_plane @ _rotation(rng.normal(0, [0.45, 0.25, 0.25])),
        length=rng.uniform(28, 38),
        head_radius=rng.uniform(9, 11.5),
        tail_radius=rng.uniform(6.5, 8.5),
        bend=rng.uniform(5, 14),
        split=rng.uniform(0.5, 0.62),
    )


def _draw_neighbors(rng: np.random.Generator, points: Array, organ: Organ) -> list[Array]:
    """Straight structures as bright as the organ; they are found anywhere, and may touch it."""
    distances = []
    for _ in range(rng.integers(3, 6)):
        direction = unit_vector(rng)
        center = organ.center + direction * rng.uniform(14, 30)
        radii = rng.uniform(3.5, 9) * np.array([rng.uniform(1.0, 2.2), 1.0, rng.uniform(0.8, 1.0)])
        distances.append(_ellipsoid(points, center, radii, _rotation(rng.uniform(-np.pi, np.pi, 3))))
    return distances


def _draw_fluid(rng: np.random.Generator, points: Array, organ: Organ) -> Array:
    """A dark cavity in the hollow of the bend: by this landmark the organ differs from its neighbors."""
    center = organ.center + organ.rotation[1] * (organ.bend * 0.5 + organ.head_radius * rng.uniform(0.8, 1.1))
    radii = np.array([rng.uniform(7, 12), rng.uniform(3, 5), rng.uniform(4, 8)])
    return _ellipsoid(points, center, radii, organ.rotation)


def _ellipsoid(points: Array, center: Array, radii: Array, rotation: Array) -> Array:
    """About the distance in mm of each point to an ellipsoid's surface, negative inside."""
    scaled: Array = np.linalg.norm((points - center) @ rotation.T / radii, axis=-1)
    return (scaled - 1) * float(radii.min())


def _paint(image: Array, distance: Array, value: Array | float) -> Array:
    """Lay a structure over the image; its edge is about 1 mm wide, as partial volume makes it."""
    share = 1 / (1 + np.exp(np.clip(distance / 0.4, -50, 50)))
    return image * (1 - share) + value * share


def _rotation(angles: Array) -> Array:
    """Rotation matrix of the angles (radians) about z, y and x."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix
