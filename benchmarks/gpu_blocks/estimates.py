"""The planner's estimate for every step of the benchmark. It needs no card."""

from dataclasses import replace

from memory import LABELS, SPACING

from gpu_blocks.findings import Findings
from gpu_blocks.site import Site
from nnunet_mn.bridge.planning.cost_model import CostModel
from nnunet_mn.bridge.training.assembly import slice_axes
from nnunet_mn.config import MNConfig


def estimates(site: Site, findings: Findings) -> None:
    """Memory in both phases of a step, and the hours of a training: the same for every precision."""
    for name, backbone in site.backbones.items():
        with findings.attempt(name):
            config = MNConfig(backbone=backbone, seed=0)
            model = CostModel(config, channels=1, labels=LABELS)
            for kind in ("plain", "resenc"):
                for batch in (2, 4):
                    cost = model.of(site.planned(kind), site.patch, batch, axes=slice_axes(config, SPACING))
                    for how in ("add", "replace"):
                        of_this = replace(cost, config=replace(config, batch=how))
                        findings.note(
                            f"{kind}{batch}, {name}, batch = {how}",
                            phase_3D_GiB=of_this.phase_3d_gib(of_this.most_slices),
                            phase_2D_GiB=of_this.phase_2d_gib(of_this.most_slices),
                            A100_hours_at_least=of_this.gpu_hours(of_this.most_slices),
                        )
