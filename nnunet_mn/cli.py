"""The command `nnunet-mn`.

Commands import what they need when they run: `nnunet-mn --help` must not wait for torch.
"""

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
    """Remove what `register` has written."""
    from nnunet_mn.bridge import registration

    removed = registration.unregister()
    for file in removed:
        typer.echo(f"removed: {file}")
    if not removed:
        typer.echo("nothing was registered")


@app.command(epilog='Example: export nnUNet_extTrainer="$(nnunet-mn trainers-path)"')
def trainers_path() -> None:
    """Print the folder for nnUNet_extTrainer, where site-packages is read-only (nnunetv2 >= 2.8)."""
    from nnunet_mn.bridge import registration

    typer.echo(registration.trainers_path())


@app.command(epilog="Example: nnunet-mn demo --out /tmp/mn-demo --quick")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the generated data, the models and the results.")] = Path(
        "nnunet-mn-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the generated data and of both trainings.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer cases and updates: shows that it runs, no more.")
    ] = False,
) -> None:
    """Train on generated data with and without unlabeled images, and compare (needs no GPU)."""
    from nnunet_mn.demo import run_demo

    run_demo(out, seed=seed, quick=quick)


@app.command(epilog="Example: nnunet-mn split -d 4 --labeled 4 --val 20")
def split(
    dataset: Dataset,
    labeled: Annotated[int, typer.Option(min=1, help="Cases to train on with their labels.")],
    val: Annotated[
        int | None, typer.Option(min=1, help="Validation cases per fold; a fifth of the rest if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    folds: Annotated[int, typer.Option(min=1, help="Folds; their validation cases are disjoint.")] = 5,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file and keep a copy of it.")] = False,
) -> None:
    """Draw labeled, validation and unlabeled cases from a dataset with labels, for experiments."""
    from nnunet_mn.bridge import splits
    from nnunet_mn.bridge.datasets import find_dataset

    folders = find_dataset(dataset)
    if folders.raw is None:
        raise MNError(f"{folders.name} is not in nnUNet_raw here; run this where the raw data are")
    cases = splits.training_cases(folders.raw)
    drawn = splits.draw_splits(cases, labeled=labeled, val=val, folds=folds, seed=seed)
    file, backup = splits.write_splits(folders, drawn, force=force)
    if backup is not None:
        typer.echo(f"kept the previous file as {backup}")
    counts = ", ".join(f"{len(names)} {part}" for part, names in drawn[0].items())
    typer.echo(f"wrote {file}: {folds} folds of {counts}")


@app.command(
    # its arguments belong to the inner app, which imports torch and is therefore not mounted at start
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    epilog="Example: nnunet-mn weights list",
)
def weights(context: typer.Context) -> None:
    """List, fetch or check the pretrained 2D networks."""
    from nnunet_mn.networks.cli import app as weights_app

    weights_app(context.args, prog_name=context.command_path)
