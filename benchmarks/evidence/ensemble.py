"""nnU-Net's own ensemble of two models, which its users know: predict with each, average, evaluate."""

from pathlib import Path

from evidence.runs import Run
from evidence.training import predict
from evidence.workspace import Workspace

from nnunet_mn.bridge.stock_commands import run_stock


def ensemble(run: Run, space: Workspace) -> Path:
    """Average the predictions of finished runs for the fold's validation cases, and evaluate.

    Returns:
        A folder with `validation/summary.json`, as nnU-Net's trainings leave one.
    """
    folder = run.fold_folder(space)
    images, output = folder / "images", folder / "validation"
    space.link_images(space.split(run.fold)["val"], images)
    predictions = []
    for name in run.method.ensemble_of:
        predictions.append(folder / name)
        predict(run.other(name), space, images, predictions[-1], "--save_probabilities")
    environment, log = space.environment({}, run=run.name), space.log(run.name)
    average = ["nnUNetv2_ensemble", "-i", *map(str, predictions), "-o", str(output), "-np", "1"]
    run_stock(average, environment=environment, log=log)
    evaluate = ["nnUNetv2_evaluate_folder", str(space.dataset / "labelsTr"), str(output), "--chill", "-np", "1"]
    evaluate += ["-djfile", str(space.dataset / "dataset.json"), "-pfile", str(predictions[0] / "plans.json")]
    run_stock(evaluate, environment=environment, log=log)
    return folder
