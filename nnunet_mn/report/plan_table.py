"""The table at the end of planning."""

from collections.abc import Mapping

from rich.table import Table

from nnunet_mn.bridge.planning.cost import CARD, PlanCost


def plan_table(costs: Mapping[str, PlanCost], *, target_gib: float, backbone: str) -> Table:
    """Memory and time of each configuration, one column each.

    Args:
        costs: by configuration; their settings hold the slices in flight.
        backbone: the 2D network, for the title.
    """
    table = Table(title=f"M&N with {backbone}, for {target_gib:g} GiB of GPU memory")
    table.add_column("", no_wrap=True)
    for name in costs:
        table.add_column(name, justify="right", no_wrap=True)
    columns = [_cells(cost) for cost in costs.values()]
    for label in columns[0] if columns else ():
        table.add_row(label, *(column[label] for column in columns))
    return table


def _cells(cost: PlanCost) -> dict[str, str]:
    slices = cost.config.slices_per_forward or cost.most_slices
    of_3d, of_2d = cost.networks_gib
    return {
        "patch (voxels)": " x ".join(map(str, cost.patch_size)),
        "batch": str(cost.batch_size),
        "slices in flight": f"{slices} of {cost.most_slices}",
        "weights, optimizer: 3D network (GiB)": f"{of_3d:.2f}",
        "weights, optimizer: 2D network (GiB)": f"{of_2d:.2f}",
        "peak, 3D network in training (GiB)": f"{cost.phase_3d_gib(slices):.1f}",
        "peak, 2D network in training (GiB)": f"{cost.phase_2d_gib(slices):.1f}",
        "TFLOP per step": f"{cost.flops(slices) / 1e12:.2f}",
        f"1,000 epochs on an {CARD} (hours, at least)": f"{cost.gpu_hours(slices):.1f}",
    }
