"""nnU-Net's experiment planners for M&N: `nnUNetv2_plan_and_preprocess -d 4 -pl MNPlanner`.

They change the stock planner only for the needs of M&N. Each change has its reason beside it.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from nnunetv2.configuration import default_num_processes
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from rich.console import Console

from nnunet_mn.bridge.cases.dataset import CaseFolders
from nnunet_mn.bridge.cases.raw_images import n_channels
from nnunet_mn.bridge.cases.unlabeled import find_unlabeled
from nnunet_mn.bridge.last_word import last_word
from nnunet_mn.bridge.planning.cost import PlanCost
from nnunet_mn.bridge.planning.cost_model import CostModel, written_settings
from nnunet_mn.bridge.planning.fingerprint import (
    MNFingerprintExtractor,
    check_description,
    check_fingerprint,
    check_splits,
    fingerprint,
)
from nnunet_mn.bridge.training.assembly import label_space, slice_axes
from nnunet_mn.bridge.versions import check_nnunet_version
from nnunet_mn.config import environment_layer, resolve
from nnunet_mn.console import print_table
from nnunet_mn.device import cpu_count
from nnunet_mn.errors import MNError
from nnunet_mn.networks.registry import EMBEDDED
from nnunet_mn.report.plan_table import plan_table
from nnunet_mn.schedule import FEWEST_TO_FLOOR

__all__ = ["MNFingerprintExtractor", "MNPlanner", "MNPlannerResEncL", "MNPlannerResEncM", "MNPlannerResEncXL"]

MN_PLANS = "nnUNetMNPlans"
STOCK_TARGET_GIB = 8.0  # of nnU-Net's default planner
WANTED_BATCH, SMALLEST_BATCH = FEWEST_TO_FLOOR, 2
SHRINK = 0.9
LEAST_SHARE = 0.05  # of the target; no patch is tried for less


class _MNPlanning(ExperimentPlanner):
    """M&N's changes to a stock planner. Another stock planner may stand after this class among the bases.

    - Spacing and shape come from labeled **and** unlabeled images: a few labeled scans say little about a dataset's
      geometry. Intensities need masks and come from labeled cases alone. No label of an unlabeled case is read.
    - The dataset's size counts unlabeled cases. It caps the batch at 5 % of the dataset.
    - A batch of at least 4 is planned if the memory target allows it: the share of unlabeled samples can then grow in
      steps. Memory beyond stock's 8 GiB goes to a batch of 4 first, then to a larger patch.
    - The memory target covers both networks in the worse of a step's two phases. The 2D network is measured on a slice
      and gets as many slices in flight as fit. The patch is shrunk only if one slice does not fit.
    - Each 3D configuration gets a dictionary `mn` with the backbone and the settings of the plan.
    """

    default_target_gib: ClassVar[float] = 8  # as stock's planner of the same size
    default_plans_name: ClassVar[str] = MN_PLANS

    dataset_json: dict[str, Any]
    UNet_vram_target_GB: float
    _warnings: list[str]

    @last_word
    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        target = self.default_target_gib if gpu_memory_target_in_gb is None else gpu_memory_target_in_gb
        name = self.default_plans_name if plans_name is None else plans_name
        check_description(dataset_name_or_id)
        check_fingerprint(dataset_name_or_id)
        check_splits(dataset_name_or_id)
        super().__init__(
            dataset_name_or_id, target, preprocessor_name, name, overwrite_target_spacing, suppress_transpose
        )

    @last_word
    def plan_experiment(self) -> dict[str, Any]:
        """Plan as stock does, on a fingerprint of all images, and print the cost of the plans."""
        check_nnunet_version()
        config = resolve(environment_layer())
        labels = label_space(LabelManager(self.dataset_json["labels"], self.dataset_json.get("regions_class_order")))
        self._costs = CostModel(config, channels=n_channels(self.dataset_json), labels=labels)
        self.planned: dict[str, PlanCost] = {}
        self._look_at_the_dataset(config.unlabeled_sources)
        plans: dict[str, Any] = super().plan_experiment()
        shown = {name: cost for name, cost in self.planned.items() if name in plans["configurations"]}
        print_table(plan_table(shown, target_gib=self.UNet_vram_target_GB, backbone=config.backbone), Console())
        for warning in self._warnings:
            print(warning)
        return plans

    def _look_at_the_dataset(self, sources: tuple[str, ...] | None) -> None:
        """Put our own fingerprint in place of stock's: stock's statistics hold labels of unlabeled cases."""
        processes = min(default_num_processes, cpu_count())  # nnU-Net's 8 take half a minute to start on one CPU
        extractor = MNFingerprintExtractor(self.dataset_name, processes)
        raw = Path(self.raw_dataset_folder)
        folders = CaseFolders(raw=raw, labeled=Path(self.plans_identifier), description=self.dataset_json)
        found = find_unlabeled(folders, extractor.roles, sources)
        unlabeled = {case.name: case.images for case in found.cases if case.name not in extractor.dataset}
        self.dataset_fingerprint, warnings = fingerprint(extractor, unlabeled)
        self.dataset_json = {**self.dataset_json, "numTraining": len(self.dataset_fingerprint["spacings"])}
        print(f"M&N plans for {len(extractor.dataset)} labeled and {len(unlabeled)} unlabeled cases")
        self._warnings = [*extractor.warnings, *found.warnings, *warnings, *self._costs.warnings]

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[str, Any],
    ) -> dict[str, Any]:
        """Plan a configuration as stock does, with both networks inside the memory target."""
        stock = (spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache)
        if len(spacing) == 2:  # M&N does not train it
            plans: dict[str, Any] = super().get_plans_for_configuration(*stock)
            return plans
        target = self.UNet_vram_target_GB
        aim = max(min(target, STOCK_TARGET_GIB), target * SMALLEST_BATCH / WANTED_BATCH)
        try:
            while aim > LEAST_SHARE * target:
                self.UNet_vram_target_GB = aim  # stock shrinks the patch until a batch of 2 fits
                plan: dict[str, Any] = super().get_plans_for_configuration(*stock)
                covered = approximate_n_voxels_dataset * self.max_dataset_covered / math.prod(plan["patch_size"])
                most = min(round(plan["batch_size"] * target / aim), round(covered))
                cost = self._fit(plan, target, max(most, WANTED_BATCH))
                if cost is not None:
                    self.planned[f"3d{data_identifier.rpartition('_3d')[2]}"] = cost
                    return plan
                aim *= SHRINK
        finally:
            self.UNet_vram_target_GB = target
        backbone = self._costs.config.backbone
        smaller = "" if backbone == EMBEDDED else f", or choose a smaller 2D network: nnUNet_mn_backbone={EMBEDDED}"
        raise MNError(
            f"{target:g} GiB of GPU memory do not hold both networks with the backbone {backbone}, however small the "
            f"patch; raise -gpu_memory_target{smaller}"
        )

    def _fit(self, plan: dict[str, Any], target: float, most: int) -> PlanCost | None:
        """Give a plan the largest fitting batch up to `most`, and the slices in flight. None: no batch fits."""
        axes = slice_axes(self._costs.config, plan["spacing"])
        for batch_size in range(most, SMALLEST_BATCH - 1, -1):
            cost = self._costs.of(plan["architecture"], plan["patch_size"], batch_size, axes=axes)
            slices = cost.config.slices_per_forward or cost.slices_that_fit(target)
            if slices and max(cost.phase_3d_gib(slices), cost.phase_2d_gib(slices)) <= target:
                config = replace(cost.config, slices_per_forward=slices)
                plan["batch_size"], plan["mn"] = batch_size, written_settings(config)
                return replace(cost, config=config)
        return None


class MNPlanner(_MNPlanning):
    """nnU-Net's default planner for M&N; writes `nnUNetMNPlans`."""


class _MNResEncPlanning(_MNPlanning):
    """M&N for the residual-encoder presets."""

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Share the preprocessed cases of `MNPlanner`, as stock's presets share those of its default planner."""
        shared = configuration_name in ("2d", "3d_fullres")
        return f"{MN_PLANS if shared else self.plans_identifier}_{configuration_name}"


class MNPlannerResEncM(_MNResEncPlanning, nnUNetPlannerResEncM):
    """The residual-encoder preset M (about 9 GiB) for M&N; writes `nnUNetResEncUNetMMNPlans`."""

    default_plans_name = "nnUNetResEncUNetMMNPlans"


class MNPlannerResEncL(_MNResEncPlanning, nnUNetPlannerResEncL):
    """The residual-encoder preset L (24 GiB) for M&N; writes `nnUNetResEncUNetLMNPlans`."""

    default_target_gib = 24
    default_plans_name = "nnUNetResEncUNetLMNPlans"


class MNPlannerResEncXL(_MNResEncPlanning, nnUNetPlannerResEncXL):
    """The residual-encoder preset XL (40 GiB) for M&N; writes `nnUNetResEncUNetXLMNPlans`."""

    default_target_gib = 40
    default_plans_name = "nnUNetResEncUNetXLMNPlans"
