"""The doctor's check of GPU memory against the plan."""

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

from nnunet_mn.bridge.cases.planned import PlannedDataset
from nnunet_mn.bridge.doctor.page import Row

GIB = 2**30
# nnU-Net's planners calibrate their memory estimate so: 8 GB hold this many convolution outputs at a batch of 2.
REFERENCE_GIB, REFERENCE_BATCH = 8.0, 2
REFERENCE_FEATURES = {"PlainConvUNet": 560e6, "ResidualEncoderUNet": 680e6}
ROOM_FOR_2D = 0.8  # share of the card beyond which the 2D network may not fit beside the 3D one


def check_memory(planned: PlannedDataset) -> list[Row]:
    """Whether the planned network fits the first GPU; no row without one."""
    needed = estimated_gib(planned)
    if needed is None or not torch.cuda.is_available():
        return []
    return [judge(needed, total=torch.cuda.mem_get_info(0)[1] / GIB)]


def judge(needed: float, *, total: float) -> Row:
    """The row for a 3D network that needs some GiB, on a card of `total` GiB."""
    text = f"nnU-Net's estimate for the 3D network is {needed:.1f} GiB of the {total:.1f} GiB of GPU 0"
    if needed > total:
        return Row("bad", "GPU memory", f"{text}; plan again with a smaller -gpu_memory_target")
    if needed > ROOM_FOR_2D * total:
        return Row(
            "note",
            "GPU memory",
            f"{text}, and the 2D network needs some too; if it fails, lower nnUNet_mn_slices_per_forward",
        )
    return Row("good", "GPU memory", text)


def estimated_gib(planned: PlannedDataset) -> float | None:
    """What the 3D network's training takes by nnU-Net's own rule; None for an architecture that has none."""
    manager = planned.configuration_manager
    reference = REFERENCE_FEATURES.get(manager.network_arch_class_name.rpartition(".")[2])
    if reference is None:
        return None
    labels = planned.plans_manager.get_label_manager(planned.dataset_json)
    with torch.device("meta"):  # only shapes are asked for
        network = get_network_from_plans(
            manager.network_arch_class_name,
            manager.network_arch_init_kwargs,
            manager.network_arch_init_kwargs_req_import,
            determine_num_input_channels(planned.plans_manager, manager, planned.dataset_json),
            labels.num_segmentation_heads,
            allow_init=False,
        )
    features = float(network.compute_conv_feature_map_size(manager.patch_size))
    return features / reference * REFERENCE_GIB * int(manager.batch_size) / REFERENCE_BATCH
