"""`nnunet-mn report`: predicts what is missing, and writes the page and its tables."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile

from nnunet_mn.bridge.files import refusals_told, write_whole
from nnunet_mn.bridge.prediction.fold import TrainedFold, load_segmentation
from nnunet_mn.bridge.prediction.structures import structures_of
from nnunet_mn.report.page import Content, render
from nnunet_mn.report.predictions import PredictionOptions, Predictions, writing_to
from nnunet_mn.report.ranking import rank
from nnunet_mn.report.reference import usual_structures
from nnunet_mn.report.tables import as_csv, as_json, rows_of
from nnunet_mn.report.training import training_of
from nnunet_mn.report.validation import read_validation

PAGE, CSV, JSON = "report.html", "report.csv", "report.json"


@refusals_told()
def write_report(found: TrainedFold, out: Path, options: PredictionOptions, log: Callable[[str], None] = print) -> Path:
    """Write `report.html`, `report.csv` and `report.json`. What earlier runs predicted is used.

    Args:
        found: the trained fold.
        out: the folder; it is made if needed.
        options: how to predict.
        log: takes lines for the user.

    Returns:
        The page.

    Raises:
        MNError: when a file cannot be read, the networks cannot be built, or the folder cannot be written.
    """
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()  # before hours of predictions
    planned = found.planned
    configuration = planned.configuration_manager
    labels = planned.plans_manager.get_label_manager(planned.dataset_json)
    structures = structures_of(labels, planned.dataset_json)
    ending = planned.dataset_json["file_ending"]
    official = read_validation(found.folder / "validation", structures, ending) if found.is_finished else {}
    labeled = (load_segmentation(case) for case in found.cases("labeled"))
    usual = usual_structures(labeled, structures, spacing=configuration.spacing, ignored=labels.ignore_label)
    results = Predictions(found, out, options).all(log)
    val, unlabeled = ([case for case in results if case.role == role] for role in ("val", "unlabeled"))
    ranked = rank(unlabeled, usual)
    training = training_of(found)
    rows = list(rows_of(val, official, ranked))
    page = render(
        Content(
            title=f"{found.folders.dataset.name}, {found.folders.trained.name}, fold {found.fold}",
            training=training,
            official=official,
            val=val,
            ranked=ranked,
            usual=usual,
            ignores=labels.has_ignore_label,
            held_out=bool(found.roles.held_out),
            channel=_channel(planned.dataset_json),
            spacing=[round(float(side), 3) for side in configuration.spacing],
            warnings=found.warnings,
            mirroring=options.mirroring,
            masks=str(out / "masks") if options.masks else None,
        )
    )
    with writing_to(out):
        for name, text in ((CSV, as_csv(rows)), (JSON, as_json(training, rows)), (PAGE, page)):
            write_whole(out / name, text)
    return out / PAGE


def _channel(description: dict[str, dict[str, str]]) -> str:
    """The image in the pictures, in words."""
    names = list(description.get("channel_names", description.get("modality", {})).values())
    return f"the image ({names[0]})" if len(names) == 1 else f"{names[0]}, the first of {len(names)} channels"
