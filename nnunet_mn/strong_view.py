"""A stronger view of unlabeled samples for the students: other contrast, brightness, sharpness and noise."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

CONTRAST = (0.6, 1.5)  # a factor, around the mean
SHIFT = 0.5  # of the brightness, up or down, at most
MOST_NOISE = 0.3  # standard deviation
CHANCES = {"contrast": 0.8, "shift": 0.8, "blur": 0.4, "noise": 0.5}


@dataclass(frozen=True, kw_only=True)
class StrongView:
    """Changes the intensities of volumes `(n, C, D, H, W)`, each channel by draws of its own. Nothing moves.

    The teacher sees the volumes as they are. Its masks hold for both views (weak-to-strong consistency: Sohn et al.,
    FixMatch, NeurIPS 2020). Shift and noise are in standard deviations of the channel: they fit any normalization.

    Args:
        generator: of one number a call, the seed of all other draws. Ranks with a common batch need the same state.
    """

    generator: torch.Generator = field(default_factory=torch.Generator)

    def __call__(self, volumes: Tensor) -> Tensor:
        seed = int(torch.randint(2**62, (), generator=self.generator))
        if len(volumes) == 0:  # pooling takes none
            return volumes
        rng = torch.Generator(volumes.device).manual_seed(seed)
        spread, mean = torch.std_mean(volumes, dim=(2, 3, 4), keepdim=True, correction=0)  # (n, C, 1, 1, 1)

        def draw(name: str, low: float, high: float, neutral: float) -> Tensor:
            """One number for each channel: a change by its chance, else the neutral one."""
            drawn = low + (high - low) * torch.rand(mean.shape, device=mean.device, generator=rng)
            is_changed = torch.rand(mean.shape, device=mean.device, generator=rng) < CHANCES[name]
            return torch.where(is_changed, drawn, neutral)

        factor, shift = draw("contrast", *CONTRAST, 1), draw("shift", -SHIFT, SHIFT, 0)
        changed = (volumes - mean) * factor + mean + shift * spread
        smooth = functional.avg_pool3d(functional.pad(changed, (1,) * 6, mode="replicate"), 3, stride=1)
        changed = changed.lerp(smooth, draw("blur", 0, 1, 0))
        noise = torch.randn(volumes.shape, device=volumes.device, generator=rng)
        return changed + draw("noise", 0, MOST_NOISE, 0) * spread * noise
