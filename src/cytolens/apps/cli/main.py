"""`cytolens`: the command."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from cytolens import __version__
from cytolens.apps.cli import (
    adapt,
    bundles,
    curation,
    data,
    datasets,
    demo,
    duplicates,
    evaluate,
    explain,
    fuse,
    noise,
    predict,
    run,
    split,
    stats,
    train,
    tune,
)

app = typer.Typer(
    name="cytolens",
    help="Find, name and count blood cells in microscope images. For research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"cytolens {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command()(demo.demo)
app.command("import")(data.import_data)
app.command("export")(data.export_data)
app.command()(curation.check)
app.command()(curation.repair)
app.command()(duplicates.duplicates)
app.command()(split.split)
app.command()(stats.stats)
app.command()(noise.noise)
app.command()(train.train)
app.command()(adapt.adapt)
app.command()(predict.predict)
app.command()(explain.explain)
app.command()(evaluate.evaluate)
app.command()(fuse.fuse)
app.command()(run.run)
app.command()(tune.tune)
app.add_typer(bundles.app, name="bundles")
app.add_typer(datasets.app, name="datasets")


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that the terminal lacks must not cost the result
            stream.reconfigure(errors="replace")
    app()
