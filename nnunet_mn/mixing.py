"""Copy-paste: a box of a labeled sample, with its mask, covers a part of each unlabeled one (Bai et al., CVPR 2023).

The reference pastes both ways; here labeled samples stay whole, so that some of each batch look like test images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SHORTEST, LONGEST = 0.3, 0.7  # of a box's edge, as a share of the volume's: 3 to 34 % of its voxels


class Paste(NamedTuple):
    """What covers a part of an unlabeled sample.

    Args:
        source: index of the labeled sample.
        box: the same place in both, as slices along D, H and W.
    """

    source: int
    box: tuple[slice, ...]


def draw_pastes(n_labeled: int, n_unlabeled: int, size: Sequence[int], generator: torch.Generator) -> list[Paste]:
    """One paste for each unlabeled sample; none where no sample is labeled.

    Args:
        n_labeled, n_unlabeled: samples in the batch.
        size: D, H, W of a volume, in voxels.
        generator: draws sources and boxes.
    """
    if n_labeled == 0:
        return []
    return [
        Paste(int(torch.randint(n_labeled, (), generator=generator)), _draw_box(size, generator))
        for _ in range(n_unlabeled)
    ]


def _draw_box(size: Sequence[int], generator: torch.Generator) -> tuple[slice, ...]:
    shares, places = torch.rand(2, len(size), generator=generator).tolist()
    shares = [SHORTEST + (LONGEST - SHORTEST) * share for share in shares]
    edges = [max(1, round(n * share)) for n, share in zip(size, shares, strict=True)]
    starts = [int((n - edge + 1) * place) for n, edge, place in zip(size, edges, places, strict=True)]
    return tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))


def paste(labeled: Tensor, unlabeled: Tensor, pastes: Sequence[Paste]) -> Tensor:
    """Unlabeled samples `(n_u, C, D, H, W)`, each with its box of a labeled one `(n_l, C, D, H, W)`; a copy if any."""
    if not pastes:
        return unlabeled
    mixed = unlabeled.clone()
    for sample, (source, box) in zip(mixed, pastes, strict=True):
        where = (slice(None), *box)
        sample[where] = labeled[source][where]
    return mixed
