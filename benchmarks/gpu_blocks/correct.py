"""Whether a step is right: gradients of every trained weight, and near those of the CPU in fp32."""

import importlib.metadata
import math
import platform

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpu_blocks.findings import Findings
from gpu_blocks.site import Site
from nnunet_mn.config import MNConfig
from nnunet_mn.cotraining import CoTrainer
from nnunet_mn.ranks import ALONE, Ranks

PACKAGES = ("torch", "nnunetv2", "nnunet-mn", "transformers", "timm", "peft")
BATCH, LABELED = 4, 2


def environment(site: Site, findings: Findings) -> None:
    """The card and the versions."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    findings.note("versions", python=platform.python_version(), **versions)
    if site.on_card:
        card = torch.cuda.get_device_properties(site.device)
        findings.note("card", name=card.name, GiB=card.total_memory / 2**30, cuda=torch.version.cuda)
    else:
        findings.note("card", name=None, threads=torch.get_num_threads())


def gradients(site: Site, findings: Findings) -> None:
    """One step in each precision, compiled and not, against the same step on the CPU in fp32.

    Rounding turns the sign of some activations, and their gradients with it: an error of 2^-11 in each convolution
    changes the gradient by 0.04, one of 2^-8 by 0.1 (seen on a CPU).
    """
    torch.backends.cudnn.allow_tf32 = False  # else convolutions in fp32 have the 10 bits of fp16
    cpu = Site(device=torch.device("cpu"), tiny=True, work=site.work)
    here = Site(device=site.device, tiny=True, work=site.work)
    for name, backbone in site.backbones.items():
        expected = _step(cpu, MNConfig(backbone=backbone, precision="fp32", seed=0))[1]
        for precision in site.precisions:
            for compiled in (False, True) if site.on_card else (False,):
                key = f"{name}, {precision}{', compiled' if compiled else ''}"
                with findings.attempt(key):
                    config = MNConfig(backbone=backbone, precision=precision, seed=0)
                    _judge(findings, key, *_step(here, config, compiled=compiled), expected=expected)


def ranks(site: Site, findings: Findings) -> None:
    """A step of one process in a group of its own (NCCL on a card) against one without a group."""
    here, config = Site(device=site.device, tiny=True, work=site.work), MNConfig(precision="fp32", seed=0)
    alone = _step(here, config)[1]
    backend = "nccl" if site.on_card else "gloo"
    meeting = site.work / "meeting"
    meeting.unlink(missing_ok=True)
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=0, world_size=1)
    try:
        group = dist.group.WORLD
        together = _step(here, config, joined=Ranks(group, site.device))
    finally:
        dist.destroy_process_group()
    _judge(findings, f"{backend}, one rank", *together, expected=alone)


def _step(
    site: Site, config: MNConfig, *, compiled: bool = False, joined: Ranks = ALONE
) -> tuple[CoTrainer, dict[str, Tensor], dict[str, float]]:
    """A step with half of the batch unlabeled: the co-trainer, all gradients of each network, and the losses."""
    cotrainer = site.cotrainer(config, ranks=joined, compiled=compiled)
    students = {"3D": cotrainer.student_3d, "2D": cotrainer.student_2d}
    for student in students.values():
        student.clip_norm = math.inf
    losses = cotrainer.step(*site.batch(BATCH), LABELED)
    return cotrainer, {name: _gradient(student.network) for name, student in students.items()}, losses


def _gradient(network: nn.Module) -> Tensor:
    found = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.cat([gradient.detach().double().cpu().flatten() for gradient in found])


def _judge(
    findings: Findings,
    key: str,
    cotrainer: CoTrainer,
    found: dict[str, Tensor],
    losses: dict[str, float],
    *,
    expected: dict[str, Tensor],
) -> None:
    students = (cotrainer.student_3d, cotrainer.student_2d)
    trained = [p for student in students for p in student.network.parameters() if p.requires_grad]
    away = {name: float((found[name] - theirs).norm() / theirs.norm()) for name, theirs in expected.items()}
    findings.note(
        key,
        weights_without_gradient=sum(p.grad is None for p in trained),
        finite=all(map(math.isfinite, losses.values())),
        gradient_3D_off_by=away["3D"],
        gradient_2D_off_by=away["2D"],
        skipped=sum(student.skipped for student in students),
    )
