"""The command `nnunet-mn weights`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nnunet_mn.console import print_table
from nnunet_mn.networks.inventory import check_backbone, fetch_backbone, list_backbones

app = typer.Typer(
    help="List, fetch or check the pretrained 2D networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(help="A name from the list, a Hugging Face id, or timm:<name>.")]


@app.command("list", epilog="Example: nnunet-mn weights list")
def list_() -> None:
    """Show the known backbones, their licenses, and whether their weights are on this machine."""
    table = Table()
    for title in ("name", "source", "M parameters", "pretrained on", "license", "here"):
        table.add_column(title, no_wrap=True)
    for entry, is_here in list_backbones():
        table.add_row(
            entry.name,
            entry.source,
            f"{entry.parameters:.1f}",
            entry.pretraining,
            entry.license,
            "yes" if is_here else "no",
        )
    print_table(table, Console())


@app.command(epilog="Example: nnunet-mn weights fetch segformer-b2")
def fetch(
    name: Name,
    to: Annotated[
        Path | None, typer.Option(help="A folder, to copy elsewhere. Without it: the Hugging Face cache.")
    ] = None,
) -> None:
    """Download weights, and print the variables to export on a machine without internet.

    A training then takes a folder by its path, and a file of timm as timm:<name>@<weight file>.
    """
    files, exports = fetch_backbone(name, to=to)
    if not files:
        typer.echo(f"The weights of '{name}' came with the install: nothing to fetch or to export")
        return
    for file in files:
        typer.echo(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
    typer.echo("On a machine without internet that can read these files, run:")
    typer.echo(exports)


@app.command(epilog="Example: nnunet-mn weights check efficientnet-lite0")
def check(
    name: Annotated[
        str,
        typer.Argument(help="A name, a Hugging Face id, a local folder, timm:<name>, or timm:<name>@<weight file>."),
    ],
) -> None:
    """Load weights, run the network once, and print their hash and size."""
    checked = check_backbone(name)
    typer.echo(checked.description)
    typer.echo(f"hash of the weights: {checked.weights_hash}, {checked.megabytes:.1f} MB")
    typer.echo(f"one forward pass: logits {checked.logits_shape}, all finite")
