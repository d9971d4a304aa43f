"""The command `nnunet-mn`.

Each command imports its modules when it runs: `nnunet-mn --help` must not wait for torch.
"""

import itertools
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from nnunet_mn import __version__
from nnunet_mn.errors import MNError

app = typer.Typer(
    name="nnunet-mn",
    help="Semi-supervised 3D segmentation for nnU-Net v2: a pretrained 2D and a 3D network teach each other.",
    epilog="Example: nnunet-mn register; then nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerMN",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


Dataset = Annotated[str, typer.Option("-d", "--dataset", help="Number or name of the dataset.")]

Configuration = Annotated[str, typer.Option("-c", "--configuration", help="Configuration of the plans.")]
Plans = Annotated[str, typer.Option("-p", "--plans", help="Name of the plans.")]
Trainer = Annotated[str, typer.Option("-tr", "--trainer", help="Name of the trainer.")]

ONE_FOLD = {"allow_extra_args": True}  # for `_refuse_more`


def _refuse_more(context: typer.Context) -> None:
    """Raise an MNError for words behind the options: in nnU-Net's own commands -f takes several folds."""
    if words := " ".join(context.args):
        raise MNError(f"'{words}' belongs to no option: -f takes one fold here, so run the command once for each fold")


def main() -> None:
    """Run the command line; a mistake of the user ends in one line on stderr and exit code 2."""
    try:
        app()
    except MNError as error:
        print(f"nnunet-mn: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nnunet-mn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: nnunet-mn register")
def register() -> None:
    """Let nnU-Net's own commands find M&N's trainers (once per environment)."""
    from nnunet_mn.bridge import registration

    for file in registration.register():
        typer.echo(f"registered: {file}")


@app.command(epilog="Example: nnunet-mn unregister")
def unregister() -> None:
    """Remove the files that `register` wrote."""
    from nnunet_mn.bridge import registration

    removed = registration.unregister()
    for file in removed:
        typer.echo(f"removed: {file}")
    if not removed:
        typer.echo("nothing was registered")


@app.command(epilog='Example: export nnUNet_extTrainer="$(nnunet-mn trainers-path)"')
def trainers_path() -> None:
    """Print the folder for nnUNet_extTrainer, for a read-only site-packages (nnunetv2 >= 2.8)."""
    from nnunet_mn.bridge import registration

    typer.echo(registration.trainers_path())


@app.command(epilog="Example: nnunet-mn demo --out /tmp/mn-demo --quick")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the generated data, the models and the results.")] = Path(
        "nnunet-mn-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated data and of both trainings.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer cases and updates: shows that it runs, no more.")
    ] = False,
) -> None:
    """Train on generated data with and without unlabeled images, and compare (needs no GPU; some minutes).

    The labeled scans come from one scanner. The unlabeled and the test scans come from another, which shades its
    images: unlabeled images can help here.
    """
    from nnunet_mn.demo import run_demo

    run_demo(out, seed=seed, quick=quick)


@app.command(epilog="Example: nnunet-mn split -d 4 --labeled 4 --val 20")
def split(
    dataset: Dataset,
    labeled: Annotated[int, typer.Option(min=1, help="Cases to train on with their labels.")],
    val: Annotated[
        int | None, typer.Option(min=1, help="Validation cases per fold; a fifth of the rest if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draw.")] = 0,
    folds: Annotated[int, typer.Option(min=1, help="Folds; their validation cases are disjoint.")] = 5,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file and keep a copy of it.")] = False,
) -> None:
    """Draw labeled, validation and unlabeled cases from a dataset with labels, for experiments."""
    from nnunet_mn.bridge.cases.dataset import find_dataset
    from nnunet_mn.bridge.cases.draw_splits import draw_splits, training_cases, write_splits

    folders = find_dataset(dataset)
    cases = training_cases(folders.raw_here())
    drawn = draw_splits(cases, labeled=labeled, val=val, folds=folds, seed=seed)
    file, backup = write_splits(folders, drawn, force=force)
    if backup is not None:
        typer.echo(f"kept the previous file as {backup}")
    counts = ", ".join(f"{len(names)} {part}" for part, names in drawn[0].items())
    typer.echo(f"wrote {file}: {folds} folds of {counts}")


@app.command(context_settings=ONE_FOLD, epilog="Example: nnunet-mn suggest -d 4 -n 4")
def suggest(
    context: typer.Context,
    dataset: Dataset,
    n: Annotated[int, typer.Option("-n", min=1, help="Cases to suggest.")] = 4,
    report: Annotated[
        Path | None, typer.Option(help="JSON file of a report: prefer cases that the networks get wrong.")
    ] = None,
    fold: Annotated[int, typer.Option("-f", "--fold", min=0, help="Fold that says which cases are labeled.")] = 0,
    ignore_labels: Annotated[
        bool, typer.Option("--ignore-labels", help="Choose as if no case had a label, for experiments.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Let the fold train on the chosen cases.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --write: replace a split file, keep a copy.")] = False,
    processes: Annotated[int, typer.Option("-np", min=1, help="Processes; more take more memory.")] = 1,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad images out and list them.")] = False,
) -> None:
    """Suggest which cases to label: typical ones of groups that look alike."""
    from nnunet_mn.bridge.cases.dataset import find_dataset
    from nnunet_mn.bridge.cases.draw_splits import refuse_to_replace
    from nnunet_mn.bridge.suggesting import run
    from nnunet_mn.bridge.suggesting.candidates import find_candidates
    from nnunet_mn.report.suggestion_table import print_suggestions

    _refuse_more(context)
    folders = find_dataset(dataset)
    estimates = run.read_estimates(report) if report is not None else None
    candidates = find_candidates(folders, fold=fold, ignore_labels=ignore_labels)
    if write:
        refuse_to_replace(folders, force=force)  # before the long work
    chosen = run.suggest_cases(
        candidates,
        n,
        folder=folders.preprocessed,
        estimated_dice=estimates,
        processes=processes,
        skip_bad=skip_bad,
        log=lambda line: typer.echo(line, err=True),
    )
    print_suggestions(chosen, as_json=as_json)
    if write:
        file, backup = run.write_chosen(folders, candidates, chosen, fold=fold, force=force)
        if backup is not None:
            typer.echo(f"kept the previous file as {backup}", err=True)
        if candidates.splits is None:
            typer.echo(
                "WARNING: there was no split file. The new one has a single fold without validation cases, where "
                "nnU-Net would have drawn five folds: move some labeled cases to its list 'val'",
                err=True,
            )
        written = 0 if candidates.splits is None else fold
        typer.echo(f"wrote {file}: fold {written} trains on these cases once imagesTr and labelsTr have them", err=True)


@app.command(epilog="Example: nnunet-mn preprocess -d 4 -c 3d_fullres -np 8")
def preprocess(
    dataset: Dataset,
    configuration: Configuration = "3d_fullres",
    plans: Plans = "nnUNetPlans",
    processes: Annotated[int, typer.Option("-np", min=1, help="Number of processes; more take more memory.")] = 4,
    num_parts: Annotated[int, typer.Option(min=1, help="Number of jobs that share the work.")] = 1,
    part_id: Annotated[int, typer.Option(min=0, help="Number of this job, from 0 on.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad images out and list them.")] = False,
) -> None:
    """Preprocess the unlabeled images now, not at the start of the training."""
    from nnunet_mn.bridge.cases.dataset import find_dataset
    from nnunet_mn.bridge.cases.planned import load_planned
    from nnunet_mn.bridge.cases.unlabeled import find_unlabeled_of_all_folds
    from nnunet_mn.bridge.cases.wanted import write_wanted
    from nnunet_mn.bridge.planning.checks import check_co_trainable
    from nnunet_mn.bridge.preprocessing.run import preprocess_unlabeled

    planned = load_planned(find_dataset(dataset), plans=plans, configuration=configuration)
    check_co_trainable(planned.configuration_manager, configuration, planned.config())
    found = find_unlabeled_of_all_folds(planned.cases, planned.config().unlabeled_sources)
    for warning in found.warnings:
        typer.echo(warning)
    write_wanted(planned.cases.unlabeled, found.names_by_source)
    done = preprocess_unlabeled(
        found.cases,
        planned,
        num_processes=processes,
        num_parts=num_parts,
        part_id=part_id,
        skip_bad=skip_bad,
        log=typer.echo,
    )
    typer.echo(f"{len(done.names)} unlabeled cases are ready in {planned.cases.unlabeled}")


@app.command(epilog="Example: nnunet-mn doctor -d 4 -c 3d_fullres")
def doctor(
    dataset: Annotated[str | None, typer.Option("-d", "--dataset", help="Also check this dataset.")] = None,
    configuration: Configuration = "3d_fullres",
    plans: Plans = "nnUNetPlans",
) -> None:
    """Check what a training needs, on one page. The exit code is 1 if something would stop the training."""
    from rich.console import Console

    from nnunet_mn.bridge.doctor.dataset import check_dataset
    from nnunet_mn.bridge.doctor.environment import check_environment, check_weights
    from nnunet_mn.bridge.doctor.page import examine, print_page
    from nnunet_mn.config import environment_layer, resolve

    if dataset is None:
        last = iter(examine("2D weights", lambda: check_weights(resolve(environment_layer()))))
    else:
        last = check_dataset(dataset, plans=plans, configuration=configuration)
    rows = itertools.chain(check_environment(), last)
    if not print_page(rows, Console()):
        raise typer.Exit(1)


@app.command(
    epilog="Example: nnunet-mn export nnUNet_results/Dataset004_A/nnUNetTrainerMN__nnUNetPlans__3d_fullres -o a.zip"
)
def export(
    model_folder: Annotated[Path, typer.Argument(help="In nnUNet_results: DATASET/TRAINER__PLANS__CONFIGURATION")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The zip. For a.zip, a.model_card.md is put beside it.")
    ],
) -> None:
    """Export a trained model for stock nnU-Net, with a model card."""
    from nnunet_mn.bridge.export import export_model

    folds = export_model(model_folder, output)
    typer.echo(f"wrote {output} ({', '.join(folds)}), and its model card beside it")
    typer.echo(f"install it with: nnUNetv2_install_pretrained_model_from_zip {shlex.quote(str(output))}")


@app.command(epilog="Example: nnunet-mn join -d 4 -c 3d_fullres -f 0 1 2 3 4")
def join(
    dataset: Dataset,
    folds: Annotated[list[str], typer.Option("-f", "--folds", help="Trained folds, such as 0 1 2 3 4, or all.")],
    more_folds: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    configuration: Configuration = "3d_fullres",
    plans: Plans = "nnUNetPlans",
    trainer: Trainer = "nnUNetTrainerMN",
    weight_2d: Annotated[float, typer.Option(help="Weight of the 2D network's probabilities in the mean.")] = 0.5,
    force: Annotated[bool, typer.Option("--force", help="Replace a joint model, with its validation.")] = False,
) -> None:
    """Write a second model beside a trained one. It predicts with both networks."""
    from nnunet_mn.bridge.cases.dataset import results_of
    from nnunet_mn.bridge.model_folders import ModelFolders
    from nnunet_mn.bridge.training.join import join as join_folds

    folders = ModelFolders(dataset=results_of(dataset), trainer=trainer, plans=plans, configuration=configuration)
    chosen = [*folds, *(more_folds or ())]
    joint = join_folds(folders, chosen, weight_2d=weight_2d, force=force)
    which = f"fold{'s' * (len(chosen) > 1)} {', '.join(chosen)}"
    typer.echo(
        f"wrote {joint} ({which}); predict with: nnUNetv2_predict -tr {joint.name.split('__')[0]} "
        f"-p {plans} -d {dataset} -c {configuration} -f {' '.join(chosen)} -i IN -o OUT"
    )


@app.command(context_settings=ONE_FOLD, epilog="Example: nnunet-mn report -d 4 -c 3d_fullres -f 0 --masks")
def report(
    context: typer.Context,
    dataset: Dataset,
    configuration: Configuration = "3d_fullres",
    plans: Plans = "nnUNetPlans",
    trainer: Trainer = "nnUNetTrainerMN",
    fold: Annotated[str, typer.Option("-f", "--fold", help="A trained fold, such as 0, or all.")] = "0",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for the page. If left out: report in the fold's own."),
    ] = None,
    masks: Annotated[
        bool, typer.Option("--masks", help="Also write masks of the unlabeled cases, and maps of uncertainty.")
    ] = False,
    disable_tta: Annotated[
        bool, typer.Option("--disable_tta", help="Predict without mirroring: up to 8 times as fast.")
    ] = False,
    at_most: Annotated[
        int | None, typer.Option(min=1, help="Most unlabeled cases to look at, spread evenly over their names.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("-device", help="cuda, cpu or mps. If left out: a GPU if there is one.")
    ] = None,
) -> None:
    """Write a page about a training: its curves, validation, and which unlabeled cases to look at."""
    from nnunet_mn.bridge.cases.dataset import results_of
    from nnunet_mn.bridge.model_folders import ModelFolders
    from nnunet_mn.bridge.prediction.fold import find_trained_fold
    from nnunet_mn.device import choose_device
    from nnunet_mn.report.predictions import PredictionOptions
    from nnunet_mn.report.write import write_report

    _refuse_more(context)
    options = PredictionOptions(device=choose_device(device), mirroring=not disable_tta, masks=masks)
    folders = ModelFolders(dataset=results_of(dataset), trainer=trainer, plans=plans, configuration=configuration)
    found = find_trained_fold(folders, fold, at_most=at_most)
    page = write_report(found, out or found.folder / "report", options, typer.echo)
    typer.echo(f"wrote {page}; open it in a browser")


@app.command(
    # its arguments belong to the inner app. That app imports torch: it is not mounted at start
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    epilog="Example: nnunet-mn weights list",
)
def weights(context: typer.Context) -> None:
    """List, fetch or check the pretrained 2D networks."""
    from nnunet_mn.networks.cli import app as weights_app

    weights_app(context.args, prog_name=context.command_path)
