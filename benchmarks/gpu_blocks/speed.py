"""The time and the memory of a step, against its parts and nnU-Net's own step."""

import time

import torch
from memory import LABELS
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from step import step_and_parts, stock_step

from gpu_blocks.findings import Findings
from gpu_blocks.site import Site
from nnunet_mn.config import MNConfig
from nnunet_mn.memory import GIB


def steps(site: Site, findings: Findings, *, kind: str, batch: int) -> None:
    """Every variant of the step for one 3D network and batch: half of it unlabeled, or as many on top.

    Args:
        kind: `plain` or `resenc`.
        batch: samples.
    """
    stock = None
    with findings.attempt("nnU-Net's step"):
        stock = _stock(site, kind, batch)
        findings.note("nnU-Net's step", ms=stock)
    for precision, compiled, how in _variants(site, batch):
        for name, backbone in site.backbones.items():
            key = f"{name}, {precision}{', compiled' if compiled else ''}, batch = {how}"
            with findings.attempt(key):
                config = MNConfig(backbone=backbone, precision=precision, batch=how, seed=0)
                _measure(site, findings, key, config, kind=kind, batch=batch, compiled=compiled, stock=stock)


def _variants(site: Site, batch: int) -> list[tuple[str, bool, str]]:
    """Precision, whether the 3D network is compiled, and the setting `batch`. The usual one first: time may end."""
    if not site.on_card:
        return [("fp32", False, "replace" if batch == 2 else "add")]  # each once, for a look
    usual = [("bf16", True, "add"), ("bf16", True, "replace")]
    return [*usual, ("bf16", False, "add"), ("fp16", True, "replace"), ("fp32", False, "replace")]


def _stock(site: Site, kind: str, batch: int) -> float:
    planned = site.planned(kind)
    parts = (planned["network_class_name"], planned["arch_kwargs"], planned["_kw_requires_import"])
    network = get_network_from_plans(*parts, 1, LABELS.num_channels, deep_supervision=True).to(site.device)
    volumes, masks = site.batch(batch, kind)
    weights = tuple(1 / 2**i for i in range(len(masks)))
    return site.milliseconds(stock_step(torch.compile(network) if site.on_card else network, volumes, masks, weights))


def _measure(
    site: Site,
    findings: Findings,
    key: str,
    config: MNConfig,
    *,
    kind: str,
    batch: int,
    compiled: bool,
    stock: float | None,
) -> None:
    cotrainer = site.cotrainer(config, kind, compiled=compiled)
    on_top = config.batch == "add"
    labeled = batch if on_top else batch // 2
    volumes, masks = site.batch(2 * batch if on_top else batch, kind)
    start = time.perf_counter()
    weight = 1.0 if on_top else None
    losses = cotrainer.step(volumes, masks, labeled, unlabeled_weight=weight)
    site.wait()
    first = time.perf_counter() - start
    runs = step_and_parts(cotrainer, volumes, masks, labeled, weight)
    parts = {name: site.milliseconds(run) for name, run in runs.items()}
    findings.note(
        key,
        ms=parts["step"],
        times_nnunets=parts["step"] / stock if stock else None,
        first_step_s=first,
        parts=parts,
        losses=losses,
        skipped=[cotrainer.student_3d.skipped, cotrainer.student_2d.skipped],
    )
    if site.on_card:
        torch.cuda.reset_peak_memory_stats()
        runs["step"]()
        site.wait()
        free, total = torch.cuda.mem_get_info()
        tensors = torch.cuda.max_memory_allocated() / GIB
        findings.note(f"{key}, measured GiB", tensors=tensors, card=(total - free) / GIB)
